//! How the agent is, as it writes it down for those who ask: its status file and its lock, in its run directory.

mod errors;
mod file;
mod lock;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::config::{Fastpath, Kind};
use crate::datapath::KernelFeatures;
use crate::net::{Mac, Mtu, Vni};

pub use errors::{ErrorStatus, Errors};
pub use file::{StatusFile, file, read, remove};
pub use lock::{Holder, Lock, holder};

/// [`NetworkStatus::kind`] of a network whose device somebody else manages.
pub const ACCELERATE: &str = Kind::Accelerate.word();

/// What the agent last knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Process id in the agent's own pid namespace.
    pub pid: u32,
    /// Seconds since 1970.
    pub started: u64,
    /// Kernel release.
    pub kernel: String,
    /// What the kernel offers to the fast path.
    pub features: KernelFeatures,
    /// This node's name.
    pub node: String,
    /// Networks, in the order of the configuration.
    pub networks: Vec<NetworkStatus>,
    /// Present if each device that somebody else manages has a network.
    #[serde(default)]
    pub every: Option<EveryStatus>,
    /// Why nothing could be done in the last round.
    #[serde(default)]
    pub error: Option<String>,
    /// Why the configuration as it is now was refused; the one before is in force.
    #[serde(default)]
    pub config_error: Option<String>,
    /// Changes that failed and are tried again.
    #[serde(default)]
    pub retrying: Vec<RetryStatus>,
    /// Capabilities that the agent has kept, by name.
    #[serde(default)]
    pub rights: Vec<String>,
    /// What went wrong last, the newest last; also what is well again.
    #[serde(default)]
    pub errors: Vec<ErrorStatus>,
}

impl Status {
    /// What is wrong at the moment, a sentence each; a network that waits for its source is not, yet.
    pub fn wrong(&self) -> BTreeSet<String> {
        let refused = self.config_error.iter().map(|reason| format!("configuration refused: {reason}"));
        let retrying = self.retrying.iter().map(RetryStatus::sentence);
        let of_networks = self.networks.iter().flat_map(|network| {
            let wrong = network.plan_error.iter().chain(&network.reload_error);
            wrong.map(|reason| format!("{}: {reason}", network.name))
        });
        self.error.iter().cloned().chain(refused).chain(retrying).chain(of_networks).collect()
    }
}

/// What is done with devices that somebody else manages and that the configuration does not name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EveryStatus {
    /// Mode of their fast path.
    pub mode: Fastpath,
    /// Devices that have no network, and why: a sentence each.
    pub left: Vec<String>,
}

/// What the agent last knew of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub name: String,
    /// `l3`, `l2` or `accelerate`.
    #[serde(default)]
    pub kind: String,
    /// Its VNI, where known.
    pub vni: Option<Vni>,
    /// UDP port, where known.
    pub port: Option<u16>,
    /// Mode of the fast path, as configured.
    pub mode: Fastpath,
    /// Why frames of a bridged network are left to the kernel, a sentence each: all, or those of a port. Where somebody
    /// else manages the device, what is left to the kernel and why.
    #[serde(default)]
    pub left: Vec<String>,
    /// How programs are attached: `tcx` or `clsact`; none while they are not loaded.
    pub attach: Option<String>,
    /// Where XDP is wanted, or why not; nothing while the programs are not loaded.
    pub xdp: Option<String>,
    /// Whether nf_tables keeps strangers' packets from the vxlan device, and why not.
    #[serde(default)]
    pub guard: String,
    /// The vxlan device.
    pub device: String,
    /// What it is called in the configuration.
    #[serde(default)]
    pub configured: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: Option<Mtu>,
    /// Underlay interface.
    pub underlay: Option<String>,
    /// Underlay address.
    pub address: Option<IpAddr>,
    /// MTU of the underlay interface in bytes.
    #[serde(default)]
    pub underlay_mtu: Option<Mtu>,
    /// The bridge, in a bridged network.
    #[serde(default)]
    pub bridge: Option<BridgeStatus>,
    /// This node's pod subnets.
    pub subnets: Vec<IpNetwork>,
    /// This node, once for each IP version that the network runs over.
    #[serde(default)]
    pub own: Vec<NodeStatus>,
    /// Other nodes.
    pub nodes: Vec<NodeStatus>,
    /// What somebody else has put on interfaces, because of which packets are left to the kernel.
    #[serde(default)]
    pub hooked: Vec<HookedStatus>,
    /// Host sides of pods' veths with a program.
    pub pods_attached: usize,
    /// Pod addresses that the fast path delivers to.
    pub endpoints: usize,
    /// Rules that have to see every packet: in mode `verified` no flow bypasses the host stack meanwhile.
    #[serde(default)]
    pub meters: Vec<String>,
    /// In mode `verified` what looks at more of packets between pods than their addresses: because of it each
    /// connection is verified for itself, else all between two addresses at once.
    #[serde(default)]
    pub judge: Option<String>,
    /// In mode `verified` what may tell one of the tunnel's packets from another in front of its port: because of it
    /// what the host stack has to see takes the kernel's way out of the tunnel.
    #[serde(default)]
    pub handover: Option<String>,
    /// Files for pods, as they were last written: path and content.
    pub files: BTreeMap<PathBuf, String>,
    /// Why the last state that the source sent was refused; the one before is in force.
    pub reload_error: Option<String>,
    /// Why nothing can be planned at the moment; what was programmed before stays.
    pub plan_error: Option<String>,
    /// Why the state source has no cluster yet; what was programmed before stays.
    #[serde(default)]
    pub pending: Option<String>,
    /// Why this node does not take part as a whole although the cluster is followed.
    #[serde(default)]
    pub trouble: Option<String>,
    /// Nodes, by the source's name for them, that are left out, or in part, and why.
    #[serde(default)]
    pub left_out: BTreeMap<String, String>,
}

/// The bridge of a bridged network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeStatus {
    /// Its name.
    pub name: String,
    /// Whether the agent made it; an operator's is used as it is.
    pub ours: bool,
    /// What about it is not as the configuration asks for, or may lose packets: a sentence each.
    pub cautions: Vec<String>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its VTEP address.
    pub vtep: IpAddr,
    /// Its VTEP MAC.
    pub mac: Mac,
    /// Its pod subnets.
    pub subnets: Vec<IpNetwork>,
    /// Whether an IPsec policy may apply to the tunnel to it, so that the kernel's device carries it.
    #[serde(default)]
    pub ipsec: bool,
    /// Whether it is on the same link, and packets get to its pods without a tunnel.
    #[serde(default)]
    pub direct: bool,
}

/// Something of somebody else's on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookedStatus {
    /// The interface.
    pub interface: String,
    /// What it is, and at which edge.
    pub what: String,
}

/// A change that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryStatus {
    /// What should be done.
    pub change: String,
    /// Why the last attempt failed.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
}

impl RetryStatus {
    /// What fails and why; an error that says what it is about itself says it once.
    pub fn sentence(&self) -> String {
        if self.error.contains(&self.change) {
            self.error.clone()
        } else {
            format!("{}: {}", self.change, self.error)
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// That of an agent without networks.
    pub(crate) fn status() -> Status {
        Status {
            version: "1".into(),
            pid: 1,
            started: 2,
            kernel: "6.18".into(),
            features: KernelFeatures::probe(),
            node: "a".into(),
            networks: vec![],
            every: None,
            error: None,
            config_error: None,
            retrying: vec![],
            rights: vec![],
            errors: vec![],
        }
    }

    /// That of a routed network called `name`, which nothing is the matter with.
    pub(crate) fn network(name: &str) -> NetworkStatus {
        NetworkStatus {
            name: name.into(),
            kind: "l3".into(),
            vni: Vni::try_from(1).ok(),
            port: Some(8472),
            mode: Fastpath::Verified,
            left: vec![],
            attach: Some("tcx".into()),
            xdp: Some("no: the driver has none".into()),
            guard: "yes".into(),
            device: format!("vx-{name}"),
            configured: format!("vx-{name}"),
            mac: Mac::default(),
            mtu: Some(Mtu(1450)),
            underlay: Some("eth0".into()),
            address: "192.0.2.1".parse().ok(),
            underlay_mtu: Some(Mtu(1500)),
            bridge: None,
            own: vec![],
            subnets: vec![],
            nodes: vec![],
            hooked: vec![],
            pods_attached: 0,
            endpoints: 0,
            meters: vec![],
            judge: None,
            handover: None,
            files: BTreeMap::new(),
            reload_error: None,
            trouble: None,
            left_out: BTreeMap::new(),
            plan_error: None,
            pending: None,
        }
    }

    #[test]
    fn a_failure_says_once_what_it_is_about() {
        let retry = |error: &str| RetryStatus { change: "attach x".into(), error: error.into(), attempts: 1 };
        assert_eq!(retry("cannot attach x: no").sentence(), "cannot attach x: no");
        assert_eq!(retry("no").sentence(), "attach x: no");
    }
}
