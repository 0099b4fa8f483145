//! Where probes ended.

use std::net::IpAddr;

use serde::Serialize;
use vxlan_ebpf_common::{Disposition, Reason};

use super::Counted;
use super::echo::Answer;
use crate::trace::{Ended, Trace};

/// What was seen on the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Seen {
    /// A request left.
    pub left: bool,
    /// An answer arrived.
    pub came_back: bool,
}

impl Seen {
    /// What either has seen.
    pub(super) const fn add(&mut self, other: Self) {
        self.left |= other.left;
        self.came_back |= other.came_back;
    }
}

/// Where a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It was answered.
    Answered,
    /// SRC's own host did not send it: it has no route.
    NotSent,
    /// Somebody on the way answered that it does not get on.
    Unreachable,
    /// A program of this node dropped it.
    DroppedHere,
    /// It was lost in this node's host stack.
    LostHere,
    /// It left on the underlay, and no answer came.
    NoAnswer,
    /// An answer arrived on the underlay, and did not get to SRC.
    AnswerLostHere,
}

/// Where a probe ended, and that in a sentence. `vtep`: the other node, and whether it answers on the underlay.
pub(super) fn judge(
    answered: bool,
    last: &Answer,
    seen: Seen,
    counted: &[Counted],
    trace: &Trace,
    vtep: (Option<IpAddr>, Option<bool>),
) -> (Place, String) {
    if answered {
        return (Place::Answered, "DST answers.".to_owned());
    }
    match (last, vtep.0) {
        (Answer::Refused(why), _) => {
            return (Place::NotSent, format!("SRC's own host does not send it: {why}."));
        }
        (Answer::TooBig { mtu, .. }, _) => {
            return (
                Place::NotSent,
                format!("SRC's own host does not send it: it is larger than {mtu} bytes."),
            );
        }
        (_, Some(_)) if seen.came_back => {
            let by = drops(counted);
            let text = format!("The answer arrived on this node's underlay, and did not get to SRC{by}.");
            return (Place::AnswerLostHere, text);
        }
        (Answer::Unreachable { icmp: (kind, code), by }, _) => {
            let by = by.map_or_else(|| "this host".to_owned(), |by| by.to_string());
            let text = format!("{by} says that it does not get on (ICMP type {kind}, code {code}).");
            return (Place::Unreachable, text);
        }
        (_, Some(address)) if seen.left => {
            let other = match vtep.1 {
                Some(true) => {
                    "whose underlay address answers, so look at that node's overlay and at the tunnel's UDP port on the way"
                }
                _ => "whose underlay address does not answer either",
            };
            let text =
                format!("It left on the underlay, and no answer came from the node at {address}, {other}.");
            return (Place::NoAnswer, text);
        }
        _ => {}
    }
    let by = drops(counted);
    if !by.is_empty() || trace.ended == Ended::Dropped {
        return (Place::DroppedHere, format!("It did not leave this node{by}. {}", trace.summary));
    }
    let text =
        "It was not seen to leave this node: its host stack, a packet filter or the receiver has kept it.";
    (Place::LostHere, text.to_owned())
}

/// Which drops were counted meanwhile.
fn drops(counted: &[Counted]) -> String {
    let is_drop = |label: &str| {
        let reason = Reason::ALL.iter().find(|reason| reason.label() == label);
        reason.is_some_and(|reason| {
            matches!(
                reason.disposition(),
                Disposition::Violation | Disposition::Malformed | Disposition::Dropped
            )
        })
    };
    let drops: Vec<_> = counted.iter().filter(|cell| is_drop(cell.reason)).collect();
    if drops.is_empty() {
        return String::new();
    }
    let all: Vec<_> = drops.iter().map(|cell| format!("{} as {}", cell.hook, cell.reason)).collect();
    format!("; programs counted {}", all.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(ended: Ended) -> Trace {
        let packet = crate::trace::frame::tests::question();
        Trace { packet, steps: vec![], ended, summary: "It is so.".to_owned(), agree: true, notes: vec![] }
    }

    #[test]
    fn the_place_is_where_it_was_seen_last() {
        let vtep = (Some(IpAddr::from([192, 0, 2, 2])), Some(false));
        let judge = |answered, last: &Answer, left, came_back, ended| {
            judge(answered, last, Seen { left, came_back }, &[], &trace(ended), vtep).0
        };
        let nothing = &Answer::None;
        assert_eq!(judge(true, nothing, true, true, Ended::Sent), Place::Answered);
        assert_eq!(judge(false, nothing, true, false, Ended::Sent), Place::NoAnswer);
        assert_eq!(judge(false, nothing, true, true, Ended::Sent), Place::AnswerLostHere);
        assert_eq!(judge(false, nothing, false, false, Ended::Sent), Place::LostHere);
        assert_eq!(judge(false, nothing, false, false, Ended::Dropped), Place::DroppedHere);
        let refused = &Answer::Refused("no route".to_owned());
        assert_eq!(judge(false, refused, false, false, Ended::Sent), Place::NotSent);
        let unreachable = &Answer::Unreachable { icmp: (3, 1), by: None };
        assert_eq!(judge(false, unreachable, false, false, Ended::Sent), Place::Unreachable);
    }
}
