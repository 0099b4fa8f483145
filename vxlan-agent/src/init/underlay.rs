//! Which interface leads to the other nodes.

use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;

use crate::kernel::{Kind, Link, Tables};
use crate::net::{Mtu, full_length, is_link_local};

/// An interface, and whether it can be the underlay.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Seen {
    name: String,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<String>,
    #[serde(skip)]
    candidate: Candidate,
}

/// An interface that can be the underlay.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) mtu: Mtu,
    /// Whether the best default route of an IP version leads out of it.
    pub(super) default_route: bool,
    /// Addresses that others may send to, IPv4 first, the likeliest of each first.
    pub(super) addresses: Vec<Local>,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Local {
    #[serde(skip)]
    v6: bool,
    /// It has a lifetime, of a DHCP client or of a router's advertisement.
    pub(super) lease: bool,
    /// It is a single address: those tend to be virtual ones that wander.
    #[serde(skip)]
    single: bool,
    pub(super) ip: IpAddr,
}

/// Why there is no underlay.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub(crate) enum NoUnderlay {
    #[error("interface '{name}' does not exist; this machine has {there}")]
    Missing { name: String, there: String },
    #[error(
        "interface {name} cannot be the underlay: {reason}; mend that, or name another one with --underlay"
    )]
    Unusable { name: String, reason: String },
    #[error(
        "no interface of this machine can be the underlay: {looked_at}. Set up the one that leads to the other nodes, with an address, and try again"
    )]
    None { looked_at: String },
    #[error(
        "several interfaces can be the underlay, and no default route leads out of one of them: {all}. Name the one that leads to the other nodes with --underlay"
    )]
    Several { all: String },
}

impl Candidate {
    /// The address that others send to.
    pub(super) fn vtep(&self) -> IpAddr {
        self.addresses.first().map_or(IpAddr::from([0; 4]), |address| address.ip)
    }

    pub(super) fn has_ipv6(&self) -> bool {
        self.addresses.iter().any(|address| address.v6)
    }
}

/// All interfaces in `tables`, by index.
pub(super) fn look(tables: &Tables) -> Vec<Seen> {
    tables.links.values().map(|link| seen(link, tables)).collect()
}

fn seen(link: &Link, tables: &Tables) -> Seen {
    let is_default = |v6| tables.default_link(v6).is_some_and(|default| default.index == link.index);
    let reachable = |ip: IpAddr| !is_link_local(ip) && !ip.is_loopback();
    let local = |a: &crate::kernel::Address| Local {
        v6: a.ip.is_ipv6(),
        lease: tables.passing.contains(&(link.index, a.ip)),
        single: a.prefix == full_length(a.ip),
        ip: a.ip,
    };
    let mut addresses: Vec<_> =
        tables.addresses_of(link.index).filter(|a| reachable(a.ip)).map(local).collect();
    addresses.sort();
    let default_route = is_default(false) || is_default(true);
    let candidate = Candidate { name: link.name.clone(), mtu: link.mtu, default_route, addresses };
    Seen { name: link.name.clone(), unusable: unusable(link, &candidate).map(str::to_owned), candidate }
}

fn unusable(link: &Link, candidate: &Candidate) -> Option<&'static str> {
    if link.loopback {
        return Some("it is the loopback interface");
    }
    if matches!(link.kind, Kind::Vxlan(_)) {
        return Some("it is a vxlan device");
    }
    if !link.up {
        return Some("it is down");
    }
    candidate.addresses.is_empty().then_some("it has no address, or link-local ones alone")
}

/// The interface called `wanted`; else that of the default route; else the only one that can be.
pub(super) fn choose(seen: &[Seen], wanted: Option<&str>, tables: &Tables) -> Result<Candidate, NoUnderlay> {
    if let Some(name) = wanted {
        return named(seen, name);
    }
    let usable: Vec<_> =
        seen.iter().filter(|seen| seen.unusable.is_none()).map(|seen| &seen.candidate).collect();
    let by_default = [false, true].into_iter().filter_map(|v6| tables.default_link(v6));
    let chosen = by_default.filter_map(|link| usable.iter().find(|one| one.name == link.name)).next();
    match (chosen, usable.as_slice()) {
        (Some(chosen), _) | (None, [chosen]) => Ok((*chosen).clone()),
        (None, []) => Err(NoUnderlay::None { looked_at: looked_at(seen) }),
        (None, several) => {
            let all = several.iter().map(|one| format!("{} ({})", one.name, one.vtep()));
            Err(NoUnderlay::Several { all: all.collect::<Vec<_>>().join(", ") })
        }
    }
}

fn named(seen: &[Seen], name: &str) -> Result<Candidate, NoUnderlay> {
    let Some(found) = seen.iter().find(|seen| seen.name == name) else {
        let there = seen.iter().map(|seen| seen.name.as_str()).collect::<Vec<_>>().join(", ");
        return Err(NoUnderlay::Missing { name: name.to_owned(), there });
    };
    match &found.unusable {
        Some(reason) => Err(NoUnderlay::Unusable { name: name.to_owned(), reason: reason.clone() }),
        None => Ok(found.candidate.clone()),
    }
}

/// Each interface with the reason why it cannot be.
fn looked_at(seen: &[Seen]) -> String {
    let mut out = String::new();
    for Seen { name, unusable, .. } in seen {
        let comma = if out.is_empty() { "" } else { ", " };
        let _ = write!(out, "{comma}{name} ({})", unusable.as_deref().unwrap_or_default());
    }
    if out.is_empty() { "it has none".to_owned() } else { out }
}
