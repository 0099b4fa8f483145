//! TOML from a file, with errors of one sentence that name file and line.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

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
        let content = std::fs::read_to_string(path).map_err(|e| Refused {
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
        toml::from_str(&self.content).map_err(|e| {
            let reason = e.message().lines().collect::<Vec<_>>().join(", ");
            self.refuse(e.span(), reason)
        })
    }

    /// A refusal at `span` of this text.
    pub fn refuse(&self, span: Option<Range<usize>>, reason: impl Into<String>) -> Refused {
        let line = span.map(|s| self.line_of(s.start));
        Refused { path: self.path.clone(), line, reason: printable(&reason.into()) }
    }

    fn line_of(&self, offset: usize) -> usize {
        let before = self.content.as_bytes().iter().take(offset);
        before.filter(|b| **b == b'\n').count() + 1
    }
}

/// One line, whatever the text says that `reason` quotes.
fn printable(reason: &str) -> String {
    let mut line = String::with_capacity(reason.len());
    for c in reason.chars() {
        if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
    }
    line
}
