//! Fuzzing: builds the targets of `fuzz/` with instrumentation, runs each for a while, sums up.
//!
//! cargo-fuzz, of a pinned version, lies in `target/tools` and builds with the pinned nightly, which
//! has the sanitizer. The targets are run directly, because their output is the result.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::run::{output, run, step, target_dir, workspace};
use crate::{ebpf, host, toolchain};

const VERSION: &str = "0.13.2";
/// Largest input in bytes: frames can be larger, but a fuzzer need not spell them out.
const MAX_LEN: u32 = 2048;
/// What the names of inputs begin with that broke a promise, and not only took long.
const FAILURES: [&str; 4] = ["crash-", "leak-", "oom-", "timeout-"];

#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// Targets to run, all of them by default
    targets: Vec<String>,
    /// How long to run each of them
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Afterwards, add the finds that reach new code to the committed corpora
    #[arg(long)]
    adopt: bool,
}

/// Runs the fuzz targets that `args` select.
///
/// # Errors
/// A tool is missing and cannot be installed, a target does not build, or one has found a crash.
pub(crate) fn fuzz(args: &FuzzArgs) -> Result<()> {
    let targets = targets(&args.targets)?;
    ebpf::build()?;
    build()?;
    let mut failed = Vec::new();
    for target in &targets {
        let summary = target.run(args.seconds)?;
        println!("{:<12}{summary}", target.name);
        if args.adopt && summary.failures.is_empty() {
            target.adopt()?;
        }
        failed.extend(target.keep(&summary.failures)?);
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "fuzzing broke a promise: {}\nmend it, give each file a name that says what it is, and commit it; \
         `cargo test -p vxlan-tests --test replay` shows what happens",
        failed.join(", ")
    )
}

/// The targets called `names`, or all there are.
fn targets(names: &[String]) -> Result<Vec<Target>> {
    let dir = workspace().join("fuzz/fuzz_targets");
    let files = fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let stem = |file: PathBuf| file.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let mut known: Vec<String> = files.filter_map(Result::ok).filter_map(|file| stem(file.path())).collect();
    known.sort();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target `{name}`; there are {}", known.join(", "));
    }
    let chosen = if names.is_empty() { known } else { names.to_vec() };
    Ok(chosen.into_iter().map(|name| Target { name }).collect())
}

fn build() -> Result<()> {
    let bin = ensure_cargo_fuzz()?;
    // libFuzzer is compiled from source.
    host::install_tools(&[("c++", "g++")])?;
    let mut cargo = toolchain::nightly_cargo()?;
    cargo
        .args(["fuzz", "build", "--fuzz-dir", ".", "--target-dir"])
        .arg(dir().join("build"))
        .current_dir(workspace().join("fuzz"))
        .env("PATH", path_with(&bin)?)
        .env_remove("RUSTFLAGS");
    step("building the fuzz targets", || run(&mut cargo))
}

/// The directory of a cargo-fuzz of the pinned version; installs it when there is none.
fn ensure_cargo_fuzz() -> Result<PathBuf> {
    let tools = target_dir().join("tools");
    let bin = tools.join("bin");
    let said = output(Command::new(bin.join("cargo-fuzz")).arg("--version"));
    if said.is_ok_and(|said| said.split_whitespace().any(|word| word == VERSION)) {
        return Ok(bin);
    }
    let mut cargo = toolchain::cargo()?;
    cargo
        .args(["install", "cargo-fuzz", "--version", VERSION, "--locked", "--force", "--root"])
        .arg(&tools)
        .arg("--target-dir")
        .arg(tools.join("build"));
    step(&format!("building cargo-fuzz {VERSION} into {} (1-2 minutes)", tools.display()), || {
        run(&mut cargo)?;
        fs::remove_dir_all(tools.join("build")).context("cannot remove cargo-fuzz's build directory")
    })?;
    Ok(bin)
}

fn path_with(bin: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(bin.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).with_context(|| format!("{} cannot be in PATH", bin.display()))
}

/// Where everything goes that is not committed.
fn dir() -> PathBuf {
    target_dir().join("fuzz")
}

struct Target {
    name: String,
}

/// What a run came to.
struct Summary {
    executions: String,
    per_second: String,
    coverage: String,
    failures: Vec<PathBuf>,
    log: PathBuf,
}

impl Target {
    /// Runs for `seconds`, beginning with the committed corpus and what earlier runs have found.
    fn run(&self, seconds: u32) -> Result<Summary> {
        let (finds, crashes) = (self.below("corpus")?, self.below("crashes")?);
        for old in entries(&crashes)? {
            fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
        }
        let log = dir().join(format!("{}.log", self.name));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut fuzzer = self.fuzzer()?;
        fuzzer
            .arg(format!("-max_total_time={seconds}"))
            .arg("-print_final_stats=1")
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .args(self.dictionary())
            .arg(finds)
            .arg(self.committed())
            .stderr(file);
        let ended = step(&format!("fuzzing {} for {seconds} s", self.name), || {
            fuzzer.status().with_context(|| format!("cannot start the fuzz target {}", self.name))
        })?;
        let summary = Summary::read(log, entries(&crashes)?)?;
        if !ended.success() && summary.failures.is_empty() {
            bail!("the fuzz target {} ended with {ended}: see {}", self.name, summary.log.display());
        }
        Ok(summary)
    }

    /// Copies finds that reach code which the committed corpus does not.
    fn adopt(&self) -> Result<()> {
        let log = dir().join(format!("{}-merge.log", self.name));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut fuzzer = self.fuzzer()?;
        // By covered code, not by how often it runs as a running fuzzer goes: a tenth of the files.
        fuzzer.args(["-set_cover_merge=1", "-use_counters=0"]);
        fuzzer.arg(self.committed()).arg(self.below("corpus")?).stderr(file);
        step(&format!("adding finds to fuzz/corpus/{}", self.name), || run(&mut fuzzer))
    }

    /// Copies what broke a promise to the fixtures; returns their paths.
    fn keep(&self, failures: &[PathBuf]) -> Result<Vec<String>> {
        let fixtures = Path::new("fuzz/fixtures").join(&self.name);
        let copy = |failure: &PathBuf| {
            let fixture = fixtures.join(failure.file_name().unwrap_or_default());
            fs::create_dir_all(workspace().join(&fixtures))?;
            fs::copy(failure, workspace().join(&fixture))
                .with_context(|| format!("cannot copy {}", failure.display()))?;
            Ok(fixture.display().to_string())
        };
        failures.iter().map(copy).collect()
    }

    fn fuzzer(&self) -> Result<Command> {
        let build = dir().join("build");
        let binary = |triple: PathBuf| triple.join("release").join(&self.name);
        let built = entries(&build)?.into_iter().map(binary).find(|path| path.is_file());
        let built = built.with_context(|| format!("no fuzz target {} in {}", self.name, build.display()))?;
        let mut command = Command::new(built);
        command.arg(format!("-max_len={MAX_LEN}"));
        Ok(command)
    }

    fn dictionary(&self) -> Option<String> {
        let words = workspace().join("fuzz/dictionaries").join(format!("{}.dict", self.name));
        words.is_file().then(|| format!("-dict={}", words.display()))
    }

    fn committed(&self) -> PathBuf {
        workspace().join("fuzz/corpus").join(&self.name)
    }

    /// This target's directory of a kind that is not committed; it is there.
    fn below(&self, kind: &str) -> Result<PathBuf> {
        let path = dir().join(kind).join(&self.name);
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }
}

impl Summary {
    fn read(log: PathBuf, found: Vec<PathBuf>) -> Result<Self> {
        let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let said = String::from_utf8_lossy(&said);
        let failed = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            FAILURES.iter().any(|failure| name.starts_with(failure))
        };
        Ok(Self {
            executions: after(&said, "stat::number_of_executed_units:"),
            per_second: after(&said, "stat::average_exec_per_sec:"),
            coverage: format!("coverage {}, features {}", after(&said, " cov:"), after(&said, " ft:")),
            failures: found.into_iter().filter(failed).collect(),
            log,
        })
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { executions, per_second, coverage, failures, log } = self;
        let crashes = failures.len();
        write!(
            f,
            "{executions} executions ({per_second}/s), {coverage}, {crashes} crashes; {}",
            log.display()
        )
    }
}

/// The word that follows the last `label` in what a fuzzer has said.
fn after(said: &str, label: &str) -> String {
    let rest = said.rfind(label).map(|at| &said[at + label.len()..]);
    rest.and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_a_fuzzers_numbers_counts() {
        let said = "#2 INITED cov: 10 ft: 11\n#9 DONE   cov: 20 ft: 31 corp: 4/9b\n\
                    stat::number_of_executed_units: 9\n";
        assert_eq!(after(said, " cov:"), "20");
        assert_eq!(after(said, " ft:"), "31");
        assert_eq!(after(said, "stat::number_of_executed_units:"), "9");
        assert_eq!(after(said, "stat::average_exec_per_sec:"), "?");
    }

    #[test]
    fn an_unknown_target_is_refused_with_those_there_are() {
        let refusal = targets(&["warp".to_owned()]).err().map(|error| error.to_string());
        assert!(refusal.is_some_and(|said| said.contains("warp") && said.contains("decap")));
    }
}
