//! What one node encapsulates, the other decapsulates.

use core::net::IpAddr;
use std::vec::Vec;

use super::recipe::{Recipe, Way};
use super::view::{self, IP, View};
use super::{OUTBOUND, check, std};
use crate::counters::{Hook, Reason};
use crate::hooks::{self, Forward};
use crate::maps::{Addr, Key6, LOCAL_VTEP, LocalVtep, Vtep, VtepId, local};
use crate::model::{Frame, Maps};
use crate::testbed;

/// The id of the sending node at the receiving one.
const SENDER: VtepId = 7;

/// Sends a frame through this node and, if that encapsulates it, through the node that it is for.
///
/// Returns what became of it at either; panics unless the receiving pod gets what was sent, with
/// one hop less for each node that routed it.
pub fn roundtrip(data: &[u8]) -> Vec<Reason> {
    let frame = Recipe::read(data).frame(Way::Out);
    let maps = testbed::maps();
    let mut reasons = Vec::new();
    for hook in OUTBOUND {
        reasons.push(check(hook, &frame, &maps));
        let mut sent = Frame { stray: false, ..frame.clone() };
        if let Ok(Forward::Encapsulated(vtep)) = hooks::run(hook, &mut sent, &maps).outcome {
            let hops = u8::from(hook == Hook::PodEgress);
            reasons.push(arrives(&frame, &sent, &receiver(&maps, &frame, vtep.addr), hops));
        }
    }
    reasons
}

/// `sent`, which holds the packet of `frame` after `hops` hops, arrives as it should.
fn arrives(frame: &Frame, sent: &Frame, receiver: &Maps, hops: u8) -> Reason {
    let mut got = sent.clone();
    let reason = hooks::underlay_ingress(&mut got, receiver).reason();
    let before = View::of(&frame.bytes);
    assert_eq!(reason, expected(frame, &before, receiver, hops), "at the receiving node");
    if reason == Reason::Decapsulated {
        let expected = view::after_hops(&frame.bytes[IP..], hops + 1, before.tos);
        assert_eq!(view::without_checksum(&got.bytes[IP..]), expected, "the packet that was sent");
        let eth = View::of(&got.bytes).eth;
        assert_eq!((eth.destination, eth.source), (testbed::pod_mac(1), testbed::GATEWAY_MAC));
    } else {
        assert_eq!(&got, sent, "{reason:?} changed the frame");
    }
    reason
}

/// What a receiving node that knows every pod makes of a packet.
fn expected(frame: &Frame, before: &View<'_>, receiver: &Maps, hops: u8) -> Reason {
    let senders = [testbed::node4(1).into(), testbed::node6(1).into()];
    let underlay = |ip: &IpAddr| receiver.vtep_ids.contains_key(&testbed::key6(*ip));
    let own = senders.iter().find(|ip| underlay(ip)) == Some(&before.source);
    if view::route(receiver, before.source) != Some(SENDER) && !own {
        return Reason::ForeignSource;
    }
    match before.ttl - hops {
        _ if frame.segment_size != 0 => Reason::Aggregate,
        0 | 1 => Reason::TtlExpired,
        _ => Reason::Decapsulated,
    }
}

/// The tables of the node at `address`, on which a pod has the address that `frame` is for.
fn receiver(sender: &Maps, frame: &Frame, address: Addr) -> Maps {
    let id = sender.vtep_ids[&Key6::new(testbed::NETWORK, address)];
    let sending = sender.network();
    let over_ipv4 = address.is_v4();
    let other = if over_ipv4 { sending.local4 } else { sending.local6 };
    let (mac, flags) = (testbed::vtep_mac(id), local::ACCEPTS_NO_CHECKSUM);
    let local = LocalVtep { addr: address, mac, flags, ..other };
    let mut maps =
        Maps { node: sender.node, networks: [(testbed::NETWORK, sending)].into(), ..Maps::default() };
    if let Some(network) = maps.network_mut() {
        *(if over_ipv4 { &mut network.local4 } else { &mut network.local6 }) = local;
    }
    let seen = |node: VtepId| if node == LOCAL_VTEP { SENDER } else { LOCAL_VTEP };
    let known = |node: &VtepId| *node == LOCAL_VTEP || *node == id;
    maps.routes4.extend(sender.routes4.iter().filter(|(_, n)| known(n)).map(|(p, n)| (*p, seen(*n))));
    maps.routes6.extend(sender.routes6.iter().filter(|(_, n)| known(n)).map(|(p, n)| (*p, seen(*n))));
    maps.vtep_ids.insert(Key6::new(testbed::NETWORK, other.addr), SENDER);
    maps.vteps.insert(SENDER, Vtep { addr: other.addr, ..sender.vteps[&id] });
    match View::of(&frame.bytes).destination {
        IpAddr::V4(ip) => drop(maps.endpoints4.insert(testbed::key4(ip), testbed::endpoint(1))),
        IpAddr::V6(ip) => drop(maps.endpoints6.insert(testbed::key6(ip), testbed::endpoint(1))),
    }
    maps
}
