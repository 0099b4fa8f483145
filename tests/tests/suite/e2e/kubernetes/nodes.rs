//! What nodes say of themselves, and what becomes of what others say.

use std::time::Duration;

use serde_json::json;
use vxlan_tests::lab::kubernetes::flannel;
use vxlan_tests::lab::traffic::{Ping, tcp_bulk};
use vxlan_tests::lab::{AgentOptions, DEVICE, LabSpec, Overlay, UNDERLAY};

use super::super::{assert_nothing_dropped, assert_took, counters};
use super::{
    agent, assert_all_reach_all, assert_answered, assert_one_cluster, build, cluster, count, known, mac, off,
    reaches, soon, stub,
};

#[test]
fn nodes_of_flannel_and_ours_are_one_cluster() {
    assert_one_cluster(&cluster());
}

#[test]
fn three_nodes_of_ours_are_a_cluster_of_both_ip_versions() {
    for mode in ["direct", "verified"] {
        let ours = || Overlay::Agent(AgentOptions { fastpath: mode.into(), ..AgentOptions::default() });
        let lab = build(&LabSpec::of(vec![ours(), ours(), ours()]).kubernetes());
        let pairs = [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)];
        soon(&lab, "all reach all", || pairs.iter().all(|(from, to)| reaches(&lab, *from, *to)));
        for (from, to) in pairs {
            for ip in lab.pod(to, 1).ips() {
                let before = counters(&lab, from);
                tcp_bulk(lab.pod(from, 1), lab.pod(to, 1), ip, 4 << 20).expect("a transfer");
                assert_answered(lab.pod(from, 1), ip, Ping { count: 20, ..Ping::default() });
                let took = &counters(&lab, from) - &before;
                assert_took(&took, "pod_egress", "encapsulated", 15);
                assert_nothing_dropped(&took);
            }
        }
    }
}

#[test]
fn a_node_says_of_itself_what_flannel_would() {
    let lab = cluster();
    let node = lab.kubernetes().node("n1").expect("a node");
    let annotations = node["metadata"]["annotations"].as_object().expect("annotations");
    let expected = json!({
        "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(&lab, DEVICE)),
        "flannel.alpha.coreos.com/backend-type": "vxlan",
        "flannel.alpha.coreos.com/backend-v6-data":
            format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac(&lab, flannel::DEVICE6)),
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": "192.0.2.1",
        "flannel.alpha.coreos.com/public-ipv6": "2001:db8::1",
    });
    let ours = annotations.iter().filter(|(name, _)| name.starts_with("flannel.alpha.coreos.com/"));
    let ours: serde_json::Map<_, _> = ours.map(|(k, v)| (k.clone(), v.clone())).collect();
    assert_eq!(serde_json::Value::Object(ours), expected);
    let conditions = node["status"]["conditions"].as_array().expect("conditions");
    let condition = conditions.iter().find(|c| c["type"] == "NetworkUnavailable").expect("a condition");
    assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("FlannelIsUp")));
    assert_eq!(conditions.len(), 2, "the kubelet's stays");
}

#[test]
fn annotations_are_written_until_they_hold_and_then_left_alone() {
    let lab = cluster();
    let version =
        |name: &str| lab.kubernetes().node(name).expect("a node")["metadata"]["resourceVersion"].clone();
    let quiet = version("n1");
    std::thread::sleep(Duration::from_millis(500)); // time in which nothing may be written
    assert_eq!(version("n1"), quiet);
    if let Some(stub) = stub(&lab) {
        stub.faults().refuse_patches.store(500, std::sync::atomic::Ordering::Relaxed);
        let before = stub.asked("patch");
        lab.kubernetes().stub().expect("the stub").store().patch(
            "n1",
            &json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": "192.0.2.99" } } }),
            true,
        ).expect("changed by hand");
        soon(&lab, "the agent tries more than once", || stub.asked("patch") >= before + 3);
        stub.faults().refuse_patches.store(0, std::sync::atomic::Ordering::Relaxed);
    } else {
        lab.kubernetes().annotate("n1", &json!({ "public-ip": "192.0.2.99" })).expect("changed by hand");
    }
    let restored =
        || lab.kubernetes().annotation("n1", "public-ip").is_ok_and(|ip| ip.as_deref() == Some("192.0.2.1"));
    soon(&lab, "the annotation is as it was", restored);
}

#[test]
fn a_restarted_node_keeps_its_mac_and_what_it_wrote() {
    let mut lab = cluster();
    let before = lab.kubernetes().node("n1").expect("a node");
    // Even where the device is gone: the others know the MAC.
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    lab.agent_mut(1).and_then(|agent| agent.stop().or(Ok(()))).expect("ended");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    let after = lab.kubernetes().node("n1").expect("a node");
    assert_eq!(before["metadata"]["annotations"], after["metadata"]["annotations"]);
    soon(&lab, "node 1 reaches node 2 again", || reaches(&lab, 1, 2));
    assert_all_reach_all(&lab);
}

#[test]
fn a_node_whose_mac_or_address_changes_is_followed() {
    let lab = cluster();
    let data = r#"{"vtepmac":"0e:11:00:00:00:99"}"#;
    lab.kubernetes().annotate("n2", &json!({ "backend-data": data })).expect("annotated");
    soon(&lab, "the new MAC is known", || known(&lab, "n2").is_some_and(|n| n["mac"] == "0e:11:00:00:00:99"));
    lab.node(2).ip(&format!("link set {DEVICE} address 0e:11:00:00:00:99\n")).expect("a MAC");
    flannel::follow(&lab, 2).expect("flannel follows");
    soon(&lab, "node 1 reaches it with its new MAC", || reaches(&lab, 1, 2));

    // It moves to another underlay address.
    lab.node(2)
        .ip(&format!("addr add 192.0.2.77/24 dev {UNDERLAY}\nlink del {DEVICE}\n"))
        .expect("a new address");
    lab.node(2)
        .ip(&format!(
            "link add {DEVICE} address 0e:11:00:00:00:99 mtu 1450 type vxlan id 1 dev {UNDERLAY} \
             local 192.0.2.77 dstport 8472 nolearning\naddr add 10.244.2.0/32 dev {DEVICE}\nlink set {DEVICE} up\n"
        ))
        .expect("a device");
    lab.kubernetes().annotate("n2", &json!({ "public-ip": "192.0.2.77" })).expect("annotated");
    flannel::follow(&lab, 2).expect("flannel follows");
    soon(&lab, "node 1 reaches it at its new address", || reaches(&lab, 1, 2));
    assert_all_reach_all(&lab);
    let fdb = lab.node(1).sh(&format!("bridge fdb show dev {DEVICE}")).expect("entries");
    assert!(!fdb.contains("192.0.2.2 ") && !fdb.contains("0e:11:00:00:00:02"), "nothing stale:\n{fdb}");
}

#[test]
fn a_node_that_gets_another_address_tells_the_others() {
    let lab = cluster();
    lab.node(1)
        .ip(&format!("addr del 192.0.2.1/24 dev {UNDERLAY}\naddr add 192.0.2.71/24 dev {UNDERLAY}\n"))
        .expect("another address");
    let told =
        || lab.kubernetes().annotation("n1", "public-ip").is_ok_and(|ip| ip.as_deref() == Some("192.0.2.71"));
    soon(&lab, "the others are told", told);
    flannel::follow(&lab, 2).expect("flannel follows");
    for other in [2, 3] {
        soon(&lab, "the others are reached", || reaches(&lab, 1, other) && reaches(&lab, other, 1));
    }
}

#[test]
fn an_operator_s_public_address_wins() {
    let lab = cluster();
    lab.node(1).ip(&format!("addr add 192.0.2.72/24 dev {UNDERLAY}\n")).expect("another address");
    lab.kubernetes().annotate("n1", &json!({ "public-ip-overwrite": "192.0.2.72" })).expect("annotated");
    let told =
        || lab.kubernetes().annotation("n1", "public-ip").is_ok_and(|ip| ip.as_deref() == Some("192.0.2.72"));
    soon(&lab, "the others are told", told);
    flannel::follow(&lab, 2).expect("flannel follows");
    soon(&lab, "node 3 is reached", || reaches(&lab, 1, 3) && reaches(&lab, 3, 1));
    soon(&lab, "node 2 is reached", || reaches(&lab, 1, 2) && reaches(&lab, 2, 1));
}

#[test]
fn nodes_that_take_no_part_are_left_out_and_do_no_harm() {
    let lab = cluster();
    let node = |name: &str, cidr: &str| {
        json!({
            "kind": "Node", "apiVersion": "v1", "metadata": { "name": name },
            "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
        })
    };
    let mut other = flannel::annotations(9);
    other["backend-type"] = json!("host-gw");
    let mut thief = flannel::annotations(7);
    thief["public-ip"] = json!("192.0.2.1");
    for (name, cidr, annotations) in [
        ("bare", "10.244.8.0/24", json!({})),
        ("other", "10.244.9.0/24", other),
        ("thief", "10.244.7.0/24", thief),
        (
            "broken",
            "10.244.6.0/24",
            json!({ "kube-subnet-manager": "true", "backend-type": "vxlan", "backend-data": "{" }),
        ),
        ("fine", "10.244.5.0/24", flannel::annotations(5)),
    ] {
        lab.kubernetes().create(&node(name, cidr)).expect("a node");
        lab.kubernetes().annotate(name, &annotations).expect("annotated");
    }
    soon(&lab, "the node that is right is known", || known(&lab, "fine").is_some());
    for name in ["bare", "other", "thief", "broken"] {
        assert!(known(&lab, name).is_none(), "{name}");
    }
    let log = agent(&lab).log();
    assert_eq!(count(&log, "host-gw"), 1, "said once:\n{log}");
    assert!(log.contains("same VTEP address"), "{log}");
    assert_all_reach_all(&lab);
    lab.kubernetes().delete("fine").expect("deleted");
    soon(&lab, "a deleted node is forgotten", || known(&lab, "fine").is_none());
    let routes = lab.node(1).sh("ip route").expect("routes");
    assert!(!routes.contains("10.244.5.0"), "{routes}");
}

#[test]
fn a_node_whose_object_is_deleted_goes_on_following_the_others() {
    let lab = cluster();
    let own = lab.kubernetes().node("n1").expect("a node");
    lab.kubernetes().delete("n1").expect("deleted");
    soon(&lab, "the agent says so", || agent(&lab).log().contains("no node 'n1' any more"));
    let node = json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": "n9" },
        "spec": { "podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"] },
    });
    lab.kubernetes().create(&node).expect("a node");
    lab.kubernetes().annotate("n9", &flannel::annotations(9)).expect("annotated");
    soon(&lab, "a new node is followed", || known(&lab, "n9").is_some());
    assert!(known(&lab, "n2").is_some());
    assert!(reaches(&lab, 1, 2), "what was there goes on");
    assert!(!agent(&lab).log().contains("cluster state refused"), "{}", agent(&lab).log());
    // The kubelet makes it anew, without annotations.
    let again = json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": "n1" }, "spec": own["spec"],
    });
    lab.kubernetes().create(&again).expect("a node again");
    let written = || lab.kubernetes().annotation("n1", "public-ip").is_ok_and(|ip| ip.is_some());
    soon(&lab, "the new object is annotated", written);
    let data = |node: &serde_json::Value| {
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"].clone()
    };
    assert_eq!(data(&lab.kubernetes().node("n1").expect("a node")), data(&own), "with the same MAC");
}

#[test]
fn a_change_of_one_ip_version_shows_in_the_annotations_of_both() {
    let lab = cluster();
    let data6 = || lab.kubernetes().annotation("n1", "backend-v6-data").ok().flatten().expect("data");
    let before = data6();
    lab.node(1)
        .ip(&format!("addr del 192.0.2.1/24 dev {UNDERLAY}\naddr add 192.0.2.71/24 dev {UNDERLAY}\n"))
        .expect("another address");
    let told =
        || lab.kubernetes().annotation("n1", "public-ip").is_ok_and(|ip| ip.as_deref() == Some("192.0.2.71"));
    soon(&lab, "the others are told", told);
    let after = data6();
    assert_ne!(after, before, "flanneld compares texts");
    assert_eq!(after.replace(' ', ""), before, "and it means the same");
}

#[test]
fn a_node_is_announced_with_all_its_ip_versions_or_not_at_all() {
    let mut lab = build(&LabSpec::of(vec![Overlay::KernelVxlan, Overlay::KernelVxlan, off()]).kubernetes());
    let own = lab.kubernetes().node("n1").expect("a node");
    lab.kubernetes().delete("n1").expect("deleted");
    let bare = json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": "n1" }, "spec": own["spec"],
    });
    lab.kubernetes().create(&bare).expect("a node without annotations");
    lab.node(1).ip(&format!("addr del 2001:db8::1/64 dev {UNDERLAY}\n")).expect("no IPv6");
    lab.add_agent(1, &AgentOptions::default()).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
    soon(&lab, "it says why", || agent(&lab).log().contains("is not announced yet"));
    assert!(lab.kubernetes().annotation("n1", "public-ip").is_ok_and(|ip| ip.is_none()), "not in part");
    lab.node(1).ip(&format!("addr add 2001:db8::1/64 dev {UNDERLAY} nodad\n")).expect("IPv6");
    for name in ["public-ip", "public-ipv6"] {
        soon(&lab, "announced", || lab.kubernetes().annotation("n1", name).is_ok_and(|ip| ip.is_some()));
    }
}

#[test]
fn flannels_own_configuration_will_do() {
    let options = AgentOptions { flannel: Some(vec![]), ..AgentOptions::default() };
    let lab = build(&LabSpec::of(vec![Overlay::Agent(options), Overlay::KernelVxlan, off()]).kubernetes());
    assert_all_reach_all(&lab);
    let before = counters(&lab, 1);
    for ip in lab.pod(2, 1).ips() {
        assert_answered(lab.pod(1, 1), ip, Ping { count: 10, ..Ping::default() });
    }
    assert_took(&(&counters(&lab, 1) - &before), "pod_egress", "encapsulated", 20);
}
