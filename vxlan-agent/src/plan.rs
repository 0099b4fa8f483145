//! From cluster and observed tables to what should be in kernel and maps: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{self, NO_NETWORK};
use vxlan_ebpf_common::maps::{
    BY_ADDRESS, DROP_MALFORMED, DROP_OTHER_VNI, Family, Key6, LOCAL_VTEP, LinkEntry, LocalVtep, MARKS_ROUTE,
    MacKey, Mode, NO_BYPASS, NO_HANDOVER, NO_TCP_BYPASS, Network, NetworkId, NextHop as MapNextHop, Station,
    TOLERATE_VIOLATIONS, VniKey, Vtep, VtepId, endpoint, local, name_bytes, vtep,
};

use crate::cluster::{ClusterState, Node};
use crate::config::{Fastpath, Guard, SourceCheck, View};
use crate::datapath::{Attachment, DatapathState};
use crate::kernel::ruleset::Ruleset;
use crate::kernel::{
    Asked, Device, Edge, Field, Foreign, Headers, KernelState, NextHop, Policy, Route, Tables, Way,
};
use crate::net::{IfIndex, Mtu, family};
use crate::pods::{Claim, Patience, Pods, Search};
use crate::underlay::Underlay;
use crate::xdp::Place;
use hooked::{Hooked, Role};

pub use segment::{BridgeFilters, SegmentInput, cautions, sought_bridge};

/// Everything that a plan depends on.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The network's number.
    pub id: NetworkId,
    /// Numbers of VTEPs, of all networks.
    pub vtep_ids: &'a BTreeMap<Key6, VtepId>,
    /// The configuration.
    pub config: &'a View,
    /// The cluster.
    pub cluster: &'a ClusterState,
    /// What netlink shows.
    pub tables: &'a Tables,
    /// Where the network runs, once for each of [`ClusterState::owns`].
    pub sides: &'a [Side],
    /// Ways to VTEPs; the kernel looks up what is missing here.
    pub ways: &'a Ways,
    /// IPsec policies that encrypt or block.
    pub policies: &'a [Policy],
    /// What somebody else has put on interfaces.
    pub foreign: &'a [Foreign],
    /// First and last UDP source port of devices that have no range of their own.
    pub source_ports: (u16, u16),
    /// TTLs of ways that have none of their own.
    pub hop_limits: &'a HopLimits,
    /// Where the XDP program goes, if anywhere.
    pub xdp: Option<&'a Place>,
    /// Whether conntrack takes TCP connections back that have bypassed it.
    pub takes_back: bool,
    /// What packet filters do that the fast path would skip.
    pub ruleset: &'a Ruleset,
    /// Whether the host stack judges packets between pods by nothing but their addresses and DSCP.
    pub by_address: bool,
    /// Whether what the host stack makes of one of the tunnel's packets is what it makes of all of that VTEP.
    pub hands_over: bool,
    /// What has been so for long enough to be believed of pods.
    pub patience: &'a Patience,
    /// What the maps hold: what is known of pods is kept.
    pub previous: &'a DatapathState,
}

/// Ways to VTEPs, by what was asked for.
pub type Ways = BTreeMap<Asked, BTreeMap<IpAddr, Option<NextHop>>>;

/// TTLs and hop limits of packets on ways that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HopLimits {
    /// Over IPv4: the host's.
    pub v4: u8,
    /// Over IPv6: by the interface that leads there.
    pub v6: BTreeMap<IfIndex, u8>,
}

/// Where the network runs over one IP version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Side {
    /// The underlay, as found in the tables.
    pub underlay: Underlay,
    /// Index of our vxlan device, once it exists.
    pub device: Option<IfIndex>,
    /// How the kernel is asked for the way to a VTEP.
    pub asked: Asked,
    /// Whether that leaves checksums and segmentation to what is below it, as it does unless somebody
    /// has switched its offloads off.
    pub offloads: bool,
    /// How it makes outer headers: as it is to, and where nobody says, as it does.
    pub headers: Headers,
}

/// What should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    /// Outside BPF, once for each side. Head-room is the first one's.
    pub kernel: Vec<KernelState>,
    /// In BPF maps and on interfaces.
    pub datapath: DatapathState,
    /// What somebody else has put on interfaces, because of which packets are left to the kernel.
    pub hooked: Vec<Foreign>,
    /// What the kernel says of each disputed address of a pod at the moment.
    pub claims: BTreeMap<IpAddr, Claim>,
    /// Why frames of a bridged network are left to the kernel, a sentence each.
    pub left: Vec<String>,
}

impl Input<'_> {
    /// Plans.
    pub fn plan(&self) -> Desired {
        let of_network = self.previous.endpoints.range((self.id, IpAddr::from([0; 4]))..);
        let of_network = of_network.take_while(|((network, _), _)| *network == self.id);
        let before = &of_network.map(|((_, ip), endpoint)| (*ip, *endpoint)).collect();
        let veths_before = &self.previous.links;
        let (tables, subnets) = (self.tables, self.cluster.own_subnets());
        let underlays = &self.sides.iter().map(|side| side.underlay.ifindex).collect();
        let patience = self.patience;
        let search =
            Search { network: self.id, tables, subnets: &subnets, underlays, before, veths_before, patience };
        let mut pods = search.run();
        let mut kernel: Vec<_> = self.own_sides().map(|(own, side)| self.kernel(own, side)).collect();
        if let Some(first) = kernel.first_mut().filter(|_| self.is_fast()) {
            first.headroom = pods.headroom.clone();
        }
        let roles = self.roles(&pods);
        let hooked = Hooked::new(self.foreign, &roles);
        let claims = std::mem::take(&mut pods.claims);
        let datapath = self.datapath(pods, &hooked);
        Desired { kernel, datapath, hooked: hooked.all(), claims, left: self.odd_devices() }
    }

    /// What interfaces are to the overlay.
    fn roles(&self, pods: &Pods) -> BTreeSet<(IfIndex, Role)> {
        let mut roles = BTreeSet::new();
        for endpoint in pods.endpoints.values() {
            roles.insert((IfIndex(endpoint.ifindex), Role::Pod));
            roles.insert((IfIndex(endpoint.bridge), Role::Bridge));
        }
        for side in self.sides {
            roles.extend(side.device.map(|device| (device, Role::Device)));
            roles.insert((side.underlay.ifindex, Role::Underlay));
        }
        if let Some((place, side)) = self.xdp.zip(self.sides.first()) {
            roles.extend([place.ifindex, side.underlay.ifindex].map(|ifindex| (ifindex, Role::Stripped)));
        }
        let ways = self.cluster.remotes.values().filter_map(|node| self.way(node));
        roles.extend(ways.map(|hop| (hop.ifindex, Role::Way)));
        roles
    }

    fn own_sides(&self) -> impl Iterator<Item = (&Node, &Side)> {
        self.cluster.owns().zip(self.sides)
    }

    fn kernel(&self, own: &Node, side: &Side) -> KernelState {
        let mut state = KernelState {
            device: Some(device_spec(self.config, own, side)),
            addresses: own.subnets.iter().map(IpNetwork::network).collect(),
            ..KernelState::default()
        };
        let over = |node: &&Node| node.vtep.is_ipv4() == own.vtep.is_ipv4() && !node.subnets.is_empty();
        for node in self.cluster.remotes.values().filter(over) {
            state.fdb.insert(node.mac, node.vtep);
            let past = self.direct(node);
            for subnet in &node.subnets {
                state.neighbours.insert(subnet.network(), node.mac);
                state.routes.insert(*subnet, route(own, node.vtep, past, subnet));
            }
        }
        state
    }

    /// The interface of the link that a node is on, too, if packets get there without a tunnel. What IPsec
    /// protects is the tunnel, so that stays where there are policies; in a VRF the main table serves nobody.
    fn direct(&self, node: &Node) -> Option<IfIndex> {
        if !self.config.network.direct_routing {
            return None;
        }
        let side = self.side_to(node)?;
        let hop = self.way(node).filter(|hop| hop.neighbour == node.vtep)?;
        let link = self.tables.links.get(&hop.ifindex)?;
        let same_link = hop.ifindex == side.underlay.ifindex && link.sends_ethernet;
        (same_link && side.asked.vrf.is_none() && self.ipsec(node) == 0).then_some(hop.ifindex)
    }

    pub(crate) fn is_fast(&self) -> bool {
        self.config.network.fastpath != Fastpath::Off
    }

    fn datapath(&self, pods: Pods, hooked: &Hooked<'_>) -> DatapathState {
        let (id, network) = (self.id, self.network_entry(hooked));
        let mut state = DatapathState { networks: [(id, network)].into(), ..DatapathState::default() };
        state.vnis.insert(VniKey::new(network.vni, network.port()), id);
        state.routes.extend(self.cluster.own_subnets().into_iter().map(|subnet| ((id, subnet), LOCAL_VTEP)));
        for node in self.cluster.remotes.values() {
            // A node without an id is left to the kernel until one is free.
            let key = Key6::new(id, node.vtep.into());
            let Some(&vtep) = self.vtep_ids.get(&key) else { continue };
            state.routes.extend(node.subnets.iter().map(|subnet| ((id, *subnet), vtep)));
            state.vteps.insert(vtep, self.vtep(node, hooked));
            state.vtep_ids.insert(key, vtep);
            state.stations.insert(MacKey::new(id, node.mac.0), Station::vtep(vtep));
        }
        state.attachments = self.attachments(&pods.veths);
        state.endpoints = pods.endpoints.into_iter().map(|(ip, endpoint)| ((id, ip), endpoint)).collect();
        for endpoint in state.endpoints.values_mut() {
            let (veth, bridge) = (IfIndex(endpoint.ifindex), IfIndex(endpoint.bridge));
            let hooked = |edge| hooked.at(veth, edge) || hooked.at(bridge, edge);
            endpoint.flags |= if hooked(Edge::Entry) { endpoint::HOOKED_OUT } else { 0 };
            endpoint.flags |= if hooked(Edge::Exit) { endpoint::HOOKED_IN } else { 0 };
        }
        state.links = pods.veths;
        let devices = self.sides.iter().filter_map(|side| side.device);
        state.links.extend(devices.map(|device| (device, LinkEntry { network: id, flags: 0 })));
        state
    }

    fn network_entry(&self, hooked: &Hooked<'_>) -> Network {
        let network = &self.config.network;
        let (mut local4, mut local6) = (LocalVtep::default(), LocalVtep::default());
        for (own, side) in self.own_sides() {
            let underlay = &side.underlay;
            let end = match family(underlay.address) {
                Family::V4 => &mut local4,
                Family::V6 => &mut local6,
            };
            *end = LocalVtep {
                addr: underlay.address.into(),
                mac: own.mac.0,
                mtu: underlay.inner_mtu.saturating_u16(),
                ifindex: underlay.ifindex.0,
                device: side.device.map_or(0, |device| device.0),
                flags: self.local_flags(side, hooked),
                ..self.profile(side)
            };
        }
        let mode = match network.fastpath {
            Fastpath::Off => Mode::Off,
            Fastpath::Direct => Mode::Direct,
            Fastpath::Verified => Mode::Verified,
        };
        let flags = flag(network.source_check == SourceCheck::Count, TOLERATE_VIOLATIONS)
            | flag(network.malformed == Guard::Drop, DROP_MALFORMED)
            | flag(network.other_vni == Guard::Drop, DROP_OTHER_VNI)
            | flag(!self.takes_back, NO_TCP_BYPASS)
            | flag(!self.ruleset.meters.is_empty(), NO_BYPASS)
            | flag(self.tables.marks_route(), MARKS_ROUTE)
            | flag(self.by_address, BY_ADDRESS)
            | flag(!self.hands_over, NO_HANDOVER);
        Network {
            id: self.id,
            name: name_bytes(&network.name),
            vni: network.vni.get(),
            port: network.port.to_be_bytes(),
            mode: mode as u8,
            flags,
            local4,
            local6,
            ..Network::default()
        }
    }

    /// [`local`]'s bits for one side.
    fn local_flags(&self, side: &Side, hooked: &Hooked<'_>) -> u32 {
        let device = side.device.unwrap_or_default();
        let below = self.xdp.is_some_and(|place| hooked.at(place.ifindex, Edge::Entry));
        let entry = hooked.at(side.underlay.ifindex, Edge::Entry) || hooked.at(device, Edge::Entry) || below;
        flag(!side.offloads || self.is_odd(side), local::NO_OFFLOAD)
            | self.header_flags(side)
            | flag(hooked.at(device, Edge::Exit), local::HOOKED_ENCAP)
            | flag(entry || self.is_odd(side), local::HOOKED_DECAP)
            | flag(hooked.behind(device), local::HOOKED_TUNNEL)
    }

    fn vtep(&self, node: &Node, hooked: &Hooked<'_>) -> Vtep {
        let known = self.next_hop(node);
        let chain = known.is_some_and(|hop| hooked.at(hop.ifindex, Edge::Exit));
        let number = |ip: IpAddr| if ip.is_ipv4() { 4 } else { 6 };
        Vtep {
            addr: node.vtep.into(),
            mac: node.mac.0,
            family: number(node.vtep),
            flags: self.ipsec(node)
                | if chain { vtep::HOOKED_OUT } else { 0 }
                | if self.direct(node).is_some() { vtep::DIRECT } else { 0 }
                | if known.is_some_and(|hop| hop.mtu_locked) { vtep::NO_DF } else { 0 },
            ifindex: known.map_or(0, |hop| hop.ifindex.0),
            next_hop: known.map_or(MapNextHop::default(), |hop| next_hop(hop.neighbour)),
            mtu: self.inner_mtu(node, known),
            ttl: self.hop_limit(node, known),
            ..Vtep::default()
        }
    }

    fn ipsec(&self, node: &Node) -> u8 {
        self.side_to(node).map_or(0, |side| {
            ipsec(self.policies, side.underlay.address, node.vtep, self.config.network.port)
        })
    }

    /// The side that leads to a node.
    fn side_to(&self, node: &Node) -> Option<&Side> {
        self.sides.iter().find(|side| side.underlay.address.is_ipv4() == node.vtep.is_ipv4())
    }

    /// The way to a node, as far as the kernel says.
    fn way(&self, node: &Node) -> Option<&NextHop> {
        self.ways.get(&self.side_to(node)?.asked)?.get(&node.vtep)?.as_ref()
    }

    /// The next hop towards a node, if a program may send there; otherwise the kernel does.
    fn next_hop(&self, node: &Node) -> Option<&NextHop> {
        let hop = self.way(node)?;
        let link = self.tables.links.get(&hop.ifindex)?;
        let tunnel = self.sides.iter().any(|side| side.device == Some(hop.ifindex));
        let v6 = node.vtep.is_ipv6();
        let by_tos = self.side_to(node).is_some_and(|side| side.headers.tos == Field::Inherit)
            && self.tables.rules_look_at_tos(v6);
        // Where the kernel chooses what to send from, it has to be what the programs write.
        let own = self.side_to(node).filter(|side| side.asked.source.is_unspecified());
        let from_other =
            own.is_some_and(|side| hop.source.is_some_and(|source| source != side.underlay.address));
        let usable =
            link.sends_ethernet && !(tunnel || by_tos || from_other) && !self.tables.rules_look_deeper(v6);
        usable.then_some(hop)
    }

    /// The largest inner packet on the way to a node: what its device, the interface that leads there
    /// and the route take.
    fn inner_mtu(&self, node: &Node, hop: Option<&NextHop>) -> u16 {
        let device = self.side_to(node).map(|side| side.underlay.inner_mtu);
        let link = hop.and_then(|hop| self.tables.links.get(&hop.ifindex)).map(|link| link.mtu);
        let way = [link, hop.and_then(|hop| hop.mtu)].into_iter().flatten();
        let inside = way.map(|mtu| mtu.inside(family(node.vtep)));
        device.map_or(0, |device| inside.fold(device, Mtu::min).saturating_u16())
    }

    fn attachments(&self, veths: &BTreeMap<IfIndex, LinkEntry>) -> BTreeSet<Attachment> {
        let devices: Vec<_> = self.sides.iter().filter_map(|side| Some((side, side.device?))).collect();
        if !self.is_fast() || devices.is_empty() {
            return BTreeSet::new();
        }
        let fixed = devices.into_iter().flat_map(|(side, device)| {
            [
                (Hook::TunnelEgress, device),
                (Hook::TunnelIngress, device),
                (Hook::UnderlayIngress, side.underlay.ifindex),
            ]
        });
        // What the stack passes to a pod is looked at only where that verifies something.
        let hooks: &[Hook] = match self.config.network.fastpath {
            Fastpath::Verified => &[Hook::PodEgress, Hook::PodIngress],
            Fastpath::Off | Fastpath::Direct => &[Hook::PodEgress],
        };
        let pods = veths.keys().flat_map(|veth| hooks.iter().map(|hook| (*hook, *veth)));
        let all = fixed.chain(self.before_the_stack()).chain(pods);
        all.map(|(hook, ifindex)| Attachment { hook, ifindex: ifindex.0 }).collect()
    }

    /// XDP with its delivery. It goes where the first side runs; see `Agent::place_xdp`.
    fn before_the_stack(&self) -> impl Iterator<Item = (Hook, IfIndex)> {
        let xdp = self.xdp.zip(self.sides.first()).map(|(place, side)| {
            [(Hook::StrippedIngress, side.underlay.ifindex), (Hook::UnderlayXdp, place.ifindex)]
        });
        xdp.into_iter().flatten()
    }
}

/// The vxlan device on one side, as a routed network's.
fn device_spec(config: &View, own: &Node, side: &Side) -> Device {
    Device {
        name: config.device_over(own.vtep).to_owned(),
        vni: Some(config.network.vni),
        port: config.network.port,
        local: side.underlay.address,
        underlay: side.underlay.ifindex,
        mac: own.mac,
        mtu: side.underlay.inner_mtu,
        headers: side.headers,
        ready: true,
        segment: None,
    }
}

/// [`vtep`]'s bits for IPsec policies that may apply to the tunnel between `local` and `remote`.
pub fn ipsec(policies: &[Policy], local: IpAddr, remote: IpAddr, port: u16) -> u8 {
    let concerned = |way, from, to| policies.iter().any(|policy| policy.concerns(way, from, to, port));
    let out = if concerned(Way::Out, local, remote) { vtep::IPSEC_OUT } else { 0 };
    out | if concerned(Way::In, remote, local) { vtep::IPSEC_IN } else { 0 }
}

/// `flag` where it is to be set.
const fn flag(set: bool, flag: u32) -> u32 {
    if set { flag } else { 0 }
}

fn next_hop(neighbour: IpAddr) -> MapNextHop {
    let mut addr = [0; 16];
    let family = match neighbour {
        IpAddr::V4(ip) => {
            addr[..4].copy_from_slice(&ip.octets());
            nix::libc::AF_INET
        }
        IpAddr::V6(ip) => {
            addr = ip.octets();
            nix::libc::AF_INET6
        }
    };
    MapNextHop { family: family as u32, addr }
}

/// What programs need to know before they know a packet's network, but for which networks there are.
pub fn node(xdp: Option<&Place>, secret: u32, previous: &DatapathState) -> maps::Node {
    let mark = match (xdp, previous.node.mark) {
        (None, _) => 0,
        (Some(_), 0) => secret,
        (Some(_), known) => known,
    };
    maps::Node { mark, vlan: xdp.map_or(0, |place| place.vlan), ..maps::Node::default() }
}

/// Numbers of networks by name: a network keeps the one it has; a new one gets one that nobody has in
/// `previous`. What finds no place has none, and is the kernel's.
pub fn network_ids<'n>(
    names: impl Iterator<Item = &'n str>,
    previous: &DatapathState,
) -> BTreeMap<String, NetworkId> {
    let known: BTreeMap<_, _> = previous.networks.iter().map(|(id, network)| (network.name, *id)).collect();
    let mut free = (NO_NETWORK + 1..maps::MAX_NETWORKS).filter(|id| !previous.networks.contains_key(id));
    let id = |name: &str| known.get(&name_bytes(name)).copied().or_else(|| free.next());
    let mut id = id;
    names.filter_map(|name| Some((name.to_owned(), id(name)?))).collect()
}

/// The route to a node's subnet: past the tunnel, if the IP version is that of the node's address, or through it.
fn route(own: &Node, vtep: IpAddr, past: Option<IfIndex>, to: &IpNetwork) -> Route {
    if past.is_some() && to.is_ipv4() == vtep.is_ipv4() {
        return Route { via: vtep, past, src: None };
    }
    let both_ipv6 = |s: &&IpNetwork| s.is_ipv6() && to.is_ipv6();
    let src = own.subnets.iter().find(both_ipv6).map(IpNetwork::network);
    Route { via: to.network(), past: None, src }
}

/// Numbers of remote VTEPs: one keeps the number it has; a new one gets one that nobody has had in `previous`,
/// so that nothing that still refers to a number meets another node.
pub fn vtep_ids(wanted: &BTreeSet<Key6>, previous: &DatapathState) -> BTreeMap<Key6, VtepId> {
    let mut taken: BTreeSet<VtepId> =
        previous.vteps.keys().chain(previous.vtep_ids.values()).copied().collect();
    taken.insert(LOCAL_VTEP);
    let mut kept = BTreeSet::new();
    let keep = |vtep: &Key6| {
        let id = *previous.vtep_ids.get(vtep)?;
        (id != LOCAL_VTEP && kept.insert(id)).then_some((*vtep, id))
    };
    let mut ids: BTreeMap<Key6, VtepId> = wanted.iter().filter_map(keep).collect();
    let mut free = (1..VtepId::MAX).filter(|id| !taken.contains(id));
    for vtep in wanted {
        if let std::collections::btree_map::Entry::Vacant(vacant) = ids.entry(*vtep) {
            let Some(id) = free.next() else { break };
            vacant.insert(id);
        }
    }
    ids
}

mod beside;
mod headers;
mod hooked;
mod segment;
#[cfg(test)]
mod tests;
