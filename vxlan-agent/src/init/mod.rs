//! A configuration for a machine that has none: what the machine says of itself, and the files that follow from it. Pure.

mod files;
mod subnets;
mod underlay;

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::kernel::Tables;
use crate::net::{IfIndex, Mtu, Vni, family};

pub(crate) use underlay::NoUnderlay;
use underlay::{Candidate, Seen};

/// Name of the list of nodes, next to the configuration.
pub(crate) const NODES: &str = "nodes.toml";

/// IPv6 needs so much inside the tunnel (RFC 8200 §5).
const IPV6_NEEDS: Mtu = Mtu(1280);

/// Which kind of network is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Wanted {
    /// Routed subnets.
    L3,
    /// An Ethernet segment.
    L2,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Name of this node.
    pub(crate) node: String,
    /// Name of the network.
    pub(crate) network: String,
    /// Its kind.
    pub(crate) kind: Wanted,
    /// The underlay interface; `None`: whichever the machine suggests.
    pub(crate) underlay: Option<String>,
}

/// What was found, and what follows from it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Found {
    /// Name of this node.
    pub(crate) node: String,
    network: String,
    kind: Wanted,
    /// The lowest VNI that no device of the machine has, and whose device name is free.
    vni: u32,
    underlay: Candidate,
    /// The address that others send to.
    vtep: IpAddr,
    /// MTU of the vxlan device over that address.
    inner_mtu: Mtu,
    /// Free subnets for this node, one of each IP version at most; in an Ethernet segment, its addresses there.
    subnets: Vec<IpNetwork>,
    /// All interfaces, and why they are not the underlay.
    interfaces: Vec<Seen>,
    /// Prefixes that the machine has addresses in or routes to.
    taken: Vec<IpNetwork>,
}

impl Found {
    /// Looks for an underlay and for what is free in `tables`, which have [`Tables::paths`].
    ///
    /// # Errors
    /// There is no underlay, or several.
    pub(crate) fn of(request: Request, tables: &Tables) -> Result<Self, NoUnderlay> {
        let Request { node, network, kind, underlay } = request;
        let interfaces = underlay::look(tables);
        let underlay = underlay::choose(&interfaces, underlay.as_deref(), tables)?;
        let vtep = underlay.vtep();
        let inner_mtu = underlay.mtu.inside(family(vtep));
        let taken = subnets::taken(tables);
        let with_ipv6 = inner_mtu >= IPV6_NEEDS && underlay.has_ipv6();
        let subnets = match kind {
            Wanted::L3 => subnets::of_node(vtep, with_ipv6, &taken),
            Wanted::L2 => subnets::on_segment(vtep, with_ipv6, &taken),
        };
        let vni = free_vni(kind, tables);
        Ok(Self { node, network, kind, vni, underlay, vtep, inner_mtu, subnets, interfaces, taken })
    }
}

/// The first VNI from that of the examples on whose device can be made here.
fn free_vni(kind: Wanted, tables: &Tables) -> u32 {
    let first = match kind {
        Wanted::L3 => 1,
        Wanted::L2 => 100,
    };
    let used = |vni| tables.links.keys().any(|link| vni_of(tables, *link) == Some(vni));
    let is_free = |vni: &u32| !used(*vni) && tables.link_named(&format!("vxlan{vni}")).is_none();
    (first..1 << 24).find(is_free).unwrap_or(first)
}

fn vni_of(tables: &Tables, link: IfIndex) -> Option<u32> {
    tables.vxlan(link)?.vni.map(Vni::get)
}

#[cfg(test)]
mod tests;
