//! Large packets on a large underlay, to and from pods that take less or more than the tunnel.

use vxlan_ebpf_common::testbed::{Inner, Payload};
use vxlan_ebpf_common::{Hook, Reason};
use vxlan_tests::lab::Family;

use super::course::{Course, IP, edited, mend_header};
use super::{Case, fast, stays};

/// MTU of the underlay.
pub(super) const UNDERLAY_MTU: u32 = 9000;
/// What fits into the tunnel over IPv4.
const TUNNEL_MTU: usize = 8950;
/// MTU of pods that take less.
pub(super) const SMALL_POD_MTU: u32 = 4000;

/// For pods that take less than arrives.
pub(super) fn arriving(course: &Course) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        for (len, counted) in [
            (SMALL_POD_MTU as usize, fast()),
            (SMALL_POD_MTU as usize + 1, stays(Reason::TooBig)),
            (TUNNEL_MTU, stays(Reason::TooBig)),
        ] {
            for payload in Payload::ALL {
                let inner = of_length(Inner { payload, ..course.inner(family) }, len).build();
                cases.push(Case::new(name(family, payload, len), course.wrap(inner), counted.clone()));
            }
        }
    }
    // The others may not be.
    let divisible = edited(of_length(course.inner(Family::V4), TUNNEL_MTU).build(), |b| may_be_fragmented(b));
    cases.push(Case::new("too large, to be fragmented", course.wrap(divisible), stays(Reason::TooBig)));
    cases
}

/// From pods that send more than fits.
pub(super) fn sent(course: &Course) -> Vec<Case> {
    let mut cases = Vec::new();
    let at_pod = |reason| vec![(Hook::PodEgress, reason)];
    for family in [Family::V4, Family::V6] {
        let fits = of_length(course.sent(family), TUNNEL_MTU).build();
        cases.push(Case::new(name(family, Payload::Udp, TUNNEL_MTU), fits, at_pod(Reason::Encapsulated)));
    }
    for family in [Family::V4, Family::V6] {
        let whole = of_length(course.sent(family), TUNNEL_MTU + 1).build();
        cases.push(Case::new(name(family, Payload::Udp, TUNNEL_MTU + 1), whole, at_pod(Reason::TooBig)));
    }
    let divisible =
        edited(of_length(course.sent(Family::V4), TUNNEL_MTU + 1).build(), |b| may_be_fragmented(b));
    let cut = [at_pod(Reason::TooBig), vec![(Hook::TunnelEgress, Reason::Fragment); 2]].concat();
    cases.push(Case::new("one byte too large, to be fragmented", divisible, cut));
    cases
}

/// `inner` with so much payload that the IP packet has `len` bytes.
fn of_length(inner: Inner, len: usize) -> Inner {
    let ip = if inner.from.is_ipv4() { 20 } else { 40 };
    let transport = if inner.payload == Payload::Tcp { 20 } else { 8 };
    Inner { len: len - ip - transport, ..inner }
}

fn may_be_fragmented(bytes: &mut [u8]) {
    bytes[IP + 6] &= !0x40;
    mend_header(bytes);
}

fn name(family: Family, payload: Payload, len: usize) -> String {
    format!("{payload:?} of {len} bytes in {family:?}")
}
