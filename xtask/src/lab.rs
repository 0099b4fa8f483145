//! Building the agent and the lab, and handing over to the lab.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::run::{run, step, target_dir};
use crate::{ebpf, host, toolchain};

#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Nodes of the cluster
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// Leave the lab up and say how to look round
    #[arg(long)]
    keep: bool,
    /// Only take down labs that `--keep` left up
    #[arg(long, conflicts_with_all = ["nodes", "keep"])]
    down: bool,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Rounds instead of 7 (3 with --quick)
    #[arg(long)]
    rounds: Option<u32>,
    /// Only these cases, for example tcp_rr
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Mode of our fast path: direct or verified
    #[arg(long, default_value = "direct")]
    mode: String,
    /// With connection tracking and 5 000 service rules on all nodes
    #[arg(long)]
    conntrack: bool,
    /// Where the numbers go
    #[arg(long, default_value = "bench.json")]
    json: PathBuf,
    /// Where the chart goes
    #[arg(long, default_value = "bench.svg")]
    svg: PathBuf,
}

/// Runs the demo in place of this process, so that Ctrl-C reaches it.
///
/// # Errors
/// The machine cannot run it, something does not build, or the lab cannot be started.
pub(crate) fn demo(args: &DemoArgs) -> Result<()> {
    host::prepare("demo")?;
    build_all()?;
    let mut lab = lab_binary();
    if args.down {
        return hand_over(lab.arg("down"));
    }
    lab.args(["demo", "--nodes", &args.nodes.to_string()]);
    if args.keep {
        lab.arg("--keep");
    }
    hand_over(&mut lab)
}

/// Runs the benchmark in place of this process.
///
/// # Errors
/// As [`demo`].
pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    host::prepare("bench")?;
    build_all()?;
    let mut lab = lab_binary();
    lab.arg("bench").arg("--json").arg(&args.json).arg("--svg").arg(&args.svg);
    lab.args(["--mode", &args.mode]);
    if args.quick {
        lab.arg("--quick");
    }
    if args.conntrack {
        lab.arg("--conntrack");
    }
    if let Some(rounds) = args.rounds {
        lab.args(["--rounds", &rounds.to_string()]);
    }
    if !args.cases.is_empty() {
        lab.args(["--cases", &args.cases.join(",")]);
    }
    hand_over(&mut lab)
}

/// Builds `target/release/vxlan-agent` with the BPF programs inside.
///
/// # Errors
/// Something does not build.
pub(crate) fn build_agent() -> Result<()> {
    build_release("the agent", &["-p", "vxlan-agent"])
}

/// Builds the agent and the lab.
///
/// # Errors
/// Something does not build.
pub(crate) fn build_all() -> Result<()> {
    build_release("the agent and the lab", &["-p", "vxlan-agent", "-p", "vxlan-tests"])
}

fn build_release(what: &str, packages: &[&str]) -> Result<()> {
    ebpf::build()?;
    let mut cargo = toolchain::cargo()?;
    cargo.args(["build", "--release", "--bins"]).args(packages);
    step(&format!("building {what}"), || run(&mut cargo))
}

fn lab_binary() -> Command {
    Command::new(target_dir().join("release/vxlan-lab"))
}

fn hand_over(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", command.get_program().display()))
}
