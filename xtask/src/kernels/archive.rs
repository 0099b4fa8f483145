//! The kernels that Debian's archive has.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::apt::{Apt, Kind, unpack_once};
use crate::host::KERNEL_FLOOR;
use crate::run::output;

/// Each adds kernels that the others lack.
const SUITES: &[&str] = &["bullseye", "bookworm", "trixie", "trixie-backports", "sid"];
/// The flavour without drivers for hardware: a third of the size.
const FLAVOUR: &str = "-cloud-amd64";
/// Newer kernels are divided up; older ones are one package.
const PARTS: &[&str] = &["linux-image-", "linux-binary-", "linux-modules-"];
/// A kernel as `uname -r` names it, ordered by age.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Release {
    numbers: Vec<u32>,
    name: String,
}

impl Release {
    /// From a name as `uname -r` has it.
    pub(super) fn new(name: &str) -> Self {
        let words = name.split(|c: char| !c.is_ascii_digit());
        Self { numbers: words.filter_map(|word| word.parse().ok()).collect(), name: name.to_owned() }
    }

    /// Its name.
    pub(super) fn as_str(&self) -> &str {
        &self.name
    }

    /// Whether the fast path refuses it.
    pub(super) fn is_below_floor(&self) -> bool {
        self.numbers[..] < [KERNEL_FLOOR.0, KERNEL_FLOOR.1][..]
    }

    /// Its first two numbers, as in `6.1`.
    pub(super) fn series(&self) -> String {
        self.numbers.iter().take(2).map(ToString::to_string).collect::<Vec<_>>().join(".")
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The archive, and what has been fetched from it.
pub(super) struct Archive {
    dir: PathBuf,
    apt: Apt,
    packages: Vec<String>,
}

impl Archive {
    /// Reads the archive's lists.
    ///
    /// # Errors
    /// This is no Debian on x86-64, or its archive does not answer.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            bail!("the emulated kernels run this machine's programs, and are those of x86-64");
        }
        let apt = Apt::open(&dir.join("apt"), Kind::Packages, SUITES)?;
        let pattern = format!("^linux-(image|binary|modules)-[0-9].*{FLAVOUR}$");
        let found = output(apt.cache().args(["search", "--names-only", &pattern]))?;
        let packages = found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
        Ok(Self { dir: dir.to_owned(), apt, packages })
    }

    /// Every kernel that it has.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn releases(&self) -> Result<Vec<Release>> {
        let names = self.packages.iter().filter_map(|package| package.strip_prefix(PARTS[0]));
        // `linux-image-6.1-cloud-amd64` only stands for the newest of its series.
        let releases: Vec<_> = names.map(Release::new).filter(|release| release.numbers.len() > 3).collect();
        if releases.is_empty() {
            bail!("Debian's archive, as this machine knows it, has no kernels");
        }
        Ok(releases)
    }

    /// The directory with a kernel and its modules; downloads them the first time.
    ///
    /// # Errors
    /// They cannot be downloaded or unpacked.
    pub(super) fn unpacked(&self, release: &Release) -> Result<PathBuf> {
        let wanted = PARTS.iter().map(|part| format!("{part}{release}"));
        let packages: Vec<String> = wanted.filter(|name| self.packages.contains(name)).collect();
        unpack_once(&self.dir.join(release.to_string()), |debs| self.apt.download(&packages, debs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_ordered_by_age() {
        let names = ["6.1.0-0.deb11.52-cloud-amd64", "6.1.0-50-cloud-amd64", "6.12.107+deb13-cloud-amd64"];
        let releases = names.map(Release::new);
        assert!(releases.is_sorted(), "{releases:?}");
        assert_eq!(releases[1].series(), "6.1");
        assert_eq!(releases[2].to_string(), names[2]);
    }
}
