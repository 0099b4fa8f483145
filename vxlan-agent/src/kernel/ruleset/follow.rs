//! Keeps a [`Ruleset`] current without getting in anybody's way.
//!
//! kube-proxy rewrites thousands of rules at a time, some of them every few seconds. So reading waits
//! until it is quiet, happens on a thread of its own, and gets a twentieth of a CPU at most.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{Meter, Reading, Ruleset};
use crate::kernel::bell::Bell;

/// A change counts as complete when nothing has been heard for so long.
const QUIET: Duration = Duration::from_millis(20);
/// Where it is never quiet, a change is read after that.
const PATIENCE: Duration = Duration::from_millis(200);
/// Reading takes one of so many parts of the time.
const PART: u32 = 20;
/// How often it is read without a notification, in case one was missed.
const AGAIN: Duration = Duration::from_secs(60);
/// The same, after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// The rules of this thread's network namespace, read anew whenever they change; `None` until they have
/// been read once.
pub fn follow() -> watch::Receiver<Option<Arc<Ruleset>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(keep_current(Bell::of_rules(), sender));
    receiver
}

async fn keep_current(mut bell: Bell, sender: watch::Sender<Option<Arc<Ruleset>>>) {
    let mut before: Option<Reading> = None;
    while !sender.is_closed() {
        let begin = Instant::now();
        let known = before.take();
        let read = tokio::task::spawn_blocking(move || super::read_unless_known(known)).await;
        let read = read.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        tracing::debug!(took = ?begin.elapsed(), "rules read");
        let again = if read.is_ok() { AGAIN } else { RETRY };
        let ruleset = match read {
            Ok(reading) => {
                let ruleset = reading.ruleset.clone();
                before = Some(reading);
                ruleset
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the rules of nf_tables: any of them may count packets");
                Arc::new(Ruleset { meters: [Meter::unreadable()].into(), ..Ruleset::default() })
            }
        };
        sender.send_if_modified(|now| {
            let differs = now.as_ref() != Some(&ruleset);
            *now = Some(ruleset);
            differs
        });
        sleep(begin.elapsed() * (PART - 1)).await;
        if timeout(again, bell.rung()).await.is_ok() {
            until_quiet(&mut bell).await;
        }
    }
}

/// Waits for the end of a change, but not for ever.
async fn until_quiet(bell: &mut Bell) {
    let begin = Instant::now();
    loop {
        sleep(QUIET).await;
        if !bell.has_rung() || begin.elapsed() > PATIENCE {
            return;
        }
    }
}
