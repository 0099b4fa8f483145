//! Building the agent and the lab, and handing over to the lab.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::run::{run, step, target_dir};
use crate::{ebpf, host, kernels, toolchain};

#[derive(Args)]
pub(crate) struct DemoArgs {
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
    /// Only take down labs that `--keep` left up
    #[arg(long, conflicts_with_all = ["nodes", "l2", "accelerate", "keep"])]
    down: bool,
}

#[derive(Args)]
#[command(override_usage = "cargo xtask bench [OPTIONS]; cargo xtask bench -- --help lists them")]
pub(crate) struct BenchArgs {
    /// Count instructions in the emulator of `test-kernels` instead of measuring time: the same whatever else the machine
    /// does; results go to target/kernels/instructions-RELEASE.json
    #[arg(long)]
    instructions: bool,
    /// With --instructions: the kernel's series, for example 6.1
    #[arg(long, default_value = kernels::COUNTED, requires = "instructions")]
    kernel: String,
    /// Handed to the lab, for example --quick, --mode verified, --l2, --accelerate, --conntrack, --control-plane
    #[arg(value_name = "OPTIONS", trailing_var_arg = true, allow_hyphen_values = true)]
    options: Vec<OsString>,
}

/// Runs the demo in place of this process, so that Ctrl-C reaches it.
///
/// # Errors
/// The machine cannot run it, something does not build, or the lab cannot be started.
pub(crate) fn demo(args: &DemoArgs) -> Result<()> {
    let mut lab = lab_binary();
    let built = Path::new(lab.get_program()).exists();
    if !(args.down && built) {
        host::prepare("demo")?;
        build_all()?;
    }
    if args.down {
        return hand_over(lab.arg("down"));
    }
    lab.args(["demo", "--nodes", &args.nodes.to_string()]);
    for (flag, given) in [("--l2", args.l2), ("--accelerate", args.accelerate), ("--keep", args.keep)] {
        lab.args(given.then_some(flag));
    }
    hand_over(&mut lab)
}

/// Runs the benchmark in place of this process.
///
/// # Errors
/// As [`demo`].
pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    if args.instructions {
        return kernels::count(&args.kernel, &args.options);
    }
    host::prepare("bench")?;
    build_all()?;
    hand_over(lab_binary().arg("bench").args(&args.options))
}

/// Builds `target/release/vxlan-agent` with the BPF programs inside.
///
/// # Errors
/// Something does not build.
pub(crate) fn build_agent() -> Result<()> {
    build_release("the agent", &["-p", "vxlan-agent"])
}

/// Builds the agent as it is shipped: the same bytes wherever it is built, and no debug information.
/// Next to what everything else builds, because cargo builds all anew when flags change.
///
/// # Errors
/// Something does not build.
pub(crate) fn ship_agent() -> Result<()> {
    ebpf::build()?;
    let dir = target_dir().join("ship");
    let mut cargo = toolchain::cargo()?;
    cargo
        .args(["build", "--release", "-p", "vxlan-agent", "--target-dir"])
        .arg(&dir)
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", toolchain::without_paths("/src")?.join("\x1f"));
    step("building the agent as it is shipped", || run(&mut cargo))?;
    println!("{}", dir.join("release/vxlan-agent").display());
    Ok(())
}

/// Builds the agent and the lab.
///
/// # Errors
/// Something does not build.
pub(crate) fn build_all() -> Result<()> {
    build_release("the agent and the lab", &["-p", "vxlan-agent", "-p", "vxlan-tests"])
}

/// Builds the agent alone, where the BPF programs are built already.
///
/// # Errors
/// Something does not build.
pub(crate) fn build_release_agent() -> Result<()> {
    build_with_programs("the agent", &["-p", "vxlan-agent"])
}

fn build_release(what: &str, packages: &[&str]) -> Result<()> {
    ebpf::build()?;
    build_with_programs(what, packages)
}

fn build_with_programs(what: &str, packages: &[&str]) -> Result<()> {
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
