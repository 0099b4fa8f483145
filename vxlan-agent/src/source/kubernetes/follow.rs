//! Makes snapshots of news, and writes what this node says of itself until the server has it.

use std::net::IpAddr;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch as latest};
use tokio::time::Instant;

use super::Settings;
use super::api::{Api, Failure};
use super::assemble::{LeftOut, Mirror, Own, assemble};
use super::node::NodeObject;
use super::rules::Count;
use super::watch::News;
use super::writer;
use crate::cluster::ClusterState;
use crate::local::Local;
use crate::source::Snapshot;

/// How long news are collected into one snapshot, in units of the time that making one takes: in
/// a storm of changes to a large cluster, snapshots cost a tenth of a CPU and no more.
const COLLECT_TIMES: u32 = 10;
const COLLECT_LEAST: Duration = Duration::from_millis(5);
const COLLECT_MOST: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

type Answer = Result<NodeObject, Failure>;

/// Makes snapshots and writes.
pub(super) struct Follower {
    api: Api,
    settings: Settings,
    local: latest::Receiver<Local>,
    /// As last seen in `local`.
    addresses: Vec<IpAddr>,
    /// If they are followed.
    rules: Option<Count>,
    out: latest::Sender<Snapshot>,
    /// Nothing before the first list.
    mirror: Option<Mirror>,
    /// How this node took part when that could last be decided.
    own: Option<Own>,
    /// As it was last said.
    trouble: Option<String>,
    /// When to make a snapshot; `None` when nothing has changed.
    due: Option<Instant>,
    collect: Duration,
    left_out: LeftOut,
    /// A patch on its way, and when another may be sent.
    writing: Option<BoxFuture<'static, Answer>>,
    write_after: Instant,
    write_pause: Duration,
    write_failed: Option<String>,
}

impl Follower {
    /// Sends snapshots to `out`.
    pub(super) fn new(
        api: Api,
        settings: Settings,
        local: latest::Receiver<Local>,
        rules: Option<Count>,
        out: latest::Sender<Snapshot>,
    ) -> Self {
        let addresses = local.borrow().addresses();
        Self {
            api,
            settings,
            local,
            addresses,
            rules,
            out,
            mirror: None,
            own: None,
            trouble: None,
            due: None,
            collect: COLLECT_LEAST,
            left_out: LeftOut::new(),
            writing: None,
            write_after: Instant::now(),
            write_pause: FIRST_PAUSE,
            write_failed: None,
        }
    }

    /// Goes on until there are no more news, or nobody wants snapshots.
    pub(super) async fn run(mut self, mut incoming: mpsc::Receiver<News>) {
        while !self.out.is_closed() {
            let due = self.due;
            tokio::select! {
                news = incoming.recv() => match news {
                    Some(news) => self.take_in(news),
                    None => return,
                },
                changed = self.local.changed() => match changed {
                    Ok(()) => self.moved(),
                    Err(_) => return,
                },
                () = changed(&mut self.rules) => self.touch(),
                answer = written(&mut self.writing) => self.answered(answer),
                () = at(due) => self.publish(),
                () = self.out.closed() => return,
            }
        }
    }

    fn take_in(&mut self, news: News) {
        let changed = match (news, &mut self.mirror) {
            (News::All(all), mirror) => {
                *mirror = Some(all);
                true
            }
            (News::Own(own), Some(mirror)) => {
                mirror.own = own.map(|own| *own);
                true
            }
            // Most news are of a kubelet that is well.
            (News::Peer(name, peer), Some(mirror)) => {
                mirror.peers.get(&name) != Some(&peer) && {
                    mirror.peers.insert(name, peer);
                    true
                }
            }
            (News::Gone(name), Some(mirror)) => mirror.peers.remove(&name).is_some(),
            (_, None) => false,
        };
        if changed {
            self.touch();
        }
    }

    /// The machine has other addresses, or another device.
    fn moved(&mut self) {
        let addresses = self.local.borrow_and_update().addresses();
        if addresses != self.addresses {
            self.addresses = addresses;
            self.api.renew();
            self.writing = None;
        }
        self.touch();
    }

    /// Something is different: a snapshot is due, soon.
    fn touch(&mut self) {
        let soon = Instant::now() + self.collect;
        self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
    }

    fn publish(&mut self) {
        self.due = None;
        let Some(mirror) = &self.mirror else { return };
        let started = Instant::now();
        let local = self.local.borrow_and_update().clone();
        let (own, patch, trouble) = self.take_part(mirror, &local);
        let seen = own.clone().and_then(|own| assemble(&own, mirror, &self.settings.viewer));
        self.own = own.ok().or(self.own.take());
        if let Some(patch) = patch {
            self.write(patch);
        }
        self.complain(trouble.as_ref());
        let policy = self.rules.as_ref().and_then(|rules| *rules.borrow());
        let snapshot = seen.map(|(cluster, left_out)| {
            self.report(left_out);
            ClusterState { policy, trouble, ..cluster }
        });
        self.out.send_if_modified(|before| {
            let differs = *before != snapshot;
            if differs {
                *before = snapshot;
            }
            differs
        });
        self.collect = (started.elapsed() * COLLECT_TIMES).clamp(COLLECT_LEAST, COLLECT_MOST);
    }

    /// How this node takes part, what to write about it, and why it is not ready. Where that cannot
    /// be decided any more, because its object is gone for example, it goes on as it was.
    fn take_part(
        &self,
        mirror: &Mirror,
        local: &Local,
    ) -> (Result<Own, String>, Option<serde_json::Value>, Option<String>) {
        let settings = &self.settings;
        let (own, node) = match (decide(mirror, local, settings), &self.own) {
            (Ok(decided), _) => decided,
            (Err(reason), None) => return (Err(reason), None, None),
            (Err(reason), Some(own)) => {
                let gone = || format!("the cluster has no node '{}' any more", settings.viewer.node);
                let reason = if mirror.own.is_none() { gone() } else { reason };
                let trouble = format!("{reason}; the others are followed, and this one goes on as it was");
                return (Ok(own.clone()), None, Some(trouble));
            }
        };
        let announced = settings.names.is_managed(&node.metadata.annotations);
        let patch = (announced || own.lacks.is_none())
            .then(|| writer::patch(node, &own.published(&settings.viewer), settings, &now()));
        let told = if announced { "is announced" } else { "is not announced yet" };
        let trouble = own.lacks.as_ref().map(|lacks| {
            format!(
                "node '{}' {told} without all IP versions that it has subnets of: {lacks}",
                settings.viewer.node
            )
        });
        (Ok(own), patch.flatten(), trouble)
    }

    /// Says it once, and its end.
    fn complain(&mut self, trouble: Option<&String>) {
        match trouble {
            Some(trouble) if self.trouble.as_ref() != Some(trouble) => tracing::warn!("{trouble}"),
            None if self.trouble.is_some() => tracing::info!("this node takes part as a whole"),
            _ => {}
        }
        self.trouble = trouble.cloned();
    }

    /// Says once for each node what is wrong with it.
    fn report(&mut self, left_out: LeftOut) {
        for (node, reason) in
            left_out.iter().filter(|(node, reason)| self.left_out.get(*node) != Some(*reason))
        {
            tracing::warn!(node, "left out, or in part: {reason}");
        }
        self.left_out = left_out;
    }

    /// Sends a patch, unless one is on its way, whose answer makes the next snapshot due, or the
    /// last one has just failed.
    fn write(&mut self, patch: serde_json::Value) {
        if self.writing.is_some() {
            return;
        }
        if Instant::now() < self.write_after {
            self.due = Some(self.write_after);
            return;
        }
        let (api, name) = (self.api.clone(), self.settings.viewer.node.clone());
        self.writing = Some(async move { api.patch(&name, &patch).await }.boxed());
    }

    fn answered(&mut self, answer: Answer) {
        self.writing = None;
        match answer {
            Ok(node) => {
                tracing::info!("this node's annotations are written");
                (self.write_failed, self.write_pause) = (None, FIRST_PAUSE);
                // Whatever else was true when the watch has not said so yet, it will.
                if let Some(mirror) = &mut self.mirror {
                    mirror.own = Some(node);
                }
            }
            Err(failure) => {
                let reason = failure.to_string();
                if self.write_failed.as_ref() != Some(&reason) {
                    tracing::warn!("cannot write this node's annotations, trying on: {reason}");
                }
                self.write_failed = Some(reason);
                self.write_after = Instant::now() + self.write_pause;
                self.write_pause = (self.write_pause * 2).min(LONGEST_PAUSE);
            }
        }
        self.touch();
    }
}

fn decide<'m>(
    mirror: &'m Mirror,
    local: &Local,
    settings: &Settings,
) -> Result<(Own, &'m NodeObject), String> {
    let missing = || {
        let node = &settings.viewer.node;
        format!(
            "the cluster has no node '{node}': set [node] name or NODE_NAME to this node's name in the cluster"
        )
    };
    let node = mirror.own.as_ref().ok_or_else(missing)?;
    Ok((Own::decide(node, local, settings)?, node))
}

/// The answer to what is on its way; never, if nothing is.
async fn written(writing: &mut Option<BoxFuture<'static, Answer>>) -> Answer {
    match writing {
        Some(writing) => writing.await,
        None => std::future::pending().await,
    }
}

/// Rules have changed; never, if nobody follows them.
async fn changed(rules: &mut Option<Count>) {
    if let Some(rules) = rules
        && rules.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// As the API has times: RFC 3339 in UTC.
fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
