//! Removing labs: this process's own, also when it is told to end, and those of dead processes.
//!
//! What belongs to a lab is known from names alone (`vx<pid>` or `vx<pid>_<k>`), so nothing has to
//! be remembered and a lab of a process that was killed can be removed as well.

use std::collections::BTreeSet;
use std::fs;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, raise, sigaction};
use nix::unistd::Pid;

use super::cmd::{feed, wait_until};

/// Name of the file in a run directory that says: this lab outlives its process.
pub const KEPT: &str = "kept";

const NETNS: &str = "/run/netns";
const PINS: &str = "/sys/fs/bpf";
const RUN: &str = "/run/vxlan-lab";

/// Where the agents of a lab pin their BPF objects.
pub fn pin_dir(prefix: &str) -> PathBuf {
    Path::new(PINS).join(prefix)
}

/// Where a lab keeps its files.
pub fn run_dir(prefix: &str) -> PathBuf {
    Path::new(RUN).join(prefix)
}

/// A fresh prefix; from now on this process removes its labs when it is told to end.
///
/// # Errors
/// The signal handlers cannot be installed.
pub fn claim_prefix() -> Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    watch_signals()?;
    let pid = std::process::id();
    // No dot: bpffs refuses names that have one.
    Ok(match NEXT.fetch_add(1, Ordering::Relaxed) {
        0 => format!("vx{pid}"),
        k => format!("vx{pid}_{k}"),
    })
}

/// Removes a lab: ends the processes in its namespaces, then deletes namespaces, pins and files.
/// What cannot be removed is reported on standard error.
pub fn remove(prefix: &str) {
    let namespaces = namespaces_of(prefix);
    end_processes(&namespaces);
    let batch: String = namespaces.iter().map(|name| format!("netns del {name}\n")).collect();
    if let Err(error) = feed(Command::new("ip").args(["-force", "-batch", "-"]), &batch) {
        eprintln!("lab {prefix}: {error:#}");
    }
    for dir in [pin_dir(prefix), run_dir(prefix)] {
        if dir.exists()
            && let Err(error) = fs::remove_dir_all(&dir)
        {
            eprintln!("lab {prefix}: cannot remove {}: {error}", dir.display());
        }
    }
}

/// Removes the labs of processes that are gone, except those that were kept on purpose.
pub fn sweep() {
    for prefix in prefixes() {
        if !alive(&prefix) && !run_dir(&prefix).join(KEPT).exists() {
            remove(&prefix);
        }
    }
}

/// Removes the labs that were kept on purpose; returns their names.
pub fn remove_kept() -> Vec<String> {
    let kept: Vec<String> =
        prefixes().into_iter().filter(|prefix| run_dir(prefix).join(KEPT).exists()).collect();
    kept.iter().for_each(|prefix| remove(prefix));
    kept
}

/// Prefixes of all labs on this machine.
fn prefixes() -> BTreeSet<String> {
    let names = [NETNS, PINS, RUN].into_iter().flat_map(entries);
    names
        .filter_map(|name| Some(name.split('-').next()?.to_owned()))
        .filter(|p| pid_of(p).is_some())
        .collect()
}

/// The process a prefix belongs to; `None` if it is no prefix of ours.
fn pid_of(prefix: &str) -> Option<u32> {
    let numbers = prefix.strip_prefix("vx")?;
    let (pid, lab) = numbers.split_once('_').unwrap_or((numbers, "0"));
    lab.parse::<u32>().ok()?;
    pid.parse().ok()
}

fn alive(prefix: &str) -> bool {
    pid_of(prefix).is_some_and(|pid| Path::new(&format!("/proc/{pid}")).exists())
}

fn namespaces_of(prefix: &str) -> Vec<String> {
    let start = format!("{prefix}-");
    entries(NETNS).into_iter().filter(|name| name.starts_with(&start)).collect()
}

fn entries(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Kills what runs in these namespaces; only processes of the lab can.
fn end_processes(namespaces: &[String]) {
    let inodes: BTreeSet<u64> = namespaces
        .iter()
        .filter_map(|name| fs::metadata(Path::new(NETNS).join(name)).ok())
        .map(|meta| meta.ino())
        .collect();
    let inside = || -> Vec<i32> {
        let pids = entries("/proc").into_iter().filter_map(|name| name.parse::<i32>().ok());
        pids.filter(|pid| u32::try_from(*pid) != Ok(std::process::id()))
            .filter(|pid| {
                fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| inodes.contains(&m.ino()))
            })
            .collect()
    };
    for pid in inside() {
        // It may have ended by itself since.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let gone = wait_until("processes of the lab end", Duration::from_secs(5), || inside().is_empty());
    if let Err(error) = gone {
        eprintln!("{error:#}");
    }
}

static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

/// On SIGINT, SIGTERM and SIGHUP: removes this process's labs, then lets the signal end it.
fn watch_signals() -> Result<()> {
    static WATCH: OnceLock<Result<(), String>> = OnceLock::new();
    WATCH.get_or_init(|| start_watch().map_err(|e| format!("{e:#}"))).clone().map_err(anyhow::Error::msg)
}

fn start_watch() -> Result<()> {
    let (reader, writer) = pipe().context("cannot make a pipe for signals")?;
    SIGNAL_PIPE.store(writer.as_raw_fd(), Ordering::SeqCst);
    // The handler may need it until the process ends.
    std::mem::forget(OwnedFd::from(writer));
    std::thread::Builder::new().name("lab-signals".into()).spawn(move || wait_for_signal(reader))?;
    let action = SigAction::new(SigHandler::Handler(on_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only calls write(2), which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot install a signal handler")?;
    }
    Ok(())
}

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal.to_ne_bytes();
    // SAFETY: `byte` is valid for its length; the descriptor stays open until the process ends.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::SeqCst), byte.as_ptr().cast(), byte.len()) };
}

fn wait_for_signal(mut pipe: PipeReader) {
    let mut number = [0; size_of::<libc::c_int>()];
    if pipe.read_exact(&mut number).is_err() {
        return;
    }
    let _ = writeln!(std::io::stderr(), "\ntaking the lab down …");
    let own = std::process::id();
    for prefix in prefixes().iter().filter(|prefix| pid_of(prefix) == Some(own)) {
        if !run_dir(prefix).join(KEPT).exists() {
            remove(prefix);
        }
    }
    let Ok(signal) = Signal::try_from(i32::from_ne_bytes(number)) else { return };
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    // SAFETY: the default action runs no code of ours.
    let _ = unsafe { sigaction(signal, &default) };
    let _ = raise(signal);
}
