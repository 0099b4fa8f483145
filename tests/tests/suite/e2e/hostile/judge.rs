//! Whether a case has come to the end that it had to.

use vxlan_ebpf_common::{Hook, Reason};
use vxlan_tests::lab::xdp;

use super::arena::{Counted, Outcome, Way};
use super::{Case, ends, is_due, is_fast, stays};
use crate::e2e::{decapsulates_other_family, underlay_hook};

/// What is wrong with an outcome.
pub(super) fn judge(
    case: &Case,
    referee: &Outcome,
    outcome: &Outcome,
    counted: &Counted,
    way: Way,
) -> Option<String> {
    let nothing = Outcome::default();
    let expected = if case.is_violation() { &nothing } else { referee };
    let mut wrong = String::new();
    if outcome != expected && !(may_end_at_a_device(case, counted) && ends_before_the_pod(outcome, expected))
    {
        wrong += &format!("\n    kernel: {}\n    ours:   {}", show(expected), show(outcome));
    }
    let unverified = way == Way::Verified && may_be_unverified(case, counted);
    let otherwise = xdp().is_some() && is_xdps_way(case, counted) || is_old_kernels_way(case, counted);
    let otherwise = otherwise || *counted == past_old_devices(&case.counted);
    let otherwise = otherwise || but_for_talk(case, counted) == case.counted;
    if !(*counted == case.counted || unverified || otherwise || is_due(counted)) {
        wrong += &format!("\n    counted {counted:?}, not {:?}", case.counted);
    }
    // What is for one network may not appear in the other, whatever the kernel thinks of it.
    let other = case.counted.iter().any(|(_, reason)| *reason == Reason::OtherVni);
    if !(if other { &outcome.arrived } else { &outcome.other }).is_empty() {
        wrong += &format!("\n    in the wrong network: {}", show(outcome));
    }
    (!wrong.is_empty()).then(|| format!("{way:?}: {}{wrong}", case.name))
}

/// Without what other hosts of a segment tell everybody of their own accord.
fn but_for_talk(case: &Case, counted: &Counted) -> Counted {
    let is_flood = |way: &&(Hook, Reason)| way.1 == Reason::Flooded;
    if case.counted.iter().any(|way| is_flood(&way)) {
        return counted.clone();
    }
    counted.iter().filter(|way| !is_flood(way)).copied().collect()
}

/// Whether the flow was being looked at: then packets that nothing else was wrong with go through the
/// host stack.
fn may_be_unverified(case: &Case, counted: &Counted) -> bool {
    let late = |&(hook, reason): &(Hook, Reason)| {
        let after = [Reason::NeedsChecksum, Reason::TooBig, Reason::TtlExpired];
        is_fast(reason) || hook != Hook::UnderlayIngress && after.contains(&reason)
    };
    counted.iter().any(|(_, reason)| *reason == Reason::Unverified) && case.counted.iter().any(late)
}

/// Whether XDP counts otherwise than TC for a reason: it cannot know that a frame is for another host,
/// which the stack drops after it; nothing has been merged yet; and GRO, behind it, may judge a checksum
/// that it had to leave.
fn is_xdps_way(case: &Case, counted: &Counted) -> bool {
    let first = |counted: &Counted| -> Vec<Reason> {
        let underlay = counted.iter().filter(|(hook, _)| *hook == Hook::UnderlayIngress);
        underlay.map(|(_, reason)| *reason).collect()
    };
    let (here, with_tc) = (first(counted), first(&case.counted));
    let all = |reasons: &[Reason], reason| reasons.iter().all(|r| *r == reason);
    here == with_tc && all(&here, Reason::NeedsChecksum)
        || all(&here, Reason::Decapsulated) && all(&with_tc, Reason::Aggregate)
}

/// Whether a packet that the pod's stack would not have accepted ended before it, all else being as
/// expected.
fn ends_before_the_pod(outcome: &Outcome, expected: &Outcome) -> bool {
    *outcome == Outcome { arrived: Vec::new(), ..expected.clone() }
}

/// Whether a kernel before Linux 6.3 left it to the device of the receiving node to take the packet out
/// of its tunnel. Over IPv6 a wrong inner checksum makes the outer one wrong that we work out from it,
/// which the device looks at and our program cannot.
fn may_end_at_a_device(case: &Case, counted: &Counted) -> bool {
    let sent = counted.iter().any(|(_, reason)| *reason == Reason::Encapsulated);
    is_old_kernels_way(case, counted) || sent && !decapsulates_other_family(underlay_hook())
}

/// Whether a kernel before Linux 6.3 let the program not take one IP version out of the other, so that
/// its device did, and all else was as expected.
fn is_old_kernels_way(case: &Case, counted: &Counted) -> bool {
    let left = (Hook::UnderlayIngress, Reason::NoRoom);
    let elsewhere = |counted: &Counted| -> Counted {
        let ways = [left, (Hook::UnderlayIngress, Reason::Decapsulated)];
        let others = counted.iter().filter(|way| !ways.contains(way) && way.0 != Hook::TunnelIngress);
        others.copied().collect()
    };
    !decapsulates_other_family(underlay_hook())
        && counted.contains(&left)
        && elsewhere(counted) == elsewhere(&case.counted)
}

/// What is counted where the vxlan device leaves it to the bridge to drop what comes from a group or from no MAC, as
/// before `vxlan: drop packets from invalid src-address` (v6.9).
fn past_old_devices(counted: &Counted) -> Counted {
    let sender_unknown = *counted == ends(Reason::UnknownStation);
    if sender_unknown { stays(Reason::UnknownStation) } else { counted.clone() }
}

fn show(outcome: &Outcome) -> String {
    let Outcome { arrived, accepted, sent, neighbour, other, answers } = outcome;
    let hex = |frames: &[Vec<u8>]| {
        let hex =
            |frame: &Vec<u8>| frame.iter().take(120).map(|byte| format!("{byte:02x}")).collect::<String>();
        frames.iter().map(hex).collect::<Vec<_>>().join(" ")
    };
    format!(
        "arrived [{}], accepted {}, sent [{}], neighbour [{}], other network [{}], answers {answers:?}",
        hex(arrived),
        accepted.len(),
        hex(sent),
        hex(neighbour),
        hex(other)
    )
}
