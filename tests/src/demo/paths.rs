//! Which way packets took, from the programs' counters.

use anyhow::{Result, ensure};

use crate::lab::{Counters, Lab};

/// The counters of every node, in order.
pub(super) fn snapshot(lab: &Lab) -> Result<Vec<Counters>> {
    let agents = lab.nodes().iter().filter_map(|node| node.agent.as_ref());
    agents.map(|agent| agent.counters()).collect()
}

/// Prints what was counted since `before`.
///
/// # Errors
/// A node sent or received nothing on the fast path: the kernel did all the work.
pub(super) fn show(lab: &Lab, before: &[Counters]) -> Result<()> {
    for ((node, before), now) in lab.nodes().iter().zip(before).zip(snapshot(lab)?) {
        let since = &now - before;
        println!("  {}", node.name);
        for (hook, reason, count) in since.iter() {
            println!("    {hook:<17} {reason:<16} {:>9} packets {:>13} bytes", count.packets, count.bytes);
        }
        let sent = since.total("encapsulated");
        let received = since.total("decapsulated") + since.total("delivered");
        ensure!(
            sent > 0 && received > 0,
            "{}: the kernel did all the work (fast path: {sent} sent, {received} received)",
            node.name
        );
    }
    println!("\n  A packet counts once; TCP packets of up to 64 kB are one packet each.");
    Ok(())
}
