//! A release: one version in all files that have it, the changelog, a commit and a tag. Building and publishing come after.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use semver::Version;

use crate::run::{output, run, step, workspace};
use crate::toolchain;

const CHANGELOG: &str = "CHANGELOG.md";
/// Files with the version, and what stands before it there. It ends with the quote or the line.
const PLACES: [(&str, &str); 2] =
    [("Cargo.toml", "version = \""), ("deploy/base/kustomization.yaml", "newTag: ")];
const UNRELEASED: &str = "## [Unreleased]\n";
/// What cargo changes itself.
const LOCKS: [&str; 2] = ["Cargo.lock", "fuzz/Cargo.lock"];

#[derive(Args)]
pub(crate) struct ReleaseArgs {
    /// The version; without it the next one by what the changelog has: fixes alone, or more than fixes
    version: Option<Version>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

/// A file and its new text.
type Edit = (&'static str, String);

/// Makes commit and tag of a release, or says what they would be.
///
/// # Errors
/// Something that is not committed is in the tree, there is nothing to release, or the version does not follow. Nothing
/// is changed then.
pub(crate) fn release(args: &ReleaseArgs) -> Result<()> {
    let dirty = output(git().args(["status", "--porcelain"]))?;
    ensure!(dirty.is_empty() || args.dry_run, "commit or put away what is changed first:\n{dirty}");
    let tags = output(git().args(["tag", "--list", "v*"]))?;
    let released: Vec<_> = tags.lines().filter_map(|tag| tag.strip_prefix('v')?.parse().ok()).collect();
    let current: Version = env!("CARGO_PKG_VERSION").parse().context("the version of this workspace")?;
    let changelog = read(CHANGELOG)?;
    let news = unreleased(&changelog)?;
    let version = choose(args.version.clone(), &current, &released, news)?;
    let date = output(Command::new("date").args(["-u", "+%F"]))?;
    let mut edits = vec![(CHANGELOG, dated(&changelog, &version, date.trim()))];
    for (file, before) in PLACES {
        edits.push((
            file,
            replaced(&read(file)?, before, (&current, &version)).with_context(|| format!("in {file}"))?,
        ));
    }
    if args.dry_run {
        println!("{news}\n");
    }
    tell(&version, &edits)?;
    if args.dry_run {
        if !dirty.is_empty() {
            println!("\nNothing would be done as it is, for this is not committed:\n{dirty}");
        }
        return Ok(());
    }
    step(&format!("release {version}"), || commit(&version, &edits))?;
    println!("Now: cargo xtask ci, cargo xtask package, git push --follow-tags");
    Ok(())
}

/// What stands in the changelog since the last release.
fn unreleased(changelog: &str) -> Result<&str> {
    let (_, rest) =
        changelog.split_once(UNRELEASED).with_context(|| format!("{CHANGELOG} has no {UNRELEASED:?}"))?;
    let news = rest.split("\n## [").next().unwrap_or(rest).trim();
    ensure!(
        news.lines().any(|line| line.starts_with("- ")),
        "{CHANGELOG} names no change since the last release"
    );
    Ok(news)
}

/// The version that is `wanted` or follows from `news`. It has to be above all of those that are `released`, and not below
/// the `current` one, which may itself be unreleased.
fn choose(wanted: Option<Version>, current: &Version, released: &[Version], news: &str) -> Result<Version> {
    let last = released.iter().max();
    let fixes_alone = news
        .lines()
        .filter(|line| line.starts_with("### "))
        .all(|line| matches!(line, "### Fixed" | "### Security"));
    let version = wanted.unwrap_or_else(|| match last {
        None => current.clone(),
        Some(last) if fixes_alone => Version::new(last.major, last.minor, last.patch + 1),
        Some(last) => Version::new(last.major, last.minor + 1, 0),
    });
    if let Some(last) = last.filter(|last| version <= **last) {
        bail!("{version} is not above {last}, which is released");
    }
    ensure!(version >= *current, "{version} is below {current}, the version of Cargo.toml");
    Ok(version)
}

/// The changelog with what is new under the heading of `version`.
fn dated(changelog: &str, version: &Version, date: &str) -> String {
    changelog.replacen(UNRELEASED, &format!("{UNRELEASED}\n## [{version}] - {date}\n"), 1)
}

/// `text` with the new version behind `before`, where the old one is.
fn replaced(text: &str, before: &str, (old, new): (&Version, &Version)) -> Result<String> {
    let indent = indent(text, before);
    let [was, is] = [old, new].map(|version| format!("\n{indent}{before}{version}"));
    let mut found = text.match_indices(&was);
    let (at, _) = found.next().ok_or_else(|| anyhow!("there is no {before}{old}"))?;
    ensure!(found.next().is_none(), "there are several {before}{old}");
    Ok(format!("{}{is}{}", &text[..at], &text[at + was.len()..]))
}

/// Blanks in front of the first line that begins with `before`.
fn indent<'a>(text: &'a str, before: &str) -> &'a str {
    let line = text.lines().find(|line| line.trim_start().starts_with(before)).unwrap_or_default();
    &line[..line.len() - line.trim_start().len()]
}

fn tell(version: &Version, edits: &[Edit]) -> Result<()> {
    println!("Commit “Release {version}” and tag v{version}, with");
    for (file, text) in edits {
        println!("{file}: {}", if read(file)? == *text { "has this version" } else { "changed" });
    }
    println!("{}: changed by cargo, if need be", LOCKS.join(", "));
    Ok(())
}

fn commit(version: &Version, edits: &[Edit]) -> Result<()> {
    for (file, text) in edits {
        fs::write(workspace().join(file), text).with_context(|| format!("cannot write {file}"))?;
    }
    let done = finish(version, edits);
    if done.is_err() {
        run(git().args(["checkout", "--quiet", "HEAD", "--", "."]))?;
    }
    done
}

fn finish(version: &Version, edits: &[Edit]) -> Result<()> {
    for manifest in ["Cargo.toml", "fuzz/Cargo.toml"] {
        let mut cargo = toolchain::cargo()?;
        run(cargo.args(["update", "--quiet", "--workspace", "--manifest-path", manifest]))?;
    }
    let files = edits.iter().map(|(file, _)| *file).chain(LOCKS);
    run(git().args(["commit", "--quiet", "--message", &format!("Release {version}"), "--"]).args(files))?;
    run(git().args(["tag", "--annotate", "--message", &format!("Release {version}"), &format!("v{version}")]))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(workspace().join(file)).with_context(|| format!("cannot read {file}"))
}

fn git() -> Command {
    let mut git = Command::new("git");
    git.arg("-C").arg(workspace());
    git
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().expect("a version")
    }

    fn chosen(wanted: Option<&str>, released: &[&str], news: &str) -> Result<String> {
        let released: Vec<_> = released.iter().map(|text| version(text)).collect();
        choose(wanted.map(version), &version("0.2.0"), &released, news).map(|version| version.to_string())
    }

    #[test]
    fn the_next_version_follows_from_what_has_changed() {
        assert_eq!(chosen(None, &[], "### Added\n- a").expect("a version"), "0.2.0", "the first one");
        assert_eq!(chosen(None, &["0.1.0", "0.2.0"], "### Fixed\n- a").expect("a version"), "0.2.1");
        assert_eq!(
            chosen(None, &["0.2.0", "0.1.0"], "### Fixed\n- a\n### Added\n- b").expect("a version"),
            "0.3.0"
        );
        assert_eq!(chosen(Some("1.0.0"), &["0.2.0"], "### Fixed\n- a").expect("a version"), "1.0.0");
    }

    #[test]
    fn a_version_that_does_not_follow_is_refused() {
        for (wanted, why) in [("0.2.0", "which is released"), ("0.1.9", "not above"), ("0.3.0-rc.1", "")] {
            match chosen(Some(wanted), &["0.2.0"], "### Added\n- a") {
                Err(error) => assert!(!why.is_empty() && error.to_string().contains(why), "{error}"),
                Ok(version) => assert_eq!((version.as_str(), why), (wanted, "")),
            }
        }
        assert!(
            chosen(Some("0.1.5"), &["0.1.0"], "### Added\n- a")
                .expect_err("refused")
                .to_string()
                .contains("below")
        );
    }

    #[test]
    fn the_changelog_gets_a_heading_and_keeps_the_rest() {
        let text = "# Changelog\n\n## [Unreleased]\n\n### Fixed\n\n- b\n\n## [0.1.0] - 2026-01-02\n\n- a\n";
        assert_eq!(unreleased(text).expect("news"), "### Fixed\n\n- b");
        let new = dated(text, &version("0.2.0"), "2026-03-04");
        let headings: Vec<_> = new.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(headings, ["## [Unreleased]", "## [0.2.0] - 2026-03-04", "## [0.1.0] - 2026-01-02"]);
        assert!(unreleased(&new).is_err(), "there is nothing new now");
        assert!(unreleased("# Changelog\n").is_err());
    }

    #[test]
    fn every_place_of_the_version_is_found_once() {
        let current = version(env!("CARGO_PKG_VERSION"));
        for (file, before) in PLACES {
            let text =
                replaced(&read(file).expect("a file"), before, (&current, &version("9.8.7"))).expect(file);
            assert!(text.contains(&format!("{before}9.8.7")), "{file}");
            let back = replaced(&text, before, (&version("9.8.7"), &current)).expect(file);
            assert_eq!(back, read(file).expect("a file"));
            assert!(
                replaced(&text, before, (&current, &version("9.8.8"))).is_err(),
                "{file} has the version twice"
            );
        }
    }
}
