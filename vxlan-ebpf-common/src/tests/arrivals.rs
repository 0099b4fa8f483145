//! Mode `verified`: how what the host stack has to see gets out of its tunnel.

use super::flows::{ACK, Connection, SECOND, SYN, verified};
use super::*;
use crate::hooks::{tunnel_ingress, underlay_ingress};
use crate::maps::{HEARSAY, NO_HANDOVER, moment};
use crate::testbed::*;

/// Tables in which the stack has just let in what VTEPs send.
fn heard() -> Maps {
    let mut maps = Maps { watched: true, ..verified() };
    let heard = moment(maps.now);
    maps.vteps.values_mut().for_each(|vtep| vtep.heard = heard);
    maps
}

/// A packet of the remote pod: in its tunnel, and out of it.
fn arriving(payload: Payload, flags: u8, len: usize) -> (Frame, Frame) {
    let connection = Connection::new(payload, false);
    let bare = connection.frame(&Inner { payload, len, ..Inner::from_remote(REMOTE4, false) }, flags, 22);
    let tunnelled = Outer::from_remote(REMOTE4, bare.bytes.clone()).frame();
    // The flags have changed what a checksum would cover.
    (with(&tunnelled, |bytes| bytes[40..42].fill(0)), bare)
}

#[test]
fn what_begins_a_connection_is_handed_to_the_stack_as_it_was_sent() {
    let maps = heard();
    let (tunnelled, bare) = arriving(Payload::Tcp, SYN, 100);
    let (reason, after) = run_with(underlay_ingress, &tunnelled, &maps);
    assert_eq!(reason, Reason::HandedOver);
    assert_eq!((after.bytes, after.note), (bare.bytes, 0));
    assert!(maps.flows.borrow().is_empty(), "that is noted behind the device");
}

#[test]
fn congestion_on_the_way_is_marked_in_what_is_handed_over() {
    let (_, bare) = arriving(Payload::Udp, 0, 100);
    let ect = Inner { tos: 2, payload: Payload::Udp, ..Inner::from_remote(REMOTE4, false) }.frame();
    assert_eq!(ect.bytes.len(), bare.bytes.len());
    let marked = Outer { tos: 3, ..Outer::from_remote(REMOTE4, ect.bytes.clone()) }.frame();
    let (reason, after) = run_with(underlay_ingress, &marked, &heard());
    assert_eq!((reason, after.bytes[15]), (Reason::HandedOver, 3));
    assert_eq!(after.bytes[22], ect.bytes[22], "TTL falls where it is routed");
}

#[test]
fn the_stack_is_given_a_tunnels_packet_again_after_a_second_a_flush_or_where_it_may_tell_them_apart() {
    let (tunnelled, _) = arriving(Payload::Tcp, SYN, 100);
    let expect = |maps: &Maps, reason: Reason, noted: bool| {
        let (got, after) = run_with(underlay_ingress, &tunnelled, maps);
        assert_eq!((got, after.note != 0), (reason, noted));
        assert_eq!(after.bytes == tunnelled.bytes, reason == Reason::Unverified);
    };
    expect(&heard(), Reason::HandedOver, false);
    expect(&Maps { watched: true, ..verified() }, Reason::Unverified, true);
    expect(&Maps { watched: false, ..heard() }, Reason::Unverified, false);
    let later = |time: u64| Maps { now: heard().now + time, ..heard() };
    expect(&later(SECOND * 8 / 10), Reason::HandedOver, false);
    expect(&later(SECOND * 12 / 10), Reason::Unverified, true);
    expect(&Maps { generation: 1, ..heard() }, Reason::Unverified, true);
    let mut maps = heard();
    maps.network_mut().expect("the network").flags |= NO_HANDOVER;
    expect(&maps, Reason::Unverified, false);
    let mut maps = heard();
    maps.network_mut().expect("the network").local4.device = 0;
    expect(&maps, Reason::Unverified, false);
    let gone = Frame { gone: DEVICE, ..tunnelled.clone() };
    assert_eq!(run_with(underlay_ingress, &gone, &heard()).0, Reason::Unverified);
    const { assert!(HEARSAY as u64 * (1 << 26) > SECOND) };
}

#[test]
fn the_note_of_somebody_else_stays() {
    let (tunnelled, _) = arriving(Payload::Tcp, SYN, 100);
    let noted = Frame { note: 7, ..tunnelled };
    let (reason, after) = run_with(underlay_ingress, &noted, &Maps { watched: true, ..verified() });
    assert_eq!((reason, after.note), (Reason::Unverified, 7));
    let (_, bare) = arriving(Payload::Tcp, SYN, 100);
    let maps = verified();
    let (_, after) = run_with(tunnel_ingress, &Frame { note: 7, ..bare }, &maps);
    assert_eq!((after.note, maps.heard.borrow().len()), (7, 0));
}

#[test]
fn a_packet_that_comes_out_of_the_device_with_its_note_says_that_the_stack_lets_its_vtep_in() {
    let (tunnelled, bare) = arriving(Payload::Tcp, SYN, 100);
    let maps = Maps { watched: true, ..verified() };
    let (_, left) = run_with(underlay_ingress, &tunnelled, &maps);
    let (reason, after) = run_with(tunnel_ingress, &Frame { note: left.note, ..bare.clone() }, &maps);
    assert_eq!((reason, after.note), (Reason::Unverified, 0));
    assert_eq!(*maps.heard.borrow(), [maps.vteps[&REMOTE4].addr]);
    // What was handed over says nothing.
    let (_, handed) = run_with(underlay_ingress, &tunnelled, &heard());
    let maps = verified();
    run_with(tunnel_ingress, &Frame { note: handed.note, ..bare }, &maps);
    assert!(maps.heard.borrow().is_empty());
}

#[test]
fn what_could_overtake_others_of_its_flow_takes_the_kernels_way() {
    for (payload, flags, len, reason) in [
        (Payload::Tcp, ACK, 0, Reason::HandedOver),
        (Payload::Tcp, ACK, 100, Reason::Unverified),
        (Payload::Tcp, ACK | 1, 100, Reason::HandedOver),
        (Payload::Udp, 0, 1000, Reason::HandedOver),
        (Payload::Echo, 0, 1000, Reason::HandedOver),
    ] {
        let maps = heard();
        let (tunnelled, bare) = arriving(payload, flags, len);
        assert_eq!(run_with(underlay_ingress, &tunnelled, &maps).0, reason, "{payload:?} {flags} {len}");
        run_with(tunnel_ingress, &bare, &maps);
        // From the second packet on only connections begin and end.
        let again = if payload == Payload::Tcp { reason } else { Reason::Unverified };
        assert_eq!(run_with(underlay_ingress, &tunnelled, &maps).0, again, "{payload:?} {flags} {len}");
    }
}
