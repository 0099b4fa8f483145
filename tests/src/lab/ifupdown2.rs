//! ifupdown2 as it manages devices of a node: Debian's package, unpacked and not installed, in a mount namespace of its
//! own, so that it sees no other configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Netns, run};

/// Environment variable that names a directory with the unpacked package. It cannot be installed beside `ifupdown`.
pub const IFUPDOWN2: &str = "IFUPDOWN2";

/// What its scripts are for.
const PYTHON: &str = "/usr/bin/python3";
/// Puts `etc` of the directory that is its first argument, then that of the package, in front of `/etc`, and `state` in
/// the place of the machine's. That directory may be below `/run`, where nothing is found by its path once `/run` is
/// another. The script does what it is called.
const START: &str = "set -e; cd \"$0\"; mount --make-rprivate /; mount -t sysfs sysfs /sys; \
                     mount -t overlay -o lowerdir=\"$1/etc:/etc\",upperdir=\"$0/etc\",workdir=\"$0/work\" overlay /etc; \
                     mount -t tmpfs tmpfs /var/tmp; mount -t tmpfs tmpfs /run; mkdir /run/network; \
                     mount --bind state /run/network; ln -s \"$1/usr/share/ifupdown2/__main__.py\" /run/ifreload; \
                     exec \"$2\" /run/ifreload --all";

/// ifupdown2 on a node. It ends once it has done what it is told, and leaves its devices.
pub struct Ifupdown2 {
    ns: Netns,
    dir: PathBuf,
    package: PathBuf,
}

impl Ifupdown2 {
    /// Whether [`IFUPDOWN2`] names one, and there is a Python to run it.
    pub fn is_there() -> bool {
        std::env::var_os(IFUPDOWN2).is_some() && Path::new(PYTHON).exists()
    }

    /// ifupdown2 of `node`, with what is its in the directory `dir`, which it makes.
    ///
    /// # Errors
    /// [`IFUPDOWN2`] names none.
    pub fn open(node: &Netns, dir: PathBuf) -> Result<Self> {
        let package = std::env::var_os(IFUPDOWN2).with_context(|| format!("{IFUPDOWN2} names none"))?;
        let package = PathBuf::from(package);
        for part in ["state", "etc/network", "work"] {
            std::fs::create_dir_all(dir.join(part))?;
        }
        Ok(Self { ns: Netns::open(node.namespace())?, dir, package })
    }

    /// Has it make, or change, what `interfaces` says, in the words of `/etc/network/interfaces`.
    ///
    /// # Errors
    /// It refuses something.
    pub fn reload(&self, interfaces: &str) -> Result<()> {
        std::fs::write(self.dir.join("etc/network/interfaces"), interfaces)?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", START]).args([&self.dir, &self.package]).arg(PYTHON);
        self.ns.run(|| run(command.env("PYTHONPATH", self.package.join("usr/share")))).map(drop)
    }
}
