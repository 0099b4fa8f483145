//! Running commands, and saying what is being done and how long it took.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::took;

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// Where cargo puts what it builds: `CARGO_TARGET_DIR`, or `target` in the workspace.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace().join(dir),
        None => workspace().join("target"),
    }
}

/// Does `work`, with a line before it that names it and one after it that tells the time, which the
/// table at the end tells again.
///
/// # Errors
/// What `work` returned, with the step's name in front.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("==> {name}");
    let start = Instant::now();
    let result = work().with_context(|| format!("step “{name}” failed"));
    took::note(name, start.elapsed());
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("    done in {seconds:.1} s: {name}"),
        Err(_) => eprintln!("    FAILED after {seconds:.1} s: {name}"),
    }
    result
}

/// Runs a command whose output the user sees.
///
/// # Errors
/// The command cannot be started or ends with a status other than zero.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command.status().with_context(|| format!("cannot start `{name}`"))?;
    if !status.success() {
        bail!("`{name}` ended with {status}");
    }
    Ok(())
}

/// Runs a command beside something else: what it prints goes into `target/NAME.log`, and to the user when
/// it has ended.
///
/// # Errors
/// As [`run`], or the file cannot be written.
pub(crate) fn run_beside(name: &str, mut command: Command) -> Result<()> {
    let path = target_dir().join(format!("{name}.log"));
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    command.stdout(log.try_clone()?).stderr(log);
    let ended = run(&mut command);
    let printed = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    io::stdout().lock().write_all(&printed)?;
    ended
}

/// Runs a command and returns what it printed.
///
/// # Errors
/// The command cannot be started, or ends with a status other than zero: the error quotes what it
/// said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{name}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{name}` ended with {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
