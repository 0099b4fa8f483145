//! ifupdown2 for the tests: Debian's package, unpacked below `target/`. Installed it would take the place of `ifupdown`.

use std::path::PathBuf;

use anyhow::Result;

use crate::apt::{Apt, Kind, unpack_once};
use crate::run::{step, target_dir};

/// What the tests find it by.
pub(crate) const VARIABLE: &str = "IFUPDOWN2";
const SUITE: &str = "bookworm";

/// Where it is, if it has been unpacked.
pub(crate) fn unpacked() -> Option<PathBuf> {
    let package = dir().join("package");
    package.is_dir().then_some(package)
}

/// Unpacks it, unless it is there. Without it its test is left out, and says so.
pub(crate) fn unpack() {
    if unpacked().is_none()
        && let Err(error) = step("downloading ifupdown2", download)
    {
        eprintln!("    the tests do without ifupdown2: {error:#}");
    }
}

fn download() -> Result<()> {
    let apt = Apt::open(&dir().join("apt"), Kind::Packages, &[SUITE])?;
    unpack_once(&dir().join("package"), |debs| apt.download(&["ifupdown2"], debs)).map(drop)
}

fn dir() -> PathBuf {
    target_dir().join("ifupdown2")
}
