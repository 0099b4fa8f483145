//! `[pods]`: what pods need of their node besides the overlay. All of it is off unless asked for.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::values::{self, file, some_file};
use crate::text::{Refused, Text};

/// Where flannel writes down the node's subnet, and its CNI plugin looks for it.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Flannel's name for the CNI configuration: whichever of the two runs on a node owns the file.
pub const DEFAULT_CNI_FILE: &str = "/etc/cni/net.d/10-flannel.conflist";

/// What pods need of their node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PodsConfig {
    /// Networks that all pods of the cluster are in, at most one of each IP version. Empty: the
    /// state source knows them.
    #[serde(deserialize_with = "networks")]
    pub networks: Vec<IpNetwork>,
    /// Where to write down the node's subnet.
    #[serde(deserialize_with = "some_file")]
    pub subnet_file: Option<PathBuf>,
    /// Which CNI configuration to write.
    pub cni: Cni,
    /// Where to write it.
    #[serde(deserialize_with = "file")]
    pub cni_file: PathBuf,
    /// Whether packets from pods to the world outside get an address of the node.
    pub masquerade: bool,
    /// Whether it also gets a port at random, which two connections at a time seldom agree on.
    #[serde(skip)]
    pub random_ports: bool,
}

/// Which CNI configuration a node gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cni {
    /// None: somebody else writes it.
    #[default]
    Off,
    /// For the standard plugins `bridge`, `host-local` and `portmap` alone.
    Bridge,
    /// For flannel's plugin, which reads the subnet file and delegates to `bridge`.
    Flannel,
}

impl Default for PodsConfig {
    fn default() -> Self {
        Self {
            networks: vec![],
            subnet_file: None,
            cni: Cni::Off,
            cni_file: DEFAULT_CNI_FILE.into(),
            masquerade: false,
            random_ports: true,
        }
    }
}

impl PodsConfig {
    /// The files that are asked for.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let conflist = (self.cni != Cni::Off).then_some(&self.cni_file);
        self.subnet_file.iter().chain(conflist).map(PathBuf::as_path)
    }

    /// Whether anything of this needs to know the pod networks.
    pub fn needs_networks(&self) -> bool {
        self.masquerade || self.subnet_file.is_some()
    }

    /// Finds what was left out of `text`, and refuses what does not fit together.
    pub(super) fn complete(mut self, text: &Text) -> Result<Self, Refused> {
        // Flannel's plugin is of no use without it.
        if self.cni == Cni::Flannel && self.subnet_file.is_none() {
            self.subnet_file = Some(DEFAULT_SUBNET_FILE.into());
        }
        if self.needs_networks() && self.networks.is_empty() {
            let reason = "[pods] networks is missing: give the networks that all pods of the cluster are in";
            return Err(text.refuse(None, reason));
        }
        Ok(self)
    }
}

/// A network that can hold pods.
struct PodNetwork(IpNetwork);

impl<'de> Deserialize<'de> for PodNetwork {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        values::text(deserializer)
    }
}

impl FromStr for PodNetwork {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let network: IpNetwork = text.parse().map_err(|e| format!("'{}': {e}", text.escape_debug()))?;
        if network.ip() != network.network() {
            return Err(format!("pod network {network} has host bits set"));
        }
        let mapped = matches!(network, IpNetwork::V6(n) if n.ip().to_ipv4_mapped().is_some());
        if network.prefix() == 0 || network.ip().is_multicast() || network.ip().is_loopback() || mapped {
            return Err(format!("pod network {network} cannot hold pods: it is not unicast"));
        }
        Ok(Self(network))
    }
}

fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNetwork>, D::Error> {
    let mut checked: Vec<IpNetwork> = vec![];
    for PodNetwork(network) in Vec::deserialize(deserializer)? {
        if checked.iter().any(|other| other.is_ipv4() == network.is_ipv4()) {
            return Err(D::Error::custom(format!("pod network {network} is the second of its IP version")));
        }
        checked.push(network);
    }
    Ok(checked)
}
