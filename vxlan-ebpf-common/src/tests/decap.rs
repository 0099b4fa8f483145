use core::net::IpAddr;

use super::*;
use crate::hooks::{tunnel_ingress, underlay_ingress};
use crate::maps::VtepId;
use crate::testbed::*;

/// Offset of the inner Ethernet header over IPv4.
const INNER: usize = 14 + 20 + 8 + 8;

fn from_remote4() -> Frame {
    Outer::from_remote(REMOTE4, Inner::from_remote(REMOTE4, false).build()).frame()
}

/// What the pod gets of `sent`.
fn received(sent: &Inner) -> std::vec::Vec<u8> {
    Inner { from_mac: GATEWAY_MAC, to_mac: pod_mac(1), ttl: sent.ttl - 1, ..sent.clone() }.build()
}

#[test]
fn a_packet_for_a_local_pod_is_decapsulated_over_either_underlay() {
    for id in [REMOTE4, REMOTE6] {
        for v6 in [false, true] {
            for payload in Payload::ALL {
                let sent = Inner { payload, tos: 0xb8, ..Inner::from_remote(id, v6) };
                let (reason, after) = run(underlay_ingress, &Outer::from_remote(id, sent.build()).frame());
                assert_eq!(reason, Reason::Decapsulated);
                assert_eq!(after.bytes, received(&sent));
            }
        }
    }
}

#[test]
fn congestion_on_the_way_is_marked_inside() {
    for v6 in [false, true] {
        let sent = Inner { tos: 0xba, ..Inner::from_remote(REMOTE4, v6) };
        let congested = Outer { tos: 3, ..Outer::from_remote(REMOTE4, sent.build()) };
        let (reason, after) = run(underlay_ingress, &congested.frame());
        assert_eq!(reason, Reason::Decapsulated);
        assert_eq!(after.bytes, received(&Inner { tos: 0xbb, ..sent }));
    }
}

#[test]
fn a_congestion_mark_that_the_sender_would_not_understand_is_left_to_the_kernel() {
    let sent = Inner::from_remote(REMOTE4, false);
    let congested = Outer { tos: 3, ..Outer::from_remote(REMOTE4, sent.build()) };
    left_alone(underlay_ingress, &congested.frame(), Reason::BadEcn);
}

/// Offset of the outer UDP checksum.
const CHECK: fn(VtepId) -> usize = |id| if id == REMOTE4 { 40 } else { 60 };

/// A datagram without a checksum in a tunnel packet with one.
fn without_inner_checksum(id: VtepId) -> Frame {
    let mut inner = Inner::from_remote(id, false).build();
    inner[14 + 20 + 6..14 + 20 + 8].fill(0);
    Outer::from_remote(id, inner).frame()
}

#[test]
fn an_outer_checksum_of_zero_is_accepted_over_ipv4_alone() {
    for (id, reason) in [(REMOTE4, Reason::Decapsulated), (REMOTE6, Reason::NeedsChecksum)] {
        let frame = Outer::from_remote(id, Inner::from_remote(id, false).build()).frame();
        let frame = with(&frame, |bytes| bytes[CHECK(id)..CHECK(id) + 2].fill(0));
        assert_eq!(run(underlay_ingress, &frame).0, reason);
    }
}

#[test]
fn an_outer_checksum_that_contradicts_the_inner_one_is_left_to_the_kernel() {
    for id in [REMOTE4, REMOTE6] {
        for v6 in [false, true] {
            for payload in Payload::ALL {
                let inner = Inner { payload, ..Inner::from_remote(id, v6) };
                let frame = Outer::from_remote(id, inner.build()).frame();
                for at in [CHECK(id), CHECK(id) - 6, CHECK(id) + 2 + 8 + 6] {
                    // The checksum itself, the source port, the inner Ethernet source.
                    let wrong = with(&frame, |bytes| bytes[at] ^= 0x10);
                    left_alone(underlay_ingress, &wrong, Reason::NeedsChecksum);
                }
            }
        }
    }
}

#[test]
fn what_the_device_shall_sum_up_or_only_a_look_at_the_payload_can_tell_is_left_to_the_kernel() {
    // Linux leaves the sum of the pseudo-header in place of the checksum.
    let left_to_device = with(&from_remote4(), |bytes| {
        let sum = etherparse::checksum::Sum16BitWords::new();
        let sum = sum.add_slice(&bytes[26..34]).add_2bytes([0, 17]).add_slice(&bytes[38..40]);
        bytes[40..42].copy_from_slice(&(!sum.ones_complement()).to_ne_bytes());
    });
    for frame in [left_to_device, without_inner_checksum(REMOTE4), without_inner_checksum(REMOTE6)] {
        left_alone(underlay_ingress, &frame, Reason::NeedsChecksum);
    }
}

#[test]
fn a_device_that_has_verified_the_outer_checksum_is_believed() {
    for id in [REMOTE4, REMOTE6] {
        let frame = Frame { verified: true, ..without_inner_checksum(id) };
        assert_eq!(run(underlay_ingress, &frame).0, Reason::Decapsulated);
    }
}

#[test]
fn a_damaged_payload_is_left_to_the_pod_to_find() {
    let damaged = with(&from_remote4(), |bytes| *bytes.last_mut().expect("a payload") ^= 1);
    assert_eq!(run(underlay_ingress, &damaged).0, Reason::Decapsulated);
}

#[test]
fn other_traffic_on_the_underlay_is_none_of_ours() {
    let ordinary = Inner { from: node4(2).into(), to: node4(1).into(), ..Inner::from_remote(REMOTE4, false) };
    left_alone(underlay_ingress, &ordinary.frame(), Reason::NotVxlan);
    let transit = Outer {
        to: node4(9).into(),
        ..Outer::from_remote(REMOTE4, Inner::from_remote(REMOTE4, false).build())
    };
    left_alone(underlay_ingress, &transit.frame(), Reason::NotVxlan);
    let tagged = Frame { tagged: true, ..from_remote4() };
    left_alone(underlay_ingress, &tagged, Reason::NotVxlan);
    let arp = with(&from_remote4(), |bytes| bytes[12..14].copy_from_slice(&[8, 6]));
    left_alone(underlay_ingress, &arp, Reason::NotVxlan);
    // A switch that does not know a MAC sends to everybody.
    left_alone(underlay_ingress, &Frame { stray: true, ..from_remote4() }, Reason::NotVxlan);
    let other_port =
        Outer { port: 4789, ..Outer::from_remote(REMOTE4, Inner::from_remote(REMOTE4, false).build()) };
    left_alone(underlay_ingress, &other_port.frame(), Reason::NotVxlan);
}

#[test]
fn the_vxlan_header_must_be_ours_to_the_bit() {
    for (byte, value, reason) in [
        (0, 0x00, Reason::ReservedBits),
        (0, 0x88, Reason::ReservedBits),
        (1, 0x01, Reason::ReservedBits),
        (3, 0x80, Reason::ReservedBits),
        (7, 0x01, Reason::ReservedBits),
        (4, 0x02, Reason::OtherVni),
        (6, 0x02, Reason::OtherVni),
    ] {
        let frame = with(&from_remote4(), |bytes| bytes[42 + byte] = value);
        left_alone(underlay_ingress, &frame, reason);
    }
}

#[test]
fn an_unknown_vtep_is_refused() {
    let inner = Inner::from_remote(REMOTE4, false).build();
    let stranger = Outer { from: node4(66).into(), ..Outer::from_remote(REMOTE4, inner) };
    left_alone(underlay_ingress, &stranger.frame(), Reason::UnknownVtep);
    // Over IPv6, the address of a VTEP on the other underlay: the tables hold it in this form.
    let inner = Inner::from_remote(REMOTE4, false).build();
    let mapped = Outer { from: node4(2).to_ipv6_mapped().into(), ..Outer::from_remote(REMOTE6, inner) };
    left_alone(underlay_ingress, &mapped.frame(), Reason::UnknownVtep);
}

#[test]
fn a_vtep_speaks_only_for_its_own_subnets_and_for_itself() {
    for from in [pod4(3, 7), pod4(1, 2), [8, 8, 8, 8].into(), node4(1)] {
        let forged = Inner { from: from.into(), ..Inner::from_remote(REMOTE4, false) };
        left_alone(
            underlay_ingress,
            &Outer::from_remote(REMOTE4, forged.build()).frame(),
            Reason::ForeignSource,
        );
    }
    let itself = Inner { from: node4(2).into(), ..Inner::from_remote(REMOTE4, false) };
    assert_eq!(
        run(underlay_ingress, &Outer::from_remote(REMOTE4, itself.build()).frame()).0,
        Reason::Decapsulated
    );
}

#[test]
fn a_strangers_packet_is_a_strangers_whatever_else_is_wrong_with_it() {
    let stranger =
        |inner: Inner| Outer { from: node4(66).into(), ..Outer::from_remote(REMOTE4, inner.build()) };
    let ordinary = Inner::from_remote(REMOTE4, false);
    for inner in [
        Inner { ttl: 1, ..ordinary.clone() },
        Inner { to_mac: [2; 6], ..ordinary.clone() },
        Inner { from: pod4(3, 7).into(), ..ordinary.clone() },
        Inner { from: node4(66).into(), ..ordinary.clone() },
        Inner { to: pod4(1, 0).into(), ..ordinary.clone() },
    ] {
        left_alone(underlay_ingress, &stranger(inner).frame(), Reason::UnknownVtep);
    }
    let other_network = with(&stranger(ordinary).frame(), |bytes| bytes[42 + 4] ^= 1);
    left_alone(underlay_ingress, &other_network, Reason::OtherVni);
}

#[test]
fn a_vtep_that_has_moved_no_longer_speaks_from_where_it_was() {
    let mut maps = maps();
    let vtep = maps.vteps.get_mut(&REMOTE4).expect("a VTEP");
    vtep.addr = addr(node4(66));
    assert_eq!(run_with(underlay_ingress, &from_remote4(), &maps).0, Reason::ForeignSource);
    maps.vtep_ids.clear();
    assert_eq!(run_with(underlay_ingress, &from_remote4(), &maps).0, Reason::UnknownVtep);
    let inner = Inner::from_remote(REMOTE4, false).build();
    let moved = Outer { from: node4(66).into(), ..Outer::from_remote(REMOTE4, inner) };
    assert_eq!(run_with(underlay_ingress, &moved.frame(), &maps).0, Reason::Decapsulated);
    let rigid = Frame { rigid: true, ..moved.frame() };
    assert_eq!(run_with(underlay_ingress, &rigid, &maps).0, Reason::NoRoom);
}

#[test]
fn a_free_entry_is_nobody() {
    let mut maps = maps();
    maps.routes4.insert((key4(pod4(3, 0)), 24), 5);
    let inner = Inner { from: pod4(3, 7).into(), ..Inner::from_remote(REMOTE6, false) };
    for from in [[0; 16].into(), node4(2).to_ipv6_mapped()] {
        let outer = Outer { from: IpAddr::V6(from), ..Outer::from_remote(REMOTE6, inner.build()) };
        assert_eq!(run_with(underlay_ingress, &outer.frame(), &maps).0, Reason::UnknownVtep);
    }
}

#[test]
fn sources_are_checked_in_aggregates_and_first_fragments_too() {
    let forged = Inner { from: pod4(3, 7).into(), ..Inner::from_remote(REMOTE4, false) };
    let frame = Outer::from_remote(REMOTE4, forged.build()).frame();
    left_alone(underlay_ingress, &Frame { segment_size: 50, ..frame.clone() }, Reason::ForeignSource);
    let fragment = with(&frame, |bytes| {
        bytes[20] |= 0x20;
        fix_checksum(bytes, 14);
    });
    left_alone(underlay_ingress, &fragment, Reason::ForeignSource);
}

#[test]
fn aggregates_and_fragments_are_left_to_the_device() {
    left_alone(underlay_ingress, &Frame { segment_size: 50, ..from_remote4() }, Reason::Aggregate);
    let first = with(&from_remote4(), |bytes| {
        bytes[20] |= 0x20;
        fix_checksum(bytes, 14);
    });
    left_alone(underlay_ingress, &first, Reason::Fragment);
    let later = with(&from_remote4(), |bytes| bytes[21] = 1);
    left_alone(underlay_ingress, &later, Reason::NotVxlan);
}

#[test]
fn an_inner_frame_for_another_mac_is_left_to_the_device() {
    let frame = with(&from_remote4(), |bytes| bytes[INNER + 5] ^= 1);
    left_alone(underlay_ingress, &frame, Reason::OtherMac);
}

#[test]
fn an_inner_frame_that_has_come_back_to_its_sender_is_left_to_the_device() {
    let looped = Inner { from_mac: LOCAL_MAC, ..Inner::from_remote(REMOTE4, false) };
    left_alone(underlay_ingress, &Outer::from_remote(REMOTE4, looped.build()).frame(), Reason::OtherMac);
}

#[test]
fn what_is_not_ip_inside_is_left_to_the_device() {
    let arp = with(&from_remote4(), |bytes| bytes[INNER + 12..INNER + 14].copy_from_slice(&[8, 6]));
    left_alone(underlay_ingress, &arp, Reason::NotIp);
    let version = with(&from_remote4(), |bytes| bytes[INNER + 14] = 0x65);
    left_alone(underlay_ingress, &version, Reason::NotIp);
}

#[test]
fn lengths_that_contradict_each_other_are_left_to_the_kernel() {
    for (by, reason) in [(1, Reason::BadLength), (255, Reason::Padded)] {
        for at in [17, 39, INNER + 17] {
            let frame = with(&from_remote4(), |bytes| {
                bytes[at] = bytes[at].wrapping_add(by);
                fix_checksum(bytes, if at == INNER + 17 { INNER + 14 } else { 14 });
            });
            left_alone(underlay_ingress, &frame, reason);
        }
    }
}

#[test]
fn bad_header_checksums_are_left_to_the_kernel() {
    for at in [24, INNER + 14 + 10] {
        let frame = with(&from_remote4(), |bytes| bytes[at] ^= 1);
        left_alone(underlay_ingress, &frame, Reason::BadChecksum);
    }
}

#[test]
fn inner_options_fragments_and_extension_headers_are_left_to_the_kernel() {
    let options = with(&from_remote4(), |bytes| bytes[INNER + 14] = 0x46);
    left_alone(underlay_ingress, &options, Reason::Options);
    for frags in [[0x20, 0], [0, 1]] {
        let fragment = with(&from_remote4(), |bytes| bytes[INNER + 20..INNER + 22].copy_from_slice(&frags));
        left_alone(underlay_ingress, &fragment, Reason::Fragment);
    }
    let v6 = Outer::from_remote(REMOTE4, Inner::from_remote(REMOTE4, true).build()).frame();
    for extension in [0, 43, 44, 50, 51, 60, 135, 59] {
        let frame = with(&v6, |bytes| bytes[INNER + 20] = extension);
        left_alone(underlay_ingress, &frame, Reason::Options);
    }
}

#[test]
fn a_packet_that_may_go_no_further_is_left_to_the_kernel() {
    for ttl in [0, 1] {
        for v6 in [false, true] {
            let frame =
                Outer::from_remote(REMOTE4, Inner { ttl, ..Inner::from_remote(REMOTE4, v6) }.build()).frame();
            left_alone(underlay_ingress, &frame, Reason::TtlExpired);
        }
    }
}

#[test]
fn a_packet_larger_than_the_pods_mtu_is_left_to_the_kernel() {
    let inner = Inner { len: usize::from(MTU) - 27, ..Inner::from_remote(REMOTE4, false) };
    left_alone(underlay_ingress, &Outer::from_remote(REMOTE4, inner.build()).frame(), Reason::TooBig);
}

#[test]
fn a_destination_that_is_no_pod_is_left_to_the_host() {
    let inner = Inner { to: pod4(1, 0).into(), ..Inner::from_remote(REMOTE4, false) };
    left_alone(underlay_ingress, &Outer::from_remote(REMOTE4, inner.build()).frame(), Reason::NoEndpoint);
}

#[test]
fn what_the_device_decapsulated_goes_straight_to_the_pod() {
    for v6 in [false, true] {
        let sent = Inner::from_remote(REMOTE6, v6);
        let (reason, after) = run(tunnel_ingress, &sent.frame());
        assert_eq!(reason, Reason::Delivered);
        assert_eq!(after.bytes, received(&sent));
    }
}

#[test]
fn an_aggregate_from_the_device_goes_straight_to_the_pod() {
    let sent = Inner { payload: Payload::Tcp, len: 20_000, ..Inner::from_remote(REMOTE4, false) };
    let aggregate = Frame { segment_size: u32::from(MTU) - 40, ..sent.frame() };
    let (reason, after) = run(tunnel_ingress, &aggregate);
    assert_eq!(reason, Reason::Delivered);
    assert_eq!(after.bytes, received(&sent));
    left_alone(tunnel_ingress, &Frame { segment_size: u32::from(MTU) - 39, ..sent.frame() }, Reason::TooBig);
}

#[test]
fn frames_on_the_device_for_another_mac_are_left_alone() {
    let other = Inner { to_mac: [0xff; 6], ..Inner::from_remote(REMOTE4, false) };
    left_alone(tunnel_ingress, &other.frame(), Reason::OtherMac);
}
