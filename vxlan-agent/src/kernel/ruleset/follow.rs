//! Keeps a [`Ruleset`] current without getting in anybody's way.
//!
//! kube-proxy rewrites thousands of rules at a time, some of them every few seconds. So reading waits
//! until it is quiet, happens on a thread of its own, and gets a twentieth of a CPU at most.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

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

/// Length of a netlink message's header, and of those of nf_tables' notifications the ones that may bring a chain
/// to a hook. The lower byte of a message's type is the message, the upper one the subsystem.
const HEADER: usize = 16;
const HOOKING: [i32; 2] = [libc::NFT_MSG_NEWTABLE, libc::NFT_MSG_NEWCHAIN];

type Sender = watch::Sender<Option<Arc<Ruleset>>>;

/// The rules of this thread's network namespace, read anew whenever they change; `None` until they have
/// been read once.
pub fn follow() -> watch::Receiver<Option<Arc<Ruleset>>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(keep_current(Bell::of_rules(), sender));
    receiver
}

async fn keep_current(mut bell: Bell, sender: Sender) {
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
                let mut ruleset = reading.ruleset.clone();
                if bell.is_deaf() {
                    // Nobody says when a chain comes.
                    Arc::make_mut(&mut ruleset).unsettled = true;
                }
                before = Some(reading);
                ruleset
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the rules of nf_tables: any of them may count packets");
                let unreadable: BTreeSet<_> = [Meter::unreadable()].into();
                Arc::new(Ruleset {
                    meters: unreadable.clone(),
                    tunnel_meters: unreadable,
                    ..Ruleset::default()
                })
            }
        };
        sender.send_if_modified(|now| {
            let differs = now.as_ref() != Some(&ruleset);
            *now = Some(ruleset);
            differs
        });
        let rung = pause(&mut bell, &sender, begin.elapsed() * (PART - 1)).await;
        if rung || listen(&mut bell, &sender, again).await {
            let heard = Instant::now();
            while pause(&mut bell, &sender, QUIET).await && heard.elapsed() <= PATIENCE {}
        }
    }
}

/// Lets time pass; whether there was a change. While no chain is known, a new one is passed on at once. In a
/// storm most messages are lost otherwise, which costs less than to receive them.
async fn pause(bell: &mut Bell, sender: &Sender, length: Duration) -> bool {
    let end = Instant::now() + length;
    let is_open =
        || sender.borrow().as_ref().is_some_and(|known| known.chains.is_empty() && !known.unsettled);
    let mut rung = false;
    while is_open() && listen(bell, sender, end.saturating_duration_since(Instant::now())).await {
        rung = true;
    }
    sleep_until(end).await;
    while is_open() && listen(bell, sender, Duration::ZERO).await {
        rung = true;
    }
    rung | bell.has_rung()
}

/// Waits for a change, at most `longest`; whether there was one. If it may have brought a chain, that is passed on
/// before it is known.
async fn listen(bell: &mut Bell, sender: &Sender, longest: Duration) -> bool {
    let Ok(messages) = timeout(longest, bell.heard()).await else { return false };
    if messages.is_none_or(|messages| may_hook(&messages)) {
        sender.send_if_modified(|now| {
            let settled = now.as_mut().filter(|ruleset| !ruleset.unsettled);
            settled.map(|ruleset| Arc::make_mut(ruleset).unsettled = true).is_some()
        });
    }
    true
}

/// Whether a chain may be at a hook by what these notifications say: there is a new one, or its table has woken up.
fn may_hook(messages: &[u8]) -> bool {
    let mut rest = messages;
    while let Some((header, _)) = rest.split_first_chunk::<HEADER>() {
        let [a, b, c, d, kind, subsystem, ..] = *header;
        if i32::from(subsystem) != libc::NFNL_SUBSYS_NFTABLES || HOOKING.contains(&i32::from(kind)) {
            return true;
        }
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        rest = rest.get(length.max(HEADER).saturating_add(3) & !3..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A notification with `length` bytes behind its header.
    fn message(kind: i32, length: u8) -> Vec<u8> {
        let subsystem = libc::NFNL_SUBSYS_NFTABLES;
        let whole = u32::from(length) + 16;
        let [a, b, c, d] = whole.to_ne_bytes();
        let mut message = vec![a, b, c, d, kind as u8, subsystem as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        message.resize(usize::from(length).next_multiple_of(4) + 16, 0);
        message
    }

    #[test]
    fn a_new_chain_is_heard_among_other_news() {
        let element = message(libc::NFT_MSG_NEWSETELEM, 21);
        let rule = message(libc::NFT_MSG_NEWRULE, 40);
        assert!(!may_hook(&[element.clone(), rule.clone()].concat()));
        for kind in [libc::NFT_MSG_NEWTABLE, libc::NFT_MSG_NEWCHAIN] {
            let chain = message(kind, 30);
            assert!(may_hook(&[element.clone(), chain.clone()].concat()));
            assert!(may_hook(&[chain, rule.clone()].concat()));
        }
        assert!(!may_hook(&[]));
    }

    #[test]
    fn nothing_that_is_heard_goes_wrong() {
        let whole = [message(libc::NFT_MSG_NEWRULE, 21), message(libc::NFT_MSG_NEWRULE, 9)].concat();
        for length in 0..whole.len() {
            may_hook(&whole[..length]);
        }
        let mut short = whole;
        short[..4].fill(0);
        assert!(may_hook(&short), "in doubt");
    }
}
