//! The pinned Rust toolchains, installed by rustup when they are missing.
//!
//! There is no `rust-toolchain.toml`: where rustup is told not to install toolchains by itself,
//! such a file makes even the first `cargo xtask` fail.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::run::{output, run, step, workspace};

/// Builds and tests everything but this crate.
pub(crate) const STABLE: &str = "1.99.1";
/// Interprets the packet engine's tests under miri and builds the fuzz targets with a sanitizer,
/// both of which exist for nightlies only.
pub(crate) const NIGHTLY: &str = "nightly-2026-10-15";

const STABLE_COMPONENTS: &[&str] = &["rust-src", "clippy", "rustfmt"];
const NIGHTLY_COMPONENTS: &[&str] = &["rust-src", "miri"];

/// `cargo` of the pinned stable toolchain, in the workspace. Installs the toolchain if need be.
///
/// # Errors
/// The toolchain is missing and cannot be installed.
pub(crate) fn cargo() -> Result<Command> {
    ensure(STABLE, STABLE_COMPONENTS)?;
    Ok(cargo_of(STABLE))
}

/// `cargo` of the pinned nightly, otherwise as [`cargo`].
///
/// # Errors
/// The toolchain is missing and cannot be installed.
pub(crate) fn nightly_cargo() -> Result<Command> {
    ensure(NIGHTLY, NIGHTLY_COMPONENTS)?;
    Ok(cargo_of(NIGHTLY))
}

/// The directory of the pinned stable toolchain.
///
/// # Errors
/// The toolchain is missing and cannot be installed, or does not answer.
pub(crate) fn sysroot() -> Result<PathBuf> {
    ensure(STABLE, STABLE_COMPONENTS)?;
    let mut rustc = clean("rustc");
    rustc.args([&format!("+{STABLE}"), "--print", "sysroot"]);
    Ok(PathBuf::from(output(&mut rustc)?.trim()))
}

/// Flags for rustc that keep out of what it makes where sources lie on this machine: the same sources
/// are the same bytes wherever they are built. Those of the workspace lie in `here` then.
///
/// # Errors
/// As [`sysroot`].
pub(crate) fn without_paths(here: &str) -> Result<Vec<String>> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home);
    let places = [(Some(workspace()), here), (cargo_home, "/cargo"), (Some(sysroot()?), "/rust")];
    let remap = |(from, to): (Option<PathBuf>, &str)| {
        from.map(|from| format!("--remap-path-prefix={}={to}", from.display()))
    };
    Ok(places.into_iter().filter_map(remap).collect())
}

fn cargo_of(toolchain: &str) -> Command {
    let mut cargo = clean("cargo");
    cargo.arg(format!("+{toolchain}")).current_dir(workspace());
    cargo
}

/// A command without what the outer cargo, of another toolchain, put into the environment.
fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUST_RECURSION_COUNT"] {
        command.env_remove(name);
    }
    command
}

fn ensure(toolchain: &str, components: &[&str]) -> Result<()> {
    if is_complete(toolchain, components)? {
        return Ok(());
    }
    let mut install = clean("rustup");
    install.args(["toolchain", "install", toolchain, "--profile", "minimal", "--no-self-update"]);
    for component in components {
        install.args(["-c", component]);
    }
    let extras = components.join(", ");
    step(&format!("installing Rust {toolchain} ({extras}) with rustup"), || run(&mut install)).map_err(
        |error| {
            let words = components.iter().map(|c| format!(" -c {c}")).collect::<String>();
            anyhow!(
                "Rust {toolchain} is needed and could not be installed ({}); get it with \
                 `rustup toolchain install {toolchain} --profile minimal{words}`",
                error.root_cause()
            )
        },
    )
}

fn is_complete(toolchain: &str, components: &[&str]) -> Result<bool> {
    let installed = output(clean("rustup").args(["toolchain", "list"]))
        .context("rustup is needed to get the pinned Rust toolchain: see https://rustup.rs")?;
    let prefix = format!("{toolchain}-");
    if !installed.lines().any(|line| line.starts_with(&prefix)) {
        return Ok(false);
    }
    let list = ["component", "list", "--installed", "--toolchain", toolchain];
    let present = output(clean("rustup").args(list))?;
    Ok(components.iter().all(|c| present.lines().any(|line| line.starts_with(c))))
}
