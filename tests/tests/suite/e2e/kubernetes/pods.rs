//! What pods need of their node, where subnets come from the cluster and there are two devices.

use std::fs;
use std::path::Path;

use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay};

use super::super::pods::{ask, assert_masquerading, new_directory, with_pods};
use super::{assert_all_reach_all, build, off};

/// MTU: what fits into the tunnel over IPv6 fits into both.
const WRITTEN: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\n\
                       FLANNEL_IPV6_NETWORK=fd00:244::/32\nFLANNEL_IPV6_SUBNET=fd00:244:1::1/64\n\
                       FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

fn first(overlay: Overlay) -> Lab {
    build(&LabSpec::of(vec![overlay, Overlay::KernelVxlan, off()]).kubernetes())
}

fn tables(lab: &Lab) -> String {
    lab.node(1).sh("nft list ruleset").expect("nf_tables")
}

/// Files and masquerading of node 1 are there, and go with the rest.
fn assert_set_up(lab: &Lab, subnet_file: &Path) {
    assert_eq!(fs::read_to_string(subnet_file).expect("a subnet file"), WRITTEN);
    let listed = tables(lab);
    for (version, set, device) in [("ip", "pods4", "flannel.1"), ("ip6", "pods6", "flannel-v6.1")] {
        let rule =
            format!("{version} saddr != @{set} {version} daddr @{set} oifname \"{device}\" masquerade");
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
