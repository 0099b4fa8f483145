//! nf_tables: who may send through the tunnels, in one table for all networks; and masquerading, in one of the
//! network's own. So each network had one for all in releases before.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::Agent;
use super::machine::Machine;
use super::network::Network;
use crate::cluster::Node;
use crate::config::{NetworkConfig, SourceCheck};
use crate::kernel::nft::{self, expression::Ports};
use crate::net::Vni;
use crate::node::{self, Change, Guard, Installed, Masquerade, TunnelTable};
use crate::ownership;
use crate::underlay::Underlay;

/// Stands for the tables in the list of what failed.
const TUNNELS: &str = "nf_tables";
const MASQUERADE: &str = "masquerading";

/// The nf_tables tables of an agent.
#[derive(Default)]
pub(super) struct Tunnels {
    /// The table of all networks, once it is in place.
    table: Option<TunnelTable>,
    /// What is in the kernel of it, as far as that is known.
    installed: Option<Installed>,
    /// Why this kernel's nf_tables cannot guard the tunnels' ports.
    pub(super) no_guard: Option<String>,
    /// Networks that have a table of their own.
    pub(super) named: BTreeSet<String>,
}

impl Tunnels {
    /// Finds what an earlier agent has left.
    pub(super) fn begin(&mut self) {
        let named = node::named_tables();
        let named = named.inspect_err(|error| tracing::debug!("cannot look for nf_tables tables: {error:#}"));
        self.named = named.unwrap_or_default().into_iter().collect();
    }

    fn install(&mut self, desired: &TunnelTable) -> anyhow::Result<()> {
        if !desired.is_needed() {
            return node::remove_table(&desired.name).map(drop);
        }
        match desired.install(&mut self.installed)? {
            Change::Table => {
                let (guarded, notrack) = (desired.guards.len(), !desired.untracked.is_empty());
                tracing::info!(guarded, notrack, "nf_tables table of the tunnels replaced");
            }
            Change::Elements => tracing::debug!("elements of the nf_tables table changed"),
            Change::Nothing => {}
        }
        Ok(())
    }
}

impl Agent {
    /// The table, before anything can arrive through a tunnel. `look`: whether somebody may have taken
    /// rules or elements away.
    pub(super) fn set_tunnel_table(&mut self, look: bool, wanted: &mut BTreeSet<String>) {
        wanted.insert(TUNNELS.to_owned());
        if look && self.machine.tunnels.no_guard.take().is_some() {
            // A module may have been loaded.
            self.machine.tunnels.no_guard = self.tunnel_table().no_guard();
        }
        let (desired, now) = (self.tunnel_table(), Instant::now());
        let machine = &mut self.machine;
        let known = machine.tunnels.table.as_ref() == Some(&desired);
        // Where nothing is wanted, an earlier agent's rules are looked for once.
        if known && !(look && desired.is_needed()) || !machine.retries.is_due(TUNNELS, now) {
            return;
        }
        if look {
            machine.tunnels.installed = None;
        }
        let is_first = machine.tunnels.table.take().is_none();
        match machine.tunnels.install(&desired) {
            Ok(()) => {
                machine.tunnels.table = Some(desired);
                machine.retries.held(TUNNELS);
                if is_first {
                    machine.remove_unused_tables();
                }
            }
            Err(error) => {
                machine.tunnels.installed = None;
                if let Some(reason) = desired.no_guard() {
                    // The rest does without it, rather than that nothing stands.
                    tracing::warn!("the tunnels' ports are not guarded outside of the fast path: {reason}");
                    machine.tunnels.no_guard = Some(reason);
                    return self.set_tunnel_table(false, wanted);
                }
                machine.retries.failed(TUNNELS.to_owned(), &error, now);
            }
        }
    }

    /// Forgets tables that somebody has taken away, for example with all rules (`nft flush ruleset`), so that the
    /// next round puts them back; whether there are any. The kernel gives notice of it together with all other
    /// changes of rules, which may be many, so it is looked for once in a while.
    pub(super) fn tables_vanished(&mut self) -> bool {
        let Ok(there) = nft::tables() else { return false };
        let is_gone = |name: &str| !there.iter().any(|table| table == name);
        let mut vanished = false;
        let tunnels = &mut self.machine.tunnels;
        if tunnels.table.as_ref().is_some_and(|table| table.is_needed() && is_gone(&table.name)) {
            (tunnels.table, tunnels.installed) = (None, None);
            vanished = true;
        }
        for network in &mut self.networks {
            if matches!(network.table, Some(Some(_))) && is_gone(&ownership::nft_table(network.name())) {
                network.table = None;
                vanished = true;
            }
        }
        if vanished {
            tracing::warn!("somebody has removed nf_tables tables of ours: they are put back");
        }
        vanished
    }

    /// What the table should do.
    fn tunnel_table(&self) -> TunnelTable {
        let name = ownership::tunnel_table(&self.node.pin_dir);
        let notrack = self.views().map(|view| &view.network).filter(|network| network.notrack);
        let untracked = notrack.map(|network| network.port).collect();
        if self.machine.tunnels.no_guard.is_some() {
            return TunnelTable { name, untracked, ..TunnelTable::default() };
        }
        let running = self.networks.iter().filter_map(|network| network.guard.as_ref()?.clone());
        let leaving = self.leaving.iter().filter_map(|leaving| leaving.guard().cloned());
        let guards: Vec<Arc<Guard>> = running.chain(leaving).collect();
        let unknown = self.unknown(&guards);
        TunnelTable { name, guards, unknown, untracked }
    }

    /// Networks that do not run yet, and those of an earlier agent that are not gone yet.
    fn unknown(&self, guards: &[Arc<Guard>]) -> BTreeSet<(Vni, u16)> {
        let known = self.networks.iter().filter(|network| network.guard.is_some());
        let known: BTreeSet<&str> = known.map(Network::name).collect();
        let configured = self.views().map(|view| &view.network).filter(|network| is_guarded(network));
        let configured = configured.filter(|network| !known.contains(network.name.as_str()));
        let state = self.machine.datapath.as_ref().map(|datapath| datapath.state());
        let left = self.leaving.iter().filter(|leaving| leaving.guard().is_none()).filter_map(|leaving| {
            let network = state?.networks.get(&state?.number(leaving.name())?)?;
            Some((Vni::try_from(network.vni).ok()?, u16::from_be_bytes(network.port)))
        });
        let mut unknown: BTreeSet<_> =
            configured.map(|network| (network.vni, network.port)).chain(left).collect();
        guards.iter().for_each(|guard| _ = unknown.remove(&(guard.vni, guard.port)));
        unknown
    }
}

/// Whether strangers' packets are to be kept from a network's vxlan device.
fn is_guarded(network: &NetworkConfig) -> bool {
    network.source_check == SourceCheck::Drop && !network.is_accelerated()
}

impl Machine {
    /// Tables of networks that were called otherwise: nobody else would take them away.
    fn remove_unused_tables(&mut self) {
        let aliases = self.tables.links.values().filter_map(|link| link.alias.as_deref());
        let with_device: BTreeSet<&str> = aliases.filter_map(ownership::network_of_device).collect();
        let is_served = |network: &str| self.configured.contains(network) || with_device.contains(network);
        match node::remove_unused_tables(is_served) {
            Ok(removed) => removed.iter().for_each(|network| {
                self.tunnels.named.remove(network);
                tracing::info!(network, "nf_tables table of a network without a device removed");
            }),
            Err(error) => tracing::debug!("cannot look for tables of other networks: {error:#}"),
        }
    }
}

impl Network {
    /// The network's own table, which masquerades. One of before goes when the table of all tunnels is there.
    pub(super) fn set_table(&mut self, machine: &mut Machine, look: bool, wanted: &mut BTreeSet<String>) {
        let (desired, now) = (self.masquerade(), Instant::now());
        let (key, name) = (self.key(MASQUERADE), self.name().to_owned());
        wanted.insert(key.clone());
        let has_other = desired.is_none() && machine.tunnels.named.contains(&name);
        let known = self.table.as_ref() == Some(&desired) && !has_other;
        let waits = machine.tunnels.table.is_none();
        if known && !(look && desired.is_some()) || waits || !machine.retries.is_due(&key, now) {
            return;
        }
        match install(&name, desired.as_ref(), has_other) {
            Ok(()) => {
                match desired {
                    Some(_) => machine.tunnels.named.insert(name),
                    None => machine.tunnels.named.remove(&name),
                };
                self.table = Some(desired);
                machine.retries.held(&key);
            }
            Err(error) => {
                self.table = None;
                machine.retries.failed(key, &error, now);
            }
        }
    }

    /// `None`: nothing is masqueraded.
    fn masquerade(&self) -> Option<Masquerade> {
        let config = &self.config.pods;
        let networks = config.networks.iter().filter(|_| config.masquerade);
        let pods: Vec<_> = networks.map(|pods| (*pods, self.interfaces_to(pods))).collect();
        let ports = if config.random_ports { Ports::Random } else { Ports::Kept };
        (!pods.is_empty()).then(|| Masquerade { network: self.name().to_owned(), pods, ports })
    }

    /// Remembers who may send.
    pub(super) fn note_guard(&mut self) {
        self.known_by.extend(self.cluster.owns().map(|own| own.vtep));
        let guard = is_guarded(&self.config.network).then(|| self.who_may_send());
        let same = self.guard.as_ref().is_some_and(|known| known.as_deref() == guard.as_ref());
        if !same {
            self.guard = Some(guard.map(Arc::new));
        }
    }

    fn who_may_send(&self) -> Guard {
        let network = &self.config.network;
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
        Guard { port: network.port, vni: network.vni, own, sources, bridged, pods }
    }

    /// Whether this node is known by an address of another machine: to which of its own that one passes
    /// packets on, nobody says.
    fn is_translated(&self, vtep: IpAddr) -> bool {
        let mut here = self.underlays.iter().map(|underlay| underlay.address);
        here.any(|ip| ip.is_ipv4() == vtep.is_ipv4() && self.cluster.owns().all(|own| own.vtep != ip))
    }

    /// Whether strangers' packets are kept from the vxlan device, in a word, and why not.
    pub(super) fn guarded(&self, machine: &Machine) -> String {
        let tunnels = &machine.tunnels;
        match &tunnels.no_guard {
            _ if self.is_accelerated() => "no: somebody else manages the device".into(),
            _ if !is_guarded(&self.config.network) => "no: strangers are counted only".into(),
            Some(reason) => format!("no: {reason}"),
            None if self.guard.is_some() && tunnels.table.is_some() => "yes".into(),
            None => "not yet".into(),
        }
    }

    /// The vxlan device that leads to `pods` of other nodes.
    fn interfaces_to(&self, pods: &IpNetwork) -> Vec<String> {
        let same_version = |own: &&Node| own.subnets.iter().any(|s| s.is_ipv4() == pods.is_ipv4());
        let own = self.cluster.owns().find(same_version).unwrap_or(&self.cluster.own);
        let direct = self.config.network.direct_routing && own.vtep.is_ipv4() == pods.is_ipv4();
        let over = |underlay: &&Underlay| underlay.address.is_ipv4() == pods.is_ipv4();
        let underlay = self.underlays.iter().find(over).filter(|_| direct);
        let device = self.config.device_over(own.vtep).to_owned();
        std::iter::once(device).chain(underlay.map(|underlay| underlay.name.clone())).collect()
    }
}

fn install(network: &str, desired: Option<&Masquerade>, has_other: bool) -> anyhow::Result<()> {
    match desired {
        Some(masquerade) => {
            if masquerade.install()? == Change::Table {
                tracing::info!(network, "nf_tables table that masquerades replaced");
            }
        }
        None if has_other => _ = node::remove_table(&ownership::nft_table(network))?,
        None => {}
    }
    Ok(())
}
