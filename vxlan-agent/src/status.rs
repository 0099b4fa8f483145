//! The agent's lock and status file, in its run directory: how `status` knows it without asking it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::config::{Fastpath, Kind};
use crate::datapath::KernelFeatures;
use crate::net::{Mac, Mtu, Vni};

/// [`NetworkStatus::kind`] of a network whose device somebody else manages.
pub const ACCELERATE: &str = Kind::Accelerate.word();

const LOCK: &str = "agent.lock";
const STATUS: &str = "status.json";
/// How often a starting agent asks whether its predecessor has ended. The kernel tells nobody that a lock is free but who blocks for it, and who blocks
/// cannot be told to stop.
const AGAIN: Duration = Duration::from_millis(50);

/// What the agent last knew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Process id in the agent's own pid namespace.
    pub pid: u32,
    /// Seconds since 1970.
    pub started: u64,
    /// Kernel release.
    pub kernel: String,
    /// What the kernel offers to the fast path.
    pub features: KernelFeatures,
    /// This node's name.
    pub node: String,
    /// Networks, in the order of the configuration.
    pub networks: Vec<NetworkStatus>,
    /// Present if each device that somebody else manages has a network.
    #[serde(default)]
    pub every: Option<EveryStatus>,
    /// Why nothing could be done in the last round.
    #[serde(default)]
    pub error: Option<String>,
    /// Why the configuration as it is now was refused; the one before is in force.
    #[serde(default)]
    pub config_error: Option<String>,
    /// Changes that failed and are tried again.
    #[serde(default)]
    pub retrying: Vec<RetryStatus>,
}

/// What is done with devices that somebody else manages and that the configuration does not name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EveryStatus {
    /// Mode of their fast path.
    pub mode: Fastpath,
    /// Devices that have no network, and why: a sentence each.
    pub left: Vec<String>,
}

/// What the agent last knew of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Its name.
    pub name: String,
    /// `l3`, `l2` or `accelerate`.
    #[serde(default)]
    pub kind: String,
    /// Its VNI, where known.
    pub vni: Option<Vni>,
    /// UDP port, where known.
    pub port: Option<u16>,
    /// Mode of the fast path, as configured.
    pub mode: Fastpath,
    /// Why frames of a bridged network are left to the kernel, a sentence each: all, or those of a port. Where somebody
    /// else manages the device, what is left to the kernel and why.
    #[serde(default)]
    pub left: Vec<String>,
    /// How programs are attached: `tcx` or `clsact`; none while they are not loaded.
    pub attach: Option<String>,
    /// Where XDP is wanted, or why not; nothing while the programs are not loaded.
    pub xdp: Option<String>,
    /// Whether nf_tables keeps strangers' packets from the vxlan device, and why not.
    #[serde(default)]
    pub guard: String,
    /// The vxlan device.
    pub device: String,
    /// What it is called in the configuration.
    #[serde(default)]
    pub configured: String,
    /// Its MAC.
    pub mac: Mac,
    /// Its MTU in bytes.
    pub mtu: Option<Mtu>,
    /// Underlay interface.
    pub underlay: Option<String>,
    /// Underlay address.
    pub address: Option<IpAddr>,
    /// The bridge, in a bridged network.
    #[serde(default)]
    pub bridge: Option<BridgeStatus>,
    /// This node's pod subnets.
    pub subnets: Vec<IpNetwork>,
    /// This node, once for each IP version that the network runs over.
    #[serde(default)]
    pub own: Vec<NodeStatus>,
    /// Other nodes.
    pub nodes: Vec<NodeStatus>,
    /// What somebody else has put on interfaces, because of which packets are left to the kernel.
    #[serde(default)]
    pub hooked: Vec<HookedStatus>,
    /// Host sides of pods' veths with a program.
    pub pods_attached: usize,
    /// Pod addresses that the fast path delivers to.
    pub endpoints: usize,
    /// Rules that have to see every packet: in mode `verified` no flow bypasses the host stack meanwhile.
    #[serde(default)]
    pub meters: Vec<String>,
    /// In mode `verified` what looks at more of packets between pods than their addresses: because of it each
    /// connection is verified for itself, else all between two addresses at once.
    #[serde(default)]
    pub judge: Option<String>,
    /// In mode `verified` what may tell one of the tunnel's packets from another in front of its port: because of it
    /// what the host stack has to see takes the kernel's way out of the tunnel.
    #[serde(default)]
    pub handover: Option<String>,
    /// Files for pods, as they were last written: path and content.
    pub files: BTreeMap<PathBuf, String>,
    /// Why the last state that the source sent was refused; the one before is in force.
    pub reload_error: Option<String>,
    /// Why nothing can be planned at the moment; what was programmed before stays.
    pub plan_error: Option<String>,
    /// Why the state source has no cluster yet; what was programmed before stays.
    #[serde(default)]
    pub pending: Option<String>,
}

/// The bridge of a bridged network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeStatus {
    /// Its name.
    pub name: String,
    /// Whether the agent made it; an operator's is used as it is.
    pub ours: bool,
    /// What about it is not as the configuration asks for, or may lose packets: a sentence each.
    pub cautions: Vec<String>,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its VTEP address.
    pub vtep: IpAddr,
    /// Its VTEP MAC.
    pub mac: Mac,
    /// Its pod subnets.
    pub subnets: Vec<IpNetwork>,
    /// Whether an IPsec policy may apply to the tunnel to it, so that the kernel's device carries it.
    #[serde(default)]
    pub ipsec: bool,
}

/// Something of somebody else's on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookedStatus {
    /// The interface.
    pub interface: String,
    /// What it is, and at which edge.
    pub what: String,
}

/// A change that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryStatus {
    /// What should be done.
    pub change: String,
    /// Why the last attempt failed.
    pub error: String,
    /// How often it was tried.
    pub attempts: u32,
}

impl RetryStatus {
    /// What fails and why; an error that says what it is about itself says it once.
    pub fn sentence(&self) -> String {
        if self.error.contains(&self.change) {
            self.error.clone()
        } else {
            format!("{}: {}", self.change, self.error)
        }
    }
}

/// Writes the status file when there is something new.
pub struct StatusFile {
    path: PathBuf,
    written: Option<Status>,
}

impl StatusFile {
    /// The status file in `run_dir`.
    pub fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join(STATUS), written: None }
    }

    /// Replaces the file in one step, unless it says the same already.
    pub fn write(&mut self, status: &Status) -> anyhow::Result<()> {
        if self.written.as_ref() == Some(status) {
            return Ok(());
        }
        let context = || format!("cannot write the status file {}", self.path.display());
        let temporary = self.path.with_extension("tmp");
        let mut text = serde_json::to_string_pretty(status).with_context(context)?;
        text.push('\n');
        fs::write(&temporary, text).with_context(context)?;
        fs::rename(&temporary, &self.path).with_context(context)?;
        self.written = Some(status.clone());
        Ok(())
    }
}

/// What the agent last wrote; `None` if there never was one.
pub fn read(run_dir: &Path) -> anyhow::Result<Option<Status>> {
    let path = run_dir.join(STATUS);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => {
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            let status = serde_json::from_str(&text);
            Ok(Some(
                status.with_context(|| {
                    format!("{} is not the status of this version's agent", path.display())
                })?,
            ))
        }
    }
}

/// Held by the one agent of a run directory for as long as it lives.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock as soon as it is free, but gives up after `patience`. The kernel takes a moment to end a process that was killed,
    /// and whoever asks for the [`holder`] has it for as long as it takes to ask.
    pub async fn wait(run_dir: &Path, patience: Duration) -> anyhow::Result<Self> {
        let give_up = Instant::now() + patience;
        loop {
            match Self::take(run_dir)? {
                Some(lock) => return Ok(lock),
                None if Instant::now() < give_up => tokio::time::sleep(AGAIN).await,
                None => break,
            }
        }
        let pid = holder(run_dir)?.and_then(|holder| holder.pid);
        let pid = pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        bail!(
            "an agent is running already (pid {pid}, lock in {}): stop it, or give this one a pin_dir of its own",
            run_dir.display()
        );
    }

    /// Takes the lock and writes the own process id into it, and where that counts; `None` if somebody
    /// else has it.
    pub fn take(run_dir: &Path) -> anyhow::Result<Option<Self>> {
        fs::create_dir_all(run_dir).with_context(|| format!("cannot create {}", run_dir.display()))?;
        let mut file = match Flock::lock(open(run_dir)?, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", run_dir.display()));
            }
        };
        let context = || format!("cannot write {}", run_dir.join(LOCK).display());
        file.set_len(0).with_context(context)?;
        file.rewind().with_context(context)?;
        writeln!(file, "{} {}", std::process::id(), pid_namespace()?).with_context(context)?;
        Ok(Some(Self { _file: file }))
    }
}

fn open(run_dir: &Path) -> anyhow::Result<File> {
    let path = run_dir.join(LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    file.with_context(|| format!("cannot open {}", path.display()))
}

/// The agent that lives.
#[derive(Debug, PartialEq, Eq)]
pub struct Holder {
    /// `None` for one in another PID namespace, as containers have: its process id is another's here.
    pub pid: Option<i32>,
}

impl Holder {
    /// From what its lock says, for a reader in the PID namespace `here`.
    fn read(text: &str, here: &str) -> Self {
        let pid = text.trim_end().split_once(' ').filter(|(_, namespace)| *namespace == here);
        Self { pid: pid.and_then(|(pid, _)| pid.parse().ok()) }
    }
}

/// The name of the own PID namespace, which no other has while somebody lives in it.
fn pid_namespace() -> anyhow::Result<String> {
    let path = "/proc/self/ns/pid";
    let name = fs::read_link(path).with_context(|| format!("cannot read {path}"))?;
    Ok(name.display().to_string())
}

/// The agent that lives; `None` if none does.
pub fn holder(run_dir: &Path) -> anyhow::Result<Option<Holder>> {
    let path = run_dir.join(LOCK);
    let mut file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        file => file.with_context(|| format!("cannot open {}", path.display()))?,
    };
    let mut text = String::new();
    file.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((_, Errno::EWOULDBLOCK)) => Ok(Some(Holder::read(&text, &pid_namespace()?))),
        Err((_, error)) => Err(error).with_context(|| format!("cannot ask for the lock {}", path.display())),
    }
}

/// Removes what an agent leaves in its run directory.
pub fn remove(run_dir: &Path) -> anyhow::Result<()> {
    for name in [STATUS, LOCK] {
        match fs::remove_file(run_dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", run_dir.join(name).display()));
            }
            _ => {}
        }
    }
    // It stays if somebody else put something in.
    let _ = fs::remove_dir(run_dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_held_by_one_and_tells_by_whom() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(holder(dir.path()).expect("readable"), None);
        let lock = Lock::take(dir.path()).expect("a file").expect("free");
        let own = Holder { pid: i32::try_from(std::process::id()).ok() };
        assert_eq!(holder(dir.path()).expect("readable"), Some(own));
        assert!(Lock::take(dir.path()).expect("a file").is_none());
        let refused = Lock::wait(dir.path(), AGAIN).await.expect_err("taken").to_string();
        assert!(refused.contains("running already"), "{refused}");
        drop(lock);
        assert_eq!(holder(dir.path()).expect("readable"), None);
    }

    #[tokio::test]
    async fn an_agent_waits_a_moment_for_the_one_before_it_to_end() {
        let dir = tempfile::tempdir().expect("directory");
        let before = Lock::take(dir.path()).expect("a file").expect("free");
        let end = async {
            tokio::time::sleep(AGAIN * 2).await;
            drop(before);
        };
        let (taken, ()) = tokio::join!(Lock::wait(dir.path(), Duration::from_secs(10)), end);
        assert!(taken.is_ok(), "{taken:?}");
    }

    #[test]
    fn a_failure_says_once_what_it_is_about() {
        let retry = |error: &str| RetryStatus { change: "attach x".into(), error: error.into(), attempts: 1 };
        assert_eq!(retry("cannot attach x: no").sentence(), "cannot attach x: no");
        assert_eq!(retry("no").sentence(), "attach x: no");
    }

    #[test]
    fn a_process_id_is_nobodys_in_another_pid_namespace() {
        assert_eq!(Holder::read("7 pid:[2]\n", "pid:[2]").pid, Some(7));
        assert_eq!(Holder::read("1 pid:[2]\n", "pid:[3]").pid, None);
        assert_eq!(Holder::read("", "pid:[2]").pid, None, "taken, but not written yet");
    }

    #[test]
    fn the_status_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(read(dir.path()).expect("readable"), None);
        let status = Status {
            version: "1".into(),
            pid: 1,
            started: 2,
            kernel: "6.18".into(),
            features: KernelFeatures::probe(),
            node: "a".into(),
            networks: vec![],
            every: None,
            error: None,
            config_error: None,
            retrying: vec![],
        };
        StatusFile::new(dir.path()).write(&status).expect("writable");
        assert_eq!(read(dir.path()).expect("readable"), Some(status));
        remove(dir.path()).expect("removable");
        assert!(!dir.path().exists());
        fs::create_dir(dir.path()).expect("for the guard");
    }
}
