//! The unit tests of the packet engine, interpreted.

use std::process::Command;
use std::thread;

use anyhow::{Result, anyhow};

use crate::run::{output, run_beside, step, target_dir};
use crate::toolchain;

/// Interpreters at once at most; each interprets one thread.
const MOST: usize = 4;

/// Interprets those tests whose names contain one of `filter`, on all CPUs.
///
/// # Errors
/// The toolchain is missing, or a test fails.
pub(crate) fn test(filter: &[String]) -> Result<()> {
    let names = step("building the tests of the packet engine for miri", || list(filter))?;
    if names.is_empty() {
        return Ok(());
    }
    step("tests of the packet engine under miri", || {
        thread::scope(|scope| {
            let shares = deal(&names, thread::available_parallelism().map_or(1, usize::from).min(MOST));
            let share = |(n, share)| scope.spawn(move || interpret(n, share));
            let all: Vec<_> = shares.into_iter().enumerate().map(share).collect();
            let ended = all.into_iter().map(|one| one.join().map_err(|_| anyhow!("miri's step panicked"))?);
            // All of them end before the first error is returned, so that none goes on behind it.
            ended.collect::<Vec<_>>().into_iter().collect()
        })
    })
}

/// The names of the tests. Finding them builds everything.
fn list(filter: &[String]) -> Result<Vec<String>> {
    let listed = output(miri()?.args(["-q", "--", "--list"]).args(filter))?;
    Ok(listed.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

/// `names` in as many shares, dealt like cards, because neighbours take about as long.
fn deal(names: &[String], shares: usize) -> Vec<Vec<&String>> {
    (0..shares).map(|n| names.iter().skip(n).step_by(shares).collect()).collect()
}

fn interpret(n: usize, names: Vec<&String>) -> Result<()> {
    let mut cargo = miri()?;
    cargo.args(["-q", "--", "--exact"]).args(names);
    run_beside(&format!("miri-{n}"), cargo)
}

fn miri() -> Result<Command> {
    let mut cargo = toolchain::nightly_cargo()?;
    cargo
        .args(["miri", "test", "-p", "vxlan-ebpf-common", "--lib", "--target-dir"])
        .arg(target_dir().join("miri"))
        // The interpreter is some hundred times slower: fewer random cases.
        .env("PROPTEST_CASES", "8")
        .env("MIRIFLAGS", "-Zmiri-disable-isolation");
    Ok(cargo)
}

#[cfg(test)]
mod tests {
    use super::deal;

    #[test]
    fn every_test_is_in_one_share() {
        let names = ["a", "b", "c", "d", "e"].map(str::to_owned);
        let shares = deal(&names, 2);
        assert_eq!(shares, [vec!["a", "c", "e"], vec!["b", "d"]]);
    }
}
