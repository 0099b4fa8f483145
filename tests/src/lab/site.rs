//! The ground that a lab stands on: a prefix of its own, a run directory, and namespaces.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Netns, cleanup, cmd};

/// What a lab has claimed of this machine; dropping it removes everything with its prefix.
pub(super) struct Site {
    prefix: String,
    keep: bool,
}

impl Site {
    /// Claims a prefix and makes the run directory. Labs of processes that are gone are removed first.
    ///
    /// # Errors
    /// Not root, or the directory cannot be made.
    pub(super) fn claim() -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces: run it as root");
        cleanup::sweep();
        let site = Self { prefix: cleanup::claim_prefix()?, keep: false };
        std::fs::create_dir_all(site.run_dir())?;
        Ok(site)
    }

    /// What all names of the lab begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Where configuration, state and logs lie.
    pub(super) fn run_dir(&self) -> PathBuf {
        cleanup::run_dir(&self.prefix)
    }

    /// Path of the state file.
    pub(super) fn state_path(&self) -> PathBuf {
        self.run_dir().join("state.toml")
    }

    /// Opens the lab's namespace `name`, which `ip netns` lists with the prefix in front.
    ///
    /// # Errors
    /// The lab has none of that name.
    pub(super) fn namespace(&self, name: &str) -> Result<Netns> {
        Netns::open(&format!("{}-{name}", self.prefix))
    }

    /// Adds empty namespaces with the settings that all have.
    ///
    /// # Errors
    /// There is one of such a name.
    pub(super) fn add_namespaces(&self, names: &[String]) -> Result<()> {
        let batch: String = names.iter().map(|name| format!("netns add {}-{name}\n", self.prefix)).collect();
        cmd::feed(Command::new("ip").args(["-batch", "-"]), &batch)?;
        names.iter().try_for_each(|name| settle(&self.namespace(name)?))
    }

    /// Leaves the lab up when this process ends, until `vxlan-lab down`.
    ///
    /// # Errors
    /// The mark that says so cannot be written.
    pub(super) fn keep(&mut self) -> Result<()> {
        std::fs::write(self.run_dir().join(cleanup::KEPT), "")?;
        self.keep = true;
        Ok(())
    }

    /// Whether it stays.
    pub(super) const fn is_kept(&self) -> bool {
        self.keep
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !self.keep {
            cleanup::remove(&self.prefix);
        }
    }
}

/// Gives a new namespace its settings, before the first interface: those start with the defaults.
fn settle(ns: &Netns) -> Result<()> {
    ns.sysctl(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        ("ipv6/conf/default/router_solicitations", "0"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ])?;
    ns.ip("link set lo up\n")
}
