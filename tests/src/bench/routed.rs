//! The labs of nodes with subnets that packets are routed to.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::Result;

use super::BenchArgs;
use super::lineup::{Kind, Mode, Way};
use crate::lab::{AgentOptions, LabSpec, Netns, Overlay};

/// Builds the labs, alike but for the overlay; agents have these `options`.
pub(super) fn build(args: &BenchArgs, options: fn(Mode) -> AgentOptions) -> Result<Vec<Way>> {
    args.kinds()
        .map(|kind| {
            let overlay = overlay(kind, args, options);
            let spec = LabSpec::pair(overlay.clone(), overlay).unfiltered();
            let lab = spec.bridge_netfilter(args.bridge_netfilter).build()?;
            if args.conntrack {
                lab.nodes().iter().try_for_each(|node| load_rules(node))?;
            }
            Way::new(kind, lab)
        })
        .collect()
}

fn overlay(kind: Kind, args: &BenchArgs, options: fn(Mode) -> AgentOptions) -> Overlay {
    match kind {
        Kind::NoOverlay => Overlay::None,
        Kind::KernelVxlan => Overlay::KernelVxlan,
        Kind::Ours(mode) => {
            let network = if args.notrack { "notrack = true" } else { "" }.to_owned();
            Overlay::Agent(AgentOptions { network, ..options(mode) })
        }
    }
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
