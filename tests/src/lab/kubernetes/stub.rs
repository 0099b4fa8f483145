//! A small API server: nodes, and metadata of what rules are made of, over plain HTTP, with the
//! semantics that a client has to cope with - versions, pages, watches, bookmarks, streaming lists, expiry, conflicts, rights - and the
//! faults that it has to survive.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::http::{self, Request, Server};
use super::store::{Refused, Store};
use super::{POD_PREFIX, Rule};

/// How often a watch that asks for bookmarks gets one.
const BOOKMARKS: Duration = Duration::from_millis(500);

/// Token of somebody who may do everything.
pub const ADMIN: &str = "admin-token";
/// Token of an agent, which may do what our manifest allows.
pub const AGENT: &str = "agent-token";

/// What goes wrong on purpose.
#[derive(Default)]
pub struct Faults {
    /// Status that streaming lists are refused with; 0: none.
    pub refuse_streaming: AtomicU16,
    /// Streaming lists begin and never say that these were all.
    pub endless_streaming: AtomicBool,
    /// Expiry is told by a status instead of an event.
    pub expire_by_status: AtomicBool,
    /// Watches break off in the middle of a line after so many events; 0: never.
    pub break_after: AtomicU64,
    /// Milliseconds before every event.
    pub slow: AtomicU64,
    /// Status that patches are refused with; 0: none.
    pub refuse_patches: AtomicU16,
    /// Agents may not see what rules are made of, as with flannel's manifest.
    pub forbid_rules: AtomicBool,
}

/// A server and its store, which outlives a restart of the server.
pub struct Stub {
    state: Arc<Shared>,
    address: SocketAddr,
    server: Option<Server>,
}

/// What connections share.
#[derive(Default)]
struct Shared {
    store: Store,
    /// For each of [`Rule::ALL`].
    rules: [Store; Rule::ALL.len()],
    faults: Faults,
    /// How often what was asked: `list`, `watch`, `stream`, `patch` and so on.
    asked: Mutex<BTreeMap<&'static str, u64>>,
}

impl Stub {
    /// A server that does not listen yet.
    pub fn new(address: SocketAddr) -> Self {
        Self { state: Arc::default(), address, server: None }
    }

    /// Listens in the network namespace of this thread.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub fn start(&mut self) -> Result<()> {
        let state = Arc::clone(&self.state);
        let handler = move |request: &Request, out: &mut TcpStream| state.handle(request, out);
        self.server = Some(Server::start(self.address, Arc::new(handler))?);
        Ok(())
    }

    /// Goes away; connections end.
    pub fn stop(&mut self) {
        self.server = None;
    }

    /// Ends all connections, and goes on.
    pub fn cut(&self) {
        self.server.iter().for_each(Server::cut);
    }

    /// The nodes.
    pub fn store(&self) -> &Store {
        &self.state.store
    }

    /// What rules are made of.
    pub fn rules(&self, rule: Rule) -> &Store {
        &self.state.rules[rule as usize]
    }

    /// What goes wrong on purpose.
    pub fn faults(&self) -> &Faults {
        &self.state.faults
    }

    /// How often `what` was asked.
    pub fn asked(&self, what: &str) -> u64 {
        self.state.asked.lock().expect("no panic while locked").get(what).copied().unwrap_or(0)
    }
}

impl Shared {
    fn handle(&self, request: &Request, out: &mut TcpStream) -> std::io::Result<()> {
        if let Some(rule) = Rule::of(&request.path) {
            return self.handle_rules(rule, request, out);
        }
        let parts: Vec<&str> = request.path.trim_matches('/').split('/').collect();
        let answer = match (request.method.as_str(), parts.as_slice()) {
            ("GET", ["api", "v1", "nodes"]) if is_watch(request) => return self.watch(request, out),
            ("GET", ["api", "v1", "nodes"]) => {
                self.allowed(request, "list", true).and_then(|()| list(&self.store, request))
            }
            ("GET", ["api", "v1", "nodes", name]) => {
                self.allowed(request, "get", true).and_then(|()| self.store.get(name).map(owned))
            }
            ("POST", ["api", "v1", "nodes"]) => self
                .allowed(request, "create", false)
                .and_then(|()| self.store.create(body(request)?).map(owned)),
            ("PATCH", ["api", "v1", "nodes", name]) => self
                .allowed(request, "update", false)
                .and_then(|()| self.store.patch(name, &body(request)?, false).map(owned)),
            ("PATCH", ["api", "v1", "nodes", name, "status"]) => {
                self.allowed(request, "patch", true).and_then(|()| self.patch_status(request, name))
            }
            ("DELETE", ["api", "v1", "nodes", name]) => {
                self.allowed(request, "delete", false).and_then(|()| self.store.delete(name).map(owned))
            }
            // For which node a pod is: its name is the node's, as the lab has it.
            ("GET", ["api", "v1", "namespaces", _, "pods", name]) => {
                self.allowed(request, "pod", true).map(|()| {
                    json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": name },
                        "spec": { "nodeName": name.trim_start_matches(POD_PREFIX) } })
                })
            }
            _ => Err(Refused::new(404, "NotFound", "the server could not find the requested resource")),
        };
        give(request, out, answer)
    }

    /// Of these only metadata is kept, and shown to those who ask for no more.
    fn handle_rules(&self, rule: Rule, request: &Request, out: &mut TcpStream) -> std::io::Result<()> {
        let (store, visible) =
            (&self.rules[rule as usize], !self.faults.forbid_rules.load(Ordering::Relaxed));
        let answer = match request.method.as_str() {
            "GET" if is_watch(request) => {
                let begun = self.allowed(request, "watch rules", visible).and_then(|()| wants_metadata(request));
                return match begun.and_then(|()| self.begin(store, request, false)) {
                    Ok(watch) => run(watch, out),
                    Err(refused) => http::answer(out, refused.code, &status(&refused)),
                };
            }
            "GET" => self
                .allowed(request, "list rules", visible)
                .and_then(|()| wants_metadata(request))
                .and_then(|()| list(store, request)),
            _ => self.allowed(request, "create", false).and_then(|()| {
                let metadata = body(request)?["metadata"].take();
                let bare = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata });
                store.create(bare).map(owned)
            }),
        };
        give(request, out, answer)
    }

    /// `agents`: whether agents may.
    fn allowed(&self, request: &Request, verb: &'static str, agents: bool) -> Result<(), Refused> {
        *self.asked.lock().expect("no panic while locked").entry(verb).or_default() += 1;
        let token = request.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        match token {
            Some(ADMIN) => Ok(()),
            Some(AGENT) if agents => Ok(()),
            Some(AGENT) => {
                let message = format!("User \"agent\" cannot {verb} resource at {:?}", request.path);
                Err(Refused::new(403, "Forbidden", message))
            }
            _ => Err(Refused::new(401, "Unauthorized", "Unauthorized")),
        }
    }

    fn patch_status(&self, request: &Request, name: &str) -> Result<Value, Refused> {
        let kind = request.headers.get("content-type").map(String::as_str).unwrap_or_default();
        if kind != "application/strategic-merge-patch+json" {
            return Err(Refused::new(415, "UnsupportedMediaType", format!("{kind:?} is not supported here")));
        }
        match self.faults.refuse_patches.load(Ordering::Relaxed) {
            0 => self.store.patch(name, &body(request)?, true).map(owned),
            code => Err(Refused::new(code, "InternalError", "refused on purpose")),
        }
    }

    fn watch(&self, request: &Request, out: &mut TcpStream) -> std::io::Result<()> {
        let streaming = request.query.get("sendInitialEvents").is_some_and(|value| value == "true");
        let verb = if streaming { "stream" } else { "watch" };
        let allowed = self.allowed(request, verb, true);
        match allowed.and_then(|()| self.begin(&self.store, request, streaming)) {
            Ok(watch) => run(watch, out),
            Err(refused) => http::answer(out, refused.code, &status(&refused)),
        }
    }

    fn begin<'s>(
        &'s self,
        store: &'s Store,
        request: &Request,
        streaming: bool,
    ) -> Result<Watch<'s>, Refused> {
        let faults = &self.faults;
        let given = request.query.get("resourceVersion").map(String::as_str).unwrap_or_default();
        if streaming {
            match faults.refuse_streaming.load(Ordering::Relaxed) {
                0 => {}
                422 => {
                    let message = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
                                   resourceVersionMatch is forbidden for watch";
                    return Err(Refused::new(422, "Invalid", message));
                }
                code => {
                    return Err(Refused::new(
                        code,
                        "InternalError",
                        "the store has no progress notifications",
                    ));
                }
            }
            if request.query.get("resourceVersionMatch").is_none_or(|value| value != "NotOlderThan") {
                let message =
                    "resourceVersionMatch: Forbidden: sendInitialEvents requires setting NotOlderThan";
                return Err(Refused::new(422, "Invalid", message));
            }
        }
        let from_here = given.is_empty() || given == "0";
        let (now, nodes) = store.all();
        let version = if from_here || streaming { now } else { given.parse().unwrap_or(0) };
        if version < store.compacted() && faults.expire_by_status.load(Ordering::Relaxed) {
            return Err(Refused::expired(version, store.compacted()));
        }
        let seconds = request.query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(600);
        Ok(Watch {
            shared: self,
            store,
            version,
            initial: if from_here || streaming { nodes } else { vec![] },
            marks_end: streaming && !faults.endless_streaming.load(Ordering::Relaxed),
            bookmarks: request.query.get("allowWatchBookmarks").is_some_and(|value| value == "true"),
            end: Instant::now() + Duration::from_secs(seconds),
            sent: 0,
        })
    }
}

fn list(store: &Store, request: &Request) -> Result<Value, Refused> {
    let (version, nodes) = store.all();
    let number = |key| request.query.get(key).and_then(|text: &String| text.parse::<usize>().ok());
    let limit = number("limit").filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let (shown, after) = match request.query.get("continue").and_then(|token| token.split_once(':')) {
        Some((shown, after)) => (shown.parse().unwrap_or(0), after.to_owned()),
        None => (version, String::new()),
    };
    if shown < store.compacted() {
        return Err(Refused::new(410, "Expired", "The provided continue parameter is too old"));
    }
    let name = |node: &Value| node["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let rest: Vec<Arc<Value>> = nodes.into_iter().filter(|node| name(node) > after).collect();
    let items = &rest[..limit.min(rest.len())];
    let mut metadata = json!({ "resourceVersion": shown.to_string() });
    if items.len() < rest.len() {
        let last = items.last().map(|node| name(node)).unwrap_or_default();
        metadata["continue"] = json!(format!("{shown}:{last}"));
        metadata["remainingItemCount"] = json!(rest.len() - items.len());
    }
    let items: Vec<&Value> = items.iter().map(|node| &**node).collect();
    Ok(json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }))
}

struct Watch<'s> {
    shared: &'s Shared,
    store: &'s Store,
    version: u64,
    initial: Vec<Arc<Value>>,
    marks_end: bool,
    bookmarks: bool,
    end: Instant,
    sent: u64,
}

impl Watch<'_> {
    fn run(&mut self, out: &mut TcpStream) -> std::io::Result<()> {
        for node in std::mem::take(&mut self.initial) {
            self.send(out, "ADDED", &node)?;
        }
        if self.marks_end {
            self.bookmark(out, true)?;
        }
        let mut marked = Instant::now();
        while Instant::now() < self.end {
            match self.store.after(self.version, BOOKMARKS) {
                Ok((version, changes)) => {
                    for change in &changes {
                        self.send(out, change.kind, &change.node)?;
                    }
                    self.version = version;
                }
                Err(refused) => {
                    self.send(out, "ERROR", &status(&refused))?;
                    return http::chunk(out, b"");
                }
            }
            if self.bookmarks && marked.elapsed() >= BOOKMARKS {
                self.bookmark(out, false)?;
                marked = Instant::now();
            }
        }
        http::chunk(out, b"")
    }

    fn bookmark(&mut self, out: &mut TcpStream, end: bool) -> std::io::Result<()> {
        let mut metadata = json!({ "resourceVersion": self.version.to_string(), "creationTimestamp": null });
        if end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        self.send(out, "BOOKMARK", &json!({ "kind": "Node", "apiVersion": "v1", "metadata": metadata }))
    }

    fn send(&mut self, out: &mut TcpStream, kind: &str, object: &Value) -> std::io::Result<()> {
        let faults = &self.shared.faults;
        std::thread::sleep(Duration::from_millis(faults.slow.load(Ordering::Relaxed)));
        // In this order, as a real server has it.
        let line = format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
        self.sent += 1;
        let limit = faults.break_after.load(Ordering::Relaxed);
        if limit != 0 && self.sent > limit {
            http::chunk(out, &line.as_bytes()[..line.len() / 2])?;
            out.shutdown(std::net::Shutdown::Both)?;
            return Err(std::io::ErrorKind::BrokenPipe.into());
        }
        http::chunk(out, line.as_bytes())
    }
}

fn is_watch(request: &Request) -> bool {
    request.query.get("watch").is_some_and(|watch| watch == "true")
}

fn wants_metadata(request: &Request) -> Result<(), Refused> {
    let accepted = request.headers.get("accept").map(String::as_str).unwrap_or_default();
    if accepted.contains("as=PartialObjectMetadata") {
        return Ok(());
    }
    Err(Refused::new(406, "NotAcceptable", "only metadata is shown here"))
}

fn give(request: &Request, out: &mut TcpStream, answer: Result<Value, Refused>) -> std::io::Result<()> {
    match answer {
        Ok(value) => http::answer(out, if request.method == "POST" { 201 } else { 200 }, &value),
        Err(refused) => http::answer(out, refused.code, &status(&refused)),
    }
}

fn run(mut watch: Watch<'_>, out: &mut TcpStream) -> std::io::Result<()> {
    http::begin(out)?;
    watch.run(out)
}

fn owned(node: Arc<Value>) -> Value {
    Arc::unwrap_or_clone(node)
}

fn body(request: &Request) -> Result<Value, Refused> {
    serde_json::from_slice(&request.body).map_err(|e| Refused::new(400, "BadRequest", e.to_string()))
}

fn status(refused: &Refused) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": refused.message, "reason": refused.reason, "code": refused.code })
}
