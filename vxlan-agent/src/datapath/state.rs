//! Desired and observed content of the datapath, and the difference as an ordered list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{
    Endpoint, Key6, Kind, LinkEntry, MacKey, NAME_LEN, NO_NETWORK, Network, NetworkId, Node, Station, VniKey,
    Vtep, VtepId, name_bytes, vtep,
};

use super::sizes::Sizes;
use crate::net::IfIndex;

/// A program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// Which program.
    pub hook: Hook,
    /// Which interface.
    pub ifindex: u32,
}

/// What the maps hold and where programs are attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatapathState {
    /// What concerns all networks.
    pub node: Node,
    /// The networks' parameters.
    pub networks: BTreeMap<NetworkId, Network>,
    /// VNI and UDP port → network.
    pub vnis: BTreeMap<VniKey, NetworkId>,
    /// Inner prefix → VTEP; the node's own subnets lead to `LOCAL_VTEP`.
    pub routes: BTreeMap<(NetworkId, IpNetwork), VtepId>,
    /// Those of the routes that SUBNETS4 and SUBNETS6 have, too; see [`DatapathState::index_routes`].
    pub subnets: BTreeMap<(NetworkId, IpNetwork), VtepId>,
    /// Remote VTEPS, without `LOCAL_VTEP`.
    pub vteps: BTreeMap<VtepId, Vtep>,
    /// Underlay address → VTEP.
    pub vtep_ids: BTreeMap<Key6, VtepId>,
    /// Who has which MAC; without what programs note.
    pub stations: BTreeMap<MacKey, Station>,
    /// Local pods by address.
    pub endpoints: BTreeMap<(NetworkId, IpAddr), Endpoint>,
    /// Whose packets are behind interfaces, and what is known of the pods there.
    pub links: BTreeMap<IfIndex, LinkEntry>,
    /// Programs on interfaces.
    pub attachments: BTreeSet<Attachment>,
}

/// One step from an observed to a desired [`DatapathState`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write NODE.
    SetNode(Node),
    /// Write an entry of NETWORKS.
    PutNetwork(NetworkId, Network),
    /// Clear an entry of NETWORKS.
    DeleteNetwork(NetworkId),
    /// Write an entry of VNIS.
    PutVni(VniKey, NetworkId),
    /// Delete an entry of VNIS.
    DeleteVni(VniKey),
    /// Write an entry of VTEPS.
    PutVtep(VtepId, Vtep),
    /// Clear an entry of VTEPS.
    DeleteVtep(VtepId),
    /// Write an entry of VTEP_IDS.
    PutVtepId(Key6, VtepId),
    /// Delete an entry of VTEP_IDS.
    DeleteVtepId(Key6),
    /// Write an entry of STATIONS.
    PutStation(MacKey, Station),
    /// Delete an entry of STATIONS.
    DeleteStation(MacKey),
    /// Write an entry of ROUTES4 or ROUTES6.
    PutRoute((NetworkId, IpNetwork), VtepId),
    /// Delete an entry of ROUTES4 or ROUTES6.
    DeleteRoute((NetworkId, IpNetwork)),
    /// Write an entry of SUBNETS4 or SUBNETS6.
    PutSubnet((NetworkId, IpNetwork), VtepId),
    /// Delete an entry of SUBNETS4 or SUBNETS6.
    DeleteSubnet((NetworkId, IpNetwork)),
    /// Write an entry of ENDPOINTS4 or ENDPOINTS6.
    PutEndpoint((NetworkId, IpAddr), Endpoint),
    /// Delete an entry of ENDPOINTS4 or ENDPOINTS6.
    DeleteEndpoint((NetworkId, IpAddr)),
    /// Write an entry of LINKS.
    PutLink(IfIndex, LinkEntry),
    /// Delete an entry of LINKS.
    DeleteLink(IfIndex),
    /// Attach a program.
    Attach(Attachment),
    /// Detach a program.
    Detach(Attachment),
}

impl Change {
    /// Whether it is of a map of whose entries programs keep copies ([`Node::tables`]).
    pub const fn is_cached(&self) -> bool {
        matches!(
            self,
            Self::PutSubnet(..) | Self::DeleteSubnet(_) | Self::PutEndpoint(..) | Self::DeleteEndpoint(_)
        )
    }

    /// Whether it writes what says who another node is: without it, its packets look like a stranger's.
    pub const fn is_about_a_node(&self) -> bool {
        matches!(self, Self::PutVtep(..) | Self::PutVtepId(..) | Self::PutRoute(..))
    }

    /// Whether `other` does the same to another entry of the same map.
    pub fn is_alike(&self, other: &Self) -> bool {
        let same_family = match (self, other) {
            (Self::PutRoute((_, a), _), Self::PutRoute((_, b), _))
            | (Self::PutSubnet((_, a), _), Self::PutSubnet((_, b), _)) => a.is_ipv4() == b.is_ipv4(),
            _ => true,
        };
        same_family && std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// The steps from `observed` to `desired`, in an order in which no packet meets a half-made entry:
/// what is referred to comes before what refers to it, and goes after it. Programs are attached
/// last and detached first; XDP, which relies on TC, comes last of all and goes first.
pub fn diff(observed: &DatapathState, desired: &DatapathState) -> Vec<Change> {
    let (o, d) = (observed, desired);
    let mut changes = Vec::new();
    let gone: Vec<Attachment> = o.attachments.difference(&d.attachments).copied().collect();
    changes.extend(gone.into_iter().rev().map(Change::Detach));
    // Before there is a route inside of it.
    changes.extend(deletes(&o.subnets, &d.subnets, Change::DeleteSubnet));
    changes.extend(puts(&o.networks, &d.networks, Change::PutNetwork));
    changes.extend(puts(&o.vteps, &d.vteps, Change::PutVtep));
    changes.extend(puts(&o.vtep_ids, &d.vtep_ids, Change::PutVtepId));
    changes.extend(puts(&o.stations, &d.stations, Change::PutStation));
    changes.extend(puts(&o.endpoints, &d.endpoints, Change::PutEndpoint));
    // After the addresses that a pod gets, before those that it loses: it is not held to addresses that are
    // not there.
    changes.extend(puts(&o.links, &d.links, Change::PutLink));
    changes.extend(puts(&o.routes, &d.routes, Change::PutRoute));
    changes.extend(puts(&o.subnets, &d.subnets, Change::PutSubnet));
    changes.extend(puts(&o.vnis, &d.vnis, Change::PutVni));
    // Between what several networks need and what the only one does without.
    if o.node != d.node {
        changes.push(Change::SetNode(d.node));
    }
    changes.extend(deletes(&o.vnis, &d.vnis, Change::DeleteVni));
    changes.extend(deletes(&o.routes, &d.routes, Change::DeleteRoute));
    changes.extend(deletes(&o.endpoints, &d.endpoints, Change::DeleteEndpoint));
    changes.extend(deletes(&o.links, &d.links, Change::DeleteLink));
    changes.extend(deletes(&o.stations, &d.stations, Change::DeleteStation));
    changes.extend(deletes(&o.vtep_ids, &d.vtep_ids, Change::DeleteVtepId));
    changes.extend(deletes(&o.vteps, &d.vteps, Change::DeleteVtep));
    changes.extend(deletes(&o.networks, &d.networks, Change::DeleteNetwork));
    changes.extend(d.attachments.difference(&o.attachments).copied().map(Change::Attach));
    changes
}

/// What has to be there before the kernel routes packets to nodes without a tunnel: programs leave them to it.
pub fn ahead_of_routes(observed: &DatapathState, desired: &DatapathState) -> Vec<Change> {
    let is_direct = |entry: &Vtep| entry.flags & vtep::DIRECT != 0;
    let direct = desired.vteps.iter().filter(|(_, entry)| is_direct(entry));
    let known = direct.filter_map(|(id, _)| Some((*id, *observed.vteps.get(id)?)));
    let others = known.filter(|(_, entry)| !is_direct(entry));
    others
        .map(|(id, entry)| Change::PutVtep(id, Vtep { flags: entry.flags | vtep::DIRECT, ..entry }))
        .collect()
}

fn puts<K: Ord + Copy, V: PartialEq + Copy>(
    observed: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
    put: impl Fn(K, V) -> Change,
) -> Vec<Change> {
    let missing = desired.iter().filter(|(key, value)| observed.get(key) != Some(value));
    missing.map(|(key, value)| put(*key, *value)).collect()
}

fn deletes<K: Ord + Copy, V>(
    observed: &BTreeMap<K, V>,
    desired: &BTreeMap<K, V>,
    delete: impl Fn(K) -> Change,
) -> Vec<Change> {
    observed.keys().filter(|key| !desired.contains_key(key)).map(|key| delete(*key)).collect()
}

impl DatapathState {
    /// Adds the tables of another network.
    pub fn extend(&mut self, other: Self) {
        let Self {
            node: _,
            networks,
            vnis,
            routes,
            subnets,
            vteps,
            vtep_ids,
            stations,
            endpoints,
            links,
            attachments,
        } = other;
        self.networks.extend(networks);
        self.vnis.extend(vnis);
        self.routes.extend(routes);
        self.subnets.extend(subnets);
        self.vteps.extend(vteps);
        self.vtep_ids.extend(vtep_ids);
        self.stations.extend(stations);
        self.endpoints.extend(endpoints);
        self.links.extend(links);
        self.attachments.extend(attachments);
    }

    /// The number of the network called `name`, if it has one.
    pub fn number(&self, name: &str) -> Option<NetworkId> {
        self.networks.iter().find(|(_, network)| network.name == name_bytes(name)).map(|(id, _)| *id)
    }

    /// The names that networks have.
    pub fn named(&self) -> BTreeSet<[u8; NAME_LEN]> {
        self.networks.values().map(|network| network.name).collect()
    }

    /// What there is of one network.
    pub fn of(&self, network: NetworkId) -> Self {
        fn part<K: Ord + Copy, V: Copy>(
            all: &BTreeMap<K, V>,
            is_in: impl Fn(&K, &V) -> bool,
        ) -> BTreeMap<K, V> {
            all.iter().filter(|(key, value)| is_in(key, value)).map(|(key, value)| (*key, *value)).collect()
        }
        let networks = part(&self.networks, |id, _| *id == network);
        let links = part(&self.links, |_, link| link.network == network);
        let vtep_ids = part(&self.vtep_ids, |key, _| key.network == network);
        let vteps: BTreeSet<VtepId> = vtep_ids.values().copied().collect();
        let underlays: Vec<_> =
            networks.values().flat_map(|n| [n.local4.ifindex, n.local6.ifindex]).collect();
        let is_attached = |at: &&Attachment| {
            at.hook == Hook::UnderlayXdp
                || underlays.contains(&at.ifindex)
                || links.contains_key(&IfIndex(at.ifindex))
        };
        Self {
            node: Node::default(),
            vnis: part(&self.vnis, |_, id| *id == network),
            routes: part(&self.routes, |(id, _), _| *id == network),
            subnets: part(&self.subnets, |(id, _), _| *id == network),
            vteps: part(&self.vteps, |id, _| vteps.contains(id)),
            stations: part(&self.stations, |key, _| key.network == network),
            endpoints: part(&self.endpoints, |(id, _), _| *id == network),
            attachments: self.attachments.iter().filter(is_attached).copied().collect(),
            networks,
            links,
            vtep_ids,
        }
    }

    /// Says in NODE which networks there are: one needs no look-up of its interfaces and VNI.
    pub fn count_networks(&mut self) {
        let mut ids = self.networks.keys();
        self.node.only = match (ids.next(), ids.next()) {
            (Some(only), None) => *only,
            _ => NO_NETWORK,
        };
        let ports: BTreeSet<_> = self.vnis.keys().map(|key| key.port).collect();
        self.node.more_ports = u16::from(ports.len() > self.node.ports.len());
        self.node.ports = Default::default();
        self.node.ports.iter_mut().zip(ports).for_each(|(place, port)| *place = port);
    }

    /// Leaves out stations of segments that find no place.
    pub fn limit_stations(&mut self, sizes: Sizes) {
        let networks = &self.networks;
        let is_l2 = |key: &MacKey| networks.get(&key.network).is_some_and(|n| n.kind == Kind::L2 as u8);
        let others = self.stations.keys().filter(|key| !is_l2(key)).count();
        let (most, mut kept) = (sizes.most_stations(others), 0);
        self.stations.retain(|key, _| {
            let counts = is_l2(key);
            kept += usize::from(counts);
            !counts || kept <= most
        });
    }

    /// Records that `change` has been carried out.
    pub fn record(&mut self, change: &Change) {
        match *change {
            Change::SetNode(node) => self.node = node,
            Change::PutNetwork(id, network) => _ = self.networks.insert(id, network),
            Change::DeleteNetwork(id) => _ = self.networks.remove(&id),
            Change::PutVni(key, id) => _ = self.vnis.insert(key, id),
            Change::DeleteVni(key) => _ = self.vnis.remove(&key),
            Change::PutVtep(id, vtep) => _ = self.vteps.insert(id, vtep),
            Change::DeleteVtep(id) => _ = self.vteps.remove(&id),
            Change::PutVtepId(addr, id) => _ = self.vtep_ids.insert(addr, id),
            Change::DeleteVtepId(addr) => _ = self.vtep_ids.remove(&addr),
            Change::PutStation(key, station) => _ = self.stations.insert(key, station),
            Change::DeleteStation(key) => _ = self.stations.remove(&key),
            Change::PutRoute(prefix, id) => _ = self.routes.insert(prefix, id),
            Change::DeleteRoute(prefix) => _ = self.routes.remove(&prefix),
            Change::PutSubnet(prefix, id) => _ = self.subnets.insert(prefix, id),
            Change::DeleteSubnet(prefix) => _ = self.subnets.remove(&prefix),
            Change::PutEndpoint(addr, endpoint) => _ = self.endpoints.insert(addr, endpoint),
            Change::DeleteEndpoint(addr) => _ = self.endpoints.remove(&addr),
            Change::PutLink(index, link) => _ = self.links.insert(index, link),
            Change::DeleteLink(index) => _ = self.links.remove(&index),
            Change::Attach(attachment) => _ = self.attachments.insert(attachment),
            Change::Detach(attachment) => _ = self.attachments.remove(&attachment),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, btree_set};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;
    use vxlan_ebpf_common::maps::Addr;

    fn states() -> impl Strategy<Value = DatapathState> {
        let id = 1u32..6;
        let attachment = (0..Hook::ALL.len(), 1u32..4)
            .prop_map(|(hook, ifindex)| Attachment { hook: Hook::ALL[hook], ifindex });
        (
            (0u32..3).prop_map(|only| Node { only, ..Node::default() }),
            btree_map(id.clone(), (0u32..3).prop_map(|vni| Network { vni, ..Network::default() }), 0..5),
            btree_map((0u32..6).prop_map(|vni| VniKey { vni, ..VniKey::default() }), id.clone(), 0..5),
            btree_map(
                (0u8..6).prop_map(|n| {
                    (1, IpNetwork::new(Ipv4Addr::new(10, 0, n, 0).into(), 24).expect("24 bits"))
                }),
                id.clone(),
                0..5,
            ),
            btree_map(id.clone(), (0u32..3).prop_map(|ifindex| Vtep { ifindex, ..Vtep::default() }), 0..5),
            btree_map((0u8..6).prop_map(|n| Key6 { network: 1, addr: Addr([n; 16]) }), id.clone(), 0..5),
            btree_map((0u8..6).prop_map(|n| MacKey::new(1, [n; 6])), id.prop_map(Station::vtep), 0..5),
            btree_map(
                (0u8..6).prop_map(|n| (1, IpAddr::from([10, 0, 0, n]))),
                (0u32..3).prop_map(|ifindex| Endpoint { ifindex, ..Endpoint::default() }),
                0..5,
            ),
            btree_map(
                (0u32..4).prop_map(IfIndex),
                (0u32..3).prop_map(|flags| LinkEntry { network: 1, flags }),
                0..5,
            ),
            btree_set(attachment, 0..5),
        )
            .prop_map(
                |(node, networks, vnis, routes, vteps, vtep_ids, stations, endpoints, links, attachments)| {
                    DatapathState {
                        node,
                        networks,
                        vnis,
                        subnets: routes.clone(),
                        routes,
                        vteps,
                        vtep_ids,
                        stations,
                        endpoints,
                        links,
                        attachments,
                    }
                },
            )
    }

    proptest! {
        #[test]
        fn carrying_out_the_difference_gives_what_is_desired(mut observed in states(), desired in states()) {
            for change in diff(&observed, &desired) {
                observed.record(&change);
            }
            prop_assert_eq!(observed, desired);
        }

        #[test]
        fn what_is_as_desired_needs_no_change(state in states()) {
            prop_assert_eq!(diff(&state, &state), vec![]);
        }

        #[test]
        fn a_vtep_is_there_before_routes_to_it_and_goes_after_them(observed in states(), desired in states()) {
            let changes = diff(&observed, &desired);
            let last = |wanted: fn(&Change) -> bool| changes.iter().rposition(wanted);
            let first = |wanted: fn(&Change) -> bool| changes.iter().position(wanted);
            if let (Some(vtep), Some(route)) =
                (last(|c| matches!(c, Change::PutVtep(..))), first(|c| matches!(c, Change::PutRoute(..))))
            {
                prop_assert!(vtep < route);
            }
            if let (Some(route), Some(vtep)) =
                (last(|c| matches!(c, Change::DeleteRoute(..))), first(|c| matches!(c, Change::DeleteVtep(..))))
            {
                prop_assert!(route < vtep);
            }
        }
    }

    #[test]
    fn stations_of_segments_that_find_no_place_are_left_out() {
        let of = |kind: Kind| Network { kind: kind as u8, ..Network::default() };
        let mac = |network, n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            (MacKey::new(network, [2, 0, a, b, c, d]), Station::vtep(1))
        };
        let networks = [(1, of(Kind::L3)), (2, of(Kind::L2))].into();
        let mut state = DatapathState { networks, ..DatapathState::default() };
        state.stations.extend((0..100).map(|n| mac(1, n)).chain((0..20_000).map(|n| mac(2, n))));
        state.limit_stations(Sizes::of(1, 1, 1));
        let count = |id| state.stations.keys().filter(|key| key.network == id).count();
        assert_eq!((count(1), count(2)), (100, (16_384 - 100) / 2));
    }

    #[test]
    fn nodes_that_come_onto_the_link_are_the_kernels_before_it_has_routes_and_no_sooner_is_anything_else() {
        let state = |flags: [u8; 3], mtu| {
            let vteps =
                [1, 2, 3].map(|id| (id, Vtep { flags: flags[id as usize - 1], mtu, ..Vtep::default() }));
            DatapathState { vteps: vteps.into(), ..DatapathState::default() }
        };
        let (observed, mut desired) = (
            state([vtep::NO_DF, vtep::DIRECT, vtep::DIRECT], 1400),
            state([vtep::DIRECT, vtep::DIRECT, 0], 1450),
        );
        // A new one is nobody's before the programs know of it.
        desired.vteps.insert(4, Vtep { flags: vtep::DIRECT, ..Vtep::default() });
        let first = Vtep { flags: vtep::NO_DF | vtep::DIRECT, mtu: 1400, ..Vtep::default() };
        assert_eq!(ahead_of_routes(&observed, &desired), [Change::PutVtep(1, first)]);
        assert_eq!(ahead_of_routes(&desired, &state([0; 3], 1450)), []);
    }

    #[test]
    fn entries_of_one_map_are_next_to_each_other() {
        let routes = ["10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "fd00:2::/64"];
        let routes = routes.map(|prefix| ((1, prefix.parse().expect("a prefix")), 1));
        let vteps = [1, 2, 3].map(|id| (id, Vtep { family: 4, ..Vtep::default() }));
        let desired =
            DatapathState { routes: routes.into(), vteps: vteps.into(), ..DatapathState::default() };
        let changes = diff(&DatapathState::default(), &desired);
        let counts: Vec<usize> = changes.chunk_by(Change::is_alike).map(<[Change]>::len).collect();
        assert_eq!(counts, [3, 2, 2], "VTEPS, ROUTES4, ROUTES6");
    }
}
