//! Documents of the repository lead to what is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::deploy;

/// Documents whose links are checked: those in the root, in `docs` and beside the fuzz targets.
fn pages() -> Vec<PathBuf> {
    let root = deploy().join("..");
    let places = [root.clone(), root.join("docs"), root.join("fuzz")];
    let files = places.iter().flat_map(|place| fs::read_dir(place).expect("a directory"));
    let paths = files.map(|file| file.expect("a file").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect()
}

/// The lines of a document that are not in a block of code.
fn prose(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut code = false;
    let mut is_prose = |line: &&str| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !(code || fence)
    };
    text.lines().filter(|line| is_prose(line)).map(str::to_owned).collect()
}

/// Targets of the links in `line`, without those in code and those to other sites.
fn links(line: &str) -> Vec<String> {
    let plain: String = line.split('`').step_by(2).collect();
    let targets = plain.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).map(str::to_owned).collect()
}

/// Anchors of a document's headings, as they are made on sites that show it.
fn anchors(path: &Path) -> BTreeSet<String> {
    let anchor = |heading: &str| -> String {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
    };
    let lines = prose(path);
    let headings = lines.iter().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).collect()
}

#[test]
fn every_link_of_a_document_leads_somewhere() {
    let mut checked = 0;
    for page in pages() {
        for link in prose(&page).iter().flat_map(|line| links(line)) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.parent().expect("a directory").join(file) };
            assert!(target.exists(), "{}: there is no {link}", page.display());
            let there = anchor.is_empty() || anchors(&target).contains(anchor);
            assert!(there, "{}: {link} has no such heading", page.display());
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} links have been found");
}
