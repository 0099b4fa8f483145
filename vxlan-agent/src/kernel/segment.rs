//! What of the kernel's tables is a bridged network's: device, bridge, and what both know of stations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::observed::{ForeignDevice, Sought, headroom_of, observed, vxlan_of};
use super::state::{BridgeSpec, KernelState, OwnBridge, Segment};
use super::tables::{Kind, Link, Tables, Vxlan};
use crate::net::{self, IfIndex, Mac, Mtu};
use crate::ownership;

/// Which bridge to look for.
#[derive(Clone, Copy, Debug)]
pub struct SoughtBridge<'a> {
    /// What it is called or is to be called.
    pub name: &'a str,
    /// Tells a bridge that we left half-made from an operator's.
    pub mac: Mac,
    /// The bridge of ours that the agent had last. It stays ours if somebody takes its alias away.
    pub held: Option<IfIndex>,
}

/// An interface has the name of the bridge but is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interface {name} exists and is not a bridge: remove it, or choose another name for the bridge")]
pub struct ForeignBridge {
    name: String,
}

/// Something has a name of ours but is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ForeignSegment {
    #[error(transparent)]
    Device(#[from] ForeignDevice),
    #[error(transparent)]
    Bridge(#[from] ForeignBridge),
}

/// The state of a bridged network in `tables`; and its device's index.
///
/// A station or parameter that is there, but not as we make it, shows as one that nobody asks for: the diff
/// puts it right, or removes it.
///
/// # Errors
/// Device or bridge are somebody else's.
pub fn observed_segment(
    tables: &Tables,
    sought: &Sought<'_>,
    bridge: &SoughtBridge<'_>,
) -> Result<(KernelState, Option<IfIndex>), ForeignSegment> {
    let (mut state, index) = observed(tables, sought)?;
    let found = tables.link_named(bridge.name);
    if let Some(other) = found.filter(|link| link.kind != Kind::Bridge) {
        return Err(ForeignBridge { name: other.name.clone() }.into());
    }
    if let Some(link) = found {
        let own = is_ours(tables, link, sought.network, bridge).then(|| own(link, sought.network));
        state.bridge_in_use = own.is_some() && has_others_ports(tables, link.index, index);
        state.bridge_addresses = if own.is_some() { addresses(tables, link.index) } else { BTreeSet::new() };
        state.answers = answers(tables, link.index);
        state.bridge = Some(BridgeSpec { name: link.name.clone(), own });
    }
    state.old_bridges.remove(bridge.name);
    let device = index.and_then(|index| tables.links.get(&index));
    if let Some((link, vxlan)) = device.and_then(|link| Some((link, vxlan_of(link)?))) {
        if let Some(device) = &mut state.device {
            // Made anew, if it does what we never ask for.
            device.port = if vxlan.plain { vxlan.port } else { 0 };
            device.segment = Some(segment(tables, link, vxlan));
        }
        state.fdb.clear();
        state.stations = stations(tables, link);
        state.flood = flood(tables, link.index, vxlan);
    }
    Ok((state, index))
}

/// The bridge to ask for: ours, of this MAC and MTU, unless an operator has one of the name.
pub fn wanted_bridge(tables: &Tables, network: &str, sought: &SoughtBridge<'_>, mtu: Mtu) -> BridgeSpec {
    let operators =
        tables.link_named(sought.name).is_some_and(|link| !is_ours(tables, link, network, sought));
    let own = (!operators).then_some(OwnBridge { mac: sought.mac, mtu, ready: true });
    BridgeSpec { name: sought.name.to_owned(), own }
}

/// It carries our alias; or it was created with our MAC, but its maker was killed before it got its alias;
/// or it lost that since the agent has it.
fn is_ours(tables: &Tables, link: &Link, network: &str, sought: &SoughtBridge<'_>) -> bool {
    let Some(alias) = &link.alias else {
        let half_made = link.mac == sought.mac && !link.up && tables.ports_of(link.index).next().is_none();
        return half_made || sought.held == Some(link.index);
    };
    *alias == ownership::bridge_alias(network)
}

fn own(link: &Link, network: &str) -> OwnBridge {
    let marked = link.alias.as_ref() == Some(&ownership::bridge_alias(network));
    OwnBridge { mac: link.mac, mtu: link.mtu, ready: link.up && marked }
}

/// Whether `bridge` has ports besides `device` and one that gives head-room.
pub(super) fn has_others_ports(tables: &Tables, bridge: IfIndex, device: Option<IfIndex>) -> bool {
    tables.ports_of(bridge).any(|port| Some(port.index) != device && headroom_of(port) != Some(bridge))
}

/// Names of the bridges of `network` that serve nobody but `device`.
pub(super) fn idle_bridges(tables: &Tables, network: &str, device: Option<IfIndex>) -> BTreeSet<String> {
    let alias = ownership::bridge_alias(network);
    let ours = tables.links_with_alias(&alias).filter(|link| link.kind == Kind::Bridge);
    ours.filter(|link| !has_others_ports(tables, link.index, device)).map(|link| link.name.clone()).collect()
}

fn addresses(tables: &Tables, bridge: IfIndex) -> BTreeSet<IpNetwork> {
    let lasting = tables
        .addresses_of(bridge)
        .filter(|address| !net::is_link_local(address.ip) && !tables.passing.contains(&(bridge, address.ip)));
    lasting.filter_map(|address| IpNetwork::new(address.ip, address.prefix).ok()).collect()
}

/// Neighbours on the bridge that carry our protocol number; those without it are an operator's.
fn answers(tables: &Tables, bridge: IfIndex) -> BTreeMap<IpAddr, Mac> {
    let all = tables.neighbours.range((bridge, IpAddr::from([0; 4]))..);
    let here = all.take_while(|((device, _), _)| *device == bridge);
    here.filter(|(_, neighbour)| neighbour.permanent && neighbour.ours)
        .map(|((_, ip), neighbour)| (*ip, neighbour.mac))
        .collect()
}

/// Stations that `device` has learnt to be behind a VTEP that is none of `nodes`.
pub fn orphans(tables: &Tables, device: IfIndex, nodes: &BTreeSet<IpAddr>) -> BTreeSet<Mac> {
    let learnt = tables.remotes_of(device).filter(|(_, remote)| remote.ages && remote.plain);
    let strange = learnt.filter(|(_, remote)| remote.vtep.is_some_and(|vtep| !nodes.contains(&vtep)));
    strange.map(|(mac, _)| mac).collect()
}

/// The device as a port of whatever bridge.
pub(super) fn segment(tables: &Tables, link: &Link, vxlan: &Vxlan) -> Segment {
    let bridge = link.master.and_then(|master| tables.links.get(&master));
    let bridge = bridge.filter(|bridge| bridge.kind == Kind::Bridge);
    let suppress = tables.ports.get(&link.index).is_some_and(|port| port.neigh_suppress);
    Segment {
        learning: vxlan.learning,
        group: vxlan.group,
        bridge: bridge.map(|bridge| bridge.name.clone()),
        suppress,
    }
}

/// Entries that do not go by themselves, of the device and of the bridge at the device. One of which a half is
/// missing shows behind no VTEP. The bridge's half may be at another port, where the station has moved to, or
/// the host's: the bridge decides that.
fn stations(tables: &Tables, device: &Link) -> BTreeMap<Mac, IpAddr> {
    let nowhere = IpAddr::from([0; 4]);
    let at_bridge = |mac| tables.fdb.get(&(device.master.unwrap_or_default(), mac, 0));
    let told = |mac| at_bridge(mac).is_some_and(|entry| entry.port != device.index || !entry.ages);
    let ours = tables.remotes_of(device.index).filter(|(_, remote)| remote.plain && !remote.ages);
    let mut stations: BTreeMap<_, _> =
        ours.map(|(mac, remote)| (mac, remote.vtep.filter(|_| told(mac)).unwrap_or(nowhere))).collect();
    let here = tables.fdb_of(device.master.unwrap_or_default());
    let here = here.filter(|(_, vlan, entry)| {
        *vlan == 0 && entry.port == device.index && !entry.ages && !entry.permanent
    });
    for (mac, ..) in here {
        stations.entry(mac).or_insert(nowhere);
    }
    stations
}

/// VTEPs that get what goes to all, without what the device itself has been made with.
pub(super) fn flood(tables: &Tables, device: IfIndex, vxlan: &Vxlan) -> BTreeSet<IpAddr> {
    let all = tables.flood_of(device).filter(|flood| flood.plain);
    all.map(|flood| flood.vtep).filter(|vtep| Some(*vtep) != vxlan.group).collect()
}

#[cfg(test)]
mod tests;
