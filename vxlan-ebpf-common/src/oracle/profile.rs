//! Outer headers as the network's device makes them.

use super::Step;
use super::view::{IP, View};
use crate::counters::Hook;
use crate::maps::{LocalVtep, Vtep, local, vtep};

/// Checks TTL, TOS, Don't Fragment and flow label of `outer`, which `before` is in now.
pub(super) fn check(step: &Step<'_>, local: &LocalVtep, to: &Vtep, (outer, before): (&View<'_>, &View<'_>)) {
    let is = |bit| local.flags & bit != 0;
    let ttl_inside = before.ttl - u8::from(step.hook == Hook::PodEgress);
    let own = if is(local::TTL_INSIDE) { ttl_inside } else { local.ttl };
    assert_eq!(outer.ttl, if own == 0 { to.ttl } else { own }, "outer TTL");
    let dscp = if is(local::TOS_INSIDE) { before.tos } else { local.tos } & 0xfc;
    assert_eq!(outer.tos, dscp | [0, 1, 2, 2][usize::from(before.tos & 3)], "outer TOS");
    match &outer.v4 {
        Some(ip) => {
            let inside = before.v4.as_ref().is_none_or(|ip| ip.dont_fragment);
            let whole = is(local::DF) || is(local::DF_INSIDE) && inside;
            assert_eq!(ip.dont_fragment, whole && to.flags & vtep::NO_DF == 0, "outer DF");
        }
        None => {
            let of = |bytes: &[u8]| u32::from_be_bytes([0, bytes[1] & 0xf, bytes[2], bytes[3]]);
            let inside = if before.v4.is_some() { 0 } else { of(&step.frame.bytes[IP..]) };
            let label = if is(local::LABEL_INSIDE) { inside } else { local.label };
            assert_eq!(of(&step.after[IP..]), label, "outer flow label");
        }
    }
}
