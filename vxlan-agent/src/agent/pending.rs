//! Networks whose source has no cluster yet. None keeps another from running, and what an earlier agent left of
//! it stays as it is.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::anyhow;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Agent;
use super::feed::Feed;
use super::machine::Machine;
use super::network::Network;
use crate::config::{StateConfig, View};
use crate::kernel::Tables;
use crate::source::Contact;

/// Pause before a source that cannot be opened is opened again.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// Where names of networks are sent whose sources have news.
pub(super) type Told = mpsc::UnboundedSender<String>;

/// A network whose source has no cluster yet. There may be a [`Network`] of the same name, which runs as it was
/// configured before.
pub(super) struct Pending {
    /// As configured.
    pub(super) view: View,
    /// The source, while it is opened.
    opening: JoinSet<Opened>,
    /// What has come of it.
    done: Option<Opened>,
    /// Why that takes its time.
    waits: watch::Receiver<String>,
    /// The source, with the configuration as it has completed it.
    opened: Option<(View, Feed)>,
    /// Why there is no cluster that could be run.
    reason: Option<String>,
    /// When to open the source again.
    again: Option<Instant>,
}

/// A source, with the configuration as it has completed it.
type Opened = anyhow::Result<(View, Feed)>;

/// Why a network is still pending.
enum Still {
    /// It waits for somebody else.
    Waiting(String),
    /// Something is wrong with its configuration or its file.
    Wrong(anyhow::Error),
}

impl Pending {
    /// Begins to open the source of `view`. A file is read at once.
    pub(super) fn new(view: View, machine: &Machine, told: &Told) -> Self {
        let (_, waits) = watch::channel(String::new());
        let (opening, done, opened) = (JoinSet::new(), None, None);
        let mut pending = Self { view, opening, done, waits, opened, reason: None, again: None };
        pending.open(machine, told);
        pending
    }

    pub(super) fn name(&self) -> &str {
        &self.view.network.name
    }

    /// Why it is pending.
    pub(super) fn reason(&self) -> String {
        let waits = self.waits.borrow();
        match &self.reason {
            Some(reason) => reason.clone(),
            None if waits.is_empty() => "its state source is being opened".to_owned(),
            None => waits.clone(),
        }
    }

    /// Whether its source answers.
    pub(super) fn contact(&self) -> Contact {
        self.opened.as_ref().map(|(_, feed)| feed.contact.clone()).unwrap_or_default()
    }

    /// When to act without being told.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        self.again
    }

    /// Tells the source what `tables` say of this machine, if that is new.
    pub(super) fn tell(&self, tables: &Tables) {
        self.opened.iter().for_each(|(view, feed)| feed.tell(view, tables));
    }

    fn open(&mut self, machine: &Machine, told: &Told) {
        self.again = None;
        if let StateConfig::File(path) = &self.view.state {
            self.done = Some(Feed::of_file(path, &self.view).map(|feed| (self.view.clone(), feed)));
            return;
        }
        let (waits, reasons) = watch::channel(String::new());
        self.waits = reasons;
        let (view, told) = (self.view.clone(), told.clone());
        let (netlink, tables) = (machine.netlink.clone(), machine.tables.clone());
        self.opening.spawn(async move {
            let name = view.network.name.clone();
            let tell = move || drop(told.send(name.clone()));
            let say = {
                let tell = tell.clone();
                move |reason: &str| {
                    waits.send_replace(reason.to_owned());
                    tell();
                }
            };
            let opened = Feed::open(view, netlink, tables, &say).await;
            tell();
            opened
        });
    }

    fn take_in(&mut self, opened: Opened, told: &Told) -> Result<(), Still> {
        match opened {
            Ok((view, mut feed)) => {
                feed.announce(view.network.name.clone(), told.clone());
                self.opened = Some((view, feed));
                Ok(())
            }
            Err(error) => {
                self.again = Some(Instant::now() + OPEN_AGAIN);
                Err(Still::Wrong(error))
            }
        }
    }

    /// The network, once it can run; otherwise [`Pending::reason`] says why not.
    fn advance(&mut self, machine: &Machine, told: &Told) -> Result<Network, Still> {
        if self.again.is_some_and(|again| again <= Instant::now()) {
            self.open(machine, told);
        }
        if let Some(done) = self.opening.try_join_next() {
            let stopped = |panic| Err(anyhow!("its state source has stopped: {panic}"));
            self.done = Some(done.unwrap_or_else(stopped));
        }
        if let Some(opened) = self.done.take() {
            self.take_in(opened, told)?;
        }
        let Some((view, mut feed)) = self.opened.take() else {
            return Err(Still::Waiting(self.reason()));
        };
        let is_file = matches!(view.state, StateConfig::File(_));
        match feed.latest() {
            Ok(cluster) => {
                let network = Network::new(view, feed, cluster);
                // What is wrong in a Kubernetes cluster or in etcd will be put right there.
                let checked = if is_file { network.check(&network.cluster, &machine.tables) } else { Ok(()) };
                let Err(reason) = checked else { return Ok(network) };
                self.opened = network.feed.map(|feed| (network.config, feed));
                Err(Still::Wrong(anyhow!(reason)))
            }
            Err(reason) => {
                self.opened = Some((view, feed));
                Err(if is_file { Still::Wrong(anyhow!(reason)) } else { Still::Waiting(reason) })
            }
        }
    }

    /// Remembers why it is pending, and says it if that is new.
    fn note(&mut self, still: &Still) {
        let reason = match still {
            Still::Waiting(reason) => reason.clone(),
            Still::Wrong(error) => format!("{error:#}"),
        };
        if self.reason.as_ref() == Some(&reason) {
            return;
        }
        let network = self.name();
        match still {
            Still::Waiting(_) => tracing::info!(network, "waiting: {reason}"),
            Still::Wrong(_) => tracing::error!(network, "cannot run yet: {reason}"),
        }
        self.reason = Some(reason);
    }
}

impl Agent {
    /// Takes up pending networks that can run now; whether there were any.
    ///
    /// # Errors
    /// What is wrong with the only network of an agent that starts: nothing would run.
    pub(super) fn take_up(&mut self) -> anyhow::Result<bool> {
        let mut any = false;
        for mut pending in std::mem::take(&mut self.pending) {
            match pending.advance(&self.machine, &self.told) {
                Ok(network) => {
                    self.install(network);
                    any = true;
                }
                Err(Still::Wrong(error)) if self.is_alone => return Err(error),
                Err(still) => {
                    pending.note(&still);
                    self.pending.push(pending);
                }
            }
        }
        if any {
            self.is_alone = false;
            self.put_in_order();
        }
        Ok(any)
    }

    /// Tells the sources what this machine is like now.
    pub(super) fn tell(&self) {
        let tables = &self.machine.tables;
        for network in &self.networks {
            network.feed.iter().for_each(|feed| feed.tell(&network.config, tables));
        }
        self.pending.iter().for_each(|pending| pending.tell(tables));
    }

    /// Lets `network` run, in the place of what it was before.
    pub(super) fn install(&mut self, network: Network) {
        match self.networks.iter_mut().find(|known| known.name() == network.name()) {
            Some(known) => known.go_on_as(network),
            None => self.networks.push(network),
        }
    }

    /// Sorts the networks as they are configured.
    pub(super) fn put_in_order(&mut self) {
        let names = self.config.networks.iter().map(|view| view.network.name.as_str());
        let order: BTreeMap<&str, usize> = names.zip(0..).collect();
        self.networks.sort_by_key(|network| order.get(network.name()).copied());
    }

    /// Says which networks have begun to run.
    pub(super) fn greet(&mut self) {
        for network in self.networks.iter_mut().filter(|network| network.is_new) {
            network.is_new = false;
            if network.cluster.policy.is_some() {
                // Nobody knows what has changed while nobody looked.
                network.flush_flows(&mut self.machine);
            }
            tracing::info!(
                node = network.config.node.name,
                network = network.name(),
                device = network.config.device_over(network.cluster.own.vtep),
                nodes = network.cluster.remote_nodes(),
                "running"
            );
        }
    }
}
