//! The lock that the one agent of a run directory holds for as long as it lives.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::time::Instant;

pub(super) const LOCK: &str = "agent.lock";
/// How often a starting agent asks whether its predecessor has ended. The kernel tells nobody that a lock is free but who blocks for it, and who blocks
/// cannot be told to stop.
const AGAIN: Duration = Duration::from_millis(50);

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
    fn a_process_id_is_nobodys_in_another_pid_namespace() {
        assert_eq!(Holder::read("7 pid:[2]\n", "pid:[2]").pid, Some(7));
        assert_eq!(Holder::read("1 pid:[2]\n", "pid:[3]").pid, None);
        assert_eq!(Holder::read("", "pid:[2]").pid, None, "taken, but not written yet");
    }
}
