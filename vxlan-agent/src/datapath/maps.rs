//! Typed access to the maps of one network.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray};
use ipnetwork::IpNetwork;
use vxlan_ebpf_common::maps::{
    Addr, Config, Counter, Endpoint, Flow, FlowKey, MacKey, SWITCH_GENERATION, SWITCH_OFF, Veth, Vtep,
    VtepId, names,
};
use vxlan_ebpf_common::{Hook, Reason, counters};

use super::state::{Change, DatapathState};
use super::syscall::update_batch;
use crate::net::IfIndex;

/// All maps that the agent writes, and those that operators read.
pub(super) struct Maps {
    config: Array<MapData, Config>,
    switch: Array<MapData, u32>,
    routes4: LpmTrie<MapData, [u8; 4], VtepId>,
    routes6: LpmTrie<MapData, [u8; 16], VtepId>,
    vteps: Array<MapData, Vtep>,
    vtep_ids: HashMap<MapData, Addr, VtepId>,
    macs: HashMap<MapData, MacKey, VtepId>,
    endpoints4: HashMap<MapData, [u8; 4], Endpoint>,
    endpoints6: HashMap<MapData, [u8; 16], Endpoint>,
    veths: HashMap<MapData, u32, Veth>,
    counters: PerCpuArray<MapData, Counter>,
    flows: HashMap<MapData, FlowKey, Flow>,
    /// Those that [`Self::write_together`] writes to: the typed ones do not hand their descriptors out.
    batched: BTreeMap<&'static str, MapData>,
}

/// The maps in which a cluster of many nodes has many entries.
const BATCHED: [&str; 5] = [names::VTEPS, names::VTEP_IDS, names::MACS, names::ROUTES4, names::ROUTES6];

/// A pinned map.
fn opened(dir: &Path, name: &str) -> Result<MapData> {
    let path = dir.join(name);
    MapData::from_pin(&path).with_context(|| format!("cannot open the map {}", path.display()))
}

/// A pinned map as its type.
fn typed<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &str) -> Result<M> {
    let map = opened(dir, name)?;
    let typed = Map::from_map_data(map).and_then(TryInto::try_into);
    typed.with_context(|| format!("cannot open the map {}", dir.join(name).display()))
}

impl Maps {
    /// Opens what is pinned in `dir`.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        Ok(Self {
            config: typed(dir, names::CONFIG)?,
            switch: typed(dir, names::SWITCH)?,
            routes4: typed(dir, names::ROUTES4)?,
            routes6: typed(dir, names::ROUTES6)?,
            vteps: typed(dir, names::VTEPS)?,
            vtep_ids: typed(dir, names::VTEP_IDS)?,
            macs: typed(dir, names::MACS)?,
            endpoints4: typed(dir, names::ENDPOINTS4)?,
            endpoints6: typed(dir, names::ENDPOINTS6)?,
            veths: typed(dir, names::VETHS)?,
            counters: typed(dir, names::COUNTERS)?,
            flows: typed(dir, names::FLOWS)?,
            batched: BATCHED.map(|name| Ok((name, opened(dir, name)?))).into_iter().collect::<Result<_>>()?,
        })
    }

    /// Everything that is in the maps; no attachments.
    pub(super) fn read(&self) -> Result<DatapathState, MapError> {
        let mut state = DatapathState { config: self.config.get(&0, 0)?, ..DatapathState::default() };
        read_prefixes(&self.routes4, &mut state.routes)?;
        read_prefixes(&self.routes6, &mut state.routes)?;
        for (id, vtep) in (0..).zip(self.vteps.iter()) {
            let vtep = vtep?;
            if vtep.family != 0 {
                state.vteps.insert(id, vtep);
            }
        }
        state.vtep_ids = self.vtep_ids.iter().collect::<Result<_, _>>()?;
        state.macs = self.macs.iter().collect::<Result<_, _>>()?;
        read_addresses(&self.endpoints4, &mut state.endpoints)?;
        read_addresses(&self.endpoints6, &mut state.endpoints)?;
        let veths = self.veths.iter().map(|entry| entry.map(|(index, veth)| (IfIndex(index), veth)));
        state.veths = veths.collect::<Result<_, _>>()?;
        Ok(state)
    }

    /// Carries out a change of a map. Attachments are no maps: they are passed over.
    pub(super) fn write(&mut self, change: &Change) -> Result<(), MapError> {
        match *change {
            Change::SetConfig(config) => self.config.set(0, &config, 0),
            Change::PutVtep(id, vtep) => self.vteps.set(id, &vtep, 0),
            Change::DeleteVtep(id) => self.vteps.set(id, &Vtep::default(), 0),
            Change::PutVtepId(addr, id) => self.vtep_ids.insert(&addr, &id, 0),
            Change::DeleteVtepId(addr) => gone(self.vtep_ids.remove(&addr)),
            Change::PutMac(key, id) => self.macs.insert(&key, &id, 0),
            Change::DeleteMac(key) => gone(self.macs.remove(&key)),
            Change::PutRoute(prefix, id) => self.put_route(prefix, id),
            Change::DeleteRoute(prefix) => gone(self.delete_route(prefix)),
            Change::PutEndpoint(addr, endpoint) => match addr {
                IpAddr::V4(addr) => self.endpoints4.insert(&addr.octets(), &endpoint, 0),
                IpAddr::V6(addr) => self.endpoints6.insert(&addr.octets(), &endpoint, 0),
            },
            Change::DeleteEndpoint(addr) => gone(match addr {
                IpAddr::V4(addr) => self.endpoints4.remove(&addr.octets()),
                IpAddr::V6(addr) => self.endpoints6.remove(&addr.octets()),
            }),
            Change::PutVeth(index, veth) => self.veths.insert(&index.0, &veth, 0),
            Change::DeleteVeth(index) => gone(self.veths.remove(&index.0)),
            Change::Attach(_) | Change::Detach(_) => Ok(()),
        }
    }

    /// Writes many entries of one of the maps [`BATCHED`] in one call; whether it was done. Anything else
    /// is not done.
    pub(super) fn write_together(&self, changes: &[Change]) -> bool {
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
            [Change::PutMac(..), ..] => self.put(names::MACS, changes, |change| match *change {
                Change::PutMac(key, id) => Some((key, id)),
                _ => None,
            }),
            [Change::PutRoute(IpNetwork::V4(_), _), ..] => {
                self.put(names::ROUTES4, changes, |change| match *change {
                    Change::PutRoute(IpNetwork::V4(prefix), id) => {
                        Some((Key::new(prefix.prefix().into(), prefix.ip().octets()), id))
                    }
                    _ => None,
                })
            }
            [Change::PutRoute(IpNetwork::V6(_), _), ..] => {
                self.put(names::ROUTES6, changes, |change| match *change {
                    Change::PutRoute(IpNetwork::V6(prefix), id) => {
                        Some((Key::new(prefix.prefix().into(), prefix.ip().octets()), id))
                    }
                    _ => None,
                })
            }
            _ => false,
        }
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

    fn put_route(&mut self, prefix: IpNetwork, id: VtepId) -> Result<(), MapError> {
        let bits = prefix.prefix().into();
        match prefix.ip() {
            IpAddr::V4(ip) => self.routes4.insert(&Key::new(bits, ip.octets()), &id, 0),
            IpAddr::V6(ip) => self.routes6.insert(&Key::new(bits, ip.octets()), &id, 0),
        }
    }

    fn delete_route(&mut self, prefix: IpNetwork) -> Result<(), MapError> {
        let bits = prefix.prefix().into();
        match prefix.ip() {
            IpAddr::V4(ip) => self.routes4.remove(&Key::new(bits, ip.octets())),
            IpAddr::V6(ip) => self.routes6.remove(&Key::new(bits, ip.octets())),
        }
    }

    /// Whether SWITCH lets the fast path run.
    pub(super) fn switched_on(&self) -> Result<bool> {
        Ok(self.switch.get(&SWITCH_OFF, 0).context("cannot read SWITCH")? == 0)
    }

    /// Writes SWITCH. What became of flows while the fast path was off only the stack knows, so all bypasses
    /// are closed before it is on.
    pub(super) fn switch(&mut self, on: bool) -> Result<()> {
        if on && !self.switched_on()? {
            self.flush_flows()?;
        }
        self.switch.set(SWITCH_OFF, &u32::from(!on), 0).context("cannot write SWITCH")
    }

    /// The generation that open flows have.
    pub(super) fn generation(&self) -> Result<u32> {
        self.switch.get(&SWITCH_GENERATION, 0).context("cannot read SWITCH")
    }

    /// Closes all bypasses with one write.
    pub(super) fn flush_flows(&mut self) -> Result<()> {
        let next = self.generation()?.wrapping_add(1);
        self.switch.set(SWITCH_GENERATION, &next, 0).context("cannot write SWITCH")
    }

    /// Everything in FLOWS. An entry that goes while they are read is left out.
    pub(super) fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.flows.iter().filter_map(Result::ok).collect()
    }

    /// Every counter that is not zero, summed over the CPUs.
    pub(super) fn counters(&self) -> Result<Vec<(Hook, Reason, Counter)>> {
        let mut found = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                let cell = counters::index(hook, *reason);
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

fn read_prefixes<const N: usize>(
    map: &LpmTrie<impl Borrow<MapData>, [u8; N], VtepId>,
    routes: &mut BTreeMap<IpNetwork, VtepId>,
) -> Result<(), MapError>
where
    IpAddr: From<[u8; N]>,
{
    for entry in map.iter() {
        let (key, id) = entry?;
        let prefix = u8::try_from(key.prefix_len()).unwrap_or(u8::MAX);
        if let Ok(prefix) = IpNetwork::new(IpAddr::from(key.data()), prefix) {
            routes.insert(prefix, id);
        }
    }
    Ok(())
}

fn read_addresses<const N: usize>(
    map: &HashMap<impl Borrow<MapData>, [u8; N], Endpoint>,
    endpoints: &mut BTreeMap<IpAddr, Endpoint>,
) -> Result<(), MapError>
where
    IpAddr: From<[u8; N]>,
{
    for entry in map.iter() {
        let (address, endpoint) = entry?;
        endpoints.insert(IpAddr::from(address), endpoint);
    }
    Ok(())
}
