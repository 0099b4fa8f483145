//! Typed access to the maps.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use vxlan_ebpf_common::headers::Be32;
use vxlan_ebpf_common::maps::{
    Addr, Counter, Endpoint, Flow, FlowKey, Key4, Key6, LinkEntry, MacKey, NETWORK_BITS, NO_NETWORK, Network,
    NetworkId, Node, SWITCH_GENERATION, SWITCH_OFF, Station, VniKey, Vtep, VtepId, Watch, names, subnet_of,
    subnet4, subnet6, switch,
};
use vxlan_ebpf_common::{Hook, Reason, counters};

use super::state::{Change, DatapathState};
use super::syscall::update_batch;
use crate::net::IfIndex;

/// All maps that the agent writes, and those that operators read.
pub(super) struct Maps {
    pub(super) node: Array<MapData, Node>,
    pub(super) watch: Array<MapData, Watch>,
    pub(super) networks: Array<MapData, Network>,
    pub(super) switch: Array<MapData, u32>,
    pub(super) vnis: HashMap<MapData, VniKey, NetworkId>,
    pub(super) links: HashMap<MapData, u32, LinkEntry>,
    pub(super) routes4: LpmTrie<MapData, [u8; 8], VtepId>,
    pub(super) routes6: LpmTrie<MapData, [u8; 20], VtepId>,
    pub(super) subnets4: HashMap<MapData, Key4, VtepId>,
    pub(super) subnets6: HashMap<MapData, Key6, VtepId>,
    pub(super) vteps: Array<MapData, Vtep>,
    pub(super) vtep_ids: HashMap<MapData, Key6, VtepId>,
    pub(super) stations: HashMap<MapData, MacKey, Station>,
    pub(super) endpoints4: HashMap<MapData, Key4, Endpoint>,
    pub(super) endpoints6: HashMap<MapData, Key6, Endpoint>,
    pub(super) counters: PerCpuArray<MapData, Counter>,
    pub(super) flows: HashMap<MapData, FlowKey, Flow>,
    /// Those that [`Self::write_together`] writes to: the typed ones do not hand their descriptors out.
    batched: BTreeMap<&'static str, MapData>,
}

/// The maps in which a cluster of many nodes has many entries.
const BATCHED: [&str; 7] = [
    names::VTEPS,
    names::VTEP_IDS,
    names::STATIONS,
    names::ROUTES4,
    names::ROUTES6,
    names::SUBNETS4,
    names::SUBNETS6,
];

/// A pinned map.
fn opened(dir: &Path, name: &str) -> Result<MapData> {
    let path = dir.join(name);
    MapData::from_pin(&path).with_context(|| format!("cannot open the map {}", path.display()))
}

/// A map as its type.
fn typed<M: TryFrom<Map, Error = MapError>>(
    map: &mut impl FnMut(&'static str) -> Result<Map>,
    name: &'static str,
) -> Result<M> {
    map(name)?.try_into().with_context(|| format!("the map {name} has another type, or other entries"))
}

impl Maps {
    /// Opens what is pinned in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let pinned = |name: &'static str| {
            let map = Map::from_map_data(opened(dir, name)?);
            map.with_context(|| format!("cannot open the map {}", dir.join(name).display()))
        };
        let batched = BATCHED.map(|name| Ok((name, opened(dir, name)?)));
        Ok(Self { batched: batched.into_iter().collect::<Result<_>>()?, ..Self::of(pinned)? })
    }

    /// Those that `map` hands out by name. Of them nothing is [written together](Self::write_together).
    pub(super) fn of(mut map: impl FnMut(&'static str) -> Result<Map>) -> Result<Self> {
        Ok(Self {
            node: typed(&mut map, names::NODE)?,
            watch: typed(&mut map, names::WATCH)?,
            networks: typed(&mut map, names::NETWORKS)?,
            switch: typed(&mut map, names::SWITCH)?,
            vnis: typed(&mut map, names::VNIS)?,
            links: typed(&mut map, names::LINKS)?,
            routes4: typed(&mut map, names::ROUTES4)?,
            routes6: typed(&mut map, names::ROUTES6)?,
            subnets4: typed(&mut map, names::SUBNETS4)?,
            subnets6: typed(&mut map, names::SUBNETS6)?,
            vteps: typed(&mut map, names::VTEPS)?,
            vtep_ids: typed(&mut map, names::VTEP_IDS)?,
            stations: typed(&mut map, names::STATIONS)?,
            endpoints4: typed(&mut map, names::ENDPOINTS4)?,
            endpoints6: typed(&mut map, names::ENDPOINTS6)?,
            counters: typed(&mut map, names::COUNTERS)?,
            flows: typed(&mut map, names::FLOWS)?,
            batched: BTreeMap::new(),
        })
    }

    /// The networks that there are.
    pub(super) fn networks(&self) -> Result<BTreeMap<NetworkId, Network>, MapError> {
        let mut networks = BTreeMap::new();
        for (id, network) in (0..).zip(self.networks.iter()) {
            let network = network?;
            if network.id != NO_NETWORK {
                networks.insert(id, network);
            }
        }
        Ok(networks)
    }

    /// Everything that is in the maps; no attachments.
    pub(super) fn read(&self) -> Result<DatapathState, MapError> {
        let mut state = DatapathState { node: self.node.get(&0, 0)?.planned(), ..DatapathState::default() };
        state.networks = self.networks()?;
        state.vnis = self.vnis.iter().collect::<Result<_, _>>()?;
        read_prefixes::<8, 4>(&self.routes4, &mut state.routes)?;
        read_prefixes::<20, 16>(&self.routes6, &mut state.routes)?;
        state.subnets = self.read_subnets()?;
        for (id, vtep) in (0..).zip(self.vteps.iter()) {
            let vtep = vtep?;
            if vtep.family != 0 {
                state.vteps.insert(id, vtep.written());
            }
        }
        state.vtep_ids = self.vtep_ids.iter().collect::<Result<_, _>>()?;
        let stations = self.stations.iter().map(|entry| entry.map(|(key, station)| (key, station.written())));
        state.stations = stations.collect::<Result<_, _>>()?;
        for entry in self.endpoints4.iter() {
            let (Key4 { network, addr }, endpoint) = entry?;
            state.endpoints.insert((network, addr.into()), endpoint);
        }
        for entry in self.endpoints6.iter() {
            let (Key6 { network, addr: Addr(addr) }, endpoint) = entry?;
            state.endpoints.insert((network, addr.into()), endpoint);
        }
        let links = self.links.iter().map(|entry| entry.map(|(index, link)| (IfIndex(index), link)));
        state.links = links.collect::<Result<_, _>>()?;
        Ok(state)
    }

    /// Carries out a change of a map. Attachments are no maps: they are passed over.
    pub(super) fn write(&mut self, change: &Change) -> Result<(), MapError> {
        self.write_entry(change)?;
        if change.is_cached() { self.renumber() } else { Ok(()) }
    }

    /// Gives the tables another number, so that programs look in them anew.
    pub(super) fn renumber(&mut self) -> Result<(), MapError> {
        let node = self.node.get(&0, 0)?;
        let tables = node.tables.wrapping_add(1).max(1);
        self.node.set(0, &Node { tables, ..node }, 0)
    }

    fn write_entry(&mut self, change: &Change) -> Result<(), MapError> {
        match *change {
            Change::SetNode(node) => {
                let Node { tables, .. } = self.node.get(&0, 0)?;
                self.node.set(0, &Node { tables, ..node }, 0)
            }
            Change::PutNetwork(id, network) => self.networks.set(id, &network, 0),
            Change::DeleteNetwork(id) => self.forget_network(id),
            Change::PutVni(key, id) => self.vnis.insert(&key, &id, 0),
            Change::DeleteVni(key) => gone(self.vnis.remove(&key)),
            Change::PutVtep(id, vtep) => self.vteps.set(id, &vtep, 0),
            Change::DeleteVtep(id) => self.vteps.set(id, &Vtep::default(), 0),
            Change::PutVtepId(addr, id) => self.vtep_ids.insert(&addr, &id, 0),
            Change::DeleteVtepId(addr) => gone(self.vtep_ids.remove(&addr)),
            Change::PutStation(key, station) => self.stations.insert(&key, &station, 0),
            Change::DeleteStation(key) => gone(self.stations.remove(&key)),
            Change::PutRoute(prefix, id) => self.put_route(prefix, id),
            Change::DeleteRoute(prefix) => gone(self.delete_route(prefix)),
            Change::PutSubnet((network, subnet), id) => match subnet {
                IpNetwork::V4(subnet) => self.subnets4.insert(&subnet_key4(network, subnet), &id, 0),
                IpNetwork::V6(subnet) => self.subnets6.insert(&subnet_key6(network, subnet), &id, 0),
            },
            Change::DeleteSubnet((network, subnet)) => gone(match subnet {
                IpNetwork::V4(subnet) => self.subnets4.remove(&subnet_key4(network, subnet)),
                IpNetwork::V6(subnet) => self.subnets6.remove(&subnet_key6(network, subnet)),
            }),
            Change::PutEndpoint((network, addr), endpoint) => match addr {
                IpAddr::V4(addr) => self.endpoints4.insert(&key4(network, addr), &endpoint, 0),
                IpAddr::V6(addr) => self.endpoints6.insert(&key6(network, addr), &endpoint, 0),
            },
            Change::DeleteEndpoint((network, addr)) => gone(match addr {
                IpAddr::V4(addr) => self.endpoints4.remove(&key4(network, addr)),
                IpAddr::V6(addr) => self.endpoints6.remove(&key6(network, addr)),
            }),
            Change::PutLink(index, link) => self.links.insert(&index.0, &link, 0),
            Change::DeleteLink(index) => gone(self.links.remove(&index.0)),
            Change::Attach(_) | Change::Detach(_) => Ok(()),
        }
    }

    /// Writes many entries of one of the maps [`BATCHED`] in one call; whether it was done. Anything else
    /// is not done.
    pub(super) fn write_together(&mut self, changes: &[Change]) -> bool {
        let done = self.write_entries(changes);
        // Of what was not done some may have been.
        let is_cached = changes.first().is_some_and(Change::is_cached);
        done && (!is_cached || self.renumber().is_ok())
    }

    fn write_entries(&self, changes: &[Change]) -> bool {
        match changes {
            [] | [_] => false,
            [Change::PutVtep(..), ..] => self.put(names::VTEPS, changes, |change| match *change {
                Change::PutVtep(id, vtep) => Some((id, vtep)),
                _ => None,
            }),
            [Change::PutVtepId(..), ..] => self.put(names::VTEP_IDS, changes, |change| match *change {
                Change::PutVtepId(addr, id) => Some((addr, id)),
                _ => None,
            }),
            [Change::PutStation(..), ..] => self.put(names::STATIONS, changes, |change| match *change {
                Change::PutStation(key, id) => Some((key, id)),
                _ => None,
            }),
            [Change::PutRoute((_, IpNetwork::V4(_)), _), ..] => {
                self.put(names::ROUTES4, changes, |change| match *change {
                    Change::PutRoute((network, IpNetwork::V4(prefix)), id) => {
                        Some((prefix4(network, prefix), id))
                    }
                    _ => None,
                })
            }
            [Change::PutRoute((_, IpNetwork::V6(_)), _), ..] => {
                self.put(names::ROUTES6, changes, |change| match *change {
                    Change::PutRoute((network, IpNetwork::V6(prefix)), id) => {
                        Some((prefix6(network, prefix), id))
                    }
                    _ => None,
                })
            }
            [Change::PutSubnet((_, IpNetwork::V4(_)), _), ..] => {
                self.put(names::SUBNETS4, changes, |change| match *change {
                    Change::PutSubnet((network, IpNetwork::V4(subnet)), id) => {
                        Some((subnet_key4(network, subnet), id))
                    }
                    _ => None,
                })
            }
            [Change::PutSubnet((_, IpNetwork::V6(_)), _), ..] => {
                self.put(names::SUBNETS6, changes, |change| match *change {
                    Change::PutSubnet((network, IpNetwork::V6(subnet)), id) => {
                        Some((subnet_key6(network, subnet), id))
                    }
                    _ => None,
                })
            }
            _ => false,
        }
    }

    /// SUBNETS4 and SUBNETS6.
    fn read_subnets(&self) -> Result<BTreeMap<(NetworkId, IpNetwork), VtepId>, MapError> {
        let mut subnets = BTreeMap::new();
        let mut note = |network, address: IpAddr, id| {
            let (network, length) = subnet_of(network);
            subnets.extend(IpNetwork::new(address, length).ok().map(|subnet| ((network, subnet), id)));
        };
        for entry in self.subnets4.iter() {
            let (Key4 { network, addr }, id) = entry?;
            note(network, addr.into(), id);
        }
        for entry in self.subnets6.iter() {
            let (Key6 { network, addr: Addr(addr) }, id) = entry?;
            note(network, addr.into(), id);
        }
        Ok(subnets)
    }

    /// Writes what `entry` makes of all `changes` to the map `name`.
    fn put<K: Pod, V: Pod>(
        &self,
        name: &str,
        changes: &[Change],
        entry: impl Fn(&Change) -> Option<(K, V)>,
    ) -> bool {
        let entries: Option<Vec<(K, V)>> = changes.iter().map(entry).collect();
        let Some((keys, values)): Option<(Vec<K>, Vec<V>)> = entries.map(|e| e.into_iter().unzip()) else {
            return false;
        };
        self.batched.get(name).is_some_and(|map| update_batch(map.fd(), &keys, &values))
    }

    /// Leaves nothing of a network to the next one that gets its number.
    fn forget_network(&mut self, id: NetworkId) -> Result<(), MapError> {
        self.networks.set(id, &Network::default(), 0)?;
        let generation = switch(id, SWITCH_GENERATION);
        let next = self.switch.get(&generation, 0)?.wrapping_add(1);
        self.switch.set(generation, &next, 0)?;
        self.switch.set(switch(id, SWITCH_OFF), &0, 0)?;
        for (hook, reason, _) in self.counters(id).unwrap_or_default() {
            let cell = counters::index(id, hook, reason);
            let cpus = self.counters.get(&cell, 0)?.len();
            let nothing = PerCpuValues::try_from(vec![Counter::default(); cpus])?;
            self.counters.set(cell, nothing, 0)?;
        }
        Ok(())
    }

    fn put_route(&mut self, (network, prefix): (NetworkId, IpNetwork), id: VtepId) -> Result<(), MapError> {
        match prefix {
            IpNetwork::V4(prefix) => self.routes4.insert(&prefix4(network, prefix), &id, 0),
            IpNetwork::V6(prefix) => self.routes6.insert(&prefix6(network, prefix), &id, 0),
        }
    }

    fn delete_route(&mut self, (network, prefix): (NetworkId, IpNetwork)) -> Result<(), MapError> {
        match prefix {
            IpNetwork::V4(prefix) => self.routes4.remove(&prefix4(network, prefix)),
            IpNetwork::V6(prefix) => self.routes6.remove(&prefix6(network, prefix)),
        }
    }

    /// Whether SWITCH lets the fast path of a network run.
    pub(super) fn switched_on(&self, network: NetworkId) -> Result<bool> {
        Ok(self.switch.get(&switch(network, SWITCH_OFF), 0).context("cannot read SWITCH")? == 0)
    }

    /// Writes SWITCH. What became of flows while the fast path was off only the stack knows, so all bypasses
    /// are closed before it is on.
    pub(super) fn switch(&mut self, network: NetworkId, on: bool) -> Result<()> {
        if on && !self.switched_on(network)? {
            self.flush_flows(network)?;
        }
        self.switch.set(switch(network, SWITCH_OFF), &u32::from(!on), 0).context("cannot write SWITCH")
    }

    /// The generation that open flows of a network have.
    pub(super) fn generation(&self, network: NetworkId) -> Result<u32> {
        self.switch.get(&switch(network, SWITCH_GENERATION), 0).context("cannot read SWITCH")
    }

    /// Closes all bypasses of a network with one write.
    pub(super) fn flush_flows(&mut self, network: NetworkId) -> Result<()> {
        let next = self.generation(network)?.wrapping_add(1);
        self.switch.set(switch(network, SWITCH_GENERATION), &next, 0).context("cannot write SWITCH")
    }

    /// Writes WATCH, without programs' notes.
    pub(super) fn watch(&mut self, until: u64) -> Result<()> {
        self.watch.set(0, &Watch { until, ..Watch::default() }, 0).context("cannot write WATCH")
    }

    /// Everything in FLOWS. An entry that goes while they are read is left out.
    pub(super) fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.flows.iter().filter_map(Result::ok).collect()
    }

    /// An entry of FLOWS.
    pub(super) fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows.get(key, 0).ok()
    }

    /// Every counter of a network that is not zero, summed over the CPUs.
    pub(super) fn counters(&self, network: NetworkId) -> Result<Vec<(Hook, Reason, Counter)>> {
        let mut found = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                let cell = counters::index(network, hook, *reason);
                let per_cpu = self.counters.get(&cell, 0).context("cannot read COUNTERS")?;
                let sum = per_cpu.iter().fold(Counter::default(), |sum, cpu| Counter {
                    packets: sum.packets + cpu.packets,
                    bytes: sum.bytes + cpu.bytes,
                });
                if sum.packets != 0 {
                    found.push((hook, *reason, sum));
                }
            }
        }
        Ok(found)
    }
}

/// Deleting what is not there is fine.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

pub(super) fn key4(network: NetworkId, ip: Ipv4Addr) -> Key4 {
    Key4 { network, addr: ip.octets() }
}

pub(super) fn key6(network: NetworkId, ip: Ipv6Addr) -> Key6 {
    Key6 { network, addr: Addr(ip.octets()) }
}

fn subnet_key4(network: NetworkId, subnet: Ipv4Network) -> Key4 {
    subnet4(network, subnet.prefix(), Be32::from_bytes(subnet.ip().octets()))
}

fn subnet_key6(network: NetworkId, subnet: Ipv6Network) -> Key6 {
    subnet6(network, subnet.prefix(), Addr(subnet.ip().octets()).as_v6())
}

fn prefix4(network: NetworkId, prefix: Ipv4Network) -> Key<[u8; 8]> {
    Key::new(NETWORK_BITS + u32::from(prefix.prefix()), key4(network, prefix.ip()).bytes())
}

fn prefix6(network: NetworkId, prefix: Ipv6Network) -> Key<[u8; 20]> {
    Key::new(NETWORK_BITS + u32::from(prefix.prefix()), key6(network, prefix.ip()).bytes())
}

/// Keys of `N` bytes: four of the network, `M` of the address.
fn read_prefixes<const N: usize, const M: usize>(
    map: &LpmTrie<impl Borrow<MapData>, [u8; N], VtepId>,
    routes: &mut BTreeMap<(NetworkId, IpNetwork), VtepId>,
) -> Result<(), MapError>
where
    IpAddr: From<[u8; M]>,
{
    for entry in map.iter() {
        let (key, id) = entry?;
        routes.extend(prefix_in::<N, M>(&key).map(|prefix| (prefix, id)));
    }
    Ok(())
}

/// The network and the prefix in a key of `N` bytes: four of the network, `M` of the address.
pub(super) fn prefix_in<const N: usize, const M: usize>(key: &Key<[u8; N]>) -> Option<(NetworkId, IpNetwork)>
where
    IpAddr: From<[u8; M]>,
{
    let bits = key.prefix_len().saturating_sub(NETWORK_BITS);
    let (data, bits) = (key.data(), u8::try_from(bits).unwrap_or(u8::MAX));
    let (network, address) = data.split_first_chunk()?;
    let address = <[u8; M]>::try_from(address).ok()?;
    let prefix = IpNetwork::new(IpAddr::from(address), bits).ok()?;
    Some((NetworkId::from_ne_bytes(*network), prefix))
}
