//! Whether all crates that are used may be: licences, duplicates, sources, known vulnerabilities.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::run::{run, step, workspace};
use crate::tools::{self, Subcommand};

const DENY: Subcommand = ("cargo-deny", "0.20.2");

/// Where `deny.toml` lets cargo-deny look for databases, and what this version of it calls the one of RustSec there.
const DATABASES: &str = "target/tools/advisory-dbs";
const RUSTSEC: &str = "advisory-db-3157b0e258782691";

#[derive(Args, Default)]
pub(crate) struct DenyArgs {
    /// Check for known vulnerabilities, too, with this database: a clone of github.com/RustSec/advisory-db, which
    /// is used as it is. Without it nothing is fetched, and vulnerabilities are not checked
    #[arg(long, value_name = "DIR")]
    advisory_db: Option<PathBuf>,
}

/// Checks what `deny.toml` asks for, and that no exception in it is left over. It needs no network once the tool and all crates of `Cargo.lock` are there.
///
/// # Errors
/// The tool does not build, the database is no clone, or a crate may not be used.
pub(crate) fn check(args: &DenyArgs) -> Result<()> {
    let mut cargo = tools::cargo_with(DENY)?;
    cargo.args(["deny", "--offline", "check", "--deny", "unmatched-skip", "--deny", "unnecessary-skip"]);
    cargo.args(["bans", "licenses", "sources"]);
    if let Some(database) = &args.advisory_db {
        name(database)?;
        cargo.arg("advisories");
    }
    step("licences, versions and sources of all crates (cargo deny)", || run(&mut cargo))
}

/// Whether [`check`] takes seconds.
pub(crate) fn is_built() -> bool {
    tools::is_built(DENY)
}

/// Puts `database` where cargo-deny looks for it.
fn name(database: &Path) -> Result<()> {
    let database =
        database.canonicalize().with_context(|| format!("no database at {}", database.display()))?;
    ensure!(
        database.join("crates").is_dir() && database.join(".git").exists(),
        "{} is no clone of https://github.com/RustSec/advisory-db: there is no `crates`, or no `.git`",
        database.display()
    );
    let databases = workspace().join(DATABASES);
    fs::create_dir_all(&databases)?;
    let name = databases.join(RUSTSEC);
    let _ = fs::remove_file(&name);
    symlink(&database, &name).with_context(|| format!("cannot make {}", name.display()))
}
