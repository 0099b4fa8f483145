//! What pods need of their node, where subnets come from the cluster and there are two devices.

use std::fs;
use std::path::Path;

use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay};

use super::super::pods::{ask, assert_masquerading, new_directory, with_pods};
use super::{assert_all_reach_all, build, off, soon};

/// MTU: what fits into the tunnel over IPv6 fits into both.
const WRITTEN: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
                       FLANNEL_IPV6_NETWORK=fd00:244::/32\nFLANNEL_IPV6_SUBNET=fd00:244:1::1/64\n\
                       FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

fn first(overlay: Overlay) -> Lab {
    build(&LabSpec::of(vec![overlay, Overlay::KernelVxlan, off()]).kubernetes().unfiltered())
}

fn tables(lab: &Lab) -> String {
    lab.node(1).sh("nft list ruleset").expect("nf_tables")
}

/// Files and masquerading of node 1 are there, and go with the rest.
fn assert_set_up(lab: &Lab, subnet_file: &Path) {
    assert_eq!(fs::read_to_string(subnet_file).expect("a subnet file"), WRITTEN);
    let listed = tables(lab);
    for (version, pods, device) in
        [("ip", "10.244.0.0/16", "flannel.1"), ("ip6", "fd00:244::/32", "flannel-v6.1")]
    {
        let rule =
            format!("{version} saddr != {pods} {version} daddr {pods} oifname \"{device}\" masquerade");
        assert!(listed.contains(&rule), "`{rule}` is not in\n{listed}");
    }
    assert_masquerading(lab);
    assert_all_reach_all(lab);
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");
    assert!(!subnet_file.exists());
    assert_eq!(tables(lab).trim(), "");
}

#[test]
fn what_pods_need_is_set_up_for_both_ip_versions() {
    let directory = new_directory();
    let (subnet, cni) =
        (directory.path().join("run/subnet.env"), directory.path().join("net.d/10-flannel.conflist"));
    let lines =
        format!("subnet_file = {subnet:?}\ncni = \"bridge\"\ncni_file = {cni:?}\nmasquerade = true\n");
    let lab = first(with_pods("verified", &lines));
    let list = fs::read_to_string(&cni).expect("a CNI configuration");
    let list: serde_json::Value = serde_json::from_str(&list).expect("JSON");
    let bridge = &list["plugins"][0];
    assert_eq!(bridge["mtu"], 1430);
    for (range, subnet) in [(0, "10.244.1.0/24"), (1, "fd00:244:1::/64")] {
        assert_eq!(bridge["ipam"]["ranges"][range][0]["subnet"], subnet, "{list}");
    }
    assert_set_up(&lab, &subnet);
    assert!(!cni.exists());
}

#[test]
fn flannels_flags_ask_for_the_same() {
    let directory = new_directory();
    let subnet = directory.path().join("subnet.env");
    let flags = [
        "--ip-masq".to_owned(),
        format!("--subnet-file={}", subnet.display()),
        "--healthz-ip=127.0.0.1".to_owned(),
        "--healthz-port=9475".to_owned(),
    ];
    let options = AgentOptions { flannel: Some(flags.into()), ..AgentOptions::default() };
    let lab = first(Overlay::Agent(options));
    let (status, _) = ask(lab.node(1), "/healthz").expect("an answer");
    assert!(status.contains("200"), "{status}");
    assert_set_up(&lab, &subnet);
}

#[test]
fn ports_of_what_is_masqueraded_are_random_unless_flannels_flag_says_otherwise() {
    for (flags, random) in [(vec![], true), (vec!["--ip-masq-fully-random-disable".to_owned()], false)] {
        let flags = [vec!["--ip-masq".to_owned()], flags].concat();
        let options = AgentOptions { flannel: Some(flags), ..AgentOptions::default() };
        let lab = first(Overlay::Agent(options));
        let rules = lab.node(1).sh("nft list table inet vxlan-agent-flannel").expect("a table");
        assert_eq!(rules.contains("masquerade fully-random"), random, "{rules}");
        assert!(rules.contains("masquerade"), "{rules}");
    }
}

#[test]
fn tables_of_a_network_that_is_called_otherwise_now_are_removed_and_no_others() {
    let mut lab = first(Overlay::Agent(AgentOptions::default()));
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    let table = |name: &str, comment: &str| {
        format!(
            "table inet vxlan-agent-{name} {{ chain c {{ type filter hook output priority 0; \
             counter comment \"{comment}\"; }}; }}\n"
        )
    };
    let marked = "pods to elsewhere, 0123456789abcdef";
    let tables = table("old", marked) + &table("served", marked) + &table("operators", "by hand");
    lab.node(1).feed("nft", &["-f", "-"], &tables).expect("tables");
    // Another agent serves this one.
    lab.node(1)
        .ip("link add served type bridge\nlink set served alias \"vxlan-agent network served\"\n")
        .expect("a device of another network");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    let tables = || lab.node(1).sh("nft list tables").expect("tables");
    soon(&lab, "the old table is gone", || !tables().contains("vxlan-agent-old"));
    for kept in ["vxlan-agent-served", "vxlan-agent-operators"] {
        assert!(tables().contains(kept), "{}", tables());
    }
}
