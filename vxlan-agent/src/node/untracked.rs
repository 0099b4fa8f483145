//! Leaving conntrack out of the tunnels' outer packets.
//!
//! Each connection between pods has an outer UDP source port of its own, so to conntrack it is a new
//! connection between the nodes, too, whose first packet is compared with all rules of NAT. Nothing
//! is gained by that: the packets inside are tracked where they are routed.

use std::collections::BTreeSet;

use nix::libc;

use super::guard::Sets;
use super::table::Chain;
use crate::kernel::nft::Attributes;
use crate::kernel::nft::set::{Element, Field, Set};

/// UDP ports whose packets are not followed.
pub(super) const UNTRACKED: &str = "untracked";

/// The set of `ports`, if there are any.
pub(super) fn set(ports: &BTreeSet<u16>) -> Option<(String, Set)> {
    let elements = ports.iter().map(|port| Element::default().port(*port)).collect();
    (!ports.is_empty()).then(|| (UNTRACKED.to_owned(), Set { fields: vec![Field::Port], elements }))
}

/// What arrives for those ports, and what this node sends there, if they are in `sets`.
pub(super) fn chains(sets: &Sets) -> impl Iterator<Item = Chain> {
    let rule = || Attributes::default().load_udp_port().is_in(UNTRACKED).untracked();
    let chain = move |(name, hook, what)| Chain {
        name,
        kind: "filter",
        hook,
        priority: libc::NF_IP_PRI_RAW,
        rules: vec![(what, rule())],
    };
    let chains = [
        ("prerouting", libc::NF_INET_PRE_ROUTING, "out of the tunnel"),
        ("output", libc::NF_INET_LOCAL_OUT, "into the tunnel"),
    ];
    chains.into_iter().filter(|_| sets.contains_key(UNTRACKED)).map(chain)
}
