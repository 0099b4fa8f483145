//! Software bills of materials in CycloneDX: which crates the agent and the BPF programs are made of.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::run::{run, step, workspace};
use crate::tools::{self, Subcommand};

const CYCLONEDX: Subcommand = ("cargo-cyclonedx", "0.5.9");
/// The programs are in the agent, but are a build of their own.
const SHIPPED: [&str; 2] = ["vxlan-agent", "vxlan-ebpf"];
/// What the tool calls all files that it writes, one next to each `Cargo.toml` of the workspace.
const WRITTEN: &str = "sbom-of-this-crate";

/// Writes a bill for each of what is shipped to `results`, the same bytes wherever and whenever that is done.
///
/// # Errors
/// The tool does not build or ends with an error, or a file cannot be written.
pub(crate) fn write(results: &Path) -> Result<()> {
    let mut cargo = tools::cargo_with(CYCLONEDX)?;
    cargo.args(["cyclonedx", "--manifest-path", "vxlan-agent/Cargo.toml", "--format", "json", "--quiet"]);
    cargo.args(["--spec-version", "1.5", "--override-filename", WRITTEN, "--target"]);
    cargo.arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).env("SOURCE_DATE_EPOCH", "0");
    let written = step("software bills of materials (CycloneDX)", || run(&mut cargo));
    let kept = written.and_then(|()| SHIPPED.iter().try_for_each(|crate_| keep(crate_, results)));
    remove_all().and(kept)
}

fn keep(crate_: &str, results: &Path) -> Result<()> {
    let from = workspace().join(crate_).join(WRITTEN).with_extension("json");
    let text = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
    let text = without_place(&text, crate_)
        .with_context(|| format!("{} does not say which crate it is of", from.display()))?;
    let name = format!("{crate_}-{}.cdx.json", env!("CARGO_PKG_VERSION"));
    fs::write(results.join(&name), text).with_context(|| format!("cannot write {name}"))
}

/// Where the sources lie on this machine is nobody's business: they lie in `/`. `None`: `text` does not name `crate_`.
fn without_place(text: &str, crate_: &str) -> Option<String> {
    const FILE: &str = "path+file://";
    // As the tool writes it, which is not as the directory is called if there are blanks in it.
    let end = text.find(&format!("/{crate_}#"))?;
    let start = text[..end].rfind(FILE)? + FILE.len();
    Some(text.replace(&format!("{FILE}{}/", &text[start..end]), &format!("{FILE}/")))
}

/// Leaves nothing among the sources.
fn remove_all() -> Result<()> {
    for entry in fs::read_dir(workspace())? {
        let file = entry?.path().join(WRITTEN).with_extension("json");
        if file.exists() {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_sources_lie_is_left_out() {
        let bill = |place: &str| {
            format!(
                "\"path+file://{place}/agent#0.1.0\", \"path+file://{place}/common#0.1.0\", \"x@1/agent\""
            )
        };
        for place in ["/home/somebody/a%20b", "/w", ""] {
            assert_eq!(without_place(&bill(place), "agent"), Some(bill("")), "{place}");
        }
        assert_eq!(without_place(&bill("/w"), "other"), None);
    }
}
