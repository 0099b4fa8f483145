//! The engine's view of the pinned maps: it reads, writes nothing, and records what it was asked for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::DerefMut;

use aya::maps::MapError;
use elsa::FrozenVec;
use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use vxlan_ebpf_common::headers::Be32;
use vxlan_ebpf_common::maps::{
    Addr, Endpoint, Flow, FlowKey, Key6, LONGEST_SUBNET6, LinkEntry, MacKey, Network, NetworkId, Node,
    Station, VniKey, Vtep, VtepId, Watch,
};
use vxlan_ebpf_common::{Hook, Reason, Tables};

use super::maps::Maps;

/// One look-up, with what it found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookUp {
    /// NODE.
    Node(Node),
    /// Of SWITCH, whether an operator has the network's fast path off.
    Off(NetworkId, bool),
    /// Of SWITCH, the generation of flows that count.
    Generation(NetworkId, u32),
    /// NETWORKS.
    Network(NetworkId, Network),
    /// WATCH.
    Watch(Watch),
    /// VNIS.
    Vni(VniKey, Option<NetworkId>),
    /// LINKS.
    Link(u32, Option<LinkEntry>),
    /// SUBNETS4 or SUBNETS6: the subnet of the network's usual length.
    Subnet(NetworkId, IpNetwork, Option<VtepId>),
    /// ROUTES4 or ROUTES6: the longest prefix that holds the address.
    Route(NetworkId, IpAddr, Option<(IpNetwork, VtepId)>),
    /// VTEPS.
    Vtep(VtepId, Option<Vtep>),
    /// VTEP_IDS.
    VtepId(Key6, Option<VtepId>),
    /// STATIONS.
    Station(MacKey, Option<Station>),
    /// ENDPOINTS4 or ENDPOINTS6.
    Endpoint(NetworkId, IpAddr, Option<Endpoint>),
    /// FLOWS.
    Flow(FlowKey, Option<Flow>),
}

/// Entries as the engine would have left them.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// FLOWS; `None`: it is not there.
    pub flows: BTreeMap<FlowKey, Option<Flow>>,
    /// STATIONS, with what programs note there.
    pub stations: BTreeMap<MacKey, Station>,
    /// VTEPS, with what programs note there.
    pub vteps: BTreeMap<VtepId, Vtep>,
}

/// See the [module](self).
pub struct Recorder<'m> {
    maps: &'m Maps,
    now: u64,
    looked_up: RefCell<Vec<LookUp>>,
    written: RefCell<Written>,
    failed: RefCell<Option<MapError>>,
    // What references of the engine lead to.
    nodes: FrozenVec<Box<Node>>,
    networks: FrozenVec<Box<Network>>,
    vteps: FrozenVec<Box<(VtepId, Vtep)>>,
    stations: FrozenVec<Box<(MacKey, Station)>>,
    endpoints: FrozenVec<Box<Endpoint>>,
}

impl<'m> Recorder<'m> {
    /// Over `maps`, at the present time.
    pub(super) fn new(maps: &'m Maps) -> Self {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| {
            u64::try_from(time.tv_sec() * 1_000_000_000 + time.tv_nsec()).unwrap_or_default()
        });
        Self {
            maps,
            now,
            looked_up: RefCell::default(),
            written: RefCell::default(),
            failed: RefCell::default(),
            nodes: FrozenVec::new(),
            networks: FrozenVec::new(),
            vteps: FrozenVec::new(),
            stations: FrozenVec::new(),
            endpoints: FrozenVec::new(),
        }
    }

    /// What has been looked up since it was last asked for, each once, in order.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn take(&self) -> Result<Vec<LookUp>, MapError> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok(self.looked_up.take()),
        }
    }

    /// Entries as the engine has left them.
    pub fn written(&self) -> Written {
        self.written.borrow().clone()
    }

    /// Makes undone what the engine has written since then.
    pub fn rewind(&self, to: Written) {
        self.written.replace(to);
        self.looked_up.take();
    }

    fn record(&self, look_up: LookUp) {
        let mut all = self.looked_up.borrow_mut();
        if !all.contains(&look_up) {
            all.push(look_up);
        }
    }

    /// What was found; nothing if it is not there, or the map cannot be read.
    fn found<V>(&self, result: Result<V, MapError>) -> Option<V> {
        match result {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => None,
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }

    fn route(
        &self,
        network: &Network,
        address: IpAddr,
        length: u8,
        subnet: Result<VtepId, MapError>,
    ) -> Option<VtepId> {
        if length != 0 {
            let found = self.found(subnet);
            if let Some(prefix) = prefix_of(address, length) {
                self.record(LookUp::Subnet(network.id, prefix, found));
            }
            if found.is_some() {
                return found;
            }
        }
        let found = self.found(self.maps.longest_route(network.id, address)).flatten();
        self.record(LookUp::Route(network.id, address, found));
        found.map(|(_, id)| id)
    }

    fn endpoint(
        &self,
        network: NetworkId,
        address: IpAddr,
        found: Result<Endpoint, MapError>,
    ) -> Option<&Endpoint> {
        let found = self.found(found);
        self.record(LookUp::Endpoint(network, address, found));
        found.map(|endpoint| self.endpoints.push_get(Box::new(endpoint)))
    }

    /// Changes the entry that `station` is of.
    fn note(&self, station: &Station, change: impl FnOnce(&mut Station)) {
        let entry = self.stations.iter().find(|(_, known)| std::ptr::eq(known, station));
        if let Some((key, station)) = entry {
            let mut written = self.written.borrow_mut();
            change(written.stations.entry(*key).or_insert(*station));
        }
    }
}

/// The prefix of this length that `address` is in.
fn prefix_of(address: IpAddr, length: u8) -> Option<IpNetwork> {
    let prefix = IpNetwork::new(address, length).ok()?;
    IpNetwork::new(prefix.network(), length).ok()
}

impl Tables for Recorder<'_> {
    fn node(&self) -> Option<&Node> {
        let node = self.found(self.maps.node.get(&0, 0))?;
        self.record(LookUp::Node(node));
        Some(self.nodes.push_get(Box::new(node)))
    }

    fn network(&self, id: NetworkId) -> Option<&Network> {
        let off = self.found(self.maps.is_off(id))?;
        self.record(LookUp::Off(id, off));
        if off {
            return None;
        }
        let network = self.found(self.maps.networks.get(&id, 0))?;
        self.record(LookUp::Network(id, network));
        Some(self.networks.push_get(Box::new(network)))
    }

    fn network_of(&self, key: &VniKey) -> Option<NetworkId> {
        let found = self.found(self.maps.vnis.get(key, 0));
        self.record(LookUp::Vni(*key, found));
        found
    }

    fn link(&self, ifindex: u32) -> LinkEntry {
        let found = self.found(self.maps.links.get(&ifindex, 0));
        self.record(LookUp::Link(ifindex, found));
        found.unwrap_or_default()
    }

    fn route4(&self, network: &Network, destination: Be32) -> Option<VtepId> {
        let address = IpAddr::from(destination.to_bytes());
        let subnet = self.maps.subnet(network.id, network.subnet4, address);
        self.route(network, address, network.subnet4, subnet)
    }

    fn route6(&self, network: &Network, destination: [Be32; 4]) -> Option<VtepId> {
        let Addr(bytes) = Addr::v6(destination);
        let (address, length) = (IpAddr::from(bytes), network.subnet6.min(LONGEST_SUBNET6));
        self.route(network, address, length, self.maps.subnet(network.id, length, address))
    }

    fn vtep(&self, id: VtepId) -> Option<&Vtep> {
        let noted = self.written.borrow().vteps.get(&id).copied();
        let found = noted.or_else(|| self.found(self.maps.vteps.get(&id, 0)));
        self.record(LookUp::Vtep(id, found));
        found.map(|vtep| &self.vteps.push_get(Box::new((id, vtep))).1)
    }

    fn note_heard(&self, vtep: &Vtep, moment: u32, generation: u32) {
        if let Some((id, vtep)) = self.vteps.iter().find(|(_, known)| std::ptr::eq(known, vtep)) {
            let heard = Vtep { heard: moment, generation, ..*vtep };
            self.written.borrow_mut().vteps.insert(*id, heard);
        }
    }

    fn vtep_id(&self, network: NetworkId, address: &Addr) -> Option<VtepId> {
        let key = Key6::new(network, *address);
        let found = self.found(self.maps.vtep_ids.get(&key, 0));
        self.record(LookUp::VtepId(key, found));
        found
    }

    fn station(&self, key: &MacKey) -> Option<&Station> {
        let noted = self.written.borrow().stations.get(key).copied();
        let found = noted.or_else(|| self.found(self.maps.stations.get(key, 0)));
        self.record(LookUp::Station(*key, found));
        found.map(|station| &self.stations.push_get(Box::new((*key, station))).1)
    }

    fn note_moved(&self, station: &Station, moved: u8) {
        self.note(station, |entry| entry.moved = moved);
    }

    fn note_confirmed(&self, station: &Station, now: u64) {
        self.note(station, |entry| entry.confirmed = now);
    }

    // When something was last looked for decides nothing.
    fn note_port_found(&self, _station: &Station, _tick: u32) {}

    fn note_tick(&self, _station: &Station, _tick: u32) {}

    fn endpoint4(&self, network: NetworkId, address: Be32) -> Option<&Endpoint> {
        let address = IpAddr::from(address.to_bytes());
        self.endpoint(network, address, self.maps.endpoint(network, address))
    }

    fn endpoint6(&self, network: NetworkId, address: [Be32; 4]) -> Option<&Endpoint> {
        let Addr(bytes) = Addr::v6(address);
        let address = IpAddr::from(bytes);
        self.endpoint(network, address, self.maps.endpoint(network, address))
    }

    fn note_found(&self, _endpoint: &Endpoint, _tick: u32) {}

    fn flow(&self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow>> {
        let known = self.written.borrow().flows.contains_key(key);
        if !known {
            let found = self.found(self.maps.flows.get(key, 0));
            self.record(LookUp::Flow(*key, found));
            self.written.borrow_mut().flows.insert(*key, found);
        }
        let all = self.written.borrow_mut();
        std::cell::RefMut::filter_map(all, |written| written.flows.get_mut(key)?.as_mut()).ok()
    }

    fn insert_flow(&self, key: &FlowKey, flow: &Flow) {
        self.written.borrow_mut().flows.insert(*key, Some(*flow));
    }

    fn generation(&self, network: NetworkId) -> u32 {
        let generation = self.found(self.maps.generation_of(network)).unwrap_or_default();
        self.record(LookUp::Generation(network, generation));
        generation
    }

    fn now(&self) -> u64 {
        self.now
    }

    /// None that a program has left: whatever is known of this tick is looked at anew.
    fn tick(&self) -> u64 {
        self.now.rotate_left(32) | 1
    }

    fn is_watched(&self) -> bool {
        let Some(watch) = self.found(self.maps.watch.get(&0, 0)) else { return false };
        self.record(LookUp::Watch(watch));
        self.now < watch.until
    }

    fn count(&self, _network: NetworkId, _hook: Hook, _reason: Reason, _bytes: u32) {}
}
