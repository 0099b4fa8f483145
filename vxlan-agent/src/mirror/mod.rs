//! What a vxlan device that somebody else manages does, as far as a short cut can do the same. Pure: it is read
//! from netlink's tables and from nothing else, and says what it leaves to the kernel and why.

mod device;
mod routes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::cluster::{ClusterState, Node};
use crate::kernel::Tables;
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
    /// Where it runs. The MTU is the device's.
    pub underlay: Underlay,
    /// This node and the VTEPs that the device has forwarding entries for, named by their addresses.
    pub cluster: ClusterState,
    /// Prefixes inside those of the cluster that only the kernel can route.
    pub holes: BTreeSet<IpNetwork>,
    /// What is left to the kernel, and why: a sentence each.
    pub left: Vec<String>,
}

/// What the device called `device` does on the node `node`.
///
/// # Errors
/// One sentence: why the kernel has to do all of it.
pub fn mirror(tables: &Tables, device: &str, node: &str) -> Result<Mirror, String> {
    let device = Device::find(tables, device)?;
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
    let address = device.underlay.address;
    let own =
        Node { name: node.to_owned(), vtep: address, mac: device.mac, subnets: local, stations: vec![] };
    Ok(Mirror {
        device: device.index,
        vni: device.vni,
        port: device.port,
        underlay: device.underlay,
        cluster: ClusterState { own, own6: None, remotes, policy: None, trouble: None },
        holes,
        left,
    })
}

/// MACs that the device has a lasting forwarding entry for which names a VTEP and nothing else.
fn vteps(tables: &Tables, device: &Device) -> BTreeMap<Mac, IpAddr> {
    let own = device.underlay.address;
    let usable = |vtep: &IpAddr| {
        let odd = vtep.is_multicast() || vtep.is_unspecified() || *vtep == own;
        vtep.is_ipv4() == own.is_ipv4() && !odd
    };
    let lasting = tables.remotes_of(device.index).filter(|(_, remote)| remote.plain && !remote.ages);
    lasting.filter_map(|(mac, remote)| Some((mac, remote.vtep.filter(usable)?))).collect()
}

#[cfg(test)]
mod tests;
