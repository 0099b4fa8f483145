//! The tests on kernels of other ages, in an emulator.
//!
//! Debian keeps a kernel of nearly every age. Each boots in software emulation, which needs no
//! virtualisation of the machine, with nothing but an initial file system: the agent, the test
//! suite, and the programs and kernel modules that the suite uses. Everything is downloaded and
//! unpacked below `target/kernels`; nothing is installed.

mod archive;
mod emulator;
mod guest;
pub(crate) mod machine;
mod modules;
mod report;
mod root;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::host::{self, Tool};
use crate::run::{output, step, target_dir};
use crate::{lab, suite, toolchain};
use archive::{Archive, Release};

/// The series that are tested, besides the newest that there is.
const SERIES: &[&str] = &["5.10", "6.1", "6.12", "6.18"];

/// What goes into the guests, and what packs it.
const TOOLS: &[Tool] = &[
    ("ip", "iproute2"),
    ("dnsmasq", "dnsmasq-base"),
    ("ethtool", "ethtool"),
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("strip", "binutils"),
    ("xz", "xz-utils"),
];

#[derive(Args)]
pub(crate) struct KernelArgs {
    /// Only kernels of this series, for example 6.1; may be given more than once
    #[arg(long)]
    kernel: Vec<String>,
    /// Minutes after which a kernel is given up
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// Only list the kernels that would be tested
    #[arg(long)]
    list: bool,
    /// Only tests whose names contain one of these, for example programs::; without, all but those of
    /// Kubernetes, etcd, Prometheus, FRR, networkd and reading rules, which are the same on every kernel
    filter: Vec<String>,
}

/// Tests that a kernel below the floor has to pass: the refusal, and the overlay without programs.
const BELOW_FLOOR: &str = "::floor::";

/// What is left out unless it is asked for: what the agent has of a cluster's API is the same on every
/// kernel, and so are what Prometheus makes of metrics, what the agent makes of rules, many of which want a module each,
/// and what FRR and networkd write.
const NOT_THE_KERNELS: &[&str] = &[
    "e2e::kubernetes::",
    "e2e::etcd::",
    "e2e::ruleset::",
    "e2e::metrics::prometheus::",
    "e2e::operate::top::",
    "segment::evpn::",
    "segment::ifupdown2::",
    "segment::networkd::",
];

/// Runs the suite on kernels of other ages and prints what each has and can.
///
/// # Errors
/// A kernel cannot be had or booted, or fails a test.
pub(crate) fn test(args: &KernelArgs) -> Result<()> {
    let archive = step("asking Debian's archive for kernels", || Archive::open(&dir()))?;
    let releases = choose(archive.releases()?, &args.kernel)?;
    if args.list {
        releases.iter().for_each(|release| println!("{:<6} {release}", release.series()));
        return Ok(());
    }
    host::install_tools(TOOLS)?;
    lab::build_all()?;
    let suite = build_suite()?;
    let emulator = emulator::find(&dir())?;
    let outcomes = releases.into_iter().map(|release| {
        let outcome = step(&format!("Linux {release}"), || {
            let filter = match &args.filter[..] {
                _ if release.is_below_floor() => vec![BELOW_FLOOR.to_owned()],
                [] => suite::without(NOT_THE_KERNELS),
                wanted => wanted.to_vec(),
            };
            let unpacked = archive.unpacked(&release)?;
            let image = root::build(&dir(), &emulator, &unpacked, &root::Job::Test(&suite), &filter)?;
            let limit = Duration::from_secs(args.timeout * 60);
            guest::boot(&emulator, &unpacked, &image, &dir().join(format!("{release}.log")), limit)
        });
        (release, outcome)
    });
    report::print(&outcomes.collect::<Vec<_>>())
}

/// The series in which instructions are counted unless another is asked for: the youngest that stays in the archive
/// for long.
pub(crate) const COUNTED: &str = "6.12";

/// Runs the benchmark in the emulator, whose clock counts instructions, and prints its table.
///
/// # Errors
/// The kernel cannot be had or booted, or the benchmark fails.
pub(crate) fn count(series: &str, options: &[OsString]) -> Result<()> {
    let archive = step("asking Debian's archive for kernels", || Archive::open(&dir()))?;
    let release = choose(archive.releases()?, &[series.to_owned()])?;
    let release = release.first().with_context(|| format!("the archive has no kernel {series}"))?;
    host::install_tools(TOOLS)?;
    lab::build_all()?;
    let emulator = emulator::find(&dir())?;
    let lab = target_dir().join("release/vxlan-lab");
    let options: Vec<_> = options.iter().map(|option| option.to_string_lossy().into_owned()).collect();
    let report = step(&format!("Linux {release}"), || {
        let unpacked = archive.unpacked(release)?;
        let image = root::build(&dir(), &emulator, &unpacked, &root::Job::Count(&lab), &options)?;
        guest::boot(&emulator, &unpacked, &image, &dir().join(format!("{release}.log")), BOOTED_FOR)
    })?;
    if report.broken.is_some() || report.numbers.is_empty() {
        bail!("the benchmark failed in the emulator; see {}", dir().join(format!("{release}.log")).display());
    }
    report.told.iter().for_each(|line| println!("{line}"));
    report.numbers.iter().try_for_each(|(which, numbers)| {
        let file = dir().join(format!("instructions-{}{which}.json", release.series()));
        fs::write(&file, numbers).with_context(|| format!("cannot write {}", file.display()))?;
        println!("{}", file.display());
        Ok(())
    })
}

/// After what time a guest that counts instructions is given up.
const BOOTED_FOR: Duration = Duration::from_secs(60 * 60);

/// Where everything goes.
fn dir() -> PathBuf {
    target_dir().join("kernels")
}

/// Builds the test suite and returns its path.
fn build_suite() -> Result<PathBuf> {
    let mut cargo = toolchain::cargo()?;
    cargo.args(["test", "--release", "-p", "vxlan-tests", "--test", "suite", "--no-run"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    let messages = step("building the test suite", || output(&mut cargo))?;
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        // The lab's program, which tests may run, is told of, too, in any order.
        let executable = message["executable"].as_str().filter(|_| message["target"]["name"] == "suite");
        executable.map(PathBuf::from)
    });
    executables.next().context("cargo did not say where the test suite is")
}

/// The newest release of every series that is asked for.
fn choose(mut all: Vec<Release>, wanted: &[String]) -> Result<Vec<Release>> {
    all.sort();
    let newest = all.last().map(Release::series);
    let mut series = match wanted {
        [] => SERIES.iter().map(ToString::to_string).chain(newest).collect(),
        wanted => wanted.to_vec(),
    };
    series.dedup();
    let mut chosen = Vec::new();
    for series in series {
        match all.iter().rev().find(|release| release.series() == series) {
            Some(release) => chosen.push(release.clone()),
            None if wanted.is_empty() => eprintln!("    no kernel {series} in the archive"),
            None => {
                let known: BTreeSet<String> = all.iter().map(Release::series).collect();
                let known = known.into_iter().collect::<Vec<_>>().join(", ");
                bail!("the archive has no kernel {series}; it has {known}")
            }
        }
    }
    Ok(chosen)
}
