//! The labs of bridged segments, one host on each node.

use anyhow::Result;

use super::BenchArgs;
use super::lineup::{Kind, Mode, Way};
use crate::lab::segment::Card;
use crate::lab::{AgentOptions, Overlay, SegmentSpec};

/// Builds the labs, alike but for what carries the segment; agents have these `options`. Without an overlay both hosts are at one
/// bridge of one node, and have the MTU of the others.
pub(super) fn build(args: &BenchArgs, card: Card, options: fn(Mode) -> AgentOptions) -> Result<Vec<Way>> {
    args.kinds().map(|kind| Way::new(kind, spec(kind, options).card(card).build()?)).collect()
}

fn spec(kind: Kind, options: fn(Mode) -> AgentOptions) -> SegmentSpec {
    let pair = |overlay: Overlay| SegmentSpec::pair(overlay.clone(), overlay);
    match kind {
        Kind::NoOverlay => SegmentSpec::alone(),
        Kind::KernelVxlan => pair(Overlay::KernelVxlan),
        Kind::Ours(mode) => pair(Overlay::Agent(options(mode))),
    }
}
