//! Servers that nodes of a lab ask: programs of their own, in the background, with a log.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::cmd::describe;
use super::{Netns, wait_until};

const PEERS: &str = "http://127.0.0.1:2380";
/// How many of a log's last lines say why a server has not come up.
const LAST_LINES: usize = 40;

/// A program in the background; dropping it ends it without a warning.
pub(super) struct Server {
    child: Child,
    /// As a shell would have it.
    line: String,
    log: PathBuf,
}

impl Server {
    /// Starts `command` in `ns`; what it says is appended to `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(ns: &Netns, mut command: Command, log: PathBuf) -> Result<Self> {
        let line = describe(&command);
        let out = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = ns.run(|| command.spawn()).with_context(|| format!("cannot start `{line}`"))?;
        Ok(Self { child, line, log })
    }

    /// Waits until `ready` is true.
    ///
    /// # Errors
    /// It is not in time, or the program has ended; the error has its command line and its last words.
    pub(super) fn wait_ready(&mut self, within: Duration, ready: impl Fn() -> bool) -> Result<()> {
        let mut ended = None;
        let waited = wait_until("it answers", within, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some() || ready()
        });
        let waited = ended.map_or(waited, |status| Err(anyhow!("it has ended: {status}")));
        waited
            .with_context(|| format!("`{}` does not come up; its log ends with\n{}", self.line, self.last()))
    }

    fn last(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The etcd of the tests: what `ETCD` names, or the installed one.
pub(super) fn etcd_program() -> OsString {
    std::env::var_os("ETCD").unwrap_or_else(|| "etcd".into())
}

/// The `etcdctl` beside that etcd, or the installed one.
pub(super) fn etcdctl_program() -> OsString {
    let beside = Path::new(&etcd_program()).with_file_name("etcdctl");
    if beside.is_file() { beside.into_os_string() } else { "etcdctl".into() }
}

/// Etcd with its data below `dir`, that listens at `listen` for clients that are told to use `endpoint`.
pub(super) fn etcd(dir: &Path, listen: &str, endpoint: &str) -> Command {
    let mut command = Command::new(etcd_program());
    command.arg("--data-dir").arg(dir.join("etcd")).args(["--name", "lab"]);
    command.args(["--listen-client-urls", listen, "--advertise-client-urls", endpoint]);
    command.args(["--listen-peer-urls", PEERS, "--initial-advertise-peer-urls", PEERS]);
    command.args(["--initial-cluster", &format!("lab={PEERS}")]);
    command
}
