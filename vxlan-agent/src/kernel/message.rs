//! Netlink requests, as values: what is sent for each change.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVxlan, LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage, VxlanDf,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::RuleMessage;
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::ask::Routed;
use super::headers::{DontFragment, Field, Headers, TOS_INHERIT};
use super::state::{Device, DirectRoute, Headroom, OwnBridge, Route};
use crate::net::{IfIndex, Mac, Vni, full_length};
use crate::ownership::{HEADROOM_MAC, HEADROOM_PORT, ROUTE_PROTOCOL, headroom_name};

/// A request and its flags beyond `NLM_F_REQUEST | NLM_F_ACK`.
pub(super) type Request = (RouteNetlinkMessage, u16);

const CREATE_NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
const CREATE_OR_REPLACE: u16 = NLM_F_CREATE | NLM_F_REPLACE;

fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn new_vxlan(name: String, mac: Mac, mtu: u32, parameters: Vec<InfoVxlan>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name),
        LinkAttribute::Address(mac.0.to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(InfoData::Vxlan(parameters)),
        ]),
    ];
    message
}

/// Creates a vxlan device, down and without alias: the kernel takes neither in one go.
pub(super) fn create_device(device: &Device) -> Request {
    let local = match device.local {
        IpAddr::V4(ip) => InfoVxlan::Local(ip),
        IpAddr::V6(ip) => InfoVxlan::Local6(ip),
    };
    let segment = device.segment.as_ref();
    let mut parameters = vec![
        InfoVxlan::Id(device.vni.map_or(0, Vni::get)),
        InfoVxlan::Link(device.underlay.0),
        local,
        InfoVxlan::Port(device.port),
        InfoVxlan::Learning(segment.is_some_and(|segment| segment.learning)),
    ];
    parameters.extend(fixed_headers(&device.headers, device.local.is_ipv6()));
    parameters.extend(headers(&device.headers));
    parameters.extend(segment.and_then(|segment| segment.group).map(|group| match group {
        IpAddr::V4(ip) => InfoVxlan::Group(ip),
        IpAddr::V6(ip) => InfoVxlan::Group6(ip),
    }));
    let message = new_vxlan(device.name.clone(), device.mac, device.mtu.0, parameters);
    (RouteNetlinkMessage::NewLink(message), CREATE_NEW)
}

/// How a device makes outer headers, as far as that cannot change later. The kernel's own choice is checksums.
fn fixed_headers(headers: &Headers, v6: bool) -> Vec<InfoVxlan> {
    let mut parameters = match (headers.checksum, v6) {
        (true, _) => vec![],
        (false, false) => vec![InfoVxlan::UDPCsum(false)],
        (false, true) => vec![InfoVxlan::UDPZeroCsumTX(true), InfoVxlan::UDPZeroCsumRX(true)],
    };
    parameters.extend((headers.ttl == Field::Inherit).then_some(InfoVxlan::TtlInheritFlag));
    parameters
}

/// How it makes them otherwise.
fn headers(headers: &Headers) -> [InfoVxlan; 3] {
    [
        InfoVxlan::Ttl(match headers.ttl {
            Field::Fixed(ttl) => ttl,
            Field::Inherit => 0,
        }),
        InfoVxlan::Tos(match headers.tos {
            Field::Fixed(tos) => tos,
            Field::Inherit => TOS_INHERIT,
        }),
        InfoVxlan::Df(match headers.df {
            DontFragment::Unset => VxlanDf::Unset,
            DontFragment::Set => VxlanDf::Set,
            DontFragment::Inherit => VxlanDf::Inherit,
        }),
    ]
}

/// Sets how a device makes outer headers, as far as that can change.
pub(super) fn set_headers(index: IfIndex, wanted: &Headers) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index.0;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(headers(wanted).into())),
    ])];
    (RouteNetlinkMessage::NewLink(message), 0)
}

/// The VNI of the head-room device of `bridge`: any that no other such device has.
pub(super) const fn headroom_vni(bridge: IfIndex) -> u32 {
    bridge.0 & 0xff_ffff
}

/// Creates the head-room device of `bridge` as one of its ports.
pub(super) fn create_headroom(bridge: IfIndex, headroom: &Headroom) -> Request {
    let parameters =
        vec![InfoVxlan::Id(headroom_vni(bridge)), InfoVxlan::Port(HEADROOM_PORT), InfoVxlan::Learning(false)];
    let mut message = new_vxlan(headroom_name(bridge), HEADROOM_MAC, headroom.mtu.0, parameters);
    message.attributes.push(LinkAttribute::Controller(bridge.0));
    (RouteNetlinkMessage::NewLink(message), CREATE_NEW)
}

fn set_link(index: IfIndex, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index.0;
    message.attributes = attributes;
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Creates a bridge, down and without alias. Its MTU has to be set later, or it follows its ports'.
pub(super) fn create_bridge(name: &str, bridge: &OwnBridge) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(bridge.mac.0.to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    (RouteNetlinkMessage::NewLink(message), CREATE_NEW)
}

/// Makes an interface a port of a bridge; of none, if that is `None`.
pub(super) fn set_master(index: IfIndex, bridge: Option<IfIndex>) -> Request {
    set_link(index, vec![LinkAttribute::Controller(bridge.unwrap_or_default().0)])
}

/// Has a bridge answer ARP and neighbour solicitations for what is behind its port `index`, or not.
pub(super) fn set_suppress(index: IfIndex, on: bool) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index.0;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::NeighSupress(on)])),
    ])];
    (RouteNetlinkMessage::NewLink(message), 0)
}

/// Marks an interface as ours.
pub(super) fn set_alias(index: IfIndex, alias: &str) -> Request {
    set_link(index, vec![LinkAttribute::IfAlias(alias.to_owned())])
}

/// Sets the MTU of an interface.
pub(super) fn set_mtu(index: IfIndex, mtu: u32) -> Request {
    set_link(index, vec![LinkAttribute::Mtu(mtu)])
}

/// Sets the MAC of an interface.
pub(super) fn set_mac(index: IfIndex, mac: Mac) -> Request {
    set_link(index, vec![LinkAttribute::Address(mac.0.to_vec())])
}

/// Keeps the kernel from making up IPv6 addresses on an interface.
pub(super) fn set_no_made_up_addresses(index: IfIndex) -> Request {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    set_link(index, vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])])])
}

/// Brings an interface up.
pub(super) fn set_up(index: IfIndex) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index.0;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// Deletes an interface.
pub(super) fn delete_link(index: IfIndex) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index.0;
    (RouteNetlinkMessage::DelLink(message), 0)
}

/// Asks for the interface `index`.
pub(super) fn link_at(index: IfIndex) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index.0;
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    (RouteNetlinkMessage::GetLink(message), 0)
}

/// Asks for all interfaces, as a dump.
pub(super) fn links() -> RouteNetlinkMessage {
    let mut message = LinkMessage::default();
    message.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    RouteNetlinkMessage::GetLink(message)
}

/// Asks for the interface called `name`.
pub(super) fn link_named(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes =
        vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    (RouteNetlinkMessage::GetLink(message), 0)
}

fn address(device: IfIndex, ip: IpAddr) -> AddressMessage {
    address_in(device, ip, full_length(ip))
}

fn address_in(device: IfIndex, ip: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = device.0;
    // Duplicate detection would leave the address unusable for a second, and its routes refused.
    if ip.is_ipv6() {
        message.header.flags = AddressHeaderFlags::Nodad;
    }
    message.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    message
}

/// Adds a single address.
pub(super) fn add_address(device: IfIndex, ip: IpAddr) -> Request {
    (RouteNetlinkMessage::NewAddress(address(device, ip)), CREATE_OR_REPLACE)
}

/// Adds an address with the prefix that is on its link.
pub(super) fn add_network_address(device: IfIndex, address: IpNetwork) -> Request {
    let message = address_in(device, address.ip(), address.prefix());
    (RouteNetlinkMessage::NewAddress(message), CREATE_OR_REPLACE)
}

/// Removes such an address.
pub(super) fn remove_network_address(device: IfIndex, address: IpNetwork) -> Request {
    (RouteNetlinkMessage::DelAddress(address_in(device, address.ip(), address.prefix())), 0)
}

/// Removes a single address.
pub(super) fn remove_address(device: IfIndex, ip: IpAddr) -> Request {
    (RouteNetlinkMessage::DelAddress(address(device, ip)), 0)
}

fn neighbour(device: IfIndex, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = device.0;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![NeighbourAttribute::Destination(NeighbourAddress::from(ip))];
    message
}

/// Puts a permanent neighbour.
pub(super) fn put_neighbour(device: IfIndex, ip: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour(device, ip);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    (RouteNetlinkMessage::NewNeighbour(message), CREATE_OR_REPLACE)
}

/// Puts a permanent neighbour with our protocol number (`NDA_PROTOCOL`, Linux 5.0), where others have theirs.
pub(super) fn put_marked_neighbour(device: IfIndex, ip: IpAddr, mac: Mac) -> Request {
    let mut message = neighbour(device, ip);
    message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.0.to_vec()));
    message.attributes.push(NeighbourAttribute::Protocol(RouteProtocol::Other(ROUTE_PROTOCOL)));
    (RouteNetlinkMessage::NewNeighbour(message), CREATE_OR_REPLACE)
}

/// Removes a neighbour.
pub(super) fn remove_neighbour(device: IfIndex, ip: IpAddr) -> Request {
    (RouteNetlinkMessage::DelNeighbour(neighbour(device, ip)), 0)
}

fn fdb(device: IfIndex, mac: Mac) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = device.0;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.to_vec())];
    message
}

/// Puts a permanent forwarding entry of a vxlan device.
pub(super) fn put_fdb(device: IfIndex, mac: Mac, vtep: IpAddr) -> Request {
    let mut message = fdb(device, mac);
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(vtep)));
    (RouteNetlinkMessage::NewNeighbour(message), CREATE_OR_REPLACE)
}

/// Removes a forwarding entry of a vxlan device.
pub(super) fn remove_fdb(device: IfIndex, mac: Mac) -> Request {
    (RouteNetlinkMessage::DelNeighbour(fdb(device, mac)), 0)
}

/// A station's entry: it does not age, and a learnt one takes its place when the station moves.
fn station(device: IfIndex, mac: Mac, side: NeighbourFlags) -> NeighbourMessage {
    let mut message = fdb(device, mac);
    message.header.state = NeighbourState::Reachable;
    message.header.flags = side | NeighbourFlags::ExtLearned;
    message
}

/// Puts a station behind a VTEP: the vxlan device's entry and that of its bridge.
pub(super) fn put_station(device: IfIndex, mac: Mac, vtep: IpAddr) -> [Request; 2] {
    let mut own = station(device, mac, NeighbourFlags::Own);
    own.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(vtep)));
    let bridges = station(device, mac, NeighbourFlags::Controller);
    [own, bridges].map(|entry| (RouteNetlinkMessage::NewNeighbour(entry), CREATE_OR_REPLACE))
}

/// Removes a station; the bridge's entry first, which leads to the other.
pub(super) fn remove_station(device: IfIndex, mac: Mac) -> [Request; 2] {
    let sides = [NeighbourFlags::Controller, NeighbourFlags::Own];
    sides.map(|side| (RouteNetlinkMessage::DelNeighbour(station(device, mac, side)), 0))
}

fn flood(device: IfIndex, vtep: IpAddr) -> NeighbourMessage {
    let mut message = fdb(device, Mac::default());
    message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::from(vtep)));
    message
}

/// Adds a VTEP to those who get what no forwarding entry knows.
pub(super) fn add_flood(device: IfIndex, vtep: IpAddr) -> Request {
    (RouteNetlinkMessage::NewNeighbour(flood(device, vtep)), NLM_F_CREATE | NLM_F_APPEND)
}

/// Removes a VTEP from them.
pub(super) fn remove_flood(device: IfIndex, vtep: IpAddr) -> Request {
    (RouteNetlinkMessage::DelNeighbour(flood(device, vtep)), 0)
}

fn route(device: IfIndex, to: IpNetwork) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(to.ip());
    message.header.destination_prefix_length = to.prefix();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(route_address(to.network())), RouteAttribute::Oif(device.0)];
    message
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

/// On-link, also past the device: the kernel has said that the gateway is.
fn full_route(device: IfIndex, to: IpNetwork, how: &Route) -> RouteNetlinkMessage {
    let mut message = route(how.past.unwrap_or(device), to);
    message.header.scope = RouteScope::Universe;
    message.header.flags = RouteFlags::Onlink;
    message.attributes.push(RouteAttribute::Gateway(route_address(how.via)));
    message.attributes.extend(how.src.map(|src| RouteAttribute::PrefSource(route_address(src))));
    RouteNetlinkMessage::NewRoute(message)
}

/// Adds a route; refused where there is one to the same prefix, because that is not ours.
pub(super) fn add_route(device: IfIndex, to: IpNetwork, how: &Route) -> Request {
    (full_route(device, to, how), CREATE_NEW)
}

/// Replaces a route of ours.
pub(super) fn replace_route(device: IfIndex, to: IpNetwork, how: &Route) -> Request {
    (full_route(device, to, how), CREATE_OR_REPLACE)
}

/// Puts a route to what is on the link of our device.
pub(super) fn put_link_route(device: IfIndex, to: IpNetwork) -> Request {
    let mut message = route(device, to);
    message.header.scope = RouteScope::Link;
    (RouteNetlinkMessage::NewRoute(message), CREATE_OR_REPLACE)
}

/// Removes a route of ours past our device.
pub(super) fn remove_past_route(oif: IfIndex, to: IpNetwork, via: IpAddr) -> Request {
    let mut message = route(oif, to);
    message.header.scope = RouteScope::NoWhere;
    message.attributes.push(RouteAttribute::Gateway(route_address(via)));
    (RouteNetlinkMessage::DelRoute(message), 0)
}

/// Removes a route through our device, of ours or of the agent that had it before.
pub(super) fn remove_route(device: IfIndex, to: IpNetwork) -> Request {
    let mut message = route(device, to);
    // Any scope, any protocol number.
    message.header.scope = RouteScope::NoWhere;
    message.header.protocol = RouteProtocol::Unspec;
    (RouteNetlinkMessage::DelRoute(message), 0)
}

/// Removes a route past our device that flannel made.
pub(super) fn remove_direct_route(to: IpNetwork, how: &DirectRoute) -> Request {
    let mut message = route(how.oif, to);
    message.header.scope = RouteScope::NoWhere;
    message.header.protocol = RouteProtocol::Boot;
    message.attributes.push(RouteAttribute::Gateway(route_address(how.via)));
    (RouteNetlinkMessage::DelRoute(message), 0)
}

/// How the kernel's vxlan device asks for the way to a VTEP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// Its own underlay address; the unspecified one if the kernel chooses it for each destination.
    pub source: IpAddr,
    /// The VRF that the underlay is in, if any; the device below does not bind the route.
    pub vrf: Option<IfIndex>,
    /// The tunnel's UDP port.
    pub port: u16,
    /// The TOS of all its packets; 0, too, if they have different ones.
    pub tos: u8,
}

/// Asks for the routing table's entry that leads to `vtep`, which shows several next hops (Linux 5.3).
pub(super) fn query_route_entry(vtep: IpAddr, asked: &Asked) -> Request {
    let mut message = route_query(vtep, asked);
    message.header.flags = RouteFlags::FibMatch;
    (RouteNetlinkMessage::GetRoute(message), 0)
}

/// Asks for the route to `vtep`, which shows the MTU, learnt or not.
pub(super) fn query_route(vtep: IpAddr, asked: &Asked) -> Request {
    (RouteNetlinkMessage::GetRoute(route_query(vtep, asked)), 0)
}

/// Asks for the route to `ip`, whoever sends what.
pub(super) fn query_any_route(ip: IpAddr) -> Request {
    (RouteNetlinkMessage::GetRoute(route_to(ip)), 0)
}

/// Asks where a packet is routed.
pub(super) fn query_routing(packet: &Routed) -> Request {
    let mut message = route_to(packet.to);
    if packet.to.is_ipv4() {
        message.header.tos = packet.tos;
    }
    if let Some(from) = packet.from {
        message.header.source_prefix_length = full_length(from);
        message.attributes.push(RouteAttribute::Source(route_address(from)));
    }
    message.attributes.extend(packet.arrived_by.map(|index| RouteAttribute::Iif(index.0)));
    message.attributes.push(RouteAttribute::IpProto(packet.protocol));
    if let Some((source, destination)) = packet.ports {
        message.attributes.extend([RouteAttribute::Sport(source), RouteAttribute::Dport(destination)]);
    }
    (RouteNetlinkMessage::GetRoute(message), 0)
}

fn route_to(ip: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(ip);
    message.header.destination_prefix_length = full_length(ip);
    message.attributes = vec![RouteAttribute::Destination(route_address(ip))];
    message
}

fn route_query(vtep: IpAddr, asked: &Asked) -> RouteMessage {
    let mut message = route_to(vtep);
    message.header.tos = asked.tos;
    if !asked.source.is_unspecified() {
        message.header.source_prefix_length = full_length(vtep);
        message.attributes.push(RouteAttribute::Source(route_address(asked.source)));
    }
    message
        .attributes
        .extend([RouteAttribute::IpProto(nix::libc::IPPROTO_UDP as u8), RouteAttribute::Dport(asked.port)]);
    message.attributes.extend(asked.vrf.map(|vrf| RouteAttribute::Oif(vrf.0)));
    message
}

/// Asks for the routing rules; a kernel without them refuses.
pub(super) fn rules() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetRule(RuleMessage::default())
}

/// IPv4 and IPv6.
pub(super) const IP_FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Asks for all neighbours of a family; of bridges, for forwarding entries.
pub(super) fn neighbours(family: AddressFamily) -> RouteNetlinkMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    RouteNetlinkMessage::GetNeighbour(message)
}

/// Asks for everything that [`Tables`](super::Tables) holds, one dump each.
pub(super) fn dumps() -> [RouteNetlinkMessage; 7] {
    let routes = |family| {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        RouteNetlinkMessage::GetRoute(message)
    };
    [
        links(),
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        routes(AddressFamily::Inet),
        routes(AddressFamily::Inet6),
        neighbours(AddressFamily::Inet),
        neighbours(AddressFamily::Inet6),
        neighbours(AddressFamily::Bridge),
    ]
}
