//! What pods need of their node besides the overlay, put in place once that stands.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::machine::Machine;
use super::network::Network;
use crate::cluster::Node;
use crate::config::SourceCheck;
use crate::kernel::nft::expression::Ports;
use crate::net::Mtu;
use crate::node::{self, Change, Facts, Guard, Table};
use crate::ownership;

/// Stands for the nf_tables table in the list of what failed.
const TABLE: &str = "nf_tables";

impl Network {
    /// The files, after all the rest: a pod starts because of them.
    pub(super) fn set_up_for_pods(&mut self, machine: &mut Machine, wanted: &mut BTreeSet<String>) {
        // A pod has one interface for all IP versions.
        if let Some(mtu) = self.underlays.iter().map(|underlay| underlay.inner_mtu).min() {
            self.write_files(machine, mtu, wanted);
        }
    }

    /// The table, before anything can arrive through the tunnel. `look`: whether somebody may have taken
    /// rules or elements away.
    pub(super) fn set_table(&mut self, machine: &mut Machine, look: bool, wanted: &mut BTreeSet<String>) {
        self.note_addresses();
        if look && self.no_guard.take().is_some() {
            // A module may have been loaded.
            self.no_guard = self.desired_table().as_ref().and_then(Table::no_guard);
        }
        let (desired, now) = (self.desired_table(), Instant::now());
        let key = self.key(TABLE);
        wanted.insert(key.clone());
        let known = self.table.as_ref() == Some(&desired);
        // Where nothing is wanted, an earlier agent's rules are looked for once.
        if known && (!look || desired.is_none()) || !machine.retries.is_due(&key, now) {
            return;
        }
        match self.install(desired.as_ref()) {
            Ok(()) => {
                if self.table.is_none() {
                    Self::remove_unused_tables(machine);
                }
                self.table = Some(desired);
                machine.retries.held(&key);
            }
            Err(error) => {
                if let Some(reason) = desired.as_ref().and_then(Table::no_guard) {
                    // The rest does without it, rather than that nothing stands.
                    tracing::warn!("the tunnel's port is not guarded outside of the fast path: {reason}");
                    self.no_guard = Some(reason);
                    return self.set_table(machine, false, wanted);
                }
                self.table = None;
                machine.retries.failed(key, &error, now);
            }
        }
    }

    /// Remembers what other nodes know this one by.
    fn note_addresses(&mut self) {
        self.known_by.extend(self.cluster.owns().map(|own| own.vtep));
    }

    /// The table, if nothing is known of it yet.
    pub(super) fn new_table(&mut self) -> Option<Table> {
        self.note_addresses();
        self.desired_table().filter(|_| self.table.is_none())
    }

    fn install(&self, desired: Option<&Table>) -> anyhow::Result<()> {
        let Some(table) = desired else {
            return node::remove_table(&self.config.network.name).map(drop);
        };
        match table.install()? {
            Change::Table => {
                let (masquerade, notrack) = (!table.masquerade.is_empty(), table.untracked.is_some());
                let guard = table.guard.is_some();
                tracing::info!(masquerade, notrack, guard, "nf_tables table replaced");
            }
            Change::Elements => tracing::debug!("elements of the nf_tables table changed"),
            Change::Nothing => {}
        }
        Ok(())
    }

    /// Tables of a network that was called otherwise: nobody else would take them away.
    fn remove_unused_tables(machine: &Machine) {
        let aliases = || machine.tables.links.values().filter_map(|link| link.alias.as_deref());
        let has_device =
            |network: &str| aliases().any(|alias| ownership::network_of_device(alias) == Some(network));
        let is_served = |network: &str| machine.configured.contains(network) || has_device(network);
        match node::remove_unused_tables(is_served) {
            Ok(removed) => removed.iter().for_each(|network| {
                tracing::info!(network, "nf_tables table of a network without a device removed");
            }),
            Err(error) => tracing::debug!("cannot look for tables of other networks: {error:#}"),
        }
    }

    /// `None`: nothing is asked for that needs one.
    fn desired_table(&self) -> Option<Table> {
        if self.is_accelerated() {
            return None;
        }
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
        if network.source_check != SourceCheck::Drop || self.no_guard.is_some() {
            return None;
        }
        let own = |node: &Node| (node.vtep, IpNetwork::from(node.vtep));
        let nodes = self.cluster.remotes.values();
        let sources =
            nodes.flat_map(|node| node.subnets.iter().map(|s| (node.vtep, *s)).chain([own(node)])).collect();
        let own = self.known_by.iter().copied().filter(|ip| !self.is_translated(*ip));
        let mut own: BTreeSet<IpAddr> = own.collect();
        let mut pods = self.cluster.own_subnets();
        if let Some(segment) = network.segment() {
            // Where any address will do, a group's will do, too.
            let group = segment.flood.group();
            own.extend(group.filter(|group| own.iter().any(|ip| ip.is_ipv4() == group.is_ipv4())));
            // Stations that have this host as their router.
            pods.extend(
                segment.addresses.iter().filter_map(|ip| IpNetwork::new(ip.network(), ip.prefix()).ok()),
            );
            pods.sort();
            pods.dedup();
        }
        let bridged = network.segment().is_some();
        Some(Guard { port: network.port, vni: network.vni, own, sources, bridged, pods })
    }

    /// Whether this node is known by an address of another machine: to which of its own that one passes
    /// packets on, nobody says.
    fn is_translated(&self, vtep: IpAddr) -> bool {
        let mut here = self.underlays.iter().map(|underlay| underlay.address);
        here.any(|ip| ip.is_ipv4() == vtep.is_ipv4() && self.cluster.owns().all(|own| own.vtep != ip))
    }

    /// Whether strangers' packets are kept from the vxlan device, in a word, and why not.
    pub(super) fn guarded(&self) -> String {
        let in_place = self.table.iter().flatten().any(|table| table.guard.is_some());
        match &self.no_guard {
            _ if self.is_accelerated() => "no: somebody else manages the device".into(),
            Some(reason) => format!("no: {reason}"),
            None if self.config.network.source_check != SourceCheck::Drop => {
                "no: strangers are counted only".into()
            }
            None if in_place => "yes".into(),
            None => "not yet".into(),
        }
    }

    /// The vxlan device that leads to `pods` of other nodes.
    fn device_to(&self, pods: &IpNetwork) -> &str {
        let same_version = |own: &&Node| own.subnets.iter().any(|s| s.is_ipv4() == pods.is_ipv4());
        let own = self.cluster.owns().find(same_version).unwrap_or(&self.cluster.own);
        self.config.device_over(own.vtep)
    }

    fn write_files(&mut self, machine: &mut Machine, mtu: Mtu, wanted: &mut BTreeSet<String>) {
        let (config, subnets) = (&self.config.pods, self.cluster.own_subnets());
        let facts = Facts { config, networks: &config.networks, subnets: &subnets, mtu };
        let files = node::files(&facts);
        self.files.retain(|path, content| {
            let stays = files.iter().any(|(wanted, _)| wanted == path) || machine.files.contains(path);
            stays || !remove_file(path, content)
        });
        for (path, content) in files {
            let (key, now) = (format!("write {}", path.display()), Instant::now());
            wanted.insert(key.clone());
            if !machine.retries.is_due(&key, now) {
                continue;
            }
            match node::write_if_other(&path, &content) {
                Ok(changed) => {
                    if changed {
                        tracing::info!(path = %path.display(), "written");
                    }
                    machine.retries.held(&key);
                    self.files.insert(path, content);
                }
                Err(error) => machine.retries.failed(key, &error, now),
            }
        }
    }
}

/// Removes a file that is still as we wrote it; whether nothing more is to be done about it.
pub(super) fn remove_file(path: &Path, content: &str) -> bool {
    match node::remove_if_same(path, content) {
        Ok(removed) => {
            if removed {
                tracing::info!(path = %path.display(), "removed");
            }
            true
        }
        Err(error) => {
            tracing::warn!("{error:#}");
            false
        }
    }
}
