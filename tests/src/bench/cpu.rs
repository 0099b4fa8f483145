//! Pinning threads, and the machine's CPU time.

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Where the two ends of a measurement run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// On one CPU.
    Together,
    /// On one CPU each.
    Apart,
}

/// Two CPUs, first the client's, then the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    pub(super) client: usize,
    pub(super) server: usize,
}

impl Pair {
    pub(super) fn place(self, placement: Placement) -> Self {
        match placement {
            Placement::Together => Self { server: self.client, ..self },
            Placement::Apart => self,
        }
    }
}

/// The first CPU that this process may use, for both.
///
/// # Errors
/// There is none.
pub(super) fn first() -> Result<Pair> {
    let cpu = allowed()?.next().context("there is no CPU that this process may use")?;
    Ok(Pair { client: cpu, server: cpu })
}

fn allowed() -> Result<impl Iterator<Item = usize>> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).context("cannot read the CPU affinity")?;
    Ok((0..CpuSet::count()).filter(move |cpu| allowed.is_set(*cpu).unwrap_or(false)))
}

/// The first two CPUs that this process may use.
///
/// # Errors
/// There is only one: streams would measure how two threads take turns on it.
pub(super) fn pair() -> Result<Pair> {
    let mut cpus = allowed()?;
    match (cpus.next(), cpus.next()) {
        (Some(client), Some(server)) => Ok(Pair { client, server }),
        _ => bail!("the benchmark needs two CPUs"),
    }
}

/// Binds the calling thread to one CPU.
pub(super) fn pin(cpu: usize) -> Result<()> {
    bind(Pid::from_raw(0), cpu)
}

/// Binds a thread to one CPU.
pub(super) fn bind(thread: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(thread, &set).with_context(|| format!("cannot bind a thread to CPU {cpu}"))
}

/// CPU seconds that the whole machine has been busy since it started: everything in `/proc/stat`
/// but idle, waiting for I/O and stolen. Interrupts and softirqs count.
pub(super) fn busy_seconds() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let &[user, nice, system, _, _, irq, softirq, ..] = ticks.as_slice() else {
        bail!("/proc/stat has another form: {line}");
    };
    let per_second = sysconf(SysconfVar::CLK_TCK)?.unwrap_or(100);
    Ok((user + nice + system + irq + softirq) as f64 / per_second as f64)
}
