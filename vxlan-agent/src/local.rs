//! What the machine says of itself where nobody else does: which interface leads to the other
//! nodes, its addresses, and the MACs of the devices that are there. Pure.

use std::net::IpAddr;

use vxlan_ebpf_common::maps::Family;

use crate::kernel::{Address, Kind, Link, Tables};
use crate::net::{Mac, family, full_length};

/// How an operator names the interface that leads to the other nodes.
#[derive(Clone, Debug)]
pub enum Choice {
    /// By name.
    Name(String),
    /// By one of its addresses.
    Address(IpAddr),
    /// By a pattern that its name or one of its addresses matches.
    Pattern(regex::Regex),
    /// The one that leads there.
    Reaching(IpAddr),
}

impl PartialEq for Choice {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Choice {}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "interface {name}"),
            Self::Address(ip) => write!(f, "an interface with {ip}"),
            Self::Pattern(pattern) => write!(f, "an interface that matches {pattern}"),
            Self::Reaching(ip) => write!(f, "the interface that leads to {ip}"),
        }
    }
}

/// What the machine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// The interface that leads to the other nodes, if there is one.
    pub interface: Option<String>,
    /// Over IPv4.
    pub v4: LocalSide,
    /// Over IPv6.
    pub v6: LocalSide,
}

/// The same for one IP version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalSide {
    /// Addresses of the interface that others may reach, the likeliest first.
    pub addresses: Vec<IpAddr>,
    /// MAC of the vxlan device, if it exists.
    pub mac: Option<Mac>,
}

impl Local {
    /// Looks in `tables` for the first of `choices`, or the interface of the default route if there
    /// are none; `devices` are the names of the vxlan devices over IPv4 and IPv6.
    pub fn find(choices: &[Choice], devices: [&str; 2], tables: &Tables) -> Self {
        let link = match choices {
            [] => by_default_route(tables),
            choices => choices.iter().find_map(|choice| chosen(choice, tables)),
        };
        let side = |wanted, device| LocalSide {
            addresses: link.map(|link| addresses(link, wanted, tables)).unwrap_or_default(),
            mac: tables
                .link_named(device)
                .filter(|link| matches!(link.kind, Kind::Vxlan(_)))
                .map(|link| link.mac),
        };
        Self {
            interface: link.map(|link| link.name.clone()),
            v4: side(Family::V4, devices[0]),
            v6: side(Family::V6, devices[1]),
        }
    }

    /// All addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        [&self.v4, &self.v6].into_iter().flat_map(|side| &side.addresses).copied().collect()
    }

    /// Over this IP version.
    pub const fn side(&self, family: Family) -> &LocalSide {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

fn chosen<'t>(choice: &Choice, tables: &'t Tables) -> Option<&'t Link> {
    let matches = |link: &&Link| match choice {
        Choice::Name(name) => link.name == *name,
        Choice::Address(ip) => tables.addresses_of(link.index).any(|a| a.ip == *ip),
        Choice::Pattern(pattern) => {
            let mut addresses = tables.addresses_of(link.index);
            pattern.is_match(&link.name) || addresses.any(|a| pattern.is_match(&a.ip.to_string()))
        }
        // Resolved to a name before anything is looked for.
        Choice::Reaching(_) => false,
    };
    tables.links.values().find(matches)
}

/// IPv4's default route first, as on a host of both IP versions they rarely differ.
fn by_default_route(tables: &Tables) -> Option<&Link> {
    tables.default_link(false).or_else(|| tables.default_link(true))
}

/// Without link-local ones; single addresses last, because those tend to be virtual ones that wander.
fn addresses(link: &Link, wanted: Family, tables: &Tables) -> Vec<IpAddr> {
    let reachable = |a: &&Address| {
        let local = match a.ip {
            IpAddr::V4(ip) => ip.is_link_local(),
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        family(a.ip) == wanted && !local && !a.ip.is_loopback()
    };
    let mut found: Vec<&Address> = tables.addresses_of(link.index).filter(reachable).collect();
    found.sort_by_key(|a| a.prefix == full_length(a.ip));
    found.into_iter().map(|a| a.ip).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::RouteEntry;
    use crate::net::{IfIndex, Mtu};

    fn tables() -> Tables {
        let link = |index, name: &str| Link {
            index: IfIndex(index),
            name: name.into(),
            alias: None,
            kind: Kind::Other,
            mac: Mac::default(),
            mtu: Mtu(1500),
            up: true,
            loopback: false,
            master: None,
            lower: None,
            peer_elsewhere: false,
            makes_addresses: true,
            sends_ethernet: true,
        };
        let address = |index, ip: &str, prefix| Address {
            ifindex: IfIndex(index),
            ip: ip.parse().expect("address"),
            prefix,
        };
        let default = RouteEntry {
            to: "0.0.0.0/0".parse().expect("prefix"),
            priority: 100,
            oif: Some(IfIndex(3)),
            legs: vec![],
            via: None,
            src: None,
            ours: false,
        };
        Tables {
            links: [link(2, "eth0"), link(3, "eth1")].into_iter().map(|l| (l.index, l)).collect(),
            addresses: [
                address(2, "198.51.100.1", 24),
                address(3, "192.0.2.1", 32),
                address(3, "192.0.2.9", 24),
                address(3, "fe80::1", 64),
                address(3, "2001:db8::1", 64),
            ]
            .into(),
            routes: [default].into(),
            ..Tables::default()
        }
    }

    fn found(choices: &[Choice]) -> Option<String> {
        Local::find(choices, ["flannel.1", "flannel-v6.1"], &tables()).interface
    }

    #[test]
    fn the_default_route_leads_to_the_other_nodes_unless_somebody_says_otherwise() {
        assert_eq!(found(&[]).as_deref(), Some("eth1"));
        assert_eq!(found(&[Choice::Name("eth0".into())]).as_deref(), Some("eth0"));
        let address = Choice::Address([198, 51, 100, 1].into());
        assert_eq!(found(&[Choice::Name("eth9".into()), address]).as_deref(), Some("eth0"));
        let pattern = |text| Choice::Pattern(regex::Regex::new(text).expect("pattern"));
        assert_eq!(found(&[pattern("^198\\.51")]).as_deref(), Some("eth0"));
        assert_eq!(found(&[pattern("wlan")]), None);
    }

    #[test]
    fn link_local_addresses_do_not_count_and_single_ones_come_last() {
        let local = Local::find(&[], ["flannel.1", "flannel-v6.1"], &tables());
        assert_eq!(local.v4.addresses, [IpAddr::from([192, 0, 2, 9]), IpAddr::from([192, 0, 2, 1])]);
        assert_eq!(local.v6.addresses, ["2001:db8::1".parse::<IpAddr>().expect("address")]);
    }
}
