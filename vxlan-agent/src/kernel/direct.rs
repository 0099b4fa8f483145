//! Routes past the tunnel that flannel leaves behind with `DirectRouting`: to the subnet of a node on
//! the same link by way of its underlay address, in the main table, as `ip route add` would make
//! them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::state::DirectRoute;
use super::tables::{RouteEntry, Tables};
use crate::net::IfIndex;

/// IPv6 gives a route this metric where none is asked for.
const DEFAULT_METRIC6: u32 = 1024;

/// Which routes to look for.
#[derive(Clone, Copy, Debug)]
pub struct DirectSearch<'a> {
    /// Subnets of the other nodes: flannel replaces any route to them, and so do we.
    pub remote: &'a [IpNetwork],
    /// The node's own subnets, which say how long a node's prefix is.
    pub own: &'a [IpNetwork],
    /// Networks of all pods of the cluster; empty: routes to nodes that are gone are not looked for.
    pub networks: &'a [IpNetwork],
    /// The interface that routes to nodes that are gone lead through.
    pub underlay: IfIndex,
}

impl DirectSearch<'_> {
    /// Finds them.
    pub fn run(&self, tables: &Tables) -> BTreeMap<IpNetwork, DirectRoute> {
        let as_flannel = tables.routes.iter().filter_map(|route| Some((route, direct(tables, route)?)));
        let found = as_flannel.filter(|(route, _)| self.is_node_s(route) || self.is_gone_node_s(route));
        found.map(|(route, direct)| (route.to, direct)).collect()
    }

    fn is_node_s(&self, route: &RouteEntry) -> bool {
        self.remote.contains(&route.to)
    }

    fn is_gone_node_s(&self, route: &RouteEntry) -> bool {
        let RouteEntry { to, oif, .. } = *route;
        let like_a_node = |own: &IpNetwork| own.is_ipv4() == to.is_ipv4() && own.prefix() == to.prefix();
        let inside = |network: &IpNetwork| network.prefix() <= to.prefix() && network.contains(to.network());
        oif == Some(self.underlay)
            && self.own.iter().any(like_a_node)
            && !self.own.contains(&to)
            && self.networks.iter().any(inside)
    }
}

/// As flannel makes one: by way of an address on the link, with the usual metric and no source.
fn direct(tables: &Tables, route: &RouteEntry) -> Option<DirectRoute> {
    let (oif, via) = (route.oif?, route.via?);
    let usual = if via.is_ipv4() { route.priority == 0 } else { route.priority == DEFAULT_METRIC6 };
    let as_flannel = usual && !route.ours && route.src.is_none() && !route.is_overlays();
    (as_flannel && is_on_link(tables, oif, via)).then_some(DirectRoute { via, oif })
}

fn is_on_link(tables: &Tables, oif: IfIndex, via: IpAddr) -> bool {
    let mut addresses = tables.addresses_of(oif).filter_map(|a| IpNetwork::new(a.ip, a.prefix).ok());
    addresses.any(|network| network.contains(via))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Address;

    fn net(text: &str) -> IpNetwork {
        text.parse().expect("a network")
    }

    fn route(to: &str, via: &str, oif: u32) -> RouteEntry {
        let via = via.parse().ok();
        let to = net(to);
        let priority = if to.is_ipv4() { 0 } else { DEFAULT_METRIC6 };
        RouteEntry { to, priority, oif: Some(IfIndex(oif)), via, src: None, ours: false, legs: vec![] }
    }

    fn found(route: RouteEntry, networks: &[IpNetwork]) -> bool {
        let address = |ip: &str, prefix| Address { ifindex: IfIndex(2), ip: ip.parse().expect("IP"), prefix };
        let mut tables = Tables::default();
        tables.addresses.extend([address("192.0.2.1", 24), address("2001:db8::1", 64)]);
        tables.addresses.insert(Address { ifindex: IfIndex(3), ..address("198.51.100.1", 24) });
        tables.routes.insert(route);
        let remote = [net("10.244.2.0/24"), net("fd00:244:2::/64")];
        let own = [net("10.244.1.0/24"), net("fd00:244:1::/64")];
        let search = DirectSearch { remote: &remote, own: &own, networks, underlay: IfIndex(2) };
        !search.run(&tables).is_empty()
    }

    #[test]
    fn a_route_to_a_node_s_subnet_by_way_of_an_address_on_the_link_is_flannel_s() {
        assert!(found(route("10.244.2.0/24", "192.0.2.2", 2), &[]));
        assert!(found(route("fd00:244:2::/64", "2001:db8::2", 2), &[]));
        assert!(found(route("10.244.2.0/24", "192.0.2.9", 2), &[]), "the node has another address by now");
        assert!(found(route("10.244.2.0/24", "198.51.100.2", 3), &[]), "another interface");
    }

    #[test]
    fn what_flannel_would_not_have_made_is_left_alone() {
        let right = || route("10.244.2.0/24", "192.0.2.2", 2);
        for (what, wrong) in [
            ("our own", RouteEntry { ours: true, ..right() }),
            ("another metric", RouteEntry { priority: 50, ..right() }),
            ("a source", RouteEntry { src: Some([192, 0, 2, 1].into()), ..right() }),
            ("no gateway", RouteEntry { via: None, ..right() }),
            ("a gateway that is not on the link", route("10.244.2.0/24", "203.0.113.1", 2)),
            ("a part of the subnet", route("10.244.2.0/25", "192.0.2.2", 2)),
            ("the overlay's", route("10.244.2.0/24", "10.244.2.0", 2)),
        ] {
            assert!(!found(wrong, &[net("10.244.0.0/16")]), "{what}");
        }
    }

    #[test]
    fn routes_to_nodes_that_are_gone_are_found_where_the_cluster_s_networks_are_known() {
        let networks = [net("10.244.0.0/16"), net("fd00:244::/48")];
        let gone = || route("10.244.40.0/24", "192.0.2.40", 2);
        assert!(found(gone(), &networks) && !found(gone(), &[]));
        assert!(found(route("fd00:244:0:40::/64", "2001:db8::40", 2), &networks));
        for (what, other) in [
            ("outside the cluster", route("10.99.0.0/24", "192.0.2.40", 2)),
            ("no node's length", route("10.244.40.0/25", "192.0.2.40", 2)),
            ("the node's own", route("10.244.1.0/24", "192.0.2.40", 2)),
            ("another interface", route("10.244.40.0/24", "198.51.100.40", 3)),
        ] {
            assert!(!found(other, &networks), "{what}");
        }
    }
}
