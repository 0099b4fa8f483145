//! Cluster state from etcd, in flannel's layout: nodes of ours and nodes that run flannel's vxlan
//! backend without Kubernetes are one cluster.
//!
//! Every node has a key with its subnet in it, which ends with a lease that the node renews.
//! [`Follower`] lists and watches them, keeps this node's own, and makes snapshots. What is written
//! where is in [`layout`], which subnets there are in [`range`](mod@range), and what a node has to do for
//! its own in [`claim`]; all of that is pure. [`api`] talks to etcd.

mod api;
mod claim;
mod follow;
mod layout;
mod range;
mod wire;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch as latest;

use super::{Contact, Snapshot, Source, Waits};
use crate::cluster::Viewer;
use crate::local::Local;
pub use api::Access;
use api::Members;
use follow::Follower;
use layout::Subnets;
pub use range::Network;

/// What flannel's keys begin with unless it is told otherwise.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// How long before its end flannel renews a lease unless it is told otherwise.
pub const DEFAULT_MARGIN: Duration = Duration::from_secs(60 * 60);

/// Pause between questions for the network's parameters.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How this node takes part.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose view is taken.
    pub viewer: Viewer,
    /// The network's parameters.
    pub network: Network,
    /// Underlay addresses that others send to, instead of those that the machine has.
    pub public: Vec<IpAddr>,
    /// How long before its end a lease is renewed.
    pub margin: Duration,
}

/// The network's parameters, as soon as they are there and can be used; `waits` is told why they are not.
///
/// # Errors
/// `access` cannot be used: a file cannot be read.
pub async fn network(access: &Access, waits: &Waits) -> anyhow::Result<Network> {
    let mut members = Members::new(access.clone())?;
    let mut said = None;
    loop {
        let reason = match config(&mut members, &access.prefix).await {
            Ok(network) => return Ok(network),
            Err(reason) => reason,
        };
        if said.as_ref() != Some(&reason) {
            tracing::warn!("waiting for the network's parameters, the overlay goes on as it is: {reason}");
            waits(&reason);
        }
        said = Some(reason);
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn config(members: &mut Members, prefix: &str) -> Result<Network, String> {
    let asking = async { members.connect().await?.config().await };
    let config = asking.await.map_err(|failure| failure.to_string())?;
    let missing =
        || format!("there is no key {prefix}/config in etcd: put flannel's network configuration there");
    Network::parse(&config.ok_or_else(missing)?)
}

/// The nodes in etcd.
pub struct EtcdSource {
    members: Members,
    settings: Settings,
    previous: Option<Subnets>,
    local: latest::Receiver<Local>,
    contact: Contact,
}

impl EtcdSource {
    /// The network that `access` leads to; `local` is what this machine says of itself, and
    /// `subnet_file` may tell which subnet it had. Nothing is sent yet.
    ///
    /// # Errors
    /// As [`network`].
    pub fn new(
        access: Access,
        settings: Settings,
        subnet_file: &Path,
        local: latest::Receiver<Local>,
    ) -> anyhow::Result<Self> {
        let previous = std::fs::read_to_string(subnet_file).ok();
        let previous = previous.and_then(|content| layout::subnet_file(&content));
        Ok(Self { members: Members::new(access)?, settings, previous, local, contact: Contact::default() })
    }
}

impl Source for EtcdSource {
    fn watch(self: Box<Self>) -> anyhow::Result<latest::Receiver<Snapshot>> {
        let Self { members, settings, previous, local, contact } = *self;
        let (out, receiver) = latest::channel(Err("etcd has not answered yet".to_owned()));
        tokio::spawn(Follower::new(members, settings, previous, local, contact, out).run());
        Ok(receiver)
    }

    fn contact(&self) -> Contact {
        self.contact.clone()
    }
}
