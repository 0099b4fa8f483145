//! What pods need of their node besides the overlay, put in place once that stands.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::Agent;
use crate::cluster::Node;
use crate::config::SourceCheck;
use crate::kernel::nft::expression::Ports;
use crate::net::Mtu;
use crate::node::{self, Facts, Guard, Table};
use crate::ownership;

/// Stands for the nf_tables table in the list of what failed.
const TABLE: &str = "nf_tables";

impl Agent {
    /// The files, after all the rest: a pod starts because of them.
    pub(super) fn set_up_for_pods(&mut self, wanted: &mut BTreeSet<String>) {
        // A pod has one interface for all IP versions.
        if let Some(mtu) = self.underlays.iter().map(|underlay| underlay.inner_mtu).min() {
            self.write_files(mtu, wanted);
        }
    }

    /// The table, before anything can arrive through the tunnel. `look`: whether somebody may have taken
    /// the rules away.
    pub(super) fn set_table(&mut self, look: bool, wanted: &mut BTreeSet<String>) {
        let (desired, now) = (self.desired_table(), Instant::now());
        wanted.insert(TABLE.to_owned());
        let known = self.table.as_ref() == Some(&desired);
        // Where nothing is wanted, an earlier agent's rules are looked for once.
        if known && (!look || desired.is_none()) || !self.retries.is_due(TABLE, now) {
            return;
        }
        let done = match &desired {
            Some(table) => table.install(),
            None => node::remove_table(&self.config.network.name),
        };
        match done {
            Ok(changed) => {
                if self.table.is_none() {
                    self.remove_unused_tables();
                }
                if changed {
                    let masquerade = desired.as_ref().is_some_and(|table| !table.masquerade.is_empty());
                    let notrack = desired.as_ref().is_some_and(|table| table.untracked.is_some());
                    tracing::info!(masquerade, notrack, "nf_tables table replaced");
                }
                self.table = Some(desired);
                self.retries.held(TABLE);
            }
            // The rest does without it, rather than that nothing stands.
            Err(error) if desired.as_ref().is_some_and(|table| table.guard.is_some()) && !self.no_guard => {
                tracing::warn!("the tunnel's port is not guarded outside of the fast path: {error:#}");
                self.no_guard = true;
                self.set_table(look, wanted);
            }
            Err(error) => {
                self.table = None;
                self.retries.failed(TABLE.to_owned(), &error, now);
            }
        }
    }

    /// Tables of a network that was called otherwise: nobody else would take them away.
    fn remove_unused_tables(&self) {
        let aliases = || self.tables.links.values().filter_map(|link| link.alias.as_deref());
        let is_served =
            |network: &str| aliases().any(|alias| ownership::network_of_device(alias) == Some(network));
        match node::remove_unused_tables(&self.config.network.name, is_served) {
            Ok(removed) => removed.iter().for_each(|network| {
                tracing::info!(network, "nf_tables table of a network without a device removed");
            }),
            Err(error) => tracing::debug!("cannot look for tables of other networks: {error:#}"),
        }
    }

    /// `None`: nothing is asked for that needs one.
    fn desired_table(&self) -> Option<Table> {
        let (config, network) = (&self.config.pods, &self.config.network);
        let networks = config.networks.iter().filter(|_| config.masquerade);
        let table = Table {
            network: network.name.clone(),
            masquerade: networks.map(|pods| (*pods, self.device_to(pods).to_owned())).collect(),
            ports: if config.random_ports { Ports::Random } else { Ports::Kept },
            untracked: network.notrack.then_some(network.port),
            guard: self.guard(),
        };
        table.is_needed().then_some(table)
    }

    /// Who may send through the tunnel, where strangers are dropped.
    fn guard(&self) -> Option<Guard> {
        let network = &self.config.network;
        if network.source_check != SourceCheck::Drop || self.no_guard {
            return None;
        }
        let own = |node: &Node| (node.vtep, IpNetwork::from(node.vtep));
        let nodes = self.cluster.remotes.values();
        let sources =
            nodes.flat_map(|node| node.subnets.iter().map(|s| (node.vtep, *s)).chain([own(node)])).collect();
        let pods = self.cluster.own_subnets();
        Some(Guard { port: network.port, vni: network.vni, sources, pods })
    }

    /// The vxlan device that leads to `pods` of other nodes.
    fn device_to(&self, pods: &IpNetwork) -> &str {
        let same_version = |own: &&Node| own.subnets.iter().any(|s| s.is_ipv4() == pods.is_ipv4());
        let own = self.cluster.owns().find(same_version).unwrap_or(&self.cluster.own);
        self.config.device_over(own.vtep)
    }

    fn write_files(&mut self, mtu: Mtu, wanted: &mut BTreeSet<String>) {
        let (config, subnets) = (&self.config.pods, self.cluster.own_subnets());
        let facts = Facts { config, networks: &config.networks, subnets: &subnets, mtu };
        for (path, content) in node::files(&facts) {
            let (key, now) = (format!("write {}", path.display()), Instant::now());
            wanted.insert(key.clone());
            if !self.retries.is_due(&key, now) {
                continue;
            }
            match node::write_if_other(&path, &content) {
                Ok(changed) => {
                    if changed {
                        tracing::info!(path = %path.display(), "written");
                    }
                    self.retries.held(&key);
                    self.files.insert(path, content);
                }
                Err(error) => self.retries.failed(key, &error, now),
            }
        }
    }
}
