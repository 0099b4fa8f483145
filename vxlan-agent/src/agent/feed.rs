//! Where snapshots come from, and what the source wants to know of this machine in turn.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use tokio::sync::watch;

use crate::cluster::{ClusterState, Viewer};
use crate::config::{Config, Fastpath, KubernetesConfig, StateConfig};
use crate::kernel::{Events, Netlink, Tables, Touched};
use crate::local::{Choice, Local};
use crate::source::kubernetes::{self, Settings};
use crate::source::{FileSource, KubernetesSource, Snapshot, Source};

/// A source at work.
pub(super) struct Feed {
    /// What it last saw.
    pub(super) snapshots: watch::Receiver<Snapshot>,
    /// What this machine says of itself, where the source asks.
    local: Option<watch::Sender<Local>>,
}

impl Feed {
    /// Starts the configured source. An interface that is asked for by where it leads to is looked
    /// up once, and stands in `config` by name then.
    pub(super) async fn open(
        config: &mut Config,
        netlink: &Netlink,
        tables: &Tables,
    ) -> anyhow::Result<Self> {
        let kubernetes = match &mut config.state {
            StateConfig::Kubernetes(kubernetes) => kubernetes,
            StateConfig::File(path) => {
                let viewer = Viewer { node: config.node.name.clone(), vni: config.network.vni };
                let source = Box::new(FileSource::new(path.clone(), viewer));
                return Ok(Self { snapshots: source.watch()?, local: None });
            }
        };
        if let Some((namespace, pod)) = &kubernetes.pod {
            config.node.name = kubernetes::node_of(kubernetes.kubeconfig.as_deref(), namespace, pod).await?;
        }
        let viewer = Viewer { node: config.node.name.clone(), vni: config.network.vni };
        for choice in &mut kubernetes.interfaces {
            if let Choice::Reaching(ip) = choice {
                *choice = Choice::Name(reaching(*ip, netlink, tables).await?);
            }
        }
        let settings = settings(kubernetes, viewer, config.network.fastpath);
        let kubeconfig = kubernetes.kubeconfig.clone();
        let (local, facts) = watch::channel(look(config, tables));
        let source = Box::new(KubernetesSource::new(kubeconfig.as_deref(), settings, facts).await?);
        Ok(Self { snapshots: source.watch()?, local: Some(local) })
    }

    /// The first cluster. A file has to be there and to be right; an API server may take its time,
    /// and `waits` is told why.
    pub(super) async fn first(
        &mut self,
        config: &Config,
        events: &mut Events,
        tables: &mut Tables,
        waits: &dyn Fn(&str),
    ) -> anyhow::Result<ClusterState> {
        let mut said = None;
        loop {
            let snapshot = self.snapshots.borrow_and_update().clone();
            let reason = match snapshot {
                Ok(cluster) => return Ok(cluster),
                Err(reason) if self.local.is_none() => bail!(reason),
                Err(reason) => reason,
            };
            if said.as_ref() != Some(&reason) {
                tracing::info!("waiting: {reason}");
                waits(&reason);
            }
            said = Some(reason);
            let mut touched = Touched::default();
            tokio::select! {
                changed = self.snapshots.changed() => changed.context("the state source has stopped")?,
                event = events.next(tables, &mut touched) => {
                    event.context("netlink notifications have stopped")?;
                }
            }
            self.tell(config, tables);
        }
    }

    /// Tells the source what `tables` say of this machine, if that is new.
    pub(super) fn tell(&self, config: &Config, tables: &Tables) {
        let Some(local) = &self.local else { return };
        let now = look(config, tables);
        local.send_if_modified(|before| {
            let differs = *before != now;
            *before = now;
            differs
        });
    }
}

fn settings(config: &KubernetesConfig, viewer: Viewer, fastpath: Fastpath) -> Settings {
    Settings {
        viewer,
        names: config.names.clone(),
        ipv4: config.ipv4,
        ipv6: config.ipv6,
        public: config.public.clone(),
        set_condition: config.set_condition,
        // Elsewhere no flow bypasses them on approval.
        follow_rules: fastpath == Fastpath::Verified,
    }
}

/// What `tables` say of this machine.
pub(super) fn look(config: &Config, tables: &Tables) -> Local {
    match &config.state {
        StateConfig::Kubernetes(kubernetes) => {
            Local::find(&kubernetes.interfaces, [&config.network.device, &kubernetes.device6], tables)
        }
        StateConfig::File(_) => Local::default(),
    }
}

async fn reaching(ip: IpAddr, netlink: &Netlink, tables: &Tables) -> anyhow::Result<String> {
    let hop = netlink.next_hop(ip, None).await.with_context(|| format!("no interface leads to {ip}"))?;
    let link = tables.links.get(&hop.ifindex);
    Ok(link.with_context(|| format!("the interface that leads to {ip} is gone"))?.name.clone())
}
