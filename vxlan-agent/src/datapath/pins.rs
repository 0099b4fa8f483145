//! A datapath seen through its pins: for operators, with or without an agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use vxlan_ebpf_common::maps::{Counter, Flow, FlowKey};
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

/// The pinned maps of a network.
pub struct Pins {
    dir: PathBuf,
    maps: Maps,
}

impl Pins {
    /// Opens the network whose pins are in `dir`.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            bail!("nothing is pinned at {}: the agent has not set up this network", dir.display());
        }
        Ok(Self { dir: dir.to_owned(), maps: Maps::open(dir)? })
    }

    /// What is in the maps, and which attachments are recorded.
    pub fn state(&self) -> Result<DatapathState> {
        let mut state = self.maps.read().context("cannot read the maps")?;
        state.attachments = attach::recorded(&self.dir.join(LINKS))?;
        Ok(state)
    }

    /// Every counter that is not zero.
    pub fn counters(&self) -> Result<Vec<(Hook, Reason, Counter)>> {
        self.maps.counters()
    }

    /// Every flow that the programs know, and the generation of those that count.
    pub fn flows(&self) -> Result<(Vec<(FlowKey, Flow)>, u32)> {
        Ok((self.maps.flows(), self.maps.generation()?))
    }

    /// Closes all bypasses: the next packet of every flow meets the host stack.
    pub fn flush_flows(&mut self) -> Result<()> {
        self.maps.flush_flows()
    }

    /// Whether the fast path may run.
    pub fn switched_on(&self) -> Result<bool> {
        self.maps.switched_on()
    }

    /// Lets the fast path run, or leaves every packet to the kernel, from the next packet on.
    pub fn switch(&mut self, on: bool) -> Result<()> {
        self.maps.switch(on)
    }
}
