//! Decapsulation before the stack, and delivery behind it.

use super::*;
use crate::counters::Hook;
use crate::hooks::{is_in_vlan, stripped_ingress, underlay_ingress, underlay_xdp};
use crate::maps::{DROP_MALFORMED, DROP_OTHER_VNI, Mode, Network, Node, TOLERATE_VIOLATIONS};
use crate::testbed::*;

fn from_remote(id: u32, inner: &Inner) -> Frame {
    Outer::from_remote(id, inner.build()).frame()
}

/// What XDP leaves with a packet of the network.
const LEFT: u64 = (MARK as u64) << 32 | NETWORK as u64;

/// The testbed with another `NODE`.
fn configured(change: impl FnOnce(&mut Node)) -> Maps {
    let mut maps = maps();
    change(&mut maps.node);
    maps
}

/// `sent` out of its tunnel: the MACs are still those of the underlay, and no hop has been counted.
fn stripped(sent: &Inner) -> std::vec::Vec<u8> {
    Inner { from_mac: ROUTER_MAC, to_mac: UNDERLAY_MAC, ..sent.clone() }.build()
}

#[test]
fn a_packet_for_a_local_pod_is_stripped_and_marked_and_then_delivered() {
    for id in [REMOTE4, REMOTE6] {
        for v6 in [false, true] {
            for payload in Payload::ALL {
                let sent = Inner { payload, tos: 0xb8, ..Inner::from_remote(id, v6) };
                let (reason, after) = run(underlay_xdp, &from_remote(id, &sent));
                assert_eq!(reason, Reason::Decapsulated);
                assert_eq!((after.mark, &after.bytes), (LEFT, &stripped(&sent)));
                let (reason, after) = run(stripped_ingress, &after);
                assert_eq!(reason, Reason::Delivered);
                let received = Inner { from_mac: GATEWAY_MAC, to_mac: pod_mac(1), ttl: sent.ttl - 1, ..sent };
                assert_eq!(after.bytes, received.build());
            }
        }
    }
}

#[test]
fn congestion_on_the_way_is_marked_before_segments_are_merged() {
    for v6 in [false, true] {
        let sent = Inner { tos: 0xba, ..Inner::from_remote(REMOTE4, v6) };
        let congested = Outer { tos: 3, ..Outer::from_remote(REMOTE4, sent.build()) };
        let (_, after) = run(underlay_xdp, &congested.frame());
        assert_eq!(after.bytes, stripped(&Inner { tos: 0xbb, ..sent }));
    }
}

#[test]
fn segments_that_were_merged_in_between_stay_merged() {
    let sent = Inner { payload: Payload::Tcp, len: 4000, ..Inner::from_remote(REMOTE4, false) };
    let merged = Frame { bytes: stripped(&sent), segment_size: 1000, mark: LEFT, ..Frame::default() };
    assert_eq!(run(stripped_ingress, &merged).0, Reason::Delivered);
}

#[test]
fn a_mark_that_is_not_the_secret_is_not_believed() {
    let sent = Inner::from_remote(REMOTE4, false);
    for mark in [0, LEFT ^ 1 << 32, LEFT.rotate_right(32)] {
        let forged = Frame { bytes: stripped(&sent), mark, ..Frame::default() };
        left_alone(stripped_ingress, &forged, Reason::NotVxlan);
        left_alone(underlay_ingress, &forged, Reason::NotVxlan);
    }
    let without = configured(|node| node.mark = 0);
    let unmarked = Frame { bytes: stripped(&sent), ..Frame::default() };
    assert_eq!(run_with(stripped_ingress, &unmarked, &without).0, Reason::NotVxlan);
    assert_eq!(run_with(underlay_xdp, &from_remote(REMOTE4, &sent), &without).0, Reason::SwitchedOff);
}

#[test]
fn what_has_left_its_tunnel_is_delivered_though_the_fast_path_is_off_by_now() {
    let off = Maps { switched_off: true, ..maps() };
    let sent = Inner::from_remote(REMOTE4, false);
    let marked = Frame { bytes: stripped(&sent), mark: LEFT, ..Frame::default() };
    assert_eq!(run_with(stripped_ingress, &marked, &off).0, Reason::Delivered);
    assert_eq!(run_with(underlay_xdp, &from_remote(REMOTE4, &sent), &off).0, Reason::SwitchedOff);
}

#[test]
fn a_pod_that_is_gone_meanwhile_leaves_the_packet_to_the_stack() {
    let sent = Inner { to: pod4(1, 200).into(), ..Inner::from_remote(REMOTE4, false) };
    left_alone(underlay_xdp, &from_remote(REMOTE4, &sent), Reason::NoEndpoint);
    let late = Frame { bytes: stripped(&sent), mark: LEFT, ..Frame::default() };
    left_alone(stripped_ingress, &late, Reason::NoEndpoint);
}

#[test]
fn a_frame_that_a_switch_has_flooded_is_not_delivered() {
    let sent = Inner::from_remote(REMOTE4, false);
    let flooded = Frame { bytes: stripped(&sent), mark: LEFT, stray: true, ..Frame::default() };
    left_alone(stripped_ingress, &flooded, Reason::NotVxlan);
}

#[test]
fn only_the_tag_of_the_underlays_vlan_is_looked_behind() {
    let tagged = |kind: u8, tci: [u8; 2]| {
        let frame = from_remote(REMOTE4, &Inner::from_remote(REMOTE4, false));
        with(&frame, |bytes| drop(bytes.splice(12..12, [kind, 0, tci[0], tci[1]])))
    };
    let in_vlan = configured(|node| node.vlan = 0x123);
    assert!(is_in_vlan(&tagged(0x81, [0xe1, 0x23]), &in_vlan), "whatever the priority");
    assert!(!is_in_vlan(&tagged(0x81, [0x01, 0x24]), &in_vlan));
    assert!(!is_in_vlan(&tagged(0x81, [0, 0]), &in_vlan));
    assert!(!is_in_vlan(&tagged(0x88, [0x01, 0x23]), &in_vlan));
    assert!(!is_in_vlan(&tagged(0x81, [0, 0]), &maps()), "priority alone is no VLAN");
    left_alone(underlay_xdp, &tagged(0x81, [0x01, 0x23]), Reason::NotVxlan);
}

#[test]
fn a_last_hop_is_left_in_its_tunnel() {
    let last = Inner { ttl: 1, ..Inner::from_remote(REMOTE4, false) };
    left_alone(underlay_xdp, &from_remote(REMOTE4, &last), Reason::TtlExpired);
}

#[test]
fn a_driver_without_room_for_the_mark_leaves_the_packet_as_it_is() {
    let frame = Frame { rigid: true, ..from_remote(REMOTE4, &Inner::from_remote(REMOTE4, false)) };
    left_alone(underlay_xdp, &frame, Reason::NoRoom);
}

#[test]
fn an_unverified_flow_stays_in_its_tunnel() {
    let mut maps = maps();
    maps.network_mut().expect("a network").mode = Mode::Verified as u8;
    let frame = from_remote(REMOTE4, &Inner::from_remote(REMOTE4, false));
    let (reason, after) = run_with(underlay_xdp, &frame, &maps);
    assert_eq!((reason, after), (Reason::Unverified, frame));
    assert!(maps.flows.borrow().is_empty(), "it is taken down where it leaves the tunnel");
}

#[test]
fn what_is_dropped_is_a_matter_of_configuration() {
    let drops = |flags, hook, reason| Network { flags, ..Network::default() }.drops(hook, reason);
    for hook in [Hook::UnderlayXdp, Hook::UnderlayIngress] {
        assert!(drops(0, hook, Reason::UnknownVtep));
        assert!(!drops(TOLERATE_VIOLATIONS, hook, Reason::UnknownVtep));
        for malformed in [Reason::Truncated, Reason::BadLength, Reason::BadChecksum, Reason::ReservedBits] {
            assert!(!drops(0, hook, malformed));
            assert!(drops(DROP_MALFORMED, hook, malformed));
        }
        assert!(!drops(DROP_MALFORMED, hook, Reason::OtherVni));
        assert!(drops(DROP_OTHER_VNI, hook, Reason::OtherVni));
        for fine in [Reason::Padded, Reason::NotVxlan, Reason::Fragment, Reason::Scattered] {
            assert!(!drops(u32::MAX, hook, fine));
        }
    }
    let all = DROP_MALFORMED | DROP_OTHER_VNI;
    assert!(!drops(all, Hook::PodEgress, Reason::BadChecksum), "pods get their answers from the kernel");
}
