//! Being without an answer: said once, and asked again not at the same moment as everybody else.

use std::fmt::Display;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Contact;

/// The first pause that is one.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Whether there are answers, and since when not.
pub(super) struct Outage {
    /// Who answers.
    of: &'static str,
    since: Option<Instant>,
    contact: Contact,
}

impl Outage {
    /// None so far, of `of`; `contact` is told of all.
    pub(super) const fn of(of: &'static str, contact: Contact) -> Self {
        Self { of, since: None, contact }
    }

    /// Says so once.
    pub(super) fn failed(&mut self, failure: &impl Display) {
        let of = self.of;
        self.contact.set(false);
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::warn!("cannot follow {of}, the overlay goes on as it is: {failure}");
        } else {
            tracing::debug!("still cannot follow {of}: {failure}");
        }
    }

    /// Says that it is over, if there was one.
    pub(super) fn answered(&mut self) {
        self.contact.set(true);
        if let Some(since) = self.since.take() {
            tracing::info!(seconds = since.elapsed().as_secs(), "following {} again", self.of);
        }
    }
}

/// Pauses between attempts: none after one that did some good, then each about twice the last.
pub(super) struct Pause {
    next: Duration,
    longest: Duration,
}

impl Pause {
    /// None at first, and none of much more than `longest`.
    pub(super) const fn up_to(longest: Duration) -> Self {
        Self { next: Duration::ZERO, longest }
    }

    /// The last attempt did some good: no pause before the next.
    pub(super) fn reset(&mut self) {
        self.next = Duration::ZERO;
    }

    /// What a server has to say of a place that it no longer has is an answer, perhaps after a long
    /// time without one: no pause, unless the place was not `resumed` but only just got from it.
    pub(super) fn place_lost(&mut self, resumed: bool) {
        if resumed {
            self.reset();
        }
    }

    /// Waits, and longer the next time.
    pub(super) async fn wait(&mut self) {
        sleep(self.next.mul_f64(jitter())).await;
        self.next = (self.next * 2).clamp(FIRST_PAUSE, self.longest);
    }
}

/// Between 0.5 and 1.5: not all nodes come back to a server in the same moment.
pub(super) fn jitter() -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(0);
    0.5 + random as f64 / u64::MAX as f64
}
