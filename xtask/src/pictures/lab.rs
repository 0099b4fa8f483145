//! The lab that pictures are of, as `cargo xtask demo --keep` leaves it.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{output, run, step, target_dir};

/// Where labs keep their files.
const RUN: &str = "/run/vxlan-lab";
/// The file among them that says: this lab outlives its process.
const KEPT: &str = "kept";
/// Ports that `iperf3` listens on.
const TCP: &str = "5201";
const UDP: &str = "5202";

/// A lab that is taken down with this.
pub(super) struct Lab {
    binary: PathBuf,
    prefix: String,
}

impl Lab {
    /// Lets the demo run, and keeps its lab.
    ///
    /// # Errors
    /// There is one that was kept before, which would be taken down with this one; or the demo fails.
    pub(super) fn up(binary: &Path) -> Result<Self> {
        ensure!(kept().is_empty(), "a lab is up: take it down first, with `cargo xtask demo --down`");
        let mut lab = Self { binary: binary.to_owned(), prefix: String::new() };
        step("the demo, whose lab stays up", || {
            run(Command::new(binary).args(["demo", "--keep"]).stdout(Stdio::null()))
        })?;
        lab.prefix = kept().pop().context("the demo has kept no lab")?;
        Ok(lab)
    }

    /// `program` in the network namespace of a node (`n1`) or pod (`n1p1`).
    pub(super) fn within(&self, host: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}-{host}", self.prefix)).arg(program);
        command
    }

    /// The agent of node 1 and its configuration, which command lines end with.
    pub(super) fn agent_words(&self) -> (PathBuf, [String; 2]) {
        let program = std::env::var_os("VXLAN_AGENT").map(PathBuf::from);
        let config = format!("{RUN}/{}/n1.d/config.toml", self.prefix);
        (program.unwrap_or_else(|| target_dir().join("release/vxlan-agent")), ["--config".to_owned(), config])
    }

    /// Runs a command of the agent on node 1.
    ///
    /// # Errors
    /// It fails.
    pub(super) fn agent(&self, words: &[&str]) -> Result<String> {
        let (program, config) = self.agent_words();
        output(self.within("n1", program).args(words).args(config))
    }

    /// Traffic both ways, for `length`: a TCP stream, UDP datagrams, and packets in fragments, which the fast path
    /// leaves to the kernel. Few enough of them that the machine has time for others.
    ///
    /// # Errors
    /// A tool cannot be started.
    pub(super) fn traffic(&self, length: Duration) -> Result<Vec<Beside>> {
        let seconds = length.as_secs().to_string();
        let mut traffic = vec![];
        for (host, port) in [("n2p1", TCP), ("n2p2", UDP)] {
            traffic.push(Beside::start(self.within(host, "iperf3").args(["-s", "-p", port]))?);
        }
        super::wait(Duration::from_secs(2))?;
        let tcp = ["-c", "10.244.2.2", "-p", TCP, "-b", "100M", "-t", &seconds];
        let udp = ["-c", "fd00:244:2::3", "-p", UDP, "-u", "-b", "2M", "-l", "500", "-t", &seconds];
        let fragments = ["-q", "-i", "0.05", "-s", "2000", "-w", &seconds, "10.244.1.3"];
        traffic.push(Beside::start(self.within("n1p1", "iperf3").args(tcp))?);
        traffic.push(Beside::start(self.within("n1p2", "iperf3").args(udp))?);
        traffic.push(Beside::start(self.within("n2p1", "ping").args(fragments))?);
        Ok(traffic)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = output(Command::new(&self.binary).arg("down")) {
            eprintln!("the lab could not be taken down: {error:#}");
        }
    }
}

/// Prefixes of labs that were kept.
fn kept() -> Vec<String> {
    let labs = fs::read_dir(RUN).into_iter().flatten().flatten();
    let kept = labs.filter(|lab| lab.path().join(KEPT).exists());
    kept.map(|lab| lab.file_name().to_string_lossy().into_owned()).collect()
}

/// A process beside this one that ends with it.
pub(super) struct Beside {
    child: Child,
    name: String,
}

impl Beside {
    /// Starts it, without input and output.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let name = format!("{command:?}");
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name })
    }

    /// Makes sure that it runs.
    ///
    /// # Errors
    /// It has ended by itself, which it should not have.
    pub(super) fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} has ended with {status}", self.name),
            None => Ok(()),
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
