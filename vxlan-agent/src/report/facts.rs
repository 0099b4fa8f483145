//! What the agent's loop tells of itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;
use vxlan_ebpf_common::maps;

use crate::config::StateConfig;
use crate::probe::Row;
use crate::source::Contact;

/// What the agent knew after its last round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    /// Kernel release.
    pub(crate) kernel: String,
    /// Where the maps are pinned.
    pub(crate) pins: PathBuf,
    /// Whether the configuration as it is now was refused.
    pub(crate) config_refused: bool,
    /// Whether nothing could be done in the last round.
    pub(crate) failed: bool,
    /// Changes that failed and are tried again.
    pub(crate) retrying: usize,
    /// Networks, in the order of the configuration; no more than [`MOST_NETWORKS`](super::MOST_NETWORKS).
    pub(crate) networks: Vec<NetworkFacts>,
    /// How many there are besides.
    pub(crate) unreported: usize,
    /// Maps, and how many of their places are taken.
    pub(crate) used: Vec<(&'static str, usize)>,
    /// What came of probing other nodes, where that is asked for.
    pub(crate) probed: Option<watch::Receiver<Arc<Probed>>>,
}

/// What came of probing other nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probed {
    /// When all had been probed; `None`: not yet.
    pub(crate) at: Option<SystemTime>,
    pub(crate) rows: Vec<Row>,
}

/// What the agent knew of a network.
#[derive(Clone, Debug)]
pub(crate) struct NetworkFacts {
    pub(crate) name: String,
    /// `l3`, `l2` or `accelerate`.
    pub(crate) kind: &'static str,
    /// Mode of the fast path.
    pub(crate) mode: &'static str,
    /// Its VNI, where known.
    pub(crate) vni: Option<u32>,
    /// The vxlan device.
    pub(crate) device: String,
    /// Where the cluster's state comes from.
    pub(crate) source: &'static str,
    /// Whether the source answers.
    pub(crate) contact: Contact,
    /// When the state that is in force came from the source; `None`: there is none yet.
    pub(crate) snapshot: Option<SystemTime>,
    /// Whether the newest state was refused.
    pub(crate) refused: bool,
    /// Whether everything is planned as the newest state asks for.
    pub(crate) ready: bool,
    /// Other nodes.
    pub(crate) nodes: usize,
    /// Their VTEPs.
    pub(crate) vteps: usize,
    /// Pods' interfaces or a bridge's ports with a program.
    pub(crate) interfaces: usize,
    /// Addresses or stations that the fast path delivers to.
    pub(crate) endpoints: usize,
    /// Rules that have to see every packet.
    pub(crate) meters: usize,
    /// What of somebody else's on interfaces keeps packets with the kernel.
    pub(crate) foreign: usize,
    /// Its entry in NETWORKS.
    pub(crate) entry: Option<maps::Network>,
}

/// The word for a source.
pub(crate) const fn source(state: &StateConfig) -> &'static str {
    match state {
        StateConfig::File(_) => "file",
        StateConfig::Kubernetes(_) => "kubernetes",
        StateConfig::Etcd(_) => "etcd",
        StateConfig::Device => "device",
    }
}
