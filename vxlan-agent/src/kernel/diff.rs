//! From the observed kernel state to the desired one, in steps that never lose a packet.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::state::{Device, DirectRoute, Headroom, KernelState, Route};
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
    RemoveRoute(IpNetwork),
    RemoveDirectRoute(IpNetwork, DirectRoute),
    AddHeadroom(IfIndex, Headroom),
    SetHeadroom(IfIndex, Headroom),
    RemoveHeadroom(IfIndex),
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
            Self::RemoveRoute(to) => write!(f, "remove route {to}"),
            Self::RemoveDirectRoute(to, route) => write!(f, "remove route {to} via {}", route.via),
            Self::AddHeadroom(bridge, _) => write!(f, "add head-room port to bridge {bridge}"),
            Self::SetHeadroom(bridge, h) => {
                write!(f, "set MTU {} on the head-room port of bridge {bridge}", h.mtu)
            }
            Self::RemoveHeadroom(bridge) => write!(f, "remove head-room port of bridge {bridge}"),
        }
    }
}

/// The steps from `observed` to `desired`: device first; what a route needs before the route, in
/// the order address, forwarding entry, neighbour; additions before removals; a route goes before
/// what it needs.
pub fn diff(observed: &KernelState, desired: &KernelState) -> Vec<KernelChange> {
    let mut changes = device_changes(observed.device.as_ref(), desired.device.as_ref());
    // What the kernel forgets with the device's own changes has to be put again.
    let mut now = observed.clone();
    changes.iter().for_each(|change| now.apply(change));
    if desired.device.is_some() {
        put_content(&now, desired, &mut changes);
        remove_content(&now, desired, &mut changes);
    }
    headroom_changes(&now, desired, &mut changes);
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

fn put_content(now: &KernelState, desired: &KernelState, changes: &mut Vec<KernelChange>) {
    changes.extend(desired.addresses.difference(&now.addresses).map(|ip| KernelChange::AddAddress(*ip)));
    let fdb = desired.fdb.iter().filter(|(mac, vtep)| now.fdb.get(mac) != Some(vtep));
    changes.extend(fdb.map(|(mac, vtep)| KernelChange::PutFdb(*mac, *vtep)));
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

fn remove_content(now: &KernelState, desired: &KernelState, changes: &mut Vec<KernelChange>) {
    let routes = now.routes.keys().filter(|to| !desired.routes.contains_key(to));
    changes.extend(routes.map(|to| KernelChange::RemoveRoute(*to)));
    let replaced = |to: &IpNetwork| desired.routes.contains_key(to) && !now.routes.contains_key(to);
    let direct = now.direct_routes.iter().filter(|(to, _)| !replaced(to));
    changes.extend(direct.map(|(to, route)| KernelChange::RemoveDirectRoute(*to, route.clone())));
    let neighbours = now.neighbours.keys().filter(|ip| !desired.neighbours.contains_key(ip));
    changes.extend(neighbours.map(|ip| KernelChange::RemoveNeighbour(*ip)));
    let fdb = now.fdb.keys().filter(|mac| !desired.fdb.contains_key(mac));
    changes.extend(fdb.map(|mac| KernelChange::RemoveFdb(*mac)));
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
                let direct_routes = std::mem::take(&mut self.direct_routes);
                let headroom_elsewhere = std::mem::take(&mut self.headroom_elsewhere);
                *self = Self { headroom, headroom_elsewhere, direct_routes, ..Self::default() };
            }
            KernelChange::CreateDevice(device) => self.device = Some(device.clone()),
            KernelChange::SetDevice(device) => {
                if self.device.as_ref().is_some_and(|have| have.mac != device.mac) {
                    self.neighbours.clear();
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
            KernelChange::RemoveRoute(to) => drop(self.routes.remove(to)),
            KernelChange::RemoveDirectRoute(to, _) => drop(self.direct_routes.remove(to)),
            KernelChange::AddHeadroom(bridge, h) | KernelChange::SetHeadroom(bridge, h) => {
                self.headroom.insert(*bridge, h.clone());
            }
            KernelChange::RemoveHeadroom(bridge) => drop(self.headroom.remove(bridge)),
        }
    }
}

#[cfg(test)]
mod tests;
