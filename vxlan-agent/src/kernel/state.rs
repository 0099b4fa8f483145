//! The part of the kernel's state that is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::headers::Headers;
use crate::net::{IfIndex, Mac, Mtu, Vni};

/// Everything of a network that lives in the kernel outside BPF.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// The vxlan device.
    pub device: Option<Device>,
    /// Single addresses on it: the first of each own subnet.
    pub addresses: BTreeSet<IpAddr>,
    /// Permanent neighbours on it: first address of a remote subnet → MAC of its VTEP.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Permanent forwarding entries: MAC of a VTEP → its underlay address.
    pub fdb: BTreeMap<Mac, IpAddr>,
    /// The bridge that the device is a port of, in a bridged network.
    pub bridge: Option<BridgeSpec>,
    /// Addresses of this host on a bridge of ours; none on an operator's.
    pub bridge_addresses: BTreeSet<IpNetwork>,
    /// Whether that bridge has ports of others, so that it is not removed. Only observed, never desired.
    pub bridge_in_use: bool,
    /// Bridges of ours by other names, without ports of others. Never desired.
    pub old_bridges: BTreeSet<String>,
    /// Known stations of a bridged network: MAC → underlay address of the VTEP that it is behind.
    ///
    /// Each is two entries. The device's own names the VTEP, so that the frame is not replicated to all; the
    /// bridge's names the device, so that the frame is not sent to all ports. Both are marked as learnt from
    /// elsewhere (`NTF_EXT_LEARNED`): they do not age, and a station that has moved here takes its entry in
    /// the bridge along with the first frame that it sends.
    pub stations: BTreeMap<Mac, IpAddr>,
    /// Learnt stations of a bridged network behind VTEPs that are no nodes' (any more). Only observed, never
    /// desired.
    pub orphans: BTreeSet<Mac>,
    /// Permanent neighbours on the bridge: address of a known station → its MAC. By them the bridge answers
    /// questions in its place ([`Segment::suppress`]).
    pub answers: BTreeMap<IpAddr, Mac>,
    /// VTEPs that get a copy of what no forwarding entry knows, broadcast and multicast (head-end
    /// replication). A multicast group is the device's ([`Segment::group`]) and not in here.
    pub flood: BTreeSet<IpAddr>,
    /// Routes to remote subnets, of ours. Neighbours and forwarding entries of a node that is reached past
    /// the device stay: they say whose the route is, and the route can lead through the device at once.
    pub routes: BTreeMap<IpNetwork, Route>,
    /// Routes to such subnets past the device, which flannel left behind: never desired.
    pub direct_routes: BTreeMap<IpNetwork, DirectRoute>,
    /// Devices that give a bridge's ports head-room, by bridge.
    pub headroom: BTreeMap<IfIndex, Headroom>,
    /// Bridges that have a head-room port of another network, or one that is not known to be ours: it
    /// serves, and stays as it is. Only observed, never desired.
    pub headroom_elsewhere: BTreeSet<IfIndex>,
}

/// A vxlan device: no learning unless it is a bridge's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// Its VNI; `None` for a device that somebody made serve many. This and the next three cannot
    /// change without a new device.
    pub vni: Option<Vni>,
    /// UDP destination port.
    pub port: u16,
    /// Underlay address to send from; its family is the underlay's.
    pub local: IpAddr,
    /// Underlay interface.
    pub underlay: IfIndex,
    /// Its MAC, set explicitly so that nobody makes up another.
    pub mac: Mac,
    /// Its MTU.
    pub mtu: Mtu,
    /// How it makes outer headers.
    pub headers: Headers,
    /// Whether it carries our alias, is up, and makes no addresses by itself.
    pub ready: bool,
    /// What it is besides in a bridged network; `None` in a routed one.
    pub segment: Option<Segment>,
}

/// A vxlan device as a bridge's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Whether it learns stations from packets. This and the next cannot change without a new device.
    pub learning: bool,
    /// The multicast group that it joins, and sends to what no forwarding entry knows.
    pub group: Option<IpAddr>,
    /// Name of the bridge; `None` for a device that is not a bridge's port.
    pub bridge: Option<String>,
    /// Whether the bridge answers ARP and neighbour solicitations in the place of stations behind the device
    /// where it has neighbours for them (`neigh_suppress`).
    pub suppress: bool,
}

/// A bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgeSpec {
    /// Its name.
    pub name: String,
    /// What we make of it, if it is ours; `None` for an operator's, which is used as it is.
    pub own: Option<OwnBridge>,
}

/// A bridge of ours. Everything else about it is the kernel's default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnBridge {
    /// Its MAC, set explicitly so that it does not change with the ports.
    pub mac: Mac,
    /// Its MTU: the vxlan device's.
    pub mtu: Mtu,
    /// Whether it carries our alias and is up.
    pub ready: bool,
}

impl Device {
    /// Whether `self` can become `other` in place.
    pub fn can_become(&self, other: &Self) -> bool {
        let segment = |d: &Self| d.segment.as_ref().map_or((false, None), |s| (s.learning, s.group));
        let fixed = |d: &Self| (d.name.clone(), d.vni, d.port, d.local, d.underlay, segment(d));
        fixed(self) == fixed(other) && self.headers.can_become(&other.headers)
    }
}

/// A route to a node's subnet. Through the vxlan device it is on-link via an address that only exists as a
/// neighbour; past it, the gateway is the node itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// First address of the subnet; past the device the node's underlay address.
    pub via: IpAddr,
    /// The interface that it leads out of past the device; `None`: through the device.
    pub past: Option<IfIndex>,
    /// Source of packets from the host itself, for IPv6. For IPv4 the kernel takes the device's
    /// address by itself, and must not be told to: before Linux 5.14 the first address of a subnet
    /// that a bridge has is a broadcast address, and refused as a source.
    pub src: Option<IpAddr>,
}

/// A route to a node's subnet by way of its underlay address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectRoute {
    /// The underlay address.
    pub via: IpAddr,
    /// Out of which interface.
    pub oif: IfIndex,
}

/// A vxlan device that is never up, as a port of a bridge.
///
/// A port that encapsulates makes the bridge ask all its ports for head-room, and a veth asks its
/// peer (`br_set_headroom`, `veth_set_rx_headroom` in the kernel): pods then leave 64 bytes in
/// front of each frame, and encapsulation needs no copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// The smallest of the other ports' MTUs, so that the bridge's own MTU is as without it.
    pub mtu: Mtu,
    /// Whether it is a port of its bridge.
    pub ready: bool,
}
