//! The state file that all agents of a lab read.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};

use super::addr::{inner4, inner6, underlay, vtep_mac};
use super::{LabSpec, Overlay};

/// The nodes of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFile {
    /// The number that changes when rules have; left out if `None`.
    pub policy: Option<u32>,
    /// In the order of the file.
    pub nodes: Vec<StateNode>,
}

/// One `[[node]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateNode {
    /// `n1`, `n2`, …
    pub name: String,
    /// Underlay address.
    pub vtep: IpAddr,
    /// MAC of its vxlan device; left out if `None`.
    pub mac: Option<String>,
    /// Pod subnets; left out if there are none.
    pub subnets: Vec<String>,
    /// What is known to be attached to it in bridged networks: MAC and, where that is known, address.
    pub stations: Vec<(String, Option<IpAddr>)>,
}

impl StateFile {
    /// All nodes of a lab.
    pub fn of(spec: &LabSpec) -> Self {
        let nodes = (1u8..).zip(&spec.nodes).map(|(n, node)| StateNode {
            name: format!("n{n}"),
            vtep: underlay(spec.underlay, n),
            mac: match node.overlay {
                Overlay::Agent(_) if spec.derive_macs => None,
                _ => Some(vtep_mac(n)),
            },
            subnets: vec![format!("{}/24", inner4(n, 0)), format!("{}/64", inner6(n, 0))],
            stations: vec![],
        });
        Self { policy: None, nodes: nodes.collect() }
    }

    /// The same without the node `name`.
    #[must_use]
    pub fn without(&self, name: &str) -> Self {
        let nodes = self.nodes.iter().filter(|node| node.name != name).cloned().collect();
        Self { nodes, ..*self }
    }

    /// As TOML.
    pub fn to_toml(&self) -> String {
        let mut text = self.policy.map_or_else(String::new, |policy| format!("policy = {policy}\n"));
        for node in &self.nodes {
            let _ = writeln!(text, "[[node]]\nname = {:?}\nvtep = \"{}\"", node.name, node.vtep);
            if let Some(mac) = &node.mac {
                let _ = writeln!(text, "mac = {mac:?}");
            }
            if !node.subnets.is_empty() {
                let _ = writeln!(text, "subnets = {:?}", node.subnets);
            }
            for (mac, ip) in &node.stations {
                let _ = writeln!(text, "[[node.station]]\nmac = {mac:?}");
                if let Some(ip) = ip {
                    let _ = writeln!(text, "ip = \"{ip}\"");
                }
            }
            text.push('\n');
        }
        text
    }

    /// Replaces the file at `path` in one step.
    ///
    /// # Errors
    /// The file cannot be written or renamed.
    pub fn write(&self, path: &Path) -> Result<()> {
        let new = path.with_extension("new");
        std::fs::write(&new, self.to_toml())
            .and_then(|()| std::fs::rename(&new, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
