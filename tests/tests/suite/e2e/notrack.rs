//! Conntrack is left out of the tunnel's outer packets if asked for.

use vxlan_tests::lab::traffic::{Ping, tcp_concurrent};
use vxlan_tests::lab::{AgentOptions, Family, Lab, LabSpec, Overlay};

use super::verified::{FILTER, conntrack, nft};
use super::{assert_answered, assert_nothing_dropped, assert_took, build, counted, warm_up};

fn lab(fastpath: &str, network: &str, underlay: Family) -> Lab {
    let agent = || {
        let (fastpath, network) = (fastpath.into(), network.into());
        Overlay::Agent(AgentOptions { fastpath, network, ..AgentOptions::default() })
    };
    let lab = build(&LabSpec::pair(agent(), agent()).underlay(underlay).unfiltered());
    for n in [1, 2] {
        nft(&lab, n, FILTER);
    }
    if fastpath != "off" {
        warm_up(&lab);
    }
    lab
}

/// What conntrack of node `n` knows of connections to `port`.
fn tracked(lab: &Lab, n: u8, port: u16) -> usize {
    conntrack(lab, n).iter().filter(|line| line.contains(&format!("dport={port} "))).count()
}

/// Pings and connections between pods, of which the first packets at least take the stack.
fn talk(lab: &Lab) {
    for ip in lab.pod(2, 1).ips() {
        assert_answered(lab.pod(1, 1), ip, Ping { count: 5, ..Ping::default() });
        tcp_concurrent(lab.pod(1, 1), lab.pod(2, 1), ip, 10, 100_000).expect("connections");
    }
}

#[test]
fn conntrack_follows_the_packets_inside_the_tunnel_and_those_outside_only_if_it_may() {
    for underlay in [Family::V4, Family::V6] {
        for (network, follows) in [("", true), ("notrack = true", false)] {
            let lab = lab("verified", network, underlay);
            for node in counted(&lab, || talk(&lab)) {
                assert_took(&node, "pod_egress", "unverified", 10);
                assert_took(&node, "pod_egress", "encapsulated", 10);
                assert_took(&node, "pod_ingress", "passed", 10);
                assert_nothing_dropped(&node);
            }
            for n in [1, 2] {
                assert_eq!(tracked(&lab, n, 8472) > 0, follows, "node {n} over {underlay:?}");
                let inside = conntrack(&lab, n).iter().filter(|line| line.contains("tcp")).count();
                assert!(inside >= 20, "{inside}");
            }
        }
    }
}

#[test]
fn the_kernel_alone_does_without_conntrack_outside_too() {
    let lab = lab("off", "notrack = true", Family::V4);
    talk(&lab);
    assert_eq!((tracked(&lab, 1, 8472), tracked(&lab, 2, 8472)), (0, 0));
    let table = lab.agent(1).expect("an agent").nft_table();
    let listed = lab.node(1).sh(&format!("nft list table inet {table}")).expect("a table");
    for part in
        ["hook prerouting priority raw", "hook output priority raw", "udp dport @untracked notrack", "8472"]
    {
        assert!(listed.contains(part), "`{part}` is not in\n{listed}");
    }
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");
    let tables = lab.node(1).sh("nft list tables").expect("tables");
    assert_eq!(tables.trim(), "table inet guard");
}
