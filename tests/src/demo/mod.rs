//! The demo: a small cluster, traffic across it, and the proof of which way it went.

mod compare;
mod paths;
mod tour;

use anyhow::{Result, ensure};
use clap::Args;

use crate::lab::{Lab, LabSpec, Overlay};

/// What to show.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 2)]
    nodes: u8,
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
    heading(&format!("A cluster of {} nodes, two pods each, one agent per node", args.nodes));
    let lab = lab(args.nodes, &Overlay::verified())?;
    tour::layout(&lab);
    let before = paths::snapshot(&lab)?;
    heading("Traffic, every byte checked");
    tour::traffic(&lab)?;
    heading("The way it took: what the BPF programs counted");
    paths::show(&lab, &before)?;
    heading("The maps of node 1, by bpftool map dump pinned");
    tour::maps(&lab)?;
    heading("Side by side with kernel VXLAN (short; `cargo xtask bench` does it properly)");
    compare::against_kernel(&lab, args.nodes)?;
    if args.keep {
        tour::how_to_look_round(&lab)?;
        return lab.keep();
    }
    drop(lab);
    println!("\nEverything has been taken down. `--keep` leaves it up to look round.");
    Ok(())
}

fn lab(nodes: u8, overlay: &Overlay) -> Result<Lab> {
    LabSpec::of(vec![overlay.clone(); usize::from(nodes)]).pods(2).build()
}

fn heading(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m\n");
}
