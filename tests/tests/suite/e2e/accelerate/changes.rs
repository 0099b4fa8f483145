//! What an owner changes is followed.

use std::net::IpAddr;
use std::time::Duration;

use vxlan_tests::lab::addr::{inner4, inner6, underlay4, vtep_mac};
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, DEVICE, Lab, LabSpec, Overlay, wait_until};

use super::{SOON, accelerated, is_fast, kernels, left, wait_fast};
use crate::e2e::{assert_answered, build, counters};

/// Three nodes of which the first one accelerates.
pub(super) fn three() -> Lab {
    let mut lab = build(&LabSpec::of(vec![Overlay::KernelVxlan; 3]));
    lab.add_agent(1, &AgentOptions::beside("direct", DEVICE)).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    lab
}

pub(super) fn reaches(lab: &Lab, ip: impl Into<IpAddr>) -> bool {
    let once = Ping { timeout: Duration::from_millis(200), ..Ping::default() };
    ping(lab.pod(1, 1), ip, once).is_ok_and(|report| report.all_answered())
}

#[test]
fn nodes_come_and_go_and_move() {
    let lab = three();
    let node = lab.node(1);
    wait_fast(&lab, 1, 3);
    // Gone, as flannel does it.
    let (net4, net6, mac, vtep) = (inner4(3, 0), inner6(3, 0), vtep_mac(3), underlay4(3));
    node.ip(&format!("route del {net4}/24\nroute del {net6}/64\n")).expect("gone");
    node.ip(&format!("neigh del {net4} dev {DEVICE}\nneigh del {net6} dev {DEVICE}\n")).expect("gone");
    node.sh(&format!("bridge fdb del {mac} dev {DEVICE} self dst {vtep}")).expect("gone");
    let known = || lab.agent(1).and_then(|agent| agent.cli(&["dump", "routes"])).expect("routes");
    wait_until("the node is forgotten", SOON, || !known().contains("10.244.3.0")).expect("in time");
    assert!(!reaches(&lab, lab.pod(3, 1).ip4), "nobody leads there");
    assert!(is_fast(&lab, 1, 2), "the other one stays");
    // There again.
    let add = |mac: &str| {
        node.sh(&format!("bridge fdb replace {mac} dev {DEVICE} self permanent dst {vtep}")).expect("known");
        for gateway in [IpAddr::from(net4), net6.into()] {
            node.ip(&format!("neigh replace {gateway} lladdr {mac} dev {DEVICE} nud permanent\n"))
                .expect("known");
        }
    };
    add(&mac);
    node.ip(&format!(
        "route add {net4}/24 via {net4} dev {DEVICE} onlink\nroute add {net6}/64 via {net6} dev {DEVICE} onlink\n"
    ))
    .expect("routes");
    wait_fast(&lab, 1, 3);
    // With another MAC.
    let other = "0e:99:00:00:00:03";
    lab.node(3).ip(&format!("link set {DEVICE} address {other}\n")).expect("a MAC");
    let mut batch = String::new();
    for n in [1, 2] {
        for net in [IpAddr::from(inner4(n, 0)), inner6(n, 0).into()] {
            batch += &format!("neigh replace {net} lladdr {} dev {DEVICE} nud permanent\n", vtep_mac(n));
        }
    }
    lab.node(3).ip(&batch).expect("the kernel forgets neighbours with the MAC");
    add(other);
    node.sh(&format!("bridge fdb del {mac} dev {DEVICE} self dst {vtep}")).expect("gone");
    wait_fast(&lab, 1, 3);
}

#[test]
fn a_device_that_is_made_anew_or_renamed_is_followed() {
    let lab = accelerated();
    let node = lab.node(1);
    node.ip(&format!("link set {DEVICE} down\nlink set {DEVICE} name renamed\nlink set renamed up\n"))
        .expect("renamed");
    for net in [IpAddr::from(inner4(2, 0)), inner6(2, 0).into()] {
        let length = if net.is_ipv4() { 24 } else { 64 };
        node.ip(&format!("neigh replace {net} lladdr {} dev renamed nud permanent\n", vtep_mac(2)))
            .expect("known");
        node.ip(&format!("route replace {net}/{length} via {net} dev renamed onlink\n")).expect("a route");
    }
    wait_fast(&lab, 1, 2);
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    assert_eq!(status["networks"][0]["device"], "renamed");
    node.ip("link del renamed\n").expect("gone");
    let says = || left(&lab, 1).contains("there is no interface");
    wait_until("the agent says so", SOON, says).expect("in time");
    lab.make_device(1, 2).expect("a device");
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping::default());
    wait_fast(&lab, 1, 2);
}

#[test]
fn a_device_that_comes_later_is_waited_for() {
    let mut lab = build(&kernels());
    lab.node(1).ip(&format!("link del {DEVICE}\n")).expect("gone");
    let options = AgentOptions::beside("direct", DEVICE);
    lab.add_agent(1, &options).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("started");
    let waits = || {
        lab.agent(1)
            .and_then(|agent| agent.cli(&["status"]))
            .is_ok_and(|s| s.contains("there is no interface"))
    };
    wait_until("it says what it waits for", SOON, waits).expect("in time");
    lab.make_device(1, 2).expect("a device");
    wait_fast(&lab, 1, 2);
}

#[test]
fn routes_that_only_the_kernel_can_do_are_left_to_it() {
    let lab = three();
    let (node, ip) = (lab.node(1), lab.pod(2, 1).ip4);
    wait_fast(&lab, 1, 2);
    node.ip(&format!("route add blackhole {ip}/32\n")).expect("a route");
    wait_until("nobody is led there", SOON, || !reaches(&lab, ip)).expect("in time");
    assert!(reaches(&lab, lab.pod(2, 1).ip6) && is_fast(&lab, 1, 3), "the rest goes on");
    node.ip(&format!("route del {ip}/32\n")).expect("gone");
    wait_fast(&lab, 1, 2);
    // Several next hops: the kernel chooses.
    let a = inner4(2, 0);
    node.ip(&format!(
        "route add 10.244.2.2/31 nexthop via {a} dev {DEVICE} onlink nexthop via {a} dev {DEVICE} onlink\n"
    ))
    .expect("a route");
    wait_until("it is left alone", SOON, || left(&lab, 1).contains("several next hops")).expect("in time");
    let before = counters(&lab, 1);
    assert_answered(lab.pod(1, 1), ip, Ping { count: 5, ..Ping::default() });
    let during = &counters(&lab, 1) - &before;
    assert_eq!(during.packets("pod_egress", "encapsulated"), 0, "{during}");
    assert!(
        during.packets("tunnel_egress", "encapsulated") >= 5,
        "the device's MAC tells where to: {during}"
    );
    node.ip("route del 10.244.2.2/31\n").expect("gone");
    wait_fast(&lab, 1, 2);
    node.ip("route add blackhole 10.244.0.0/16 table 77\nrule add from 10.244.1.0/24 lookup 77\n")
        .expect("a rule");
    wait_until("rules are left alone", SOON, || left(&lab, 1).contains("a routing rule")).expect("in time");
    assert!(!reaches(&lab, ip), "the owner's rule leads nowhere");
    assert!(reaches(&lab, lab.pod(2, 1).ip6), "it is about IPv4");
}
