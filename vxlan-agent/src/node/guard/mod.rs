//! Who may send through the tunnel, for what reaches the vxlan device past the programs: over another
//! interface, to another of the node's addresses, reassembled, with options, or without a fast path.
//!
//! The chain sees every packet for a tunnel's port before the device does. A VNI of somebody else's on
//! the same port passes. Of ours passes what is known to be right: for an address of this node's VTEP,
//! from the VTEP of another node, with an inner source that is one of its subnets' or its own
//! (`decap::accept`). In a bridged network any station may be behind any node, so nothing is asked of the inner
//! source. What cannot be read is dropped.
//!
//! All networks share the [`rules`]: which of them a packet is of says the beginning of a key in the [`mod@sets`].

mod rules;
mod sets;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub(super) use rules::chains;
pub(super) use sets::{PORTS, Sets, fields, is_mixed, keep_lengths, sets};

use crate::kernel::nft::set::Element;
use crate::net::Vni;

/// Who may send what in a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The tunnel's UDP port.
    pub port: u16,
    /// The network's VNI.
    pub vni: Vni,
    /// Addresses that other nodes know this one by. Over an IP version without one, any of the node's will do.
    pub own: BTreeSet<IpAddr>,
    /// VTEPs of other nodes, with each of the networks that they may send from.
    pub sources: BTreeSet<(IpAddr, IpNetwork)>,
    /// Whether they may send any frame: those networks are not looked at.
    pub bridged: bool,
    /// This node's pod subnets.
    pub pods: Vec<IpNetwork>,
}

/// What the keys of a network begin with.
pub(super) fn network(vni: Vni, port: u16) -> Element {
    Element::default().vni(vni.get()).port(port)
}

#[cfg(test)]
mod tests;
