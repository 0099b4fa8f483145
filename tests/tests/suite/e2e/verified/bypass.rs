//! Flows that nothing translates bypass the stack.

use vxlan_tests::lab::traffic::{Ping, tcp_bulk, tcp_concurrent, udp_echo};
use vxlan_tests::lab::{Attach, Family, LabSpec};

use super::super::{
    aggregates_hook, assert_answered, assert_decapsulated, assert_nothing_dropped, assert_took, build,
    counted, warm_up,
};
use super::{MIB, bypassed, guarded, verified};

fn direct_flows_bypass(spec: &LabSpec) {
    let lab = guarded(spec);
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    for ip in server.ips() {
        let nodes = counted(&lab, || assert_answered(client, ip, Ping { count: 20, ..Ping::default() }));
        for node in &nodes {
            // The first is looked at on its way through the stack.
            assert_took(node, "pod_egress", "encapsulated", 17);
            assert_decapsulated(node, spec.underlay, ip, 17);
            assert_took(node, "pod_egress", "unverified", 1);
            assert_took(node, "pod_ingress", "passed", 1);
            assert_nothing_dropped(node);
        }
        let nodes = counted(&lab, || {
            tcp_bulk(client, server, ip, 64 * MIB).expect("a transfer");
        });
        if spec.underlay == Family::V4 {
            assert!(bypassed(&nodes[0]) > 60 * MIB, "{}", nodes[0]);
        }
        assert_took(&nodes[1], aggregates_hook(), "delivered", 100);
        // Of more than a thousand: an initial window of TCP (RFC 6928) may leave before the answer has been seen.
        let left = nodes[0].packets("pod_egress", "unverified");
        assert!(left <= 4 + 10, "{left} packets took the stack:\n{}", nodes[0]);
        let report = udp_echo(client, server, ip, (1..=1400).step_by(9)).expect("UDP");
        assert!(report.all_intact(), "{report:?}");
        tcp_concurrent(client, server, ip, 200, 20_000).expect("200 connections at once");
        nodes.iter().for_each(assert_nothing_dropped);
    }
}

#[test]
fn direct_flows_bypass_after_their_first_packets() {
    direct_flows_bypass(&verified());
}

#[test]
fn direct_flows_of_routed_pods_bypass_after_their_first_packets() {
    direct_flows_bypass(&verified().attach(Attach::Ptp));
}

#[test]
fn direct_flows_bypass_over_an_ipv6_underlay() {
    direct_flows_bypass(&verified().underlay(Family::V6));
}

#[test]
fn flows_within_a_node_bypass_too() {
    for attach in [Attach::Bridge, Attach::Ptp] {
        let lab = build(&verified().pods(2).attach(attach));
        warm_up(&lab);
        let (one, two) = (lab.pod(1, 1), lab.pod(1, 2));
        for ip in two.ips() {
            assert_answered(one, ip, Ping { count: 5, ..Ping::default() });
            let [node, _] = counted(&lab, || {
                assert_answered(one, ip, Ping { count: 20, ..Ping::default() });
                tcp_bulk(one, two, ip, 16 * MIB).expect("a transfer");
            });
            let reason = if attach == Attach::Bridge { "switched" } else { "routed" };
            assert!(node.get("pod_egress", reason).bytes > 15 * MIB, "{node}");
            assert_nothing_dropped(&node);
        }
    }
}
