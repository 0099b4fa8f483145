//! Frames that tests send by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::PacketBuilder;
use vxlan_tests::lab::UNDERLAY;
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::{Frame, mac_of};

/// Ports of all datagrams made here.
const PORT: u16 = 7777;

/// A datagram in a frame between two stations.
pub(super) fn datagram(from: ([u8; 6], Ipv4Addr), to: ([u8; 6], Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4(from.1.octets(), to.1.octets(), 64)
        .udp(PORT, PORT)
        .write(&mut frame, payload)
        .expect("a frame");
    frame
}

/// What another host of the underlay could send to node 1 from node 2's link: `inner` in a tunnel with
/// `vni`, to UDP port `port`, from the address `source`.
pub(super) fn tunnelled(lab: &SegmentLab, source: IpAddr, vni: u32, port: u16, inner: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = vni.to_be_bytes();
    let vxlan = [&[8, 0, 0, 0, a, b, c, 0], inner].concat();
    let mac = |n| mac_of(lab.node(n), UNDERLAY).expect("a MAC");
    let link = PacketBuilder::ethernet2(mac(2), mac(1));
    let mut frame = Vec::new();
    match (source, lab.node(1).underlay) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let udp = link.ipv4(from.octets(), to.octets(), 64).udp(40_000, port);
            udp.write(&mut frame, &vxlan).expect("a frame");
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let udp = link.ipv6(from.octets(), to.octets(), 64).udp(40_000, port);
            udp.write(&mut frame, &vxlan).expect("a frame");
        }
        mixed => panic!("an underlay of two families: {mixed:?}"),
    }
    frame
}

/// A router's advertisement of `prefix`, from which hosts make addresses (RFC 4861, section 4.2).
pub(super) fn router_advertisement(mac: [u8; 6], router: Ipv6Addr, prefix: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const LIFETIME: u32 = 1800;
    let mut options = [[0; 4], [0; 4]].concat(); // reachable time, retransmission timer
    options.extend([1, 1]);
    options.extend(mac);
    // The prefix is on the link, and hosts may make addresses.
    options.extend([3, 4, 64, 0xc0]);
    options.extend([LIFETIME.to_be_bytes(), LIFETIME.to_be_bytes(), [0; 4]].concat());
    options.extend(prefix.octets());
    let mut frame = Vec::new();
    let [_, _, high, low] = LIFETIME.to_be_bytes();
    PacketBuilder::ethernet2(mac, [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(router.octets(), ALL_NODES.octets(), 255)
        .icmpv6_raw(134, 0, [64, 0, high, low])
        .write(&mut frame, &options)
        .expect("a frame");
    frame
}

/// Whether `frame` has `payload` in it.
pub(super) fn carries(frame: &Frame, payload: &[u8]) -> bool {
    frame.carries(payload)
}
