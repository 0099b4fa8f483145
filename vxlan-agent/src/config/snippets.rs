//! Further networks, in a directory next to the configuration: whoever makes a network adds a file.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::network::NetworkSection;
use crate::text::{Examined, Refused, Text};

/// The directory; every `*.toml` in it is read, in the order of the names.
pub const SNIPPETS: &str = "network.d";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SnippetSections {
    #[serde(default)]
    network: Vec<Spanned<NetworkSection>>,
}

/// Reads the snippets next to a configuration in `base`; there need not be any.
pub(super) fn read(base: &Path) -> Result<Vec<Text>, Refused> {
    let dir = base.join(SNIPPETS);
    let refuse = |e| Refused { path: dir.clone(), line: None, reason: format!("cannot be read: {e}") };
    let entries = match dir.read_dir() {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(refuse(error)),
    };
    let mut paths: Vec<PathBuf> = vec![];
    for entry in entries {
        let path = entry.map_err(refuse)?.path();
        if is_snippet(&path) {
            paths.push(path);
        }
    }
    paths.sort();
    paths.iter().map(|path| Text::read(path)).collect()
}

/// As a shell's `*.toml`, which leaves out what an editor hides.
fn is_snippet(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|extension| extension == "toml")
}

/// The networks of a snippet.
pub(super) fn parse(text: &Text) -> Result<Vec<Spanned<NetworkSection>>, Refused> {
    text.parse().map(|sections: SnippetSections| sections.network)
}

/// The networks of a snippet that nothing is wrong with, and what is wrong with the others.
pub(super) fn examine(text: &Text) -> Examined<Vec<Spanned<NetworkSection>>> {
    let Examined { value, refused, incomplete } = text.examine::<SnippetSections>();
    Examined { value: value.map(|sections| sections.network), refused, incomplete }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const CONFIG: &str =
        "[state]\nsource = \"file\"\npath = \"s.toml\"\n[[network]]\nname = \"pods\"\nvni = 1\n";

    /// A directory with a configuration and `snippets`.
    fn directory(snippets: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("config.toml"), CONFIG).expect("written");
        std::fs::create_dir(dir.path().join(SNIPPETS)).expect("made");
        for (name, content) in snippets {
            std::fs::write(dir.path().join(SNIPPETS).join(name), content).expect("written");
        }
        dir
    }

    fn network(name: &str, vni: u32) -> String {
        format!("[[network]]\nname = \"{name}\"\nvni = {vni}\n")
    }

    fn read(dir: &tempfile::TempDir) -> Result<Config, Refused> {
        Config::read(&dir.path().join("config.toml"))
    }

    #[test]
    fn snippets_are_read_in_the_order_of_their_names() {
        let (two, b) = (network("c", 4) + &network("d", 5), network("b", 3));
        let dir = directory(&[
            ("10-two.toml", &two),
            ("05-b.toml", &b),
            (".hidden.toml", "nonsense"),
            ("b.toml~", "nonsense"),
            ("README", "nonsense"),
            ("empty.toml", ""),
        ]);
        let config = read(&dir).expect("valid");
        let names: Vec<&str> = config.networks.iter().map(|view| view.network.name.as_str()).collect();
        assert_eq!(names, ["pods", "b", "c", "d"]);
        let state = dir.path().join("s.toml");
        let same = |view: &crate::config::View| view.state == crate::config::StateConfig::File(state.clone());
        assert!(config.networks.iter().all(same), "a relative path counts from the configuration");
    }

    #[test]
    fn a_refusal_names_the_snippet() {
        for (content, line, word) in [
            ("[[network]]\nname = \"b\"\nvni = 0\n", Some(3), "out of range"),
            ("[node]\nname = \"b\"\n", Some(1), "node"),
            ("[[network]]\nname = \"b\"\nvni = 1\n", Some(3), "network 'pods' ("),
            ("[[network]]\nname = \"pods\"\nvni = 2\n", Some(2), "config.toml, line 5"),
            ("[[network]]\nname = \"b\"\nvni = 2\n[network.state]\nsource = \"file\"\n", Some(5), "'path'"),
        ] {
            let dir = directory(&[("b.toml", content)]);
            let refused = read(&dir).expect_err(content);
            assert_eq!((refused.path.as_path(), refused.line), (&*dir.path().join("network.d/b.toml"), line));
            assert!(refused.reason.contains(word), "{refused}");
        }
    }

    #[test]
    fn a_directory_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        std::fs::write(dir.path().join("config.toml"), CONFIG).expect("written");
        assert!(read(&dir).is_ok(), "none is needed");
        std::fs::write(dir.path().join(SNIPPETS), "").expect("written");
        assert_eq!(read(&dir).expect_err("a file").path, dir.path().join(SNIPPETS));
    }
}
