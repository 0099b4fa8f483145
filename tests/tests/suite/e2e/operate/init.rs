//! `init`: a configuration for a machine that has none.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::Value;
use vxlan_tests::lab::agent::agent_binary;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{Lab, UNDERLAY, wait_until};

use crate::e2e::{assert_answered, assert_took, build, counted, pair};

/// Runs `init` on node `n`, which is called `n<n>`.
fn init(lab: &Lab, n: u8, args: &[&str]) -> Output {
    lab.node(n).run(|| {
        let mut command = Command::new(agent_binary().expect("an agent"));
        command.arg("init").args(args).env("NODE_NAME", format!("n{n}"));
        command.output().expect("it runs")
    })
}

/// What `init --json` prints on node `n`.
fn found(lab: &Lab, n: u8, args: &[&str]) -> Value {
    let output = init(lab, n, &[&["--underlay", UNDERLAY, "--json"], args].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// What it says on standard error when it refuses.
fn refusal(lab: &Lab, args: &[&str]) -> String {
    let output = init(lab, 1, args);
    assert!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `text` with a line that is commented out and begins with `key`, in force; with `value`, if there is one.
fn in_force(text: &str, key: &str, value: Option<&str>) -> String {
    let commented = format!("# {key}");
    let line = text.lines().find(|line| line.starts_with(&commented)).expect("a line");
    let new = value.map_or_else(|| line.trim_start_matches("# ").to_owned(), |value| format!("{key}{value}"));
    text.replace(line, &new)
}

/// What `init` has written for a node.
struct Written {
    nodes: PathBuf,
    /// The list of nodes.
    list: String,
    /// The node's own address in the overlay.
    address: IpAddr,
}

/// Writes a configuration for node `n` where its agent reads it; the agent keeps its pins.
fn write(lab: &Lab, n: u8, kind: &str) -> Written {
    let agent = lab.agent(n).expect("an agent");
    let config = agent.config();
    let path = config.to_str().expect("a path");
    let found = found(lab, n, &["--kind", kind, "--force", "-o", path]);
    let written = &found["written"];
    assert_eq!((&written["overwritten"], &written["nodes_written"]), (&true.into(), &true.into()));
    let mut text = fs::read_to_string(config).expect("a configuration");
    for (key, dir) in [("pin_dir = ", agent.pin_dir()), ("run_dir = ", config.parent().expect("a directory"))]
    {
        text = in_force(&text, key, Some(&format!("{dir:?}")));
    }
    if kind == "l2" {
        text = in_force(&text, "address = [", None);
    }
    fs::write(config, text).expect("written");
    let nodes = PathBuf::from(written["nodes"].as_str().expect("a path"));
    let list = fs::read_to_string(&nodes).expect("a list of nodes");
    let (address, _) = found["subnets"][0].as_str().and_then(|s| s.split_once('/')).expect("a prefix");
    Written { nodes, list, address: address.parse().expect("an address") }
}

/// Two nodes run from what `init --kind <kind>` writes, once the list of nodes has both. Node 1 reaches the address of
/// node 2 in the overlay, and both count their packets at the vxlan device, for `reason`.
fn runs(kind: &str, reason: &str) {
    let mut lab = build(&pair());
    for n in [1, 2] {
        lab.agent_mut(n).and_then(|agent| agent.stop()).expect("a stop");
    }
    let found = found(&lab, 2, &["--kind", kind]);
    let subnet = found["subnets"][0].as_str().expect("a subnet");
    assert!(!subnet.starts_with("10.244."), "the subnets of the pods are in use: {found:#}");
    for n in [1, 2] {
        lab.agent(n).and_then(|agent| agent.cli(&["detach"])).expect("nothing is left");
    }
    let [first, second] = [1, 2].map(|n| write(&lab, n, kind));
    for path in [&first.nodes, &second.nodes] {
        fs::write(path, format!("{}{}", first.list, second.list)).expect("written");
    }
    for n in [1, 2] {
        let checked = lab.agent(n).and_then(|agent| agent.cli(&["check", "--dry-run"])).expect("it will do");
        assert!(checked.contains("1 other nodes"), "{checked}");
        lab.agent_mut(n).and_then(|agent| agent.spawn()).expect("a start");
    }
    let address = second.address;
    let answers = || ping(lab.node(1), address, Ping::default()).is_ok_and(|report| report.all_answered());
    wait_until("node 2 answers", Duration::from_secs(30), answers).expect("an overlay");
    let counted = counted(&lab, || {
        assert_answered(lab.node(1), address, Ping { count: 5, ..Ping::default() });
    });
    for node in &counted {
        assert_took(node, "tunnel_egress", reason, 5);
    }
}

#[test]
fn routed_nodes_run_from_what_it_writes() {
    runs("l3", "encapsulated");
}

#[test]
fn nodes_of_a_segment_run_from_what_it_writes() {
    // What the hosts themselves send on a segment is the bridge's and the device's.
    runs("l2", "passed");
}

#[test]
fn nothing_is_overwritten_and_what_cannot_be_is_said() {
    let lab = build(&pair());
    let config = lab.agent(1).expect("an agent").config().to_owned();
    let before = fs::read_to_string(&config).expect("a configuration");
    let path = config.to_str().expect("a path");
    let several = refusal(&lab, &["-o", path]);
    assert!(
        several.contains("--underlay") && several.contains(UNDERLAY),
        "the lab has no default route: {several}"
    );
    let exists = refusal(&lab, &["--underlay", UNDERLAY, "-o", path]);
    assert!(exists.contains("--force"), "{exists}");
    assert_eq!(fs::read_to_string(&config).expect("a configuration"), before);
    assert!(!config.with_file_name("nodes.toml").exists(), "both files or none");
    let missing = refusal(&lab, &["--underlay", "eth9"]);
    assert!(missing.contains("'eth9' does not exist"), "{missing}");
}
