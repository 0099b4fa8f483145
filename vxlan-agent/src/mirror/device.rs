//! The device itself: whether a short cut can do at all what it does.

use std::net::IpAddr;

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
    /// Finds the device called `name`, or else the one that was called so and is `held`.
    ///
    /// # Errors
    /// One sentence: why the kernel has to do all of it.
    pub(super) fn find(tables: &Tables, name: &str, held: Option<IfIndex>) -> Result<Self, String> {
        let renamed = || tables.links.get(&held?).filter(|link| matches!(link.kind, Kind::Vxlan(_)));
        let link = tables.link_named(name).or_else(renamed);
        Self::of(tables, link.ok_or_else(|| format!("there is no interface {name}"))?)
    }

    /// What the device `link` is like.
    ///
    /// # Errors
    /// As [`Device::find`].
    pub(super) fn of(tables: &Tables, link: &Link) -> Result<Self, String> {
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
        let Some(local) = vxlan.local else {
            return refuse("has no local address, so that its source is chosen for each packet".to_owned());
        };
        let Some(below) = below(tables, vxlan, local) else {
            return refuse(format!("sends from {local}, and no interface that leads out has that address"));
        };
        let underlay =
            Underlay { ifindex: below.index, name: below.name.clone(), address: local, inner_mtu: link.mtu };
        let (index, name, mac) = (link.index, name.to_owned(), link.mac);
        Ok(Self { index, name, vni, port: vxlan.port, mac, bridge, underlay })
    }
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
