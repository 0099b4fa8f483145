//! What the pins show at one moment.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use vxlan_ebpf_common::maps::{
    Counter, Flow, FlowKey, Key6, LOCAL_VTEP, NO_NETWORK, Network, NetworkId, VtepId,
};
use vxlan_ebpf_common::{Hook, Reason};

use super::routes::Routes;
use crate::datapath::{Meter, Pins};
use crate::status;

/// How many flows are read: so many take some milliseconds.
const MOST_FLOWS: usize = 16_384;
/// How long what changes seldom is not read again: networks, routes, nodes.
const FRESH: Duration = Duration::from_secs(5);

/// What was counted until a moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: Instant,
    /// `CLOCK_MONOTONIC` in nanoseconds, which flows have.
    pub(super) clock: u64,
    pub(super) map: Arc<Map>,
    /// Counters by network; [`NO_NETWORK`]'s are of no network.
    pub(super) counters: BTreeMap<NetworkId, Vec<(Hook, Reason, Counter)>>,
    /// Flows that count.
    pub(super) flows: HashMap<FlowKey, Flow>,
    /// About how many entries FLOWS has; more than `flows` if not all are read.
    pub(super) entries: u64,
}

/// What changes seldom.
#[derive(Clone, Debug, Default)]
pub(super) struct Map {
    /// This node.
    pub(super) node: String,
    /// Whether an agent lives.
    pub(super) running: bool,
    pub(super) networks: BTreeMap<NetworkId, Seen>,
    pub(super) routes: Routes,
    /// VTEPs of other nodes.
    pub(super) vteps: BTreeMap<VtepId, Peer>,
}

/// A network.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) entry: Network,
    pub(super) name: String,
    pub(super) is_on: bool,
    pub(super) generation: u32,
}

/// A VTEP of another node.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// What the agent calls the node.
    pub(super) node: String,
    pub(super) address: IpAddr,
    pub(super) network: NetworkId,
}

/// Reads samples.
pub(crate) struct Reader {
    dir: PathBuf,
    run_dir: PathBuf,
    /// Only these networks, if not all.
    only: Option<Vec<String>>,
    map: Option<(Instant, Arc<Map>)>,
}

impl Reader {
    /// A reader of what is pinned in `dir`.
    pub(crate) const fn new(dir: PathBuf, run_dir: PathBuf, only: Option<Vec<String>>) -> Self {
        Self { dir, run_dir, only, map: None }
    }

    /// Reads what was counted until now.
    ///
    /// # Errors
    /// Nothing is pinned, or this process may not have it.
    pub(super) fn read(&mut self) -> anyhow::Result<Sample> {
        // Opened anew each time: an agent of another version may have other pins.
        let meter = Meter::open(&self.dir)?;
        let map = self.map()?;
        let (flows, entries) = meter.some_flows(MOST_FLOWS)?;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let clock = u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(now.tv_nsec()).unwrap_or(0);
        let mut counters = BTreeMap::new();
        let nobody = self.only.is_none().then_some(NO_NETWORK);
        for id in map.networks.keys().copied().chain(nobody) {
            counters.insert(id, meter.counters(id)?);
        }
        let current = |(key, flow): &(FlowKey, Flow)| {
            let network = map.networks.get(&u32::from(key.network));
            network.is_some_and(|network| network.generation == flow.generation)
        };
        let flows = flows.into_iter().filter(current).collect();
        Ok(Sample { at: Instant::now(), clock, map, counters, flows, entries })
    }

    fn map(&mut self) -> anyhow::Result<Arc<Map>> {
        if let Some((_, map)) = self.map.as_ref().filter(|(read, _)| read.elapsed() < FRESH) {
            return Ok(Arc::clone(map));
        }
        let map = Arc::new(self.read_map()?);
        self.map = Some((Instant::now(), Arc::clone(&map)));
        Ok(map)
    }

    fn read_map(&self) -> anyhow::Result<Map> {
        let pins = Pins::open(&self.dir)?;
        let state = pins.state()?;
        let is_wanted = |name: &str| self.only.as_ref().is_none_or(|only| only.iter().any(|one| one == name));
        let mut networks = BTreeMap::new();
        for (id, entry) in &state.networks {
            let name = entry.name().unwrap_or_default().to_owned();
            if is_wanted(&name) {
                let (is_on, generation) = (pins.switched_on(*id)?, pins.generation(*id)?);
                networks.insert(*id, Seen { entry: *entry, name, is_on, generation });
            }
        }
        let status = status::read(&self.run_dir).ok().flatten();
        let nodes: HashMap<IpAddr, &str> = status
            .iter()
            .flat_map(|status| &status.networks)
            .flat_map(|network| &network.nodes)
            .map(|node| (node.vtep, node.name.as_str()))
            .collect();
        let peers = state.vtep_ids.iter().filter(|(key, _)| networks.contains_key(&key.network));
        let peer = |(key, id): (&Key6, &VtepId)| {
            let address = IpAddr::from(state.vteps.get(id)?.addr);
            let node = nodes.get(&address).map_or_else(|| address.to_string(), |node| (*node).to_owned());
            Some((*id, Peer { node, address, network: key.network }))
        };
        let vteps = peers.filter_map(peer).filter(|(id, _)| *id != LOCAL_VTEP).collect();
        Ok(Map {
            node: status.as_ref().map(|status| status.node.clone()).unwrap_or_default(),
            running: matches!(status::holder(&self.run_dir), Ok(Some(_))),
            routes: Routes::new(state.routes.iter().map(|((network, to), id)| (*network, *to, *id))),
            networks,
            vteps,
        })
    }
}
