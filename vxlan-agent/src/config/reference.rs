//! `docs/configuration.md` lists the keys that there are: all of them, and no others.

use std::collections::BTreeSet;
use std::path::Path;

use super::Config;
use crate::source::StateFile;
use crate::text::Text;

const REFERENCE: &str = include_str!("../../../docs/configuration.md");

/// The keys in the tables of the section `heading`: their first column.
pub(crate) fn documented(heading: &str) -> BTreeSet<&'static str> {
    let mut sections = REFERENCE.split("\n## ").flat_map(|part| part.split("\n### "));
    let section = sections.find(|section| section.lines().next() == Some(heading));
    let rows = section.unwrap_or_else(|| panic!("no section {heading}")).lines();
    let keys = rows.filter(|row| row.starts_with("| `")).filter_map(|row| row.split('|').nth(1));
    keys.flat_map(quoted).collect()
}

/// The keys that the refusal of an unknown one lists.
pub(super) fn expected(refusal: &str) -> BTreeSet<&str> {
    let (_, keys) = refusal.split_once("expected ").unwrap_or_else(|| panic!("{refusal}"));
    quoted(keys).collect()
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn the_reference_has_every_key_of_a_configuration_and_no_other() {
    for section in ["[node]", "[[network]]", "[state]", "[pods]"] {
        let text = Text::new("config.toml", format!("{section}\nnonsense = 1\n"));
        let refused = Config::parse(&text, Path::new("/etc"), &|| None).expect_err("an unknown key");
        assert_eq!(expected(&refused.reason), documented(&format!("`{section}`")), "{section}");
    }
}

#[test]
fn the_reference_has_every_key_of_a_state_file_and_no_other() {
    let node = "[[node]]\nname = \"a\"\nvtep = \"192.0.2.1\"\n";
    for (heading, content) in [
        ("The state file", String::new()),
        ("`[[node]]`", node.to_owned()),
        ("`[[node.station]]`", format!("{node}[[node.station]]\n")),
    ] {
        let text = Text::new("state.toml", format!("{content}nonsense = 1\n"));
        let refused = StateFile::parse(&text).err().expect("an unknown key");
        assert_eq!(expected(&refused.reason), documented(heading), "{heading}");
    }
}
