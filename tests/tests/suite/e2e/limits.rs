//! Packets that do not fit.

use vxlan_tests::lab::traffic::{Ping, PingError, ping, tcp_bulk};
use vxlan_tests::lab::{Attach, Family};

use super::{
    assert_answered, assert_decapsulated, assert_nothing_dropped, assert_took, build, counted, pair,
    underlay_hook, warm_up,
};

#[test]
fn a_packet_that_may_not_be_fragmented_is_answered_with_the_tunnels_mtu() {
    for underlay in [Family::V4, Family::V6] {
        for attach in [Attach::Bridge, Attach::Ptp] {
            // Pods that believe in 1500 bytes.
            let lab = build(&pair().underlay(underlay).attach(attach).pod_mtu(1500));
            warm_up(&lab);
            let mtu = 1500 - underlay.overhead();
            for ip in lab.pod(2, 1).ips() {
                let header = if ip.is_ipv4() { 28 } else { 48 };
                let fits = Ping { payload: mtu as usize - header, dont_fragment: true, ..Ping::default() };
                let [one, _] = counted(&lab, || assert_answered(lab.pod(1, 1), ip, fits));
                assert_took(&one, "pod_egress", "encapsulated", 1);

                let too_big = Ping { payload: 1500 - header, ..fits };
                let [one, _] = counted(&lab, || {
                    let report = ping(lab.pod(1, 1), ip, too_big).expect("a socket");
                    assert_eq!(report.errors, [PingError::TooBig { mtu }], "over {underlay:?} to {ip}");
                });
                assert_took(&one, "pod_egress", "too_big", 1);
            }
        }
    }
}

#[test]
fn tcp_between_pods_with_too_large_an_mtu_finds_the_path_mtu() {
    let lab = build(&pair().pod_mtu(1500));
    warm_up(&lab);
    for ip in lab.pod(2, 1).ips() {
        let nodes = counted(&lab, || {
            tcp_bulk(lab.pod(1, 1), lab.pod(2, 1), ip, 32 << 20).expect("a transfer");
        });
        assert!(nodes[0].get("pod_egress", "encapsulated").bytes > 30 << 20, "{}", nodes[0]);
        nodes.iter().for_each(assert_nothing_dropped);
    }
}

#[test]
fn fragments_arrive_through_the_kernel() {
    let lab = build(&pair());
    warm_up(&lab);
    for ip in lab.pod(2, 1).ips() {
        let nodes = counted(&lab, || {
            assert_answered(lab.pod(1, 1), ip, Ping { payload: 8000, count: 10, ..Ping::default() });
        });
        let reason = if ip.is_ipv4() { "fragment" } else { "options" };
        assert_took(&nodes[0], "pod_egress", reason, 60);
        assert_took(&nodes[1], underlay_hook(), reason, 60);
        nodes.iter().for_each(assert_nothing_dropped);
    }
}

#[test]
fn a_packet_whose_hops_are_used_up_is_answered_by_the_kernel() {
    let lab = build(&pair());
    warm_up(&lab);
    for ip in lab.pod(2, 1).ips() {
        // One hop per node: pod → node 1 → node 2 → pod.
        for (ttl, node, hook) in [(1, 0, "pod_egress"), (2, 1, underlay_hook())] {
            let nodes = counted(&lab, || {
                let report = ping(lab.pod(1, 1), ip, Ping { ttl, ..Ping::default() }).expect("a socket");
                let exceeded = if ip.is_ipv4() { 11 } else { 3 };
                assert_eq!(report.errors, [PingError::Icmp { kind: exceeded, code: 0 }], "TTL {ttl} to {ip}");
            });
            assert_took(&nodes[node], hook, "ttl_expired", 1);
        }
        assert_answered(lab.pod(1, 1), ip, Ping { ttl: 3, ..Ping::default() });
    }
}

#[test]
fn jumbo_frames_fit_a_jumbo_underlay() {
    let lab = build(&pair().mtu(9000));
    warm_up(&lab);
    for ip in lab.pod(2, 1).ips() {
        let header = if ip.is_ipv4() { 28 } else { 48 };
        let full = Ping { payload: 8950 - header, dont_fragment: true, count: 5, ..Ping::default() };
        let nodes = counted(&lab, || assert_answered(lab.pod(1, 1), ip, full));
        assert_took(&nodes[0], "pod_egress", "encapsulated", 5);
        assert_decapsulated(&nodes[1], Family::V4, ip, 5);
    }
}
