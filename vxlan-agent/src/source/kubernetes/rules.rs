//! Follows what rules for packets between pods are made of: NetworkPolicies, Services and
//! EndpointSlices. What they say does not matter here, only that one has changed: flows that bypass
//! the host stack have to meet it again. So the server is asked for metadata alone.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch as latest};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::api::{Api, Failure};
use super::watch::{GONE, LONGEST_PAUSE, SILENCE};
use crate::source::outage::{FIRST_PAUSE, jitter};

/// What is followed, and where it is listed; by servers before 1.21, at the last of several places.
const KINDS: [(&str, &[&str]); 3] = [
    ("NetworkPolicies", &["/apis/networking.k8s.io/v1/networkpolicies"]),
    ("Services", &["/api/v1/services"]),
    (
        "EndpointSlices",
        &["/apis/discovery.k8s.io/v1/endpointslices", "/apis/discovery.k8s.io/v1beta1/endpointslices"],
    ),
];

/// How long after a change it counts: at once, and again until those who make rules of it, and see it
/// no sooner than we do, should have done so.
const AGAIN: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(2), Duration::from_secs(10), Duration::from_secs(30)];

/// Shortest time between two that count: in a large cluster there are changes all the time.
const LEAST: Duration = Duration::from_secs(1);

/// Longest pause before asking again where the server says that it must not be asked. The first are
/// short: so says, too, a server that has just started and has not read yet who may ask.
const FORBIDDEN: Duration = Duration::from_secs(300);
/// From this pause on, the server means it.
const MEANT: Duration = Duration::from_secs(3);

/// How often rules may have changed; `None` until something can be followed.
pub(super) type Count = latest::Receiver<Option<u64>>;

enum Told {
    /// Changes are told from now on.
    Following,
    /// Something has changed, or may have.
    Changed,
}

/// Follows all of them, for as long as somebody wants the count.
pub(super) fn count(api: &Api) -> Count {
    let (told, incoming) = mpsc::channel(KINDS.len());
    for (kind, places) in KINDS {
        let follower = Follower { api: api.clone(), kind, places, told: told.clone() };
        tokio::spawn(follower.run());
    }
    let (count, receiver) = latest::channel(None);
    tokio::spawn(keep_count(incoming, count));
    receiver
}

async fn keep_count(mut incoming: mpsc::Receiver<Told>, count: latest::Sender<Option<u64>>) {
    let mut echo = Echo::default();
    loop {
        let due = echo.due();
        tokio::select! {
            told = incoming.recv() => match told {
                Some(Told::Changed) => echo.changed(Instant::now()),
                Some(Told::Following) => count.send_modify(|n| *n = n.or(Some(0))),
                None => return,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                echo.counted(Instant::now());
                count.send_modify(|n| *n = n.map(|n| n + 1));
            }
            () = count.closed() => return,
        }
    }
}

/// When changes count.
#[derive(Default)]
struct Echo {
    /// The last change, and how often it has counted.
    last: Option<(Instant, usize)>,
    counted: Option<Instant>,
}

impl Echo {
    fn changed(&mut self, now: Instant) {
        self.last = Some((now, 0));
    }

    fn due(&self) -> Option<Instant> {
        let (changed, times) = self.last?;
        let due = changed + *AGAIN.get(times)?;
        Some(self.counted.map_or(due, |counted| due.max(counted + LEAST)))
    }

    fn counted(&mut self, now: Instant) {
        self.counted = Some(now);
        if let Some((changed, times)) = &mut self.last {
            *times = AGAIN.iter().filter(|after| *changed + **after <= now).count();
        }
    }
}

/// Follows one of them.
struct Follower {
    api: Api,
    kind: &'static str,
    /// Where it may be listed, those first that have not been tried.
    places: &'static [&'static str],
    told: mpsc::Sender<Told>,
}

impl Follower {
    async fn run(mut self) {
        let (mut version, mut begun, mut forbidden) = (None, false, false);
        let mut pause = FIRST_PAUSE;
        while !self.told.is_closed() {
            let known = version.is_some();
            match self.session(&mut version, &mut begun).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(failure) if failure.code() == Some(404) && self.places.len() > 1 => {
                    self.places = &self.places[1..];
                    continue;
                }
                Err(failure) if matches!(failure.code(), Some(401 | 403 | 404 | 405)) => {
                    pause = (pause * 2).min(FORBIDDEN);
                    if pause >= MEANT && !std::mem::replace(&mut forbidden, true) {
                        tracing::warn!(
                            "cannot follow {}, whose changes close no bypasses now: {failure}",
                            self.kind
                        );
                    }
                }
                Err(failure) => {
                    tracing::debug!("cannot follow {}: {failure}", self.kind);
                    if failure.code() == Some(GONE) {
                        version = None;
                    }
                    // What was followed until now may be taken up at once.
                    pause = if known { FIRST_PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                }
            }
            sleep(pause.mul_f64(jitter())).await;
        }
    }

    /// One watch, from where the last one ended or from now on. `begun`: there was one before, so
    /// that changes may have been missed.
    async fn session(&self, version: &mut Option<String>, begun: &mut bool) -> Result<(), Failure> {
        let [path, ..] = *self.places else { return Ok(()) };
        let from = match version {
            Some(version) => version.clone(),
            None => {
                let now = self.api.version(path).await?;
                self.tell(if *begun { Told::Changed } else { Told::Following }).await;
                *begun = true;
                version.insert(now).clone()
            }
        };
        let mut changes = self.api.changes(path, &from).await?;
        let mut renewals = self.api.renewals();
        renewals.mark_unchanged();
        loop {
            let change = tokio::select! {
                change = timeout(SILENCE, changes.next()) => change,
                _ = renewals.changed() => return Ok(()),
                () = self.told.closed() => return Ok(()),
            };
            let Ok(Some(change)) = change else { return Ok(()) };
            let change = change?;
            *version = Some(change.version).filter(|at| !at.is_empty());
            if change.is_news {
                self.tell(Told::Changed).await;
            }
        }
    }

    /// If nobody listens any more, the next look at `told` ends this.
    async fn tell(&self, told: Told) {
        let _ = self.told.send(told).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds at which changes count, up to a minute after the first.
    fn counts(changes: &[u64]) -> Vec<u64> {
        let start = Instant::now();
        let at = |ms: &u64| start + Duration::from_millis(*ms);
        let (mut echo, mut counts) = (Echo::default(), vec![]);
        let mut changes = changes.iter().map(at).peekable();
        loop {
            let due = echo.due();
            match (changes.peek().copied(), due) {
                (Some(change), due) if due.is_none_or(|due| change < due) => {
                    changes.next();
                    echo.changed(change);
                }
                (_, Some(due)) => {
                    echo.counted(due);
                    counts.push(u64::try_from((due - start).as_millis()).expect("soon"));
                }
                _ => return counts,
            }
        }
    }

    #[test]
    fn a_change_counts_at_once_and_until_others_have_made_rules_of_it() {
        assert_eq!(counts(&[]), [0_u64; 0]);
        assert_eq!(counts(&[5]), [5, 2_005, 10_005, 30_005]);
        assert_eq!(counts(&[0, 5_000]), [0, 2_000, 5_000, 7_000, 15_000, 35_000]);
    }

    #[test]
    fn a_storm_of_changes_counts_once_a_second() {
        let storm: Vec<u64> = (0..100).map(|n| n * 50).collect();
        let counts = counts(&storm);
        assert_eq!(counts[..5], [0, 1_000, 2_000, 3_000, 4_000]);
        assert_eq!(*counts.last().expect("some"), 4_950 + 30_000);
    }
}
