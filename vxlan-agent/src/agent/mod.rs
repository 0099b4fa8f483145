//! The loop: wait for news, look, plan, change what differs, write down how it went.
//!
//! [`Machine`] is what all networks share, [`Network`] what each has for itself.

mod describe;
mod feed;
mod health;
mod look;
mod machine;
mod network;
mod pins;
mod pods;
mod report;
mod retries;
mod round;
mod segment;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::config::{Config, Fastpath, NodeConfig, StateConfig};
use crate::datapath::{self, Datapath, KernelFeatures, Tcx};
use crate::kernel::ruleset::{self, Ruleset};
use crate::kernel::{Events, Netlink, Touched};
use crate::ownership;
use crate::preflight;
use crate::status::{Lock, StatusFile};
use feed::Feed;
use machine::Machine;
use network::Network;
use pins::PinWatch;

/// How long news is collected: a veth that is made comes with a handful of notifications.
const COLLECT: Duration = Duration::from_millis(2);
/// How often everything is read anew, in case a notification was missed.
const RESYNC: Duration = Duration::from_secs(60);
/// How often it is asked which path MTUs the kernel has learnt: that is not notified either, and meanwhile
/// packets are lost.
const LEARN: Duration = Duration::from_secs(1);
/// How often settings are looked at of which no change is notified.
const PEEK: Duration = Duration::from_secs(5);
/// How long an agent that starts waits for the one before it to end.
const PREDECESSOR: Duration = Duration::from_secs(5);
/// Rounds without a pause before the agent admits that it gets nowhere.
const ROUNDS: usize = 5;
/// Pause when it gets nowhere.
const PAUSE: Duration = Duration::from_secs(1);

/// A running agent.
pub struct Agent {
    node: Arc<NodeConfig>,
    machine: Machine,
    networks: Vec<Network>,
    /// Why nothing could be done in the last round.
    error: Option<String>,
    started: u64,
    kernel: String,
    features: KernelFeatures,
    status: StatusFile,
}

/// Runs until SIGTERM or SIGINT, which leave everything in place.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let Config { node, networks: views } = config;
    preflight::check_privileges()?;
    let is_fast = views.iter().any(|view| view.network.running() != Fastpath::Off);
    if is_fast {
        preflight::check_kernel()?;
    }
    datapath::check_pin_dir(&node.pin_dir)?;
    let _lock = Lock::wait(&node.run_dir, PREDECESSOR).await?;
    let health = node.healthz.map(health::serve).transpose()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let netlink = Netlink::open()?;
    let mut events = Events::subscribe()?;
    let mut rules = if is_fast { ruleset::follow() } else { watch::channel(None).1 };
    let mut tables = netlink.dump().await?;
    let (told, mut news) = mpsc::unbounded_channel();
    let begin = async {
        let mut networks = vec![];
        for mut view in views {
            let mut feed = Feed::open(&mut view, &netlink, &tables).await?;
            let waits = |reason: &str| health::waits(&health, reason);
            let cluster = feed.first(&view, &mut events, &mut tables, &waits).await?;
            feed.announce(networks.len(), told.clone());
            networks.push(Network::new(view, feed, cluster));
        }
        anyhow::Ok(networks)
    };
    let networks = tokio::select! {
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        never = health::lives(&health) => match never {},
        begun = begin => begun?,
    };
    let (pins, mut unpinned) = PinWatch::new();
    let features = KernelFeatures::probe();
    let (tcx, mut reattached) = Tcx::new(features.tcx, &ownership::node_pin_dir(&node.pin_dir))?;
    let machine = Machine::new(netlink, tables, pins, tcx)?;
    let mut agent = Agent::new(node, machine, networks, features)?;
    // A bypass is not opened before it is known that it may be.
    let known = tokio::select! {
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        known = rules.wait_for(Option::is_some) => known.ok().and_then(|known| known.clone()),
    };
    agent.start(known).await?;
    let (mut resync, mut peek, mut learn) =
        (Instant::now() + RESYNC, Instant::now() + PEEK, Instant::now() + LEARN);
    loop {
        health.iter().for_each(|health| drop(health.send_replace(agent.health())));
        let wake = agent.wake_at().into_iter().fold(resync.min(peek).min(learn), Instant::min);
        let (mut touched, mut reload) = (Touched::default(), vec![]);
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            network = news.recv() => reload.extend(network),
            event = events.next(&mut agent.machine.tables, &mut touched) => event.context("netlink notifications have stopped")?,
            Some(()) = unpinned.recv() => {
                agent.machine.datapath.iter_mut().for_each(Datapath::doubt_names);
                touched.changed = true;
            }
            Some(()) = reattached.recv() => touched.changed = true,
            Ok(()) = rules.changed() => {}
            () = tokio::time::sleep_until(wake) => {}
        }
        tokio::time::sleep(COLLECT).await;
        while let Some(Some(())) = events.next(&mut agent.machine.tables, &mut touched).now_or_never() {}
        while let Ok(network) = news.try_recv() {
            reload.push(network);
        }
        let now = Instant::now();
        if now >= resync {
            resync = now + RESYNC;
            agent.machine.read_anew().await;
        }
        if now >= learn {
            touched.destinations.extend(agent.machine.learnt_anew().await);
            learn = now + LEARN;
        }
        let mut settings = false;
        if now >= peek {
            (settings, peek) = (agent.settings_changed(), now + PEEK);
        }
        touched.changed |= settings;
        touched.changed |= agent.take_rules(rules.borrow_and_update().clone());
        agent.news(&reload, &touched).await?;
        let tables = &agent.machine.tables;
        agent.networks.iter().for_each(|network| network.feed.tell(&network.config, tables));
    }
    tracing::info!("stopped; the overlay goes on as it is");
    Ok(())
}

impl Agent {
    fn new(
        node: Arc<NodeConfig>,
        machine: Machine,
        networks: Vec<Network>,
        features: KernelFeatures,
    ) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            machine,
            networks,
            error: None,
            started: now.map_or(0, |elapsed| elapsed.as_secs()),
            kernel: preflight::kernel_release()?,
            features,
            status: StatusFile::new(&node.run_dir),
            node,
        })
    }

    /// The first rounds. What is wrong with a file from the start ends the agent; what is wrong in
    /// a Kubernetes cluster or in etcd will be put right there.
    async fn start(&mut self, rules: Option<Arc<Ruleset>>) -> anyhow::Result<()> {
        self.machine.begin().await?;
        self.take_rules(rules);
        for network in &self.networks {
            if let (Err(refused), StateConfig::File(_)) =
                (network.check(&network.cluster, &self.machine.tables), &network.config.state)
            {
                bail!("{refused}");
            }
        }
        self.settle().await;
        for network in &self.networks {
            if network.cluster.policy.is_some() {
                // Nobody knows what has changed while there was no agent.
                network.flush_flows(&mut self.machine);
            }
            tracing::info!(
                node = network.config.node.name,
                network = network.config.network.name,
                device = network.config.device_over(network.cluster.own.vtep),
                nodes = network.cluster.remote_nodes(),
                "running"
            );
        }
        Ok(())
    }

    /// Takes in what happened and acts on it. `reload`: the networks whose sources have news.
    async fn news(&mut self, reload: &[usize], touched: &Touched) -> anyhow::Result<()> {
        let now = Instant::now();
        let due = self.wake_at().is_some_and(|due| due <= now);
        let ways = self.machine.forget_ways(touched);
        self.machine.stale |= touched.lost;
        if touched.policies {
            self.machine.read_policies().await;
        }
        if touched.traffic {
            self.machine.traffic = None;
        }
        let mut reloaded = false;
        for network in reload {
            if let Some(network) = self.networks.get_mut(*network) {
                reloaded |= network.reload(&mut self.machine)?;
            }
        }
        let stale = self.machine.stale;
        if reloaded || touched.changed || touched.policies || touched.traffic || ways || stale || due {
            self.settle().await;
        }
        Ok(())
    }

    /// Rounds until nothing differs any more.
    async fn settle(&mut self) {
        for _ in 0..ROUNDS {
            match self.round().await {
                Ok(changed) => {
                    self.error = None;
                    if !changed {
                        break;
                    }
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if self.error.as_ref() != Some(&reason) {
                        tracing::error!("cannot reconcile, what is there stays: {reason}");
                    }
                    self.error = Some(reason);
                    break;
                }
            }
        }
        if let Err(error) = self.write_status() {
            tracing::warn!("{error:#}");
        }
    }

    /// Whether conntrack takes connections back otherwise than the programs were told.
    fn settings_changed(&self) -> bool {
        self.runs(Fastpath::Verified) && self.machine.settings_changed()
    }

    /// Whether a network's fast path runs in this mode.
    fn runs(&self, mode: Fastpath) -> bool {
        self.networks.iter().any(|network| network.config.network.running() == mode)
    }

    /// Whether any network has a fast path.
    fn is_fast(&self) -> bool {
        self.networks.iter().any(Network::is_fast)
    }

    /// When to act without being told.
    fn wake_at(&self) -> Option<Instant> {
        let recent = self.networks.iter().filter_map(|network| network.recent.next_due());
        self.machine.wake_at().into_iter().chain(recent).min()
    }

    /// Takes in what packet filters do; whether that is new.
    fn take_rules(&mut self, rules: Option<Arc<Ruleset>>) -> bool {
        let verified = self.runs(Fastpath::Verified);
        self.machine.take_rules(rules, verified)
    }
}
