//! A storm of changes, and how late an agent is in it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::nodes::{self, NODES};
use crate::bench::stats::Summary;
use crate::lab::kubernetes::Stub;
use crate::lab::wait_until;

/// Changes a second.
pub const RATE: u32 = 1_000;
/// For how long: enough to change every node twice.
pub const SECONDS: u32 = 10;
/// All of them.
pub(super) const CHANGES: u32 = RATE * SECONDS;

const FOLLOWED_WITHIN: Duration = Duration::from_secs(60);

/// How an agent followed [`RATE`] changes a second.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// Changes a second that were made.
    pub offered: f64,
    /// Changes a second that were followed, from the first to the last.
    pub followed: f64,
    /// Seconds that the median change was late in the fast path: of the first half, of the second.
    pub late: [f64; 2],
    /// Seconds that the latest was late.
    pub worst: f64,
    /// Seconds that the last was late.
    pub last: f64,
    /// CPU seconds of the agent a second.
    pub cpus: f64,
    /// The most memory that the agent has had so far, in MiB.
    pub mebibytes: f64,
}

/// What was seen of a storm.
pub(super) struct Blown {
    /// Seconds that making the changes took.
    offering: f64,
    /// Seconds until the last was known.
    all: f64,
    /// Seconds that each was late.
    late: Vec<f64>,
}

/// Makes [`CHANGES`] of nodes in turn, the first one to MACs of version `first`, and looks when they
/// are `known`. Nobody waits for that: an agent that is too slow falls further and further behind.
pub(super) fn blow(stub: &Stub, first: u32, known: impl Fn(u32, u32) -> bool) -> Result<Blown> {
    let (offered, started) = (AtomicU32::new(0), Instant::now());
    let mut late = Vec::new();
    let known = |change: u32| {
        // It may have been overtaken by a later one of the same node.
        let mut changes = (change..offered.load(Ordering::Acquire)).step_by(NODES as usize);
        changes.any(|change| known(change % NODES, first + change / NODES))
    };
    std::thread::scope(|scope| {
        let offering = scope.spawn(|| offer(stub, first, started, &offered));
        wait_until("all changes are followed", FOLLOWED_WITHIN, || {
            while late.len() < CHANGES as usize && known(late.len() as u32) {
                let since = started.elapsed().saturating_sub(due(late.len() as u32));
                late.push(since.as_secs_f64());
            }
            late.len() == CHANGES as usize
        })?;
        let all = started.elapsed().as_secs_f64();
        let offering = offering.join().map_err(|_| anyhow!("changing nodes panicked"))??;
        Ok(Blown { offering, all, late })
    })
}

/// Makes the changes when they are due; how many seconds that took.
fn offer(stub: &Stub, first: u32, started: Instant, offered: &AtomicU32) -> Result<f64> {
    for change in 0..CHANGES {
        std::thread::sleep(due(change).saturating_sub(started.elapsed()));
        let (n, version) = (change % NODES, first + change / NODES);
        let changed = stub.store().patch(&nodes::name(n), &nodes::change(n, version), true);
        changed.map_err(|refused| anyhow!(refused.message)).context("changing a node")?;
        offered.store(change + 1, Ordering::Release);
    }
    Ok(started.elapsed().as_secs_f64())
}

/// When a change is made, from the beginning of the storm.
fn due(change: u32) -> Duration {
    Duration::from_secs(1) * change / RATE
}

impl Storm {
    pub(super) fn of(blown: &Blown, cpu_seconds: f64, mebibytes: f64) -> Self {
        let Blown { offering, all, late } = blown;
        let count = late.len() as f64;
        let median = |late: &[f64]| Summary::of(late).map_or(0.0, |summary| summary.median);
        let [first, last] = [late.first(), late.last()].map(|late| late.copied().unwrap_or_default());
        Self {
            offered: count / offering,
            followed: count / (all - first),
            late: [&late[..late.len() / 2], &late[late.len() / 2..]].map(median),
            worst: late.iter().copied().fold(0.0, f64::max),
            last,
            cpus: cpu_seconds / all,
            mebibytes,
        }
    }

    /// By how much more a change is late than the one a second before: about 0 for an agent that
    /// keeps up, 0.1 for one that follows 900 of 1 000.
    pub fn falls_behind(&self) -> f64 {
        (self.late[1] - self.late[0]) / (f64::from(SECONDS) / 2.0)
    }
}
