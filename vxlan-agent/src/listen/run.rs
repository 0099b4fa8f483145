//! Waiting for what a listener hears.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;

use crate::datapath::{Listener, RENEW, Report};

/// When to end without being told to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) count: Option<u64>,
    pub(crate) seconds: Option<f64>,
}

/// What was heard, and what was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Summary {
    /// Packets that were told of.
    pub(crate) told: u64,
    /// Packets that the options ask for.
    pub(crate) matched: u64,
    /// Of those, what sampling left out.
    pub(crate) unsampled: u64,
    /// Of those, what the rate left out.
    pub(crate) suppressed: u64,
    /// Of those, what there was no room for.
    pub(crate) lost: u64,
}

impl Summary {
    /// For people.
    pub(crate) fn sentence(&self) -> String {
        let Self { told, matched, unsampled, suppressed, lost } = self;
        let mut text = format!("{told} of {matched} packets");
        let left_out = [
            (*unsampled, "left out by --sample"),
            (*suppressed, "suppressed by --rate"),
            (*lost, "lost for want of room"),
        ];
        for (count, why) in left_out.into_iter().filter(|(count, _)| *count != 0) {
            text += &format!(", {count} {why}");
        }
        text
    }
}

/// Hands batches of reports to `take`, until it has enough, the limits are reached, or the process is told to end
/// (SIGINT, SIGTERM) or nobody reads what it writes any more.
pub(crate) fn run(
    listener: &mut Listener,
    limits: Limits,
    mut take: impl FnMut(&[Report]) -> Result<()>,
) -> Result<Summary> {
    let signals = signals()?;
    let end = limits.seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds.clamp(0.0, 1e9)));
    let mut told = 0;
    let mut renewed = Instant::now();
    loop {
        let mut reports = listener.read();
        let left = limits.count.map_or(u64::MAX, |count| count - told);
        reports.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        told += reports.len() as u64;
        if !reports.is_empty() {
            take(&reports)?;
        }
        let now = Instant::now();
        let is_done = limits.count == Some(told) || end.is_some_and(|end| now >= end);
        if is_done || !wait(listener, &signals, timeout(now, renewed, end))? {
            break;
        }
        if renewed.elapsed() >= RENEW {
            listener.renew()?;
            renewed = Instant::now();
        }
    }
    listener.silence()?;
    summary(listener, limits, told, take)
}

/// Tells of what had been reported when it ended.
fn summary(
    listener: &mut Listener,
    limits: Limits,
    mut told: u64,
    mut take: impl FnMut(&[Report]) -> Result<()>,
) -> Result<Summary> {
    if limits.count.is_none() {
        let reports = listener.read();
        told += reports.len() as u64;
        take(&reports)?;
    }
    let heard = listener.heard()?;
    Ok(Summary {
        told,
        matched: heard.matched,
        unsampled: heard.unsampled,
        suppressed: heard.suppressed,
        lost: heard.lost,
    })
}

/// Until the word has to be renewed, or the end.
fn timeout(now: Instant, renewed: Instant, end: Option<Instant>) -> PollTimeout {
    let next = (renewed + RENEW).min(end.unwrap_or(renewed + RENEW));
    let left = next.saturating_duration_since(now) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)
}

/// Waits for something to read; whether to go on.
fn wait(listener: &Listener, signals: &SignalFd, timeout: PollTimeout) -> Result<bool> {
    let stdout = io::stdout();
    let buffers: Vec<BorrowedFd<'_>> = listener.descriptors().collect();
    let mut all: Vec<PollFd<'_>> = vec![
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        // It is told without being asked for when nobody reads any more.
        PollFd::new(stdout.as_fd(), PollFlags::empty()),
    ];
    all.extend(buffers.iter().map(|buffer| PollFd::new(*buffer, PollFlags::POLLIN)));
    match poll(&mut all, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("cannot wait for events"),
    }
    let ended = |poll: &PollFd<'_>, flags: PollFlags| poll.revents().is_some_and(|got| got.intersects(flags));
    let is_told = all.first().is_some_and(|signal| ended(signal, PollFlags::POLLIN));
    let is_unread = all.get(1).is_some_and(|stdout| ended(stdout, PollFlags::POLLERR));
    Ok(!is_told && !is_unread)
}

/// SIGINT and SIGTERM as something to read.
fn signals() -> Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot wait for signals")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_says_what_was_not_told() {
        let all = Summary { told: 3, matched: 3, ..Summary::default() };
        assert_eq!(all.sentence(), "3 of 3 packets");
        let few = Summary { told: 1, matched: 9, unsampled: 5, suppressed: 2, lost: 1 };
        assert_eq!(
            few.sentence(),
            "1 of 9 packets, 5 left out by --sample, 2 suppressed by --rate, 1 lost for want of room"
        );
    }
}
