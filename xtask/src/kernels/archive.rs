//! Debian's archive, asked for more suites than this machine uses, by an apt of its own: the
//! system's configuration and lists stay as they are.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::host::KERNEL_FLOOR;
use crate::run::{output, run};

/// Each adds kernels that the others lack.
const SUITES: &[&str] = &["bullseye", "bookworm", "trixie", "trixie-backports", "sid"];
/// The flavour without drivers for hardware: a third of the size.
const FLAVOUR: &str = "-cloud-amd64";
/// Newer kernels are divided up; older ones are one package.
const PARTS: &[&str] = &["linux-image-", "linux-binary-", "linux-modules-"];
/// Where Debian's package `debian-archive-keyring` has the keys of all suites.
const KEYRINGS: &[&str] =
    &["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];
/// How long the lists of packages are taken to be true.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

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
    apt: Vec<String>,
    packages: Vec<String>,
}

impl Archive {
    /// Reads the archive's lists, anew if the last time was yesterday.
    ///
    /// # Errors
    /// This is no Debian on x86-64, or its archive does not answer.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        if !cfg!(target_arch = "x86_64") {
            bail!("the emulated kernels run this machine's programs, and are those of x86-64");
        }
        let apt_dir = dir.join("apt");
        let apt = private_apt(&apt_dir)?;
        let stamp = apt_dir.join("updated");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).map(|at| at.elapsed());
        if !age.is_ok_and(|age| age.is_ok_and(|age| age < FRESH)) {
            // A suite that the mirror lacks is an error, and the others are there all the same.
            if let Err(error) = run(Command::new("apt-get").args(&apt).args(["update", "-qq"])) {
                eprintln!("    not all of Debian's suites could be read: {error}");
            }
            fs::write(&stamp, format!("{:?}\n", SystemTime::now()))?;
        }
        let pattern = format!("^linux-(image|binary|modules)-[0-9].*{FLAVOUR}$");
        let found = output(Command::new("apt-cache").args(&apt).args(["search", "--names-only", &pattern]))?;
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
        unpack_once(&self.dir.join(release.to_string()), |debs| {
            run(Command::new("apt-get")
                .args(&self.apt)
                .args(["download", "-q"])
                .args(&packages)
                .current_dir(debs))
        })
    }
}

/// Options that give apt its own lists, with Debian's suites from this machine's mirror.
fn private_apt(dir: &Path) -> Result<Vec<String>> {
    for below in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.join(below))?;
    }
    let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
    let signed = keyring.map(|path| format!(" signed-by={path}")).unwrap_or_default();
    let mirror = mirror()?;
    let line = |suite| format!("deb [arch=amd64{signed}] {mirror} {suite} main\n");
    let sources = dir.join("sources.list");
    fs::write(&sources, SUITES.iter().map(line).collect::<String>())?;
    let dir = dir.display();
    let options = [
        format!("Dir::State={dir}/state"),
        format!("Dir::Cache={dir}/cache"),
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        "Dir::Etc::preferences=/dev/null".to_owned(),
        "Dir::Etc::preferencesparts=/dev/null".to_owned(),
        "Acquire::Languages=none".to_owned(),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
    ];
    Ok(options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect())
}

/// Where this machine gets Debian from.
fn mirror() -> Result<String> {
    let mut query = Command::new("apt-get");
    query.args(["indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)"]);
    let targets =
        output(query.arg("Created-By: Packages")).context("kernels come from Debian's archive, by apt")?;
    let mut uris = targets.lines().filter_map(|line| {
        let [origin, component, codename, uri] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let whole = origin == "Debian" && component == "main" && !codename.contains('-');
        whole.then(|| uri.to_owned())
    });
    uris.next()
        .context("none of this machine's package sources is Debian's archive (apt-get update lists them)")
}

/// Unpacks the packages that `fetch` puts into a directory into `target`, unless that is there.
///
/// # Errors
/// `fetch` fails, or a package cannot be unpacked.
pub(super) fn unpack_once(target: &Path, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if target.exists() {
        return Ok(target.to_owned());
    }
    let debs = target.with_extension("debs");
    let partial = target.with_extension("partial");
    for dir in [&debs, &partial] {
        let _ = fs::remove_dir_all(dir);
        fs::create_dir_all(dir)?;
    }
    fetch(&debs)?;
    let files = fs::read_dir(&debs)?.filter_map(Result::ok).map(|entry| entry.path());
    for deb in files.filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&partial))?;
    }
    fs::remove_dir_all(&debs)?;
    fs::rename(&partial, target).with_context(|| format!("cannot make {}", target.display()))?;
    Ok(target.to_owned())
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
