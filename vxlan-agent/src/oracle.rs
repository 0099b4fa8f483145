//! What must hold for every configuration and every state file, however odd.
//!
//! An oracle takes a file's bytes as a fuzzer thinks them up, reads them as the agent does and
//! panics if the outcome breaks a promise. The fuzz targets are these functions and nothing else, and
//! an ordinary test replays what fuzzing found through the same ones.
//!
//! The promises:
//! - nothing panics;
//! - a refusal is one line of printable text, and names a line that the file has;
//! - what is accepted keeps the rules that the rest of the agent builds on;
//! - what is accepted, written out in full and read again, is the same;
//! - a cluster looks the same from each of its nodes, in whatever order they are listed.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;
use vxlan_ebpf_common::maps::Addr;

use crate::cluster::{ClusterState, Node, Viewer};
use crate::config::{Config, StateConfig};
use crate::net::Vni;
use crate::source::etcd::Access;
use crate::source::parse_state;
use crate::text::{Refused, Text};

/// Nodes of a cluster whose views are compared; every pair of subnets is, too.
const FEW: usize = 16;

/// Reads `data` as a configuration; returns whether it was accepted.
pub fn config(data: &[u8]) -> bool {
    let Ok(content) = std::str::from_utf8(data) else { return false };
    let config = match parse_config(content) {
        Ok(config) => config,
        Err(refused) => {
            check_refusal(&refused, content);
            return false;
        }
    };
    check_config(&config);
    let written = write_config(&config);
    assert_eq!(parse_config(&written), Ok(config), "written out in full:\n{written}");
    true
}

/// Reads `data` as a state file, as node `a` sees it; returns whether it was accepted.
pub fn state(data: &[u8]) -> bool {
    let Ok(content) = std::str::from_utf8(data) else { return false };
    let cluster = match parse_cluster(content, "a") {
        Ok(cluster) => cluster,
        Err(refused) => {
            check_refusal(&refused, content);
            return false;
        }
    };
    assert_eq!(cluster.own.name, "a", "the own node");
    let nodes: Vec<&Node> = std::iter::once(&cluster.own).chain(cluster.remotes.values()).collect();
    nodes.iter().for_each(|node| check_node(node, &cluster.own));
    check_pairs(&nodes);
    check_views(&nodes, &cluster);
    true
}

fn parse_config(content: &str) -> Result<Config, Refused> {
    let text = Text::new("config.toml", content);
    Config::parse(&text, Path::new("/etc/vxlan-agent"), &|| Some("box".into()))
}

fn parse_cluster(content: &str, node: &str) -> Result<ClusterState, Refused> {
    let vni = Vni::try_from(1).expect("in range");
    parse_state(&Text::new("cluster.toml", content), &Viewer { node: node.into(), vni })
}

fn check_refusal(refused: &Refused, content: &str) {
    let said = refused.to_string();
    assert!(!said.contains(char::is_control), "a refusal of one printable line: {said:?}");
    assert!(!refused.reason.trim().is_empty(), "a refusal without a reason: {said:?}");
    if let Some(line) = refused.line {
        let lines = content.split('\n').count();
        assert!((1..=lines).contains(&line), "line {line} of {lines}: {said:?}");
    }
}

fn check_config(config: &Config) {
    let Config { node, network, pods, state } = config;
    assert!(!node.name.is_empty(), "a node without a name");
    assert!(node.pin_dir.is_absolute(), "pin_dir {:?}", node.pin_dir);
    assert!((1..=32).contains(&network.name.len()), "network name {:?}", network.name);
    // The name becomes a directory, and a part of device aliases.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    assert!(network.name.chars().all(plain), "network name {:?}", network.name);
    assert!(config.pins().starts_with(&node.pin_dir), "pins {:?}", config.pins());
    assert!((1..1 << 24).contains(&network.vni.get()), "VNI {}", network.vni);
    assert_ne!(network.port, 0, "port");
    assert!(network.mtu.is_none_or(|mtu| (68..=65_485).contains(&mtu.0)), "MTU {:?}", network.mtu);
    assert!(crate::config::FLOWS.contains(&network.flows), "flows {}", network.flows);
    assert!((1..16).contains(&network.device.len()), "device {:?}", network.device);
    assert!(!network.device.contains(['/', '\0', ' ']), "device {:?}", network.device);
    assert!(pods.networks.len() <= 2 && !(pods.needs_networks() && pods.networks.is_empty()), "{pods:?}");
    assert!(pods.networks.iter().all(|n| n.ip() == n.network() && n.prefix() > 0), "{pods:?}");
    assert!(pods.cni_file.is_absolute(), "CNI file {:?}", pods.cni_file);
    assert!(pods.subnet_file.as_ref().is_none_or(|path| path.is_absolute()), "{:?}", pods.subnet_file);
    match state {
        StateConfig::File(path) => assert!(path.is_absolute(), "state path {path:?}"),
        StateConfig::Kubernetes(kubernetes) => {
            assert!(kubernetes.kubeconfig.iter().all(|path| path.is_absolute()), "{kubernetes:?}");
            assert!((1..16).contains(&kubernetes.device6.len()), "device6 {:?}", kubernetes.device6);
            assert!(kubernetes.ipv4 || kubernetes.ipv6, "no IP version");
        }
        StateConfig::Etcd(etcd) => {
            let identity = etcd.access.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
            assert!(identity.chain(&etcd.access.ca_file).all(|path| path.is_absolute()), "{etcd:?}");
            assert!(etcd.subnet_file.is_absolute() && !etcd.access.endpoints.is_empty(), "{etcd:?}");
            assert!((1..16).contains(&etcd.device6.len()), "device6 {:?}", etcd.device6);
            assert!((60..86_400).contains(&etcd.margin.as_secs()), "margin {:?}", etcd.margin);
        }
    }
}

/// The section `[state]` with everything in it that can be given.
fn write_state_section(state: &StateConfig, text: &mut String) {
    let mut line = |key: &str, value: String| writeln!(text, "{key} = {value}").expect("a string takes it");
    let quoted = |path: &Path| quote(path.to_str().expect("from a text"));
    match state {
        StateConfig::File(path) => line("[state]\nsource = \"file\"\npath", quoted(path)),
        StateConfig::Kubernetes(kubernetes) => {
            line("[state]\nsource = \"kubernetes\"\nipv4", kubernetes.ipv4.to_string());
            line("ipv6", kubernetes.ipv6.to_string());
            line("set_condition", kubernetes.set_condition.to_string());
            line("annotation_prefix", quote(kubernetes.names.prefix()));
            line("device6", quote(&kubernetes.device6));
            kubernetes.kubeconfig.iter().for_each(|path| line("kubeconfig", quoted(path)));
            for ip in &kubernetes.public {
                line(if ip.is_ipv4() { "public_ip" } else { "public_ipv6" }, quote(&ip.to_string()));
            }
        }
        StateConfig::Etcd(etcd) => {
            let Access { endpoints, prefix, ca_file, identity, user } = &etcd.access;
            let endpoints: Vec<String> = endpoints.iter().map(|endpoint| quote(endpoint)).collect();
            line("[state]\nsource = \"etcd\"\nendpoints", format!("[{}]", endpoints.join(", ")));
            line("prefix", quote(prefix));
            line("device6", quote(&etcd.device6));
            line("renew_margin", (etcd.margin.as_secs() / 60).to_string());
            line("subnet_file", quoted(&etcd.subnet_file));
            ca_file.iter().for_each(|path| line("ca_file", quoted(path)));
            if let Some((certificate, key)) = identity {
                line("cert_file", quoted(certificate));
                line("key_file", quoted(key));
            }
            if let Some((name, password)) = user {
                line("username", quote(name));
                line("password", quote(password));
            }
            for ip in &etcd.public {
                line(if ip.is_ipv4() { "public_ip" } else { "public_ipv6" }, quote(&ip.to_string()));
            }
        }
    }
}

/// `config` with everything in it that can be given.
fn write_config(config: &Config) -> String {
    let Config { node, network, pods, state } = config;
    let quoted = |path: &Path| quote(path.to_str().expect("from a text"));
    let mut text = String::new();
    write_state_section(state, &mut text);
    text.push_str("[node]\n");
    let mut line = |key: &str, value: String| writeln!(text, "{key} = {value}").expect("a string takes it");
    line("name", quote(&node.name));
    line("pin_dir", quoted(&node.pin_dir));
    line("run_dir", quoted(&node.run_dir));
    line("attach", named(node.attach));
    line("xdp", named(node.xdp));
    node.healthz.iter().for_each(|healthz| line("healthz", quote(&healthz.to_string())));
    node.underlay.iter().for_each(|underlay| line("underlay", quote(underlay)));
    node.address.iter().for_each(|address| line("address", quote(&address.to_string())));
    line("[[network]]\nname", quote(&network.name));
    line("kind", quote("l3"));
    line("vni", network.vni.to_string());
    line("port", network.port.to_string());
    line("mtu", network.mtu.map_or(quote("auto"), |mtu| mtu.to_string()));
    line("device", quote(&network.device));
    line("fastpath", named(network.fastpath));
    line("source_check", named(network.source_check));
    line("flows", network.flows.to_string());
    line("malformed", named(network.malformed));
    line("other_vni", named(network.other_vni));
    line("notrack", network.notrack.to_string());
    let networks: Vec<String> = pods.networks.iter().map(|n| quote(&n.to_string())).collect();
    line("[pods]\nnetworks", format!("[{}]", networks.join(", ")));
    pods.subnet_file.iter().for_each(|path| line("subnet_file", quoted(path)));
    line("cni", named(pods.cni));
    line("cni_file", quoted(&pods.cni_file));
    line("masquerade", pods.masquerade.to_string());
    text
}

/// One of several words as a TOML string.
fn named(word: impl Serialize) -> String {
    toml::Value::try_from(word).expect("a word").to_string()
}

/// `text` as a TOML string.
fn quote(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn check_node(node: &Node, own: &Node) {
    assert!(!node.name.is_empty(), "a node without a name");
    assert_eq!(node.vtep.is_ipv4(), own.vtep.is_ipv4(), "underlay families");
    assert!(is_unicast(node.vtep), "VTEP {}", node.vtep);
    assert_eq!(IpAddr::from(Addr::from(node.vtep)), node.vtep, "VTEP in the form of the tables");
    assert!(node.mac.is_station(), "MAC {}", node.mac);
    for subnet in &node.subnets {
        assert_eq!(subnet.ip(), subnet.network(), "host bits in {subnet}");
        assert!(subnet.prefix() > 0 && is_unicast(subnet.ip()), "subnet {subnet}");
        assert_eq!(IpAddr::from(Addr::from(subnet.ip())), subnet.ip(), "subnet in the form of the tables");
    }
}

fn is_unicast(address: IpAddr) -> bool {
    !address.is_unspecified() && !address.is_multicast() && !address.is_loopback()
}

/// No two nodes share what must be unique: compared pair by pair, unlike in the agent.
fn check_pairs(nodes: &[&Node]) {
    for (index, a) in nodes.iter().enumerate().take(FEW) {
        for b in nodes.iter().skip(index + 1) {
            assert!(a.name != b.name && a.vtep != b.vtep && a.mac != b.mac, "{a:?} and {b:?}");
        }
        let mut own = a.subnets.iter().enumerate();
        assert!(own.all(|(i, s)| !a.subnets[..i].iter().any(|t| overlap(s, t))), "{a:?}");
        for b in nodes {
            assert!(!a.subnets.iter().any(|s| s.contains(b.vtep)), "{b:?} inside of {a:?}");
            let disjoint = |s| a.name == b.name || !b.subnets.iter().any(|t| overlap(s, t));
            assert!(a.subnets.iter().all(disjoint), "{a:?} and {b:?}");
        }
    }
}

fn overlap(a: &ipnetwork::IpNetwork, b: &ipnetwork::IpNetwork) -> bool {
    a.contains(b.ip()) || b.contains(a.ip())
}

/// Written out in any order and read by any node, the cluster is the same.
fn check_views(nodes: &[&Node], cluster: &ClusterState) {
    let written = write_state(nodes.iter().copied(), cluster.policy);
    assert_eq!(parse_cluster(&written, "a").as_ref(), Ok(cluster), "written out in full:\n{written}");
    let reversed = write_state(nodes.iter().rev().copied(), cluster.policy);
    for viewer in nodes.iter().take(FEW) {
        let view = parse_cluster(&reversed, &viewer.name).expect("valid for one, valid for all");
        assert_eq!(&view.own, *viewer, "the own node");
        assert_eq!(view.remotes.len() + 1, nodes.len(), "as many nodes");
        let same = |node: &&&Node| node.name != viewer.name && view.remotes.get(&node.name) != Some(*node);
        assert_eq!(nodes.iter().find(same), None, "a node that looks different from {}", viewer.name);
    }
}

fn write_state<'a>(nodes: impl Iterator<Item = &'a Node>, policy: Option<u64>) -> String {
    let mut text = policy.map_or_else(String::new, |policy| format!("policy = {policy}\n"));
    for node in nodes {
        let subnets: Vec<String> = node.subnets.iter().map(|s| quote(&s.to_string())).collect();
        let (name, vtep, mac) = (quote(&node.name), node.vtep, node.mac);
        let subnets = subnets.join(", ");
        write!(text, "[[node]]\nname = {name}\nvtep = \"{vtep}\"\nmac = \"{mac}\"\nsubnets = [{subnets}]\n")
            .expect("a string takes it");
    }
    text
}
