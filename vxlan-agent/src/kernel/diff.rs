//! From the observed kernel state to the desired one, in steps that never lose a packet.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::state::{BridgeSpec, Device, DirectRoute, Headroom, KernelState, OwnBridge, Route};
use crate::net::{IfIndex, Mac, Vni};

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "each does what it is called, on the vxlan device")]
pub enum KernelChange {
    DeleteDevice(String),
    CreateDevice(Device),
    /// Set what can change in place: MTU, MAC, alias, up.
    SetDevice(Device),
    AddAddress(IpAddr),
    RemoveAddress(IpAddr),
    PutNeighbour(IpAddr, Mac),
    RemoveNeighbour(IpAddr),
    PutFdb(Mac, IpAddr),
    RemoveFdb(Mac),
    AddRoute(IpNetwork, Route),
    ReplaceRoute(IpNetwork, Route),
    RemoveRoute(IpNetwork, Route),
    RemoveDirectRoute(IpNetwork, DirectRoute),
    AddHeadroom(IfIndex, Headroom),
    SetHeadroom(IfIndex, Headroom),
    RemoveHeadroom(IfIndex),
    CreateBridge(String, OwnBridge),
    /// Set what can change in place: MTU, MAC, alias, up.
    SetBridge(String, OwnBridge),
    /// Unless it has got a port of somebody else's meanwhile.
    RemoveBridge(String),
    AddBridgeAddress(String, IpNetwork),
    RemoveBridgeAddress(String, IpNetwork),
    /// Both on the device and in the bridge.
    PutStation(Mac, IpAddr),
    RemoveStation(Mac),
    /// On the bridge.
    PutAnswer(String, IpAddr, Mac),
    RemoveAnswer(String, IpAddr),
    AddFlood(IpAddr),
    RemoveFlood(IpAddr),
}

impl fmt::Display for KernelChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteDevice(name) => write!(f, "delete vxlan device {name}"),
            Self::CreateDevice(d) => write!(
                f,
                "create vxlan device {} (VNI {}, local {}, MTU {})",
                d.name,
                d.vni.map_or(0, Vni::get),
                d.local,
                d.mtu
            ),
            Self::SetDevice(d) => {
                write!(f, "set vxlan device {} up with MAC {} and MTU {}", d.name, d.mac, d.mtu)
            }
            Self::AddAddress(ip) => write!(f, "add address {ip}"),
            Self::RemoveAddress(ip) => write!(f, "remove address {ip}"),
            Self::PutNeighbour(ip, mac) => write!(f, "put neighbour {ip} at {mac}"),
            Self::RemoveNeighbour(ip) => write!(f, "remove neighbour {ip}"),
            Self::PutFdb(mac, vtep) => write!(f, "put forwarding entry {mac} to {vtep}"),
            Self::RemoveFdb(mac) => write!(f, "remove forwarding entry {mac}"),
            Self::AddRoute(to, route) => write!(f, "add route {to} via {}", route.via),
            Self::ReplaceRoute(to, route) => write!(f, "replace route {to} via {}", route.via),
            Self::RemoveRoute(to, route) => write!(f, "remove route {to} via {}", route.via),
            Self::RemoveDirectRoute(to, route) => write!(f, "remove route {to} via {}", route.via),
            Self::AddHeadroom(bridge, _) => write!(f, "add head-room port to bridge {bridge}"),
            Self::SetHeadroom(bridge, h) => {
                write!(f, "set MTU {} on the head-room port of bridge {bridge}", h.mtu)
            }
            Self::RemoveHeadroom(bridge) => write!(f, "remove head-room port of bridge {bridge}"),
            Self::CreateBridge(name, own) => write!(f, "create bridge {name} (MTU {})", own.mtu),
            Self::SetBridge(name, own) => {
                write!(f, "set bridge {name} up with MAC {} and MTU {}", own.mac, own.mtu)
            }
            Self::RemoveBridge(name) => write!(f, "remove bridge {name}"),
            Self::AddBridgeAddress(bridge, ip) => write!(f, "add address {ip} to bridge {bridge}"),
            Self::RemoveBridgeAddress(bridge, ip) => write!(f, "remove address {ip} of bridge {bridge}"),
            Self::PutStation(mac, vtep) => write!(f, "put station {mac} behind {vtep}"),
            Self::RemoveStation(mac) => write!(f, "remove station {mac}"),
            Self::PutAnswer(bridge, ip, mac) => write!(f, "put neighbour {ip} at {mac} on bridge {bridge}"),
            Self::RemoveAnswer(bridge, ip) => write!(f, "remove neighbour {ip} of bridge {bridge}"),
            Self::AddFlood(vtep) => write!(f, "add {vtep} to those who get what goes to all"),
            Self::RemoveFlood(vtep) => write!(f, "remove {vtep} from those who get what goes to all"),
        }
    }
}

/// The steps from `observed` to `desired`: a bridge before the device that is to be its port; device before
/// what is on it; what a route needs before the route, in the order address, forwarding entry, neighbour;
/// additions before removals; a route goes before what it needs; bridges go last.
pub fn diff(observed: &KernelState, desired: &KernelState) -> Vec<KernelChange> {
    let mut changes = bridge_changes(observed, desired);
    if desired.device.is_none() {
        // The neighbours that say whose they are go with the device.
        changes
            .extend(needless_routes(observed, desired).filter(|(_, route)| route.past.is_some()).map(remove));
    }
    changes.extend(device_changes(observed.device.as_ref(), desired.device.as_ref()));
    // What the kernel forgets with the device's own changes has to be put again.
    let mut now = observed.clone();
    changes.iter().for_each(|change| now.apply(change));
    if desired.device.is_some() {
        put_content(&now, desired, &mut changes);
        remove_content(&now, desired, &mut changes);
    }
    answer_changes(&now, desired, &mut changes);
    headroom_changes(&now, desired, &mut changes);
    changes.extend(needless_bridges(observed, desired).map(KernelChange::RemoveBridge));
    changes
}

fn device_changes(observed: Option<&Device>, desired: Option<&Device>) -> Vec<KernelChange> {
    match (observed, desired) {
        (Some(have), Some(want)) if have == want => vec![],
        (Some(have), Some(want)) if have.can_become(want) => vec![KernelChange::SetDevice(want.clone())],
        (have, want) => {
            let delete = have.map(|d| KernelChange::DeleteDevice(d.name.clone()));
            delete.into_iter().chain(want.cloned().map(KernelChange::CreateDevice)).collect()
        }
    }
}

fn bridge_changes(observed: &KernelState, desired: &KernelState) -> Vec<KernelChange> {
    let Some(BridgeSpec { name, own: Some(want) }) = &desired.bridge else { return vec![] };
    let have = observed.bridge.as_ref().filter(|have| have.name == *name);
    let mut changes = match have.map(|have| have.own.as_ref()) {
        // An operator has made one of that name meanwhile.
        Some(None) => return vec![],
        Some(Some(have)) if have == want => vec![],
        Some(Some(_)) => vec![KernelChange::SetBridge(name.clone(), want.clone())],
        None => vec![KernelChange::CreateBridge(name.clone(), want.clone())],
    };
    let mut there = have.map_or_else(BTreeSet::new, |_| observed.bridge_addresses.clone());
    // First, because one of them may take along what is new.
    for old in observed.bridge_addresses.difference(&desired.bridge_addresses).filter(|_| have.is_some()) {
        changes.push(KernelChange::RemoveBridgeAddress(name.clone(), *old));
        remove_address(&mut there, old);
    }
    let new = desired.bridge_addresses.difference(&there);
    changes.extend(new.map(|ip| KernelChange::AddBridgeAddress(name.clone(), *ip)));
    changes
}

/// What the removal of an address leaves: with the first IPv4 address of a network the kernel removes the
/// others of that network, unless told otherwise (`promote_secondaries`). Which is the first nobody says.
fn remove_address(addresses: &mut BTreeSet<IpNetwork>, gone: &IpNetwork) {
    let network = |ip: &IpNetwork| (ip.network(), ip.prefix());
    addresses.retain(|ip| ip != gone && (gone.is_ipv6() || network(ip) != network(gone)));
}

/// Neighbours on the bridge, whoever made it. A bridge that goes takes them along.
fn answer_changes(now: &KernelState, desired: &KernelState, changes: &mut Vec<KernelChange>) {
    let Some(bridge) = desired.bridge.as_ref().or(now.bridge.as_ref()).map(|bridge| &bridge.name) else {
        return;
    };
    let put = desired.answers.iter().filter(|(ip, mac)| now.answers.get(ip) != Some(mac));
    changes.extend(put.map(|(ip, mac)| KernelChange::PutAnswer(bridge.clone(), *ip, *mac)));
    let goes = desired.bridge.is_none() && needless_bridges(now, desired).any(|name| name == *bridge);
    let gone = now.answers.keys().filter(|ip| !goes && !desired.answers.contains_key(ip));
    changes.extend(gone.map(|ip| KernelChange::RemoveAnswer(bridge.clone(), *ip)));
}

/// Bridges of ours that serve nobody.
fn needless_bridges(observed: &KernelState, desired: &KernelState) -> impl Iterator<Item = String> {
    let wanted = desired.bridge.as_ref().map(|bridge| &bridge.name);
    let ours = observed.bridge.as_ref().filter(|have| have.own.is_some() && !observed.bridge_in_use);
    let all = ours.map(|have| &have.name).into_iter().chain(&observed.old_bridges);
    all.filter(move |name| wanted != Some(*name)).cloned().collect::<Vec<_>>().into_iter()
}

fn put_content(now: &KernelState, desired: &KernelState, changes: &mut Vec<KernelChange>) {
    changes.extend(desired.addresses.difference(&now.addresses).map(|ip| KernelChange::AddAddress(*ip)));
    let fdb = desired.fdb.iter().filter(|(mac, vtep)| now.fdb.get(mac) != Some(vtep));
    changes.extend(fdb.map(|(mac, vtep)| KernelChange::PutFdb(*mac, *vtep)));
    changes.extend(desired.flood.difference(&now.flood).map(|vtep| KernelChange::AddFlood(*vtep)));
    let stations = desired.stations.iter().filter(|(mac, vtep)| now.stations.get(mac) != Some(vtep));
    changes.extend(stations.map(|(mac, vtep)| KernelChange::PutStation(*mac, *vtep)));
    let neighbours = desired.neighbours.iter().filter(|(ip, mac)| now.neighbours.get(ip) != Some(mac));
    changes.extend(neighbours.map(|(ip, mac)| KernelChange::PutNeighbour(*ip, *mac)));
    for (to, route) in &desired.routes {
        match now.routes.get(to) {
            Some(have) if have == route => {}
            None if !now.direct_routes.contains_key(to) => {
                changes.push(KernelChange::AddRoute(*to, route.clone()));
            }
            // In one step, so that there is a route at any time.
            _ => changes.push(KernelChange::ReplaceRoute(*to, route.clone())),
        }
    }
}

/// Routes of ours to subnets that are no node's.
fn needless_routes<'s>(
    now: &'s KernelState,
    desired: &'s KernelState,
) -> impl Iterator<Item = (&'s IpNetwork, &'s Route)> {
    now.routes.iter().filter(|(to, _)| !desired.routes.contains_key(to))
}

fn remove((to, route): (&IpNetwork, &Route)) -> KernelChange {
    KernelChange::RemoveRoute(*to, route.clone())
}

fn remove_content(now: &KernelState, desired: &KernelState, changes: &mut Vec<KernelChange>) {
    changes.extend(needless_routes(now, desired).map(remove));
    let replaced = |to: &IpNetwork| desired.routes.contains_key(to) && !now.routes.contains_key(to);
    let direct = now.direct_routes.iter().filter(|(to, _)| !replaced(to));
    changes.extend(direct.map(|(to, route)| KernelChange::RemoveDirectRoute(*to, route.clone())));
    let neighbours = now.neighbours.keys().filter(|ip| !desired.neighbours.contains_key(ip));
    changes.extend(neighbours.map(|ip| KernelChange::RemoveNeighbour(*ip)));
    let fdb = now.fdb.keys().filter(|mac| !desired.fdb.contains_key(mac));
    changes.extend(fdb.map(|mac| KernelChange::RemoveFdb(*mac)));
    let stations = now.stations.keys().filter(|mac| !desired.stations.contains_key(mac));
    let orphans = now.orphans.iter().filter(|mac| !desired.stations.contains_key(mac));
    changes.extend(stations.chain(orphans).map(|mac| KernelChange::RemoveStation(*mac)));
    changes.extend(now.flood.difference(&desired.flood).map(|vtep| KernelChange::RemoveFlood(*vtep)));
    changes.extend(now.addresses.difference(&desired.addresses).map(|ip| KernelChange::RemoveAddress(*ip)));
}

fn headroom_changes(now: &KernelState, desired: &KernelState, changes: &mut Vec<KernelChange>) {
    for (bridge, want) in &desired.headroom {
        match now.headroom.get(bridge) {
            None if now.headroom_elsewhere.contains(bridge) => {}
            None => changes.push(KernelChange::AddHeadroom(*bridge, want.clone())),
            Some(have) if have == want => {}
            Some(have) if have.ready => changes.push(KernelChange::SetHeadroom(*bridge, want.clone())),
            Some(_) => {
                changes.push(KernelChange::RemoveHeadroom(*bridge));
                changes.push(KernelChange::AddHeadroom(*bridge, want.clone()));
            }
        }
    }
    let gone = now.headroom.keys().filter(|bridge| !desired.headroom.contains_key(bridge));
    changes.extend(gone.map(|bridge| KernelChange::RemoveHeadroom(*bridge)));
}

impl KernelState {
    /// What `change` makes of this state, with what the kernel does of its own accord: a deleted
    /// device takes everything on it along, and a new MAC drops all neighbours
    /// (`neigh_changeaddr`).
    pub fn apply(&mut self, change: &KernelChange) {
        match change {
            KernelChange::DeleteDevice(_) => {
                let headroom = std::mem::take(&mut self.headroom);
                let mut routes = std::mem::take(&mut self.routes);
                routes.retain(|_, route| route.past.is_some());
                let direct_routes = std::mem::take(&mut self.direct_routes);
                let headroom_elsewhere = std::mem::take(&mut self.headroom_elsewhere);
                let old_bridges = std::mem::take(&mut self.old_bridges);
                let bridge_addresses = std::mem::take(&mut self.bridge_addresses);
                let answers = std::mem::take(&mut self.answers);
                *self = Self {
                    headroom,
                    routes,
                    headroom_elsewhere,
                    direct_routes,
                    bridge: self.bridge.take(),
                    bridge_addresses,
                    answers,
                    bridge_in_use: self.bridge_in_use,
                    old_bridges,
                    ..Self::default()
                };
            }
            KernelChange::CreateDevice(device) => self.device = Some(device.clone()),
            KernelChange::SetDevice(device) => {
                if self.device.as_ref().is_some_and(|have| have.mac != device.mac) {
                    self.neighbours.clear();
                }
                let bridge = |d: &Device| d.segment.as_ref().and_then(|segment| segment.bridge.clone());
                if self.device.as_ref().is_some_and(|have| bridge(have) != bridge(device)) {
                    self.stations.clear();
                    self.orphans.clear();
                }
                self.device = Some(device.clone());
            }
            KernelChange::AddAddress(ip) => drop(self.addresses.insert(*ip)),
            KernelChange::RemoveAddress(ip) => drop(self.addresses.remove(ip)),
            KernelChange::PutNeighbour(ip, mac) => drop(self.neighbours.insert(*ip, *mac)),
            KernelChange::RemoveNeighbour(ip) => drop(self.neighbours.remove(ip)),
            KernelChange::PutFdb(mac, vtep) => drop(self.fdb.insert(*mac, *vtep)),
            KernelChange::RemoveFdb(mac) => drop(self.fdb.remove(mac)),
            KernelChange::AddRoute(to, route) | KernelChange::ReplaceRoute(to, route) => {
                self.routes.insert(*to, route.clone());
                self.direct_routes.remove(to);
            }
            KernelChange::RemoveRoute(to, _) => drop(self.routes.remove(to)),
            KernelChange::RemoveDirectRoute(to, _) => drop(self.direct_routes.remove(to)),
            KernelChange::AddHeadroom(bridge, h) | KernelChange::SetHeadroom(bridge, h) => {
                self.headroom.insert(*bridge, h.clone());
            }
            KernelChange::RemoveHeadroom(bridge) => drop(self.headroom.remove(bridge)),
            KernelChange::PutStation(mac, vtep) => {
                self.orphans.remove(mac);
                self.stations.insert(*mac, *vtep);
            }
            KernelChange::RemoveStation(mac) => {
                self.orphans.remove(mac);
                self.stations.remove(mac);
            }
            KernelChange::AddFlood(vtep) => drop(self.flood.insert(*vtep)),
            KernelChange::RemoveFlood(vtep) => drop(self.flood.remove(vtep)),
            _ => self.apply_to_bridge(change),
        }
    }

    /// What `change` makes of the bridge: one that is gone takes its addresses along, and one that takes
    /// another's place, too.
    fn apply_to_bridge(&mut self, change: &KernelChange) {
        match change {
            KernelChange::CreateBridge(name, own) => {
                let before = self.bridge.replace(BridgeSpec { name: name.clone(), own: Some(own.clone()) });
                let ours = before.filter(|before| before.own.is_some() && !self.bridge_in_use);
                self.old_bridges.extend(ours.map(|before| before.name));
                self.bridge_addresses.clear();
                self.answers.clear();
                self.bridge_in_use = false;
            }
            KernelChange::SetBridge(name, own) => {
                let before = self.bridge.as_ref().and_then(|bridge| bridge.own.as_ref());
                if before.is_some_and(|before| before.mac != own.mac) {
                    self.answers.clear();
                }
                self.bridge = Some(BridgeSpec { name: name.clone(), own: Some(own.clone()) });
            }
            KernelChange::RemoveBridge(name) => {
                self.old_bridges.remove(name);
                if self.bridge.as_ref().is_some_and(|bridge| bridge.name == *name) {
                    self.bridge = None;
                    self.bridge_addresses.clear();
                    self.answers.clear();
                }
            }
            KernelChange::PutAnswer(_, ip, mac) => drop(self.answers.insert(*ip, *mac)),
            KernelChange::RemoveAnswer(_, ip) => drop(self.answers.remove(ip)),
            KernelChange::AddBridgeAddress(_, ip) => drop(self.bridge_addresses.insert(*ip)),
            KernelChange::RemoveBridgeAddress(_, ip) => remove_address(&mut self.bridge_addresses, ip),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
