//! Packages of the agent: Debian's, RPM, and a tarball, with bills of materials and checksums.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::host::{self, Tool};
use crate::run::{output, run, step, target_dir, workspace};
use crate::tools::{self, Subcommand};
use crate::{lab, sbom};

const DEB: Subcommand = ("cargo-deb", "3.8.0");
const RPM: Subcommand = ("cargo-generate-rpm", "0.21.1");
/// What cargo-deb asks for libraries' packages.
const TOOLS: &[Tool] = &[("dpkg-shlibdeps", "dpkg-dev"), ("dpkg-deb", "dpkg")];

#[derive(Args)]
pub(crate) struct PackageArgs {
    /// Only the Debian package
    #[arg(long)]
    deb: bool,
}

/// Builds the agent as it is shipped, and packages of it in target/package.
///
/// # Errors
/// A tool cannot be installed, or something does not build.
pub(crate) fn build(args: &PackageArgs) -> Result<()> {
    host::install_tools(TOOLS)?;
    lab::ship_agent()?;
    let ship = target_dir().join("ship");
    let agent = ship.join("release/vxlan-agent");
    let results = target_dir().join("package");
    let _ = fs::remove_dir_all(&results);
    fs::create_dir_all(&results).with_context(|| format!("cannot make {}", results.display()))?;
    documents(&agent, &ship.join("release/package"))?;
    deb(&ship, &results)?;
    if !args.deb {
        rpm(&ship, &results)?;
        tarball(&ship, &results)?;
        sbom::write(&results)?;
    }
    checksums(&results)?;
    println!("{}", results.display());
    Ok(())
}

/// Manual pages and completions, which the agent writes itself.
fn documents(agent: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(to);
    run(Command::new(agent).arg("man").arg(to.join("man")))?;
    fs::create_dir_all(to.join("completions"))?;
    for (shell, name) in [("bash", "vxlan-agent"), ("zsh", "_vxlan-agent"), ("fish", "vxlan-agent.fish")] {
        let script = output(Command::new(agent).args(["completions", shell]))?;
        fs::write(to.join("completions").join(name), script)?;
    }
    Ok(())
}

/// What packages contain stands in the agent's `Cargo.toml`. Paths below `target/release` there are those of what is
/// shipped.
fn deb(ship: &Path, results: &Path) -> Result<()> {
    let mut cargo = tools::cargo_with(DEB)?;
    cargo.args(["deb", "--package", "vxlan-agent", "--no-build", "--no-strip", "--output"]).arg(results);
    step("building the Debian package", || run(cargo.env("CARGO_TARGET_DIR", ship)))
}

fn rpm(ship: &Path, results: &Path) -> Result<()> {
    let mut cargo = tools::cargo_with(RPM)?;
    cargo
        .args(["generate-rpm", "--package", "vxlan-agent", "--target-dir"])
        .arg(ship)
        .arg("--output")
        .arg(results);
    step("building the RPM package", || run(&mut cargo))
}

/// The program with what belongs to it, for everybody else.
fn tarball(ship: &Path, results: &Path) -> Result<()> {
    let name = format!("vxlan-agent-{}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH);
    let dir = ship.join("release/package").join(&name);
    fs::create_dir_all(&dir)?;
    let files =
        ["LICENSE-APACHE", "LICENSE-MIT", "LICENSE-GPL2", "README.md", "deploy/systemd/vxlan-agent.service"];
    for file in files.map(|file| workspace().join(file)).into_iter().chain([ship.join("release/vxlan-agent")])
    {
        let name = file.file_name().context("a file without a name")?;
        fs::copy(&file, dir.join(name)).with_context(|| format!("cannot copy {}", file.display()))?;
    }
    for documents in ["man", "completions"] {
        run(Command::new("cp").arg("-r").arg(ship.join("release/package").join(documents)).arg(&dir))?;
    }
    // The same bytes wherever and whenever it is made.
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0", "-czf"]);
    tar.arg(results.join(format!("{name}.tar.gz"))).arg("-C").arg(ship.join("release/package")).arg(&name);
    run(tar.env("GZIP", "-n"))
}

fn checksums(results: &Path) -> Result<()> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(results)?.map(|entry| Ok(entry?.file_name().into())).collect::<Result<_>>()?;
    names.sort();
    let sums = File::create(results.join("SHA256SUMS"))?;
    let status =
        Command::new("sha256sum").args(names).current_dir(results).stdout(Stdio::from(sums)).status()?;
    ensure!(status.success(), "sha256sum ended with {status}");
    Ok(())
}
