//! One round: observe, plan, diff, apply. Kernel first, fast path second; but programs leave packets to the kernel
//! before it routes them without a tunnel.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::anyhow;
use vxlan_ebpf_common::maps::{Key6, NetworkId, PARTIAL, name_bytes};

use super::Agent;
use super::collide::{Claim, collisions};
use super::network::{Common, Network, Seen};
use crate::config::{Attach, Fastpath, View, Xdp};
use crate::datapath::{DatapathState, Options, Sizes};
use crate::kernel::{Foreign, ruleset::has_legacy_ebtables, sysctl};
use crate::ownership;
use crate::plan::{self, BridgeFilters, Desired};

/// A network's number, and what should be of it.
pub(super) type Planned = (NetworkId, Desired);

impl Agent {
    /// Brings kernel and fast path one step closer; whether anything was changed. A network that cannot be
    /// planned stays as it is, and keeps no other from going on.
    pub(super) async fn round(&mut self) -> anyhow::Result<bool> {
        let look = std::mem::take(&mut self.machine.stale);
        if look {
            let dumped = self.machine.dump().await;
            self.machine.tables = dumped.inspect_err(|_| self.machine.stale = true)?;
        }
        self.machine.tables.make_index();
        let mut wanted = BTreeSet::new();
        self.find_sources().await;
        let seen = self.look();
        self.find_ways(&seen).await;
        for (network, seen) in self.networks.iter().zip(&seen) {
            if let Some(seen) = seen {
                network.forward(&mut self.machine, &seen.sides, &mut wanted);
            }
        }
        if self.manages_verified() {
            self.machine.tolerate_gaps();
        } else {
            self.machine.look_at_gaps();
        }
        self.machine.load(&self.options(), !self.is_fast(), &mut wanted);
        self.place_xdp(&seen);
        let own = seen.iter().flatten().flat_map(|seen| &seen.sides);
        let own: Vec<_> =
            own.flat_map(|side| side.device.into_iter().chain([side.underlay.ifindex])).collect();
        let foreign = self.machine.foreign(own.into_iter()).await;
        self.machine.observe()?;
        self.machine.filters = self.bridge_filters();
        let mut planned = self.plan(&seen, &foreign);
        self.tell_shared(&mut planned);
        let mut changed = false;
        let mut hooked: Vec<Foreign> = vec![];
        for ((network, seen), planned) in self.networks.iter_mut().zip(&seen).zip(&mut planned) {
            let (Some(seen), Some((id, desired))) = (seen, planned) else { continue };
            network.note(*id, seen, desired, &self.machine.tables);
            hooked.extend(
                network
                    .hooked
                    .iter()
                    .filter(|foreign| !hooked.contains(foreign))
                    .cloned()
                    .collect::<Vec<_>>(),
            );
        }
        self.set_tunnel_table(look, &mut wanted);
        for ((network, seen), planned) in self.networks.iter_mut().zip(&seen).zip(&mut planned) {
            let (Some(seen), Some((_, desired))) = (seen, planned) else { continue };
            network.set_table(&mut self.machine, look, &mut wanted);
            if network.config.network.direct_routing {
                self.machine.run_ahead_of_routes(&desired.datapath);
            }
            changed |= network.apply_kernel(&mut self.machine, seen, desired, &mut wanted).await;
        }
        self.machine.mention_hooked(hooked);
        let desired = self.merge(planned);
        changed |= self.machine.apply_datapath(desired, &mut wanted)?;
        changed |= self.leave(&mut wanted).await;
        for (network, seen) in self.networks.iter_mut().zip(&seen) {
            // The devices were there before this round.
            let stands =
                seen.as_ref().is_some_and(|seen| seen.sides.iter().all(|side| side.device.is_some()));
            if stands && !network.is_bridged() && !network.is_accelerated() {
                network.set_up_for_pods(&mut self.machine, &mut wanted);
            }
        }
        self.machine.retries.keep_only(&wanted);
        Ok(changed)
    }

    /// What there is of each network; nothing of one that cannot run here at the moment.
    fn look(&mut self) -> Vec<Option<Seen>> {
        for network in &mut self.networks {
            network.reflect(&self.machine.tables, &self.machine.ways);
        }
        let collisions = match self.networks.as_slice() {
            [] | [_] => vec![None; self.networks.len()],
            several => collisions(&several.iter().map(Claim::of).collect::<Vec<_>>()),
        };
        let tables = &self.machine.tables;
        let look = |(network, collision): (&mut Network, Option<String>)| {
            let looked = match collision {
                Some(reason) => Err(anyhow!(reason)),
                None if network.is_accelerated() => return Some(network.look_beside(tables)),
                None => network.look(&network.cluster, tables),
            };
            let looked = looked.inspect_err(|error| network.cannot_plan(error)).ok()?;
            Some(Seen { kernel: looked.0, sides: looked.1 })
        };
        self.networks.iter_mut().zip(collisions).map(look).collect()
    }

    async fn find_ways(&mut self, seen: &[Option<Seen>]) {
        let mut wanted = BTreeMap::<_, BTreeSet<_>>::new();
        for (network, seen) in self.networks.iter().zip(seen) {
            for side in seen.iter().flat_map(|seen| &seen.sides) {
                let own = side.underlay.address;
                let vteps = network.cluster.remotes.values().map(|node| node.vtep);
                wanted
                    .entry(side.asked)
                    .or_default()
                    .extend(vteps.filter(|ip| ip.is_ipv4() == own.is_ipv4()));
            }
        }
        self.machine.find_ways(&wanted).await;
    }

    fn options(&self) -> Options {
        Options {
            dir: ownership::node_pin_dir(&self.node.pin_dir),
            clsact: self.node.attach == Attach::Clsact,
            xdp: self.is_fast() && self.node.xdp != Xdp::Off,
            // One table for all: where it is too small, flows are slower.
            flows: self.views().map(|view| view.network.flows).max().unwrap_or_default(),
            sizes: self.sizes(),
        }
    }

    /// What the networks need of the maps.
    fn sizes(&self) -> Sizes {
        let nodes = || {
            let clusters = self.networks.iter().map(|network| &network.cluster);
            clusters.flat_map(|cluster| cluster.owns().chain(cluster.remotes.values()))
        };
        let holes =
            || self.networks.iter().flat_map(|network| &network.mirror).flat_map(|mirror| &mirror.holes);
        let subnets = || nodes().flat_map(|node| &node.subnets).chain(holes());
        let prefixes = |v4: bool| subnets().filter(|subnet| subnet.is_ipv4() == v4).count();
        let sizes = Sizes::of(
            self.config.networks.len().max(self.networks.len()),
            nodes().count(),
            prefixes(true).max(prefixes(false)),
        );
        sizes.with_segments(self.networks.iter().any(Network::is_bridged))
    }

    /// Decides about XDP. With several underlays it goes to the first; devices that somebody else manages do
    /// without.
    fn place_xdp(&mut self, seen: &[Option<Seen>]) {
        let ours = |network: &Network| network.is_fast() && !network.is_accelerated();
        let fast = self.networks.iter().zip(seen).filter(|(network, _)| ours(network));
        let first = fast.filter_map(|(_, seen)| seen.as_ref()?.sides.first()).next();
        if let Some(side) = first {
            self.machine.place_xdp(self.node.xdp, side.underlay.ifindex);
        }
    }

    /// Whether a network of ours runs in mode `verified`.
    fn manages_verified(&self) -> bool {
        let verified = |view: &View| view.network.fastpath == Fastpath::Verified;
        self.views().any(|view| verified(view) && !view.network.is_accelerated())
    }

    /// What may filter frames on bridges, where there are networks that have some.
    pub(super) fn bridge_filters(&self) -> BridgeFilters {
        if !self.networks.iter().any(Network::is_bridged) {
            return BridgeFilters::default();
        }
        BridgeFilters { netfilter: sysctl::bridges_call_netfilter(), ebtables: has_legacy_ebtables() }
    }

    /// What should be of each network. One without a number, because there are too many, is not planned.
    fn plan(&mut self, seen: &[Option<Seen>], foreign: &[Foreign]) -> Vec<Option<Planned>> {
        let nothing = DatapathState::default();
        let machine = &self.machine;
        let previous = machine.datapath.as_ref().map_or(&nothing, |datapath| datapath.state());
        let ids = plan::network_ids(self.networks.iter().map(Network::name), previous);
        let remotes = |network: &Network| {
            let id = ids.get(network.name()).copied();
            let vteps = network.cluster.remotes.values().map(|node| node.vtep);
            id.map(|id| vteps.map(|vtep| Key6::new(id, vtep.into())).collect::<Vec<_>>()).unwrap_or_default()
        };
        let vteps = self.networks.iter().flat_map(remotes).collect();
        let vtep_ids = plan::vtep_ids(&vteps, previous);
        let common = Common {
            machine,
            foreign,
            vtep_ids: &vtep_ids,
            filters: machine.filters,
            source_ports: sysctl::source_ports(),
            hop_limits: machine.hop_limits(),
            by_address: machine.judge().is_none(),
            hands_over: machine.tells_tunnels_apart().is_none(),
            previous,
        };
        let plan = |(network, seen): (&mut Network, &Option<Seen>)| {
            let id = *ids.get(network.name())?;
            Some((id, network.plan(id, &seen.as_ref()?.sides, &common)?))
        };
        self.networks.iter_mut().zip(seen).map(plan).collect()
    }

    /// The fast path of all networks; of one that cannot be planned what there is of it.
    fn merge(&self, planned: Vec<Option<Planned>>) -> DatapathState {
        let nothing = DatapathState::default();
        let machine = &self.machine;
        let previous = machine.datapath.as_ref().map_or(&nothing, |datapath| datapath.state());
        let mut all = DatapathState::default();
        let mut planned: Vec<_> = self.networks.iter().zip(planned).collect();
        // A pod is one network's: that of a device that somebody else manages comes last.
        planned.sort_by_key(|(network, _)| network.is_accelerated());
        for (network, planned) in planned {
            match planned {
                Some((_, Desired { mut datapath, .. })) => {
                    if network.is_accelerated() {
                        datapath.links.retain(|link, _| !all.links.contains_key(link));
                    }
                    all.extend(datapath);
                }
                None => all.extend(kept(previous, network.name())),
            }
        }
        // What an earlier agent has left of those that do not run yet.
        let running: BTreeSet<&str> = self.networks.iter().map(Network::name).collect();
        let named = previous.named();
        let names = self.config.networks.iter().map(|view| view.network.name.as_str());
        let left = names.filter(|name| !running.contains(name) && named.contains(&name_bytes(name)));
        left.for_each(|name| all.extend(kept(previous, name)));
        for leaving in &self.leaving {
            let id = previous.number(leaving.name());
            let entry = id.and_then(|id| Some((id, *previous.networks.get(&id)?)));
            all.networks.extend(entry);
        }
        all.node = match self.networks.as_slice() {
            [] => previous.node,
            _ => plan::node(machine.xdp_place(), machine.secret, previous),
        };
        all.limit_stations(self.sizes());
        all.count_networks();
        all.index_routes();
        all
    }
}

/// What there is of the network called `name`. Where tables were made anew meanwhile, its nodes are no strangers.
fn kept(previous: &DatapathState, name: &str) -> DatapathState {
    let Some(id) = previous.number(name) else { return DatapathState::default() };
    let mut kept = previous.of(id);
    if kept.vnis.is_empty() || kept.routes.is_empty() || kept.vtep_ids.is_empty() {
        kept.networks.values_mut().for_each(|network| network.flags |= PARTIAL);
    }
    kept
}
