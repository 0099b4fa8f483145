//! Follows the nodes of the API server through everything that may happen to it: list, then watch,
//! then take up the watch where it ended, and begin anew when that is too long ago.
//!
//! Our own rather than `kube::runtime`'s watcher: that one neither falls back from streaming lists
//! nor lists anew when the server refuses a version with a status instead of an event.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::Settings;
use super::api::{Api, Event, Events, Failure, WATCH_FOR};
use super::assemble::Mirror;
use super::node::{NodeObject, Peer};
use crate::source::Contact;
use crate::source::outage::{Outage, Pause};

/// Longest time between two of the nodes that a streaming list begins with, and for all of them. A
/// server that does not know streaming lists may send nodes and never say that these were all.
const INITIAL_SILENCE: Duration = Duration::from_secs(10);
const INITIAL_NODES: Duration = Duration::from_secs(60);
/// Longest silence of a watch whose connection is not dead: it may end that much later than agreed.
pub(super) const SILENCE: Duration = WATCH_FOR.saturating_add(Duration::from_secs(15));
/// Longest silence of a server that has sent a bookmark: it sends one every minute.
const BOOKMARK_SILENCE: Duration = Duration::from_secs(150);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A watch that ends sooner than this has done no good.
const SHORT: Duration = Duration::from_secs(1);
/// HTTP status of a version that the server has forgotten.
pub(super) const GONE: u16 = 410;

/// News from the API server.
#[derive(Debug)]
pub(super) enum News {
    /// These are all nodes.
    All(Mirror),
    /// This is the own node now, or there is none.
    Own(Option<Box<NodeObject>>),
    /// Another node is new or different.
    Peer(String, Peer),
    /// Another node is gone.
    Gone(String),
}

/// Follows the nodes.
pub(super) struct Watcher {
    api: Api,
    settings: Settings,
    out: mpsc::Sender<News>,
    outage: Outage,
    pause: Pause,
}

/// Nobody listens any more.
struct Closed;

enum End {
    Failed(Failure),
    Closed,
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<Closed> for End {
    fn from(Closed: Closed) -> Self {
        Self::Closed
    }
}

impl Watcher {
    /// Sends news to `out`, and tells `contact` whether the API answers.
    pub(super) fn new(api: Api, settings: Settings, contact: Contact, out: mpsc::Sender<News>) -> Self {
        Self {
            api,
            settings,
            out,
            outage: Outage::of("the Kubernetes API", contact),
            pause: Pause::up_to(LONGEST_PAUSE),
        }
    }

    /// Goes on until nobody listens any more.
    pub(super) async fn run(mut self) {
        let mut version = None;
        loop {
            let resumed = version.is_some();
            match self.session(&mut version).await {
                Ok(()) => {}
                Err(End::Closed) => return,
                Err(End::Failed(failure)) => {
                    if failure.code() == Some(GONE) {
                        tracing::debug!("the watch is too old, listing all nodes again");
                        version = None;
                        self.pause.place_lost(resumed);
                    } else {
                        self.outage.failed(&failure);
                    }
                }
            }
            self.pause.wait().await;
        }
    }

    /// One watch, from where the last one ended or from the beginning.
    async fn session(&mut self, version: &mut Option<String>) -> Result<(), End> {
        let events = match version {
            Some(version) => self.api.watch(version).await?,
            None => self.begin(version).await?,
        };
        self.outage.answered();
        let started = Instant::now();
        let ended = self.follow(events, version).await;
        if started.elapsed() >= SHORT {
            self.pause.reset();
        }
        ended
    }

    /// All nodes; then the watch that follows. A streaming list costs the server and us least:
    /// nodes come one by one. Servers that do not have them refuse (422), and so does a new server
    /// over an old store (500) or one that has lost its place (410).
    async fn begin(&mut self, version: &mut Option<String>) -> Result<Events, End> {
        match self.stream().await {
            Ok((mirror, at, events)) => {
                self.send(News::All(mirror)).await?;
                *version = Some(at);
                return Ok(events);
            }
            Err(failure) if matches!(failure.code(), Some(GONE | 422 | 500)) => {
                tracing::debug!(%failure, "no streaming list, listing instead");
            }
            Err(failure) => return Err(failure.into()),
        }
        let (mirror, at) = self.list().await?;
        self.send(News::All(mirror)).await?;
        let events = self.api.watch(version.insert(at)).await?;
        Ok(events)
    }

    async fn stream(&self) -> Result<(Mirror, String, Events), Failure> {
        let mut events = self.api.stream().await?;
        let mut mirror = Mirror::default();
        let latest = Instant::now() + INITIAL_NODES;
        let mut patience = Instant::now() + INITIAL_SILENCE;
        loop {
            let Ok(event) = timeout_at(patience.min(latest), events.next()).await else {
                let message = "nodes without an end".to_owned();
                return Err(Failure::Refused { code: 422, message });
            };
            match event {
                Some(event) => match event? {
                    Event::Put(node) => {
                        patience = Instant::now() + INITIAL_SILENCE;
                        self.take_in(&mut mirror, *node);
                    }
                    Event::Gone(node) => self.forget(&mut mirror, &node.metadata.name),
                    Event::Reached { version, complete: true } => return Ok((mirror, version, events)),
                    Event::Reached { .. } => {}
                },
                None => return Err(Failure::Broken("the list of nodes broke off".into())),
            }
        }
    }

    async fn list(&self) -> Result<(Mirror, String), Failure> {
        let (mut mirror, mut next) = (Mirror::default(), None);
        loop {
            let page = self.api.page(next).await?;
            page.items.into_iter().for_each(|node| self.take_in(&mut mirror, node));
            if page.metadata.next.is_empty() {
                return Ok((mirror, page.metadata.resource_version));
            }
            next = Some(page.metadata.next);
        }
    }

    async fn follow(&mut self, mut events: Events, version: &mut Option<String>) -> Result<(), End> {
        let mut silence = SILENCE;
        let mut renewals = self.api.renewals();
        renewals.mark_unchanged();
        loop {
            let event = tokio::select! {
                event = timeout(silence, events.next()) => event,
                _ = renewals.changed() => return Ok(()),
            };
            let Ok(event) = event else {
                return Err(Failure::Broken("the watch is silent".into()).into());
            };
            let Some(event) = event else { return Ok(()) };
            let (at, news) = match event? {
                Event::Put(node) => (node.metadata.resource_version.clone(), Some(self.put(*node))),
                Event::Gone(node) => (node.metadata.resource_version.clone(), Some(self.gone(&node))),
                Event::Reached { version, .. } => {
                    silence = silence.min(BOOKMARK_SILENCE);
                    (version, None)
                }
            };
            *version = Some(at).filter(|at| !at.is_empty());
            if let Some(news) = news {
                self.send(news).await?;
            }
        }
    }

    fn is_own(&self, name: &str) -> bool {
        name == self.settings.viewer.node
    }

    fn read(&self, node: &NodeObject) -> Peer {
        Peer::read(node, &self.settings.names, self.settings.viewer.vni)
    }

    fn take_in(&self, mirror: &mut Mirror, node: NodeObject) {
        if self.is_own(&node.metadata.name) {
            mirror.own = Some(node);
        } else {
            let peer = self.read(&node);
            mirror.peers.insert(node.metadata.name, peer);
        }
    }

    fn forget(&self, mirror: &mut Mirror, name: &str) {
        if self.is_own(name) {
            mirror.own = None;
        } else {
            mirror.peers.remove(name);
        }
    }

    fn put(&self, node: NodeObject) -> News {
        if self.is_own(&node.metadata.name) {
            return News::Own(Some(Box::new(node)));
        }
        let peer = self.read(&node);
        News::Peer(node.metadata.name, peer)
    }

    fn gone(&self, node: &NodeObject) -> News {
        let name = &node.metadata.name;
        if self.is_own(name) { News::Own(None) } else { News::Gone(name.clone()) }
    }

    async fn send(&self, news: News) -> Result<(), Closed> {
        self.out.send(news).await.map_err(|_| Closed)
    }
}
