//! The API server: how to reach it, and the requests that are made of it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::stream::{BoxStream, StreamExt as _};
use kube::api::{GetParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use kube::{Client, Config};
use serde::Deserialize;
use tokio::sync::watch as latest;

use super::node::NodeObject;

const NODES: &str = "/api/v1/nodes";
/// Nodes of one page: a real one has 10 to 20 KB, and a page is held as text while it is read.
const PAGE: u32 = 250;
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long one answer that is not a watch may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long a watch runs before it is made anew; servers spread theirs between 5 and 10 minutes.
pub(super) const WATCH_FOR: Duration = Duration::from_secs(290);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The server said no.
    #[error("the API server answers {code}: {message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// In its own words.
        message: String,
    },
    /// There was no answer, or one that makes no sense.
    #[error("{0}")]
    Broken(String),
}

impl Failure {
    /// The HTTP status, if the server answered.
    pub(super) const fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            Self::Broken(_) => None,
        }
    }

    fn refused(status: &kube::core::Status) -> Self {
        Self::Refused { code: status.code, message: status.message.clone() }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::refused(&status),
            other => Self::Broken(one_line(&anyhow::Error::from(other))),
        }
    }
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").replace(char::is_control, " ")
}

/// Part of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page {
    /// Where the list stands.
    pub metadata: PageMetadata,
    /// The nodes.
    #[serde(default)]
    pub items: Vec<NodeObject>,
}

/// Where a list stands.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct PageMetadata {
    /// The version that all pages show.
    #[serde(rename = "resourceVersion", default)]
    pub resource_version: String,
    /// How to ask for the next page; empty on the last.
    #[serde(rename = "continue", default)]
    pub next: String,
}

/// A change, or the end of the nodes that were there to begin with.
#[derive(Debug)]
pub(super) enum Event {
    /// A node is new or different.
    Put(Box<NodeObject>),
    /// A node is gone.
    Gone(Box<NodeObject>),
    /// Everything up to this version has been said.
    Reached {
        /// The version.
        version: String,
        /// Whether it ends the nodes that were there to begin with.
        complete: bool,
    },
}

/// A list or an object of which only the version matters.
#[derive(Clone, Debug, Deserialize)]
struct Versioned {
    metadata: PageMetadata,
}

/// A version of something of which no more is known.
#[derive(Debug)]
pub(super) struct Change {
    /// The version.
    pub version: String,
    /// Whether something has changed, rather than time gone by.
    pub is_news: bool,
}

/// Changes of a watch.
pub(super) type Changes = BoxStream<'static, Result<Change, Failure>>;

/// Events of a watch.
pub(super) type Events = BoxStream<'static, Result<Event, Failure>>;

/// The API server.
#[derive(Clone)]
pub(super) struct Api {
    config: Config,
    /// The one to use; another one when connections of the last may be dead.
    client: Arc<latest::Sender<Client>>,
}

impl Api {
    /// Prepares a client from `kubeconfig`, or with the service account of the pod that this is.
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// There is no usable configuration.
    pub(super) async fn new(kubeconfig: Option<&Path>) -> anyhow::Result<Self> {
        let mut config = match kubeconfig {
            Some(path) => from_file(path).await?,
            None => Config::incluster().context(
                "this is no pod with a service account: set [state] kubeconfig (flannel: --kubeconfig-file)",
            )?,
        };
        config.connect_timeout = Some(CONNECT_WITHIN);
        config.read_timeout = Some(WATCH_FOR + ANSWER_WITHIN);
        config.write_timeout = Some(ANSWER_WITHIN);
        let client = connect(&config).context("cannot prepare a client for the Kubernetes API")?;
        Ok(Self { config, client: Arc::new(latest::Sender::new(client)) })
    }

    /// Makes new connections from now on. Those that were made from an address that this machine
    /// has lost are dead, and nobody says so.
    pub(super) fn renew(&self) {
        match connect(&self.config) {
            Ok(client) => drop(self.client.send_replace(client)),
            Err(error) => tracing::debug!(%error, "going on with the connections to the Kubernetes API"),
        }
    }

    /// Tells when connections are made anew.
    pub(super) fn renewals(&self) -> latest::Receiver<Client> {
        self.client.subscribe()
    }

    fn client(&self) -> Client {
        self.client.borrow().clone()
    }

    /// A page of the list of nodes, read from the store rather than a cache; `next` of the page
    /// before, or the first.
    pub(super) async fn page(&self, next: Option<String>) -> Result<Page, Failure> {
        let mut parameters = ListParams::default().limit(PAGE);
        parameters.continue_token = next;
        let request = Request::new(NODES).list(&parameters).map_err(build)?;
        let text = within(self.client().request_text(request)).await?;
        serde_json::from_str(&text)
            .map_err(|e| Failure::Broken(format!("the list of nodes is no such list: {e}")))
    }

    /// Changes from `version` on.
    pub(super) async fn watch(&self, version: &str) -> Result<Events, Failure> {
        self.events(&watch_for(), version).await
    }

    /// All nodes, one after the other, and then changes.
    pub(super) async fn stream(&self) -> Result<Events, Failure> {
        let parameters = WatchParams { send_initial_events: true, ..watch_for() };
        self.events(&parameters, "").await
    }

    /// The version that the list at `path` is at.
    pub(super) async fn version(&self, path: &str) -> Result<String, Failure> {
        let request = Request::new(path).list_metadata(&ListParams::default().limit(1)).map_err(build)?;
        let list: Versioned = within(self.client().request(request)).await?;
        Ok(list.metadata.resource_version)
    }

    /// Changes from `version` on of what is listed at `path`. Metadata is all that is sent.
    pub(super) async fn changes(&self, path: &str, version: &str) -> Result<Changes, Failure> {
        let request = Request::new(path).watch_metadata(&watch_for(), version).map_err(build)?;
        let events = within(self.client().request_events::<Versioned>(request)).await?;
        Ok(events.map(|event| event.map_err(Failure::from).and_then(understand_version)).boxed())
    }

    async fn events(&self, parameters: &WatchParams, version: &str) -> Result<Events, Failure> {
        let request = Request::new(NODES).watch(parameters, version).map_err(build)?;
        let events = within(self.client().request_events::<NodeObject>(request)).await?;
        Ok(events
            .map(|event: Result<_, kube::Error>| event.map_err(Failure::from).and_then(understand))
            .boxed())
    }

    /// Name of the node that a pod runs on.
    pub(super) async fn node_of(&self, namespace: &str, pod: &str) -> Result<String, Failure> {
        #[derive(Deserialize)]
        struct Pod {
            spec: PodSpec,
        }
        #[derive(Deserialize)]
        struct PodSpec {
            #[serde(rename = "nodeName")]
            node_name: String,
        }
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
        let request = request.get(pod, &GetParams::default()).map_err(build)?;
        let pod: Pod = within(self.client().request(request)).await?;
        Ok(pod.spec.node_name)
    }

    /// Changes what the node `name` says of itself; returns the node as it is then.
    pub(super) async fn patch(&self, name: &str, patch: &serde_json::Value) -> Result<NodeObject, Failure> {
        let parameters = PatchParams::default();
        let request =
            Request::new(NODES).patch_subresource("status", name, &parameters, &Patch::Strategic(patch));
        within(self.client().request(request.map_err(build)?)).await
    }
}

fn watch_for() -> WatchParams {
    let seconds = u32::try_from(WATCH_FOR.as_secs()).unwrap_or(u32::MAX);
    WatchParams { timeout: Some(seconds), ..WatchParams::default() }
}

fn connect(config: &Config) -> Result<Client, kube::Error> {
    Client::try_from(config.clone())
}

fn build(error: kube::core::request::Error) -> Failure {
    Failure::Broken(one_line(&anyhow::Error::from(error)))
}

async fn within<T>(answer: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failure> {
    match tokio::time::timeout(ANSWER_WITHIN, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::Broken(format!("no answer within {} s", ANSWER_WITHIN.as_secs()))),
    }
}

fn understand(event: WatchEvent<NodeObject>) -> Result<Event, Failure> {
    Ok(match event {
        WatchEvent::Added(node) | WatchEvent::Modified(node) => Event::Put(Box::new(node)),
        WatchEvent::Deleted(node) => Event::Gone(Box::new(node)),
        WatchEvent::Bookmark(mark) => Event::Reached {
            version: mark.metadata.resource_version,
            complete: mark.metadata.annotations.contains_key("k8s.io/initial-events-end"),
        },
        WatchEvent::Error(status) => return Err(Failure::refused(&status)),
    })
}

fn understand_version(event: WatchEvent<Versioned>) -> Result<Change, Failure> {
    Ok(match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) | WatchEvent::Deleted(object) => {
            Change { version: object.metadata.resource_version, is_news: true }
        }
        WatchEvent::Bookmark(mark) => Change { version: mark.metadata.resource_version, is_news: false },
        WatchEvent::Error(status) => return Err(Failure::refused(&status)),
    })
}

/// A plug-in that fetches credentials would be a process, and the agent starts none.
async fn from_file(path: &Path) -> anyhow::Result<Config> {
    let file = Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
    let config = config.with_context(|| format!("cannot use {}", path.display()))?;
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        bail!("{} asks for a program that fetches credentials: use a token or a certificate", path.display());
    }
    Ok(config)
}
