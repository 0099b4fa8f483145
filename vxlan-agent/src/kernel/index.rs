//! Rows of [`Tables`] by what each network looks for, so that thousands of networks do not mean thousands of
//! walks through all rows.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::observed::headroom_of;
use super::tables::{Kind, Link, RouteEntry, Tables};
use crate::net::{IfIndex, full_length, is_link_local};

/// Made once for many looks at the same rows. It says nothing that the rows do not, so it does not tell tables
/// apart.
#[derive(Clone, Debug, Default)]
pub struct Index {
    names: BTreeMap<String, IfIndex>,
    aliases: BTreeMap<String, Vec<IfIndex>>,
    ports: BTreeMap<IfIndex, Vec<IfIndex>>,
    headroom: Vec<IfIndex>,
    /// Bridges of hosts that have an address there.
    bridges: Vec<IfIndex>,
    holders: BTreeMap<IpAddr, IfIndex>,
    routes: BTreeMap<IfIndex, Vec<RouteEntry>>,
    /// Routes to single addresses without a gateway.
    to_hosts: Vec<RouteEntry>,
    /// Routes of ours past vxlan devices.
    past: Vec<RouteEntry>,
}

impl PartialEq for Index {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Index {}

impl Index {
    fn of(tables: &Tables) -> Self {
        let mut index = Self::default();
        for link in tables.links.values() {
            index.names.entry(link.name.clone()).or_insert(link.index);
            if let Some(alias) = &link.alias {
                index.aliases.entry(alias.clone()).or_default().push(link.index);
            }
            if let Some(master) = link.master {
                index.ports.entry(master).or_default().push(link.index);
            }
            index.headroom.extend(headroom_of(link).map(|_| link.index));
            if has_addresses(tables, link) {
                index.bridges.push(link.index);
            }
        }
        for address in &tables.addresses {
            index.holders.entry(address.ip).or_insert(address.ifindex);
        }
        for route in &tables.routes {
            if let Some(oif) = route.oif {
                index.routes.entry(oif).or_default().push(route.clone());
            }
            if is_to_host(route) {
                index.to_hosts.push(route.clone());
            }
            if tables.is_past_tunnels(route) {
                index.past.push(route.clone());
            }
        }
        index
    }
}

/// Whether `link` is a bridge with an address of more than the link.
fn has_addresses(tables: &Tables, link: &Link) -> bool {
    link.kind == Kind::Bridge && tables.addresses_of(link.index).any(|address| !is_link_local(address.ip))
}

fn is_to_host(route: &RouteEntry) -> bool {
    route.via.is_none() && route.to.prefix() == full_length(route.to.ip())
}

impl Tables {
    /// Makes looks at these rows cheap until the next notification.
    pub fn make_index(&mut self) {
        if self.index.is_none() {
            self.index = Some(Box::new(Index::of(self)));
        }
    }

    /// The rows `indexed` if there is an index, else those of `all`.
    fn links_at<'t>(
        &'t self,
        indexed: impl Fn(&'t Index) -> Option<&'t Vec<IfIndex>>,
        all: impl Fn(&Link) -> bool + 't,
    ) -> impl Iterator<Item = &'t Link> {
        let found = self.index.as_deref().map(|index| indexed(index).map_or(&[][..], Vec::as_slice));
        let scan = self.links.values().filter(move |link| found.is_none() && all(link));
        found.unwrap_or_default().iter().filter_map(|at| self.links.get(at)).chain(scan)
    }

    /// The interface called `name`.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        match &self.index {
            Some(index) => self.links.get(index.names.get(name)?),
            None => self.links.values().find(|link| link.name == name),
        }
    }

    /// Interfaces with this alias.
    pub fn links_with_alias<'t>(&'t self, alias: &'t str) -> impl Iterator<Item = &'t Link> {
        self.links_at(|index| index.aliases.get(alias), move |link| link.alias.as_deref() == Some(alias))
    }

    /// Ports of `bridge`.
    pub fn ports_of(&self, bridge: IfIndex) -> impl Iterator<Item = &Link> {
        self.links_at(move |index| index.ports.get(&bridge), move |link| link.master == Some(bridge))
    }

    /// Devices that give a bridge's ports head-room.
    pub(super) fn headroom_links(&self) -> impl Iterator<Item = &Link> {
        self.links_at(|index| Some(&index.headroom), |link| headroom_of(link).is_some())
    }

    /// Bridges with an address of more than the link.
    pub fn addressed_bridges(&self) -> impl Iterator<Item = &Link> {
        self.links_at(|index| Some(&index.bridges), |link| has_addresses(self, link))
    }

    /// The interface that has the address `ip`.
    pub fn holder(&self, ip: IpAddr) -> Option<&Link> {
        let ifindex = match &self.index {
            Some(index) => index.holders.get(&ip).copied(),
            None => self.addresses.iter().find(|address| address.ip == ip).map(|address| address.ifindex),
        };
        self.links.get(&ifindex?)
    }

    /// Routes out of `oif` alone.
    pub fn routes_through(&self, oif: IfIndex) -> impl Iterator<Item = &RouteEntry> {
        let found = self.index.as_deref().map(|index| index.routes.get(&oif).map_or(&[][..], Vec::as_slice));
        let scan = self.routes.iter().filter(move |route| found.is_none() && route.oif == Some(oif));
        found.unwrap_or_default().iter().chain(scan)
    }

    fn is_past_tunnels(&self, route: &RouteEntry) -> bool {
        let tunnel = |oif| self.vxlan(oif).is_some();
        route.ours && !route.is_overlays() && route.via.is_some() && route.oif.is_some_and(|oif| !tunnel(oif))
    }

    /// Routes of ours by way of a gateway, past vxlan devices.
    pub fn routes_past_tunnels(&self) -> impl Iterator<Item = &RouteEntry> {
        let found = self.index.as_deref().map(|index| index.past.as_slice());
        let scan = self.routes.iter().filter(move |route| found.is_none() && self.is_past_tunnels(route));
        found.unwrap_or_default().iter().chain(scan)
    }

    /// Routes to single addresses without a gateway.
    pub fn routes_to_hosts(&self) -> impl Iterator<Item = &RouteEntry> {
        let found = self.index.as_deref().map(|index| index.to_hosts.as_slice());
        let scan = self.routes.iter().filter(move |route| found.is_none() && is_to_host(route));
        found.unwrap_or_default().iter().chain(scan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Address;

    fn link(index: u32, kind: Kind, master: Option<u32>) -> Link {
        let (name, alias) = (format!("if{index}"), index.is_multiple_of(2).then(|| "even".to_owned()));
        Link { index: IfIndex(index), name, alias, kind, master: master.map(IfIndex), ..Link::default() }
    }

    fn tables() -> Tables {
        let mut tables = Tables::default();
        for link in [link(1, Kind::Bridge, None), link(2, Kind::Veth, Some(1)), link(4, Kind::Bridge, None)] {
            tables.links.insert(link.index, link);
        }
        for (ifindex, ip) in [(1, "10.0.0.1"), (2, "10.0.0.1"), (4, "fe80::1")] {
            let (ip, ifindex) = (ip.parse().expect("an address"), IfIndex(ifindex));
            tables.addresses.insert(Address { ifindex, ip, prefix: 24 });
        }
        for (to, oif, via) in
            [("10.0.0.7/32", 2, ""), ("10.1.0.0/24", 2, "10.1.0.0"), ("10.2.0.0/24", 4, "192.0.2.2")]
        {
            tables.routes.insert(RouteEntry {
                to: to.parse().expect("a network"),
                priority: 0,
                oif: Some(IfIndex(oif)),
                legs: vec![],
                via: via.parse().ok(),
                src: None,
                ours: true,
            });
        }
        tables
    }

    #[test]
    fn what_is_found_is_the_same_with_and_without_an_index() {
        let mut tables = tables();
        let look = |tables: &Tables| {
            let links = |links: &mut dyn Iterator<Item = &Link>| links.map(|l| l.index.0).collect::<Vec<_>>();
            let found = [
                links(&mut tables.link_named("if2").into_iter()),
                links(&mut tables.links_with_alias("even")),
                links(&mut tables.ports_of(IfIndex(1))),
                links(&mut tables.headroom_links()),
                links(&mut tables.addressed_bridges()),
                links(&mut tables.holder("10.0.0.1".parse().expect("an address")).into_iter()),
            ];
            let routes = [tables.routes_to_hosts().count(), tables.routes_past_tunnels().count()];
            (found, tables.routes_through(IfIndex(2)).count(), routes)
        };
        let expected = [vec![2], vec![2, 4], vec![2], vec![], vec![1], vec![1]];
        assert_eq!(look(&tables), (expected.clone(), 2, [1, 1]));
        tables.make_index();
        assert_eq!(look(&tables), (expected, 2, [1, 1]));
    }
}
