//! Follows etcd through everything that may happen to it, keeps this node's key, and makes
//! snapshots: list and claim, then watch, then take up the watch where it ended, and begin anew when
//! that is too long ago or the own key is not what it should be.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::watch as latest;
use tokio::time::{Instant, sleep_until};

use super::Settings;
use super::api::{Changes, Connection, Failure, Members};
use super::claim::{Claimant, Lease, OwnKey, Step, TTL};
use super::layout::{Attributes, Entries, Subnets};
use super::range::Network;
use crate::local::Local;
use crate::source::Contact;
use crate::source::Snapshot;
use crate::source::kubernetes::assemble::{LeftOut, Mirror, Own, assemble};
use crate::source::kubernetes::node::Side;
use crate::source::outage::{Outage, Pause};
use crate::text::Text;

/// How long news are collected into one snapshot, in units of the time that making one takes.
const COLLECT_TIMES: u32 = 10;
const COLLECT_LEAST: Duration = Duration::from_millis(5);
const COLLECT_MOST: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);
/// A watch that ends sooner than this has done no good.
const SHORT: Duration = Duration::from_secs(1);
/// Time between two times that the own key is written: two nodes that are given the same public
/// address would do nothing else.
const WRITE_AGAIN: Duration = Duration::from_secs(2);
/// Steps to a key of one's own before the way there is begun anew, after a pause.
const STEPS: usize = 20;

/// Follows, keeps and makes snapshots.
pub(super) struct Follower {
    members: Members,
    settings: Settings,
    network: Network,
    local: latest::Receiver<Local>,
    /// As last seen in `local`.
    addresses: Vec<IpAddr>,
    out: latest::Sender<Snapshot>,
    entries: Entries,
    /// Revision that `entries` show; `None` before they are listed.
    since: Option<i64>,
    /// The own key, or why there is none.
    own: Result<OwnKey, String>,
    previous: Option<Subnets>,
    written: Option<(String, Attributes)>,
    lease: Option<Lease>,
    wrote: Option<Instant>,
    /// When to make a snapshot; `None` when nothing has changed.
    due: Option<Instant>,
    collect: Duration,
    left_out: LeftOut,
    /// What is wrong with the network's parameters.
    trouble: Option<String>,
    outage: Outage,
    pause: Pause,
}

impl Follower {
    /// Sends snapshots to `out`, and tells `contact` whether etcd answers; `previous` is what this node had before.
    pub(super) fn new(
        members: Members,
        settings: Settings,
        previous: Option<Subnets>,
        local: latest::Receiver<Local>,
        contact: Contact,
        out: latest::Sender<Snapshot>,
    ) -> Self {
        let (addresses, network) = (local.borrow().addresses(), settings.network.clone());
        Self {
            members,
            settings,
            network,
            local,
            addresses,
            out,
            entries: Entries::new(),
            since: None,
            own: Err("etcd has not answered yet".to_owned()),
            previous,
            written: None,
            lease: None,
            wrote: None,
            due: None,
            collect: COLLECT_LEAST,
            left_out: LeftOut::new(),
            trouble: None,
            outage: Outage::of("etcd", contact),
            pause: Pause::up_to(LONGEST_PAUSE),
        }
    }

    /// Goes on until nobody wants snapshots.
    pub(super) async fn run(mut self) {
        let out = self.out.clone();
        tokio::select! {
            () = out.closed() => {}
            () = self.go_on() => {}
        }
    }

    async fn go_on(&mut self) {
        loop {
            let started = Instant::now();
            let resumed = self.since.is_some();
            match self.session().await {
                Ok(()) => {}
                Err(Failure::Compacted) => {
                    tracing::debug!("the watch is too old, listing all nodes again");
                    self.since = None;
                    self.pause.place_lost(resumed);
                }
                // Tokens last some minutes, connections as long as nothing happens to them.
                Err(Failure::Forgotten) if started.elapsed() >= LONGEST_PAUSE => {}
                Err(failure) => self.outage.failed(&failure),
            }
            if started.elapsed() >= SHORT {
                self.pause.reset();
            }
            self.pause.wait().await;
        }
    }

    /// One connection. Its end is good news only if the machine's addresses have changed: those
    /// from an address that is gone are dead, and a client that only listens would not learn of it.
    async fn session(&mut self) -> Result<(), Failure> {
        let connection = self.members.connect().await?;
        loop {
            let since = match self.since {
                Some(since) => since,
                None => self.settle(&connection).await?,
            };
            let mut changes = connection.watch(since).await?;
            let ended = self.follow(&mut changes).await;
            self.since = self.since.map(|_| changes.since());
            if ended? == Next::Connect {
                return Ok(());
            }
        }
    }

    /// Lists all nodes, and claims a key until one stands or there can be none.
    async fn settle(&mut self, connection: &Connection) -> Result<i64, Failure> {
        for _ in 0..STEPS {
            self.read_network(connection.config().await?.as_ref());
            let listed = connection.list().await?;
            self.entries = listed.entries;
            self.due = Some(Instant::now());
            match self.step() {
                Err(reason) => self.own = Err(reason),
                Ok(Step::Stand(own)) => self.stand(own),
                Ok(step) => {
                    self.take(connection, step).await?;
                    continue;
                }
            }
            self.since = Some(listed.revision);
            return Ok(listed.revision);
        }
        Err(Failure::Broken(format!("others were faster {STEPS} times in a row")))
    }

    fn step(&self) -> Result<Step, String> {
        let local = self.local.borrow().clone();
        let claimant = Claimant {
            viewer: &self.settings.viewer,
            public: &self.settings.public,
            local: &local,
            previous: self.previous,
            written: self.written.as_ref(),
            lease: self.lease,
        };
        claimant.step(&self.network, &self.entries, Instant::now(), RandomState::new().hash_one(0))
    }

    /// Takes a step. Whether it was successful the next list shows.
    async fn take(&mut self, connection: &Connection, step: Step) -> Result<(), Failure> {
        if let (Some(wrote), Step::Create(..) | Step::Write(_)) = (self.wrote, &step) {
            sleep_until(wrote + WRITE_AGAIN).await;
        }
        match step {
            Step::Create(subnets, attributes) => {
                if let Some((name, _)) = &self.written {
                    tracing::warn!("this node's lease of {name} is lost, taking {subnets}");
                }
                let own = OwnKey { name: subnets.to_string(), subnets, attributes, seen: 0, lease: 0 };
                if self.write_with_new_lease(connection, own).await? {
                    tracing::info!("this node's subnet is {subnets}");
                }
            }
            Step::Write(own) => {
                if connection.put(&own.name, &own.attributes, own.lease, own.seen).await? {
                    tracing::info!("this node's key {} is written", own.name);
                    self.wrote = Some(Instant::now());
                    self.written = Some((own.name, own.attributes));
                }
            }
            Step::Remove(own, why) => {
                tracing::warn!("giving up {}: {why}", own.name);
                connection.delete(&own.name, own.seen).await?;
            }
            Step::Renew(own) => self.renew(connection, own).await?,
            Step::Stand(own) => self.stand(own),
        }
        Ok(())
    }

    /// Lets the key's lease live on, or puts a new one in its place if it is shorter than ours are.
    async fn renew(&mut self, connection: &Connection, own: OwnKey) -> Result<(), Failure> {
        let left = connection.keep_alive(own.lease).await?;
        if left >= TTL / 2 {
            self.lease = Some(Lease::new(own.lease, left, self.settings.margin, Instant::now()));
            tracing::debug!(seconds = left.as_secs(), "the lease of {} is renewed", own.name);
        } else if !left.is_zero() {
            self.write_with_new_lease(connection, own).await?;
        }
        Ok(())
    }

    /// Whether nobody was faster.
    async fn write_with_new_lease(&mut self, connection: &Connection, own: OwnKey) -> Result<bool, Failure> {
        let (id, ttl) = connection.grant(TTL).await?;
        let put = connection.put(&own.name, &own.attributes, id, own.seen).await;
        if matches!(put, Ok(true)) {
            self.wrote = Some(Instant::now());
            self.lease = Some(Lease::new(id, ttl, self.settings.margin, Instant::now()));
            self.written = Some((own.name, own.attributes));
            self.previous = Some(own.subnets);
        } else if let Err(failure) = connection.revoke(id).await {
            tracing::debug!(%failure, "a lease that nobody needs ends by itself");
        }
        put
    }

    fn stand(&mut self, own: OwnKey) {
        self.previous = Some(own.subnets);
        self.written = Some((own.name.clone(), own.attributes.clone()));
        self.own = Ok(own);
    }

    /// Takes in changes until the own key is not what it should be, or the connection ends.
    async fn follow(&mut self, changes: &mut Changes) -> Result<Next, Failure> {
        self.outage.answered();
        loop {
            let lease = self.own.as_ref().ok().map(|own| own.lease);
            let renew = self.lease.filter(|known| Some(known.id) == lease).map(|lease| lease.renew);
            tokio::select! {
                news = changes.next() => for change in news? {
                    match change.entry {
                        Some(entry) => self.entries.insert(change.name, entry),
                        None => self.entries.remove(&change.name),
                    };
                    self.touch();
                },
                changed = self.local.changed() => {
                    if changed.is_err() || self.moved() {
                        return Ok(Next::Connect);
                    }
                }
                () = at(self.due) => self.publish(),
                () = at(renew) => {}
            }
            match self.step() {
                Ok(Step::Stand(own)) => self.stand(own),
                Err(reason) => {
                    if self.own.as_ref() != Err(&reason) {
                        self.touch();
                    }
                    self.own = Err(reason);
                }
                Ok(_) => {
                    self.since = None;
                    return Ok(Next::List);
                }
            }
        }
    }

    /// Whether the machine has other addresses than before.
    fn moved(&mut self) -> bool {
        let addresses = self.local.borrow_and_update().addresses();
        self.touch();
        std::mem::replace(&mut self.addresses, addresses) != self.addresses
    }

    /// Something is different: a snapshot is due, soon.
    fn touch(&mut self) {
        let soon = Instant::now() + self.collect;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    fn publish(&mut self) {
        self.due = None;
        let started = Instant::now();
        let snapshot = match self.own.clone() {
            Ok(own) => self.assemble(&own),
            Err(reason) => Err(reason),
        };
        self.out.send_if_modified(|before| {
            let differs = *before != snapshot;
            if differs {
                *before = snapshot;
            }
            differs
        });
        self.collect = (started.elapsed() * COLLECT_TIMES).clamp(COLLECT_LEAST, COLLECT_MOST);
    }

    fn assemble(&mut self, own: &OwnKey) -> Snapshot {
        let viewer = &self.settings.viewer;
        let others = self.entries.iter().filter(|(name, _)| **name != own.name);
        let peers = others.map(|(name, entry)| (name.clone(), entry.peer(viewer.vni))).collect();
        let (cluster, left_out) = assemble(&sides(own), &Mirror { own: None, peers }, viewer)?;
        for (key, reason) in left_out.iter().filter(|(key, reason)| self.left_out.get(*key) != Some(*reason))
        {
            tracing::warn!(key, "left out, or in part: {reason}");
        }
        self.left_out = left_out;
        Ok(cluster)
    }

    /// Takes on where subnets are chosen. What devices were made with stays until the next start.
    fn read_network(&mut self, config: Option<&Text>) {
        let vni = self.settings.viewer.vni;
        let read = match config.map(Network::parse) {
            Some(Ok(network)) if network.conf.vni == vni => Ok(network),
            Some(Ok(network)) => Err(format!("the VNI is {} now: restart to follow", network.conf.vni)),
            Some(Err(reason)) => Err(reason),
            None => Err("the key is gone".to_owned()),
        };
        let trouble = match read {
            Ok(network) => {
                self.network = network;
                None
            }
            Err(reason) => Some(reason),
        };
        if let Some(reason) = trouble.as_ref().filter(|reason| self.trouble.as_ref() != Some(*reason)) {
            tracing::warn!("the network's parameters in etcd cannot be used, those before stay: {reason}");
        }
        self.trouble = trouble;
    }
}

/// What is next when a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    List,
    Connect,
}

fn sides(own: &OwnKey) -> Own {
    let OwnKey { subnets, attributes, .. } = own;
    let side = |ip: Option<IpAddr>,
                data: Option<crate::source::kubernetes::annotations::BackendData>,
                subnet| { Some(Side { vtep: ip?, mac: data?.mac, subnet: subnet? }) };
    Own {
        v4: side(attributes.public_ip.map(IpAddr::from), attributes.v4, Some(subnets.v4)),
        v6: side(attributes.public_ipv6.map(IpAddr::from), attributes.v6, subnets.v6),
        lacks: None,
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}
