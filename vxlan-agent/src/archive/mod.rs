//! `report`: one archive with everything that somebody needs who is to find out from afar what is wrong.
//!
//! Every part is a text of its own. One that cannot be had says why in its place, and the others are there all the
//! same. Each goes through [`Secrets::hide`] on its way in.

mod cluster;
mod kernel;
mod secrets;
mod sysctl;

use std::fmt::Write as _;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

pub(crate) use cluster::state_files;
pub(crate) use kernel::kernel;
pub(crate) use secrets::Secrets;
pub(crate) use sysctl::settings;

/// The directory that everything is in.
const ROOT: &str = "vxlan-agent-report";

const README: &str = "\
A report of vxlan-agent, for whoever is to find out what is wrong.

Secrets are left out: passwords, user names, tokens, and whatever an address or a key of the configuration that is called
so had. Keys and certificates are not in here, only where they lie. Addresses, names of nodes, networks and interfaces are.

There is no log in here. The agent writes it to its standard error:

  journalctl -u vxlan-agent --since -1h
  kubectl -n vxlan-agent logs POD

What went wrong last, and when, is in status.txt.

Files:
";

/// What is collected.
#[derive(Default)]
pub(crate) struct Archive {
    secrets: Secrets,
    parts: Vec<(String, String)>,
    failed: Vec<String>,
}

impl Archive {
    /// An empty one, without what `secrets` knows.
    pub(crate) fn new(secrets: Secrets) -> Self {
        Self { secrets, ..Self::default() }
    }

    /// Adds a part, or why it cannot be had.
    pub(crate) fn add(&mut self, name: &str, text: anyhow::Result<String>) {
        let text = text.unwrap_or_else(|error| {
            let reason = format!("not collected: {error:#}\n");
            self.failed.push(format!("{name}: {reason}"));
            reason
        });
        self.parts.push((name.to_owned(), self.secrets.hide(&text)));
    }

    /// Names of the parts that could not be had, and why.
    pub(crate) fn failed(&self) -> &[String] {
        &self.failed
    }

    /// Names of all files.
    pub(crate) fn names(&self) -> Vec<&str> {
        std::iter::once("README").chain(self.parts.iter().map(|(name, _)| name.as_str())).collect()
    }

    /// Writes it as a compressed archive.
    ///
    /// # Errors
    /// `out` does not take it.
    pub(crate) fn write(&self, out: impl Write) -> anyhow::Result<()> {
        let mut archive = Builder::new(GzEncoder::new(out, Compression::default()));
        let context = "cannot write the archive";
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let readme = ("README".to_owned(), self.readme());
        for (name, text) in std::iter::once(&readme).chain(&self.parts) {
            let mut header = Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(time);
            archive.append_data(&mut header, format!("{ROOT}/{name}"), text.as_bytes()).context(context)?;
        }
        archive.into_inner().and_then(GzEncoder::finish).context(context)?.flush().context(context)
    }

    fn readme(&self) -> String {
        let mut text = README.to_owned();
        for (name, part) in &self.parts {
            let _ = writeln!(text, "  {name:<28} {} lines", part.lines().count());
        }
        if !self.failed.is_empty() {
            let _ = write!(text, "\nNot collected:\n  {}", self.secrets.hide(&self.failed.join("  ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_part_that_fails_is_noted_and_the_others_are_there() {
        let mut secrets = Secrets::default();
        secrets.know("hunter2".into());
        let mut archive = Archive::new(secrets);
        archive.add("good", Ok("with hunter2\n".into()));
        archive.add("bad", Err(anyhow::anyhow!("the disk is gone, and hunter2 with it")));
        let mut packed = vec![];
        archive.write(&mut packed).expect("written");
        let mut unpacked = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
        let mut texts = vec![];
        for entry in unpacked.entries().expect("an archive") {
            let mut entry = entry.expect("an entry");
            let name = entry.path().expect("a path").display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).expect("text");
            assert!(!text.contains("hunter2"), "{name}: {text}");
            texts.push((name, text));
        }
        let names: Vec<_> = texts.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["vxlan-agent-report/README", "vxlan-agent-report/good", "vxlan-agent-report/bad"]);
        assert!(texts[0].1.contains("bad: not collected: the disk is gone"), "{}", texts[0].1);
        assert_eq!(archive.failed().len(), 1);
    }
}
