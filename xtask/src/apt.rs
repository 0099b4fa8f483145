//! Debian's archive, asked for more suites than this machine uses, by an apt of its own: the
//! system's configuration and lists stay as they are.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

use crate::run::{output, run};

/// Where Debian's package `debian-archive-keyring` has the keys of all suites.
const KEYRINGS: &[&str] =
    &["/usr/share/keyrings/debian-archive-keyring.pgp", "/usr/share/keyrings/debian-archive-keyring.gpg"];
/// How long the lists of packages are taken to be true.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// What an archive is asked for.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    Packages,
    Sources,
}

/// An apt with lists of its own.
pub(crate) struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Keeps all below `dir`, and reads the lists of `suites` from this machine's mirror, anew if the
    /// last time was yesterday.
    ///
    /// # Errors
    /// This machine gets nothing from Debian's archive.
    pub(crate) fn open(dir: &Path, kind: Kind, suites: &[&str]) -> Result<Self> {
        let apt = Self { options: private(dir, kind, suites)? };
        let stamp = dir.join("updated");
        let age = fs::metadata(&stamp).and_then(|meta| meta.modified()).map(|at| at.elapsed());
        if !age.is_ok_and(|age| age.is_ok_and(|age| age < FRESH)) {
            // A suite that the mirror lacks is an error, and the others are there all the same.
            if let Err(error) = run(apt.get().args(["update", "-qq"])) {
                eprintln!("    not all of Debian's suites could be read: {error}");
            }
            fs::write(&stamp, format!("{:?}\n", SystemTime::now()))?;
        }
        Ok(apt)
    }

    /// `apt-get`, to be told what to do.
    pub(crate) fn get(&self) -> Command {
        self.command("apt-get")
    }

    /// `apt-cache`, likewise.
    pub(crate) fn cache(&self) -> Command {
        self.command("apt-cache")
    }

    /// Downloads packages, and not those that they depend on, into the directory `debs`.
    ///
    /// # Errors
    /// The archive has not all of them.
    pub(crate) fn download<S: AsRef<OsStr>>(&self, packages: &[S], debs: &Path) -> Result<()> {
        run(self.get().args(["download", "-q"]).args(packages).current_dir(debs))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

/// Options that give apt its own lists, with Debian's suites from this machine's mirror.
fn private(dir: &Path, kind: Kind, suites: &[&str]) -> Result<Vec<String>> {
    for below in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.join(below))?;
    }
    let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
    let signed = keyring.map(|path| format!("signed-by={path}")).unwrap_or_default();
    let mirror = mirror()?;
    let line = |suite| match kind {
        Kind::Packages => format!("deb [arch=amd64 {signed}] {mirror} {suite} main\n"),
        Kind::Sources => format!("deb-src [{signed}] {mirror} {suite} main\n"),
    };
    let sources = dir.join("sources.list");
    fs::write(&sources, suites.iter().map(line).collect::<String>().replace(" []", ""))?;
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
        output(query.arg("Created-By: Packages")).context("Debian's archive is read with apt, on Debian")?;
    let mut uris = targets.lines().filter_map(|line| {
        let [origin, component, codename, uri] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let whole = origin == "Debian" && component == "main" && !codename.contains('-');
        whole.then(|| uri.to_owned())
    });
    uris.next()
        .context("none of this machine's package sources is Debian's archive (apt-get update lists them)")
}

/// Makes the directory `target` with `fill`, unless it is there: all of it, or nothing.
///
/// # Errors
/// `fill` fails.
pub(crate) fn make_once(target: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if target.exists() {
        return Ok(target.to_owned());
    }
    let partial = target.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    fill(&partial)?;
    fs::rename(&partial, target).with_context(|| format!("cannot make {}", target.display()))?;
    Ok(target.to_owned())
}

/// Unpacks the packages that `fetch` puts into a directory into `target`, unless that is there.
///
/// # Errors
/// `fetch` fails, or a package cannot be unpacked.
pub(crate) fn unpack_once(target: &Path, fetch: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    make_once(target, |partial| {
        let debs = target.with_extension("debs");
        let _ = fs::remove_dir_all(&debs);
        fs::create_dir_all(&debs)?;
        fetch(&debs)?;
        let files = fs::read_dir(&debs)?.filter_map(Result::ok).map(|entry| entry.path());
        for deb in files.filter(|path| path.extension().is_some_and(|e| e == "deb")) {
            run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(partial))?;
        }
        Ok(fs::remove_dir_all(&debs)?)
    })
}
