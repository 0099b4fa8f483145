//! Frames of a segment, between stations behind ports and behind other nodes.

use super::*;
use crate::counters::Hook;
use crate::headers::{ETH_P_IP, ETH_P_IPV6, Eth, Mac};
use crate::hooks::{
    port_ingress, stripped_ingress, tunnel_egress, tunnel_ingress, underlay_ingress, underlay_xdp,
};
use crate::maps::{LinkEntry, MacKey, Station, link, moved, station};
use crate::model::Note;
use crate::oracle;
use crate::segment::CONFIRM;
use crate::testbed::{self, *};

const HERE: [u8; 6] = pod_mac(1);
const NEIGHBOUR: [u8; 6] = pod_mac(2);
const NOW: u64 = 50 * CONFIRM;

fn segment() -> Maps {
    testbed::segment(NOW)
}

fn change(maps: &mut Maps, mac: [u8; 6], edit: impl FnOnce(&mut Station)) {
    edit(maps.stations.get_mut(&MacKey::new(NETWORK, mac)).expect("a station"));
}

#[test]
fn a_frame_goes_to_a_station_behind_another_node_as_it_is() {
    for (id, v6) in [(REMOTE4, false), (REMOTE4, true), (REMOTE6, false), (REMOTE6, true)] {
        let frame = frame_to(station_mac(id), v6).frame();
        assert_eq!(oracle::check(Hook::PortIngress, &frame, &segment()), Reason::Encapsulated);
    }
}

#[test]
fn a_frame_comes_from_a_station_behind_another_node_as_it_was() {
    for (id, v6) in [(REMOTE4, false), (REMOTE4, true), (REMOTE6, false), (REMOTE6, true)] {
        let (inner, frame) = frame_from(id, v6);
        assert_eq!(oracle::check(Hook::UnderlayIngress, &frame, &segment()), Reason::Decapsulated);
        let mut out = frame;
        underlay_ingress(&mut out, &segment()).outcome.expect("decapsulated");
        assert_eq!(out.bytes, inner.build());
    }
}

#[test]
fn congestion_on_the_way_is_noted_inside() {
    let inner = Inner { tos: 2, ..frame_from(REMOTE4, false).0 };
    let mut frame = Outer { tos: 3, ..Outer::from_remote(REMOTE4, inner.build()) }.frame();
    underlay_ingress(&mut frame, &segment()).outcome.expect("decapsulated");
    assert_eq!(frame.bytes, Inner { tos: 3, ..inner }.build());
}

#[test]
fn a_frame_is_switched_between_ports_but_not_back() {
    let frame = frame_to(NEIGHBOUR, false).frame();
    assert_eq!(oracle::check(Hook::PortIngress, &frame, &segment()), Reason::Switched);
    let mut maps = segment();
    change(&mut maps, NEIGHBOUR, |station| station.ifindex = POD_IFINDEX);
    assert_eq!(run_with(port_ingress, &frame, &maps).0, Reason::SamePort);
}

#[test]
fn what_the_device_took_out_of_a_tunnel_is_delivered() {
    let (inner, _) = frame_from(REMOTE4, true);
    let frame = inner.frame();
    assert_eq!(oracle::check(Hook::TunnelIngress, &frame, &segment()), Reason::Delivered);
    // What the bridge sends, the device shall know of.
    assert_eq!(run_with(tunnel_egress, &frame, &segment()).0, Reason::Passed);
}

#[test]
fn stations_that_are_not_known_and_groups_are_the_kernels() {
    let (maps, stranger) = (segment(), [2, 0, 0, 9, 9, 9]);
    let frame = |from_mac, to_mac| Inner { from_mac, to_mac, ..frame_to(HERE, false) };
    for (from_mac, to_mac, reason) in [
        (HERE, stranger, Reason::UnknownStation),
        (stranger, NEIGHBOUR, Reason::UnknownStation),
        (HERE, [0xff; 6], Reason::Flooded),
        (HERE, [1, 0, 0x5e, 0, 0, 1], Reason::Flooded),
    ] {
        let frame = frame(from_mac, to_mac).frame();
        assert_eq!(run_with(port_ingress, &frame, &maps), (reason, frame.clone()));
    }
    let arp = Frame {
        bytes: [&frame_to(NEIGHBOUR, false).build()[..12], &[8, 6], &[0; 46]].concat(),
        ..frame_to(HERE, false).frame()
    };
    assert_eq!(run_with(port_ingress, &arp, &maps).0, Reason::NotIp);
    let tagged = Frame { tagged: true, ..frame_to(NEIGHBOUR, false).frame() };
    assert_eq!(run_with(port_ingress, &tagged, &maps).0, Reason::NotIp);
}

/// What XDP leaves with a frame of the segment.
const LEFT: u64 = (MARK as u64) << 32 | NETWORK as u64;

fn kept(inner: &Inner) -> Option<Eth> {
    let (dst, src) = (Mac::from_bytes(&inner.to_mac), Mac::from_bytes(&inner.from_mac));
    let ether_type = if inner.to.is_ipv4() { ETH_P_IP } else { ETH_P_IPV6 };
    Some(Eth { dst, src, ether_type })
}

#[test]
fn a_frame_is_stripped_with_its_macs_aside_and_delivered_with_them() {
    for (id, v6) in [(REMOTE4, false), (REMOTE4, true), (REMOTE6, false), (REMOTE6, true)] {
        let (inner, frame) = frame_from(id, v6);
        assert_eq!(oracle::check(Hook::UnderlayXdp, &frame, &segment()), Reason::Decapsulated);
        let (_, after) = run_with(underlay_xdp, &frame, &segment());
        let tunnels = Inner { from_mac: ROUTER_MAC, to_mac: UNDERLAY_MAC, ..inner.clone() };
        assert_eq!((after.mark, after.kept, &after.bytes), (LEFT, kept(&inner), &tunnels.build()));
        let (reason, after) = run_with(stripped_ingress, &after, &segment());
        assert_eq!((reason, after.bytes), (Reason::Delivered, inner.build()));
    }
}

#[test]
fn a_stripped_frame_whose_station_is_elsewhere_by_now_is_the_bridges() {
    let (inner, frame) = frame_from(REMOTE4, false);
    let (_, stripped) = run_with(underlay_xdp, &frame, &segment());
    let gone = |maps: &mut Maps| _ = maps.stations.remove(&MacKey::new(NETWORK, HERE));
    let moved_away = |maps: &mut Maps| change(maps, HERE, |station| station.moved = moved::AWAY);
    let behind_node = |maps: &mut Maps| change(maps, HERE, |station| *station = Station::vtep(REMOTE6));
    let narrow = |maps: &mut Maps| change(maps, HERE, |station| station.mtu = 60);
    for edit in [&gone as &dyn Fn(&mut Maps), &moved_away, &behind_node, &narrow] {
        let mut maps = segment();
        edit(&mut maps);
        let (reason, after) = run_with(stripped_ingress, &stripped, &maps);
        assert_eq!((reason, after.bytes), (Reason::HandedOver, inner.build()));
    }
}

#[test]
fn nothing_is_stripped_that_could_not_be_given_to_the_bridge() {
    let mut maps = segment();
    maps.networks.values_mut().for_each(|network| (network.local4.device, network.local6.device) = (0, 0));
    assert_eq!(run_with(underlay_xdp, &frame_from(REMOTE4, false).1, &maps).0, Reason::SwitchedOff);
    let mut maps = segment();
    maps.node.mark = 0;
    assert_eq!(run_with(underlay_xdp, &frame_from(REMOTE4, false).1, &maps).0, Reason::SwitchedOff);
}

#[test]
fn who_sends_from_elsewhere_is_the_kernels_to_find() {
    // From another port, from behind a node, from behind another node, from behind none.
    let other_port = Inner { from_mac: NEIGHBOUR, ..frame_to(station_mac(REMOTE4), false) }.frame();
    let behind_node = Inner { from_mac: station_mac(REMOTE4), ..frame_to(NEIGHBOUR, false) }.frame();
    let other_node = Inner { from_mac: station_mac(REMOTE6), to_mac: HERE, ..frame_from(REMOTE4, false).0 };
    let other_node = Outer::from_remote(REMOTE4, other_node.build()).frame();
    let from_here = Inner { from_mac: NEIGHBOUR, to_mac: HERE, ..frame_from(REMOTE4, false).0 };
    let from_here = Outer::from_remote(REMOTE4, from_here.build()).frame();
    for (hook, frame, mac) in [
        (Hook::PortIngress, other_port, NEIGHBOUR),
        (Hook::PortIngress, behind_node, station_mac(REMOTE4)),
        (Hook::UnderlayIngress, other_node, station_mac(REMOTE6)),
        (Hook::UnderlayIngress, from_here, NEIGHBOUR),
    ] {
        let maps = segment();
        assert_eq!(oracle::check(hook, &frame, &maps), Reason::Moved);
        let station = maps.stations[&MacKey::new(NETWORK, mac)].written();
        assert_eq!(*maps.notes.borrow(), [(station, Note::Moved(moved::AWAY))]);
    }
}

#[test]
fn what_the_bridge_sends_tells_where_its_sender_is() {
    const DEVICE: u32 = 88;
    let underlay = segment().network().local4.ifindex;
    for (from_mac, arrived_by, is_there) in [
        (NEIGHBOUR, 2, true),
        (NEIGHBOUR, POD_IFINDEX, false),
        (NEIGHBOUR, DEVICE, false),
        (NEIGHBOUR, 0, true),
        (station_mac(REMOTE4), DEVICE, true),
        (station_mac(REMOTE4), underlay, true),
        (station_mac(REMOTE4), 2, false),
        (station_mac(9), 2, true),
    ] {
        let mut maps = segment();
        maps.links.insert(DEVICE, LinkEntry { network: NETWORK, flags: link::DEVICE });
        let frame = Frame { arrived_by, ..Inner { from_mac, ..frame_to([0xff; 6], false) }.frame() };
        let expected = if is_there { Reason::Passed } else { Reason::Moved };
        assert_eq!(run_with(tunnel_egress, &frame, &maps).0, expected, "{from_mac:?} by {arrived_by}");
        assert_eq!(maps.notes.borrow().len(), usize::from(!is_there));
    }
}

#[test]
fn a_broadcast_from_elsewhere_says_that_a_station_has_moved() {
    let maps = segment();
    let frame = Inner { from_mac: NEIGHBOUR, to_mac: [0xff; 6], ..frame_to(HERE, false) }.frame();
    assert_eq!(run_with(port_ingress, &frame, &maps).0, Reason::Moved);
}

#[test]
fn a_station_that_has_moved_gets_and_sends_by_the_kernel_until_it_is_heard_where_it_was() {
    let mut maps = segment();
    change(&mut maps, NEIGHBOUR, |station| station.moved = 1);
    assert_eq!(run_with(port_ingress, &frame_to(NEIGHBOUR, false).frame(), &maps).0, Reason::Moved);
    assert!(maps.notes.borrow().is_empty());
    let mut back = Inner { from_mac: NEIGHBOUR, ..frame_to(HERE, false) }.frame();
    back.ifindex = 2;
    assert_eq!(run_with(port_ingress, &back, &maps).0, Reason::Moved);
    let station = maps.stations[&MacKey::new(NETWORK, NEIGHBOUR)].written();
    assert_eq!(*maps.notes.borrow(), [(station, Note::Moved(moved::NOT))]);
}

#[test]
fn a_remote_station_is_back_when_the_bridge_has_seen_it() {
    let (inner, frame) = frame_from(REMOTE4, false);
    let (mut maps, key) = (segment(), MacKey::new(NETWORK, station_mac(REMOTE4)));
    change(&mut maps, station_mac(REMOTE4), |station| station.moved = moved::AWAY);
    // Behind the device nobody knows where it came from.
    assert_eq!(run_with(tunnel_ingress, &inner.frame(), &maps).0, Reason::Moved);
    assert_eq!(maps.notes.take(), []);
    assert_eq!(run_with(underlay_ingress, &frame, &maps).0, Reason::Moved);
    assert_eq!(maps.notes.take(), [(maps.stations[&key].written(), Note::Moved(moved::BACK))]);
    change(&mut maps, station_mac(REMOTE4), |station| station.moved = moved::BACK);
    assert_eq!(run_with(tunnel_ingress, &inner.frame(), &maps).0, Reason::Moved);
    assert_eq!(maps.notes.take(), [(maps.stations[&key].written(), Note::Moved(moved::NOT))]);
}

#[test]
fn the_kernel_gets_a_frame_of_each_station_again_after_a_while() {
    for confirmed in [0, NOW - CONFIRM] {
        let mut maps = segment();
        change(&mut maps, HERE, |station| station.confirmed = confirmed);
        change(&mut maps, station_mac(REMOTE4), |station| station.confirmed = confirmed);
        assert_eq!(run_with(port_ingress, &frame_to(NEIGHBOUR, false).frame(), &maps).0, Reason::Unconfirmed);
        assert_eq!(maps.notes.take().len(), 1);
        // Behind the device comes the bridge, which has to see it, too.
        let (inner, frame) = frame_from(REMOTE4, false);
        assert_eq!(run_with(underlay_ingress, &frame, &maps).0, Reason::Unconfirmed);
        assert_eq!(maps.notes.take(), []);
        assert_eq!(run_with(tunnel_ingress, &inner.frame(), &maps).0, Reason::Unconfirmed);
        assert_eq!(maps.notes.take().len(), 1);
    }
}

#[test]
fn strangers_are_dropped_and_large_or_hooked_frames_are_the_kernels() {
    let (_, mut frame) = frame_from(REMOTE4, false);
    frame.bytes[29] = 77;
    let sum =
        etherparse::Ipv4Header::from_slice(&frame.bytes[14..]).expect("a header").0.calc_header_checksum();
    frame.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    let maps = segment();
    assert_eq!(run_with(underlay_ingress, &frame, &maps).0, Reason::UnknownVtep);
    assert!(maps.notes.borrow().is_empty(), "and say nothing of who has moved");
    let mut maps = segment();
    for mac in [HERE, NEIGHBOUR] {
        change(&mut maps, mac, |station| station.mtu = 100);
    }
    assert_eq!(run_with(underlay_ingress, &frame_from(REMOTE4, false).1, &maps).0, Reason::TooBig);
    assert_eq!(run_with(port_ingress, &frame_to(NEIGHBOUR, false).frame(), &maps).0, Reason::TooBig);
    change(&mut maps, NEIGHBOUR, |station| station.flags = station::HOOKED_IN);
    assert_eq!(run_with(port_ingress, &frame_to(NEIGHBOUR, false).frame(), &maps).0, Reason::Hooked);
    change(&mut maps, HERE, |station| station.flags = station::HOOKED_OUT);
    assert_eq!(
        run_with(port_ingress, &frame_to(station_mac(REMOTE4), false).frame(), &maps).0,
        Reason::Hooked
    );
}
