//! The table: what each kernel has, and how the tests went.

use anyhow::{Result, bail};

use super::archive::Release;
use super::guest::Report;

/// A kernel, and what became of it.
pub(super) type Outcome = (Release, Result<Report>);

const YES: &str = "yes";
const NO: &str = "–";

/// Prints a row for every kernel, then what failed.
///
/// # Errors
/// A kernel could not be booted, or failed a test, or ran none.
pub(super) fn print(outcomes: &[Outcome]) -> Result<()> {
    println!(
        "\n| kernel | programs attached by | decapsulates IPv6 in IPv4, IPv4 in IPv6 | XDP frags | BTF | programs | end to end |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut failures = Vec::new();
    for (release, outcome) in outcomes {
        match outcome {
            Ok(report) => {
                println!("{}", row(release, report));
                failures.extend(failures_of(release, report));
            }
            Err(error) => failures.push(format!("{release}: {error:#}")),
        }
    }
    if failures.is_empty() {
        return Ok(());
    }
    bail!("{}", failures.join("\n       "))
}

fn row(release: &Release, report: &Report) -> String {
    let has = |name: &str| report.features.get(name).copied().unwrap_or(false);
    let yes = |name: &str| if has(name) { YES } else { NO };
    let cells = if release.is_below_floor() {
        [NO, NO, NO, yes("btf")]
    } else {
        let attach = if has("tcx") { "TCX" } else { "clsact" };
        [attach, yes("mixed_decap"), yes("xdp_frags"), yes("btf")]
    };
    let suites = ["programs::", "e2e::"].map(|suite| tally(report, suite));
    format!("| {release} | {} | {} |", cells.join(" | "), suites.join(" | "))
}

/// How many tests of a suite have passed.
fn tally(report: &Report, suite: &str) -> String {
    let tests: Vec<bool> =
        report.tests.iter().filter(|(name, _)| name.starts_with(suite)).map(|(_, ok)| *ok).collect();
    match (tests.iter().filter(|ok| **ok).count(), tests.len()) {
        (_, 0) => NO.to_owned(),
        (passed, all) if passed == all => format!("{all} pass"),
        (passed, all) => format!("**{passed} of {all} pass**"),
    }
}

fn failures_of(release: &Release, report: &Report) -> Vec<String> {
    let failed =
        report.tests.iter().filter(|(_, ok)| !**ok).map(|(name, _)| format!("{release}: {name} failed"));
    let broken = report.broken.iter().map(|why| format!("{release}: {why}"));
    let nothing = report.tests.is_empty().then(|| format!("{release}: no test was run"));
    failed.chain(broken).chain(nothing).collect()
}
