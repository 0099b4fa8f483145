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

/// Polls `condition` until it is true.
///
/// # Errors
/// It still is not after `timeout`; the error names `what` was waited for.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
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
