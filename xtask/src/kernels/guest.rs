//! Booting a kernel and listening to what it says.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::emulator::Emulator;

/// What a guest has reported.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// What the agent found in the kernel.
    pub(super) features: BTreeMap<String, bool>,
    /// Names of tests, and whether they passed.
    pub(super) tests: BTreeMap<String, bool>,
    /// Whether the suite came to its end.
    pub(super) finished: bool,
    /// What a benchmark printed.
    pub(super) told: Vec<String>,
    /// Its numbers, as JSON, by what the names of its files end with.
    pub(super) numbers: BTreeMap<String, String>,
    /// Why the rest is missing, if something is.
    pub(super) broken: Option<String>,
}

impl Report {
    /// Takes in one line of the second serial line; whether it was the last.
    fn hear(&mut self, line: &str) -> bool {
        if let Some(json) = line.strip_prefix("features ") {
            self.features = serde_json::from_str(json).unwrap_or_default();
        } else if let Some(told) = line.strip_prefix("told ") {
            self.told.push(told.to_owned());
        } else if let Some((which, json)) = line.strip_prefix("numbers").and_then(|rest| rest.split_once(' '))
        {
            self.numbers.insert(which.to_owned(), json.to_owned());
            self.finished = true;
        } else if let Some((name, verdict)) = test(line) {
            eprintln!("    {verdict:<6} {name}");
            self.tests.insert(name.to_owned(), verdict == "ok");
        }
        self.finished |= line.starts_with("test result: ");
        if line == "end" && !self.finished {
            self.broken = Some("the suite broke off".to_owned());
        }
        line == "end"
    }
}

/// Name and verdict in a line of the test harness, unless the test was left out. A test that ends the
/// harness has its last words there.
fn test(line: &str) -> Option<(&str, &str)> {
    let (name, verdict) = line.strip_prefix("test ")?.split_once(" ... ")?;
    if verdict.starts_with("ignored") {
        return None;
    }
    Some((name, if verdict == "ok" { "ok" } else { "FAILED" }))
}

/// Boots `unpacked`'s kernel with `image` and listens until it says that it is done, or for
/// `limit`. All that it says goes to `log`.
///
/// # Errors
/// The emulator cannot be started. A guest that breaks down is no error: its report says so.
pub(super) fn boot(
    emulator: &Emulator,
    unpacked: &Path,
    image: &Path,
    log: &Path,
    limit: Duration,
) -> Result<Report> {
    let mut command = emulator.command()?;
    command.arg("-kernel").arg(kernel(unpacked)?).arg("-initrd").arg(image);
    // The emulated timer's interrupts come too late for the kernel's own check of them.
    command.args(["-append", "console=ttyS0 quiet panic=-1 no_timer_check"]);
    command.arg("-serial").arg(format!("file:{}", log.display())).args(["-serial", "stdio"]);
    let errors = log.with_extension("qemu");
    let stderr = fs::File::create(&errors)?;
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr).spawn();
    let mut guest = Guest(child.context("cannot start the emulator")?);
    let lines = guest.lines()?;
    let report = listen(&lines, Instant::now() + limit);
    drop(guest);
    let said = fs::read(&errors)?;
    OpenOptions::new().append(true).create(true).open(log)?.write_all(&said)?;
    let _ = fs::remove_file(&errors);
    Ok(report)
}

fn listen(lines: &Receiver<String>, end: Instant) -> Report {
    let mut report = Report::default();
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if report.hear(&line) => return report,
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => {
                report.broken = Some("it was not done in time".to_owned());
                return report;
            }
            Err(RecvTimeoutError::Disconnected) => {
                report.broken = Some("it went down before it was done".to_owned());
                return report;
            }
        }
    }
}

/// The kernel's image in an unpacked package.
pub(super) fn kernel(unpacked: &Path) -> Result<PathBuf> {
    let modules = fs::read_dir(unpacked.join("usr/lib/modules")).into_iter().flatten().flatten();
    let dirs = modules.map(|entry| entry.path()).chain([unpacked.join("boot")]);
    for dir in dirs {
        let files = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
        let named =
            |path: &PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"));
        if let Some(image) = files.into_iter().find(named) {
            return Ok(image);
        }
    }
    bail!("no kernel image in {}", unpacked.display())
}

/// A running emulator, ended when nobody listens any more.
struct Guest(Child);

impl Guest {
    /// What it says on its second serial line.
    fn lines(&mut self) -> Result<Receiver<String>> {
        let output = self.0.stdout.take().context("it was asked for")?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_heard_until_it_says_that_it_is_done() {
        let mut report = Report::default();
        let lines = [
            "features {\"tcx\": true}",
            "running 2 tests",
            "test e2e::a ... ok",
            "test e2e::b ... FAILED",
            "test e2e::c ... ignored, it needs something",
            "test result: FAILED. 1 passed; 1 failed",
        ];
        assert!(!lines.iter().any(|line| report.hear(line)));
        assert!(report.hear("end") && report.broken.is_none());
        assert!(report.features["tcx"]);
        assert_eq!(report.tests, BTreeMap::from([("e2e::a".into(), true), ("e2e::b".into(), false)]));
    }

    #[test]
    fn a_benchmark_tells_its_table_and_numbers() {
        let mut report = Report::default();
        let lines = ["told | case |", "told ", "numbers-veth {\"cases\": []}"];
        assert!(!lines.iter().any(|line| report.hear(line)));
        assert!(report.hear("end") && report.broken.is_none());
        assert_eq!(report.told, ["| case |", ""]);
        assert_eq!(report.numbers["-veth"], "{\"cases\": []}");
    }

    #[test]
    fn a_suite_that_breaks_off_is_noticed() {
        let mut report = Report::default();
        for line in ["test e2e::a ... ok", "test e2e::b ... double free or corruption (!prev)", "end"] {
            report.hear(line);
        }
        assert!(!report.tests["e2e::b"] && report.broken.is_some());
    }

    #[test]
    fn a_guest_that_goes_down_is_noticed() {
        let (sender, receiver) = channel();
        sender.send("test e2e::a ... ok".to_owned()).expect("heard");
        drop(sender);
        let report = listen(&receiver, Instant::now() + Duration::from_secs(5));
        assert!(report.tests["e2e::a"] && report.broken.is_some());
    }
}
