//! The emulator and the shell inside of it: qemu and busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::unpack_once;
use crate::run::{run, step};

/// Debian's packages of both. Those that the emulator's files are spread over are named, because what is
/// installed here already is not downloaded otherwise, and the emulator looks for them next to itself.
const PACKAGES: &[&str] =
    &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios", "busybox-static"];

/// Programs unpacked from packages, with the libraries that they need.
pub(super) struct Emulator {
    root: PathBuf,
}

/// The emulator; downloads it the first time. It is not installed: its package may contradict one
/// that this machine has.
///
/// # Errors
/// It cannot be downloaded, or does not run.
pub(super) fn find(dir: &Path) -> Result<Emulator> {
    let root = dir.join("emulator");
    if !root.exists() {
        step("downloading the emulator", || unpack_once(&root, fetch))?;
    }
    Ok(Emulator { root })
}

/// Downloads what installing would, by the system's own apt: libraries must fit this machine's.
fn fetch(debs: &Path) -> Result<()> {
    fs::create_dir_all(debs.join("partial"))?;
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let archives = format!("Dir::Cache::archives={}", debs.display());
    run(Command::new("apt-get")
        .args(["install", "--download-only", "--reinstall", "-qq", "-y", "--no-install-recommends"])
        .args(["-o", &archives, "-o", "APT::Sandbox::User=root"])
        .args(PACKAGES))
}

impl Emulator {
    /// The static busybox.
    ///
    /// # Errors
    /// The package has none.
    pub(super) fn busybox(&self) -> Result<PathBuf> {
        let places = ["bin/busybox", "usr/bin/busybox"].map(|path| self.root.join(path));
        places.into_iter().find(|path| path.exists()).context("the package busybox-static has no busybox")
    }

    /// qemu for x86-64 at low priority, with what it needs to be found, and no more.
    ///
    /// # Errors
    /// The package has no emulator.
    pub(super) fn program(&self) -> Result<Command> {
        let program = self.root.join("usr/bin/qemu-system-x86_64");
        if !program.exists() {
            bail!("the package {} has no {}", PACKAGES[0], program.display());
        }
        let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
        let libraries = libraries.map(|dir| self.root.join(dir).display().to_string()).join(":");
        let mut command = Command::new("nice");
        command.args(["-n", "15"]).arg(program).env("LD_LIBRARY_PATH", libraries);
        for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.root.join(data));
        }
        Ok(command)
    }

    /// qemu in software emulation, for a guest that tests by itself.
    ///
    /// # Errors
    /// As [`Emulator::program`].
    pub(super) fn command(&self) -> Result<Command> {
        let mut command = self.program()?;
        command.args(["-accel", "tcg", "-m", "2048", "-smp", "1"]);
        // Interrupted after an emulated cmpxchg16b, a guest may come back with another register's
        // value for its flags. Linux does without the instruction.
        command.args(["-cpu", "qemu64,-cx16"]);
        // Time goes by in instructions, one a nanosecond, and at once while nobody has anything to
        // do: a busy machine makes the guest slower, but no packet late.
        command.args(["-icount", "shift=0,sleep=off", "-rtc", "clock=vm"]);
        // Without a network card there is no boot menu of one.
        command.args(["-nic", "none", "-display", "none", "-monitor", "none", "-no-reboot"]);
        Ok(command)
    }
}
