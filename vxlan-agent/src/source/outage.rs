//! Being without an answer: said once, and asked again not at the same moment as everybody else.

use std::fmt::Display;

use tokio::time::Instant;

/// Whether there are answers, and since when not.
pub(super) struct Outage {
    /// Who answers.
    of: &'static str,
    since: Option<Instant>,
}

impl Outage {
    /// None so far, of `of`.
    pub(super) const fn of(of: &'static str) -> Self {
        Self { of, since: None }
    }

    /// Says so once.
    pub(super) fn failed(&mut self, failure: &impl Display) {
        let of = self.of;
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!("cannot follow {of}, the overlay goes on as it is: {failure}");
        } else {
            tracing::debug!("still cannot follow {of}: {failure}");
        }
    }

    /// Says that it is over, if there was one.
    pub(super) fn answered(&mut self) {
        if let Some(since) = self.since.take() {
            tracing::info!(seconds = since.elapsed().as_secs(), "following {} again", self.of);
        }
    }
}

/// Between 0.5 and 1.5: not all nodes come back to a server in the same moment.
pub(super) fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(0);
    0.5 + random as f64 / u64::MAX as f64
}
