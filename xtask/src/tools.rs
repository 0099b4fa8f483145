//! Subcommands of cargo from crates.io, each of a version that is known to do.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::run::{run, step, target_dir};
use crate::toolchain;

/// A crate with a subcommand of cargo, and its version.
pub(crate) type Subcommand = (&'static str, &'static str);

/// `cargo` with a subcommand on its path; installs that into `target/tools` if need be.
///
/// # Errors
/// It does not build.
pub(crate) fn cargo_with(subcommand: Subcommand) -> Result<Command> {
    let (name, version) = subcommand;
    let tools = tools();
    if !is_built(subcommand) {
        step(&format!("building {name} {version} into {} (1-5 minutes)", tools.display()), || {
            let mut cargo = toolchain::cargo()?;
            // With force, since what is there may be another version.
            cargo.args(["install", name, "--version", version, "--locked", "--force", "--quiet", "--root"]);
            run(cargo.arg(&tools))
        })?;
    }
    let mut cargo = toolchain::cargo()?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(tools.join("bin")).chain(std::env::split_paths(&path));
    cargo.env("PATH", std::env::join_paths(places)?);
    Ok(cargo)
}

/// Whether a subcommand has been installed, in this version.
pub(crate) fn is_built(subcommand: Subcommand) -> bool {
    let installed = fs::read_to_string(tools().join(".crates.toml")).unwrap_or_default();
    tools().join("bin").join(subcommand.0).exists() && is_listed(subcommand, &installed)
}

fn tools() -> PathBuf {
    target_dir().join("tools")
}

/// Whether `installed`, the list that `cargo install` keeps, has this version.
fn is_listed((name, version): Subcommand, installed: &str) -> bool {
    installed.lines().any(|line| line.starts_with(&format!("\"{name} {version} (")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_not_the_one_that_is_wanted() {
        let installed = "[v1]\n\"cargo-deny 0.20.2 (registry+https://example.org)\" = [\"cargo-deny\"]\n";
        assert!(is_listed(("cargo-deny", "0.20.2"), installed));
        for other in [("cargo-deny", "0.20"), ("cargo-deny", "0.20.3"), ("deny", "0.20.2")] {
            assert!(!is_listed(other, installed), "{other:?}");
        }
    }
}
