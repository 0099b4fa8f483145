//! Virtual machines, each with a network card at a tap of a node.
//!
//! `cargo xtask test --suite vm` makes the directory that [`MACHINE`] names: the emulator, a kernel, and an
//! initial file system whose shell listens on a port of the virtual console.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::addr::mac_text;
use super::{Netns, wait_until};

/// The environment variable that names the directory with `qemu`, `kernel` and `initrd`.
pub const MACHINE: &str = "VXLAN_VM";

/// In software emulation, on a machine that does other things as well.
const BOOTED_WITHIN: Duration = Duration::from_secs(120);
const MOVED_WITHIN: Duration = Duration::from_secs(60);
/// What the shell says when it listens, and behind what a command has printed.
const READY: &str = "ready";
const DONE: &str = "--done--";

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct MachineSpec {
    /// The machine's name, for its files.
    pub name: String,
    /// Directory for its files, which exists.
    pub dir: PathBuf,
    /// MAC of its card.
    pub mac: [u8; 6],
    /// MTU that the card tells the machine, in bytes.
    pub mtu: u32,
    /// Memory in MiB.
    pub memory: u32,
}

/// A running machine; it is switched off when dropped.
pub struct Machine {
    spec: MachineSpec,
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    monitor: PathBuf,
    log: PathBuf,
}

impl Machine {
    /// Switches a machine on whose card is at the tap `tap` of `node`, and waits for its shell.
    ///
    /// # Errors
    /// [`MACHINE`] names no such directory, or the machine does not come up.
    pub fn start(spec: &MachineSpec, node: &Netns, tap: &str) -> Result<Self> {
        let machine = Self::launch(spec, node, tap, &[])?;
        machine.until(READY, BOOTED_WITHIN).with_context(|| machine.last_words())?;
        Ok(machine)
    }

    /// Runs a command in its shell and returns what it printed.
    ///
    /// # Errors
    /// The command's status is not zero, or it is not done within `limit`.
    pub fn run(&mut self, line: &str, limit: Duration) -> Result<String> {
        self.begin(line)?;
        self.finish(limit).with_context(|| format!("{} runs `{line}`", self.spec.name))
    }

    /// Lets its shell begin with a command.
    ///
    /// # Errors
    /// It does not listen.
    pub fn begin(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{{ {line}\n}} < /dev/null; echo; echo {DONE} $?")?;
        Ok(self.input.flush()?)
    }

    /// Waits for the end of what [`Machine::begin`] began, and returns what it printed.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn finish(&mut self, limit: Duration) -> Result<String> {
        let (printed, status) = self.until(DONE, limit)?;
        ensure!(status == "0", "status {status}: {printed}");
        Ok(printed.trim().to_owned())
    }

    /// Moves it to the tap `tap` of `node` while it runs, and returns for how long it stood still, as the
    /// emulator says. It goes on there as it was; what it sends next comes from there.
    ///
    /// # Errors
    /// The other emulator does not start, or the move fails.
    pub fn migrate(&mut self, node: &Netns, tap: &str) -> Result<Duration> {
        let spec = MachineSpec { name: format!("{}-moved", self.spec.name), ..self.spec.clone() };
        let socket = self.spec.dir.join(format!("{}.migration", self.spec.name));
        let channel = format!("unix:{}", socket.display());
        let other = Self::launch(&spec, node, tap, &["-incoming", &channel])?;
        wait_until("the emulator waits for the machine", MOVED_WITHIN, || socket.exists())?;
        self.monitor(&format!("migrate -d {channel}"))?;
        let mut told = String::new();
        wait_until("the machine has moved", MOVED_WITHIN, || {
            told = self.monitor("info migrate").unwrap_or_default();
            told.contains("status: completed") || told.contains("status: failed")
        })
        .with_context(|| other.last_words())?;
        if !told.contains("status: completed") {
            bail!("{} did not move: {told}", self.spec.name);
        }
        *self = other;
        let downtime = told.lines().find_map(|line| line.trim().strip_prefix("downtime: "));
        let milliseconds = downtime.and_then(|text| text.split(' ').next()?.parse().ok());
        Ok(Duration::from_millis(milliseconds.context("the emulator does not tell the downtime")?))
    }

    fn launch(spec: &MachineSpec, node: &Netns, tap: &str, more: &[&str]) -> Result<Self> {
        let made = std::env::var_os(MACHINE)
            .with_context(|| format!("${MACHINE} is not set: run `cargo xtask test --suite vm`"))?;
        let made = Path::new(&made);
        let (log, monitor) = (spec.dir.join(&spec.name), spec.dir.join(format!("{}.monitor", spec.name)));
        let log = log.with_extension("console");
        let mut command = Command::new(made.join("qemu"));
        command.arg("-kernel").arg(made.join("kernel")).arg("-initrd").arg(made.join("initrd"));
        command.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
        // Interrupted after an emulated cmpxchg16b, a guest may come back with other flags.
        command.args(["-accel", "tcg", "-cpu", "qemu64,-cx16", "-smp", "1", "-m", &spec.memory.to_string()]);
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-netdev").arg(format!("tap,id=net,ifname={tap},script=no,downscript=no"));
        let (mac, mtu) = (mac_text(spec.mac), spec.mtu);
        command.arg("-device").arg(format!("virtio-net-pci,netdev=net,mac={mac},host_mtu={mtu},romfile="));
        command.arg("-serial").arg(format!("file:{}", log.display()));
        // A serial line would do, if the emulated one did not keep the end of a line back now and then.
        command.args(["-chardev", "stdio,id=shell,signal=off", "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=shell,name=shell"]);
        command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", monitor.display())).args(more);
        let errors = File::create(spec.dir.join(&spec.name).with_extension("qemu"))?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors);
        let mut child = node.run(|| command.spawn()).context("cannot start the emulator")?;
        let input = child.stdin.take().context("it was asked for")?;
        let output = child.stdout.take().context("it was asked for")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { spec: spec.clone(), child, input, lines, monitor, log })
    }

    /// What its shell prints until a line begins with `mark`, and the rest of that line.
    fn until(&self, mark: &str, limit: Duration) -> Result<(String, String)> {
        let (end, mut printed) = (Instant::now() + limit, String::new());
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                bail!("{} has not said `{mark}` within {limit:?}; it said: {printed}", self.spec.name);
            };
            if let Some(rest) = line.strip_prefix(mark) {
                return Ok((printed, rest.trim().to_owned()));
            }
            printed.push_str(&line);
            printed.push('\n');
        }
    }

    /// Tells the emulator's monitor a command and returns what it answers.
    fn monitor(&self, command: &str) -> Result<String> {
        const PROMPT: &str = "(qemu) ";
        let stream = UnixStream::connect(&self.monitor).context("the emulator has no monitor")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut until_prompt = || -> Result<String> {
            let mut told = Vec::new();
            while !told.ends_with(PROMPT.as_bytes()) {
                let read = reader.read_until(b' ', &mut told)?;
                ensure!(read > 0, "the emulator has closed its monitor");
            }
            Ok(String::from_utf8_lossy(&told).into_owned())
        };
        until_prompt()?;
        writeln!(&stream, "{command}")?;
        until_prompt()
    }

    /// What its kernel and its emulator have said, for a failure.
    fn last_words(&self) -> String {
        let read = |path: &Path| std::fs::read(path).unwrap_or_default();
        let said = [read(&self.log), read(&self.log.with_extension("qemu"))].concat();
        format!("{} has said:\n{}", self.spec.name, String::from_utf8_lossy(&said))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
