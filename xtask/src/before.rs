//! The agent of the release before, which the tests replace by this one and put back.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::make_once;
use crate::run::{run, step, target_dir, workspace};
use crate::toolchain;

/// The last commit before the maps got the layout that they have.
const COMMIT: &str = "b0f77b4df50eca2b94e1df60429a679028b2e490";

/// What the tests find it by.
pub(crate) const VARIABLE: &str = "VXLAN_AGENT_BEFORE";

/// The agent, if it has been built.
pub(crate) fn built() -> Option<PathBuf> {
    let program = dir().join("target/release/vxlan-agent");
    program.is_file().then_some(program)
}

/// Builds it, unless it is there.
///
/// # Errors
/// The history of this repository is not here, or something does not build.
pub(crate) fn build() -> Result<()> {
    if built().is_none() {
        let sources = make_once(&dir().join("source"), |partial| {
            let archive = partial.with_extension("tar");
            run(Command::new("git")
                .arg("-C")
                .arg(workspace())
                .args(["archive", COMMIT, "-o"])
                .arg(&archive))?;
            run(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(partial))?;
            fs::remove_file(&archive).with_context(|| format!("cannot remove {}", archive.display()))
        })?;
        step("building the agent of the release before", || {
            let mut cargo = toolchain::cargo()?;
            cargo.args(["xtask", "build"]).current_dir(sources);
            run(cargo.env("CARGO_TARGET_DIR", dir().join("target")))
        })?;
    }
    println!("{}", built().context("the build has left no agent")?.display());
    Ok(())
}

/// Of that commit: what was built for another layout stays where it is.
fn dir() -> PathBuf {
    target_dir().join("agent-before").join(COMMIT)
}
