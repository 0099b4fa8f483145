//! The labs that are compared.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;
use clap::ValueEnum;

use super::BenchArgs;
use crate::lab::{AgentOptions, Counters, Lab, LabSpec, Netns, Overlay};

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The underlay routes the pod subnets.
    NoOverlay,
    /// A kernel vxlan device, set up as flannel does it.
    KernelVxlan,
    /// Our agents.
    Ours(Mode),
}

/// How our fast path decides, best known first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(super) enum Mode {
    /// The default: flows that the host stack has been seen to pass
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

    fn overlay(self, args: &BenchArgs) -> Overlay {
        let fastpath = match self {
            Self::NoOverlay => return Overlay::None,
            Self::KernelVxlan => return Overlay::KernelVxlan,
            Self::Ours(Mode::Verified) => "verified",
            Self::Ours(Mode::Direct) => "direct",
        };
        let network = format!("notrack = {}", args.notrack);
        Overlay::Agent(AgentOptions { fastpath: fastpath.to_owned(), network, ..AgentOptions::default() })
    }
}

/// One of them, up and running.
pub(super) struct Way {
    pub(super) kind: Kind,
    pub(super) lab: Lab,
}

/// Builds the labs, alike but for the overlay.
pub(super) fn build(args: &BenchArgs) -> Result<Vec<Way>> {
    args.kinds()
        .map(|kind| {
            let spec = LabSpec::pair(kind.overlay(args), kind.overlay(args));
            let lab = spec.bridge_netfilter(args.bridge_netfilter).build()?;
            prepare(&lab)?;
            if args.conntrack {
                lab.nodes().iter().try_for_each(|node| load_rules(node))?;
            }
            Ok(Way { kind, lab })
        })
        .collect()
}

/// Short connections leave no time-wait sockets behind: thousands of them would slow down the
/// next round, and sooner or later there would be no free port.
fn prepare(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        for pod in &node.pods {
            pod.sysctl(&[("ipv4/tcp_max_tw_buckets", "0"), ("ipv4/ip_local_port_range", "2048 65000")])?;
        }
    }
    Ok(())
}

/// What a node with a service proxy in iptables style has: every packet is tracked, the first of a
/// connection is compared with every service.
fn load_rules(node: &Netns) -> Result<()> {
    const SERVICES: u32 = 5_000;
    let mut rules = String::from(
        "table inet bench {\n chain forward {\n  type filter hook forward priority filter;\n  \
         ct state invalid drop\n  ct state established,related accept\n }\n chain services {\n",
    );
    for n in 0..SERVICES {
        let service = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 0, 0)) + n);
        writeln!(rules, "  ip daddr {service} meta l4proto tcp dnat ip to 10.244.9.9")?;
    }
    rules.push_str(
        " }\n chain prerouting {\n  type nat hook prerouting priority dstnat;\n  jump services\n }\n \
         chain postrouting {\n  type nat hook postrouting priority srcnat;\n  \
         ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade\n }\n}\n",
    );
    node.feed("nft", &["-f", "-"], &rules)?;
    Ok(())
}

/// Counters of all our nodes, in order.
pub(super) fn counters(ways: &[Way]) -> Result<Vec<Counters>> {
    let ours = ways.iter().filter(|way| matches!(way.kind, Kind::Ours(_)));
    let agents = ours.flat_map(|way| way.lab.nodes()).filter_map(|node| node.agent.as_ref());
    agents.map(|agent| agent.counters()).collect()
}

/// One sentence on which path our packets took since `before`; `None` without our labs.
pub(super) fn path_taken(ways: &[Way], before: Vec<Counters>) -> Result<Option<String>> {
    if before.is_empty() {
        return Ok(None);
    }
    let (mut fast, mut slow) = (0, 0);
    for (now, before) in counters(ways)?.iter().zip(&before) {
        for (hook, reason, count) in (now - before).iter() {
            match (hook, reason) {
                (_, "encapsulated" | "decapsulated" | "delivered" | "routed" | "switched") => {
                    fast += count.packets
                }
                // Taken up again behind the kernel's device, where `delivered` counts it.
                ("underlay_ingress", "aggregate") => {}
                _ => slow += count.packets,
            }
        }
    }
    let share = 100.0 * fast as f64 / (fast + slow).max(1) as f64;
    Ok(Some(format!("Of our packets {share:.3} % took the fast path ({slow} of {} did not).", fast + slow)))
}
