//! The labs of bridged segments, one host on each node.

use anyhow::Result;

use super::BenchArgs;
use super::lineup::{Kind, Way};
use crate::lab::segment::Card;
use crate::lab::{Overlay, SegmentSpec};

/// Builds the labs, alike but for what carries the segment. Without an overlay both hosts are at one
/// bridge of one node, and have the MTU of the others.
pub(super) fn build(args: &BenchArgs, card: Card) -> Result<Vec<Way>> {
    args.kinds().map(|kind| Way::new(kind, spec(kind).card(card).build()?)).collect()
}

fn spec(kind: Kind) -> SegmentSpec {
    let pair = |overlay: Overlay| SegmentSpec::pair(overlay.clone(), overlay);
    match kind {
        Kind::NoOverlay => SegmentSpec::alone(),
        Kind::KernelVxlan => pair(Overlay::KernelVxlan),
        Kind::Ours(mode) => pair(Overlay::Agent(mode.options())),
    }
}
