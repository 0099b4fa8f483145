//! Building the BPF programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{run, step, target_dir, workspace};
use crate::{linker, toolchain};

const TARGET: &str = "bpfel-unknown-none";
const PACKAGE: &str = "vxlan-ebpf";

/// `-C` flags of the programs; BTF is made from the debug info.
///
/// Not `allows-misaligned-mem-access`: it saves an instruction in twenty, but makes misaligned
/// accesses to the stack as well, and those the verifier refuses on every architecture.
const RUSTFLAGS: &[&str] = &["link-arg=--btf", "debuginfo=2", "target-cpu=v3"];

/// Builds `target/bpf/vxlan-ebpf.o`.
///
/// # Errors
/// A tool is missing and cannot be installed, or the programs do not build.
pub(crate) fn build() -> Result<()> {
    let mut cargo = cargo("build")?;
    cargo.arg("--release");
    step("building the BPF programs", || run(&mut cargo))?;
    let built = bpf_dir().join(TARGET).join("release").join(PACKAGE);
    copy_if_changed(&built, &object())
}

/// Runs clippy on the programs.
///
/// # Errors
/// A tool is missing and cannot be installed, or clippy complains.
pub(crate) fn clippy() -> Result<()> {
    let mut cargo = cargo("clippy")?;
    cargo.args(["--release", "--", "-D", "warnings"]);
    step("clippy on the BPF programs", || run(&mut cargo))
}

/// Where [`build`] puts the object and the agent's build script looks for it: always below the
/// workspace, wherever cargo builds.
fn object() -> PathBuf {
    workspace().join("target/bpf").join(format!("{PACKAGE}.o"))
}

fn bpf_dir() -> PathBuf {
    target_dir().join("bpf")
}

/// `cargo <command>` for the BPF target, which has no prebuilt `core`.
fn cargo(command: &str) -> Result<Command> {
    let linker = linker::ensure()?;
    let mut flags = vec!["-C".to_owned(), format!("linker={}", linker.display())];
    for flag in RUSTFLAGS {
        flags.extend(["-C".to_owned(), (*flag).to_owned()]);
    }
    // The object is part of the agent. BTF quotes the sources, which the linker finds from the
    // workspace, where it runs.
    flags.extend(toolchain::without_paths(".")?);
    let mut cargo = toolchain::cargo()?;
    cargo
        .args([command, "-p", PACKAGE, "--target", TARGET, "-Z", "build-std=core", "--target-dir"])
        .arg(bpf_dir())
        .env("RUSTC_BOOTSTRAP", "1")
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    Ok(cargo)
}

/// Leaves an unchanged object alone, so that the agent that embeds it is not built again.
fn copy_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    fs::create_dir_all(workspace().join("target/bpf"))?;
    fs::write(to, new).with_context(|| format!("cannot write {}", to.display()))
}
