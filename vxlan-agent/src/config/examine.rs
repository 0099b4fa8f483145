//! Everything that is wrong with a configuration, instead of what is wrong first.

use std::path::Path;
use std::sync::Arc;

use toml::Spanned;

use super::network::NetworkSection;
use super::{Assembly, Config, FileSections, NodeConfig, give_pods, no_network, node, snippets};
use crate::text::{Examined, Refused, Text};

/// A configuration, and what is wrong with it.
#[derive(Debug)]
pub struct Examination {
    /// The networks that nothing is wrong with; `None` where it is not known which node this is, or there is nothing
    /// to read.
    pub config: Option<Config>,
    /// What is wrong, file by file.
    pub refused: Vec<Refused>,
}

impl Config {
    /// As [`Config::read`], and tells of all mistakes.
    pub fn examine(path: &Path) -> Examination {
        let base = path.parent().unwrap_or(Path::new("."));
        let (text, snippets) = match (Text::read(path), snippets::read(base)) {
            (Ok(text), Ok(snippets)) => (text, snippets),
            (text, snippets) => {
                let refused = text.err().into_iter().chain(snippets.err()).collect();
                return Examination { config: None, refused };
            }
        };
        examine(&text, &snippets, base, &node::hostname)
    }
}

fn examine(
    text: &Text,
    snippets: &[Text],
    base: &Path,
    hostname: &dyn Fn() -> Option<String>,
) -> Examination {
    let Examined { value, mut refused, incomplete } = text.examine::<FileSections>();
    let is_whole = |section: &str| value.is_some() && !incomplete.contains(section);
    let (whole_node, whole_state) = (is_whole("node"), is_whole("state"));
    let mut all_networks = is_whole("network");
    let FileSections { node, network, pods, state } = value.unwrap_or_default();
    let mut files: Vec<(&Text, Vec<Spanned<NetworkSection>>)> = vec![(text, network)];
    for snippet in snippets {
        let Examined { value, refused: wrong, .. } = snippets::examine(snippet);
        all_networks &= wrong.is_empty();
        refused.extend(wrong);
        files.push((snippet, value.unwrap_or_default()));
    }
    let node = match node.complete(text, hostname) {
        Ok(node) => Arc::new(node),
        Err(nameless) => {
            refused.push(nameless);
            return Examination { config: None, refused };
        }
    };
    let mut assembly = Assembly::new(base, &node, state.as_ref().map(|state| (text, state)));
    for (file, section) in files.iter().flat_map(|(file, list)| list.iter().map(|one| (*file, one))) {
        // What is wrong with the common state is told already.
        if whole_state || section.get_ref().state.is_some() || section.get_ref().is_accelerated() {
            let taken = assembly.take(file, section);
            all_networks &= taken.is_ok();
            refused.extend(taken.err());
        } else {
            all_networks = false;
        }
    }
    let Assembly { mut networks, all, .. } = assembly;
    if all_networks {
        if networks.is_empty() && all.is_none() {
            refused.push(text.refuse(None, no_network()));
        } else {
            refused.extend(give_pods(text, pods, &mut networks).err());
        }
    }
    let config = whole_node.then_some(Config { node, networks, all });
    Examination { config, refused }
}

/// Nothing that could be read.
impl Default for FileSections {
    fn default() -> Self {
        Self { node: NodeConfig::default(), network: vec![], pods: None, state: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(content: &str, snippets: &[Text]) -> Vec<(Option<usize>, String)> {
        let text = Text::new("/etc/c.toml", content);
        let examined = examine(&text, snippets, Path::new("/etc"), &|| Some("box".into()));
        let first = Config::assemble(&text, snippets, Path::new("/etc"), &|| Some("box".into())).err();
        assert_eq!(first.is_none(), examined.refused.is_empty(), "an agent starts with what is right");
        assert!(first.is_none_or(|first| examined.refused.contains(&first)), "{:#?}", examined.refused);
        examined.refused.iter().map(|refused| (refused.line, refused.reason.clone())).collect()
    }

    #[track_caller]
    fn assert_told(found: &[(Option<usize>, String)], expected: &[(Option<usize>, &str)]) {
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for ((line, reason), (at, word)) in found.iter().zip(expected) {
            assert!(line == at && reason.contains(word), "{line:?} {reason}: {at:?} {word}");
        }
    }

    const STATE: &str = "[state]\nsource = \"file\"\npath = \"s.toml\"\n";

    #[test]
    fn a_right_configuration_has_no_mistakes() {
        assert_told(&lines(&format!("{STATE}[[network]]\nname = \"a\"\nvni = 1\n"), &[]), &[]);
        assert_told(&lines("[[network]]\nkind = \"accelerate\"\ndevice = \"flannel.1\"\n", &[]), &[]);
    }

    #[test]
    fn mistakes_of_all_sections_and_snippets_are_told_at_once() {
        let content = format!(
            "{STATE}[node]\nnames = \"a\"\n[[network]]\nname = \"a\"\nvni = 0\nport = 0\n\
             [[network]]\nname = \"b\"\nvni = 2\nbridge = \"br0\"\n[[network]]\nname = \"c\"\nvni = 3\n"
        );
        let snippet = Text::new("/etc/network.d/d.toml", "[[network]]\nname = \"c\"\nvni = 4\n");
        assert_told(
            &lines(&content, &[snippet]),
            &[
                (Some(5), "names"),
                (Some(8), "out of range"),
                (Some(9), "port 0"),
                (Some(13), "'bridge' is for kind = \"l2\""),
                (Some(2), "two networks 'c'"),
            ],
        );
    }

    #[test]
    fn what_follows_from_another_mistake_is_not_told() {
        let state = "[state]\nsource = \"fiel\"\npath = \"s.toml\"\n";
        assert_told(
            &lines(&format!("{state}[[network]]\nname = \"a\"\nvni = 1\n"), &[]),
            &[(Some(2), "fiel")],
        );
        assert_told(
            &lines(&format!("{STATE}[[network]]\nname = \"a\"\nvni = 0\n"), &[]),
            &[(Some(6), "range")],
        );
        assert_told(&lines(STATE, &[]), &[(None, "there is no [[network]]")]);
    }

    #[test]
    fn networks_that_are_right_are_known_all_the_same() {
        let text = Text::new(
            "/etc/c.toml",
            format!("{STATE}[[network]]\nname = \"a\"\nvni = 0\n[[network]]\nname = \"b\"\nvni = 2\n"),
        );
        let config = examine(&text, &[], Path::new("/etc"), &|| Some("box".into())).config.expect("a node");
        assert_eq!(config.networks.iter().map(|view| view.network.name.as_str()).collect::<Vec<_>>(), ["b"]);
    }
}
