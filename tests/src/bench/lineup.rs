//! The labs that are compared.

use anyhow::Result;
use clap::ValueEnum;

use super::course::Course;
use crate::lab::{Agent, AgentOptions, Beside, Counters, DEVICE};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The underlay routes the pod subnets; or one bridge is the whole segment.
    NoOverlay,
    /// A kernel vxlan device, set up as flannel does it; or as a port of a bridge.
    KernelVxlan,
    /// Our agents; or agents beside the kernel's device.
    Ours(Mode),
}

/// How our fast path decides, best known first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Mode {
    /// The default: flows that the host stack has been seen to pass; on a segment, frames that nothing at its
    /// bridge filters
    Verified,
    /// Everything, without asking
    Direct,
}

impl Kind {
    /// All, in the order in which they are shown.
    pub(super) const ALL: [Self; 4] =
        [Self::NoOverlay, Self::KernelVxlan, Self::Ours(Mode::Verified), Self::Ours(Mode::Direct)];

    /// For people.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NoOverlay => "no overlay",
            Self::KernelVxlan => "kernel VXLAN",
            Self::Ours(Mode::Verified) => "ours, verified",
            Self::Ours(Mode::Direct) => "ours, direct",
        }
    }
}

impl Mode {
    /// Options of an agent in this mode.
    pub(super) fn options(self) -> AgentOptions {
        match self {
            Self::Verified => AgentOptions::verified(),
            Self::Direct => AgentOptions::default(),
        }
    }

    /// Options of an agent that accelerates a device of somebody else's in this mode.
    pub(super) fn beside(self) -> AgentOptions {
        AgentOptions { beside: Some(Beside::Configured(vec![DEVICE])), ..self.options() }
    }
}

/// One of them, up and running.
pub(super) struct Way {
    pub(super) kind: Kind,
    pub(super) course: Box<dyn Course>,
}

impl Way {
    /// Gets the ends ready.
    pub(super) fn new(kind: Kind, course: impl Course + 'static) -> Result<Self> {
        prepare(&course)?;
        Ok(Self { kind, course: Box::new(course) })
    }
}

/// Short connections leave no time-wait sockets behind: thousands of them would slow down the
/// next round, and sooner or later there would be no free port.
fn prepare(course: &dyn Course) -> Result<()> {
    course.ends().into_iter().try_for_each(|end| {
        end.ns.sysctl(&[("ipv4/tcp_max_tw_buckets", "0"), ("ipv4/ip_local_port_range", "2048 65000")])
    })
}

/// Counters of all our nodes, in order.
pub(super) fn counters(ways: &[Way]) -> Result<Vec<Counters>> {
    ways.iter().flat_map(|way| way.course.agents()).map(Agent::counters).collect()
}

/// One sentence on which path packets took, from what every node of ours counted; `None` without nodes.
pub(super) fn path_taken(counted: &[Counters]) -> Option<String> {
    if counted.is_empty() {
        return None;
    }
    let (mut fast, mut slow) = (0, 0);
    for (hook, reason, count) in counted.iter().flat_map(Counters::iter) {
        match (hook, reason) {
            (_, "encapsulated" | "decapsulated" | "delivered" | "routed" | "switched") => {
                fast += count.packets;
            }
            // Taken up again behind the kernel's device, where `delivered` counts it.
            ("underlay_ingress", "aggregate") => {}
            // What a bridge sends has been counted where it came in.
            ("tunnel_egress", "passed") => {}
            _ => slow += count.packets,
        }
    }
    let share = 100.0 * fast as f64 / (fast + slow).max(1) as f64;
    Some(format!("Of our packets {share:.3} % took the fast path ({slow} of {} did not).", fast + slow))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(rows: &[(&str, &str, u64)]) -> Counters {
        let row = |(hook, reason, packets): &(&str, &str, u64)| serde_json::json!({ "hook": hook, "reason": reason, "packets": packets, "bytes": 0 });
        Counters::parse(&rows.iter().map(row).collect()).expect("well-formed")
    }

    #[test]
    fn a_packet_that_two_programs_count_is_one_of_the_path_it_took() {
        let sent = counted(&[
            ("port_ingress", "encapsulated", 96),
            ("port_ingress", "unconfirmed", 3),
            ("tunnel_egress", "passed", 3),
        ]);
        let received = counted(&[
            ("underlay_ingress", "aggregate", 50),
            ("tunnel_ingress", "delivered", 100),
            ("tunnel_ingress", "unconfirmed", 1),
        ]);
        let sentence = "Of our packets 98.000 % took the fast path (4 of 200 did not).";
        assert_eq!(path_taken(&[sent, received]).as_deref(), Some(sentence));
        assert_eq!(path_taken(&[]), None);
    }
}
