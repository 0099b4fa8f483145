//! What metrics are told after each round.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use vxlan_ebpf_common::maps::names;

use super::Agent;
use super::network::Network;
use super::pending::Pending;
use super::report::Counts;
use crate::config::{Fastpath, View};
use crate::datapath::DatapathState;
use crate::report::{self, Facts, MOST_NETWORKS, NetworkFacts, source};
use crate::source::Contact;

impl Agent {
    /// Answers whoever asks for metrics, where the configuration says so.
    pub(super) fn serve_metrics(&mut self) -> anyhow::Result<()> {
        if let Some(address) = self.node.metrics {
            self.metrics = Some(report::serve(address, &self.pulse, self.facts(None))?);
        }
        Ok(())
    }

    /// Tells how things are, if somebody may ask.
    pub(super) fn tell_metrics(&self, counts: Option<&Counts>) {
        if let Some(metrics) = &self.metrics {
            metrics.send_replace(Arc::new(self.facts(counts)));
        }
    }

    /// How things are.
    pub(super) fn facts(&self, counts: Option<&Counts>) -> Facts {
        let state = self.machine.datapath.as_ref().map(|datapath| datapath.state());
        let running: BTreeSet<_> = self.networks.iter().map(Network::name).collect();
        let pending: BTreeSet<_> = self.pending.iter().map(Pending::name).collect();
        let is_pending = |network: &Network| pending.contains(network.name());
        let all = self.networks.iter().map(|network| NetworkFacts {
            // One that is pending, too, runs as it was configured before.
            ready: is_well(network) && !is_pending(network),
            ..self.of_network(network, state, counts)
        });
        let new = self.pending.iter().filter(|pending| !running.contains(pending.name()));
        Facts {
            kernel: self.kernel.clone(),
            pins: self.node.pins(),
            config_refused: self.config_error.is_some(),
            failed: self.error.is_some(),
            retrying: self.machine.retries.count(),
            networks: all.chain(new.map(of_pending)).take(MOST_NETWORKS).collect(),
            unreported: running.union(&pending).count().saturating_sub(MOST_NETWORKS),
            used: state.map(used).unwrap_or_default(),
            probed: self.connectivity.as_ref().map(|connectivity| connectivity.probed.clone()),
        }
    }

    fn of_network(
        &self,
        network: &Network,
        state: Option<&DatapathState>,
        counts: Option<&Counts>,
    ) -> NetworkFacts {
        let id = network.id;
        let count = id.zip(counts).and_then(|(id, counts)| counts.get(&id));
        let (interfaces, endpoints) = count.copied().unwrap_or_default();
        let is_known = !network.is_accelerated() || network.mirror.is_ok();
        let is_metered = network.config.network.fastpath == Fastpath::Verified && !network.is_bridged();
        NetworkFacts {
            device: network.device_name(&self.machine.tables.links).to_owned(),
            contact: network.feed.as_ref().map_or_else(Contact::made, |feed| feed.contact.clone()),
            snapshot: network.feed.is_some().then_some(network.snapshot),
            refused: network.reload_error.is_some(),
            vni: is_known.then_some(network.config.network.vni.into()),
            nodes: network.cluster.remote_nodes(),
            vteps: network.cluster.remotes.len(),
            interfaces,
            endpoints,
            meters: if is_metered { self.machine.ruleset.meters.len() } else { 0 },
            foreign: network.hooked.len(),
            entry: state.zip(id).and_then(|(state, id)| state.networks.get(&id).copied()),
            ..configured(&network.config)
        }
    }
}

/// Whether it runs as the newest state asks for.
fn is_well(network: &Network) -> bool {
    let wrong = [&network.reload_error, &network.plan_error, &network.cluster.trouble];
    wrong.iter().all(|wrong| wrong.is_none())
}

fn of_pending(pending: &Pending) -> NetworkFacts {
    NetworkFacts { contact: pending.contact(), ..configured(&pending.view) }
}

/// A network of which no more is known than how it is configured.
fn configured(view: &View) -> NetworkFacts {
    let network = &view.network;
    NetworkFacts {
        name: network.name.clone(),
        kind: network.kind.word(),
        mode: network.fastpath.word(),
        vni: (!network.is_accelerated()).then_some(network.vni.into()),
        device: network.device.clone(),
        source: source(&view.state),
        contact: Contact::default(),
        snapshot: None,
        refused: false,
        ready: false,
        nodes: 0,
        vteps: 0,
        interfaces: 0,
        endpoints: 0,
        meters: 0,
        foreign: 0,
        entry: None,
    }
}

/// How many places of the maps are taken.
fn used(state: &DatapathState) -> Vec<(&'static str, usize)> {
    let by_version = |addresses: &mut dyn Iterator<Item = IpAddr>| {
        addresses.fold((0, 0), |(v4, v6), ip| if ip.is_ipv4() { (v4 + 1, v6) } else { (v4, v6 + 1) })
    };
    let routes = by_version(&mut state.routes.keys().map(|(_, to)| to.ip()));
    let subnets = by_version(&mut state.subnets.keys().map(|(_, to)| to.ip()));
    let endpoints = by_version(&mut state.endpoints.keys().map(|(_, address)| *address));
    vec![
        (names::NETWORKS, state.networks.len()),
        (names::VNIS, state.vnis.len()),
        (names::LINKS, state.links.len()),
        (names::ROUTES4, routes.0),
        (names::ROUTES6, routes.1),
        (names::SUBNETS4, subnets.0),
        (names::SUBNETS6, subnets.1),
        (names::VTEPS, state.vteps.len()),
        (names::VTEP_IDS, state.vtep_ids.len()),
        (names::STATIONS, state.stations.len()),
        (names::ENDPOINTS4, endpoints.0),
        (names::ENDPOINTS6, endpoints.1),
    ]
}
