//! The section `[node]`: what is particular to this node.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};
use toml::de::DeTable;

use crate::ownership;
use crate::text::{Refused, Text};

/// What is particular to this node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// Name of the own entry in the cluster state.
    #[serde(deserialize_with = "name")]
    pub name: String,
    /// Name of the underlay interface; detected from the own VTEP address otherwise.
    pub underlay: Option<String>,
    /// Underlay address to send from, where it differs from the one that others send to (NAT).
    pub address: Option<IpAddr>,
    /// Directory on a BPF file system.
    #[serde(deserialize_with = "pin_dir")]
    pub pin_dir: PathBuf,
    /// Status file and lock.
    pub run_dir: PathBuf,
    /// How programs are attached.
    pub attach: Attach,
    /// Whether packets are taken out of the tunnel before the stack sees them.
    pub xdp: Xdp,
    /// Where to answer health checks.
    pub healthz: Option<SocketAddr>,
    /// Where to answer scrapes of metrics.
    pub metrics: Option<SocketAddr>,
    /// Every so many seconds all other nodes are probed.
    pub connectivity: Option<NonZeroU32>,
}

/// Whether packets are taken out of the tunnel before the stack sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// With the drivers that are known to gain from it.
    #[default]
    Auto,
    /// With any driver that has XDP of its own.
    Native,
    /// Never.
    Off,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// With TCX where the kernel has it, otherwise with clsact.
    #[default]
    Auto,
    /// With clsact, even where the kernel has TCX.
    Clsact,
}

/// A node without a name and a run directory: [`NodeConfig::complete`] finds them.
impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            underlay: None,
            address: None,
            pin_dir: ownership::DEFAULT_PIN_DIR.into(),
            run_dir: PathBuf::new(),
            attach: Attach::default(),
            xdp: Xdp::default(),
            healthz: None,
            metrics: None,
            connectivity: None,
        }
    }
}

impl NodeConfig {
    /// Reads the section `[node]` of the file at `path` alone, whatever else is wrong there.
    ///
    /// # Errors
    /// The file cannot be read, is no TOML, or this section is wrong.
    pub fn read(path: &Path) -> Result<Self, Refused> {
        Self::parse(&Text::read(path)?)
    }

    /// As [`NodeConfig::read`], of a text.
    ///
    /// # Errors
    /// As there.
    pub fn parse(text: &Text) -> Result<Self, Refused> {
        #[derive(Deserialize)]
        struct NodeSection {
            #[serde(default)]
            node: NodeConfig,
        }
        let NodeSection { node } = text.parse()?;
        node.complete(text, &hostname)
    }

    /// As [`NodeConfig::read`], but of a wrong file what can be told of it all the same: where pins and status lie.
    ///
    /// # Errors
    /// The file cannot be read, or says where they lie in a way that cannot be told.
    pub fn salvage(path: &Path) -> Result<Self, Refused> {
        let text = Text::read(path)?;
        Self::parse(&text).or_else(|refused| salvage(&text).ok_or(refused))
    }

    /// Where the pins of all networks lie.
    pub fn pins(&self) -> PathBuf {
        ownership::node_pin_dir(&self.pin_dir)
    }

    /// Whether somebody has named the node.
    pub(super) fn is_named(&self) -> bool {
        !self.name.is_empty()
    }

    /// Finds what was left out of `text`.
    pub(super) fn complete(
        mut self,
        text: &Text,
        hostname: &dyn Fn() -> Option<String>,
    ) -> Result<Self, Refused> {
        if !self.is_named() {
            let missing = "[node] name is missing and this machine has no host name";
            self.name = hostname().ok_or_else(|| text.refuse(None, missing))?;
        }
        if self.run_dir.as_os_str().is_empty() {
            self.run_dir = ownership::default_run_dir(&self.pin_dir);
        }
        Ok(self)
    }
}

/// Where pins and status lie, in a text that is no TOML in other places, or whose section is wrong elsewhere.
fn salvage(text: &Text) -> Option<NodeConfig> {
    let section = section(text.content());
    let (table, _) = DeTable::parse_recoverable(section.as_deref().unwrap_or_else(|| text.content()));
    let section = table.get_ref().get("node").and_then(|node| node.get_ref().as_table());
    let mut node = NodeConfig::default();
    for (key, place) in [("pin_dir", &mut node.pin_dir), ("run_dir", &mut node.run_dir)] {
        let value = section.and_then(|node| node.get(key)).and_then(|value| value.get_ref().as_str());
        match value {
            Some(value) if value.starts_with('/') => *place = PathBuf::from(value),
            // Named, but not understood: the default would be somebody else's.
            _ if text.content().contains(key) => return None,
            _ => {}
        }
    }
    node.complete(text, &hostname).ok()
}

/// The section `[node]`, if there is one, without what is before and behind it: a heading that is none takes what follows
/// with it.
fn section(text: &str) -> Option<String> {
    let is_heading = |line: &&str| line.trim_start().starts_with('[');
    let mut lines =
        text.lines().skip_while(|line| line.split('#').next().is_none_or(|l| l.trim() != "[node]"));
    let first = lines.next()?;
    let rest = lines.take_while(|line| !is_heading(line));
    Some(std::iter::once(first).chain(rest).map(|line| format!("{line}\n")).collect())
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    if name.is_empty() {
        return Err(D::Error::custom("the node's name is empty: leave it out for the host name"));
    }
    if name.contains(char::is_control) {
        return Err(D::Error::custom("the node's name has control characters in it"));
    }
    Ok(name)
}

fn pin_dir<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let dir = PathBuf::deserialize(deserializer)?;
    if dir.is_relative() {
        return Err(D::Error::custom("pin_dir is not an absolute path"));
    }
    if dir.as_os_str().as_encoded_bytes().contains(&b'.') {
        return Err(D::Error::custom("pin_dir has a dot in it, which bpffs refuses"));
    }
    Ok(dir)
}

/// The name that Kubernetes has for the node, if it says so, or the host name without its domain.
pub(crate) fn hostname() -> Option<String> {
    if let Some(name) = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let full = nix::sys::utsname::uname().ok()?.nodename().to_str()?.to_owned();
    full.split('.').next().filter(|n| !n.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_pins_and_status_lie_is_told_of_a_wrong_file_too() {
        let found = |text: &str| salvage(&Text::new("c.toml", text)).map(|node| (node.pin_dir, node.run_dir));
        let places = Some((PathBuf::from("/sys/fs/bpf/a"), PathBuf::from("/run/a")));
        let node = "[node]\npin_dir = \"/sys/fs/bpf/a\"\nrun_dir = \"/run/a\"\n";
        assert_eq!(found(node), places);
        assert_eq!(found(&format!("{node}nonsense = 1\n")), places, "a key that nobody knows");
        assert_eq!(found(&format!("{node}\n[[network]\n")), places, "no TOML");
        assert_eq!(found(&format!("[[network]\nvni = = 1\n{node}")), places, "no TOML before it");
        let default = PathBuf::from(ownership::DEFAULT_PIN_DIR);
        let run_dir = ownership::default_run_dir(&default);
        assert_eq!(found("[[network]\n"), Some((default, run_dir)), "it does not say");
        for unclear in ["pin_dir = 5", "pin_dir = \"sys\"", "pin_dir ="] {
            assert_eq!(
                found(&format!("[node]\n{unclear}\n")),
                None,
                "{unclear}: the default would be another's"
            );
        }
    }
}
