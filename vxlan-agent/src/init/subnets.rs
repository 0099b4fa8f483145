//! Which subnets are free: those that the machine has no address in and no route to.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::kernel::Tables;
use crate::net::overlap;

/// Default routes, and the two halves that a VPN makes of one: they lead everywhere, and say nothing of what is there.
const EVERYWHERE: u8 = 1;

/// Prefixes that `tables` have addresses in or routes to, in all routing tables.
pub(super) fn taken(tables: &Tables) -> Vec<IpNetwork> {
    let addresses = tables.addresses.iter().filter_map(|a| IpNetwork::new(a.ip, a.prefix).ok());
    let routes = tables.routes.iter().map(|route| route.to).chain(tables.paths.iter().map(|path| path.to));
    let all = addresses.chain(routes).filter(|prefix| prefix.prefix() > EVERYWHERE);
    let networks = all.filter_map(|prefix| IpNetwork::new(prefix.network(), prefix.prefix()).ok());
    networks.collect::<BTreeSet<_>>().into_iter().collect()
}

/// Subnets for the node with this VTEP address. Its last part tells nodes apart, so that nodes of one LAN are unlikely to
/// propose the same.
pub(super) fn of_node(vtep: IpAddr, with_ipv6: bool, taken: &[IpNetwork]) -> Vec<IpNetwork> {
    let v4 = free_v4(taken).and_then(|[a, b]| prefix([a, b, last_byte(vtep), 0].into(), 24));
    let v6 = free_v6(with_ipv6, taken)
        .and_then(|[a, b]| prefix(Ipv6Addr::new(a, b, last_group(vtep), 0, 0, 0, 0, 0).into(), 64));
    v4.into_iter().chain(v6).collect()
}

/// Addresses, with the prefix length of the segment, for the node with this VTEP address.
pub(super) fn on_segment(vtep: IpAddr, with_ipv6: bool, taken: &[IpNetwork]) -> Vec<IpNetwork> {
    // Neither the segment itself nor its broadcast address.
    let host = last_byte(vtep).clamp(1, 254);
    let v4 = free_v4(taken).and_then(|[a, b]| prefix(Ipv4Addr::from([a, b, 0, host]).into(), 24));
    let v6 = free_v6(with_ipv6, taken)
        .and_then(|[a, b]| prefix(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, last_group(vtep).max(1)).into(), 64));
    v4.into_iter().chain(v6).collect()
}

/// The first two bytes of a private /16 that is free (RFC 1918), that of the examples first.
fn free_v4(taken: &[IpNetwork]) -> Option<[u8; 2]> {
    let usual = (244..=254).chain(1..244).map(|second| [10, second]);
    let others = (16..32).map(|second| [172, second]).chain([[192, 168]]);
    usual.chain(others).find(|[a, b]| is_free(prefix([*a, *b, 0, 0].into(), 16), taken))
}

/// The first two groups of a unique local /32 that is free (RFC 4193), that of the examples first.
fn free_v6(wanted: bool, taken: &[IpNetwork]) -> Option<[u16; 2]> {
    let all = (0x244..0x300).filter(|_| wanted).map(|second| [0xfd00, second]);
    let whole = |[a, b]: [u16; 2]| prefix(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0).into(), 32);
    all.into_iter().find(|groups| is_free(whole(*groups), taken))
}

fn is_free(wanted: Option<IpNetwork>, taken: &[IpNetwork]) -> bool {
    wanted.is_some_and(|wanted| !taken.iter().any(|taken| overlap(&wanted, taken)))
}

fn prefix(ip: IpAddr, length: u8) -> Option<IpNetwork> {
    IpNetwork::new(ip, length).ok()
}

fn last_group(ip: IpAddr) -> u16 {
    match ip {
        IpAddr::V4(_) => u16::from(last_byte(ip)),
        IpAddr::V6(ip) => ip.segments()[7],
    }
}

fn last_byte(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    }
}
