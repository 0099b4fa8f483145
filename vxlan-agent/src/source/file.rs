//! Cluster state from a TOML file that is the same on every node, watched with inotify.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use serde::Deserialize;
use tokio::sync::{mpsc, watch};
use toml::Spanned;

use super::{Snapshot, Source};
use crate::cluster::{Candidate, ClusterState, Reason, Station, Viewer};
use crate::config::NetworkName;
use crate::net::Mac;
use crate::text::{Refused, Text};

/// How long a changed directory is left to settle: editors write, rename and remove in a row.
const SETTLE: Duration = Duration::from_millis(20);

/// A state file.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    viewer: Viewer,
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
    networks: Option<Vec<NetworkName>>,
    #[serde(default)]
    station: Vec<StationSection>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StationSection {
    mac: Mac,
    ip: Option<IpAddr>,
}

impl NodeSection {
    fn is_in(&self, network: &str) -> bool {
        self.networks.as_ref().is_none_or(|networks| networks.iter().any(|name| name.0 == network))
    }
}

impl From<NodeSection> for Candidate {
    fn from(section: NodeSection) -> Self {
        let NodeSection { name, vtep, mac, subnets, station, networks: _ } = section;
        let stations = station.into_iter().map(|StationSection { mac, ip }| Station { mac, ip }).collect();
        Self { name, vtep, mac, subnets, stations }
    }
}

/// Reads cluster state out of a state file's text; errors name the line of the node to blame. Nodes
/// that are limited to other networks than the viewer's are passed over: one that differs from
/// network to network has an entry for each.
pub fn parse_state(text: &Text, viewer: &Viewer) -> Result<ClusterState, Refused> {
    let sections: StateSections = text.parse()?;
    let (here, elsewhere): (Vec<_>, Vec<_>) =
        sections.node.into_iter().partition(|section| section.get_ref().is_in(&viewer.network));
    refuse_own_elsewhere(text, &here, &elsewhere, viewer)?;
    let spans: Vec<_> = here.iter().map(Spanned::span).collect();
    let candidates = here.into_iter().map(|section| section.into_inner().into()).collect();
    let cluster = ClusterState::new(candidates, viewer).map_err(|invalid| {
        let span = invalid.candidate.and_then(|index| spans.get(index).cloned());
        text.refuse(span, invalid.reason.to_string())
    })?;
    Ok(ClusterState { policy: sections.policy.map(u64::from), ..cluster })
}

/// That the viewer is in the file, but not in this network, is another mistake than a wrong name.
fn refuse_own_elsewhere(
    text: &Text,
    here: &[Spanned<NodeSection>],
    elsewhere: &[Spanned<NodeSection>],
    viewer: &Viewer,
) -> Result<(), Refused> {
    let is_own = |section: &&Spanned<NodeSection>| section.get_ref().name == viewer.node;
    let mut entries = elsewhere.iter().filter(is_own).peekable();
    let first = entries.peek().map(|section| section.span());
    let Some(span) = first.filter(|_| !here.iter().any(|section| is_own(&section))) else { return Ok(()) };
    let others: BTreeSet<&str> = entries
        .flat_map(|section| section.get_ref().networks.iter().flatten())
        .map(|name| name.0.as_str())
        .collect();
    let others: Vec<String> = others.into_iter().map(|name| format!("'{name}'")).collect();
    let others = if others.is_empty() { "[]".to_owned() } else { others.join(", ") };
    let reason = Reason::OwnElsewhere(viewer.node.clone(), viewer.network.clone(), others);
    Err(text.refuse(Some(span), reason.to_string()))
}

impl FileSource {
    /// The file at `path`, seen by `viewer`.
    pub fn new(path: PathBuf, viewer: Viewer) -> Self {
        Self { path, viewer }
    }

    fn read(&self) -> (Option<String>, Snapshot) {
        let text = match Text::read(&self.path) {
            Ok(text) => text,
            Err(refused) => return (None, Err(refused.to_string())),
        };
        let snapshot = parse_state(&text, &self.viewer).map_err(|refused| refused.to_string());
        (Some(text.content().to_owned()), snapshot)
    }

    /// Sends a snapshot whenever the file's content differs from `seen`.
    async fn follow(
        self,
        mut seen: Option<String>,
        mut changed: mpsc::Receiver<()>,
        out: watch::Sender<Snapshot>,
        watcher: RecommendedWatcher,
    ) {
        let _keep_watching = watcher;
        let source = Arc::new(self);
        while changed.recv().await.is_some() {
            tokio::time::sleep(SETTLE).await;
            while changed.try_recv().is_ok() {}
            // A slow file system or a long file keeps nobody waiting.
            let source = Arc::clone(&source);
            let Ok((content, snapshot)) = tokio::task::spawn_blocking(move || source.read()).await else {
                return;
            };
            if content == seen {
                continue;
            }
            seen = content;
            if out.send(snapshot).is_err() {
                return;
            }
        }
    }
}

impl Source for FileSource {
    fn watch(self: Box<Self>) -> anyhow::Result<watch::Receiver<Snapshot>> {
        let (poke, changed) = mpsc::channel(1);
        // Watch before reading, so that a change in between is not missed.
        let watcher = watch_directories(&self.path, poke)?;
        let (content, snapshot) = self.read();
        let (out, receiver) = watch::channel(snapshot);
        tokio::spawn(self.follow(content, changed, out, watcher));
        Ok(receiver)
    }
}

/// Watches the file's directory, because an editor replaces the file; where the file is a symbolic
/// link, that of its target too.
fn watch_directories(path: &Path, poke: mpsc::Sender<()>) -> anyhow::Result<RecommendedWatcher> {
    let told = move |event: notify::Result<notify::Event>| {
        // A full channel already says all there is to say; that somebody read the file says nothing.
        if !event.is_ok_and(|e| e.kind.is_access()) {
            let _ = poke.try_send(());
        }
    };
    let mut watcher =
        notify::recommended_watcher(told).context("cannot watch files: inotify is not available")?;
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut directories: Vec<PathBuf> =
        [path, &real].iter().filter_map(|p| p.parent()).map(Path::to_owned).collect();
    directories.dedup();
    for directory in directories {
        let directory = if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory };
        let context = || format!("cannot watch the state file's directory {}", directory.display());
        watcher.watch(&directory, RecursiveMode::NonRecursive).with_context(context)?;
    }
    Ok(watcher)
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

    async fn next(receiver: &mut watch::Receiver<Snapshot>) -> Snapshot {
        tokio::time::timeout(Duration::from_secs(5), receiver.changed())
            .await
            .expect("in time")
            .expect("alive");
        receiver.borrow_and_update().clone()
    }

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_is_read_again() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("cluster.toml");
        std::fs::write(&path, A).expect("write");
        let mut receiver = Box::new(FileSource::new(path.clone(), viewer())).watch().expect("watch");
        assert!(receiver.borrow_and_update().is_ok());

        std::fs::write(&path, "nonsense").expect("write");
        assert!(next(&mut receiver).await.expect_err("nonsense").contains("line 1"));

        let temporary = dir.path().join(".cluster.toml.swp");
        std::fs::write(&temporary, format!("{A}[[node]]\nname = \"b\"\nvtep = \"192.0.2.2\"\n"))
            .expect("write");
        std::fs::rename(&temporary, &path).expect("rename");
        assert_eq!(next(&mut receiver).await.expect("valid").remotes.len(), 1);

        std::fs::remove_file(&path).expect("remove");
        assert!(next(&mut receiver).await.expect_err("gone").contains("cannot be read"));
    }
}
