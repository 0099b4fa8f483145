//! Symmetric routing: what FRR routes between nodes over a device of its own (routes of type 5) is the kernel's, which
//! routes it past a bridge without ports.

use std::net::Ipv4Addr;
use std::time::Duration;

use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::segment::{SegmentLab, SegmentSpec};
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, Frr, Netns, Speaker, wait_until};

use super::super::{RED, assert_answered, build, kernel};
use super::{SOON, hand_over};
use crate::e2e::accelerate::dump::{assert_same, dump};

const fn address(n: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, n, host)
}

/// A host in a subnet of node `n`, which routes.
fn host(lab: &SegmentLab, n: u8) -> Netns {
    let host = lab.add_namespace(&format!("host-{n}")).expect("a namespace");
    let (node, mtu, ns) = (lab.node(n), lab.spec().host_mtu(), host.namespace());
    node.sysctl(&[("ipv4/ip_forward", "1")]).expect("a router");
    let (gateway, own) = (address(n, 1), address(n, 2));
    node.ip(&format!(
        "link add veth0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {ns}\n\
         addr add {gateway}/24 dev veth0\nlink set veth0 up\n"
    ))
    .expect("a subnet");
    host.ip(&format!(
        "addr add {own}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway} dev eth0\n"
    ))
    .expect("a host");
    host
}

#[test]
fn what_frr_routes_between_nodes_is_left_to_the_kernel() {
    let mut lab = build(&SegmentSpec::pair(kernel(), kernel()).hosts(0));
    let routed = Some(lab.tenant(RED).vni);
    let [one, _two] = [1, 2].map(|n| {
        hand_over(&lab, n);
        host(&lab, n)
    });
    lab.add_agent(1, &AgentOptions::beside("verified", "")).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    let _frr = [1, 2].map(|n| {
        let speaker = Speaker { own: underlay4(n), peers: vec![underlay4(3 - n)], routed };
        Frr::start(lab.node(n), lab.run_dir().join(format!("frr-{n}")), &speaker).expect("FRR")
    });
    let reaches = || {
        let once = Ping { timeout: Duration::from_millis(200), ..Ping::default() };
        ping(&one, address(2, 2), once).is_ok_and(|report| report.all_answered())
    };
    wait_until("FRR tells of the subnets", SOON, reaches).expect("in time");
    assert_answered(&one, address(2, 2), Ping { count: 20, ..Ping::default() });
    let agent = lab.agent(1).expect("an agent");
    let counters = agent.counters().expect("counters");
    assert_eq!(counters.total("encapsulated") + counters.total("decapsulated"), 0, "{counters}");
    let before = dump(lab.node(1));
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_same(&before, &dump(lab.node(1)), "after detach");
    assert_answered(&one, address(2, 2), Ping { count: 20, ..Ping::default() });
}
