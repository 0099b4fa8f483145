//! What arrives, and how.

use std::net::IpAddr;
use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, tcp_bulk, tcp_concurrent, udp_echo};
use vxlan_tests::lab::{Attach, Family, LabSpec, wait_until};

use super::{
    aggregates_hook, assert_answered, assert_decapsulated, assert_nothing_dropped, assert_took, build,
    counted, counters, pair, underlay_hook, warm_up,
};

const MIB: u64 = 1 << 20;

/// All kinds of traffic between pods of two nodes, on the fast path.
fn everything_arrives(spec: &LabSpec) {
    let lab = build(spec);
    warm_up(&lab);
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    for ip in server.ips() {
        let pings = counted(&lab, || assert_answered(client, ip, Ping { count: 20, ..Ping::default() }));
        for node in &pings {
            assert_took(node, "pod_egress", "encapsulated", 20);
            assert_decapsulated(node, spec.underlay, ip, 20);
            assert_nothing_dropped(node);
        }
        udp_of_all_sizes_arrives(&lab, spec.underlay, ip);
        tcp_takes_the_fast_path_both_ways(&lab, spec.underlay, ip);
        tcp_concurrent(client, server, ip, 200, 20_000).expect("200 connections at once");
    }
}

fn udp_of_all_sizes_arrives(lab: &vxlan_tests::lab::Lab, underlay: Family, ip: IpAddr) {
    let sizes =
        [1, 2, 3, 63, 64, 65, 512, 1023, 1024, 1372, 1400, 1421, 1422, 1423, 1473, 2000, 4000, 9000, 60_000];
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let nodes = counted(lab, || {
        let report = udp_echo(client, server, ip, sizes).expect("UDP");
        assert!(report.all_intact(), "{report:?} to {ip}");
    });
    for node in &nodes {
        assert_took(node, "pod_egress", "encapsulated", 10);
        assert_decapsulated(node, underlay, ip, 10);
        assert_nothing_dropped(node);
    }
    // What does not fit is cut into fragments, which are the kernel's.
    let at = if ip.is_ipv4() { "fragment" } else { "options" };
    assert_took(&nodes[0], "pod_egress", at, 8);
}

fn tcp_takes_the_fast_path_both_ways(lab: &vxlan_tests::lab::Lab, underlay: Family, ip: IpAddr) {
    let [one, two] = [lab.pod(1, 1), lab.pod(2, 1)];
    let back = if ip.is_ipv4() { one.ip4.into() } else { one.ip6.into() };
    for (from, to, address, [sender, receiver]) in [(one, two, ip, [0, 1]), (two, one, back, [1, 0])] {
        let nodes = counted(lab, || {
            tcp_bulk(from, to, address, 64 * MIB).expect("a transfer");
        });
        // Aggregates of up to 64 KiB stay whole: far fewer packets than segments.
        let segments = 64 * MIB / 1400;
        match underlay {
            Family::V4 => {
                let sent = nodes[sender].get("pod_egress", "encapsulated");
                assert!(sent.bytes > 60 * MIB, "sent by us: {sent:?}");
                assert!(
                    sent.packets < segments / 3,
                    "super-packets were cut: {sent:?} for {segments} segments"
                );
            }
            // Only the kernel can give every segment of an aggregate its outer checksum.
            Family::V6 => assert_took(&nodes[sender], "pod_egress", "needs_checksum", 100),
        }
        assert_took(&nodes[receiver], aggregates_hook(), "delivered", 100);
        assert_took(&nodes[receiver], "pod_egress", "encapsulated", 10); // acknowledgements
        nodes.iter().for_each(assert_nothing_dropped);
    }
}

#[test]
fn a_pod_that_asks_whether_its_gateway_is_still_there_is_answered() {
    let lab = build(&pair());
    warm_up(&lab);
    let (pod, gateway) = (lab.pod(1, 1), vxlan_tests::lab::addr::inner6(1, 1));
    let neighbour = || pod.sh(&format!("ip neigh show {gateway} dev eth0")).expect("a neighbour");
    let known = neighbour();
    let mac = known.split_whitespace().skip_while(|word| *word != "lladdr").nth(1).expect("a MAC");
    // With that the kernel asks the gateway, from the link-local address.
    pod.sh(&format!("ip neigh replace {gateway} lladdr {mac} dev eth0 nud probe")).expect("a probe");
    wait_until("the gateway has answered", Duration::from_secs(5), || neighbour().contains("REACHABLE"))
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", neighbour(), counters(&lab, 1)));
    assert_nothing_dropped(&counters(&lab, 1));
}

#[test]
fn everything_arrives_between_bridged_pods() {
    everything_arrives(&pair());
}

#[test]
fn everything_arrives_between_routed_pods() {
    everything_arrives(&pair().attach(Attach::Ptp));
}

#[test]
fn everything_arrives_over_an_ipv6_underlay() {
    everything_arrives(&pair().underlay(Family::V6));
}

#[test]
fn everything_arrives_with_gro_on_the_underlay() {
    everything_arrives(&pair().gro());
}

#[test]
fn pods_of_one_node_reach_each_other_directly() {
    for (attach, reason) in [(Attach::Bridge, "switched"), (Attach::Ptp, "routed")] {
        let lab = build(&pair().pods(2).attach(attach));
        warm_up(&lab);
        let (one, two) = (lab.pod(1, 1), lab.pod(1, 2));
        for ip in two.ips() {
            // The first packets make the second pod known.
            assert_answered(one, ip, Ping { count: 5, ..Ping::default() });
            let [node, other] = counted(&lab, || {
                assert_answered(one, ip, Ping { count: 20, ..Ping::default() });
                tcp_bulk(one, two, ip, 16 * MIB).expect("a transfer");
            });
            assert_took(&node, "pod_egress", reason, 40);
            assert_nothing_dropped(&node);
            assert_eq!(other.total("decapsulated"), 0, "nothing leaves the node");
        }
    }
}

#[test]
fn host_and_pods_reach_each_other_across_nodes() {
    for family in [Family::V4, Family::V6] {
        let lab = build(&pair().underlay(family));
        warm_up(&lab);
        let pod = lab.pod(2, 1);
        for ip in pod.ips() {
            let [one, two] = counted(&lab, || {
                assert_answered(lab.node(1), ip, Ping { count: 20, ..Ping::default() });
                tcp_bulk(lab.node(1), pod, ip, 16 * MIB).expect("a transfer");
            });
            // The host's own packets are routed into the device and short-cut there.
            assert_took(&one, "tunnel_egress", "encapsulated", 20);
            assert_decapsulated(&two, family, ip, 20);
            [one, two].iter().for_each(assert_nothing_dropped);
        }
        // The other way round the destination is no pod: the host's stack receives.
        for vtep in
            [IpAddr::from(vxlan_tests::lab::addr::inner4(1, 0)), vxlan_tests::lab::addr::inner6(1, 0).into()]
        {
            let [one, two] =
                counted(&lab, || assert_answered(pod, vtep, Ping { count: 20, ..Ping::default() }));
            assert_took(&two, "pod_egress", "encapsulated", 20);
            assert_took(&one, underlay_hook(), "no_endpoint", 20);
        }
    }
}

#[test]
fn many_nodes_reach_each_other() {
    let overlays = vec![vxlan_tests::lab::Overlay::agent(); 4];
    let lab = build(&LabSpec::of(overlays).derive_macs());
    for from in 1..=4 {
        for to in 1..=4 {
            for ip in lab.pod(to, 1).ips() {
                assert_answered(lab.pod(from, 1), ip, Ping { count: 3, ..Ping::default() });
            }
        }
    }
    let [one, _] = counted(&lab, || {
        for to in 2..=4 {
            assert_answered(lab.pod(1, 1), lab.pod(to, 1).ip4, Ping { count: 5, ..Ping::default() });
        }
    });
    assert_took(&one, "pod_egress", "encapsulated", 15);
    assert_took(&one, underlay_hook(), "decapsulated", 15);
}
