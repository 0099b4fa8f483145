//! The loop: wait for news, look, plan, change what differs, write down how it went.
//!
//! [`Machine`] is what all networks share, [`Network`] what each has for itself. A network begins as
//! [`Pending`] and ends as [`Leaving`]; the configuration is watched by `watch`, and its changes
//! are taken in by `reconfigure`.

mod accelerate;
mod collide;
mod connectivity;
mod describe;
mod every;
mod feed;
mod health;
mod leaving;
mod look;
mod machine;
mod metrics;
mod network;
mod pending;
mod pins;
mod pods;
mod reconfigure;
mod report;
mod retries;
mod round;
mod segment;
pub(crate) mod survey;
mod tunnels;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch as latest};
use tokio::time::Instant;

use crate::config::{Config, Fastpath, NodeConfig};
use crate::datapath::{self, Datapath, KernelFeatures, Tcx};
use crate::kernel::ruleset::{self, Ruleset};
use crate::kernel::{Events, Netlink, Touched};
use crate::ownership;
use crate::preflight;
use crate::report::{Facts, Pulse};
use crate::rights;
use crate::status::{Lock, StatusFile};
use connectivity::Connectivity;
use every::Every;
use leaving::Leaving;
use machine::Machine;
use network::Network;
use pending::{Pending, Told};
use pins::PinWatch;

/// How long news is collected: a veth that is made comes with a handful of notifications. Where rounds take
/// longer, so does this, up to a limit: a storm of news costs no more than half of a CPU.
const COLLECT: Duration = Duration::from_millis(2);
const COLLECT_LONGEST: Duration = Duration::from_millis(20);
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
    /// As read last, with the section `[node]` of the beginning.
    config: Config,
    /// The section `[node]` as read last.
    seen_node: Arc<NodeConfig>,
    /// Why the configuration as it is now was refused.
    config_error: Option<String>,
    machine: Machine,
    /// Those that have a cluster, in the order of the configuration.
    networks: Vec<Network>,
    /// Those whose source has none yet.
    pending: Vec<Pending>,
    /// Those that are not configured any more.
    leaving: Vec<Leaving>,
    /// Devices whose networks are not configured one by one.
    every: Every,
    told: Told,
    /// What packet filters do, once it is known.
    rules: latest::Receiver<Option<Arc<Ruleset>>>,
    /// Whether `rules` are followed: without a fast path nobody asks.
    follows_rules: bool,
    /// Whether the only network has not run yet: what is wrong with it ends the agent.
    is_alone: bool,
    /// Why nothing could be done in the last round.
    error: Option<String>,
    /// How long the last rounds took.
    settled_in: Duration,
    started: u64,
    kernel: String,
    features: KernelFeatures,
    /// Capabilities that it has kept.
    rights: Vec<String>,
    status: StatusFile,
    /// What whoever asks for metrics gets to know, if anybody may ask.
    metrics: Option<latest::Sender<Arc<Facts>>>,
    /// Probes of other nodes, if they are asked for.
    connectivity: Option<Connectivity>,
    pulse: Pulse,
    /// When what happened was noticed, until everything is in step with it.
    noticed: Option<Instant>,
}

/// Runs until SIGTERM or SIGINT, which leave everything in place. `path` is where `config` was read, if it is to
/// be read anew when it changes.
pub async fn run(config: Config, path: Option<PathBuf>) -> anyhow::Result<()> {
    let node = Arc::clone(&config.node);
    preflight::check_privileges()?;
    if config.is_fast() {
        preflight::check_kernel()?;
    }
    datapath::check_pin_dir(&node.pin_dir)?;
    // Before there is a thread that would keep more.
    let rights = rights::give_up(&node, config.is_fast())?;
    let _lock = Lock::wait(&node.run_dir, PREDECESSOR).await?;
    let health = node.healthz.map(health::serve).transpose()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let netlink = Netlink::open()?;
    let mut events = Events::subscribe()?;
    let (told, mut news) = mpsc::unbounded_channel();
    let (pins, mut unpinned) = PinWatch::new();
    let features = KernelFeatures::probe();
    let (tcx, mut reattached) = Tcx::new(features.tcx, &ownership::node_pin_dir(&node.pin_dir))?;
    let machine = Machine::new(netlink, pins, tcx)?;
    let mut configured = match path {
        Some(path) => watch::follow(path, config.clone()),
        None => mpsc::channel(1).1,
    };
    let mut agent = Agent::new(config, machine, told, features, rights)?;
    agent.serve_metrics()?;
    // A bypass is not opened before it is known that it may be.
    tokio::select! {
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        _ = agent.rules.wait_for(Option::is_some) => {}
    }
    agent.start().await?;
    agent.keep_watch();
    let (mut resync, mut peek, mut learn) =
        (Instant::now() + RESYNC, Instant::now() + PEEK, Instant::now() + LEARN);
    loop {
        health.iter().for_each(|health| drop(health.send_replace(agent.health())));
        agent.pulse.turn();
        let wake = agent.wake_at().into_iter().fold(resync.min(peek).min(learn), Instant::min);
        let (mut touched, mut reload, mut read) = (Touched::default(), vec![], None);
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
            Some(now) = configured.recv() => read = Some(now),
            Ok(()) = agent.rules.changed() => agent.machine.doubt(),
            () = tokio::time::sleep_until(wake) => {}
        }
        agent.noticed = Some(Instant::now());
        tokio::time::sleep(agent.collect()).await;
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
            touched.changed |= agent.filters_changed(false) | agent.tables_vanished();
            learn = now + LEARN;
        }
        let mut settings = false;
        if now >= peek {
            (settings, peek) = (agent.settings_changed(), now + PEEK);
            touched.changed |= agent.filters_changed(true);
        }
        touched.changed |= settings;
        let rules = agent.rules.borrow_and_update().clone();
        touched.changed |= agent.take_rules(rules);
        if let Some(read) = read {
            agent.reconfigure(read).await?;
        }
        agent.news(&reload, &touched).await?;
        agent.keep_watch();
        agent.tell();
    }
    tracing::info!("stopped; the overlay goes on as it is");
    Ok(())
}

impl Agent {
    fn new(
        config: Config,
        machine: Machine,
        told: Told,
        features: KernelFeatures,
        rights: Vec<String>,
    ) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let pulse = Pulse::new(machine.retries.attempts.clone());
        let follows_rules = config.is_fast();
        Ok(Self {
            node: Arc::clone(&config.node),
            seen_node: Arc::clone(&config.node),
            config_error: None,
            machine,
            networks: vec![],
            pending: vec![],
            leaving: vec![],
            every: Every::default(),
            told,
            rules: if follows_rules { ruleset::follow() } else { latest::channel(None).1 },
            follows_rules,
            is_alone: config.networks.len() == 1,
            error: None,
            settled_in: Duration::ZERO,
            started: now.map_or(0, |elapsed| elapsed.as_secs()),
            kernel: preflight::kernel_release()?,
            features,
            rights,
            status: StatusFile::new(&config.node.run_dir),
            metrics: None,
            connectivity: config.node.connectivity.map(Connectivity::start),
            pulse,
            noticed: None,
            config,
        })
    }

    /// The first rounds, with those networks whose clusters are known by now.
    ///
    /// # Errors
    /// As [`Agent::take_up`].
    async fn start(&mut self) -> anyhow::Result<()> {
        self.note_configured();
        self.machine.begin().await?;
        self.config = self.completed(self.config.clone());
        self.note_configured();
        let rules = self.rules.borrow_and_update().clone();
        self.take_rules(rules);
        self.machine.look_for_filters(true);
        self.find_leftovers();
        if !self.leaving.is_empty() {
            // Names and numbers of what is gone may be wanted anew.
            self.settle().await;
        }
        self.config.networks.clone().into_iter().for_each(|view| self.begin(view));
        self.put_in_order();
        self.take_up()?;
        self.settle().await;
        self.greet();
        Ok(())
    }

    /// Takes in what happened and acts on it. `reload`: the networks whose sources have news.
    async fn news(&mut self, reload: &[String], touched: &Touched) -> anyhow::Result<()> {
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
        for network in
            self.networks.iter_mut().filter(|network| reload.iter().any(|name| name == network.name()))
        {
            reloaded |= network.reload(&mut self.machine)?;
        }
        reloaded |= self.take_up()? || !reload.is_empty();
        let stale = self.machine.stale;
        if reloaded || touched.changed || touched.policies || touched.traffic || ways || stale || due {
            self.settle().await;
            if self.follow_devices().await? {
                self.settle().await;
            }
            self.greet();
        }
        Ok(())
    }

    /// How long to collect news.
    fn collect(&self) -> Duration {
        self.settled_in.clamp(COLLECT, COLLECT_LONGEST)
    }

    /// Rounds until nothing differs any more. There is none before a network can run: what an earlier agent has
    /// left goes on as it is.
    async fn settle(&mut self) {
        let begun = Instant::now();
        let is_idle = self.networks.is_empty() && self.leaving.is_empty();
        if is_idle {
            self.machine.look_again().await;
        }
        for _ in 0..if is_idle { 0 } else { ROUNDS } {
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
        self.settled_in = begun.elapsed();
        let lag = self.noticed.take().map(|noticed| noticed.elapsed());
        self.pulse.settled(self.settled_in, lag, self.error.is_some());
    }

    /// Whether a setting is otherwise than the programs were told.
    fn settings_changed(&self) -> bool {
        let filters = || self.machine.filters != self.bridge_filters();
        self.runs(Fastpath::Verified) && (self.machine.settings_changed() || filters())
    }

    /// Whether a packet filter has come or gone of which no notice is given; see [`Machine::look_for_filters`].
    fn filters_changed(&mut self, programs: bool) -> bool {
        self.runs(Fastpath::Verified) && self.machine.look_for_filters(programs)
    }

    /// Vouches for what the programs know of filters, if it is followed.
    fn keep_watch(&mut self) {
        if self.rules.has_changed().is_ok() {
            self.machine.keep_watch();
        }
    }

    /// When to act without being told.
    fn wake_at(&self) -> Option<Instant> {
        let recent = self.networks.iter().filter_map(|network| network.recent.next_due());
        let pending = self.pending.iter().filter_map(Pending::wake_at);
        self.machine.wake_at().into_iter().chain(recent).chain(pending).min()
    }

    /// Takes in what packet filters do; whether that is new.
    fn take_rules(&mut self, rules: Option<Arc<Ruleset>>) -> bool {
        let verified = self.runs(Fastpath::Verified);
        self.machine.take_rules(rules, verified)
    }
}
