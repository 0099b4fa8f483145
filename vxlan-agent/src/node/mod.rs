//! What pods need of their node besides the overlay: the subnet file, the CNI configuration, and
//! nf_tables tables.
//!
//! The contents are built by pure functions from [`Facts`]. The agent's status has what was written
//! last, so that `detach` knows which files are still as we wrote them.

mod cni;
mod file;
mod guard;
mod masquerade;
mod packet;
mod subnet_env;
mod table;
mod tunnels;
mod untracked;

use std::path::PathBuf;

use ipnetwork::IpNetwork;

pub use file::{remove_if_same, write_if_other};
pub use guard::Guard;
pub use masquerade::Masquerade;
pub use table::{
    Change, named as named_tables, remove as remove_table, remove_unused as remove_unused_tables,
};
pub use tunnels::{Installed, TunnelTable};

use crate::config::{Cni, PodsConfig};
use crate::net::Mtu;

/// What the files say.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What is asked for.
    pub config: &'a PodsConfig,
    /// Networks of all pods of the cluster.
    pub networks: &'a [IpNetwork],
    /// The node's own pod subnets.
    pub subnets: &'a [IpNetwork],
    /// What fits into the tunnel.
    pub mtu: Mtu,
}

/// The files that should be there, in the order in which they should appear: the CNI
/// configuration is last, because from then on pods are started.
pub fn files(facts: &Facts<'_>) -> Vec<(PathBuf, String)> {
    let subnet_file = facts.config.subnet_file.clone().map(|path| (path, subnet_env::content(facts)));
    let conflist = match facts.config.cni {
        Cni::Off => None,
        Cni::Bridge => Some(cni::for_bridge(facts)),
        Cni::Flannel => Some(cni::for_flannel()),
    };
    let conflist = conflist.map(|content| (facts.config.cni_file.clone(), content));
    subnet_file.into_iter().chain(conflist).collect()
}

/// The first of `networks` that has the IP version asked for.
fn of_version(networks: &[IpNetwork], v4: bool) -> Option<IpNetwork> {
    networks.iter().find(|network| network.is_ipv4() == v4).copied()
}

#[cfg(test)]
mod tests;
