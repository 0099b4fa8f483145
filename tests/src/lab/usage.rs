//! What maps take.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::MapData;
use vxlan_ebpf_common::maps::names;

/// Bytes of the kernel's memory that the maps pinned in `dir` take, as it counts them itself.
///
/// # Errors
/// One of them is not there, or the kernel does not say.
pub fn map_bytes(dir: &Path) -> Result<u64> {
    let bytes = |name: &&str| {
        let map = MapData::from_pin(dir.join(name)).with_context(|| format!("no map {name}"))?;
        let info = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
        let info = std::fs::read_to_string(info)?;
        let line = info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock")?;
        anyhow::Ok(line.trim().parse::<u64>()?)
    };
    names::ALL.iter().map(bytes).sum()
}
