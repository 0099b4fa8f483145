//! The table: what each kernel has, and how the tests went.

use anyhow::{Result, bail};

use super::archive::Release;
use super::guest::Report;

/// A kernel, and what became of it.
pub(super) type Outcome = (Release, Result<Report>);

const NONE: &str = "–";

/// Prints a row for every kernel, in Markdown.
///
/// # Errors
/// A kernel could not be booted, or failed a test, or ran none: all of that, a line each.
pub(super) fn print(outcomes: &[Outcome]) -> Result<()> {
    println!(
        "\n| Linux | programs attached as | other IP family decapsulated by | `DECAP_L4_UDP` | XDP frags | BTF \
         | programs and model | end to end | bridged segments |\n|---|---|---|---|---|---|---|---|---|"
    );
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
    let either = |name: &str, yes, no| if has(name) { yes } else { no };
    let attach = if release.is_below_floor() { "none, too old" } else { either("tcx", "TCX", "clsact") };
    let cells = [
        release.as_str(),
        attach,
        either("mixed_decap", "programs", "device"),
        either("aggregate_decap", "yes", "no"),
        either("xdp_frags", "yes", "no"),
        either("btf", "yes", "no"),
        &tally(report, "programs::"),
        &tally(report, "e2e::"),
        // `segments::` asks for what the agent makes in the kernel.
        &tally(report, "segment"),
    ];
    format!("| {} |", cells.join(" | "))
}

/// How many tests of a suite have passed.
fn tally(report: &Report, suite: &str) -> String {
    let of_suite = report.tests.iter().filter(|(name, _)| name.starts_with(suite));
    let tests: Vec<bool> = of_suite.map(|(_, passed)| *passed).collect();
    match (tests.iter().filter(|passed| **passed).count(), tests.len()) {
        (_, 0) => NONE.to_owned(),
        (passed, all) if passed == all => format!("{all} pass"),
        (passed, all) => format!("**{} of {all} fail**", all - passed),
    }
}

fn failures_of(release: &Release, report: &Report) -> Vec<String> {
    let failed = report.tests.iter().filter(|(_, passed)| !**passed);
    let failed = failed.map(|(name, _)| format!("{release}: {name} failed"));
    let broken = report.broken.iter().map(|why| format!("{release}: {why}"));
    let nothing = report.tests.is_empty().then(|| format!("{release}: no test was run"));
    failed.chain(broken).chain(nothing).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn report(passed: bool) -> Report {
        let tests = [("e2e::a", true), ("e2e::b", passed), ("segment::fast::c", true)]
            .map(|(name, ok)| (name.to_owned(), ok));
        Report {
            features: BTreeMap::from([("tcx".to_owned(), true)]),
            tests: tests.into(),
            ..Report::default()
        }
    }

    #[test]
    fn a_row_says_what_the_kernel_has_and_how_the_tests_went() {
        let release = Release::new("6.12.1+deb13-cloud-amd64");
        let expected = "| 6.12.1+deb13-cloud-amd64 | TCX | device | no | no | no | – | 2 pass | 1 pass |";
        assert_eq!(row(&release, &report(true)), expected);
        assert!(row(&release, &report(false)).contains("**1 of 2 fail**"));
        assert!(row(&Release::new("5.10.0-1-cloud-amd64"), &report(true)).contains("too old"));
    }

    #[test]
    fn a_failed_test_a_broken_guest_and_silence_are_failures() {
        let release = Release::new("6.12.1+deb13-cloud-amd64");
        let broken = Report { broken: Some("it went down".to_owned()), ..report(true) };
        let outcomes =
            [(report(true), true), (report(false), false), (broken, false), (Report::default(), false)];
        for (report, well) in outcomes {
            assert_eq!(print(&[(release.clone(), Ok(report))]).is_ok(), well);
        }
    }
}
