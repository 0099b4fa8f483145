//! What a vxlan device that somebody else manages does, as far as a short cut can do the same. Pure: it is read
//! from netlink's tables and from nothing else, and says what it leaves to the kernel and why.

mod carve;
mod device;
mod lookup;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::{ClusterState, Node};
use crate::kernel::{Kind, Link, Tables};
use crate::net::{IfIndex, Mac, Vni};
use crate::underlay::Underlay;

use device::Device;
use routes::Routes;

/// Sentences about single routes or devices, beyond which they are only counted.
const MOST: usize = 8;

/// A device, seen as a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The device.
    pub device: IfIndex,
    /// Its VNI.
    pub vni: Vni,
    /// Its UDP port.
    pub port: u16,
    /// The bridge that it is a port of: frames are bridged then, and no packets routed.
    pub bridge: Option<String>,
    /// Where it runs. The MTU is the device's.
    pub underlay: Underlay,
    /// This node and the VTEPs that the device has forwarding entries for, named by their addresses.
    pub cluster: ClusterState,
    /// Prefixes inside those of the cluster that only the kernel can route.
    pub holes: BTreeSet<IpNetwork>,
    /// What is left to the kernel, and why: a sentence each.
    pub left: Vec<String>,
}

/// Addresses that the kernel sends from, by destination, where the device does not say so itself.
pub type Sources = BTreeMap<IpAddr, IpAddr>;

/// Which device is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    /// Its name.
    pub device: &'a str,
    /// It is still the same if it is this one, and called otherwise by now.
    pub held: Option<IfIndex>,
    /// This node.
    pub node: &'a str,
}

/// What a device does.
///
/// # Errors
/// One sentence: why the kernel has to do all of it.
pub fn mirror(tables: &Tables, sought: &Sought<'_>, sources: &Sources) -> Result<Mirror, String> {
    let Sought { device, held, node } = *sought;
    let link = find(tables, device, held).ok_or_else(|| format!("there is no interface {device}"))?;
    let device = Device::of(tables, link, sources)?;
    let mut mirror = match device.bridge {
        Some(_) => bridged(tables, device, node),
        None => routed(tables, device, node),
    };
    mirror.left.extend(other_sources(&mirror, sources));
    Ok(mirror)
}

/// The interface called `name`, or else the vxlan device that was called so and is `held`.
pub fn find<'t>(tables: &'t Tables, name: &str, held: Option<IfIndex>) -> Option<&'t Link> {
    let renamed = || tables.links.get(&held?).filter(|link| matches!(link.kind, Kind::Vxlan(_)));
    tables.link_named(name).or_else(renamed)
}

/// All VTEPs that the device sends to, of the IP version of the first one.
pub fn destinations(tables: &Tables, device: IfIndex) -> BTreeSet<IpAddr> {
    let known = tables.remotes_of(device).filter_map(|(_, remote)| remote.vtep.filter(|_| remote.plain));
    let flooded = tables.flood_of(device).filter(|flood| flood.plain).map(|flood| flood.vtep);
    let mut vteps: BTreeSet<IpAddr> = known.chain(flooded).filter(|vtep| !vtep.is_multicast()).collect();
    let v4 = vteps.first().is_some_and(IpAddr::is_ipv4);
    vteps.retain(|vtep| vtep.is_ipv4() == v4);
    vteps
}

/// Sentences about VTEPs that the kernel sends to from another address than to most.
fn other_sources(mirror: &Mirror, sources: &Sources) -> Vec<String> {
    let own = mirror.underlay.address;
    let vteps = mirror.cluster.remotes.values().map(|node| node.vtep);
    let others = vteps.filter_map(|vtep| Some((vtep, *sources.get(&vtep)?))).filter(|(_, from)| *from != own);
    let sentence =
        |(vtep, from)| format!("the VTEP {vtep}: the kernel sends to it from {from}, and to most from {own}");
    shorten(others.map(sentence).collect(), "VTEPs")
}

/// The first sentences, and how many more there are.
pub fn shorten(mut sentences: Vec<String>, what: &str) -> Vec<String> {
    let more = sentences.len().saturating_sub(MOST);
    sentences.truncate(MOST);
    sentences.extend((more > 0).then(|| format!("{more} more {what}")));
    sentences
}

/// Whether a short cut can be taken beside the vxlan device `link` at all.
///
/// # Errors
/// One sentence: why the kernel has to do all of it.
pub fn check(tables: &Tables, link: &Link) -> Result<(), String> {
    Device::check(tables, link).map(drop)
}

/// A device whose bridge has frames for it.
fn bridged(tables: &Tables, device: Device, node: &str) -> Mirror {
    let own = device.underlay.address;
    let known = tables.remotes_of(device.index).filter(|(_, remote)| remote.plain);
    let flooded = tables.flood.iter().filter(|flood| flood.device == device.index && flood.plain);
    let vteps = known.filter_map(|(_, remote)| remote.vtep).chain(flooded.map(|flood| flood.vtep));
    let vteps: BTreeSet<IpAddr> = vteps.filter(|vtep| is_usable(*vtep, own)).collect();
    let named = |vtep: IpAddr| {
        let name = vtep.to_string();
        (name.clone(), Node { name, vtep, mac: Mac::default(), subnets: vec![], stations: vec![] })
    };
    let odd = tables.remotes_of(device.index).filter(|(_, remote)| !remote.plain).count();
    let odd = (odd > 0).then(|| {
        format!(
            "{odd} stations, whose forwarding entries have a VNI, a port or a next hop object of their own"
        )
    });
    device.mirror(node, vec![], vteps.into_iter().map(named).collect(), odd.into_iter().collect())
}

/// A device that packets are routed through.
fn routed(tables: &Tables, device: Device, node: &str) -> Mirror {
    let vteps = vteps(tables, &device);
    let Routes { to_vteps, local, holes, left } = Routes::find(tables, &device, &vteps);
    let left = shorten(left, "routes");
    let mut remotes = BTreeMap::<IpAddr, Node>::new();
    for (mac, vtep) in &vteps {
        let subnets = to_vteps.get(mac).cloned().unwrap_or_default();
        let name = vtep.to_string();
        let found = Node { name, vtep: *vtep, mac: *mac, subnets, stations: vec![] };
        match remotes.get_mut(vtep) {
            // A VTEP has one MAC here: the one that routes lead to.
            Some(known) if known.subnets.is_empty() => *known = found,
            Some(_) => {}
            None => _ = remotes.insert(*vtep, found),
        }
    }
    let remotes = remotes.into_values().map(|node| (node.name.clone(), node)).collect();
    Mirror { holes, ..device.mirror(node, local, remotes, left) }
}

impl Device {
    /// What it does, without holes.
    fn mirror(
        self,
        node: &str,
        local: Vec<IpNetwork>,
        remotes: BTreeMap<String, Node>,
        left: Vec<String>,
    ) -> Mirror {
        let (name, vtep) = (node.to_owned(), self.underlay.address);
        let own = Node { name, vtep, mac: self.mac, subnets: local, stations: vec![] };
        Mirror {
            device: self.index,
            vni: self.vni,
            port: self.port,
            bridge: self.bridge,
            underlay: self.underlay,
            cluster: ClusterState {
                own,
                own6: None,
                remotes,
                policy: None,
                trouble: None,
                left_out: Default::default(),
            },
            holes: BTreeSet::new(),
            left,
        }
    }
}

/// Whether `vtep` can be another node's, if this one's is `own`.
fn is_usable(vtep: IpAddr, own: IpAddr) -> bool {
    vtep.is_ipv4() == own.is_ipv4() && !(vtep.is_multicast() || vtep.is_unspecified() || vtep == own)
}

/// MACs that the device has a lasting forwarding entry for which names a VTEP and nothing else.
fn vteps(tables: &Tables, device: &Device) -> BTreeMap<Mac, IpAddr> {
    let own = device.underlay.address;
    let usable = |vtep: &IpAddr| is_usable(*vtep, own);
    let lasting = tables.remotes_of(device.index).filter(|(_, remote)| remote.plain && !remote.ages);
    lasting.filter_map(|(mac, remote)| Some((mac, remote.vtep.filter(usable)?))).collect()
}

#[cfg(test)]
mod tests;
