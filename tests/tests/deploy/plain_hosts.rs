//! Hosts without Kubernetes: the unit fits the agent, and what the documentation has them write is valid.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use vxlan_agent::cluster::Viewer;
use vxlan_agent::config::{Config, DEFAULT_PATH, SNIPPETS, StateConfig, View};
use vxlan_agent::source::parse_state;
use vxlan_agent::text::Text;

use super::{agent, base_configuration, deploy};

const UNIT: &str = "systemd/vxlan-agent.service";
/// Servers of the documentation.
const SERVERS: [&str; 2] = ["alpha", "beta"];

/// What the unit says of `key`, word by word.
fn unit(key: &str) -> Vec<String> {
    let text = fs::read_to_string(deploy().join(UNIT)).expect("a unit");
    let values = text.lines().filter_map(|line| line.split_once('=').filter(|(found, _)| *found == key));
    values.flat_map(|(_, value)| value.split_whitespace().map(str::to_owned)).collect()
}

fn documentation(path: &str) -> String {
    fs::read_to_string(deploy().join("..").join(path)).expect("documentation")
}

/// Files that the documentation has its readers write, by their names: blocks of TOML that begin with one, perhaps
/// with a remark behind it.
fn files() -> Vec<(String, Text)> {
    let text = documentation("docs/plain-hosts.md");
    let blocks = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().expect("a block"));
    let file = |block: &str| {
        let first = block.lines().next().expect("a line").trim_start_matches("# ");
        let name = first.split(',').next().expect("a name").to_owned();
        assert!(name.starts_with("/etc/vxlan-agent/"), "{name}");
        (name.clone(), Text::new(&name, block))
    };
    blocks.map(file).collect()
}

/// The networks of configurations among the files, on `server`.
fn networks(server: &str) -> Vec<View> {
    let snippets = format!("/{SNIPPETS}/");
    let files = files().into_iter().filter(|(name, _)| *name == DEFAULT_PATH || name.contains(&snippets));
    let base = Path::new(DEFAULT_PATH).parent().expect("a directory");
    let read = |(_, text): (_, Text)| {
        Config::parse(&text, base, &|| Some(server.to_owned())).expect("a valid configuration").networks
    };
    files.flat_map(read).collect()
}

#[test]
fn the_unit_starts_what_the_documentation_installs() {
    let [program, command] = <[String; 2]>::try_from(unit("ExecStart")).expect("a program and a command");
    // systemd looks for it there, and where the packages put it.
    let installed = format!("/usr/local/bin/{program}");
    assert_eq!((program.as_str(), command.as_str()), ("vxlan-agent", "run"));
    assert_eq!(
        (unit("ConditionPathExists"), unit("Restart")),
        (vec![DEFAULT_PATH.into()], vec!["always".into()])
    );
    let docs = documentation("docs/plain-hosts.md");
    for words in [format!("install -m 755 {program} {installed}\n"), format!("install -m 644 deploy/{UNIT} ")]
    {
        assert!(docs.contains(&words), "{words}");
    }
    let readme = documentation("README.md");
    assert!(readme.contains("(docs/plain-hosts.md)") && readme.contains("deploy/systemd/"));
}

#[test]
fn the_unit_leaves_the_agent_what_it_writes_to() {
    let networks = networks(SERVERS[0]);
    let node = &networks.first().expect("a network").node;
    let run = Path::new("/run").join(unit("RuntimeDirectory").concat());
    assert_eq!(node.run_dir.parent(), Some(&*run));
    // `detach` reads there what was written to files.
    assert_eq!(unit("RuntimeDirectoryPreserve"), ["yes"]);
    let mounted = unit("AssertPathIsMountPoint").concat();
    assert_eq!(node.pin_dir.parent(), Some(Path::new(&mounted)));
    // This is what would make /proc/sys and /sys read-only.
    assert_eq!((unit("ProtectKernelTunables"), unit("PrivateNetwork")), (vec![], vec![]));
}

#[test]
fn the_unit_gives_the_capabilities_that_a_pod_has() {
    let of_pod = &agent()["securityContext"]["capabilities"]["add"];
    let of_pod = of_pod.as_array().expect("a list").iter().filter_map(|name| name.as_str());
    let of_pod: BTreeSet<_> = of_pod.map(|name| format!("CAP_{name}")).collect();
    assert_eq!(unit("CapabilityBoundingSet").into_iter().collect::<BTreeSet<_>>(), of_pod);
    assert_eq!((unit("NoNewPrivileges"), unit("User")), (vec!["yes".into()], vec![]));
    assert_eq!(
        base_configuration().node.pin_dir,
        networks(SERVERS[0]).first().expect("a network").node.pin_dir
    );
}

#[test]
fn what_the_documentation_has_its_readers_write_is_valid() {
    let files = files();
    for server in SERVERS {
        let networks = networks(server);
        assert!(networks.len() >= 4, "segments, with and without more, and a routed network");
        for view in networks {
            let StateConfig::File(path) = &view.state else { panic!("no file: {:?}", view.state) };
            let named = |(name, _): &&(String, Text)| Path::new(name) == path;
            let (_, text) = files.iter().find(named).unwrap_or_else(|| panic!("no {}", path.display()));
            let (network, l2) = (&view.network, view.network.segment().is_some());
            let viewer = Viewer { node: server.into(), network: network.name.clone(), vni: network.vni, l2 };
            let cluster = parse_state(text, &viewer).expect("a valid state file");
            assert_eq!((cluster.own.name.as_str(), cluster.remotes.len()), (server, SERVERS.len() - 1));
        }
    }
}

#[test]
fn the_example_that_packages_install_is_valid() {
    let read = |name: &str| {
        let text = documentation(&format!("deploy/systemd/{name}"));
        Text::new(format!("/etc/vxlan-agent/{name}"), &text)
    };
    let base = Path::new(DEFAULT_PATH).parent().expect("a directory");
    for server in SERVERS {
        let config = Config::parse(&read("config.toml"), base, &|| Some(server.to_owned())).expect("valid");
        let [view] = config.networks.as_slice() else { panic!("one network") };
        let StateConfig::File(path) = &view.state else { panic!("a state file") };
        assert_eq!(path, &base.join("nodes.toml"));
        let (network, vni) = (view.network.name.clone(), view.network.vni);
        let viewer = Viewer { node: server.into(), network, vni, l2: false };
        let cluster = parse_state(&read("nodes.toml"), &viewer).expect("a valid state file");
        assert_eq!(cluster.remotes.len(), SERVERS.len() - 1);
    }
}

#[test]
fn there_is_what_packages_contain() {
    let manifest = documentation("vxlan-agent/Cargo.toml");
    let sources = manifest.split('"').filter(|word| word.starts_with("../"));
    let missing: Vec<_> =
        sources.filter(|file| !deploy().join("../vxlan-agent").join(file).exists()).collect();
    assert_eq!(missing, [""; 0]);
}
