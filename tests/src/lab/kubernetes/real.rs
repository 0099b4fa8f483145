//! A real `kube-apiserver` over a real etcd, with RBAC.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{ADDRESS, stub};
use crate::lab::server::{Server, etcd};
use crate::lab::{Netns, run};

const READY_WITHIN: Duration = Duration::from_secs(90);
/// The minor version from which on nodes have subnets of both IP versions without being asked.
const DUAL_STACK_SINCE: u32 = 21;
const ETCD_URL: &str = "http://127.0.0.1:2379";

/// Both processes; dropping it ends them.
pub(super) struct Real {
    apiserver: PathBuf,
    dir: PathBuf,
    running: Option<Server>,
    store: Option<Server>,
}

impl Real {
    /// Writes keys and tokens to `dir`; starts nothing.
    pub(super) fn new(apiserver: PathBuf, dir: &Path) -> Result<Self> {
        let tokens = format!("{},admin,1,system:masters\n{},agent,2\n", stub::ADMIN, stub::AGENT);
        std::fs::write(dir.join("tokens.csv"), tokens)?;
        run(Command::new("openssl").args(["genrsa", "-out"]).arg(dir.join("sa.key")).arg("2048"))?;
        Ok(Self { apiserver, dir: dir.to_owned(), running: None, store: None })
    }

    /// Starts what does not run, and waits until it answers.
    pub(super) fn start(&mut self, ns: &Netns) -> Result<()> {
        if self.store.is_none() {
            let command = etcd(&self.dir, ETCD_URL, ETCD_URL);
            let mut store = Server::start(ns, command, self.dir.join("etcd.log"))?;
            store.wait_ready(READY_WITHIN, || is_healthy(ns))?;
            self.store = Some(store);
        }
        let mut server = Server::start(ns, self.command()?, self.dir.join("apiserver.log"))?;
        server.wait_ready(READY_WITHIN, || is_ready(ns))?;
        self.running = Some(server);
        Ok(())
    }

    fn command(&self) -> Result<Command> {
        let (host, port) = ADDRESS.split_once(':').context("an address and a port")?;
        let key = self.dir.join("sa.key");
        let file = |flag: &str, path: &Path| format!("--{flag}={}", path.display());
        let mut server = Command::new(&self.apiserver);
        server.args([
            format!("--etcd-servers={ETCD_URL}"),
            format!("--bind-address={host}"),
            format!("--secure-port={port}"),
            file("cert-dir", &self.dir.join("apiserver")),
            file("token-auth-file", &self.dir.join("tokens.csv")),
            file("service-account-key-file", &key),
            file("service-account-signing-key-file", &key),
            "--service-account-issuer=https://lab".into(),
            "--service-cluster-ip-range=10.96.0.0/16".into(),
            "--authorization-mode=RBAC".into(),
            // As kubeadm and others start it.
            "--allow-privileged=true".into(),
            "--disable-admission-plugins=ServiceAccount".into(),
        ]);
        if minor_version(&self.apiserver)? < DUAL_STACK_SINCE {
            server.arg("--feature-gates=IPv6DualStack=true");
        }
        Ok(server)
    }

    /// Ends the API server; etcd goes on.
    pub(super) fn stop(&mut self) {
        self.running = None;
    }
}

/// The 20 of Kubernetes 1.20.
fn minor_version(apiserver: &Path) -> Result<u32> {
    let said = run(Command::new(apiserver).arg("--version"))?;
    let minor = said.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.with_context(|| format!("no version in `{said}`"))
}

fn is_healthy(ns: &Netns) -> bool {
    let url = format!("{ETCD_URL}/health");
    ns.cmd("curl", &["-sf", "-m", "5", &url]).is_ok_and(|answer| answer.contains("true"))
}

/// `curl` because the certificate is the server's own and nobody's business.
fn is_ready(ns: &Netns) -> bool {
    let token = format!("Authorization: Bearer {}", stub::ADMIN);
    let url = format!("https://{ADDRESS}/readyz");
    ns.cmd("curl", &["-skf", "-m", "5", "-H", &token, &url]).is_ok_and(|answer| answer.trim() == "ok")
}
