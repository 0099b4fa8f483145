//! `[pods]`: what pods need of their node besides the overlay. All of it is off unless asked for.

use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use toml::Spanned;

use crate::text::{Refused, Text};

/// Where flannel writes down the node's subnet, and its CNI plugin looks for it.
pub const DEFAULT_SUBNET_FILE: &str = "/run/flannel/subnet.env";

/// Flannel's name for the CNI configuration: whichever of the two runs on a node owns the file.
pub const DEFAULT_CNI_FILE: &str = "/etc/cni/net.d/10-flannel.conflist";

/// What pods need of their node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodsConfig {
    /// Networks that all pods of the cluster are in, at most one of each IP version. Empty: the
    /// state source knows them.
    pub networks: Vec<IpNetwork>,
    /// Where to write down the node's subnet.
    pub subnet_file: Option<PathBuf>,
    /// Which CNI configuration to write.
    pub cni: Cni,
    /// Where to write it.
    pub cni_file: PathBuf,
    /// Whether packets from pods to the world outside get an address of the node.
    pub masquerade: bool,
    /// Whether it also gets a port at random, which two connections at a time seldom agree on.
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

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PodsSection {
    #[serde(default)]
    networks: Vec<Spanned<IpNetwork>>,
    subnet_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    cni: Cni,
    cni_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    masquerade: bool,
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

/// Checks the section.
pub(super) fn check(text: &Text, section: PodsSection) -> Result<PodsConfig, Refused> {
    let subnet_file = section.subnet_file.map(|path| absolute(text, path)).transpose()?;
    let cni_file = section.cni_file.map(|path| absolute(text, path)).transpose()?;
    let flannel_file = || (section.cni == Cni::Flannel).then(|| PathBuf::from(DEFAULT_SUBNET_FILE));
    Ok(PodsConfig {
        networks: check_networks(text, &section.networks)?,
        // Flannel's plugin is of no use without it.
        subnet_file: subnet_file.or_else(flannel_file),
        cni: section.cni,
        cni_file: cni_file.unwrap_or_else(|| DEFAULT_CNI_FILE.into()),
        masquerade: section.masquerade,
        random_ports: true,
    })
}

fn check_networks(text: &Text, networks: &[Spanned<IpNetwork>]) -> Result<Vec<IpNetwork>, Refused> {
    let mut checked: Vec<IpNetwork> = vec![];
    for spanned in networks {
        let network = *spanned.get_ref();
        let refuse = |reason: String| Err(text.refuse(Some(spanned.span()), reason));
        if network.ip() != network.network() {
            return refuse(format!("pod network {network} has host bits set"));
        }
        let mapped = matches!(network, IpNetwork::V6(n) if n.ip().to_ipv4_mapped().is_some());
        if network.prefix() == 0 || network.ip().is_multicast() || network.ip().is_loopback() || mapped {
            return refuse(format!("pod network {network} cannot hold pods: it is not unicast"));
        }
        if checked.iter().any(|other| other.is_ipv4() == network.is_ipv4()) {
            return refuse(format!("pod network {network} is the second of its IP version"));
        }
        checked.push(network);
    }
    Ok(checked)
}

fn absolute(text: &Text, path: Spanned<PathBuf>) -> Result<PathBuf, Refused> {
    let plain = path.get_ref().is_absolute() && path.get_ref().file_name().is_some();
    if !plain {
        let reason = format!("{:?} is not the absolute path of a file", path.get_ref());
        return Err(text.refuse(Some(path.span()), reason));
    }
    Ok(path.into_inner())
}

impl PodsConfig {
    /// Whether anything of this needs to know the pod networks.
    pub fn needs_networks(&self) -> bool {
        self.masquerade || self.subnet_file.is_some()
    }
}
