//! What must hold for every frame and all tables, however odd, judged by an independent parser.
//!
//! An oracle takes the bytes that a fuzzer thinks up, makes a frame and tables of them ([`Recipe`]),
//! sends the frame through the engine and panics if the outcome breaks a promise. The fuzz targets
//! are these functions and nothing else, and an ordinary test replays what fuzzing found through
//! the same ones.
//!
//! The promises:
//! - nothing panics;
//! - a frame that is not forwarded is untouched;
//! - a frame that is forwarded was fit to be: whole, long enough, small enough, with hops left, from
//!   an address that its sender may use, for the one that gets it;
//! - what is encapsulated is one VXLAN packet of our VNI with right lengths and checksums around the
//!   unchanged payload;
//! - what is decapsulated was VXLAN of our VNI from a VTEP of ours, and has its payload unchanged;
//! - what one node encapsulates, the other decapsulates;
//! - a flow bypasses the host stack only once the stack has passed it unchanged (`flow`).

extern crate std;

mod connection;
mod flow;
mod local;
mod profile;
mod recipe;
mod roundtrip;
mod segment;
mod tunnel;
mod view;

use std::vec::Vec;

use crate::counters::{Hook, Reason};
use crate::hooks::{self, Forward};
use crate::model::{Frame, Maps};

pub use flow::{Filters, Step as FlowStep, flow, play_flows};
pub use recipe::{Edit, Recipe, Way};
pub use roundtrip::roundtrip;

/// The hooks that encapsulate.
pub const OUTBOUND: [Hook; 2] = [Hook::PodEgress, Hook::TunnelEgress];

/// The hooks that decapsulate, or take what has been.
pub const INBOUND: [Hook; 3] = [Hook::UnderlayXdp, Hook::UnderlayIngress, Hook::TunnelIngress];

/// Sends a frame through the hooks that encapsulate.
///
/// Returns what became of it at either; panics if a promise is broken.
pub fn encap(data: &[u8]) -> Vec<Reason> {
    let (frame, maps) = Recipe::read(data).cook(Way::Out);
    OUTBOUND.iter().map(|hook| check(*hook, &frame, &maps)).collect()
}

/// Sends a frame through the hooks that decapsulate.
///
/// Returns what became of it at either; panics if a promise is broken.
pub fn decap(data: &[u8]) -> Vec<Reason> {
    let (frame, maps) = Recipe::read(data).cook(Way::In);
    INBOUND.iter().map(|hook| check(*hook, &frame, &maps)).collect()
}

/// Sends `frame` through `hook`.
///
/// Returns what became of it; panics if a promise is broken.
pub fn check(hook: Hook, frame: &Frame, maps: &Maps) -> Reason {
    let mut after = frame.clone();
    let forward = match hooks::run(hook, &mut after, maps).outcome {
        Ok(forward) => forward,
        Err(reason) => {
            if reason == Reason::Unverified && hook == Hook::UnderlayIngress || hook == Hook::TunnelIngress {
                // A note beside the frame.
                after.note = frame.note;
            }
            assert_eq!(&after, frame, "{}: {reason:?} changed the frame", hook.label());
            assert_ne!(reason, Reason::WriteFailed, "{}: room was made and could not be used", hook.label());
            return reason;
        }
    };
    assert!(!frame.tagged, "a tagged frame was forwarded");
    let (bytes, mark, kept, note) = (frame.bytes.clone(), frame.mark, frame.kept, frame.note);
    let unchanged = Frame { bytes, mark, kept, note, ..after.clone() };
    assert_eq!(unchanged, *frame, "more than bytes changed");
    let step = Step { hook, frame, after: &after.bytes, maps };
    match forward {
        Forward::Encapsulated(vtep) if hook == Hook::PortIngress => segment::encapsulated(&step, vtep),
        Forward::Encapsulated(vtep) => tunnel::encapsulated(&step, vtep),
        Forward::Bridged(station, way) => segment::bridged(&step, station, way),
        Forward::Decapsulated(endpoint) => tunnel::decapsulated(&step, endpoint),
        Forward::HandedOver(end) => tunnel::handed_over(&step, end),
        Forward::Stripped => stripped(frame, &after, maps),
        Forward::Delivered(endpoint) | Forward::Routed(endpoint) => local::routed(&step, endpoint),
        Forward::Switched(endpoint) => local::switched(&step, endpoint),
    }
    forward.reason()
}

/// Taken out of its tunnel before the stack and delivered behind it, a frame reaches the pod just as
/// it does decapsulated in one step.
fn stripped(frame: &Frame, stripped: &Frame, maps: &Maps) {
    let (mut whole, mut rest) = (frame.clone(), stripped.clone());
    let at_once = hooks::underlay_ingress(&mut whole, maps).outcome;
    let later = hooks::stripped_ingress(&mut rest, maps).outcome;
    match (at_once, later) {
        (Ok(Forward::Decapsulated(one)), Ok(Forward::Delivered(other))) => assert_eq!(one, other),
        (Ok(Forward::Bridged(one, _)), Ok(Forward::Bridged(other, _))) => assert_eq!(one, other),
        (Err(_), Err(_)) if frame.stray => return,
        other => panic!("in one step and in two: {other:?}"),
    }
    assert_eq!(whole.bytes, rest.bytes);
}

/// A frame that was forwarded: before and after.
struct Step<'a> {
    hook: Hook,
    frame: &'a Frame,
    after: &'a [u8],
    maps: &'a Maps,
}
