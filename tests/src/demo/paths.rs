//! Which way packets took, from the programs' counters.

use anyhow::{Result, ensure};

use crate::lab::Counters;

/// The counters of a node, or of one of its networks.
pub(super) struct Counted {
    pub(super) title: String,
    pub(super) counters: Counters,
}

/// Prints what was counted between two snapshots.
///
/// # Errors
/// A node sent or received nothing on the fast path: the kernel did all the work.
pub(super) fn show(before: &[Counted], now: &[Counted]) -> Result<()> {
    for (Counted { title, counters: now }, before) in now.iter().zip(before) {
        let since = now - &before.counters;
        println!("  {title}");
        for (hook, reason, count) in since.iter() {
            println!("    {hook:<17} {reason:<16} {:>9} packets {:>13} bytes", count.packets, count.bytes);
        }
        let sent = since.total("encapsulated");
        let received = since.total("decapsulated") + since.total("delivered");
        ensure!(
            sent > 0 && received > 0,
            "{title}: the kernel did all the work (fast path: {sent} sent, {received} received)"
        );
    }
    Ok(())
}
