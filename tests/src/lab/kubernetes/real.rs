//! A real `kube-apiserver` over a real etcd, with RBAC.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{ADDRESS, stub};
use crate::lab::{Netns, run, wait_until};

const READY_WITHIN: Duration = Duration::from_secs(90);
/// The minor version from which on nodes have subnets of both IP versions without being asked.
const DUAL_STACK_SINCE: u32 = 21;
const ETCD_URL: &str = "http://127.0.0.1:2379";
const PEER_URL: &str = "http://127.0.0.1:2380";

/// Both processes; dropping it ends them.
pub(super) struct Real {
    apiserver: PathBuf,
    etcd: PathBuf,
    dir: PathBuf,
    running: Vec<Child>,
    store: Option<Child>,
}

impl Real {
    /// Writes keys and tokens to `dir`; starts nothing.
    pub(super) fn new(apiserver: PathBuf, etcd: PathBuf, dir: &Path) -> Result<Self> {
        let tokens = format!("{},admin,1,system:masters\n{},agent,2\n", stub::ADMIN, stub::AGENT);
        std::fs::write(dir.join("tokens.csv"), tokens)?;
        run(Command::new("openssl").args(["genrsa", "-out"]).arg(dir.join("sa.key")).arg("2048"))?;
        Ok(Self { apiserver, etcd, dir: dir.to_owned(), running: vec![], store: None })
    }

    /// Starts what does not run, and waits until it answers.
    pub(super) fn start(&mut self, ns: &Netns) -> Result<()> {
        if self.store.is_none() {
            let mut etcd = Command::new(&self.etcd);
            etcd.arg("--data-dir").arg(self.dir.join("etcd"));
            etcd.args(["--listen-client-urls", ETCD_URL, "--advertise-client-urls", ETCD_URL]);
            etcd.args(["--listen-peer-urls", PEER_URL]);
            self.store = Some(self.spawn(ns, etcd, "etcd.log")?);
        }
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
            "--disable-admission-plugins=ServiceAccount".into(),
        ]);
        if minor_version(&self.apiserver)? < DUAL_STACK_SINCE {
            server.arg("--feature-gates=IPv6DualStack=true");
        }
        let child = self.spawn(ns, server, "apiserver.log")?;
        self.running.push(child);
        wait_until("the API server is ready", READY_WITHIN, || is_ready(ns)).inspect_err(|_| {
            let log = std::fs::read_to_string(self.dir.join("apiserver.log")).unwrap_or_default();
            eprintln!("--- log of the API server ---\n{log}---");
        })
    }

    fn spawn(&self, ns: &Netns, mut command: Command, log: &str) -> Result<Child> {
        let log = File::options().create(true).append(true).open(self.dir.join(log))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let name = command.get_program().to_owned();
        ns.run(|| command.spawn()).with_context(|| format!("cannot start {}", name.display()))
    }

    /// Ends the API server; etcd goes on.
    pub(super) fn stop(&mut self) {
        self.running.drain(..).for_each(end);
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.stop();
        self.store.take().into_iter().for_each(end);
    }
}

/// The 20 of Kubernetes 1.20.
fn minor_version(apiserver: &Path) -> Result<u32> {
    let said = run(Command::new(apiserver).arg("--version"))?;
    let minor = said.split('.').nth(1).and_then(|minor| minor.parse().ok());
    minor.with_context(|| format!("no version in `{said}`"))
}

fn end(mut child: Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// `curl` because the certificate is the server's own and nobody's business.
fn is_ready(ns: &Netns) -> bool {
    let token = format!("Authorization: Bearer {}", stub::ADMIN);
    let url = format!("https://{ADDRESS}/readyz");
    ns.cmd("curl", &["-skf", "-m", "5", "-H", &token, &url]).is_ok_and(|answer| answer.trim() == "ok")
}
