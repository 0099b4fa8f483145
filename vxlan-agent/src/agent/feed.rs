//! Where snapshots come from, and what the source wants to know of this machine in turn.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::cluster::Viewer;
use crate::config::{Fastpath, KubernetesConfig, StateConfig, View};
use crate::kernel::{Netlink, Tables};
use crate::local::{Choice, Local};
use crate::source::kubernetes::{self, Settings};
use crate::source::{Contact, EtcdSource, FileSource, KubernetesSource, Snapshot, Source, Waits, etcd};

/// A source at work; it ends when this is dropped.
pub(super) struct Feed {
    /// What it last saw.
    snapshots: watch::Receiver<Snapshot>,
    /// What this machine says of itself, where the source asks.
    local: Option<watch::Sender<Local>>,
    /// Whether it is heard from.
    pub(super) contact: Contact,
    /// Tells of news.
    announcer: JoinSet<()>,
}

impl Feed {
    /// Starts to follow the state file at `path`, which is read at once.
    pub(super) fn of_file(path: &Path, config: &View) -> anyhow::Result<Self> {
        let source = Box::new(FileSource::new(path.to_owned(), viewer(config)));
        Self::new(source, None)
    }

    /// Starts the configured source. What the source or this machine says of the network stands in the
    /// configuration then; an interface that is asked for by where it leads to is looked up once, and stands
    /// there by name. `waits` is told why this takes its time.
    pub(super) async fn open(
        mut config: View,
        netlink: Netlink,
        tables: Tables,
        waits: &Waits,
    ) -> anyhow::Result<(View, Self)> {
        for choice in config.state.interfaces_mut().into_iter().flatten() {
            if let Choice::Reaching(ip) = choice {
                *choice = Choice::Name(reaching(*ip, &netlink, &tables).await?);
            }
        }
        if let StateConfig::Kubernetes(kubernetes) = &config.state
            && let Some((namespace, pod)) = &kubernetes.pod
        {
            let node = kubernetes::node_of(kubernetes.kubeconfig.as_deref(), namespace, pod, waits).await?;
            Arc::make_mut(&mut config.node).name = node;
        }
        let network = match &mut config.state {
            StateConfig::Etcd(etcd) => {
                let found = etcd::network(&etcd.access, waits).await?;
                etcd.agree(&mut config.network, &found).map_err(anyhow::Error::msg)?;
                if config.pods.networks.is_empty() {
                    config.pods.networks = found.conf.networks();
                }
                Some(found)
            }
            _ => None,
        };
        let (local, facts) = watch::channel(look(&config, &tables));
        let viewer = viewer(&config);
        let source: Box<dyn Source> = match (&config.state, network) {
            (StateConfig::File(path), _) => Box::new(FileSource::new(path.clone(), viewer)),
            (StateConfig::Kubernetes(kubernetes), _) => {
                let settings = settings(kubernetes, viewer, config.network.fastpath);
                Box::new(KubernetesSource::new(kubernetes.kubeconfig.as_deref(), settings, facts).await?)
            }
            (StateConfig::Etcd(etcd), Some(network)) => {
                let (public, margin) = (etcd.public.clone(), etcd.margin);
                let settings = etcd::Settings { viewer, network, public, margin };
                Box::new(EtcdSource::new(etcd.access.clone(), settings, &etcd.subnet_file, facts)?)
            }
            (StateConfig::Device, _) | (StateConfig::Etcd(_), None) => bail!("there is no state source"),
        };
        Ok((config, Self::new(source, Some(local))?))
    }

    fn new(source: Box<dyn Source>, local: Option<watch::Sender<Local>>) -> anyhow::Result<Self> {
        let contact = source.contact();
        Ok(Self { snapshots: source.watch()?, local, contact, announcer: JoinSet::new() })
    }

    /// What the source has sent last.
    pub(super) fn latest(&mut self) -> Snapshot {
        self.snapshots.borrow_and_update().clone()
    }

    /// From now on sends `network` to `told` whenever there is news, or nothing more will come.
    pub(super) fn announce(&mut self, network: String, told: mpsc::UnboundedSender<String>) {
        let mut snapshots = self.snapshots.clone();
        self.announcer.spawn(async move {
            while snapshots.changed().await.is_ok() && told.send(network.clone()).is_ok() {}
            let _ = told.send(network);
        });
    }

    /// What the source has sent since last asked, if anything. An error: it has stopped.
    pub(super) fn news(&mut self) -> anyhow::Result<Option<Snapshot>> {
        let changed = self.snapshots.has_changed().context("the state source has stopped")?;
        Ok(changed.then(|| self.snapshots.borrow_and_update().clone()))
    }

    /// Tells the source what `tables` say of this machine, if that is new.
    pub(super) fn tell(&self, config: &View, tables: &Tables) {
        let Some(local) = &self.local else { return };
        let now = look(config, tables);
        local.send_if_modified(|before| {
            let differs = *before != now;
            *before = now;
            differs
        });
    }
}

/// Whose view the source takes.
pub(crate) fn viewer(config: &View) -> Viewer {
    let network = &config.network;
    let (node, name) = (config.node.name.clone(), network.name.clone());
    Viewer { node, network: name, vni: network.vni, l2: network.segment().is_some() }
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
pub(super) fn look(config: &View, tables: &Tables) -> Local {
    match config.state.place() {
        Some(place) => Local::find(place.interfaces, [&config.network.device, place.device6], tables),
        None => Local::default(),
    }
}

async fn reaching(ip: IpAddr, netlink: &Netlink, tables: &Tables) -> anyhow::Result<String> {
    let index = netlink.interface_to(ip).await.with_context(|| format!("no interface leads to {ip}"))?;
    let link = tables.links.get(&index);
    Ok(link.with_context(|| format!("the interface that leads to {ip} is gone"))?.name.clone())
}
