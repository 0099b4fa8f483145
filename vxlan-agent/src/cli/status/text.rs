//! `status` for people: one screen, the verdict first.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossterm::style::Stylize as _;

use super::Report;
use super::network::network_text;
use super::verdict::{Grade, Verdict};
use crate::cli::features;
use crate::config::Fastpath;
use crate::status::{ErrorStatus, NetworkStatus, Status};

/// How many of the last errors are listed.
const MOST_ERRORS: usize = 5;

pub(super) fn text(run_dir: &Path, report: &Report, colour: bool) -> String {
    let mut out = headline(&report.health, colour);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let started = report.status.as_ref().map_or(now, |status| status.started);
    let agent = match report.pid {
        Some(pid) => format!("running, pid {pid}, for {}", age(now, started)),
        None if report.running => "running, in a container".to_owned(),
        None => "not running; what it set up goes on as it is".to_owned(),
    };
    let _ = writeln!(out, "agent      {agent}");
    let Some(status) = &report.status else {
        let _ = writeln!(out, "           no status in {}", run_dir.display());
        return out;
    };
    let _ = writeln!(out, "node       {}, Linux {}, agent {}", status.node, status.kernel, status.version);
    if !status.rights.is_empty() {
        let _ = writeln!(out, "rights     {}", status.rights.join(", "));
    }
    let fast = |network: &NetworkStatus| network.mode != Fastpath::Off;
    if status.networks.iter().any(fast) {
        out.push_str(&features::missing(&status.features));
    }
    out.push_str(&trouble(status));
    out.push_str(&errors(&status.errors, now));
    for network in &status.networks {
        // One that is not there yet is as good as none.
        let fastpath = report.fastpath_of.get(&network.name).unwrap_or(&report.fastpath);
        network_text(&mut out, network, fastpath);
    }
    if let Some(every) = &status.every {
        let _ = writeln!(
            out,
            "devices    each that somebody else manages has a network, which is named after it"
        );
        every.left.iter().for_each(|reason| _ = writeln!(out, "kernel's   {reason}"));
    }
    out
}

/// Whether it is well.
fn headline(verdict: &Verdict, colour: bool) -> String {
    let word = format!("{:<10}", verdict.grade.word());
    let word = match verdict.grade {
        _ if !colour => word,
        Grade::Healthy => word.green().bold().to_string(),
        Grade::Attention => word.yellow().bold().to_string(),
        Grade::Unwell => word.red().bold().to_string(),
    };
    match verdict.reasons.as_slice() {
        [] => format!("{word} everything runs as it is configured\n"),
        reasons => format!("{word} {}\n", reasons.join("\n           ")),
    }
}

/// What is wrong at the moment.
fn trouble(status: &Status) -> String {
    let mut out = String::new();
    if let Some(error) = &status.config_error {
        let _ = writeln!(out, "refused    the configuration, the one before is in force: {error}");
    }
    if let Some(error) = &status.error {
        let _ = writeln!(out, "stuck      {error}");
    }
    for retry in &status.retrying {
        let _ = writeln!(out, "retrying   {} ({} attempts): {}", retry.change, retry.attempts, retry.error);
    }
    out
}

/// What went wrong last, the newest first, and how long ago.
fn errors(errors: &[ErrorStatus], now: u64) -> String {
    let mut out = String::new();
    for (n, error) in errors.iter().rev().take(MOST_ERRORS).enumerate() {
        let label = if n == 0 { "errors" } else { "" };
        let when = match error.until {
            None => format!("for {}", age(now, error.since)),
            Some(until) => format!("until {} ago", age(now, until)),
        };
        let _ = writeln!(out, "{label:<10} {when}: {}", error.what);
    }
    out
}

/// From `then` to `now`, as people say it.
fn age(now: u64, then: u64) -> String {
    let seconds = Duration::from_secs(now.saturating_sub(then)).as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_in_words_whether_it_is_well() {
        let verdict = |grade, reasons: &[&str]| Verdict {
            grade,
            reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
        };
        let well = headline(&verdict(Grade::Healthy, &[]), false);
        assert_eq!(well, "healthy    everything runs as it is configured\n");
        let ill = headline(&verdict(Grade::Unwell, &["a", "b"]), false);
        assert_eq!(ill, "unwell     a\n           b\n");
    }

    #[test]
    fn errors_are_told_with_their_age_the_newest_first() {
        let error = |what: &str, since, until| ErrorStatus { what: what.into(), since, until };
        let said = errors(&[error("old", 0, Some(400)), error("new", 990, None)], 1000);
        assert_eq!(said, "errors     for 10 s: new\n           until 10 min ago: old\n");
        assert_eq!(age(10_000, 0), "2 h");
        assert_eq!(age(1_000_000, 0), "11 days");
    }
}
