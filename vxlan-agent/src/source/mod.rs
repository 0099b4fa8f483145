//! Where cluster state comes from. A source sends whole snapshots; only `diff` makes deltas.

pub mod etcd;
mod file;
pub mod kubernetes;
mod outage;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use crate::cluster::ClusterState;

pub use etcd::EtcdSource;
pub use file::{FileSource, StateFile, parse_state};
pub use kubernetes::KubernetesSource;

/// What a source last saw: a checked cluster, or one sentence why what it saw was refused.
pub type Snapshot = Result<ClusterState, String>;

/// Where somebody is told why a source has nothing to say yet.
pub type Waits = dyn Fn(&str) + Send + Sync;

/// Whether a source answers at the moment. A copy says the same.
#[derive(Clone, Debug, Default)]
pub struct Contact(Arc<AtomicBool>);

impl Contact {
    /// With what is always there.
    pub fn made() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Whether it does.
    pub fn is_made(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self, is_made: bool) {
        self.0.store(is_made, Ordering::Relaxed);
    }
}

/// Something that knows the cluster.
pub trait Source {
    /// The state now, then every later one. Slow receivers see the newest only.
    fn watch(self: Box<Self>) -> anyhow::Result<watch::Receiver<Snapshot>>;

    /// Whether it is heard from.
    fn contact(&self) -> Contact;
}
