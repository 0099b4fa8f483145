//! The loop: wait for news, look, plan, change what differs, write down how it went.

mod describe;
mod feed;
mod health;
mod look;
mod pins;
mod pods;
mod report;
mod retries;
mod round;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use futures_util::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::cluster::ClusterState;
use crate::config::{Fastpath, StateConfig, View};
use crate::datapath::{self, Datapath, KernelFeatures, Tcx};
use crate::kernel::ruleset::{self, Ruleset};
use crate::kernel::sysctl;
use crate::kernel::{Events, Foreign, Netlink, NextHop, Policy, Tables, Touched};
use crate::net::{IfIndex, Mtu, is_link_local};
use crate::node::Table;
use crate::pods::Recent;
use crate::preflight;
use crate::source::Snapshot;
use crate::status::{Lock, StatusFile};
use crate::underlay::Underlay;
use crate::xdp::{Declined, Place};
use feed::Feed;
use pins::PinWatch;
use retries::Retries;

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
    config: View,
    netlink: Netlink,
    tables: Tables,
    /// The tables may lack something: dump them before the next round.
    stale: bool,
    cluster: ClusterState,
    /// Where the network runs, once for each of [`ClusterState::owns`].
    underlays: Vec<Underlay>,
    /// Its devices by name, as they were found last.
    devices: BTreeMap<String, IfIndex>,
    next_hops: BTreeMap<IpAddr, Option<NextHop>>,
    /// Path MTUs that the kernel has learnt.
    learnt: BTreeMap<IpAddr, Mtu>,
    policies: Vec<Policy>,
    /// Queueing disciplines and filters of others; `None`: to be read anew.
    traffic: Option<Vec<Foreign>>,
    tcx: Tcx,
    /// What of others the fast path would pass by.
    hooked: Vec<Foreign>,
    /// What packet filters do that the fast path would skip.
    ruleset: Arc<Ruleset>,
    datapath: Option<Datapath>,
    /// Tells when pins of it are removed.
    pins: PinWatch,
    /// Where XDP is wanted, or why not; nothing before the programs are loaded.
    xdp: Option<Result<Place, Declined>>,
    /// For the mark that XDP leaves with packets.
    secret: u32,
    /// Whether conntrack takes TCP connections back that have bypassed it.
    takes_back: bool,
    retries: Retries,
    /// What has happened to pods lately.
    recent: Recent,
    /// Why this kernel's nf_tables cannot guard the tunnel's port.
    no_guard: Option<String>,
    /// Addresses that other nodes know this one by, or did.
    known_by: BTreeSet<IpAddr>,
    /// What is known to be installed; `None`: nothing is known.
    table: Option<Option<Table>>,
    /// Files for pods, as they were last written.
    files: BTreeMap<PathBuf, String>,
    reload_error: Option<String>,
    plan_error: Option<String>,
    started: u64,
    kernel: String,
    features: KernelFeatures,
    status: StatusFile,
}

/// Runs until SIGTERM or SIGINT, which leave everything in place.
pub async fn run(mut config: View) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    if config.network.fastpath != Fastpath::Off {
        preflight::check_kernel()?;
    }
    datapath::check_pin_dir(&config.node.pin_dir)?;
    let _lock = Lock::wait(&config.node.run_dir, PREDECESSOR).await?;
    let health = config.node.healthz.map(health::serve).transpose()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let netlink = Netlink::open(&config.network.name)?;
    let mut events = Events::subscribe()?;
    let mut rules = match config.network.fastpath {
        Fastpath::Off => watch::channel(None).1,
        _ => ruleset::follow(),
    };
    let mut tables = netlink.dump().await?;
    let begin = async {
        let mut feed = Feed::open(&mut config, &netlink, &tables).await?;
        let waits = |reason: &str| health::waits(&health, reason);
        let cluster = feed.first(&config, &mut events, &mut tables, &waits).await?;
        anyhow::Ok((feed, cluster))
    };
    let (mut feed, cluster) = tokio::select! {
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
        never = health::lives(&health) => match never {},
        begun = begin => begun?,
    };
    let (pins, mut unpinned) = PinWatch::new();
    let features = KernelFeatures::probe();
    let (tcx, mut reattached) = Tcx::new(features.tcx, &config.pins())?;
    let mut agent = Agent::new(config, netlink, tables, cluster, pins, tcx, features)?;
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
        let (mut touched, mut reload) = (Touched::default(), false);
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = feed.snapshots.changed() => {
                changed.context("the state source has stopped")?;
                reload = true;
            }
            event = events.next(&mut agent.tables, &mut touched) => event.context("netlink notifications have stopped")?,
            Some(()) = unpinned.recv() => touched.changed = true,
            Some(()) = reattached.recv() => touched.changed = true,
            Ok(()) = rules.changed() => {}
            () = tokio::time::sleep_until(wake) => {}
        }
        tokio::time::sleep(COLLECT).await;
        while let Some(Some(())) = events.next(&mut agent.tables, &mut touched).now_or_never() {}
        let snapshot = reload.then(|| feed.snapshots.borrow_and_update().clone());
        let now = Instant::now();
        if now >= resync {
            (agent.stale, resync) = (true, now + RESYNC);
            agent.next_hops.clear();
            agent.traffic = None;
            agent.read_policies().await;
        }
        if now >= learn {
            touched.destinations.extend(agent.learnt_anew().await);
            learn = now + LEARN;
        }
        let mut settings = false;
        if now >= peek {
            (settings, peek) = (agent.settings_changed(), now + PEEK);
        }
        touched.changed |= settings;
        touched.changed |= agent.take_rules(rules.borrow_and_update().clone());
        agent.news(snapshot, &touched).await;
        feed.tell(&agent.config, &agent.tables);
    }
    tracing::info!("stopped; the overlay goes on as it is");
    Ok(())
}

/// A random number that is not zero.
fn secret() -> anyhow::Result<u32> {
    Ok(getrandom::u32().context("the kernel has no random number")?.max(1))
}

impl Agent {
    fn new(
        config: View,
        netlink: Netlink,
        tables: Tables,
        cluster: ClusterState,
        pins: PinWatch,
        tcx: Tcx,
        features: KernelFeatures,
    ) -> anyhow::Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Self {
            netlink,
            tables,
            stale: true,
            cluster,
            underlays: vec![],
            devices: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            learnt: BTreeMap::new(),
            policies: vec![],
            traffic: None,
            tcx,
            hooked: vec![],
            ruleset: Arc::default(),
            datapath: None,
            pins,
            xdp: None,
            secret: secret()?,
            takes_back: false,
            retries: Retries::default(),
            recent: Recent::default(),
            no_guard: None,
            known_by: BTreeSet::new(),
            table: None,
            files: BTreeMap::new(),
            reload_error: None,
            plan_error: None,
            started: now.map_or(0, |elapsed| elapsed.as_secs()),
            kernel: preflight::kernel_release()?,
            features,
            status: StatusFile::new(&config.node.run_dir),
            config,
        })
    }

    /// The first rounds. What is wrong with a file from the start ends the agent; what is wrong in
    /// a Kubernetes cluster or in etcd will be put right there.
    async fn start(&mut self, rules: Option<Arc<Ruleset>>) -> anyhow::Result<()> {
        self.tables = self.netlink.dump().await?;
        self.read_policies().await;
        self.take_rules(rules);
        self.stale = false;
        if let (Err(refused), StateConfig::File(_)) = (self.check(&self.cluster), &self.config.state) {
            bail!("{refused}");
        }
        self.settle().await;
        if self.cluster.policy.is_some() {
            // Nobody knows what has changed while there was no agent.
            self.flush_flows();
        }
        let network = &self.config.network;
        tracing::info!(
            node = self.config.node.name,
            network = network.name,
            device = self.config.device_over(self.cluster.own.vtep),
            nodes = self.cluster.remote_nodes(),
            "running"
        );
        Ok(())
    }

    /// Takes in what happened and acts on it.
    async fn news(&mut self, snapshot: Option<Snapshot>, touched: &Touched) {
        let now = Instant::now();
        let due = self.wake_at().is_some_and(|due| due <= now);
        let ways = self.forget_ways(touched);
        self.stale |= touched.lost;
        if touched.policies {
            self.read_policies().await;
        }
        if touched.traffic {
            self.traffic = None;
        }
        if let Some(snapshot) = snapshot {
            self.reload(snapshot);
        } else if !(touched.changed || touched.policies || touched.traffic || ways || self.stale || due) {
            return;
        }
        self.settle().await;
    }

    /// Takes on a new cluster if it can be planned for; the one before stays in force otherwise.
    fn reload(&mut self, snapshot: Snapshot) {
        let checked = snapshot.and_then(|cluster| self.check(&cluster).map(|()| cluster));
        match checked {
            Ok(cluster) => {
                let rules_changed = cluster.policy.is_some() && cluster.policy != self.cluster.policy;
                self.cluster.policy = cluster.policy;
                if self.cluster != cluster {
                    tracing::info!(nodes = cluster.remote_nodes(), "cluster state reloaded");
                    self.cluster = cluster;
                }
                if rules_changed {
                    self.flush_flows();
                }
                self.reload_error = None;
            }
            Err(reason) => {
                tracing::error!("cluster state refused, the one before stays in force: {reason}");
                self.reload_error = Some(reason);
            }
        }
    }

    /// Rounds until nothing differs any more.
    async fn settle(&mut self) {
        for _ in 0..ROUNDS {
            match self.round().await {
                Ok(changed) => {
                    self.plan_error = None;
                    if !changed {
                        break;
                    }
                }
                Err(error) => {
                    let reason = format!("{error:#}");
                    if self.plan_error.as_ref() != Some(&reason) {
                        tracing::error!("cannot reconcile, what is there stays: {reason}");
                    }
                    self.plan_error = Some(reason);
                    break;
                }
            }
        }
        if let Err(error) = self.write_status() {
            tracing::warn!("{error:#}");
        }
    }

    /// Closes all bypasses, because rules for packets between pods may have changed.
    fn flush_flows(&mut self) {
        let Some(datapath) = self.datapath.as_mut() else { return };
        match datapath.flush_flows() {
            // In a Kubernetes cluster they do so all the time.
            Ok(()) if matches!(self.config.state, StateConfig::Kubernetes(_)) => {
                tracing::debug!("rules may have changed: every flow meets the host stack again");
            }
            Ok(()) => tracing::info!("rules have changed: every flow meets the host stack again"),
            Err(error) => tracing::error!("flows go on bypassing rules that have changed: {error:#}"),
        }
    }

    /// Whether conntrack takes connections back otherwise than the programs were told.
    fn settings_changed(&self) -> bool {
        self.config.network.fastpath == Fastpath::Verified && sysctl::takes_back() != self.takes_back
    }

    /// When to act without being told.
    fn wake_at(&self) -> Option<Instant> {
        let stale = self.stale.then(|| Instant::now() + PAUSE);
        self.retries.next_due().into_iter().chain(stale).chain(self.recent.next_due()).min()
    }

    /// Forgets ways to VTEPs that may be others now; whether there were any.
    fn forget_ways(&mut self, touched: &Touched) -> bool {
        let before = self.next_hops.len();
        let all = touched.lost || touched.routing || touched.links.iter().any(|link| self.leads_on(*link));
        self.next_hops.retain(|vtep, _| !(all || touched.destinations.iter().any(|to| to.contains(*vtep))));
        self.next_hops.len() != before
    }

    /// Whether routes may lead out of `link`: not out of a pod's, of which there are many.
    fn leads_on(&self, link: IfIndex) -> bool {
        let routed = self.tables.addresses_of(link).any(|address| !is_link_local(address.ip));
        routed
            || self.next_hops.values().flatten().any(|hop| hop.ifindex == link)
            || self.tables.routes.iter().any(|route| route.legs.contains(&link))
    }
}
