//! Desired and observed content of the datapath, and the difference as an ordered list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{Addr, Config, Endpoint, MacKey, Veth, Vtep, VtepId};

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
    /// The network's parameters.
    pub config: Config,
    /// Inner prefix → VTEP; the node's own subnets lead to `LOCAL_VTEP`.
    pub routes: BTreeMap<IpNetwork, VtepId>,
    /// Remote VTEPS, without `LOCAL_VTEP`.
    pub vteps: BTreeMap<VtepId, Vtep>,
    /// Underlay address → VTEP.
    pub vtep_ids: BTreeMap<Addr, VtepId>,
    /// VTEP MAC → VTEP.
    pub macs: BTreeMap<MacKey, VtepId>,
    /// Local pods by address.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    /// What is known of pods, by the host sides of their veths.
    pub veths: BTreeMap<IfIndex, Veth>,
    /// Programs on interfaces.
    pub attachments: BTreeSet<Attachment>,
}

/// One step from an observed to a desired [`DatapathState`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write CONFIG.
    SetConfig(Config),
    /// Write an entry of VTEPS.
    PutVtep(VtepId, Vtep),
    /// Clear an entry of VTEPS.
    DeleteVtep(VtepId),
    /// Write an entry of VTEP_IDS.
    PutVtepId(Addr, VtepId),
    /// Delete an entry of VTEP_IDS.
    DeleteVtepId(Addr),
    /// Write an entry of MACS.
    PutMac(MacKey, VtepId),
    /// Delete an entry of MACS.
    DeleteMac(MacKey),
    /// Write an entry of ROUTES4 or ROUTES6.
    PutRoute(IpNetwork, VtepId),
    /// Delete an entry of ROUTES4 or ROUTES6.
    DeleteRoute(IpNetwork),
    /// Write an entry of ENDPOINTS4 or ENDPOINTS6.
    PutEndpoint(IpAddr, Endpoint),
    /// Delete an entry of ENDPOINTS4 or ENDPOINTS6.
    DeleteEndpoint(IpAddr),
    /// Write an entry of VETHS.
    PutVeth(IfIndex, Veth),
    /// Delete an entry of VETHS.
    DeleteVeth(IfIndex),
    /// Attach a program.
    Attach(Attachment),
    /// Detach a program.
    Detach(Attachment),
}

impl Change {
    /// Whether it writes what says who another node is: without it, its packets look like a stranger's.
    pub const fn is_about_a_node(&self) -> bool {
        matches!(self, Self::PutVtep(..) | Self::PutVtepId(..) | Self::PutMac(..) | Self::PutRoute(..))
    }

    /// Whether `other` does the same to another entry of the same map.
    pub fn is_alike(&self, other: &Self) -> bool {
        let same_family = match (self, other) {
            (Self::PutRoute(a, _), Self::PutRoute(b, _)) => a.is_ipv4() == b.is_ipv4(),
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
    if o.config != d.config {
        changes.push(Change::SetConfig(d.config));
    }
    changes.extend(puts(&o.vteps, &d.vteps, Change::PutVtep));
    changes.extend(puts(&o.vtep_ids, &d.vtep_ids, Change::PutVtepId));
    changes.extend(puts(&o.macs, &d.macs, Change::PutMac));
    changes.extend(puts(&o.endpoints, &d.endpoints, Change::PutEndpoint));
    // After the addresses that a pod gets, before those that it loses: it is not held to addresses that are
    // not there.
    changes.extend(puts(&o.veths, &d.veths, Change::PutVeth));
    changes.extend(puts(&o.routes, &d.routes, Change::PutRoute));
    changes.extend(deletes(&o.routes, &d.routes, Change::DeleteRoute));
    changes.extend(deletes(&o.endpoints, &d.endpoints, Change::DeleteEndpoint));
    changes.extend(deletes(&o.veths, &d.veths, Change::DeleteVeth));
    changes.extend(deletes(&o.macs, &d.macs, Change::DeleteMac));
    changes.extend(deletes(&o.vtep_ids, &d.vtep_ids, Change::DeleteVtepId));
    changes.extend(deletes(&o.vteps, &d.vteps, Change::DeleteVtep));
    changes.extend(d.attachments.difference(&o.attachments).copied().map(Change::Attach));
    changes
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
    /// Records that `change` has been carried out.
    pub fn record(&mut self, change: &Change) {
        match *change {
            Change::SetConfig(config) => self.config = config,
            Change::PutVtep(id, vtep) => _ = self.vteps.insert(id, vtep),
            Change::DeleteVtep(id) => _ = self.vteps.remove(&id),
            Change::PutVtepId(addr, id) => _ = self.vtep_ids.insert(addr, id),
            Change::DeleteVtepId(addr) => _ = self.vtep_ids.remove(&addr),
            Change::PutMac(key, id) => _ = self.macs.insert(key, id),
            Change::DeleteMac(key) => _ = self.macs.remove(&key),
            Change::PutRoute(prefix, id) => _ = self.routes.insert(prefix, id),
            Change::DeleteRoute(prefix) => _ = self.routes.remove(&prefix),
            Change::PutEndpoint(addr, endpoint) => _ = self.endpoints.insert(addr, endpoint),
            Change::DeleteEndpoint(addr) => _ = self.endpoints.remove(&addr),
            Change::PutVeth(index, veth) => _ = self.veths.insert(index, veth),
            Change::DeleteVeth(index) => _ = self.veths.remove(&index),
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

    fn states() -> impl Strategy<Value = DatapathState> {
        let id = 1u32..6;
        let attachment = (0..Hook::ALL.len(), 1u32..4)
            .prop_map(|(hook, ifindex)| Attachment { hook: Hook::ALL[hook], ifindex });
        (
            (0u32..3).prop_map(|vni| Config { vni, ..Config::default() }),
            btree_map(
                (0u8..6)
                    .prop_map(|n| IpNetwork::new(Ipv4Addr::new(10, 0, n, 0).into(), 24).expect("24 bits")),
                id.clone(),
                0..5,
            ),
            btree_map(id.clone(), (0u32..3).prop_map(|ifindex| Vtep { ifindex, ..Vtep::default() }), 0..5),
            btree_map((0u8..6).prop_map(|n| Addr([n; 16])), id.clone(), 0..5),
            btree_map((0u8..6).prop_map(|n| MacKey::new(1, [n; 6])), id, 0..5),
            btree_map(
                (0u8..6).prop_map(|n| IpAddr::from([10, 0, 0, n])),
                (0u32..3).prop_map(|ifindex| Endpoint { ifindex, ..Endpoint::default() }),
                0..5,
            ),
            btree_map((0u32..4).prop_map(IfIndex), (0u32..3).prop_map(|flags| Veth { flags }), 0..5),
            btree_set(attachment, 0..5),
        )
            .prop_map(|(config, routes, vteps, vtep_ids, macs, endpoints, veths, attachments)| {
                DatapathState { config, routes, vteps, vtep_ids, macs, endpoints, veths, attachments }
            })
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
    fn entries_of_one_map_are_next_to_each_other() {
        let routes = ["10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "fd00:2::/64"];
        let routes = routes.map(|prefix| (prefix.parse().expect("a prefix"), 1));
        let vteps = [1, 2, 3].map(|id| (id, Vtep { family: 4, ..Vtep::default() }));
        let desired =
            DatapathState { routes: routes.into(), vteps: vteps.into(), ..DatapathState::default() };
        let changes = diff(&DatapathState::default(), &desired);
        let counts: Vec<usize> = changes.chunk_by(Change::is_alike).map(<[Change]>::len).collect();
        assert_eq!(counts, [3, 2, 2], "VTEPS, ROUTES4, ROUTES6");
    }
}
