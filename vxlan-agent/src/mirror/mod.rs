//! What a vxlan device that somebody else manages does, as far as a short cut can do the same. Pure: it is read
//! from netlink's tables and from nothing else, and says what it leaves to the kernel and why.

mod device;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::{ClusterState, Node};
use crate::kernel::{Link, Tables};
use crate::net::{IfIndex, Mac, Vni};
use crate::underlay::Underlay;

use device::Device;
use routes::Routes;

/// Sentences about single routes, beyond which they are only counted.
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

/// What the device called `device` does on the node `node`. It is still the same if it is `held`, and called otherwise
/// by now.
///
/// # Errors
/// One sentence: why the kernel has to do all of it.
pub fn mirror(tables: &Tables, device: &str, held: Option<IfIndex>, node: &str) -> Result<Mirror, String> {
    let device = Device::find(tables, device, held)?;
    match device.bridge {
        Some(_) => Ok(bridged(tables, device, node)),
        None => Ok(routed(tables, device, node)),
    }
}

/// Whether a short cut can be taken beside the vxlan device `link` at all.
///
/// # Errors
/// One sentence: why the kernel has to do all of it.
pub fn check(tables: &Tables, link: &Link) -> Result<(), String> {
    Device::of(tables, link).map(drop)
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
    let Routes { to_vteps, local, holes, mut left } = Routes::find(tables, &device, &vteps);
    let count = left.len();
    left.truncate(MOST);
    left.extend(count.checked_sub(MOST).filter(|more| *more > 0).map(|more| format!("{more} more routes")));
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
            cluster: ClusterState { own, own6: None, remotes, policy: None, trouble: None },
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
