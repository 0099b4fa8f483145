//! What a process has used.

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// CPU seconds of process `pid` so far, all threads together.
pub(in crate::bench) fn cpu_seconds(pid: u32) -> Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?)).context("no such process")?;
    seconds(clock)
}

/// CPU seconds that `work` takes of this thread.
pub(super) fn cpu_seconds_of(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = seconds(ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    work()?;
    Ok(seconds(ClockId::CLOCK_THREAD_CPUTIME_ID)? - begun)
}

fn seconds(clock: ClockId) -> Result<f64> {
    let time = clock_gettime(clock).context("cannot read a CPU clock")?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// The most memory that process `pid` has had, in MiB.
pub(in crate::bench) fn peak_mebibytes(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("no such process")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
