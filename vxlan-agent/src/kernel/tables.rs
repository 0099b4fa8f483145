//! What netlink shows of this network namespace, as far as it matters here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::net::{IfIndex, Mac, Mtu, Vni};

/// Interfaces, addresses, routes and neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// Interfaces.
    pub links: BTreeMap<IfIndex, Link>,
    /// Addresses of interfaces.
    pub addresses: BTreeSet<Address>,
    /// Of the main table: our own routes and such as an overlay makes, routes to single addresses,
    /// default routes, and routes by way of a gateway that nobody but an operator or flannel makes.
    pub routes: BTreeSet<RouteEntry>,
    /// Neighbours whose MAC the kernel knows.
    pub neighbours: BTreeMap<(IfIndex, IpAddr), Neighbour>,
    /// Rules that choose among routing tables.
    pub rules: Vec<Rule>,
    /// Forwarding entries of bridges and vxlan devices, by port or device, MAC and VLAN.
    pub fdb: BTreeMap<(IfIndex, Mac, u16), FdbEntry>,
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: IfIndex,
    /// Its name.
    pub name: String,
    /// Its alias, ours or not.
    pub alias: Option<String>,
    /// What drives it.
    pub kind: Kind,
    /// Its MAC; zero where it has none.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: Mtu,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// The bridge (or bond, VRF) that it is a port of.
    pub master: Option<IfIndex>,
    /// The interface below a VLAN, or the other end of a veth.
    pub lower: Option<IfIndex>,
    /// Whether that lies in another network namespace.
    pub peer_elsewhere: bool,
    /// Whether the kernel gives it IPv6 link-local addresses by itself.
    pub makes_addresses: bool,
    /// Whether Ethernet frames can leave by it: it is up, has carrier, and is no tunnel of layer 3.
    pub sends_ethernet: bool,
}

/// What drives an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A virtual Ethernet pair's end.
    Veth,
    /// A bridge.
    Bridge,
    /// A VXLAN device.
    Vxlan(Vxlan),
    /// A VLAN of another interface, by its number.
    Vlan(u16),
    /// A routing table of its own for its ports.
    Vrf,
    /// Anything else.
    Other,
}

/// Parameters of a VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vxlan {
    /// VNI; `None` for a device of many (collect metadata).
    pub vni: Option<Vni>,
    /// UDP destination port.
    pub port: u16,
    /// Underlay address to send from.
    pub local: Option<IpAddr>,
    /// Underlay interface.
    pub underlay: Option<IfIndex>,
    /// Whether it learns forwarding entries from packets.
    pub learning: bool,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The interface.
    pub ifindex: IfIndex,
    /// The address.
    pub ip: IpAddr,
    /// Length of the prefix that is on-link there.
    pub prefix: u8,
}

/// A unicast route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteEntry {
    /// Where to.
    pub to: IpNetwork,
    /// Metric; IPv6 replaces 0 by 1024.
    pub priority: u32,
    /// Out of which interface; `None` for several.
    pub oif: Option<IfIndex>,
    /// The interfaces of a route with several next hops.
    pub legs: Vec<IfIndex>,
    /// Gateway; `None` when on-link.
    pub via: Option<IpAddr>,
    /// Preferred source.
    pub src: Option<IpAddr>,
    /// Whether it carries our protocol number.
    pub ours: bool,
}

/// A neighbour whose MAC is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC.
    pub mac: Mac,
    /// Whether it was entered by hand, for good.
    pub permanent: bool,
}

/// A forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FdbEntry {
    /// The bridge, for entries of a bridge.
    pub master: Option<IfIndex>,
    /// The VTEP, for entries of a vxlan device.
    pub vtep: Option<IpAddr>,
    /// Whether it was entered by hand, or is an address of the port itself.
    pub permanent: bool,
}

/// A rule that chooses among routing tables, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is about IPv6.
    pub v6: bool,
    /// Whether it looks at a packet's mark.
    pub looks_at_mark: bool,
    /// Whether it looks at what no question for a route can express: source ports or users.
    pub looks_deeper: bool,
}

/// How the underlay leads to a VTEP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Out of which interface.
    pub ifindex: IfIndex,
    /// The on-link neighbour: the gateway, or the VTEP itself.
    pub neighbour: IpAddr,
    /// MTU of the route, set by hand or learnt; `None`: the interface's.
    pub mtu: Option<Mtu>,
}

impl RouteEntry {
    /// Whether it looks like a route through an overlay's device: to a subnet by way of its first
    /// address, which is nobody's.
    pub fn is_overlays(&self) -> bool {
        self.via == Some(self.to.network())
    }

    /// The interfaces that it leads out of.
    pub fn interfaces(&self) -> impl Iterator<Item = IfIndex> {
        self.oif.into_iter().chain(self.legs.iter().copied())
    }
}

impl Tables {
    /// The interface called `name`.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }

    /// Addresses of `ifindex`.
    pub fn addresses_of(&self, ifindex: IfIndex) -> impl Iterator<Item = &Address> {
        self.addresses.iter().filter(move |a| a.ifindex == ifindex)
    }

    /// The interface of the best default route of this IP version; of several next hops the first, up
    /// or not, so that the choice does not change with every loss of carrier.
    pub fn default_link(&self, v6: bool) -> Option<&Link> {
        let default = |r: &&RouteEntry| r.to.prefix() == 0 && r.to.is_ipv6() == v6;
        let mut routes: Vec<_> = self.routes.iter().filter(default).collect();
        routes.sort_by_key(|route| route.priority);
        routes.iter().flat_map(|route| route.interfaces()).find_map(|index| self.links.get(&index))
    }

    /// Whether a rule of either IP version looks at marks.
    pub fn marks_route(&self) -> bool {
        self.rules.iter().any(|rule| rule.looks_at_mark)
    }

    /// Whether no answer of the kernel says how every packet of a tunnel over this IP version leaves.
    pub fn rules_look_deeper(&self, v6: bool) -> bool {
        self.rules.iter().any(|rule| rule.v6 == v6 && rule.looks_deeper)
    }

    /// Ports of `bridge`.
    pub fn ports_of(&self, bridge: IfIndex) -> impl Iterator<Item = &Link> {
        self.links.values().filter(move |link| link.master == Some(bridge))
    }
}
