//! Frames that go to a pod of this node without a tunnel.

use super::Step;
use super::view::{self, IP, View};
use crate::counters::Hook;
use crate::maps::{Endpoint, LOCAL_VTEP, endpoint};

/// `step` was routed to the pod `to`.
pub(super) fn routed(step: &Step<'_>, to: &Endpoint) {
    let before = for_pod(step, to);
    let local = step.maps.network();
    match step.hook {
        Hook::PodEgress => {
            from_local_pod(step, &before, to);
        }
        Hook::TunnelIngress => {
            assert!([local.local4.mac, local.local6.mac].contains(&before.eth.destination), "for another MAC")
        }
        hook => panic!("{} routes nothing", hook.label()),
    }
    readdressed(step.after, to);
    assert!(before.ttl > 1, "TTL {}", before.ttl);
    let expected = view::after_hops(&step.frame.bytes[IP..], 1, before.tos);
    assert_eq!(view::without_checksum(&step.after[IP..]), expected, "one hop and nothing else");
}

/// `step` was switched to the pod `to`.
pub(super) fn switched(step: &Step<'_>, to: &Endpoint) {
    let before = for_pod(step, to);
    assert_eq!(step.hook, Hook::PodEgress);
    let from = from_local_pod(step, &before, to);
    assert_eq!(before.eth.destination, to.mac);
    assert!(to.bridge != 0 && to.bridge == from.bridge, "on another bridge");
    assert_eq!(step.after, step.frame.bytes, "switched frames are not changed");
}

/// What `step` held: a packet to the pod `to` that is not too large for it.
fn for_pod<'a>(step: &Step<'a>, to: &Endpoint) -> View<'a> {
    let before = view::fit(step.frame);
    assert_eq!(view::endpoint(step.maps, before.destination), Some(to), "for somebody else");
    assert!(before.largest(step.frame.segment_size) <= u32::from(to.mtu), "too big");
    before
}

/// The pod of this node, other than `to`, that sent a packet to one of this node's subnets.
fn from_local_pod<'a>(step: &Step<'a>, before: &View<'_>, to: &Endpoint) -> &'a Endpoint {
    let from = sender(step, before);
    assert_ne!(from.ifindex, to.ifindex, "a pod to itself");
    assert_eq!(view::route(step.maps, before.destination), Some(LOCAL_VTEP), "not a local subnet");
    from
}

/// The pod that sent a packet, with an address of its own.
pub(super) fn sender<'a>(step: &Step<'a>, before: &View<'_>) -> &'a Endpoint {
    let from = view::endpoint(step.maps, before.source).expect("a pod that is known");
    assert_eq!(from.ifindex, step.frame.ifindex, "another pod's address");
    assert_eq!(from.flags & endpoint::DISPUTED, 0, "an address in dispute");
    from
}

/// `after` has a pod's Ethernet header.
pub(super) fn readdressed(after: &[u8], to: &Endpoint) {
    let eth = View::of(after).eth;
    assert_eq!((eth.destination, eth.source), (to.mac, to.gateway_mac), "Ethernet addresses");
}
