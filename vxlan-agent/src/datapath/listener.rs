//! Listening to what the programs make of packets, through the pins.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::perf::{PerfEvent, PerfEventArrayBuffer};
use aya::maps::{Array, Map, MapData, MapError, MapInfo, PerCpuArray, PerCpuValues, PerfEventArray};
use aya::programs::ProgramInfo;
use aya::util::{nr_cpus, online_cpus};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::listen::{Event, Filter, HEAD_LEN, Heard, Listen, MAX_AFTER, Snapshot};
use vxlan_ebpf_common::maps::names;

use super::open::PROGRAMS;

/// How long programs believe in a listener that does not [renew](Listener::renew) its word.
const PATIENCE: Duration = Duration::from_secs(3);
/// How often a listener should.
pub const RENEW: Duration = Duration::from_secs(1);
/// Pages of the buffer for each CPU, a power of two: 1 MiB.
const PAGES: usize = 256;

/// What somebody wants to hear.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Which packets.
    pub filter: Filter,
    /// Bytes of a packet that is forwarded, as it was found; [`HEAD_LEN`] at most.
    pub before: u32,
    /// Bytes of a packet that is forwarded, as it was left.
    pub after: u32,
    /// Bytes of any other packet.
    pub untouched: u32,
    /// One packet in so many.
    pub sample: u32,
    /// Packets per second and CPU; 0: any number.
    pub rate: u32,
}

/// A packet that somebody hears of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What became of it.
    pub event: Event,
    /// As it was found, as far as asked for.
    pub before: Vec<u8>,
    /// As it was left, as far as asked for: of a packet that is not forwarded the same.
    pub after: Vec<u8>,
}

impl Report {
    /// From a record of EVENTS.
    fn parse(record: &[u8]) -> Option<Self> {
        let (event, bytes) = record.split_at_checked(size_of::<Event>())?;
        // SAFETY: `event` has the length of an `Event`, which is valid for any bytes.
        let event = unsafe { event.as_ptr().cast::<Event>().read_unaligned() };
        let (before, bytes) = bytes.split_at_checked(usize::try_from(event.before).ok()?)?;
        let after = bytes.get(..usize::try_from(event.after).ok()?)?;
        let before = if event.forwarded == 0 { after } else { before };
        Some(Self { event, before: before.to_vec(), after: after.to_vec() })
    }
}

/// The one process that the programs tell of packets. They stop when it is dropped, and soon when it is killed.
pub struct Listener {
    dir: PathBuf,
    id: u32,
    entry: Listen,
    listen: Array<MapData, Listen>,
    snapshot: PerCpuArray<MapData, Snapshot>,
    /// What the buffers are reached by: they are taken out of it when it is closed.
    events: PerfEventArray<MapData>,
    buffers: BTreeMap<u32, PerfEventArrayBuffer>,
    /// Held for as long as this process lives.
    _lock: Flock<File>,
}

impl Listener {
    /// Has the programs pinned in `dir` report what is wanted.
    ///
    /// # Errors
    /// There are none, they are of an agent that cannot do this, or somebody listens already.
    pub fn start(dir: &Path, wanted: &Wanted) -> Result<Self> {
        ensure!(
            dir.is_dir(),
            "nothing is pinned at {}: the agent has not set up the fast path, so there is nothing to listen to",
            dir.display()
        );
        let lock = lock(dir)?;
        let id = reported_by_programs(dir)?;
        let mut listener = Self {
            dir: dir.to_owned(),
            id,
            entry: entry(wanted),
            listen: typed(dir, names::LISTEN)?,
            snapshot: typed(dir, names::SNAPSHOT)?,
            events: typed(dir, names::EVENTS)?,
            buffers: BTreeMap::new(),
            _lock: lock,
        };
        listener.silence()?;
        let cpus =
            usize::try_from(nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?.get())?;
        let nothing = PerCpuValues::try_from(vec![Snapshot::EMPTY; cpus])?;
        listener.snapshot.set(0, nothing, 0).context("cannot write SNAPSHOT")?;
        listener.renew()?;
        Ok(listener)
    }

    /// Tells the programs that this process still listens; to be called every [`RENEW`].
    ///
    /// # Errors
    /// The maps are not those of the fast path any more.
    pub fn renew(&mut self) -> Result<()> {
        let there = MapInfo::from_pin(self.dir.join(names::LISTEN)).map(|map| map.id());
        ensure!(
            there.is_ok_and(|id| id == self.id),
            "the fast path whose packets were listened to is gone, or has been set up anew: start again"
        );
        self.cover_cpus()?;
        self.entry.until = now()?.saturating_add(u64::try_from(PATIENCE.as_nanos())?);
        self.listen.set(0, &self.entry, 0).context("cannot write LISTEN")
    }

    /// Opens a buffer for each CPU that has none yet.
    fn cover_cpus(&mut self) -> Result<()> {
        let online = online_cpus().map_err(|(what, error)| anyhow::Error::new(error).context(what))?;
        for cpu in online {
            if self.buffers.contains_key(&cpu) {
                continue;
            }
            let buffer = PerfEventArrayBuffer::open(cpu, PAGES)
                .with_context(|| format!("cannot make a buffer for events of CPU {cpu}"))?;
            self.events.set(cpu, &buffer).context("cannot write EVENTS")?;
            self.buffers.insert(cpu, buffer);
        }
        Ok(())
    }

    /// What becomes readable when there is something to [`read`](Self::read).
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.buffers.values().map(|buffer| buffer.as_fd())
    }

    /// What has been reported since it was last asked for, in the order of time.
    pub fn read(&mut self) -> Vec<Report> {
        let mut reports = vec![];
        for buffer in self.buffers.values_mut() {
            buffer.for_each(|event| {
                // What was lost the programs count.
                if let PerfEvent::Sample { head, tail } = event {
                    reports.extend(Report::parse(&[head, tail].concat()));
                }
            });
        }
        reports.sort_by_key(|report| report.event.time);
        reports
    }

    /// What was counted on all CPUs together since the start.
    ///
    /// # Errors
    /// SNAPSHOT cannot be read.
    pub fn heard(&self) -> Result<Heard> {
        let all = self.snapshot.get(&0, 0).context("cannot read SNAPSHOT")?;
        Ok(all.iter().fold(Heard::default(), |sum, Snapshot { heard, .. }| Heard {
            matched: sum.matched + heard.matched,
            unsampled: sum.unsampled + heard.unsampled,
            suppressed: sum.suppressed + heard.suppressed,
            lost: sum.lost + heard.lost,
        }))
    }

    /// Has the programs report nothing more. What they have reported can still be read.
    ///
    /// # Errors
    /// LISTEN cannot be written.
    pub fn silence(&mut self) -> Result<()> {
        self.listen.set(0, &Listen::default(), 0).context("cannot write LISTEN")
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // If it fails, time does it.
        let _ = self.silence();
    }
}

/// What LISTEN says then, but for how long.
fn entry(wanted: &Wanted) -> Listen {
    const SECOND: u64 = 1_000_000_000;
    Listen {
        until: 0,
        interval: SECOND.checked_div(u64::from(wanted.rate)).unwrap_or(0),
        sample: u32::MAX / wanted.sample.max(1),
        before: wanted.before.min(HEAD_LEN as u32),
        after: wanted.after.min(MAX_AFTER),
        untouched: wanted.untouched.min(MAX_AFTER),
        pid: std::process::id(),
        reserved: 0,
        filter: wanted.filter,
    }
}

/// Keeps every other listener away.
fn lock(dir: &Path) -> Result<Flock<File>> {
    let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => {
            let listen: Result<Array<MapData, Listen>> = typed(dir, names::LISTEN);
            let pid = listen.ok().and_then(|map| map.get(&0, 0).ok()).map(|entry| entry.pid);
            let pid = pid.filter(|pid| *pid != 0).map_or_else(String::new, |pid| format!(" (process {pid})"));
            bail!(
                "another `monitor` or `capture` listens on this node already{pid}: there can be one, so end it first"
            )
        }
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", dir.display())),
    }
}

/// The number of the map LISTEN, if the programs look at it.
fn reported_by_programs(dir: &Path) -> Result<u32> {
    let advice = "the programs on this node are of an agent that cannot report packets: \
                  start the agent of this version, which replaces them";
    let listen = dir.join(names::LISTEN);
    ensure!(listen.exists(), "{advice}");
    let id =
        MapInfo::from_pin(&listen).with_context(|| format!("cannot open the map {}", listen.display()))?.id();
    let pin = dir.join(PROGRAMS).join(Hook::PodEgress.label());
    let program = ProgramInfo::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
    let maps = program.map_ids().context("cannot ask which maps the programs use")?;
    ensure!(maps.is_none_or(|maps| maps.contains(&id)), "{advice}");
    Ok(id)
}

fn typed<M: TryFrom<Map, Error = MapError>>(dir: &Path, name: &str) -> Result<M> {
    let path = dir.join(name);
    let map = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(TryInto::try_into);
    map.with_context(|| format!("cannot open the map {}", path.display()))
}

/// `CLOCK_MONOTONIC`, as programs have it.
fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(event: Event, bytes: &[u8]) -> Vec<u8> {
        // SAFETY: an `Event` has no padding.
        let head = unsafe { std::slice::from_raw_parts((&raw const event).cast::<u8>(), size_of::<Event>()) };
        [head, bytes].concat()
    }

    #[test]
    fn a_record_is_the_event_and_the_packet_before_and_after() {
        let event = Event { before: 2, after: 3, forwarded: 1, ..Event::default() };
        // The kernel fills records up.
        let report = Report::parse(&record(event, &[1, 2, 3, 4, 5, 0, 0, 0])).expect("a record");
        assert_eq!((report.before.as_slice(), report.after.as_slice()), (&[1, 2][..], &[3, 4, 5][..]));
        let event = Event { after: 3, ..Event::default() };
        let report = Report::parse(&record(event, &[1, 2, 3])).expect("a record");
        assert_eq!(report.before, report.after);
    }

    #[test]
    fn a_record_that_is_cut_off_is_none() {
        let event = Event { before: 2, after: 3, forwarded: 1, ..Event::default() };
        let whole = record(event, &[1, 2, 3, 4, 5]);
        (0..whole.len()).for_each(|len| assert_eq!(Report::parse(&whole[..len]), None, "{len}"));
    }

    #[test]
    fn rates_and_samples_are_what_the_programs_compare_with() {
        let wanted =
            Wanted { filter: Filter::default(), before: 9999, after: 1, untouched: 2, sample: 1, rate: 100 };
        let listen = entry(&wanted);
        assert_eq!((listen.interval, listen.sample, listen.before), (10_000_000, u32::MAX, HEAD_LEN as u32));
        let listen = entry(&Wanted { sample: 4, rate: 0, ..wanted });
        assert_eq!((listen.interval, listen.sample), (0, u32::MAX / 4));
    }
}
