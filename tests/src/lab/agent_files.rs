//! What agents of a lab read: the parts of their configuration, and where it lies.

use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use super::cmd::wait_until;
use super::site::Site;
use super::{AgentOptions, Etcd, UNDERLAY, cleanup, etcd, xdp};

const REMOVED_WITHIN: Duration = Duration::from_secs(5);

/// Removes a directory of pins, again while an agent that runs puts some back into it.
///
/// # Errors
/// It is not there, or cannot be removed.
pub fn remove_pins(directory: &Path) -> Result<()> {
    let mut removed = Ok(());
    wait_until("the pins are removed", REMOVED_WITHIN, || {
        removed = std::fs::remove_dir_all(directory);
        !removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::DirectoryNotEmpty)
    })?;
    Ok(removed?)
}

/// Where a node's agent keeps its files and pins.
pub(super) struct Place {
    pub(super) node: String,
    pub(super) run_dir: PathBuf,
    pub(super) pin_dir: PathBuf,
}

impl Place {
    /// Those of the node `node`; makes the run directory.
    pub(super) fn of(site: &Site, node: &str) -> Result<Self> {
        let run_dir = site.run_dir().join(node);
        std::fs::create_dir_all(&run_dir)?;
        let pin_dir = cleanup::pin_dir(site.prefix()).join(node);
        Ok(Self { node: node.to_owned(), run_dir, pin_dir })
    }

    /// The section `[node]`, with the underlay address if it is given.
    pub(super) fn node_section(&self, address: Option<IpAddr>, options: &AgentOptions) -> String {
        let Self { node, run_dir, pin_dir } = self;
        let address = address.map_or_else(String::new, |ip| format!("address = \"{ip}\"\n"));
        format!(
            "[node]\nname = \"{node}\"\nunderlay = \"{UNDERLAY}\"\n{address}\
             pin_dir = {pin_dir:?}\nrun_dir = {run_dir:?}\n{}\n",
            node_lines(options)
        )
    }
}

/// Further lines of `[node]`: what `options` have, and what [`XDP`](super::XDP) asks for.
pub(super) fn node_lines(options: &AgentOptions) -> String {
    match xdp() {
        Some(xdp) if !options.node.contains("xdp") => format!("{}\nxdp = \"{xdp}\"", options.node),
        _ => options.node.clone(),
    }
}

/// `[state]` of a node that finds the others in the lab's state file.
pub(super) fn file_section(site: &Site) -> String {
    format!("source = \"file\"\npath = {:?}\n", site.state_path())
}

/// `[state]` of a node that finds the others in `etcd`.
pub(super) fn etcd_section(etcd: &Etcd, dir: &Path) -> String {
    let mut section = format!(
        "source = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\", {:?}]\nsubnet_file = {:?}\n",
        etcd.endpoint(),
        dir.join("subnet.env")
    );
    if etcd.is_secured() {
        for (key, file) in [("ca_file", "ca.pem"), ("cert_file", "client.pem"), ("key_file", "client.key")] {
            let _ = writeln!(section, "{key} = {:?}", etcd.file(file));
        }
        let (name, password) = etcd::USER;
        let _ = writeln!(section, "username = {name:?}\npassword = {password:?}");
    }
    section
}

/// What flannel's ConfigMap has, and next to it what flannel does not have.
pub(super) fn write_flannel_files(dir: &Path, pin_dir: &Path, fastpath: &str, more: &str) -> Result<()> {
    let net_conf = r#"{ "Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:244::/32",
                        "Backend": { "Type": "vxlan" } }"#;
    let extras =
        format!("fastpath = {fastpath:?}\n[node]\npin_dir = {pin_dir:?}\nrun_dir = {dir:?}\n{more}\n");
    std::fs::write(dir.join("net-conf.json"), net_conf)?;
    Ok(std::fs::write(dir.join("vxlan-agent.toml"), extras)?)
}
