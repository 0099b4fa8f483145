//! What netlink shows of this network namespace, as far as it matters here.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::bridge::{Bridge, Port};
use super::index::Index;
use super::next_hops::Object;
use super::paths::Path;
use super::rules::Rule;
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
    /// Whether all routes are kept besides, for the sake of devices that somebody else manages.
    pub wide: bool,
    /// Then, the routes of all tables.
    pub paths: BTreeSet<Path>,
    /// And next hop objects that they refer to, by their numbers.
    pub next_hops: BTreeMap<u32, Object>,
    /// Neighbours whose MAC the kernel knows.
    pub neighbours: BTreeMap<(IfIndex, IpAddr), Neighbour>,
    /// Rules that choose among routing tables.
    pub rules: Vec<Rule>,
    /// Addresses with a lifetime: a DHCP client or a router's advertisement gave them.
    pub passing: BTreeSet<(IfIndex, IpAddr)>,
    /// Settings of bridges.
    pub bridges: BTreeMap<IfIndex, Bridge>,
    /// Settings of bridge ports.
    pub ports: BTreeMap<IfIndex, Port>,
    /// Forwarding entries of bridges for single stations, by bridge, MAC and VLAN: the kernel has one port
    /// for each.
    pub fdb: BTreeMap<(IfIndex, Mac, Vlan), FdbEntry>,
    /// Forwarding entries of vxlan devices for single stations, by device and MAC.
    pub remotes: BTreeMap<(IfIndex, Mac), Remote>,
    /// Forwarding entries of vxlan devices for the all-zero MAC, of which there may be many.
    pub flood: BTreeSet<Flood>,
    /// Of the rows as they are, if somebody has made it.
    pub index: Option<Box<Index>>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    #[default]
    Other,
}

/// Number of a VLAN (IEEE 802.1Q); 0 where a bridge does not tell VLANs apart.
pub type Vlan = u16;

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
    /// Where it sends what no forwarding entry knows: a multicast group, or a single VTEP.
    pub group: Option<IpAddr>,
    /// TTL of outer packets; 0 for the kernel's choice.
    pub ttl: u8,
    /// Outer packets have the inner one's TTL instead.
    pub ttl_inherit: bool,
    /// TOS of outer packets; 1 for that of the inner packet.
    pub tos: u8,
    /// Don't Fragment of outer IPv4 packets: 0 unset, 1 set, 2 as inside (`VXLAN_DF_…`).
    pub df: u8,
    /// Outer IPv4 packets have a UDP checksum.
    pub checksum4: bool,
    /// Outer IPv6 packets have a UDP checksum.
    pub checksum6: bool,
    /// Outer IPv6 packets without a UDP checksum are accepted.
    pub accepts_no_checksum6: bool,
    /// Flow label of outer IPv6 packets.
    pub label: u32,
    /// Outer IPv6 packets have the inner one's flow label instead.
    pub label_inherit: bool,
    /// First UDP source port, and the one after the last; the host's range unless the first is less.
    pub source_ports: (u16, u16),
    /// After how many seconds a learnt entry that is not used goes.
    pub ageing: u32,
    /// It does nothing that needs more than VNI and forwarding entry: no metadata from elsewhere, no group
    /// policy, other protocols, remote checksums, routing, answering of ARP, or filter of VNIs.
    pub plain: bool,
}

impl Default for Vxlan {
    /// As a device without parameters: IDs and addresses unset, everything else off.
    fn default() -> Self {
        Self {
            vni: None,
            port: 0,
            local: None,
            underlay: None,
            learning: false,
            group: None,
            ttl: 0,
            ttl_inherit: false,
            tos: 0,
            df: 0,
            checksum4: false,
            checksum6: true,
            accepts_no_checksum6: false,
            label: 0,
            label_inherit: false,
            source_ports: (0, 0),
            ageing: 0,
            plain: true,
        }
    }
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
    /// Whether it stays until somebody takes it away: the kernel does not ask it whether it is still there.
    pub lasting: bool,
    /// Whether it carries our protocol number.
    pub ours: bool,
}

/// A forwarding entry of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdbEntry {
    /// The port; the bridge itself for addresses of its own.
    pub port: IfIndex,
    /// The host takes what is sent to it (`BR_FDB_LOCAL`): an address of bridge or port, or one that was
    /// entered as such by hand.
    pub permanent: bool,
    /// It goes when it is not used: the bridge has learnt it, and nobody has entered it.
    pub ages: bool,
    /// It stays at its port whoever else sends with this address.
    pub sticky: bool,
    /// The port is locked, and the station has yet to be let in.
    pub locked: bool,
}

/// A forwarding entry of a vxlan device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The VTEP; `None` where a next hop object has it.
    pub vtep: Option<IpAddr>,
    /// The device's own port and VNI serve, and no next hop object.
    pub plain: bool,
    /// It goes when it is not used: the device has learnt it.
    pub ages: bool,
}

/// A VTEP to which a vxlan device sends what has no forwarding entry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flood {
    /// The device.
    pub device: IfIndex,
    /// The VTEP or multicast group.
    pub vtep: IpAddr,
    /// The device's own port and VNI serve.
    pub plain: bool,
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
    /// Whether that MTU is locked: packets on this way may be fragmented.
    pub mtu_locked: bool,
    /// TTL or hop limit of the route; `None`: the host's or the interface's.
    pub hop_limit: Option<u8>,
    /// The address that the kernel sends from, if it says so.
    pub source: Option<IpAddr>,
}

impl NextHop {
    /// Out of `ifindex` to `neighbour`, by a route that says no more.
    pub const fn new(ifindex: IfIndex, neighbour: IpAddr) -> Self {
        Self { ifindex, neighbour, mtu: None, mtu_locked: false, hop_limit: None, source: None }
    }
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
    /// Addresses of `ifindex`.
    pub fn addresses_of(&self, ifindex: IfIndex) -> impl Iterator<Item = &Address> {
        let first = Address { ifindex, ip: IpAddr::from([0; 4]), prefix: 0 };
        self.addresses.range(first..).take_while(move |address| address.ifindex == ifindex)
    }

    /// Where the vxlan device `device` sends what has no forwarding entry.
    pub fn flood_of(&self, device: IfIndex) -> impl Iterator<Item = &Flood> {
        let first = Flood { device, vtep: IpAddr::from([0; 4]), plain: false };
        self.flood.range(first..).take_while(move |flood| flood.device == device)
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

    /// Whether a rule of either IP version tells packets between the same two addresses apart.
    pub fn rules_look_past_addresses(&self) -> bool {
        self.rules.iter().any(|rule| rule.looks_past_addresses)
    }

    /// Whether no answer of the kernel says how every packet of a tunnel over this IP version leaves.
    pub fn rules_look_deeper(&self, v6: bool) -> bool {
        self.rules.iter().any(|rule| rule.v6 == v6 && rule.looks_deeper)
    }

    /// Whether packets of a tunnel over this IP version leave by their TOS.
    pub fn rules_look_at_tos(&self, v6: bool) -> bool {
        self.rules.iter().any(|rule| rule.v6 == v6 && rule.looks_at_tos)
    }

    /// The vxlan device `index`, if it is one.
    pub fn vxlan(&self, index: IfIndex) -> Option<&Vxlan> {
        match &self.links.get(&index)?.kind {
            Kind::Vxlan(vxlan) => Some(vxlan),
            _ => None,
        }
    }

    /// Forwarding entries of `bridge`: MAC, VLAN, entry.
    pub fn fdb_of(&self, bridge: IfIndex) -> impl Iterator<Item = (Mac, Vlan, &FdbEntry)> {
        let all = self.fdb.range((bridge, Mac([0; 6]), 0)..=(bridge, Mac([0xff; 6]), Vlan::MAX));
        all.map(|((_, mac, vlan), entry)| (*mac, *vlan, entry))
    }

    /// Forwarding entries of the vxlan device `device` for single stations.
    pub fn remotes_of(&self, device: IfIndex) -> impl Iterator<Item = (Mac, &Remote)> {
        let all = self.remotes.range((device, Mac([0; 6]))..=(device, Mac([0xff; 6])));
        all.map(|((_, mac), entry)| (*mac, entry))
    }
}
