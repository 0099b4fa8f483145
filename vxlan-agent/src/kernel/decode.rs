//! From netlink messages to the rows of [`Tables`](super::Tables).

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVlan, InfoVxlan, LinkAttribute,
    LinkEvent, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteType, RouteVia,
};

use super::tables::{
    Address, FdbEntry, Flood, Kind, Link, Neighbour, NextHop, Remote, RouteEntry, Vlan, Vxlan,
};
use crate::net::{self, IfIndex, Mac, Mtu, Vni};
use crate::ownership::ROUTE_PROTOCOL;

/// The interface that a message describes; `None` for partial ones (bridge ports, wireless).
pub(super) fn link(message: &LinkMessage) -> Option<Link> {
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let mut link = Link {
        index: IfIndex(message.header.index),
        name: String::new(),
        alias: None,
        kind: Kind::Other,
        mac: Mac::default(),
        mtu: Mtu(0),
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        master: None,
        lower: None,
        peer_elsewhere: false,
        makes_addresses: false,
        sends_ethernet: message.header.link_layer_type == LinkLayerType::Ether
            && message.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
            LinkAttribute::Address(bytes) => link.mac = Mac::from_bytes(bytes).unwrap_or_default(),
            LinkAttribute::Mtu(mtu) => link.mtu = Mtu(*mtu),
            LinkAttribute::Controller(master) if *master != 0 => link.master = Some(IfIndex(*master)),
            LinkAttribute::Link(lower) if *lower != 0 => link.lower = Some(IfIndex(*lower)),
            LinkAttribute::LinkNetNsId(_) => link.peer_elsewhere = true,
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            LinkAttribute::AfSpecUnspec(families) => link.makes_addresses = makes_addresses(families),
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}

/// Whether the message says that a device is gone, rather than that a bridge lost a port.
pub(super) fn is_device(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Unspec
}

/// Whether the message tells of changed features (offloads), which are not in it.
pub(super) fn is_about_features(message: &LinkMessage) -> bool {
    message.attributes.contains(&LinkAttribute::Event(LinkEvent::Features))
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let mut kind = Kind::Other;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Veth) => kind = Kind::Veth,
            LinkInfo::Kind(InfoKind::Vrf) => kind = Kind::Vrf,
            LinkInfo::Kind(InfoKind::Bridge) => kind = Kind::Bridge,
            LinkInfo::Data(InfoData::Vlan(parameters)) => {
                let id =
                    parameters.iter().find_map(|p| if let InfoVlan::Id(id) = p { Some(*id) } else { None });
                kind = Kind::Vlan(id.unwrap_or_default());
            }
            LinkInfo::Data(InfoData::Vxlan(parameters)) => kind = Kind::Vxlan(vxlan(parameters)),
            _ => {}
        }
    }
    kind
}

/// `VXLAN_LABEL_INHERIT` of `linux/if_link.h`.
const LABEL_INHERIT: u32 = 1;

fn vxlan(parameters: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    for parameter in parameters {
        match parameter {
            InfoVxlan::Id(vni) => vxlan.vni = Vni::try_from(*vni).ok(),
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Local(ip) if !ip.is_unspecified() => vxlan.local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) if !ip.is_unspecified() => vxlan.local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Link(index) if *index != 0 => vxlan.underlay = Some(IfIndex(*index)),
            InfoVxlan::Learning(learning) => vxlan.learning = *learning,
            InfoVxlan::Group(ip) if !ip.is_unspecified() => vxlan.group = Some(IpAddr::V4(*ip)),
            InfoVxlan::Group6(ip) if !ip.is_unspecified() => vxlan.group = Some(IpAddr::V6(*ip)),
            InfoVxlan::Ttl(ttl) => vxlan.ttl = *ttl,
            InfoVxlan::Tos(tos) => vxlan.tos = *tos,
            InfoVxlan::Df(df) => vxlan.df = u8::from(*df),
            InfoVxlan::TtlInherit(on) => vxlan.ttl_inherit = *on != 0,
            InfoVxlan::UDPCsum(on) => vxlan.checksum4 = *on,
            InfoVxlan::UDPZeroCsumTX(zero) => vxlan.checksum6 = !*zero,
            InfoVxlan::UDPZeroCsumRX(accepted) => vxlan.accepts_no_checksum6 = *accepted,
            InfoVxlan::PortRange(range) => vxlan.source_ports = *range,
            InfoVxlan::Label(label) => vxlan.label = *label,
            InfoVxlan::LabelPolicy(policy) => vxlan.label_inherit = *policy == LABEL_INHERIT,
            InfoVxlan::Ageing(seconds) => vxlan.ageing = *seconds,
            InfoVxlan::CollectMetadata(true)
            | InfoVxlan::Vnifilter(true)
            | InfoVxlan::Proxy(true)
            | InfoVxlan::Rsc(true)
            | InfoVxlan::RemCsumTX(true)
            | InfoVxlan::RemCsumRX(true)
            | InfoVxlan::RemCsumNoPartial
            | InfoVxlan::Gbp
            | InfoVxlan::Gpe => vxlan.plain = false,
            _ => {}
        }
    }
    vxlan
}

fn makes_addresses(families: &[AfSpecUnspec]) -> bool {
    let inet6 = families.iter().filter_map(|f| match f {
        AfSpecUnspec::Inet6(attributes) => Some(attributes),
        _ => None,
    });
    inet6.flatten().any(|a| matches!(a, AfSpecInet6::AddrGenMode(mode) if *mode != In6AddrGenMode::None))
}

/// The address that a message describes.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point interface `Address` is the peer's.
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            _ => {}
        }
    }
    Some(Address { ifindex: IfIndex(message.header.index), ip: ip?, prefix: message.header.prefix_len })
}

/// Whether an address goes by itself unless its lifetime is renewed.
pub(super) fn is_passing(message: &AddressMessage) -> bool {
    !message.header.flags.contains(AddressHeaderFlags::Permanent)
}

/// Destination of a route of any table.
pub(super) fn destination(message: &RouteMessage) -> Option<IpNetwork> {
    let mut to = match message.header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(address) = attribute {
            to = ip(address)?;
        }
    }
    IpNetwork::new(to, message.header.destination_prefix_length).ok()
}

/// The route that a message describes, if it is one of those that [`Tables`](super::Tables) keeps.
pub(super) fn route(message: &RouteMessage) -> Option<RouteEntry> {
    let mut table = u32::from(message.header.table);
    let ours = message.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
    let to = destination(message)?;
    let mut route = RouteEntry { to, priority: 0, oif: None, legs: vec![], via: None, src: None, ours };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Oif(index) => route.oif = Some(IfIndex(*index)),
            RouteAttribute::MultiPath(hops) => {
                route.legs = hops.iter().map(|hop| IfIndex(hop.interface_index)).collect();
            }
            RouteAttribute::Priority(priority) => route.priority = *priority,
            RouteAttribute::PrefSource(address) => route.src = ip(address),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => route.via = gateway(attribute),
            _ => {}
        }
    }
    let unicast =
        message.header.kind == RouteType::Unicast && !message.header.flags.contains(RouteFlags::Cloned);
    // As flannel makes one; routing daemons, which make many, have protocol numbers of their own.
    let by_hand = message.header.protocol == RouteProtocol::Boot && route.via.is_some();
    let kept = ours || net::is_host(&to) || to.prefix() == 0 || route.is_overlays() || by_hand;
    (unicast && kept && table == u32::from(RouteHeader::RT_TABLE_MAIN)).then_some(route)
}

/// Whether the routing table's entry has one next hop that a program can use: no several ones among
/// which the kernel chooses by packet, none that encapsulates, none that leads nowhere.
pub(super) fn has_one_way(entry: &RouteMessage) -> bool {
    let one = entry.attributes.iter().any(|a| matches!(a, RouteAttribute::Oif(index) if *index != 0));
    let other = |a: &RouteAttribute| {
        matches!(a, RouteAttribute::MultiPath(_) | RouteAttribute::EncapType(_) | RouteAttribute::Encap(_))
    };
    one && entry.header.kind == RouteType::Unicast && !entry.attributes.iter().any(other)
}

/// The next hop towards `vtep` in the answer to a route query; `None` for one that cannot be used.
pub(super) fn next_hop(message: &RouteMessage, vtep: IpAddr) -> Option<NextHop> {
    let mut hop = NextHop::new(IfIndex(0), vtep);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.ifindex = IfIndex(*index),
            RouteAttribute::PrefSource(address) => hop.source = ip(address),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => hop.neighbour = gateway(attribute)?,
            RouteAttribute::Metrics(metrics) => {
                hop.mtu = metrics.iter().find_map(mtu);
                hop.mtu_locked =
                    metrics.iter().any(|m| matches!(m, RouteMetric::Lock(locked) if locked & MTU_LOCK != 0));
                hop.hop_limit = metrics.iter().find_map(hop_limit);
            }
            _ => {}
        }
    }
    let dead = message.header.flags.intersects(RouteFlags::Dead | RouteFlags::Linkdown);
    (has_one_way(message) && !dead).then_some(hop)
}

/// Bit of the MTU in `RTAX_LOCK` (`RTAX_MTU` of `linux/rtnetlink.h`).
const MTU_LOCK: u32 = 1 << 2;

fn hop_limit(metric: &RouteMetric) -> Option<u8> {
    match metric {
        RouteMetric::Hoplimit(limit) => u8::try_from(*limit).ok().filter(|limit| *limit != 0),
        _ => None,
    }
}

fn mtu(metric: &RouteMetric) -> Option<Mtu> {
    match metric {
        RouteMetric::Mtu(mtu) if *mtu != 0 => Some(Mtu(*mtu)),
        _ => None,
    }
}

pub(super) fn gateway(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

pub(super) fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The neighbour that a message is about, and what is known of it: nothing while it is being
/// resolved and after that failed.
pub(super) fn neighbour(message: &NeighbourMessage) -> Option<((IfIndex, IpAddr), Option<Neighbour>)> {
    let (mut to, mut mac, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => to = neighbour_ip(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_bytes(bytes),
            NeighbourAttribute::Protocol(protocol) => {
                ours = *protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
            }
            _ => {}
        }
    }
    let to = to.filter(|ip| !ip.is_multicast() && !message.header.flags.contains(NeighbourFlags::Proxy))?;
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    let known = matches!(message.header.state, Reachable | Stale | Delay | Probe | Noarp | Permanent);
    let permanent = message.header.state == Permanent;
    // The kernel asks nobody whether those are still there.
    let lasting = matches!(message.header.state, Noarp | Permanent)
        || message.header.flags.contains(NeighbourFlags::ExtLearned);
    let neighbour = mac.filter(|mac| known && mac.is_station());
    let neighbour = neighbour.map(|mac| Neighbour { mac, permanent, lasting, ours });
    Some(((IfIndex(message.header.ifindex), to), neighbour))
}

fn neighbour_ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some(IpAddr::V4(*address)),
        NeighbourAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        // A forwarding entry's VTEP, whose family is told by its length only.
        NeighbourAddress::Other(bytes) => match bytes.as_slice() {
            v4 if v4.len() == 4 => <[u8; 4]>::try_from(v4).ok().map(IpAddr::from),
            v6 => <[u8; 16]>::try_from(v6).ok().map(IpAddr::from),
        },
        _ => None,
    }
}

/// A forwarding entry, of a bridge or of a vxlan device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fdb {
    Bridge((IfIndex, Mac, Vlan), FdbEntry),
    Remote((IfIndex, Mac), Remote),
    Flood(Flood),
}

/// `NUD_NOARP`, `NUD_PERMANENT`.
const STATIC: u16 = 0x40 | 0x80;
/// `NDA_NH_ID` of `linux/neighbour.h`.
const NEXT_HOP: u16 = 13;

/// The forwarding entry that a message describes; none for groups, nor for what a device without
/// forwarding entries filters by.
pub(super) fn fdb(message: &NeighbourMessage) -> Option<Fdb> {
    let port = IfIndex(message.header.ifindex);
    let flags = message.header.flags;
    let lasting = u16::from(message.header.state) & STATIC != 0 || flags.contains(NeighbourFlags::ExtLearned);
    let (mut mac, mut vlan, mut master, mut locked) = (None, 0, None, false);
    let mut remote = Remote { vtep: None, plain: true, ages: !lasting };
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_bytes(bytes),
            NeighbourAttribute::Vlan(id) => vlan = *id,
            NeighbourAttribute::Controller(bridge) => master = Some(IfIndex(*bridge)),
            NeighbourAttribute::ExtFlags(flags) => locked = flags.contains(NeighbourExtFlags::Locked),
            NeighbourAttribute::Destination(address) => remote.vtep = neighbour_ip(address),
            // The kernel writes them where they are not the device's own (`vxlan_fdb_info`, v6.18).
            NeighbourAttribute::Port(_)
            | NeighbourAttribute::Vni(_)
            | NeighbourAttribute::SourceVni(_)
            | NeighbourAttribute::IfIndex(_) => remote.plain = false,
            NeighbourAttribute::Other(other) if other.kind() == NEXT_HOP => remote.plain = false,
            _ => {}
        }
    }
    let mac = mac?;
    match (master, remote.vtep) {
        (Some(bridge), _) => mac.is_station().then(|| {
            let permanent = message.header.state == NeighbourState::Permanent;
            let sticky = flags.contains(NeighbourFlags::Sticky);
            Fdb::Bridge((bridge, mac, vlan), FdbEntry { port, permanent, ages: !lasting, sticky, locked })
        }),
        (None, Some(vtep)) if mac == Mac::default() => {
            Some(Fdb::Flood(Flood { device: port, vtep, plain: remote.plain }))
        }
        (None, vtep) => {
            let tunnels = vtep.is_some() || !remote.plain;
            (tunnels && mac.is_station()).then_some(Fdb::Remote((port, mac), remote))
        }
    }
}

/// Whether a neighbour message is about a forwarding entry.
pub(super) fn is_fdb(message: &NeighbourMessage) -> bool {
    message.header.family == AddressFamily::Bridge
}
