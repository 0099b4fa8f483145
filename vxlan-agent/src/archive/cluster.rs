//! Where the cluster's state lies, as far as a configuration says so, refused or not.

use std::collections::BTreeSet;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

/// The files that sections `state` of `configuration` name.
pub(crate) fn state_files(configuration: &str) -> BTreeSet<PathBuf> {
    let (table, _) = DeTable::parse_recoverable(configuration);
    let mut found = BTreeSet::new();
    table.get_ref().iter().for_each(|(key, value)| walk(key.get_ref(), value.get_ref(), &mut found));
    found
}

fn walk(key: &str, value: &DeValue<'_>, found: &mut BTreeSet<PathBuf>) {
    match value {
        DeValue::Table(table) => {
            let path = table.get("path").filter(|_| key == "state").and_then(|path| path.get_ref().as_str());
            found.extend(path.map(PathBuf::from));
            table.iter().for_each(|(key, value)| walk(key.get_ref(), value.get_ref(), found));
        }
        DeValue::Array(all) => all.iter().for_each(|one| walk(key, one.get_ref(), found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_state_are_found_in_every_section_and_in_a_broken_text() {
        let text = "[state]\nsource = \"file\"\npath = \"a.toml\"\n[[network]]\nname = \"x\"\npath = \"no\"\n\
                    [network.state]\npath = \"/b.toml\"\n[[network]\n";
        let found: Vec<_> = state_files(text).into_iter().collect();
        assert_eq!(found, [PathBuf::from("/b.toml"), PathBuf::from("a.toml")]);
    }
}
