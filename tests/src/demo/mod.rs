//! The demo: a small cluster, traffic across it, and the proof of which way it went.

mod beside;
mod bridged;
mod compare;
mod look;
mod paths;
mod routed;
mod traffic;

use anyhow::{Result, ensure};
use clap::Args;

/// What to show.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Bridged segments (networks of kind l2) instead: two tenants with the same addresses and MACs
    #[arg(long)]
    l2: bool,
    /// A device that somebody else manages, before, while and after agents accelerate it
    #[arg(long, conflicts_with = "l2")]
    accelerate: bool,
    /// Leave the lab up and say how to look round
    #[arg(long)]
    keep: bool,
}

/// Runs the demo.
///
/// # Errors
/// The lab cannot be built, traffic does not arrive, or it took the wrong way.
pub fn demo(args: &DemoArgs) -> Result<()> {
    ensure!((2..=20).contains(&args.nodes), "the demo has 2 to 20 nodes, not {}", args.nodes);
    match (args.l2, args.accelerate) {
        (true, _) => bridged::demo(args)?,
        (_, true) => beside::demo(args)?,
        _ => routed::demo(args)?,
    }
    if !args.keep {
        println!("\nEverything has been taken down. `--keep` leaves it up to look round.");
    }
    Ok(())
}

/// Each of `count` nodes with the next one, the last with the first.
fn neighbours(count: usize) -> impl Iterator<Item = (u8, u8)> {
    let count = count as u8;
    (1..=count).map(move |from| (from, from % count + 1))
}

fn heading(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m\n");
}
