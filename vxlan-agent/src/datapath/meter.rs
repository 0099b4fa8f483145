//! What metrics need of a datapath, read through its pins with few system calls, however much is in the maps.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData, MapInfo};
use aya::util::nr_cpus;
use vxlan_ebpf_common::counters::{CELLS_PER_NETWORK, index};
use vxlan_ebpf_common::maps::{Counter, Flow, FlowKey, NetworkId, SWITCH_OFF, names, switch};
use vxlan_ebpf_common::{Hook, Reason};

use super::open::PROGRAMS;
use super::syscall::{describe, lookup_batch, pinned};

/// How many flows are read at most. Of a table that has more, what they are in tells how full the rest is: with
/// so many, 3 % too few or too many is twice the standard deviation.
const FLOWS_READ: usize = 4096;

/// A pinned datapath, to be measured.
pub struct Meter {
    dir: PathBuf,
    counters: MapData,
    flows: MapData,
    switch: Array<MapData, u32>,
    cpus: usize,
}

/// How often a program ran, and how long, while `kernel.bpf_stats_enabled` was 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Runs.
    pub count: u64,
    /// All of them together.
    pub time: Duration,
}

impl Meter {
    /// Opens what is pinned in `dir`.
    ///
    /// # Errors
    /// Nothing is, or this process may not have it.
    pub fn open(dir: &Path) -> Result<Self> {
        let open = |name: &str| {
            MapData::from_pin(dir.join(name)).with_context(|| format!("cannot open the map {name}"))
        };
        let switch = Map::from_map_data(open(names::SWITCH)?).and_then(TryInto::try_into);
        let cpus = nr_cpus().map_err(|(what, error)| anyhow::Error::new(error).context(what))?;
        Ok(Self {
            dir: dir.to_owned(),
            counters: open(names::COUNTERS)?,
            flows: open(names::FLOWS)?,
            switch: switch.context("cannot open the map SWITCH")?,
            cpus: usize::try_from(cpus.get()).context("too many CPUs")?,
        })
    }

    /// Every counter of a network that is not zero, summed over the CPUs.
    ///
    /// # Errors
    /// COUNTERS cannot be read.
    pub fn counters(&self, network: NetworkId) -> Result<Vec<(Hook, Reason, Counter)>> {
        let first = network * CELLS_PER_NETWORK;
        let mut keys = vec![0_u32; CELLS_PER_NETWORK as usize];
        let mut values = vec![Counter::default(); keys.len() * self.cpus];
        lookup_batch(self.counters.fd(), first.checked_sub(1), &mut keys, &mut values)
            .context("cannot read COUNTERS")?;
        let sum = |hook: Hook, reason: Reason| {
            let cell = (index(network, hook, reason) - first) as usize;
            let per_cpu = &values[cell * self.cpus..][..self.cpus];
            per_cpu.iter().fold(Counter::default(), |sum, cpu| Counter {
                packets: sum.packets + cpu.packets,
                bytes: sum.bytes + cpu.bytes,
            })
        };
        let all =
            Hook::ALL.into_iter().flat_map(|hook| Reason::ALL.iter().map(move |reason| (hook, *reason)));
        let counted = all.map(|(hook, reason)| (hook, reason, sum(hook, reason)));
        Ok(counted.filter(|(_, _, counter)| counter.packets != 0).collect())
    }

    /// Whether an operator lets the fast path of a network run.
    ///
    /// # Errors
    /// SWITCH cannot be read.
    pub fn switched_on(&self, network: NetworkId) -> Result<bool> {
        Ok(self.switch.get(&switch(network, SWITCH_OFF), 0).context("cannot read SWITCH")? == 0)
    }

    /// About how many entries FLOWS has; of a table with few it is exact.
    ///
    /// # Errors
    /// FLOWS cannot be read.
    pub fn flows(&self) -> Result<u64> {
        Ok(self.some_flows(FLOWS_READ)?.1)
    }

    /// Flows, no more than `most`, and about how many there are.
    ///
    /// # Errors
    /// FLOWS cannot be read.
    pub fn some_flows(&self, most: usize) -> Result<(Vec<(FlowKey, Flow)>, u64)> {
        let places = self.flows.info().context("cannot read FLOWS")?.max_entries();
        let mut keys = vec![FlowKey::default(); most];
        let mut values = vec![Flow::default(); most];
        let part =
            lookup_batch(self.flows.fd(), None, &mut keys, &mut values).context("cannot read FLOWS")?;
        let read = keys.into_iter().zip(values).take(part.count).collect();
        Ok((read, estimate(part.count, part.next, places)))
    }

    /// How many places each map has.
    pub fn places(&self) -> Vec<(&'static str, u32)> {
        let places =
            |name: &&'static str| Some((*name, MapInfo::from_pin(self.dir.join(name)).ok()?.max_entries()));
        names::ALL.iter().filter_map(places).collect()
    }

    /// How long the programs ran; none of one that nobody has measured.
    pub fn runs(&self) -> Vec<(Hook, Runs)> {
        let programs = self.dir.join(PROGRAMS);
        let runs = |hook: Hook| Some((hook, runs_of(&programs.join(hook.label()))?));
        Hook::ALL.into_iter().filter_map(runs).filter(|(_, runs)| runs.count != 0).collect()
    }
}

/// The beginning of `struct bpf_prog_info` (v5.15): 24 words that are not needed, then these. Those of them that point
/// to arrays are zero, so the kernel writes none.
#[derive(Default)]
#[repr(C)]
struct ProgramInfo {
    before: [u64; 24],
    run_time_ns: u64,
    run_count: u64,
}

fn runs_of(pin: &Path) -> Option<Runs> {
    let mut info = ProgramInfo::default();
    // SAFETY: see `ProgramInfo`.
    unsafe { describe(&pinned(pin)?, &mut info) }?;
    Some(Runs { count: info.run_count, time: Duration::from_nanos(info.run_time_ns) })
}

/// How many entries a hash with room for `places` has, if the first `read` buckets of it have `count`: all of them if
/// that is `None`. The kernel makes a power of two of buckets (`htab_map_alloc`, v6.18), and fills them evenly.
fn estimate(count: usize, read: Option<u32>, places: u32) -> u64 {
    let count = count as u64;
    let Some(read) = read.filter(|read| *read != 0) else { return count };
    let buckets = u64::from(places).next_power_of_two();
    (count * buckets / u64::from(read)).clamp(count, u64::from(places).max(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_read_to_its_end_is_counted_exactly() {
        assert_eq!(estimate(0, None, 65_536), 0);
        assert_eq!(estimate(4_000, None, 65_536), 4_000);
    }

    #[test]
    fn a_part_of_a_table_says_how_full_the_rest_is() {
        // A quarter of the buckets.
        assert_eq!(estimate(4_096, Some(16_384), 65_536), 16_384);
        // Places that are no power of two have as many buckets as the next one.
        assert_eq!(estimate(4_096, Some(32_768), 50_000), 8_192);
        // Never more than there are places, nor fewer than were seen.
        assert_eq!(estimate(4_096, Some(1_024), 65_536), 65_536);
        assert_eq!(estimate(4_096, Some(65_536), 1_024), 4_096);
    }
}
