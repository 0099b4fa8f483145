//! The status file: how `status` knows the agent without asking it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::{Errors, Status, lock};

const STATUS: &str = "status.json";

/// The status file in `run_dir`.
pub fn file(run_dir: &Path) -> PathBuf {
    run_dir.join(STATUS)
}

/// Writes the status file when there is something new.
pub struct StatusFile {
    path: PathBuf,
    written: Option<Status>,
    errors: Errors,
}

impl StatusFile {
    /// The status file in `run_dir`. What an agent before has written there of errors is kept.
    pub fn new(run_dir: &Path) -> Self {
        let before = read(run_dir).ok().flatten().map(|status| status.errors).unwrap_or_default();
        Self { path: file(run_dir), written: None, errors: Errors::of_before(before, now()) }
    }

    /// Replaces the file in one step, unless it says the same already. What is wrong is taken down with its time.
    pub fn write(&mut self, mut status: Status) -> anyhow::Result<()> {
        self.errors.note(status.wrong(), now());
        status.errors = self.errors.list();
        if self.written.as_ref() == Some(&status) {
            return Ok(());
        }
        let context = || format!("cannot write the status file {}", self.path.display());
        let temporary = self.path.with_extension("tmp");
        let mut text = serde_json::to_string_pretty(&status).with_context(context)?;
        text.push('\n');
        fs::write(&temporary, text).with_context(context)?;
        fs::rename(&temporary, &self.path).with_context(context)?;
        self.written = Some(status);
        Ok(())
    }
}

/// In seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What the agent last wrote; `None` if there never was one.
pub fn read(run_dir: &Path) -> anyhow::Result<Option<Status>> {
    let path = file(run_dir);
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => {
            let text = text.with_context(|| format!("cannot read {}", path.display()))?;
            let status = serde_json::from_str(&text);
            Ok(Some(
                status.with_context(|| {
                    format!("{} is not the status of this version's agent", path.display())
                })?,
            ))
        }
    }
}

/// Removes what an agent leaves in its run directory.
pub fn remove(run_dir: &Path) -> anyhow::Result<()> {
    for name in [STATUS, lock::LOCK] {
        match fs::remove_file(run_dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", run_dir.join(name).display()));
            }
            _ => {}
        }
    }
    // It stays if somebody else put something in.
    let _ = fs::remove_dir(run_dir);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::status;

    #[test]
    fn the_status_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("directory");
        assert_eq!(read(dir.path()).expect("readable"), None);
        let status = status();
        StatusFile::new(dir.path()).write(status.clone()).expect("writable");
        assert_eq!(read(dir.path()).expect("readable"), Some(status));
        remove(dir.path()).expect("removable");
        assert!(!dir.path().exists());
        fs::create_dir(dir.path()).expect("for the guard");
    }
}
