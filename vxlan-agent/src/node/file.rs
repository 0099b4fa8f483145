//! Files that others read while we write.

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// Makes `path` have `content`, in one step; whether it had another.
pub fn write_if_other(path: &Path, content: &str) -> anyhow::Result<bool> {
    if has(path, content)? {
        return Ok(false);
    }
    let context = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(context)?;
    }
    let temporary = temporary(path);
    // On the disk before it has its name: a crash must not leave an empty file.
    let written = fs::File::create(&temporary)
        .and_then(|mut file| file.write_all(content.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.with_context(context)?;
    Ok(true)
}

/// Removes `path` if it has `content`; whether it did.
pub fn remove_if_same(path: &Path, content: &str) -> anyhow::Result<bool> {
    if !has(path, content)? {
        return Ok(false);
    }
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
    Ok(true)
}

fn has(path: &Path, content: &str) -> anyhow::Result<bool> {
    match fs::read(path) {
        Ok(found) => Ok(found == content.as_bytes()),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// A name next to `path` that no reader of CNI configurations takes for one.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    name.into()
}
