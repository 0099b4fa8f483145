//! Changes that failed, and when to try them again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::time::Instant;

use crate::status::RetryStatus;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// After so many attempts an interface that is gone is news no more: somebody wants the change still.
const NO_NEWS: u32 = 4;

/// Failed changes, by what they should do.
#[derive(Debug, Default)]
pub(super) struct Retries {
    failed: BTreeMap<String, Failure>,
    /// Attempts that failed.
    pub(super) attempts: Counter,
}

#[derive(Debug)]
struct Failure {
    error: String,
    attempts: u32,
    /// The attempt whose failure is worth a warning.
    said_at: u32,
    due: Instant,
}

impl Retries {
    /// Whether `change` may be tried now.
    pub(super) fn is_due(&self, change: &str, now: Instant) -> bool {
        self.failed.get(change).is_none_or(|failure| failure.due <= now)
    }

    /// How many changes have failed and are to be tried again.
    pub(super) fn count(&self) -> usize {
        self.failed.len()
    }

    /// Whether there is any failure.
    pub(super) fn any(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether `change` failed when it was last tried.
    pub(super) fn has_failed(&self, change: &str) -> bool {
        self.failed.contains_key(change)
    }

    /// Records a failure; every further one doubles the wait.
    pub(super) fn failed(&mut self, change: String, error: &anyhow::Error, now: Instant) {
        let (gone, error) = (interface_is_gone(error), format!("{error:#}"));
        self.attempts.inc();
        let known = self.failed.get(&change);
        let attempts = known.map_or(1, |failure| failure.attempts + 1);
        // An interface went while it was changed: the next look shows that, and nobody wants the
        // change any more.
        let said_at = if gone { NO_NEWS } else { 1 };
        if attempts == said_at || attempts > said_at && known.is_some_and(|failure| failure.error != error) {
            tracing::warn!(%error, "a change failed and will be tried again");
        } else if attempts < said_at {
            tracing::debug!(%error, "the interface is gone");
        }
        let wait = FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST);
        self.failed.insert(change, Failure { error, attempts, said_at, due: now + wait });
    }

    /// Records a success.
    pub(super) fn held(&mut self, change: &str) {
        if self.failed.remove(change).is_some_and(|failure| failure.attempts >= failure.said_at) {
            tracing::info!(change, "a change that had failed holds now");
        }
    }

    /// Forgets failures of changes that nobody wants any more.
    pub(super) fn keep_only(&mut self, wanted: &BTreeSet<String>) {
        self.failed.retain(|change, _| wanted.contains(change));
    }

    /// When the next one is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.failed.values().map(|failure| failure.due).min()
    }

    /// For the status file.
    pub(super) fn status(&self) -> Vec<RetryStatus> {
        let entry = |(change, failure): (&String, &Failure)| RetryStatus {
            change: change.clone(),
            error: failure.error.clone(),
            attempts: failure.attempts,
        };
        self.failed.iter().map(entry).collect()
    }
}

fn interface_is_gone(error: &anyhow::Error) -> bool {
    let number = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error)
    };
    error.chain().filter_map(number).any(|number| number == nix::libc::ENODEV)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute() {
        let (mut retries, start) = (Retries::default(), Instant::now());
        let mut waits = vec![];
        for _ in 0..20 {
            retries.failed("x".into(), &anyhow::anyhow!("no"), start);
            waits.push(retries.next_due().expect("failed").duration_since(start));
        }
        assert_eq!(waits[..3], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(waits[19], LONGEST);
        assert!(!retries.is_due("x", start));
        assert!(retries.is_due("x", start + LONGEST));
        assert!(retries.is_due("y", start));
    }

    #[test]
    fn an_interface_that_is_gone_is_told_from_other_failures() {
        let of = |number| anyhow::Error::from(std::io::Error::from_raw_os_error(number)).context("cannot");
        assert!(interface_is_gone(&of(nix::libc::ENODEV)));
        assert!(!interface_is_gone(&of(nix::libc::EPERM)));
        assert!(!interface_is_gone(&anyhow::anyhow!("no")));
    }

    #[test]
    fn what_holds_or_is_not_wanted_is_forgotten() {
        let (mut retries, now) = (Retries::default(), Instant::now());
        for change in ["x", "y"] {
            retries.failed(change.into(), &anyhow::anyhow!("no"), now);
        }
        retries.held("x");
        assert_eq!(retries.status().len(), 1);
        retries.keep_only(&BTreeSet::new());
        assert!(retries.status().is_empty());
    }
}
