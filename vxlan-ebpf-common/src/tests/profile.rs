use core::net::IpAddr;
use std::vec::Vec;

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

use super::*;
use crate::hooks::{pod_egress, underlay_ingress};
use crate::maps::{LocalVtep, local, vtep};
use crate::testbed::*;

const OVER: [(u32, IpAddr, IpAddr); 4] = [
    (REMOTE4, IpAddr::V4(pod4(1, 1)), IpAddr::V4(pod4(2, 9))),
    (REMOTE4, IpAddr::V6(pod6(1, 1)), IpAddr::V6(pod6(2, 9))),
    (REMOTE6, IpAddr::V4(pod4(1, 1)), IpAddr::V4(pod4(3, 9))),
    (REMOTE6, IpAddr::V6(pod6(1, 1)), IpAddr::V6(pod6(3, 9))),
];

/// The testbed with both devices set by `set`.
fn with_device(set: impl Fn(&mut LocalVtep)) -> Maps {
    let mut maps = maps();
    let network = maps.network_mut().expect("the network");
    set(&mut network.local4);
    set(&mut network.local6);
    maps
}

/// What the outer headers say.
#[derive(Debug, PartialEq, Eq)]
struct Outer {
    ttl: u8,
    tos: u8,
    dont_fragment: bool,
    label: u32,
    has_checksum: bool,
}

const PLAIN: Outer = Outer { ttl: TTL, tos: 0, dont_fragment: false, label: 0, has_checksum: false };

fn outer(bytes: &[u8]) -> Outer {
    let headers = PacketHeaders::from_ethernet_slice(bytes).expect("a packet");
    let Some(TransportHeader::Udp(udp)) = headers.transport else { panic!("not UDP") };
    let plain = Outer { has_checksum: udp.checksum != 0, ..PLAIN };
    match headers.net {
        Some(NetHeaders::Ipv4(ip, _)) => Outer {
            ttl: ip.time_to_live,
            tos: ip.dscp.value() << 2 | ip.ecn.value(),
            dont_fragment: ip.dont_fragment,
            ..plain
        },
        Some(NetHeaders::Ipv6(ip, _)) => {
            Outer { ttl: ip.hop_limit, tos: ip.traffic_class, label: ip.flow_label.value(), ..plain }
        }
        other => panic!("{other:?}"),
    }
}

/// What a packet of TTL 7 and TOS 0xba becomes, inner IPv4 and IPv6 over IPv4, then over IPv6. Inner IPv6 has
/// the flow label 0x12345.
fn sent(maps: &Maps) -> Vec<Outer> {
    let send = |(_, from, to): (u32, IpAddr, IpAddr)| {
        let frame = Inner { ttl: 7, tos: 0xba, from, ..Inner::from_pod(to) }.frame();
        let frame = if to.is_ipv6() { with(&frame, |bytes| label(bytes)) } else { frame };
        let (reason, after) = run_with(pod_egress, &frame, maps);
        assert_eq!(reason, Reason::Encapsulated, "to {to}");
        outer(&after.bytes)
    };
    OVER.map(send).into()
}

fn label(bytes: &mut [u8]) {
    bytes[15] = bytes[15] & 0xf0 | 1;
    bytes[16..18].copy_from_slice(&[0x23, 0x45]);
}

/// Sends by a device that `set` has set.
fn sent_by(set: impl Fn(&mut LocalVtep)) -> Vec<Outer> {
    sent(&with_device(set))
}

fn each<T>(outers: Vec<Outer>, field: impl Fn(Outer) -> T) -> Vec<T> {
    outers.into_iter().map(field).collect()
}

#[test]
fn a_device_has_a_ttl_or_that_of_the_packet_or_that_of_the_way() {
    let mut maps = with_device(|_| {});
    maps.vteps.values_mut().for_each(|vtep| vtep.ttl = 33);
    assert_eq!(each(sent(&maps), |o| o.ttl), [33; 4]);
    assert_eq!(each(sent_by(|local| local.ttl = 9), |o| o.ttl), [9; 4]);
    // Of the packet as it leaves the node.
    assert_eq!(each(sent_by(|local| (local.ttl, local.flags) = (9, local::TTL_INSIDE)), |o| o.ttl), [6; 4]);
}

#[test]
fn a_device_has_a_dscp_or_that_of_the_packet_and_always_its_congestion_marks() {
    assert_eq!(each(sent_by(|local| local.tos = 0x29), |o| o.tos), [0x2a; 4]);
    let inside = sent_by(|local| (local.tos, local.flags) = (0x29, local::TOS_INSIDE));
    assert_eq!(each(inside, |o| o.tos), [0xba; 4]);
}

#[test]
fn a_device_forbids_fragments_or_does_as_the_packet_says_unless_the_way_wants_them() {
    let set = |flags| move |local: &mut LocalVtep| local.flags = flags;
    assert_eq!(each(sent_by(set(local::DF)), |o| o.dont_fragment), [true, true, false, false]);
    assert_eq!(each(sent_by(set(local::DF_INSIDE)), |o| o.dont_fragment), [true, true, false, false]);
    let mut locked = with_device(set(local::DF | local::DF_INSIDE));
    locked.vteps.values_mut().for_each(|vtep| vtep.flags |= vtep::NO_DF);
    assert_eq!(each(sent(&locked), |o| o.dont_fragment), [false; 4]);
    let divisible = with(&Inner::from_pod(OVER[0].2).frame(), |bytes| {
        bytes[20] &= !0x40;
        fix_checksum(bytes, 14);
    });
    let (_, after) = run_with(pod_egress, &divisible, &with_device(set(local::DF_INSIDE)));
    assert!(!outer(&after.bytes).dont_fragment);
}

#[test]
fn a_device_has_a_flow_label_or_that_of_the_packet() {
    assert_eq!(each(sent_by(|local| local.label = 0xabcde), |o| o.label), [0, 0, 0xabcde, 0xabcde]);
    let inside = sent_by(|local| (local.label, local.flags) = (0xabcde, local::LABEL_INSIDE));
    assert_eq!(each(inside, |o| o.label), [0, 0, 0, 0x12345]);
}

#[test]
fn a_checksum_is_written_and_wanted_as_the_device_says() {
    let set = |flags| move |local: &mut LocalVtep| local.flags = flags;
    let (with_sum, without) = (with_device(set(local::CHECKSUM)), with_device(set(0)));
    assert_eq!(each(sent(&with_sum), |o| o.has_checksum), [true; 4]);
    assert_eq!(each(sent(&without), |o| o.has_checksum), [false; 4]);
    let (_, after) = run_with(pod_egress, &Inner::from_pod(OVER[0].2).frame(), &with_sum);
    let headers = PacketHeaders::from_ethernet_slice(&after.bytes).expect("a packet");
    let (Some(TransportHeader::Udp(udp)), Some(NetHeaders::Ipv4(ip, _))) = (headers.transport, headers.net)
    else {
        panic!("not UDP over IPv4")
    };
    let expected = udp.calc_checksum_ipv4(&ip, headers.payload.slice()).expect("fits");
    assert_eq!(udp.checksum, expected);

    let arriving = testbed::Outer::from_remote(REMOTE6, Inner::from_remote(REMOTE6, false).build()).frame();
    let arriving = with(&arriving, |bytes| bytes[60..62].fill(0));
    assert_eq!(run_with(underlay_ingress, &arriving, &without).0, Reason::NeedsChecksum);
    let accepts = with_device(set(local::ACCEPTS_NO_CHECKSUM));
    assert_eq!(run_with(underlay_ingress, &arriving, &accepts).0, Reason::Decapsulated);
}

#[test]
fn aggregates_get_no_checksum_of_ours_over_ipv4_either() {
    let aggregate = Frame {
        segment_size: 1000,
        ..Inner { payload: Payload::Tcp, len: 20_000, ..Inner::from_pod(OVER[0].2) }.frame()
    };
    let set = |flags| with_device(move |local: &mut LocalVtep| local.flags = flags);
    assert_eq!(run_with(pod_egress, &aggregate, &set(0)).0, Reason::Encapsulated);
    assert_eq!(run_with(pod_egress, &aggregate, &set(local::CHECKSUM)).0, Reason::NeedsChecksum);
}
