//! A datapath seen through its pins: for operators, with or without an agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use vxlan_ebpf_common::maps::{Counter, Flow, FlowKey, NetworkId, name_bytes};
use vxlan_ebpf_common::{Hook, Reason};

use super::attach;
use super::maps::Maps;
use super::open::LINKS;
use super::state::DatapathState;

/// Removes a pin, or the directory that stands for one, which may be gone already.
pub(super) fn remove_if_there(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// The pinned maps.
pub struct Pins {
    dir: PathBuf,
    maps: Maps,
}

impl Pins {
    /// Opens what is pinned in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            bail!("nothing is pinned at {}: the agent has not set up the fast path", dir.display());
        }
        Ok(Self { dir: dir.to_owned(), maps: Maps::open(dir)? })
    }

    /// What is in the maps, and which attachments are recorded.
    pub fn state(&self) -> Result<DatapathState> {
        let mut state = self.maps.read().context("cannot read the maps")?;
        state.attachments = attach::recorded(&self.dir.join(LINKS))?;
        Ok(state)
    }

    /// Names of the networks.
    pub fn networks(&self) -> Result<Vec<String>> {
        let networks = self.maps.networks()?;
        Ok(networks.values().filter_map(|network| Some(network.name()?.to_owned())).collect())
    }

    /// The number of the network called `name`.
    pub fn network(&self, name: &str) -> Result<NetworkId> {
        let networks = self.maps.networks()?;
        let found = networks.values().find(|network| network.name == name_bytes(name));
        found
            .map(|network| network.id)
            .with_context(|| format!("the fast path does not know a network '{name}'"))
    }

    /// Every counter of a network that is not zero.
    pub fn counters(&self, network: NetworkId) -> Result<Vec<(Hook, Reason, Counter)>> {
        self.maps.counters(network)
    }

    /// Every flow that the programs know.
    pub fn flows(&self) -> Vec<(FlowKey, Flow)> {
        self.maps.flows()
    }

    /// A flow, if the programs know it.
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.maps.flow(key)
    }

    /// The generation of those flows of a network that count.
    pub fn generation(&self, network: NetworkId) -> Result<u32> {
        self.maps.generation(network)
    }

    /// Closes all bypasses of a network: the next packet of every flow meets the host stack.
    pub fn flush_flows(&mut self, network: NetworkId) -> Result<()> {
        self.maps.flush_flows(network)
    }

    /// Whether the fast path of a network may run.
    pub fn switched_on(&self, network: NetworkId) -> Result<bool> {
        self.maps.switched_on(network)
    }

    /// Lets the fast path of a network run, or leaves every packet to the kernel, from the next packet on.
    pub fn switch(&mut self, network: NetworkId, on: bool) -> Result<()> {
        self.maps.switch(network, on)
    }
}
