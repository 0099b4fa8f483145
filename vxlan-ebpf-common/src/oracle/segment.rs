//! Frames of a segment.

use super::Step;
use super::tunnel;
use super::view::{self, IP, View};
use crate::hooks::Bridged;
use crate::maps::{LOCAL_VTEP, MacKey, Network, Station, Vtep};

/// `step` was encapsulated for `vtep`.
pub(super) fn encapsulated(step: &Step<'_>, vtep: &Vtep) {
    assert!(!step.frame.rigid, "no room was made");
    let network = step.maps.network();
    let before = view::fit(step.frame);
    let [from, to] = stations(step, &network, &before);
    assert_eq!((from.vtep, from.ifindex), (LOCAL_VTEP, step.frame.ifindex), "from elsewhere");
    assert_ne!(to.vtep, LOCAL_VTEP, "to a local station");
    assert_eq!(step.maps.vteps.get(&to.vtep), Some(vtep), "for another VTEP");
    let (tunnel, _) = tunnel::in_tunnel(step, &before, &network, vtep);
    assert_eq!(tunnel[8..], step.frame.bytes, "the frame as it was");
}

/// `step` left by the port of `to`.
pub(super) fn bridged(step: &Step<'_>, to: &Station, way: Bridged) {
    let network = step.maps.network();
    let before = view::fit(step.frame);
    let frame = match way {
        Bridged::Decapsulated => {
            assert!(!step.frame.rigid && step.frame.segment_size == 0, "room, or an aggregate");
            let (outer, inner, tunnel) = tunnel::out_of_tunnel(step, &network);
            let [from, _] = stations(step, &network, &inner);
            let vtep = step.maps.vteps.get(&from.vtep).expect("a VTEP");
            assert_eq!(vtep.addr, outer.source.into(), "from another VTEP");
            assert_eq!(step.after[..IP], tunnel[8..8 + IP], "Ethernet header");
            let expected = view::after_hops(&tunnel[8 + IP..], 0, tunnel::tos(&outer, &inner));
            assert_eq!(view::without_checksum(&step.after[IP..]), expected, "inner packet");
            inner
        }
        Bridged::Delivered | Bridged::Switched => {
            assert_eq!(step.after, step.frame.bytes, "nothing changes");
            let [from, _] = stations(step, &network, &before);
            let here = way == Bridged::Switched;
            assert_eq!(from.ifindex, if here { step.frame.ifindex } else { 0 }, "from elsewhere");
            before
        }
    };
    assert_eq!(stations(step, &network, &frame)[1], to, "to another station");
    assert_eq!(to.vtep, LOCAL_VTEP, "to a remote station");
    assert!(frame.largest(step.frame.segment_size) <= u32::from(to.mtu), "too big");
}

/// Who sent a frame and whom it is for: both known and confirmed.
fn stations<'a>(step: &Step<'a>, network: &Network, frame: &View<'_>) -> [&'a Station; 2] {
    let found = [frame.eth.source, frame.eth.destination].map(|mac| {
        let station = step.maps.stations.get(&MacKey::new(network.id, mac)).expect("a station");
        assert_eq!(station.moved, 0, "a station that is elsewhere");
        station
    });
    assert_ne!(found[0].confirmed, 0, "a station that the kernel knows nothing of");
    found
}
