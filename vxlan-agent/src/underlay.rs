//! Which interface and address the tunnel runs over.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::maps::Family;

use crate::config::{NetworkConfig, NodeConfig};
use crate::kernel::{Link, Tables};
use crate::net::{self, IfIndex, Mtu};

/// The underlay as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// The interface.
    pub ifindex: IfIndex,
    /// Its name.
    pub name: String,
    /// Address to send from.
    pub address: IpAddr,
    /// MTU of the vxlan device.
    pub inner_mtu: Mtu,
}

/// Why there is no usable underlay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Unusable {
    #[error("underlay interface '{0}' does not exist: set [node] underlay to one that does")]
    Missing(String),
    #[error(
        "no interface has this node's VTEP address {0}: add it to one, or set [node] address to the local address behind it"
    )]
    NoAddress(IpAddr),
    #[error("[node] address {0} is on no interface of this machine")]
    BadAddress(IpAddr),
    #[error("[node] address {0} and the VTEP address {1} are of different IP versions")]
    OtherFamily(IpAddr, IpAddr),
    #[error(
        "VTEP address {0} is on the loopback interface and there is no default route: set [node] underlay"
    )]
    Loopback(IpAddr),
    #[error("mtu {wanted} is too large for the underlay: {name} has MTU {mtu}, which leaves {left}")]
    TooLarge { wanted: Mtu, name: String, mtu: Mtu, left: Mtu },
    #[error(
        "the underlay is too small: {name} has MTU {mtu}, the tunnel would have {left} of the {needed} bytes that IP needs"
    )]
    TooSmall { name: String, mtu: Mtu, left: Mtu, needed: Mtu },
    #[error(
        "subnet {subnet} cannot hold pods: it overlaps {on_link}, the network that {name} is in; give pods another"
    )]
    OnLink { subnet: IpNetwork, on_link: IpNetwork, name: String },
}

/// Refuses `subnets` of pods that overlap a network that `underlay` is in.
pub fn check_on_link(underlay: &Underlay, subnets: &[IpNetwork], tables: &Tables) -> Result<(), Unusable> {
    for address in tables.addresses_of(underlay.ifindex).filter(|a| a.prefix < net::full_length(a.ip)) {
        let Ok(on_link) = IpNetwork::new(address.ip, address.prefix) else { continue };
        if let Some(subnet) = subnets.iter().find(|subnet| net::overlap(subnet, &on_link)) {
            let on_link = IpNetwork::new(on_link.network(), address.prefix).unwrap_or(on_link);
            return Err(Unusable::OnLink { subnet: *subnet, on_link, name: underlay.name.clone() });
        }
    }
    Ok(())
}

/// Finds the underlay of a node whose VTEP address in the cluster is `vtep`. `inner_v6`: whether
/// IPv6 runs inside, which needs 1280 bytes (RFC 8200 §5).
pub fn find(
    node: &NodeConfig,
    network: &NetworkConfig,
    vtep: IpAddr,
    inner_v6: bool,
    tables: &Tables,
) -> Result<Underlay, Unusable> {
    let address = node.address.unwrap_or(vtep);
    if address.is_ipv4() != vtep.is_ipv4() {
        return Err(Unusable::OtherFamily(address, vtep));
    }
    let holder = tables.holder(address);
    let link = match (&node.underlay, holder) {
        (Some(name), _) => tables.link_named(name).ok_or_else(|| Unusable::Missing(name.clone()))?,
        (None, Some(link)) if link.loopback => {
            tables.default_link(address.is_ipv6()).ok_or(Unusable::Loopback(address))?
        }
        (None, Some(link)) => link,
        (None, None) if node.address.is_some() => return Err(Unusable::BadAddress(address)),
        (None, None) => return Err(Unusable::NoAddress(address)),
    };
    if holder.is_none() {
        let missing = if node.address.is_some() { Unusable::BadAddress } else { Unusable::NoAddress };
        return Err(missing(address));
    }
    let inner_mtu = inner_mtu(link, network.mtu, net::family(address), inner_v6)?;
    Ok(Underlay { ifindex: link.index, name: link.name.clone(), address, inner_mtu })
}

fn inner_mtu(link: &Link, wanted: Option<Mtu>, outer: Family, inner_v6: bool) -> Result<Mtu, Unusable> {
    let left = Mtu(link.mtu.inside(outer).0.min(65_535));
    let (name, mtu) = (link.name.clone(), link.mtu);
    let inner = match wanted {
        Some(wanted) if wanted > left => return Err(Unusable::TooLarge { wanted, name, mtu, left }),
        Some(wanted) => wanted,
        None => left,
    };
    // RFC 791 §3.2 for IPv4.
    let needed = if inner_v6 { Mtu(1280) } else { Mtu(68) };
    if inner < needed {
        return Err(Unusable::TooSmall { name, mtu, left: inner, needed });
    }
    Ok(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Fastpath, Guard, SourceCheck};
    use crate::kernel::{Address, Kind, RouteEntry};
    use crate::net::{Mac, Vni};

    fn link(index: u32, name: &str, mtu: u32) -> Link {
        Link {
            index: IfIndex(index),
            name: name.into(),
            alias: None,
            kind: Kind::Other,
            mac: Mac::default(),
            mtu: Mtu(mtu),
            up: true,
            loopback: name == "lo",
            master: None,
            lower: None,
            peer_elsewhere: false,
            makes_addresses: true,
            sends_ethernet: true,
        }
    }

    fn tables(mtu: u32) -> Tables {
        let links = [link(1, "lo", 65_536), link(2, "eth0", mtu), link(3, "eth1", mtu)];
        let address = |index, ip: &str| Address {
            ifindex: IfIndex(index),
            ip: ip.parse().expect("address"),
            prefix: 24,
        };
        Tables {
            links: links.into_iter().map(|l| (l.index, l)).collect(),
            addresses: [address(1, "198.51.100.1"), address(2, "192.0.2.1"), address(3, "2001:db8::1")]
                .into(),
            ..Tables::default()
        }
    }

    struct Case {
        underlay: Option<&'static str>,
        address: Option<&'static str>,
        mtu: Option<u32>,
        vtep: &'static str,
        v6: bool,
    }

    const CASE: Case = Case { underlay: None, address: None, mtu: None, vtep: "192.0.2.1", v6: false };

    fn run(case: &Case, tables: &Tables) -> Result<Underlay, Unusable> {
        let node = NodeConfig {
            name: "a".into(),
            underlay: case.underlay.map(str::to_owned),
            address: case.address.map(|a| a.parse().expect("address")),
            pin_dir: "/".into(),
            run_dir: "/".into(),
            attach: crate::config::Attach::Auto,
            xdp: crate::config::Xdp::Auto,
            healthz: None,
            metrics: None,
            connectivity: None,
        };
        let network = NetworkConfig {
            name: "pods".into(),
            kind: crate::config::Kind::L3,
            vni: Vni::try_from(1).expect("in range"),
            port: 8472,
            mtu: case.mtu.map(Mtu),
            device: "vxlan1".into(),
            fastpath: Fastpath::Direct,
            source_check: SourceCheck::Drop,
            flows: 256,
            malformed: Guard::Kernel,
            other_vni: Guard::Kernel,
            notrack: false,
            direct_routing: false,
            headers: crate::kernel::WantedHeaders::default(),
        };
        find(&node, &network, case.vtep.parse().expect("address"), case.v6, tables)
    }

    #[test]
    fn the_underlay_is_the_interface_with_the_vtep_address() {
        let found = run(&CASE, &tables(1500)).expect("usable");
        assert_eq!((found.name.as_str(), found.inner_mtu), ("eth0", Mtu(1450)));
        let found = run(&Case { vtep: "2001:db8::1", ..CASE }, &tables(1500)).expect("usable");
        assert_eq!((found.name.as_str(), found.inner_mtu), ("eth1", Mtu(1430)));
    }

    #[test]
    fn behind_nat_the_local_address_is_configured() {
        let case = Case { vtep: "203.0.113.9", address: Some("192.0.2.1"), ..CASE };
        assert_eq!(run(&case, &tables(1500)).expect("usable").name, "eth0");
    }

    #[test]
    fn an_address_on_loopback_leaves_by_the_default_route() {
        let case = Case { vtep: "198.51.100.1", ..CASE };
        assert_eq!(
            run(&case, &tables(1500)),
            Err(Unusable::Loopback("198.51.100.1".parse().expect("address")))
        );
        let mut tables = tables(1500);
        let to = "0.0.0.0/0".parse().expect("prefix");
        tables.routes.insert(RouteEntry {
            to,
            priority: 0,
            oif: Some(IfIndex(3)),
            legs: vec![],
            via: None,
            src: None,
            ours: false,
        });
        assert_eq!(run(&case, &tables).expect("usable").name, "eth1");
        let several = tables.routes.pop_first().expect("the route");
        tables.routes.insert(RouteEntry { oif: None, legs: vec![IfIndex(2), IfIndex(3)], ..several });
        assert_eq!(run(&case, &tables).expect("usable").name, "eth0");
    }

    #[test]
    fn what_is_missing_is_named() {
        let refused = |case: &Case, word: &str| {
            let reason = run(case, &tables(1500)).expect_err(word).to_string();
            assert!(reason.contains(word), "{reason}");
        };
        refused(&Case { underlay: Some("eth9"), ..CASE }, "'eth9' does not exist");
        refused(
            &Case { vtep: "203.0.113.9", ..CASE },
            "no interface has this node's VTEP address 203.0.113.9",
        );
        refused(&Case { address: Some("203.0.113.9"), ..CASE }, "on no interface");
        refused(&Case { address: Some("2001:db8::1"), ..CASE }, "different IP versions");
    }

    #[test]
    fn an_underlay_that_is_too_small_is_refused() {
        let reason =
            run(&Case { mtu: Some(1451), ..CASE }, &tables(1500)).expect_err("too large").to_string();
        assert!(reason.contains("which leaves 1450"), "{reason}");
        assert!(run(&Case { mtu: Some(1450), ..CASE }, &tables(1500)).is_ok());
        let reason = run(&Case { v6: true, ..CASE }, &tables(1329)).expect_err("too small").to_string();
        assert!(reason.contains("1279 of the 1280 bytes"), "{reason}");
        assert!(run(&Case { v6: true, ..CASE }, &tables(1330)).is_ok());
    }

    #[test]
    fn pods_take_no_addresses_of_the_underlays_segment() {
        let tables = tables(1500);
        let underlay = run(&CASE, &tables).expect("usable");
        let check = |subnet: &str| check_on_link(&underlay, &[subnet.parse().expect("a subnet")], &tables);
        for overlapping in ["192.0.2.0/24", "192.0.2.128/25", "192.0.0.0/16"] {
            let refused = check(overlapping).expect_err(overlapping).to_string();
            assert!(refused.contains("overlaps 192.0.2.0/24"), "{refused}");
        }
        assert_eq!(check("192.0.3.0/24"), Ok(()));
        assert_eq!(check("2001:db8::/64"), Ok(()), "of another interface");
    }
}
