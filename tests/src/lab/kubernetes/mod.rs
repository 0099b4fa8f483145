//! The Kubernetes API of a lab: a real `kube-apiserver` over a real etcd where `KUBE_APISERVER` names
//! the program (and `ETCD` the other, unless the installed one will do), a [`Stub`] otherwise. It
//! listens at [`ADDRESS`] on the lab's fabric.

pub mod flannel;
mod http;
mod real;
mod rules;
pub mod store;
pub mod stub;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Request;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::addr::{inner4, inner6, underlay4, underlay6};
use super::{Lab, Netns, wait_until};
use real::Real;
pub use rules::Rule;
pub use stub::Stub;

/// Where the API listens.
pub const ADDRESS: &str = "192.0.2.250:6443";

/// Namespace of the agents' pods.
pub const NAMESPACE: &str = "default";

/// What names of the agents' pods begin with; the node's name follows.
pub const POD_PREFIX: &str = "flannel-";

const NODES: &str = "/api/v1/nodes";

/// Requests that are on their way at the same time.
const AT_ONCE: usize = 8;

/// What all of flannel's annotations begin with.
pub const PREFIX: &str = "flannel.alpha.coreos.com/";

/// The API of a lab.
pub struct Kubernetes {
    ns: Netns,
    dir: PathBuf,
    server: Server,
}

enum Server {
    Stub(Stub),
    Real(Real),
}

impl Kubernetes {
    /// Starts a server in `ns`, with files in `dir`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(ns: Netns, dir: &Path) -> Result<Self> {
        let address: SocketAddr = ADDRESS.parse()?;
        let mut server = match std::env::var_os("KUBE_APISERVER") {
            Some(apiserver) => Server::Real(Real::new(apiserver.into(), dir)?),
            None => Server::Stub(Stub::new(address)),
        };
        let scheme = match &mut server {
            Server::Stub(stub) => {
                ns.run(|| stub.start())?;
                "http"
            }
            Server::Real(real) => {
                real.start(&ns)?;
                "https"
            }
        };
        for (name, token) in [("agent", stub::AGENT), ("admin", stub::ADMIN)] {
            let text = kubeconfig(&format!("{scheme}://{ADDRESS}"), token);
            std::fs::write(dir.join(format!("{name}.kubeconfig")), text.to_string())?;
        }
        let kubernetes = Self { ns, dir: dir.to_owned(), server };
        if let Server::Real(_) = kubernetes.server {
            kubernetes.allow_agents()?;
        }
        Ok(kubernetes)
    }

    /// The stub; `None` where a real server runs.
    pub fn stub(&self) -> Option<&Stub> {
        match &self.server {
            Server::Stub(stub) => Some(stub),
            Server::Real(_) => None,
        }
    }

    /// Takes the server away; its store stays.
    pub fn stop(&mut self) {
        match &mut self.server {
            Server::Stub(stub) => stub.stop(),
            Server::Real(real) => real.stop(),
        }
    }

    /// Brings the server back.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn resume(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Stub(stub) => self.ns.run(|| stub.start()),
            Server::Real(real) => real.start(&self.ns),
        }
    }

    /// What agents use, with no more rights than our manifest gives.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("agent.kubeconfig")
    }

    /// Runs `kubectl` as somebody who may do everything.
    ///
    /// # Errors
    /// It is not installed, or fails.
    pub fn kubectl(&self, args: &[&str]) -> Result<String> {
        let kubeconfig = format!("--kubeconfig={}", self.dir.join("admin.kubeconfig").display());
        self.ns.cmd("kubectl", &[&[kubeconfig.as_str()], args].concat())
    }

    /// The node `name`.
    ///
    /// # Errors
    /// There is none, or no server.
    pub fn node(&self, name: &str) -> Result<Value> {
        self.ask(Request::new(NODES).get(name, &GetParams::default())?)
    }

    /// Value of one of flannel's annotations of node `name`; `None` if it has none.
    ///
    /// # Errors
    /// As [`Kubernetes::node`].
    pub fn annotation(&self, name: &str, annotation: &str) -> Result<Option<String>> {
        let node = self.node(name)?;
        let value = &node["metadata"]["annotations"][format!("{PREFIX}{annotation}")];
        Ok(value.as_str().map(str::to_owned))
    }

    /// Adds a node.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn create(&self, node: &Value) -> Result<Value> {
        self.ask(Request::new(NODES).create(&PostParams::default(), serde_json::to_vec(node)?)?)
    }

    /// Adds many nodes, a few at a time.
    ///
    /// # Errors
    /// The server refuses one.
    pub fn create_all(&self, nodes: impl IntoIterator<Item = Value> + Send) -> Result<()> {
        self.with_client(async |client| {
            let mut creating = JoinSet::new();
            for node in nodes {
                if creating.len() == AT_ONCE {
                    creating.join_next().await.transpose()?.transpose()?;
                }
                let request =
                    Request::new(NODES).create(&PostParams::default(), node.to_string().into_bytes())?;
                let client = client.clone();
                creating.spawn(async move { client.request::<Value>(request).await });
            }
            while creating.join_next().await.transpose()?.transpose()?.is_some() {}
            Ok(())
        })
    }

    /// Adds node `n` of the lab, as a kubelet and the controller manager do.
    ///
    /// # Errors
    /// As [`Kubernetes::create`].
    pub fn register(&self, n: u8) -> Result<()> {
        self.create(&json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": { "name": format!("n{n}"), "labels": { "kubernetes.io/os": "linux" } },
            "spec": {
                "podCIDR": format!("{}/24", inner4(n, 0)),
                "podCIDRs": [format!("{}/24", inner4(n, 0)), format!("{}/64", inner6(n, 0))],
            },
        }))?;
        self.patch_status(
            &format!("n{n}"),
            &json!({ "status": {
            "addresses": [
                { "type": "InternalIP", "address": underlay4(n).to_string() },
                { "type": "InternalIP", "address": underlay6(n).to_string() },
                { "type": "Hostname", "address": format!("n{n}") },
            ],
            "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
        } }),
        )
        .map(drop)
    }

    /// Makes one of what rules are made of.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn make(&self, rule: Rule, name: &str) -> Result<()> {
        let make = |version: &&str| {
            let object = rule.object(version, name).to_string().into_bytes();
            self.ask(Request::new(rule.path(version)).create(&PostParams::default(), object)?).map(drop)
        };
        let made = rule.versions().iter().map(make).reduce(Result::or);
        made.context("no version of the API")?
    }

    /// Says that the agent of `node` runs in a pod there. The stub knows by the pod's name.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn run_pod(&self, node: &str) -> Result<()> {
        if self.stub().is_some() {
            return Ok(());
        }
        let pod = json!({
            "kind": "Pod", "apiVersion": "v1", "metadata": { "name": format!("{POD_PREFIX}{node}") },
            "spec": { "nodeName": node, "containers": [{ "name": "agent", "image": "agent" }] },
        });
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
        let create = || Request::new(&path).create(&PostParams::default(), pod.to_string().into_bytes());
        // The server makes the namespace a moment after it is ready.
        wait_until("there is a namespace for pods", Duration::from_secs(20), || {
            create().is_ok_and(|request| self.ask(request).is_ok())
        })
    }

    /// Merges `patch` into what node `name` says of itself.
    ///
    /// # Errors
    /// There is no such node, or no server.
    pub fn patch_status(&self, name: &str, patch: &Value) -> Result<Value> {
        let parameters = PatchParams::default();
        self.ask(Request::new(NODES).patch_subresource(
            "status",
            name,
            &parameters,
            &Patch::Strategic(patch),
        )?)
    }

    /// Sets annotations of flannel's on node `name`; `null` removes one.
    ///
    /// # Errors
    /// As [`Kubernetes::patch_status`].
    pub fn annotate(&self, name: &str, annotations: &Value) -> Result<Value> {
        let pairs = annotations.as_object().context("annotations are a map")?.iter();
        let full: serde_json::Map<_, _> = pairs.map(|(k, v)| (format!("{PREFIX}{k}"), v.clone())).collect();
        self.patch_status(name, &json!({ "metadata": { "annotations": full } }))
    }

    /// Deletes node `name`.
    ///
    /// # Errors
    /// As [`Kubernetes::patch_status`].
    pub fn delete(&self, name: &str) -> Result<()> {
        self.ask(Request::new(NODES).delete(name, &DeleteParams::default())?).map(drop)
    }

    /// Asks the server with all rights.
    fn ask(&self, request: ::http::Request<Vec<u8>>) -> Result<Value> {
        let what = format!("{} {}", request.method(), request.uri());
        self.with_client(async |client| client.request(request).await.context(what))
    }

    /// Runs `work` with a client that has all rights.
    fn with_client<T: Send>(&self, work: impl AsyncFnOnce(kube::Client) -> Result<T> + Send) -> Result<T> {
        let path = self.dir.join("admin.kubeconfig");
        let working = async || {
            let file = Kubeconfig::read_from(&path)?;
            let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            work(kube::Client::try_from(config)?).await
        };
        // The client reads and connects in the namespace of the thread that runs it.
        self.ns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(working())
        })
    }

    /// Gives agents the rights that our manifest gives, and the one to ask which node they are on.
    fn allow_agents(&self) -> Result<()> {
        let create = |path: &str, object: Value| {
            let request = Request::new(path).create(&PostParams::default(), object.to_string().into_bytes());
            self.ask(request?)
        };
        let mut rules = vec![
            json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }),
            json!({ "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] }),
            json!({ "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] }),
        ];
        rules.extend(Rule::ALL.map(|rule| {
            let [group, resource] = rule.names();
            json!({ "apiGroups": [group], "resources": [resource], "verbs": ["list", "watch"] })
        }));
        let group = "rbac.authorization.k8s.io";
        create(
            "/apis/rbac.authorization.k8s.io/v1/clusterroles",
            json!({
                "kind": "ClusterRole", "apiVersion": format!("{group}/v1"),
                "metadata": { "name": "flannel" }, "rules": rules,
            }),
        )?;
        create(
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            json!({
                "kind": "ClusterRoleBinding", "apiVersion": format!("{group}/v1"),
                "metadata": { "name": "flannel" },
                "roleRef": { "apiGroup": group, "kind": "ClusterRole", "name": "flannel" },
                "subjects": [{ "apiGroup": group, "kind": "User", "name": "agent" }],
            }),
        )
        .map(drop)
    }
}

impl Lab {
    /// The lab's API server.
    ///
    /// # Panics
    /// The lab was built without one.
    pub fn kubernetes(&self) -> &Kubernetes {
        self.kubernetes.as_ref().expect("a lab with Kubernetes")
    }

    /// As [`Lab::kubernetes`], to stop and start it.
    ///
    /// # Panics
    /// The lab was built without one.
    pub fn kubernetes_mut(&mut self) -> &mut Kubernetes {
        self.kubernetes.as_mut().expect("a lab with Kubernetes")
    }
}

fn kubeconfig(server: &str, token: &str) -> Value {
    json!({
        "kind": "Config", "apiVersion": "v1", "current-context": "lab",
        "clusters": [{ "name": "lab", "cluster": { "server": server, "insecure-skip-tls-verify": true } }],
        "users": [{ "name": "lab", "user": { "token": token } }],
        "contexts": [{ "name": "lab", "context": { "cluster": "lab", "user": "lab" } }],
    })
}
