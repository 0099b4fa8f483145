//! Whether and where packets are taken out of their tunnel before the stack sees them.

use std::fs;

use crate::config::Xdp;
use crate::kernel::{Kind, Link, Tables};
use crate::net::IfIndex;

/// Drivers whose native XDP leaves them their receive offloads, so that segments merge behind it:
/// those that build their socket buffers from pages, with room for metadata. Others need to be asked
/// for: a veth loses its peer's segmentation offload, virtio-net its large receive buffers.
const GAINING: [&str; 6] = ["i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core"];

/// Why there is no XDP.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Declined {
    #[error("switched off")]
    Off,
    #[error("{0} is virtual: XDP would cost it its offloads")]
    Virtual(String),
    #[error("{1}, the driver of {0}, is not known to gain")]
    Driver(String, String),
    #[error("the driver of {0} is unknown")]
    UnknownDriver(String),
    #[error("the interface below {0} is not in this network namespace")]
    NoLower(String),
    #[error("{0}")]
    NotLoaded(String),
}

/// Where the program goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The interface.
    pub ifindex: IfIndex,
    /// Its name.
    pub name: String,
    /// The VLAN of it that the underlay is, 0 if it is the underlay.
    pub vlan: u16,
}

/// The interface to attach to: the underlay's, or the one below it if that is a VLAN. `driver` names
/// an interface's driver.
pub fn place(
    mode: Xdp,
    underlay: IfIndex,
    tables: &Tables,
    driver: impl Fn(&Link) -> Option<String>,
) -> Result<Place, Declined> {
    if mode == Xdp::Off {
        return Err(Declined::Off);
    }
    let unnamed = || Declined::NoLower(format!("interface {underlay}"));
    let link = tables.links.get(&underlay).ok_or_else(unnamed)?;
    let (link, vlan) = match (&link.kind, link.lower) {
        (Kind::Vlan(vlan), Some(lower)) if !link.peer_elsewhere => {
            (tables.links.get(&lower).ok_or_else(|| Declined::NoLower(link.name.clone()))?, *vlan)
        }
        (Kind::Vlan(_), _) => return Err(Declined::NoLower(link.name.clone())),
        _ => (link, 0),
    };
    let name = link.name.clone();
    let place = Place { ifindex: link.index, name: name.clone(), vlan };
    if mode == Xdp::Native {
        return Ok(place);
    }
    if link.kind != Kind::Other {
        return Err(Declined::Virtual(name));
    }
    match driver(link) {
        Some(driver) if GAINING.contains(&driver.as_str()) => Ok(place),
        Some(driver) => Err(Declined::Driver(name, driver)),
        None => Err(Declined::UnknownDriver(name)),
    }
}

/// The driver of an interface as sysfs names it. A sysfs that shows another network namespace's
/// interfaces knows nothing about ours.
pub fn driver(link: &Link) -> Option<String> {
    let dir = std::path::Path::new("/sys/class/net").join(&link.name);
    let index: u32 = fs::read_to_string(dir.join("ifindex")).ok()?.trim().parse().ok()?;
    if index != link.index.0 {
        return None;
    }
    let driver = fs::read_link(dir.join("device/driver")).ok()?;
    Some(driver.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Mac, Mtu};

    fn link(index: u32, name: &str, kind: Kind) -> Link {
        Link {
            index: IfIndex(index),
            name: name.into(),
            alias: None,
            kind,
            mac: Mac::default(),
            mtu: Mtu(1500),
            up: true,
            loopback: false,
            master: None,
            lower: None,
            peer_elsewhere: false,
            makes_addresses: true,
            sends_ethernet: true,
        }
    }

    /// Where XDP goes with an underlay on interface 2, above interface 1.
    fn placed(mode: Xdp, underlay: Link, name: Option<&str>) -> Result<(u32, u16), String> {
        let links = [link(1, "eth0", Kind::Other), underlay];
        let tables = Tables { links: links.into_iter().map(|l| (l.index, l)).collect(), ..Tables::default() };
        let found = place(mode, IfIndex(2), &tables, |_| name.map(str::to_owned));
        found.map(|place| (place.ifindex.0, place.vlan)).map_err(|declined| declined.to_string())
    }

    fn vlan() -> Link {
        Link { lower: Some(IfIndex(1)), ..link(2, "eth0.5", Kind::Vlan(5)) }
    }

    #[test]
    fn by_itself_it_goes_to_drivers_that_gain() {
        assert_eq!(placed(Xdp::Auto, link(2, "eth1", Kind::Other), Some("mlx5_core")), Ok((2, 0)));
        let refused = |kind, driver| placed(Xdp::Auto, link(2, "eth1", kind), driver).expect_err("declined");
        assert_eq!(refused(Kind::Veth, None), "eth1 is virtual: XDP would cost it its offloads");
        assert!(refused(Kind::Other, Some("virtio_net")).contains("virtio_net, the driver of eth1"));
        assert_eq!(refused(Kind::Other, None), "the driver of eth1 is unknown");
    }

    #[test]
    fn when_asked_for_it_goes_anywhere() {
        assert_eq!(placed(Xdp::Native, link(2, "eth1", Kind::Veth), None), Ok((2, 0)));
        assert_eq!(placed(Xdp::Off, link(2, "eth1", Kind::Other), Some("ice")), Err("switched off".into()));
    }

    #[test]
    fn below_a_vlan_it_goes_to_the_interface_that_receives() {
        assert_eq!(placed(Xdp::Native, vlan(), None), Ok((1, 5)));
        assert_eq!(placed(Xdp::Auto, vlan(), Some("ice")), Ok((1, 5)));
        let refused = placed(Xdp::Native, Link { lower: Some(IfIndex(7)), ..vlan() }, None);
        assert!(refused.expect_err("elsewhere").contains("below eth0.5"));
        let refused = placed(Xdp::Native, Link { peer_elsewhere: true, ..vlan() }, None);
        assert!(refused.expect_err("elsewhere").contains("below eth0.5"));
    }
}
