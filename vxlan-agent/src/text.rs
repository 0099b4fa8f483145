//! TOML from a file, with errors of one sentence that name file and line.

mod examine;

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::libc;
use serde::de::DeserializeOwned;

pub use examine::{Examined, MOST};

/// The longest file that is read, in bytes: 20 000 nodes of 400 bytes. Parsed, it takes 35 times as much.
const LARGEST: u64 = 8 << 20;

/// A file that was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Refused {
    /// The file.
    pub path: PathBuf,
    /// Line, counted from 1, where the reason has one.
    pub line: Option<usize>,
    /// One sentence.
    pub reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(line) = self.line {
            write!(f, ", line {line}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// The text of a file, and its name for messages.
#[derive(Clone, Debug)]
pub struct Text {
    path: PathBuf,
    content: String,
}

impl Text {
    /// Reads `path`; the error names it.
    pub fn read(path: &Path) -> Result<Self, Refused> {
        let content = read(path).map_err(|e| Refused {
            path: path.to_owned(),
            line: None,
            reason: format!("cannot be read: {e}"),
        })?;
        Ok(Self::new(path, content))
    }

    /// `content`, as if read from `path`.
    pub fn new(path: impl Into<PathBuf>, content: impl Into<String>) -> Self {
        Self { path: path.into(), content: content.into() }
    }

    /// The bare text.
    pub fn content(&self) -> &str {
        &self.content
    }

    /// Deserialises the whole text.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Refused> {
        toml::from_str(&self.content).map_err(|error| self.refusal(&error))
    }

    fn refusal(&self, error: &toml::de::Error) -> Refused {
        let reason = error.message().lines().collect::<Vec<_>>().join(", ");
        self.refuse(error.span(), reason)
    }

    /// A refusal at `span` of this text.
    pub fn refuse(&self, span: Option<Range<usize>>, reason: impl Into<String>) -> Refused {
        let line = span.map(|s| self.line_of(s.start));
        Refused { path: self.path.clone(), line, reason: printable(&reason.into()) }
    }

    /// The file and the line of `span`, for a message about another place.
    pub fn place(&self, span: &Range<usize>) -> String {
        format!("{}, line {}", self.path.display(), self.line_of(span.start))
    }

    fn line_of(&self, offset: usize) -> usize {
        let before = self.content.as_bytes().iter().take(offset);
        before.filter(|b| **b == b'\n').count() + 1
    }
}

/// Reads a regular file. To open a FIFO would otherwise wait for somebody to write to it.
fn read(path: &Path) -> io::Result<String> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = String::new();
    let length = file.take(LARGEST + 1).read_to_string(&mut content)?;
    if about.len() > LARGEST || length as u64 > LARGEST {
        return Err(io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20)));
    }
    Ok(content)
}

/// One line, whatever the text says that `reason` quotes.
fn printable(reason: &str) -> String {
    let mut line = String::with_capacity(reason.len());
    for c in reason.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bearable_size_are_read() {
        let dir = tempfile::tempdir().expect("directory");
        let refused = |path: &Path| Text::read(path).expect_err("refused").reason;
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
        for other in [fifo.as_path(), dir.path(), Path::new("/dev/zero")] {
            assert!(refused(other).contains("not a regular file"), "{}", other.display());
        }
        let file = dir.path().join("file");
        std::fs::write(&file, vec![b' '; LARGEST as usize]).expect("written");
        assert!(Text::read(&file).is_ok());
        std::fs::write(&file, vec![b' '; LARGEST as usize + 1]).expect("written");
        assert!(refused(&file).contains("larger than 8 MiB"));
    }
}
