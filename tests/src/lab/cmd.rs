//! Running programs of the distribution, and waiting for conditions.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs a command and returns what it printed.
///
/// # Errors
/// It cannot be started or ends with a status other than zero: the error quotes what it said.
pub fn run(command: &mut Command) -> Result<String> {
    feed(command, "")
}

/// As [`run`], with `input` on standard input.
///
/// # Errors
/// As [`run`].
pub(super) fn feed(command: &mut Command, input: &str) -> Result<String> {
    let name = describe(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{name}`"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that does not read its input is no failure of ours.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for `{name}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let input = if input.is_empty() { String::new() } else { format!("\ninput:\n{input}") };
        bail!("`{name}` ended with {}: {}{input}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A limit from here on only says when to give up, and a machine that does other things may be late.
const LIMIT: Duration = Duration::from_secs(5);
/// So long is waited then, which is far from when agents read everything anew.
const PATIENCE: Duration = Duration::from_secs(15);

/// Polls `condition` until it is true.
///
/// # Errors
/// It still is not after `timeout`, or after 15 s if that is from 5 s to 15 s; the error names `what` was waited for.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let timeout = if timeout < LIMIT { timeout } else { timeout.max(PATIENCE) };
    let end = Instant::now() + timeout;
    while !condition() {
        if Instant::now() >= end {
            bail!("waited {} s in vain: {what}", timeout.as_secs_f32());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A command's line as a shell would have it, but for quotes.
pub(super) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
