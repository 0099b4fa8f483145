//! A segment with a hundred thousand stations behind another node.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use vxlan_agent::datapath::{Change, Pins, Sizes};
use vxlan_ebpf_common::maps::{MacKey, Station};

use crate::bench::control_plane::{cpu_seconds, peak_mebibytes};
use crate::lab::segment::SegmentLab;
use crate::lab::{Overlay, SegmentSpec, map_bytes, wait_until};
use crate::testrun::Kernel;

const START_WITHIN: Duration = Duration::from_secs(60);

/// What an agent needs for the stations of a segment that it finds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Loaded {
    /// Seconds from the start of the process until all were in the maps.
    pub seconds: f64,
    /// CPU seconds of the agent until then.
    pub cpu_seconds: f64,
    /// The most memory that it had, in MiB.
    pub mebibytes: f64,
    /// What the maps take, in MiB.
    pub map_mebibytes: f64,
    /// Seconds that writing as many entries to the map takes.
    pub written: f64,
}

/// A lab of one segment whose vxlan device on node 1 has learnt many stations.
pub struct Crowd {
    lab: SegmentLab,
    count: u32,
}

impl Crowd {
    /// Builds it.
    ///
    /// # Errors
    /// The lab cannot be built, or its kernel does not take that many.
    pub fn build(count: u32) -> Result<Self> {
        let mut lab = SegmentSpec::pair(Overlay::verified(), Overlay::KernelVxlan).build()?;
        lab.agent_mut(1)?.stop()?;
        let crowd = Self { lab, count };
        crowd.learn(0..count)?;
        Ok(crowd)
    }

    /// Has the vxlan device of node 1 learn that these stations are behind node 2.
    fn learn(&self, numbers: Range<u32>) -> Result<()> {
        let device = self.lab.tenant("red").device();
        let lines = learnt(&device, self.lab.node(2).underlay, numbers);
        self.lab.node(1).feed("bridge", &["-batch", "-"], &lines).map(drop)
    }

    /// Stations of the segment in the maps of node 1.
    fn known(&self) -> usize {
        let pins = || Pins::open(&self.lab.agent(1)?.pins()?)?.state();
        pins().map_or(0, |state| state.stations.len())
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// It does not know all stations in time.
    pub fn load(&mut self) -> Result<Loaded> {
        let (count, started) = (self.count as usize, Instant::now());
        self.lab.agent_mut(1)?.spawn()?;
        let lasted = || wait_until("all are known", START_WITHIN, || self.known() >= count);
        lasted().inspect_err(|_| eprintln!("{} of {count} stations are known", self.known()))?;
        let seconds = started.elapsed().as_secs_f64();
        let agent = self.lab.agent(1)?;
        let pid = agent.pid().context("the agent does not run")?;
        Ok(Loaded {
            seconds,
            cpu_seconds: cpu_seconds(pid)?,
            mebibytes: peak_mebibytes(pid)?,
            map_mebibytes: map_bytes(&agent.pins()?)? as f64 / f64::from(1 << 20),
            written: write(self.count)?,
        })
    }

    /// Has node 1 learn at once that `count` further stations are behind node 2, and waits until its maps say so;
    /// how often its agent has taken in news meanwhile.
    ///
    /// # Errors
    /// They do not.
    pub fn burst(&mut self, count: u32) -> Result<usize> {
        let (known, status) = (self.known(), self.lab.run_dir().join("n1/status.json"));
        let (begun, done) = (SystemTime::now(), AtomicBool::new(false));
        let watch = || {
            let mut written = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                written.extend(status.metadata().and_then(|file| file.modified()).ok());
                std::thread::sleep(Duration::from_micros(500));
            }
            written.range(begun..).count()
        };
        std::thread::scope(|scope| {
            let watch = scope.spawn(watch);
            let learnt = self.learn(self.count..self.count + count);
            let all = || self.known() >= known + count as usize;
            let known = learnt.and_then(|()| wait_until("all are known", START_WITHIN, all));
            done.store(true, Ordering::Relaxed);
            let written = watch.join().expect("no panic");
            known.map(|()| written)
        })
        .inspect(|_| self.count += count)
    }
}

/// How long `count` entries take to be written to an empty map.
fn write(count: u32) -> Result<f64> {
    let mut kernel = Kernel::load_for(Sizes::of(1, 1, 1).with_segments(true));
    let put = |n: u32| {
        let [a, b, c, d] = n.to_be_bytes();
        Change::PutStation(MacKey::new(1, [2, 1, a, b, c, d]), Station::vtep(1))
    };
    let changes: Vec<Change> = (0..count).map(put).collect();
    let begun = Instant::now();
    ensure!(kernel.apply_together(&changes), "the kernel has no batches");
    Ok(begun.elapsed().as_secs_f64())
}

/// Lines for `bridge -batch`: stations that `device` has learnt to be behind `vtep`.
fn learnt(device: &str, vtep: std::net::IpAddr, numbers: Range<u32>) -> String {
    numbers.fold(String::new(), |mut text, n| {
        let [a, b, c, d] = n.to_be_bytes();
        let _ = writeln!(
            text,
            "fdb replace 02:01:{a:02x}:{b:02x}:{c:02x}:{d:02x} dev {device} dst {vtep} self dynamic"
        );
        text
    })
}
