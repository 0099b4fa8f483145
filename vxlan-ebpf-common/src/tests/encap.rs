use core::net::IpAddr;
use std::vec::Vec;

use etherparse::{PacketHeaders, TransportHeader};

use super::*;
use crate::hooks::{pod_egress, tunnel_egress, underlay_ingress};
use crate::maps::{NextHop, vtep};
use crate::testbed::*;

const REMOTES: [IpAddr; 4] =
    [IpAddr::V4(pod4(2, 9)), IpAddr::V6(pod6(2, 9)), IpAddr::V4(pod4(3, 9)), IpAddr::V6(pod6(3, 9))];

/// Takes an encapsulated frame apart with an independent parser: outer headers, VXLAN header,
/// inner frame. Asserts that the outer UDP checksum is right, or zero over IPv4.
fn parse(bytes: &[u8]) -> (PacketHeaders<'_>, [u8; 8], Vec<u8>) {
    let headers = PacketHeaders::from_ethernet_slice(bytes).expect("a packet");
    let Some(TransportHeader::Udp(udp)) = headers.transport.clone() else { panic!("not UDP: {headers:?}") };
    let etherparse::PayloadSlice::Udp(payload) = headers.payload else { panic!("no payload") };
    let expected = match headers.net.clone().and_then(etherparse::NetHeaders::ipv6_ref_owned) {
        Some(ip) => udp.calc_checksum_ipv6(&ip, payload).expect("fits"),
        None => 0,
    };
    assert_eq!(udp.checksum, expected, "outer UDP checksum");
    assert_eq!(usize::from(udp.length), payload.len() + 8);
    let (vxlan, inner) = payload.split_at(8);
    let vxlan = vxlan.try_into().expect("eight bytes");
    let inner = inner.to_vec();
    (headers, vxlan, inner)
}

trait Ipv6Ref {
    fn ipv6_ref_owned(self) -> Option<etherparse::Ipv6Header>;
}

impl Ipv6Ref for etherparse::NetHeaders {
    fn ipv6_ref_owned(self) -> Option<etherparse::Ipv6Header> {
        match self {
            Self::Ipv6(header, _) => Some(header),
            _ => None,
        }
    }
}

#[test]
fn a_packet_for_a_remote_pod_is_encapsulated_over_either_underlay() {
    for to in REMOTES {
        for payload in Payload::ALL {
            let sent = Inner { payload, tos: 0xb9, ..Inner::from_pod(to) };
            let (reason, after) = run(pod_egress, &sent.frame());
            assert_eq!(reason, Reason::Encapsulated);

            let (headers, vxlan, inner) = parse(&after.bytes);
            let id = if to == REMOTES[0] || to == REMOTES[1] { REMOTE4 } else { REMOTE6 };
            let expected = Inner { ttl: 63, from_mac: LOCAL_MAC, to_mac: vtep_mac(id), ..sent }.build();
            assert_eq!(inner, expected, "to {to}, {payload:?}");
            assert_eq!(vxlan, [8, 0, 0, 0, 1, 2, 3, 0]);
            check_outer_ip(&headers, id);
        }
    }
}

/// Tables in which all nodes are on the same link.
fn direct(mut maps: Maps) -> Maps {
    maps.vteps.values_mut().for_each(|entry| entry.flags |= vtep::DIRECT);
    maps
}

#[test]
fn what_gets_to_a_node_without_a_tunnel_is_the_kernels_over_the_ip_version_of_its_address() {
    for to in REMOTES {
        let over_v4 = to == REMOTES[0] || to == REMOTES[1];
        let sent = Inner::from_pod(to).frame();
        let (reason, after) = run_with(pod_egress, &sent, &direct(maps()));
        if to.is_ipv4() != over_v4 {
            assert_eq!(reason, Reason::Encapsulated, "to {to}");
            continue;
        }
        assert_eq!((reason, after.bytes), (Reason::DirectRoute, sent.bytes.clone()), "to {to}");
        let verified = direct(flows::verified());
        assert_eq!(run_with(pod_egress, &sent, &verified).0, Reason::DirectRoute);
        assert!(verified.flows.borrow().is_empty(), "nobody would see the flow pass");
    }
}

#[test]
fn what_the_host_stack_sends_into_the_tunnel_goes_through_it_whatever_the_pods_packets_do() {
    let sent = Inner { from_mac: LOCAL_MAC, to_mac: vtep_mac(REMOTE4), ..Inner::from_pod(REMOTES[0]) };
    assert_eq!(run_with(tunnel_egress, &sent.frame(), &direct(maps())).0, Reason::Encapsulated);
}

#[test]
fn what_a_node_on_the_same_link_sends_in_a_tunnel_is_let_in() {
    let frame = Outer::from_remote(REMOTE4, Inner::from_remote(REMOTE4, false).build()).frame();
    assert_eq!(run_with(underlay_ingress, &frame, &direct(maps())).0, Reason::Decapsulated);
}

fn check_outer_ip(headers: &PacketHeaders<'_>, id: u32) {
    match headers.net.clone().expect("an IP header") {
        etherparse::NetHeaders::Ipv4(ip, _) => {
            assert_eq!(id, REMOTE4);
            assert_eq!((ip.source, ip.destination), (node4(1).octets(), node4(2).octets()));
            assert_eq!((ip.time_to_live, ip.dont_fragment, ip.more_fragments), (64, false, false));
            assert_eq!((ip.dscp.value(), ip.ecn.value()), (0, 1));
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        }
        etherparse::NetHeaders::Ipv6(ip, _) => {
            assert_eq!(id, REMOTE6);
            assert_eq!((ip.source, ip.destination), (node6(1).octets(), node6(3).octets()));
            assert_eq!((ip.hop_limit, ip.flow_label.value(), ip.traffic_class), (64, 0, 1));
        }
        net => panic!("{net:?}"),
    }
}

#[test]
fn the_source_port_is_the_flows_own() {
    let (_, after) = run(pod_egress, &Inner::from_pod(REMOTES[0]).frame());
    let port = u16::from_be_bytes([after.bytes[34], after.bytes[35]]);
    let hash = 0x1234_5678u32 ^ (0x1234_5678 << 16);
    assert_eq!(port, 32768 + ((u64::from(hash) * (60999 - 32768)) >> 32) as u16);
}

#[test]
fn congestion_experienced_inside_is_ect0_outside() {
    let frame = Inner { tos: 3, ..Inner::from_pod(REMOTES[0]) }.frame();
    let (_, after) = run(pod_egress, &frame);
    assert_eq!(after.bytes[15], 2);
}

#[test]
fn what_the_host_routed_keeps_its_ttl() {
    let routed =
        Inner { from_mac: LOCAL_MAC, to_mac: vtep_mac(REMOTE4), ttl: 1, ..Inner::from_pod(REMOTES[1]) };
    let (reason, after) = run(tunnel_egress, &routed.frame());
    assert_eq!(reason, Reason::Encapsulated);
    assert_eq!(parse(&after.bytes).2, routed.build());
}

#[test]
fn the_host_may_use_any_source() {
    let routed = Inner { to_mac: vtep_mac(REMOTE4), from: node4(1).into(), ..Inner::from_pod(REMOTES[0]) };
    assert_eq!(run(tunnel_egress, &routed.frame()).0, Reason::Encapsulated);
}

#[test]
fn frames_for_an_unknown_vtep_are_left_to_the_device() {
    let routed = Inner { to_mac: [2, 9, 9, 9, 9, 9], ..Inner::from_pod(REMOTES[0]) };
    left_alone(tunnel_egress, &routed.frame(), Reason::OtherMac);
}

#[test]
fn a_packet_as_large_as_the_mtu_fits_and_one_byte_more_does_not() {
    let room = usize::from(MTU) - 28;
    let packet = |len| Inner { len, ..Inner::from_pod(REMOTES[0]) }.frame();
    assert_eq!(run(pod_egress, &packet(room)).0, Reason::Encapsulated);
    left_alone(pod_egress, &packet(room + 1), Reason::TooBig);
}

#[test]
fn an_aggregate_is_measured_by_its_segments() {
    let aggregate = |segment_size| Frame {
        segment_size,
        ..Inner { payload: Payload::Tcp, len: 20_000, ..Inner::from_pod(REMOTES[0]) }.frame()
    };
    let largest = u32::from(MTU) - 40;
    assert_eq!(run(pod_egress, &aggregate(largest)).0, Reason::Encapsulated);
    left_alone(pod_egress, &aggregate(largest + 1), Reason::TooBig);
}

#[test]
fn an_aggregate_that_the_outer_length_cannot_describe_is_left_to_the_kernel() {
    let aggregate = |len| Frame {
        segment_size: 1000,
        ..Inner { payload: Payload::Tcp, len, ..Inner::from_pod(REMOTES[0]) }.frame()
    };
    assert_eq!(run(pod_egress, &aggregate(65_000)).0, Reason::Encapsulated);
    left_alone(pod_egress, &aggregate(65_490), Reason::TooBig);
}

#[test]
fn an_aggregate_over_ipv6_needs_a_checksum_per_segment() {
    let aggregate = Frame {
        segment_size: 1000,
        ..Inner { payload: Payload::Tcp, len: 20_000, ..Inner::from_pod(REMOTES[3]) }.frame()
    };
    left_alone(pod_egress, &aggregate, Reason::NeedsChecksum);
}

#[test]
fn a_datagram_without_checksum_cannot_vouch_for_itself_over_ipv6() {
    let frame = with(&Inner::from_pod(REMOTES[2]).frame(), |bytes| bytes[40..42].fill(0));
    left_alone(pod_egress, &frame, Reason::NeedsChecksum);
    let over_ipv4 = with(&Inner::from_pod(REMOTES[0]).frame(), |bytes| bytes[40..42].fill(0));
    assert_eq!(run(pod_egress, &over_ipv4).0, Reason::Encapsulated);
}

#[test]
fn a_datagram_shorter_than_its_packet_cannot_vouch_for_the_rest_over_ipv6() {
    let frame = with(&Inner::from_pod(REMOTES[2]).frame(), |bytes| bytes[39] -= 1);
    left_alone(pod_egress, &frame, Reason::NeedsChecksum);
}

#[test]
fn a_checksum_left_to_the_device_counts_as_filled_in() {
    // CHECKSUM_PARTIAL: the field holds the pseudo-header's sum. What it will hold does not matter.
    let complete = Inner { payload: Payload::Tcp, ..Inner::from_pod(REMOTES[2]) }.frame();
    let partial = with(&complete, |bytes| bytes[50..52].copy_from_slice(&[0x12, 0x34]));
    let outer_check = |frame: &Frame| {
        let (reason, after) = run(pod_egress, frame);
        assert_eq!(reason, Reason::Encapsulated);
        [after.bytes[60], after.bytes[61]]
    };
    assert_eq!(outer_check(&partial), outer_check(&complete));
}

#[test]
fn a_packet_that_the_kernel_makes_no_room_in_stays_as_it_is() {
    let rigid = Frame { rigid: true, ..Inner::from_pod(REMOTES[0]).frame() };
    left_alone(pod_egress, &rigid, Reason::NoRoom);
}

#[test]
fn a_route_to_a_vtep_that_is_not_programmed_is_left_to_the_kernel() {
    let mut maps = maps();
    maps.vteps.remove(&REMOTE4);
    let frame = Inner::from_pod(REMOTES[0]).frame();
    assert_eq!(run_with(pod_egress, &frame, &maps), (Reason::NoVtep, frame));
}

#[test]
fn the_next_hop_is_laid_out_as_the_kernel_reads_it() {
    // struct bpf_redir_neigh: __u32 nh_family; union { __be32 ipv4_nh; __u32 ipv6_nh[4]; };
    assert_eq!(size_of::<NextHop>(), 20);
    assert_eq!(core::mem::offset_of!(NextHop, addr), 4);
}

#[test]
fn the_outer_identification_is_the_inner_one_shifted_by_the_flow_or_random() {
    // Inner identification, flow hash, random number, outer identification.
    for (inner, hash, random, outer) in
        [(1u16, 0x10, 9, 0x11), (2, 0x10, 9, 0x12), (1, 0x20, 9, 0x21), (0xffff, 1, 9, 0), (0, 0x10, 9, 9)]
    {
        let mut frame = with(&Inner::from_pod(pod4(2, 9).into()).frame(), |bytes| {
            bytes[18..20].copy_from_slice(&inner.to_ne_bytes());
            fix_checksum(bytes, 14);
        });
        (frame.flow_hash, frame.random) = (hash, random);
        let (reason, after) = run(pod_egress, &frame);
        assert_eq!(reason, Reason::Encapsulated);
        assert_eq!(after.bytes[18..20], u16::to_ne_bytes(outer), "{inner:#x}, {hash:#x}");
    }
}
