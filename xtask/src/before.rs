//! The agent of the release before, which the tests replace by this one and put back.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::make_once;
use crate::run::{run, step, target_dir, workspace};
use crate::{linker, toolchain};

/// The last commit before the maps got the layout that they have.
const COMMIT: &str = "45f49980ffd4903d8f8e02093d79d900cd05db62";

/// What the tests find it by.
pub(crate) const VARIABLE: &str = "VXLAN_AGENT_BEFORE";

/// The agent, if it has been built.
pub(crate) fn built() -> Option<PathBuf> {
    let program = dir().join("vxlan-agent");
    program.is_file().then_some(program)
}

/// Builds it, unless it is there.
///
/// # Errors
/// The history of this repository is not here, or something does not build.
pub(crate) fn build() -> Result<()> {
    if built().is_none() {
        let sources = make_once(&dir().join("source"), sources)?;
        programs(&sources)?;
        agent(&sources)?;
        // Cargo would take what was built of them for what is built of another commit's.
        fs::remove_dir_all(&sources).with_context(|| format!("cannot remove {}", sources.display()))?;
    }
    println!("{}", built().context("the build has left no agent")?.display());
    Ok(())
}

/// Unpacks the sources into `dir`.
fn sources(dir: &Path) -> Result<()> {
    let archive = dir.with_extension("tar");
    run(Command::new("git").arg("-C").arg(workspace()).args(["archive", COMMIT, "-o"]).arg(&archive))?;
    run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(dir))?;
    fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
}

/// Builds the BPF programs as that release does, but for the linker, which is built once.
fn programs(sources: &Path) -> Result<()> {
    linker::ensure()?;
    let target = dir().join("target");
    fs::create_dir_all(&target)?;
    let tools = target.join("tools");
    if !tools.exists() {
        symlink(target_dir().join("tools"), &tools)
            .with_context(|| format!("cannot make {}", tools.display()))?;
    }
    step("building the BPF programs of the release before", || {
        let mut cargo = toolchain::cargo()?;
        cargo.args(["xtask", "build-ebpf"]).current_dir(sources);
        run(cargo.env("CARGO_TARGET_DIR", &target))
    })
}

/// Builds the agent among what is built here, because both depend on the same crates. Its own are hardly
/// optimised: it is there to be replaced, not to be fast.
fn agent(sources: &Path) -> Result<()> {
    let mut cargo = toolchain::cargo()?;
    cargo.args(["build", "--release", "--bins", "-p", "vxlan-agent"]).current_dir(sources);
    for own in ["vxlan-agent", "vxlan-ebpf-common"] {
        for setting in ["opt-level=1", "debug=0"] {
            cargo.args(["--config", &format!("profile.release.package.{own}.{setting}")]);
        }
    }
    cargo.env("CARGO_TARGET_DIR", target_dir());
    step("building the agent of the release before", || run(&mut cargo))?;
    // Moved, so that nobody takes it for the agent of this release.
    let built = target_dir().join("release/vxlan-agent");
    fs::rename(&built, dir().join("vxlan-agent")).with_context(|| format!("no {}", built.display()))
}

/// Of that commit: what was built for another layout stays where it is.
fn dir() -> PathBuf {
    target_dir().join("agent-before").join(COMMIT)
}
