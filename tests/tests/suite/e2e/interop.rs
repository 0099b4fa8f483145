//! Our nodes and plain kernel nodes in one cluster, and on one wire.

use std::time::Duration;

use vxlan_tests::lab::traffic::{Capture, Frame, Ping, tcp_bulk, udp_echo};
use vxlan_tests::lab::{Counters, Family, Lab, LabSpec, Overlay, PORT, UNDERLAY, xdp};

use super::{
    assert_answered, assert_decapsulated, assert_nothing_dropped, assert_took, build, counters,
    decapsulates_other_family, underlay_hook,
};

/// Node 1 is ours, node 2 a kernel vxlan device set up as flannel sets it up.
fn mixed(underlay: Family) -> Lab {
    let lab = build(&LabSpec::pair(Overlay::agent(), Overlay::KernelVxlan).underlay(underlay));
    for ip in lab.pod(2, 1).ips() {
        assert_answered(lab.pod(1, 1), ip, Ping { count: 3, ..Ping::default() });
    }
    let agent = lab.agent(1).expect("an agent");
    let known =
        || agent.json(&["dump", "endpoints"]).is_ok_and(|e| e.as_array().is_some_and(|l| l.len() >= 2));
    vxlan_tests::lab::wait_until("the pods are known", Duration::from_secs(5), known).expect("known pods");
    lab
}

fn a_plain_kernel_node_is_an_equal(underlay: Family) {
    let lab = mixed(underlay);
    let (ours, theirs) = (lab.pod(1, 1), lab.pod(2, 1));
    let pings = || {
        for (from, to) in [(ours, theirs), (theirs, ours)] {
            to.ips()
                .into_iter()
                .for_each(|ip| assert_answered(from, ip, Ping { count: 20, ..Ping::default() }));
        }
    };
    // A kernel node leaves the outer checksum of a ping to the device, and a veth leaves it as it
    // is: only the kernel can tell. The checksum of a packet whose inner one is left to the device
    // is in place.
    let node = counted_on_first(&lab, pings);
    assert_took(&node, "pod_egress", "encapsulated", 80);
    assert_took(&node, underlay_hook(), "needs_checksum", 80);
    assert_took(&node, "tunnel_ingress", "delivered", 80);
    for (from, to) in [(ours, theirs), (theirs, ours)] {
        for ip in to.ips() {
            let node = counted_on_first(&lab, || {
                let report = udp_echo(from, to, ip, [1, 64, 1000, 1200, 1300, 3000, 9000]).expect("UDP");
                assert!(report.all_intact(), "{report:?}");
            });
            assert_took(&node, "pod_egress", "encapsulated", 5);
            assert_decapsulated(&node, underlay, ip, 5);
            let node = counted_on_first(&lab, || {
                tcp_bulk(from, to, ip, 32 << 20).expect("a transfer");
            });
            assert_decapsulated(&node, underlay, ip, 1);
            // Data, or acknowledgements, of which there may be few, and fewer on a slow machine.
            let bulk = ["encapsulated", "decapsulated", "delivered"].map(|way| node.total(way));
            assert!(bulk.iter().sum::<u64>() >= 50, "{node}");
        }
    }
    // As on a wire, where every checksum is in place.
    lab.node(2).sh(&format!("ethtool -K {UNDERLAY} tx off")).expect("ethtool");
    let node = counted_on_first(&lab, pings);
    let ours = if decapsulates_other_family(underlay_hook()) { 80 } else { 40 };
    assert_took(&node, underlay_hook(), "decapsulated", ours);
}

/// What node 1 counted while `work` ran; nothing may have been dropped.
fn counted_on_first(lab: &Lab, work: impl FnOnce()) -> Counters {
    let before = counters(lab, 1);
    work();
    let node = &counters(lab, 1) - &before;
    assert_nothing_dropped(&node);
    node
}

#[test]
fn a_plain_kernel_node_is_an_equal_over_ipv4() {
    a_plain_kernel_node_is_an_equal(Family::V4);
}

#[test]
fn a_plain_kernel_node_is_an_equal_over_ipv6() {
    a_plain_kernel_node_is_an_equal(Family::V6);
}

/// The first VXLAN packet that leaves node 1 when its pod sends `ping`, without what differs from
/// packet to packet: MACs of the underlay and the IPv4 identification.
pub(super) fn on_the_wire(lab: &Lab, family: Family, ping: Ping) -> Vec<u8> {
    // Where XDP takes packets out of the tunnel, nobody sees them arrive in it.
    let seen_at = if xdp().is_some() { 1 } else { 2 };
    let capture = Capture::start(lab.node(seen_at), UNDERLAY).expect("a capture");
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip(family), ping);
    let own = vxlan_tests::lab::traffic::mac_of(lab.node(1), UNDERLAY).expect("a MAC");
    let sent = |frame: &Frame| frame.udp_ports().is_some_and(|(_, to)| to == PORT) && frame.0[6..12] == own;
    let Frame(mut bytes) = capture.next(Duration::from_secs(2), sent).expect("a capture").expect("a packet");
    bytes[..12].fill(0);
    if bytes[12..14] == [0x08, 0x00] {
        bytes[18..20].fill(0);
        bytes[24..26].fill(0); // the header checksum covers the identification
    }
    bytes
}

/// Where two packets may differ: source port and checksum of UDP, and what the inner packet's own
/// source chose (identification, checksums, echo identifier, flow label).
pub(super) fn comparable(mut bytes: Vec<u8>, underlay: Family, inner: Family) -> Vec<u8> {
    let udp = if underlay == Family::V4 { 34 } else { 54 };
    bytes[udp..udp + 2].fill(0);
    bytes[udp + 6..udp + 8].fill(0);
    let ip = udp + 8 + 8 + 14;
    match inner {
        Family::V4 => {
            bytes[ip + 4..ip + 6].fill(0);
            bytes[ip + 10..ip + 12].fill(0);
            bytes[ip + 22..ip + 26].fill(0);
        }
        Family::V6 => {
            bytes[ip + 1..ip + 4].fill(0);
            bytes[ip + 42..ip + 46].fill(0);
        }
    }
    bytes
}

#[test]
fn our_packets_look_like_the_kernels_on_the_wire() {
    for underlay in [Family::V4, Family::V6] {
        let ours = mixed(underlay);
        let theirs = build(&LabSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan).underlay(underlay));
        for inner in [Family::V4, Family::V6] {
            let ping = Ping { payload: 100, ..Ping::default() };
            assert_answered(theirs.pod(1, 1), theirs.pod(2, 1).ip(inner), ping);
            let before = counters(&ours, 1);
            let mine = on_the_wire(&ours, inner, ping);
            assert_took(&(&counters(&ours, 1) - &before), "pod_egress", "encapsulated", 1);
            let kernels = on_the_wire(&theirs, inner, ping);
            assert_eq!(
                comparable(mine, underlay, inner),
                comparable(kernels, underlay, inner),
                "inner {inner:?} over {underlay:?}: ours left, kernel's right"
            );
        }
    }
}

#[test]
fn source_ports_come_from_the_kernels_range() {
    let lab = mixed(Family::V4);
    let node = lab.node(1);
    let range = node.sh("cat /proc/sys/net/ipv4/ip_local_port_range").expect("a range");
    let bounds: Vec<u16> = range.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let capture = Capture::start(lab.node(2), UNDERLAY).expect("a capture");
    let own = vxlan_tests::lab::traffic::mac_of(node, UNDERLAY).expect("a MAC");
    for _ in 0..20 {
        // A socket each: a flow each.
        let report = udp_echo(lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 1).ip4.into(), [64]).expect("UDP");
        assert!(report.all_intact());
    }
    let sent = |frame: &Frame| frame.udp_ports().is_some_and(|(_, to)| to == PORT) && frame.0[6..12] == own;
    let frames = capture.drain(Duration::from_millis(200), sent).expect("a capture");
    let ports: std::collections::BTreeSet<u16> =
        frames.iter().filter_map(|f| Some(f.udp_ports()?.0)).collect();
    assert!(ports.len() >= 10, "20 flows share {} ports", ports.len());
    assert!(
        ports.iter().all(|port| (bounds[0]..=bounds[1]).contains(port)),
        "{ports:?} outside of {bounds:?}"
    );
}
