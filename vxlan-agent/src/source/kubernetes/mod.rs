//! Cluster state from the nodes of a Kubernetes cluster, in flannel's annotations: nodes of ours and
//! nodes that run flannel's vxlan backend are one cluster.
//!
//! [`Watcher`] follows the API server and sends what it says of nodes; [`Follower`] makes snapshots
//! of it and writes what this node says of itself; [`rules`] counts changes of what packets between
//! pods have to obey. Everything between is pure: [`node`], [`annotations`],
//! [`assemble`](mod@assemble), [`writer`].

pub mod annotations;
mod api;
pub(in crate::source) mod assemble;
mod follow;
pub(in crate::source) mod node;
mod rules;
mod watch;
mod writer;

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::{mpsc, watch as latest};
use vxlan_ebpf_common::maps::Family;

use super::{Contact, Snapshot, Source, Waits};
use crate::cluster::Viewer;
use crate::local::Local;
use annotations::Names;
use api::Api;
use follow::Follower;
use watch::Watcher;

/// News that wait to be taken in: some pages.
const BACKLOG: usize = 1024;

/// Pause between questions which node this is.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// How this node takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whose view is taken.
    pub viewer: Viewer,
    /// Names of annotations.
    pub names: Names,
    /// Whether the network runs over IPv4, as far as the node has a subnet and an address.
    pub ipv4: bool,
    /// As `ipv4`.
    pub ipv6: bool,
    /// Underlay addresses that others send to, instead of those that the node finds.
    pub public: Vec<IpAddr>,
    /// Whether to say that the node's network is available.
    pub set_condition: bool,
    /// Whether to follow what rules for packets between pods are made of.
    pub follow_rules: bool,
}

impl Settings {
    /// What flannel does by default, over both IP versions.
    pub fn new(viewer: Viewer) -> Self {
        let names = Names::default();
        let (ipv4, ipv6, set_condition, follow_rules) = (true, true, true, true);
        Self { viewer, names, ipv4, ipv6, public: vec![], set_condition, follow_rules }
    }

    fn runs(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }

    fn public_ip(&self, family: Family) -> Option<IpAddr> {
        self.public.iter().copied().find(|ip| crate::net::family(*ip) == family)
    }
}

/// The nodes of a Kubernetes cluster.
pub struct KubernetesSource {
    api: Api,
    settings: Settings,
    local: latest::Receiver<Local>,
    contact: Contact,
}

impl KubernetesSource {
    /// The cluster that `kubeconfig` leads to, or the one that this is a pod of; `local` is what
    /// this machine says of itself. Nothing is sent yet.
    ///
    /// # Errors
    /// There is no usable configuration.
    pub async fn new(
        kubeconfig: Option<&std::path::Path>,
        settings: Settings,
        local: latest::Receiver<Local>,
    ) -> anyhow::Result<Self> {
        Ok(Self { api: Api::new(kubeconfig).await?, settings, local, contact: Contact::default() })
    }
}

/// Name of the node that the pod `name` in `namespace` runs on, as soon as the API server says so;
/// `waits` is told why it does not.
///
/// # Errors
/// There is no usable configuration.
pub async fn node_of(
    kubeconfig: Option<&std::path::Path>,
    namespace: &str,
    name: &str,
    waits: &Waits,
) -> anyhow::Result<String> {
    let api = Api::new(kubeconfig).await?;
    let mut said = false;
    loop {
        match api.node_of(namespace, name).await {
            Ok(node) => return Ok(node),
            Err(failure) if !said => {
                tracing::warn!("cannot ask which node this is, the overlay goes on as it is: {failure}");
                waits(&failure.to_string());
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

impl Source for KubernetesSource {
    fn watch(self: Box<Self>) -> anyhow::Result<latest::Receiver<Snapshot>> {
        let Self { api, settings, local, contact } = *self;
        let (news, incoming) = mpsc::channel(BACKLOG);
        let (out, receiver) = latest::channel(Err("the Kubernetes API has not answered yet".to_owned()));
        tokio::spawn(Watcher::new(api.clone(), settings.clone(), contact, news).run());
        let rules = settings.follow_rules.then(|| rules::count(&api));
        tokio::spawn(Follower::new(api, settings, local, rules, out).run(incoming));
        Ok(receiver)
    }

    fn contact(&self) -> Contact {
        self.contact.clone()
    }
}
