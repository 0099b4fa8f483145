//! systemd-networkd as it manages devices of a node: the real one, from Debian's package `systemd`, in a mount namespace of
//! its own, so that it sees no other configuration.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, chown};

use super::Netns;
use super::server::Server;

const PROGRAM: &str = "/lib/systemd/systemd-networkd";
/// Whose rights it takes on.
const USER: &str = "systemd-network";
const READY_WITHIN: Duration = Duration::from_secs(10);
/// Puts the directory that is its argument in the place of `/run/systemd`. Where `/sys` cannot be written, networkd
/// does not wait for udev, as in a container.
const START: &str = "mount --make-rprivate / && mount --bind \"$0\" /run/systemd && \
                     mount -t sysfs -o ro sysfs /sys && exec \"$1\"";

/// networkd on a node; dropping it ends it without a warning, and leaves its devices.
pub struct Networkd {
    ns: Netns,
    dir: PathBuf,
    server: Option<Server>,
}

impl Networkd {
    /// Starts networkd in `node`, with what is its in the directory `dir`, which it makes. It manages what these `files`,
    /// names and contents, say, and leaves all else alone.
    ///
    /// # Errors
    /// The package `systemd` is not installed, or networkd does not come up.
    pub fn start(node: &Netns, dir: PathBuf, files: &[(&str, String)]) -> Result<Self> {
        ensure!(Path::new(PROGRAM).exists(), "there is no {PROGRAM}: install systemd");
        let user =
            User::from_name(USER)?.with_context(|| format!("there is no user {USER}: install systemd"))?;
        for below in ["netif/links", "netif/leases", "netif/lldp", "network"] {
            std::fs::create_dir_all(dir.join(below))?;
        }
        for below in ["netif", "netif/links", "netif/leases", "netif/lldp"] {
            chown(&dir.join(below), Some(user.uid), Some(user.gid))?;
        }
        let mut networkd = Self { ns: Netns::open(node.namespace())?, dir, server: None };
        networkd.restart(files)?;
        Ok(networkd)
    }

    /// Kills it, and starts it with these files instead.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart(&mut self, files: &[(&str, String)]) -> Result<()> {
        self.server = None;
        for (name, text) in files {
            std::fs::write(self.dir.join("network").join(name), text)?;
        }
        let state = self.dir.join("netif/state");
        let _ = std::fs::remove_file(&state);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", START]).arg(&self.dir).arg(PROGRAM);
        command.env("SYSTEMD_LOG_TARGET", "console");
        let mut server = Server::start(&self.ns, command, self.dir.join("networkd.log"))?;
        server.wait_ready(READY_WITHIN, || state.exists())?;
        self.server = Some(server);
        Ok(())
    }
}
