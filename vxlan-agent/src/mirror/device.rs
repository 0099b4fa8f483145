//! The device itself: whether a short cut can do at all what it does.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Sources;
use crate::kernel::{Kind, Link, Tables, Vxlan};
use crate::net::{IfIndex, Mac, Vni};
use crate::ownership;
use crate::underlay::Underlay;

/// A device that a short cut can be taken beside.
#[derive(Clone, Debug)]
pub(super) struct Device {
    pub(super) index: IfIndex,
    pub(super) name: String,
    pub(super) vni: Vni,
    pub(super) port: u16,
    pub(super) mac: Mac,
    /// The bridge that it is a port of.
    pub(super) bridge: Option<String>,
    pub(super) underlay: Underlay,
}

impl Device {
    /// What the device `link` is like.
    ///
    /// # Errors
    /// One sentence: why the kernel has to do all of it.
    pub(super) fn of(tables: &Tables, link: &Link, sources: &Sources) -> Result<Self, String> {
        let (vxlan, vni, bridge) = Self::check(tables, link)?;
        let name = &link.name;
        let Some(local) = vxlan.local.or_else(|| most_common(sources)) else {
            return Err(format!(
                "{name} has no local address, and no VTEP yet that would show what the kernel sends from"
            ));
        };
        let Some(below) = below(tables, vxlan, local) else {
            return Err(format!(
                "{name} sends from {local}, and no interface that leads out has that address"
            ));
        };
        let underlay =
            Underlay { ifindex: below.index, name: below.name.clone(), address: local, inner_mtu: link.mtu };
        Ok(Self {
            index: link.index,
            name: name.clone(),
            vni,
            port: vxlan.port,
            mac: link.mac,
            bridge,
            underlay,
        })
    }

    /// Whether the device can be accelerated at all: its parameters, its VNI, and the bridge that it is a port of.
    ///
    /// # Errors
    /// As [`Device::of`].
    pub(super) fn check<'t>(
        tables: &Tables,
        link: &'t Link,
    ) -> Result<(&'t Vxlan, Vni, Option<String>), String> {
        let name = link.name.as_str();
        let Kind::Vxlan(vxlan) = &link.kind else { return Err(format!("{name} is no vxlan device")) };
        let refuse = |reason: String| Err(format!("{name} {reason}"));
        if let Some(network) = link.alias.as_deref().and_then(ownership::network_of_device) {
            return refuse(format!("is the device of our own network '{network}'"));
        }
        if let Some(reason) = odd(link, vxlan) {
            return refuse(reason.to_owned());
        }
        let bridge = match link.master.map(|master| (master, tables.links.get(&master))) {
            None => None,
            Some((_, Some(master))) if master.kind == Kind::Bridge => Some(master.name.clone()),
            Some((index, master)) => {
                let master = master.map_or_else(|| index.to_string(), |master| master.name.clone());
                return refuse(format!("belongs to {master}, which is no bridge"));
            }
        };
        let Some(vni) = vxlan.vni else { return refuse("has no VNI of its own".to_owned()) };
        Ok((vxlan, vni, bridge))
    }
}

/// The address that the kernel sends from to most VTEPs; of several the lowest.
fn most_common(sources: &Sources) -> Option<IpAddr> {
    let mut counts = BTreeMap::<IpAddr, usize>::new();
    sources.values().for_each(|source| *counts.entry(*source).or_default() += 1);
    counts.into_iter().max_by_key(|(source, count)| (*count, Reverse(*source))).map(|(source, _)| source)
}

/// What about the device only the kernel can do.
fn odd(link: &Link, vxlan: &Vxlan) -> Option<&'static str> {
    if !(link.up && link.sends_ethernet) {
        return Some("is down");
    }
    if !vxlan.plain {
        return Some(
            "does more than a plain vxlan device (external, vnifilter, gbp, gpe, remcsum, rsc or proxy)",
        );
    }
    None
}

/// The interface that the tunnel's packets come in by: the one that the device was made on, else the one with
/// the address.
fn below<'t>(tables: &'t Tables, vxlan: &Vxlan, local: IpAddr) -> Option<&'t Link> {
    let holder = tables.addresses.iter().find(|address| address.ip == local)?.ifindex;
    let link = tables.links.get(&vxlan.underlay.unwrap_or(holder))?;
    if link.loopback { tables.default_link(local.is_ipv6()) } else { Some(link) }
}
