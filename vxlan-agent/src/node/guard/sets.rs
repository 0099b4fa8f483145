//! What the guard's rules look packets up in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Guard, network};
use crate::kernel::nft::set::{Element, Field, Set};
use crate::node::packet::{V4, V6, Version};

/// Sets by name.
pub(crate) type Sets = BTreeMap<String, Set>;

/// UDP ports.
pub(crate) const PORTS: &str = "ports";
/// Networks, those that are bridged, and those of which this node's addresses are known.
pub(super) const NETWORKS: &str = "networks";
pub(super) const BRIDGED: &str = "bridged";
pub(super) const KNOWN4: &str = "known4";
pub(super) const KNOWN6: &str = "known6";

/// Of `outer`: whose addresses of this node are known, those addresses, other nodes' VTEPs by network and by port.
pub(super) const fn known(outer: Version) -> &'static str {
    if outer.is_ipv4() { KNOWN4 } else { KNOWN6 }
}

pub(super) const fn own(outer: Version) -> &'static str {
    if outer.is_ipv4() { "own4" } else { "own6" }
}

pub(super) const fn vteps(outer: Version) -> &'static str {
    if outer.is_ipv4() { "vteps4" } else { "vteps6" }
}

pub(super) const fn nodes(outer: Version) -> &'static str {
    if outer.is_ipv4() { "nodes4" } else { "nodes6" }
}

/// What the names of sets begin with whose last address is a subnet's; its prefix length follows.
pub(super) const fn sources(outer: Version, inner: Version) -> &'static str {
    match (outer.is_ipv4(), inner.is_ipv4()) {
        (true, true) => "sources44/",
        (true, false) => "sources46/",
        (false, true) => "sources64/",
        (false, false) => "sources66/",
    }
}

pub(super) const fn pods(version: Version) -> &'static str {
    if version.is_ipv4() { "pods4/" } else { "pods6/" }
}

/// The prefix lengths for which there are `sets` whose names begin with `prefix`, the shortest first.
pub(super) fn lengths(sets: &Sets, prefix: &str) -> BTreeSet<u8> {
    sets.keys().filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect()
}

/// Whether elements of the set `name` do not say which network they are of.
pub(crate) fn is_mixed(name: &str) -> bool {
    ["nodes", "pods"].iter().any(|prefix| name.starts_with(prefix))
}

/// What the keys of the set `name` consist of, if there is one that is called so.
pub(crate) fn fields(name: &str) -> Option<Vec<Field>> {
    let (base, length) = name.split_once('/').unwrap_or((name, ""));
    let field = |version: char| if version == '4' { Field::Ipv4 } else { Field::Ipv6 };
    let versions: Vec<Field> =
        base.chars().filter(|version| ['4', '6'].contains(version)).map(field).collect();
    let (of_network, of_port) = (vec![Field::Vni, Field::Port], vec![Field::Port]);
    let begin = match base.trim_end_matches(['4', '6']) {
        PORTS => of_port,
        NETWORKS | BRIDGED => of_network,
        "known" => return Some(of_network),
        "own" | "vteps" => of_network,
        "nodes" => of_port,
        "sources" if length.parse::<u8>().is_ok() => of_network,
        "pods" if length.parse::<u8>().is_ok() => vec![],
        _ => return None,
    };
    Some(begin.into_iter().chain(versions).collect())
}

/// The sets for `guards`. Those with a prefix length are there as far as somebody has such a subnet.
pub(crate) fn sets<'g>(guards: impl Iterator<Item = &'g Guard>) -> Sets {
    let mut all = Collected::default();
    for name in [PORTS, NETWORKS, BRIDGED] {
        all.set(name);
    }
    for version in [V4, V6] {
        [known, own, vteps, nodes].iter().for_each(|name| _ = all.set(name(version)));
    }
    guards.for_each(|guard| all.add_guard(guard));
    all.0
}

/// Adds those of the sets that were `found` whose names have a prefix length, without what they hold.
pub(crate) fn keep_lengths(sets: &mut Sets, found: &Sets) {
    for name in found.keys().filter(|name| name.contains('/')) {
        if let Some(fields) = fields(name) {
            sets.entry(name.clone()).or_insert_with(|| Set { fields, elements: BTreeSet::new() });
        }
    }
}

#[derive(Default)]
struct Collected(Sets);

impl Collected {
    fn set(&mut self, name: &str) -> &mut BTreeSet<Element> {
        let new = || Set { fields: fields(name).unwrap_or_default(), elements: BTreeSet::new() };
        &mut self.0.entry(name.to_owned()).or_insert_with(new).elements
    }

    fn add(&mut self, name: &str, element: Element) {
        self.set(name).insert(element);
    }

    fn add_guard(&mut self, guard: &Guard) {
        let port = Element::default().port(guard.port);
        let network = network(guard.vni, guard.port);
        self.add(PORTS, port.clone());
        self.add(NETWORKS, network.clone());
        if guard.bridged {
            self.add(BRIDGED, network.clone());
        }
        for ip in &guard.own {
            self.add(known(Version::of_address(*ip)), network.clone());
            self.add(own(Version::of_address(*ip)), network.clone().address(*ip));
        }
        let nodes_of_all: BTreeSet<IpAddr> = guard.sources.iter().map(|(vtep, _)| *vtep).collect();
        for vtep in nodes_of_all {
            self.add(vteps(Version::of_address(vtep)), network.clone().address(vtep));
            self.add(nodes(Version::of_address(vtep)), port.clone().address(vtep));
        }
        for (vtep, source) in guard.sources.iter().filter(|_| !guard.bridged) {
            let prefix = sources(Version::of_address(*vtep), Version::of(source));
            self.add(&subnet_set(prefix, source), network.clone().address(*vtep).address(source.network()));
        }
        for subnet in &guard.pods {
            let name = subnet_set(pods(Version::of(subnet)), subnet);
            self.add(&name, Element::default().address(subnet.network()));
        }
    }
}

fn subnet_set(prefix: &str, subnet: &IpNetwork) -> String {
    format!("{prefix}{}", subnet.prefix())
}
