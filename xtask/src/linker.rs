//! bpf-linker, built against rustc's own LLVM into `target/tools`.
//!
//! The linker must have the same LLVM major version as the rustc whose bitcode it links. rustc
//! ships that LLVM as a shared library, so no LLVM of the distribution is needed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::run::{output, run, step, target_dir};
use crate::toolchain;

const VERSION: &str = "0.13.0";
/// LLVM's major version in the pinned rustc.
const LLVM: &str = "23";

/// The path of a working bpf-linker of the pinned version; builds it when there is none.
///
/// # Errors
/// The toolchain has no LLVM library of the expected version, or the build fails.
pub(crate) fn ensure() -> Result<PathBuf> {
    let tools = target_dir().join("tools");
    let linker = tools.join("bin/bpf-linker");
    if !is_current(&linker) {
        let what = format!("building bpf-linker {VERSION} into {} (1-2 minutes)", tools.display());
        step(&what, || install(&tools))?;
    }
    Ok(linker)
}

fn is_current(linker: &Path) -> bool {
    let version = output(Command::new(linker).arg("--version"));
    version.is_ok_and(|said| said.split_whitespace().any(|word| word == VERSION))
}

fn install(tools: &Path) -> Result<()> {
    let sysroot_lib = toolchain::sysroot()?.join("lib");
    let prefix = link_llvm(tools, &sysroot_lib)?;
    let rpath = format!("-Clink-arg=-Wl,-rpath,{}", sysroot_lib.display());
    let mut cargo = toolchain::cargo()?;
    cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force"])
        .args(["--no-default-features", "--features", &format!("llvm-{LLVM}")])
        .arg("--root")
        .arg(tools)
        .arg("--target-dir")
        .arg(tools.join("build"))
        .env("LLVM_PREFIX", prefix)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", rpath);
    run(&mut cargo)?;
    // What the build leaves behind is of no further use, and large.
    fs::remove_dir_all(tools.join("build")).context("cannot remove the linker's build directory")
}

/// A directory with `lib/libLLVM.so`, as an installed LLVM would have it.
fn link_llvm(tools: &Path, sysroot_lib: &Path) -> Result<PathBuf> {
    let wanted = format!("libLLVM.so.{LLVM}");
    let library = fs::read_dir(sysroot_lib)
        .with_context(|| format!("cannot read {}", sysroot_lib.display()))?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&wanted)))
        .ok_or_else(|| anyhow!("{} has no {wanted}*", sysroot_lib.display()))?;
    let prefix = tools.join("llvm");
    let link = prefix.join("lib/libLLVM.so");
    fs::create_dir_all(prefix.join("lib"))?;
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&library, &link)
        .with_context(|| format!("cannot link {} to {}", link.display(), library.display()))?;
    Ok(prefix)
}
