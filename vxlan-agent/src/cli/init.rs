//! `init`: a configuration for a machine that has none.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{print, print_json, runtime};
use crate::config::{Config, NetworkName, hostname};
use crate::init::{Found, NODES, Request, Wanted};
use crate::kernel::Netlink;
use crate::node::write_if_other;
use crate::text::Text;

/// What to write.
#[derive(Args)]
pub(super) struct Init {
    /// The kind of the network.
    #[arg(long, value_enum, default_value = "l3")]
    kind: Kind,
    /// The interface to the other nodes; without it that of the default route, or the only one that can be.
    #[arg(long, value_name = "INTERFACE")]
    underlay: Option<String>,
    /// Write the configuration to this file, and the list of nodes to nodes.toml next to it; `-` is standard output.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Overwrite FILE if it exists and is a regular file. A list of nodes that exists stays as it is in any case.
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Nodes have subnets, and packets are routed to them.
    L3,
    /// All nodes are one Ethernet segment, with a bridge on each.
    L2,
}

/// The files.
#[derive(Debug, Serialize)]
struct Written {
    configuration: PathBuf,
    /// Whether there was one before.
    overwritten: bool,
    nodes: PathBuf,
    /// Whether there was none before; one that was there stays as it is.
    nodes_written: bool,
}

/// What was found, and what was written.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    found: Found,
    written: Written,
}

/// Looks at this machine and writes what follows from it.
///
/// # Errors
/// There is no usable underlay, a name cannot be one, or a file cannot be written.
pub(super) fn run(
    options: &Init,
    config: Option<&Path>,
    network: Option<&str>,
    json: bool,
) -> anyhow::Result<()> {
    ensure!(config.is_none(), "init reads no configuration: name the file that it is to write with -o");
    let found = runtime()?.block_on(find(options, network))?;
    accepted(&found)?;
    if options.output == Path::new("-") {
        return if json { print_json(&found) } else { print(&found.configuration()) };
    }
    let written = write(&found, &options.output, options.force)?;
    if json { print_json(&Report { found, written }) } else { print(&told(&found, &written)) }
}

async fn find(options: &Init, network: Option<&str>) -> anyhow::Result<Found> {
    let (kind, usual) = match options.kind {
        Kind::L3 => (Wanted::L3, "hosts"),
        Kind::L2 => (Wanted::L2, "vms"),
    };
    let NetworkName(network) = network.unwrap_or(usual).parse().map_err(anyhow::Error::msg)?;
    let node = hostname().context("this machine has no host name: give it one, or set NODE_NAME")?;
    let request = Request { node, network, kind, underlay: options.underlay.clone() };
    let tables = Netlink::open()?.dump_wide().await?;
    Ok(Found::of(request, &tables)?)
}

/// What an agent would refuse is not written, such as a host name with control characters.
fn accepted(found: &Found) -> anyhow::Result<()> {
    let text = Text::new("the configuration for this machine", found.configuration());
    Config::parse(&text, Path::new(""), &|| None)
        .context("nothing is written, for no agent would take it")?;
    Ok(())
}

/// Writes both files or none.
fn write(found: &Found, path: &Path, force: bool) -> anyhow::Result<Written> {
    let nodes = path.with_file_name(NODES);
    ensure!(
        nodes != path,
        "{NODES} is the list of nodes next to the configuration: name another file with -o"
    );
    let exists = may_be_written(path, force)?;
    let is_new = fs::symlink_metadata(&nodes).is_err();
    if is_new {
        write_if_other(&nodes, &found.nodes())?;
    }
    let written = write_if_other(path, &found.configuration());
    if written.is_err() && is_new {
        let _ = fs::remove_file(&nodes);
    }
    written?;
    Ok(Written { configuration: path.to_owned(), overwritten: exists, nodes, nodes_written: is_new })
}

/// Whether there is a file at `path`.
///
/// # Errors
/// It must not be overwritten.
fn may_be_written(path: &Path, force: bool) -> anyhow::Result<bool> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
    };
    let path = path.display();
    ensure!(
        metadata.is_file(),
        "{path} is no regular file and is not overwritten: name another file with -o"
    );
    ensure!(force, "{path} exists and is not overwritten: name another file with -o, or add --force");
    Ok(true)
}

/// What was written, and what there is to do with it.
fn told(found: &Found, written: &Written) -> String {
    let Written { configuration, nodes, nodes_written, .. } = written;
    let (path, nodes) = (configuration.display(), nodes.display());
    let list = match nodes_written {
        true => format!(
            "{nodes}: the list of nodes, with this one; add the others, the same list on every node\n"
        ),
        false => format!(
            "{nodes}: was there and stays as it is; it needs an entry for this node, such as\n\n{}\n",
            found.entry()
        ),
    };
    format!("{path}: written\n{list}then: vxlan-agent check {path}\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::kernel::{Address, Link, Tables};
    use crate::net::{IfIndex, Mtu};

    /// Of a machine with one interface.
    fn found(node: &str) -> Found {
        let eth0 =
            Link { index: IfIndex(2), name: "eth0".into(), mtu: Mtu(1500), up: true, ..Link::default() };
        let address = Address { ifindex: IfIndex(2), ip: [192, 0, 2, 9].into(), prefix: 24 };
        let tables =
            Tables { links: [(eth0.index, eth0)].into(), addresses: [address].into(), ..Tables::default() };
        let request =
            Request { node: node.into(), network: "hosts".into(), kind: Wanted::L3, underlay: None };
        Found::of(request, &tables).expect("an underlay")
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).expect("a directory");
        let mut names: Vec<_> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into()).collect();
        names.sort();
        names
    }

    #[track_caller]
    fn refused(path: &Path, force: bool, word: &str) {
        let error = write(&found("a"), path, force).expect_err("refused");
        assert!(format!("{error:#}").contains(word), "{error:#}");
    }

    #[test]
    fn both_files_are_written_where_none_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("new/config.toml");
        let written = write(&found("a"), &path, false).expect("written");
        assert!(written.nodes_written && !written.overwritten, "{written:?}");
        assert_eq!(names(&dir.path().join("new")), ["config.toml", NODES]);
        assert!(told(&found("a"), &written).contains("add the others"));
        Config::read(&path).expect("a configuration");
    }

    #[test]
    fn a_configuration_is_overwritten_if_that_is_asked_for_and_a_list_of_nodes_never() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, nodes) = (dir.path().join("config.toml"), dir.path().join(NODES));
        fs::write(&path, "old").expect("written");
        refused(&path, false, "--force");
        assert_eq!(names(dir.path()), ["config.toml"], "not even the list of nodes");
        fs::write(&nodes, "list").expect("written");
        let written = write(&found("a"), &path, true).expect("written");
        assert!(written.overwritten && !written.nodes_written, "{written:?}");
        let read = |path| fs::read_to_string(path).expect("a file");
        assert_eq!((read(&path), read(&nodes)), (found("a").configuration(), "list".to_owned()));
        assert!(told(&found("a"), &written).contains("[[node]]\nname = \"a\"\nvtep = \"192.0.2.9\"\n"));
    }

    #[test]
    fn what_is_no_configuration_is_never_overwritten() {
        let dir = tempfile::tempdir().expect("a directory");
        let link = dir.path().join("link");
        symlink("/dev/null", &link).expect("a link");
        refused(&link, true, "no regular file");
        refused(dir.path(), true, "no regular file");
        refused(&dir.path().join(NODES), true, "the list of nodes");
        assert_eq!(names(dir.path()), ["link"]);
    }

    #[test]
    fn without_the_configuration_there_is_no_list_of_nodes_either() {
        let dir = tempfile::tempdir().expect("a directory");
        // In the way of the file that is to become the configuration.
        fs::create_dir(dir.path().join("config.toml.tmp")).expect("a directory");
        refused(&dir.path().join("config.toml"), false, "cannot write");
        assert_eq!(names(dir.path()), ["config.toml.tmp"]);
    }

    #[test]
    fn a_node_that_no_configuration_takes_is_refused() {
        accepted(&found("a")).expect("a name");
        let refused = accepted(&found("a\nb")).expect_err("refused");
        assert!(format!("{refused:#}").contains("control characters"), "{refused:#}");
    }
}
