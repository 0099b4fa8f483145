//! What a state file says, and how each network sees it.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use toml::Spanned;

use crate::cluster::{Candidate, ClusterState, Reason, Station, Viewer};
use crate::config::NetworkName;
use crate::net::Mac;
use crate::text::{Examined, MOST, Refused, Text};

/// A state file, read once for all networks whose nodes are in it.
pub struct StateFile<'t> {
    text: &'t Text,
    sections: StateSections,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateSections {
    policy: Option<u32>,
    #[serde(default)]
    node: Vec<Spanned<NodeSection>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSection {
    name: String,
    vtep: IpAddr,
    mac: Option<Mac>,
    #[serde(default)]
    subnets: Vec<IpNetwork>,
    /// The networks that this entry is for; all that use the file unless it says so.
    networks: Option<HashSet<NetworkName>>,
    #[serde(default)]
    station: Vec<Station>,
}

impl NodeSection {
    fn is_in(&self, network: &str) -> bool {
        self.networks.as_ref().is_none_or(|networks| networks.contains(network))
    }

    fn candidate(&self) -> Candidate {
        Candidate {
            name: self.name.clone(),
            vtep: self.vtep,
            mac: self.mac,
            subnets: self.subnets.clone(),
            stations: self.station.clone(),
        }
    }
}

/// Reads cluster state out of a state file's text, for one network.
///
/// # Errors
/// As [`StateFile::parse`] and [`StateFile::seen_by`].
pub fn parse_state(text: &Text, viewer: &Viewer) -> Result<ClusterState, Refused> {
    StateFile::parse(text)?.seen_by(viewer)
}

impl<'t> StateFile<'t> {
    /// Reads `text`.
    ///
    /// # Errors
    /// It is no state file; the line is named.
    pub fn parse(text: &'t Text) -> Result<Self, Refused> {
        Ok(Self { text, sections: text.parse()? })
    }

    /// The cluster as `viewer` sees it. Nodes that are limited to other networks are passed over: one
    /// that differs from network to network has an entry for each.
    ///
    /// # Errors
    /// The cluster contradicts itself, or the viewer is not in it; the line of the node to blame is
    /// named.
    pub fn seen_by(&self, viewer: &Viewer) -> Result<ClusterState, Refused> {
        let StateSections { policy, node } = &self.sections;
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            node.iter().partition(|section| section.get_ref().is_in(&viewer.network));
        if !here.iter().any(|section| section.get_ref().name == viewer.node) {
            self.refuse_own_elsewhere(&elsewhere, viewer)?;
        }
        let candidates = here.iter().map(|section| section.get_ref().candidate()).collect();
        let cluster = ClusterState::new(candidates, viewer).map_err(|invalid| {
            let span = invalid.candidate.and_then(|index| here.get(index)).map(|section| section.span());
            self.text.refuse(span, invalid.reason.to_string())
        })?;
        Ok(ClusterState { policy: policy.map(u64::from), ..cluster })
    }

    /// The cluster as `viewer` sees it without the nodes that something is wrong with, and everything that is wrong,
    /// instead of what is wrong first; at most [`MOST`] of them.
    pub fn examine(text: &'t Text, viewer: &Viewer) -> (Option<ClusterState>, Vec<Refused>) {
        let Examined { value, mut refused, incomplete } = text.examine();
        let Some(sections) = value else { return (None, refused) };
        let file = Self { text, sections };
        let nodes = &file.sections.node;
        let (mut here, elsewhere): (Vec<_>, Vec<_>) =
            nodes.iter().partition(|section| section.get_ref().is_in(&viewer.network));
        // That the own node is missing may follow from another mistake.
        let mut lost = incomplete.contains("node");
        if !here.iter().any(|section| section.get_ref().name == viewer.node) {
            let limited = file.refuse_own_elsewhere(&elsewhere, viewer).err();
            lost |= limited.is_some();
            refused.extend(limited);
        }
        while refused.len() < MOST {
            let candidates = here.iter().map(|section| section.get_ref().candidate()).collect();
            let invalid = match ClusterState::new(candidates, viewer) {
                Ok(cluster) => return (Some(cluster), by_line(refused)),
                Err(invalid) => invalid,
            };
            let blamed =
                invalid.candidate.filter(|index| *index < here.len()).map(|index| here.remove(index));
            if blamed.is_some() || !lost {
                let span = blamed.map(Spanned::span);
                refused.push(text.refuse(span, invalid.reason.to_string()));
            }
            match blamed {
                Some(section) => lost |= section.get_ref().name == viewer.node,
                None => break,
            }
        }
        (None, by_line(refused))
    }

    /// That the viewer is in the file, but not in this network, is another mistake than a wrong name.
    fn refuse_own_elsewhere(
        &self,
        elsewhere: &[&Spanned<NodeSection>],
        viewer: &Viewer,
    ) -> Result<(), Refused> {
        let own = || elsewhere.iter().filter(|section| section.get_ref().name == viewer.node);
        let Some(first) = own().next() else { return Ok(()) };
        let others = own().flat_map(|section| section.get_ref().networks.iter().flatten());
        let others: BTreeSet<String> = others.map(|name| format!("'{}'", name.0)).collect();
        let others = match others.len() {
            0 => "[]".to_owned(),
            _ => others.into_iter().collect::<Vec<_>>().join(", "),
        };
        let reason = Reason::OwnElsewhere(viewer.node.clone(), viewer.network.clone(), others);
        Err(self.text.refuse(Some(first.span()), reason.to_string()))
    }
}

fn by_line(mut refused: Vec<Refused>) -> Vec<Refused> {
    refused.sort_by_key(|refused| refused.line);
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Vni;

    fn viewer() -> Viewer {
        Viewer {
            node: "a".into(),
            network: "pods".into(),
            l2: false,
            vni: Vni::try_from(1).expect("in range"),
        }
    }

    fn parse(content: &str) -> Result<ClusterState, Refused> {
        parse_state(&Text::new("cluster.toml", content), &viewer())
    }

    const A: &str =
        "[[node]]\nname = \"a\"\nvtep = \"192.0.2.1\"\nsubnets = [\"10.1.0.0/24\", \"fd00:1::/64\"]\n";

    #[test]
    fn a_state_file_lists_nodes() {
        let cluster =
            parse(&format!("{A}[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\nmac = \"02:00:00:00:00:02\"\n"))
                .expect("valid");
        assert_eq!(cluster.own.subnets.len(), 2);
        assert_eq!(cluster.remotes["b"].mac, Mac([2, 0, 0, 0, 0, 2]));
    }

    #[test]
    fn a_refusal_is_one_sentence_with_the_line_of_the_node() {
        for (more, line, word) in [
            ("[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\nsubnets = [\"10.1.0.0/16\"]\n", 5, "overlaps"),
            ("[[node]]\nname = \"b\"\nvtep = \"192.0.2.1\"\n", 5, "same VTEP"),
            ("[[node]]\nname = \"b\"\nvtep = \"192.0.2\"\n", 7, "invalid"),
            ("[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\nmac = \"02:00\"\n", 8, "02:00"),
            ("[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\nsubnets = [\"10.2.0.0/33\"]\n", 8, "invalid"),
            ("[[node]]\nname = \"b\"\n", 5, "vtep"),
            ("[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\ncolour = 1\n", 8, "colour"),
            ("[[node]\n", 5, ""),
        ] {
            let refused = parse(&format!("{A}{more}")).expect_err(more);
            assert_eq!(refused.line, Some(line), "{refused}");
            assert!(refused.reason.contains(word), "{refused}");
            assert_eq!(refused.to_string().lines().count(), 1, "{refused}");
        }
    }

    #[test]
    fn everything_that_is_wrong_with_a_state_file_is_told_at_once() {
        let wrong = "[[node]]\nname = \"b\"\nvtep = \"192.0.2\"\n\
                     [[node]]\nname = \"c\"\nvtep = \"192.0.2.1\"\n\
                     [[node]]\nname = \"d\"\nvtep = \"192.0.2.4\"\nsubnets = [\"10.1.0.0/16\"]\n";
        let told = |content: &str| {
            let text = Text::new("cluster.toml", content);
            let (cluster, refused) = StateFile::examine(&text, &viewer());
            assert_eq!(parse_state(&text, &viewer()).is_ok(), refused.is_empty(), "{refused:?}");
            (cluster, refused.iter().map(|refused| refused.line).collect::<Vec<_>>())
        };
        let (cluster, lines) = told(&format!("{A}{wrong}"));
        assert_eq!(lines, [Some(7), Some(8), Some(11)]);
        assert_eq!(cluster.map(|cluster| cluster.remotes.len()), Some(0));
        assert_eq!(told(A).1, []);
        assert_eq!(told("").1, [None], "the own node is missing");
        // It is missing because of its own mistake, which is told.
        assert_eq!(told("[[node]]\nname = \"a\"\nvtep = \"127.0.0.1\"\n").1, [Some(1)]);
        assert_eq!(told("[[node]]\nname = \"a\"\n").1, [Some(1)]);
    }

    #[test]
    fn an_empty_file_misses_the_own_node() {
        assert!(parse("").expect_err("empty").reason.contains("this node, 'a'"));
    }

    /// As `network` sees it, a bridged one.
    fn bridged(content: &str, network: &str) -> Result<ClusterState, Refused> {
        let viewer = Viewer { network: network.into(), l2: true, ..viewer() };
        parse_state(&Text::new("cluster.toml", content), &viewer)
    }

    #[test]
    fn a_node_may_be_limited_to_networks() {
        let file = "[[node]]\nname = \"a\"\nvtep = \"192.0.2.1\"\n\
                    [[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\nnetworks = [\"blue\", \"red\"]\n\
                    [[node]]\nname = \"b\"\nvtep = \"192.0.2.3\"\nnetworks = [\"green\"]\n\
                    [[node]]\nname = \"c\"\nvtep = \"192.0.2.4\"\nnetworks = []\n";
        let remotes = |network| {
            let cluster = bridged(file, network).expect("valid");
            cluster.remotes.into_values().map(|node| (node.name, node.vtep)).collect::<Vec<_>>()
        };
        assert_eq!(remotes("red"), [("b".to_owned(), IpAddr::from([192, 0, 2, 2]))]);
        assert_eq!(remotes("green"), [("b".to_owned(), IpAddr::from([192, 0, 2, 3]))]);
        assert_eq!(remotes("pods"), []);
        let twice = format!("{file}[[node]]\nname = \"b\"\nvtep = \"192.0.2.5\"\nnetworks = [\"red\"]\n");
        assert_eq!(bridged(&twice, "red").expect_err("two").line, Some(16), "the line in the file");
        let wrong = bridged(&file.replace("green", "gr een"), "red").expect_err("no name");
        assert!(wrong.line == Some(11) && wrong.reason.contains("gr een"), "{wrong}");
    }

    #[test]
    fn an_own_node_that_is_limited_to_other_networks_is_told_so() {
        let limited = |networks: &str| {
            let more = "[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\n";
            format!("{more}[[node]]\nname = \"a\"\nvtep = \"192.0.2.1\"\nnetworks = [{networks}]\n")
        };
        let refused = bridged(&limited("\"red\", \"blue\""), "green").expect_err("elsewhere");
        assert_eq!(refused.line, Some(4));
        assert!(refused.reason.contains("limited to the networks 'blue', 'red': add 'green'"), "{refused}");
        let refused = bridged(&limited(""), "green").expect_err("nowhere");
        assert!(refused.reason.contains("limited to the networks []"), "{refused}");
        assert!(bridged(&limited("\"green\""), "green").is_ok());
    }

    #[test]
    fn nodes_of_a_segment_have_stations() {
        let stations = "[[node.station]]\nmac = \"02:00:00:00:00:07\"\nip = \"10.0.0.7\"\n\
                        [[node.station]]\nmac = \"02:00:00:00:00:08\"\n";
        let cluster = bridged(&format!("{A}{stations}"), "red").expect("valid");
        assert_eq!(cluster.own.stations.iter().map(|s| s.ip.is_some()).collect::<Vec<_>>(), [true, false]);
        assert!(cluster.own.subnets.is_empty());
        assert!(parse(&format!("{A}{stations}")).expect("routed").own.stations.is_empty());
        let again =
            "[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\n[[node.station]]\nmac = \"02:00:00:00:00:08\"\n";
        let refused = bridged(&format!("{A}{stations}{again}"), "red").expect_err("two");
        assert!(refused.line == Some(10) && refused.reason.contains("at node 'a'"), "{refused}");
        let refused = bridged(&format!("{A}[[node.station]]\nmac = \"02\"\n"), "red").expect_err("no MAC");
        assert!(refused.line == Some(6) && refused.reason.contains("'02'"), "{refused}");
        let refused =
            bridged(&format!("{A}[[node.station]]\nip = \"10.0.0.7\"\n"), "red").expect_err("no MAC");
        assert!(refused.reason.contains("mac"), "{refused}");
    }
}
