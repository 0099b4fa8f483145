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

use crate::cluster::{ClusterState, Node, Station, Viewer};
use crate::config::{Config, Flood, Kind, NetworkConfig, PodsConfig, StateConfig, View};
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
    check_whole(&config);
    config.networks.iter().for_each(check_config);
    let written = write_config(&config);
    assert_eq!(parse_config(&written), Ok(config), "written out in full:\n{written}");
    true
}

/// Reads `data` as a state file, as node `a` sees it in a routed and in a bridged network; returns
/// whether it was accepted for either.
pub fn state(data: &[u8]) -> bool {
    let Ok(content) = std::str::from_utf8(data) else { return false };
    [false, true].map(|l2| state_of(content, l2)).contains(&true)
}

fn state_of(content: &str, l2: bool) -> bool {
    let cluster = match parse_cluster(content, "a", l2) {
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
    check_stations(&nodes);
    check_views(&nodes, &cluster, l2);
    true
}

fn parse_config(content: &str) -> Result<Config, Refused> {
    let text = Text::new("config.toml", content);
    Config::parse(&text, Path::new("/etc/vxlan-agent"), &|| Some("box".into()))
}

fn parse_cluster(content: &str, node: &str, l2: bool) -> Result<ClusterState, Refused> {
    let vni = Vni::try_from(1).expect("in range");
    let viewer = Viewer { node: node.into(), network: "pods".into(), vni, l2 };
    parse_state(&Text::new("cluster.toml", content), &viewer)
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

/// What no two networks may share, compared pair by pair, unlike in the agent.
fn check_whole(config: &Config) {
    assert!(!config.networks.is_empty() || config.all.is_some(), "no network");
    let of_all = |all: &NetworkConfig| all.is_accelerated() && all.name.is_empty() && all.device.is_empty();
    assert!(config.all.as_ref().is_none_or(of_all), "{:?}", config.all);
    let links = |view: &View| {
        let bridge = view.network.segment().map(|segment| segment.bridge.clone());
        let devices = view.devices().into_iter().map(|(device, _)| device.to_owned());
        devices.chain(bridge).collect::<Vec<_>>()
    };
    for (index, a) in config.networks.iter().enumerate() {
        assert_eq!(a.node, config.node, "one node");
        let own = links(a);
        assert!(own.iter().enumerate().all(|(i, link)| !own[..i].contains(link)), "{own:?}");
        for b in config.networks.iter().take(FEW).take(index) {
            let (x, y) = (&a.network, &b.network);
            let unknown = x.is_accelerated() || y.is_accelerated();
            assert!(x.name != y.name && (unknown || (x.vni, x.port) != (y.vni, y.port)), "{x:?} and {y:?}");
            assert!(!links(b).iter().any(|link| own.contains(link)), "{x:?} and {y:?}");
        }
    }
    let mut with_pods = config.networks.iter().filter(|view| view.pods != PodsConfig::default());
    assert!(with_pods.all(|view| Some(&view.network) == first_routed(config)), "pods in one network");
}

fn first_routed(config: &Config) -> Option<&NetworkConfig> {
    config.networks.iter().map(|view| &view.network).find(|network| network.kind == Kind::L3)
}

/// What a bridged network has besides.
fn check_segment(network: &NetworkConfig) {
    let Some(segment) = network.segment() else { return };
    assert!((1..16).contains(&segment.bridge.len()), "bridge {:?}", segment.bridge);
    assert!(!segment.bridge.contains(['/', '\0', ' ']), "bridge {:?}", segment.bridge);
    for (index, address) in segment.addresses.iter().enumerate() {
        assert!(is_unicast(address.ip()) && address.prefix() > 0, "address {address}");
        let others = &segment.addresses[..index];
        assert!(!others.iter().any(|other| other.ip() == address.ip()), "address {address}");
    }
    if let Flood::Group(group) = segment.flood {
        assert!(group.is_multicast(), "group {group}");
    }
}

fn check_config(config: &View) {
    let View { node, network, pods, state } = config;
    check_segment(network);
    assert!(network.segment().is_none() || matches!(state, StateConfig::File(_)), "state of {network:?}");
    assert!(!node.name.is_empty(), "a node without a name");
    assert!(node.pin_dir.is_absolute(), "pin_dir {:?}", node.pin_dir);
    assert!((1..=32).contains(&network.name.len()), "network name {:?}", network.name);
    // The name becomes a directory, and a part of device aliases.
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    assert!(network.name.chars().all(plain), "network name {:?}", network.name);
    assert!(node.pins().starts_with(&node.pin_dir), "pins {:?}", node.pins());
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
        StateConfig::Device => assert!(network.is_accelerated(), "{network:?}"),
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

/// The section `[network.state]` with everything in it that can be given.
fn write_state_section(state: &StateConfig, text: &mut String) {
    let mut line = |key: &str, value: String| writeln!(text, "{key} = {value}").expect("a string takes it");
    let quoted = |path: &Path| quote(path.to_str().expect("from a text"));
    match state {
        StateConfig::Device => {}
        StateConfig::File(path) => line("[network.state]\nsource = \"file\"\npath", quoted(path)),
        StateConfig::Kubernetes(kubernetes) => {
            line("[network.state]\nsource = \"kubernetes\"\nipv4", kubernetes.ipv4.to_string());
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
            line("[network.state]\nsource = \"etcd\"\nendpoints", format!("[{}]", endpoints.join(", ")));
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
    let node = &config.node;
    let quoted = |path: &Path| quote(path.to_str().expect("from a text"));
    let mut text = String::from("[node]\n");
    let mut line = |key: &str, value: String| writeln!(text, "{key} = {value}").expect("a string takes it");
    line("name", quote(&node.name));
    line("pin_dir", quoted(&node.pin_dir));
    line("run_dir", quoted(&node.run_dir));
    line("attach", named(node.attach));
    line("xdp", named(node.xdp));
    node.healthz.iter().for_each(|healthz| line("healthz", quote(&healthz.to_string())));
    node.metrics.iter().for_each(|metrics| line("metrics", quote(&metrics.to_string())));
    node.underlay.iter().for_each(|underlay| line("underlay", quote(underlay)));
    node.address.iter().for_each(|address| line("address", quote(&address.to_string())));
    for View { network, pods, state, .. } in &config.networks {
        write_network(network, &mut text);
        write_state_section(state, &mut text);
        if Some(network) == first_routed(config) {
            write_pods(pods, &mut text);
        }
    }
    config.all.iter().for_each(|all| write_network(all, &mut text));
    text
}

fn write_network(network: &NetworkConfig, text: &mut String) {
    let mut line = |key: &str, value: String| writeln!(text, "{key} = {value}").expect("a string takes it");
    line("[[network]]\nkind", quote(network.kind.word()));
    if network.name.is_empty() {
        line("devices", quote("all"));
    } else {
        line("name", quote(&network.name));
        line("device", quote(&network.device));
    }
    if !network.is_accelerated() {
        line("vni", network.vni.to_string());
        line("port", network.port.to_string());
        line("mtu", network.mtu.map_or(quote("auto"), |mtu| mtu.to_string()));
        line("notrack", network.notrack.to_string());
    }
    line("fastpath", named(network.fastpath));
    line("source_check", named(network.source_check));
    line("flows", network.flows.to_string());
    line("malformed", named(network.malformed));
    line("other_vni", named(network.other_vni));
    let wanted = &network.headers;
    wanted.ttl.iter().for_each(|ttl| line("ttl", named(ttl)));
    wanted.tos.iter().for_each(|tos| line("tos", named(tos)));
    wanted.df.iter().for_each(|df| line("df", named(df)));
    wanted.checksum.iter().for_each(|on| line("checksum", on.to_string()));
    let Some(segment) = network.segment() else { return };
    line("bridge", quote(&segment.bridge));
    match segment.addresses.as_slice() {
        [one] => line("address", quote(&one.to_string())),
        list => {
            let addresses: Vec<String> = list.iter().map(|address| quote(&address.to_string())).collect();
            line("address", format!("[{}]", addresses.join(", ")));
        }
    }
    line("flood", named(segment.flood));
    line("learning", segment.learning.to_string());
    line("suppress", segment.suppress.to_string());
}

fn write_pods(pods: &PodsConfig, text: &mut String) {
    let quoted = |path: &Path| quote(path.to_str().expect("from a text"));
    let mut line = |key: &str, value: String| writeln!(text, "{key} = {value}").expect("a string takes it");
    let networks: Vec<String> = pods.networks.iter().map(|n| quote(&n.to_string())).collect();
    line("[pods]\nnetworks", format!("[{}]", networks.join(", ")));
    pods.subnet_file.iter().for_each(|path| line("subnet_file", quoted(path)));
    line("cni", named(pods.cni));
    line("cni_file", quoted(&pods.cni_file));
    line("masquerade", pods.masquerade.to_string());
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

/// A station is at one place, and an address has one: compared pair by pair.
fn check_stations(nodes: &[&Node]) {
    let stations: Vec<&Station> = nodes.iter().flat_map(|node| &node.stations).collect();
    for (index, a) in stations.iter().enumerate() {
        assert!(a.mac.is_station() && a.ip.is_none_or(is_unicast), "{a:?}");
        let same = |b: &&&Station| a.mac == b.mac || (a.ip.is_some() && a.ip == b.ip);
        assert_eq!(stations[..index].iter().take(FEW).find(same), None, "{a:?}");
    }
}

/// Written out in any order and read by any node, the cluster is the same.
fn check_views(nodes: &[&Node], cluster: &ClusterState, l2: bool) {
    let written = write_state(nodes.iter().copied(), cluster.policy);
    assert_eq!(parse_cluster(&written, "a", l2).as_ref(), Ok(cluster), "written out in full:\n{written}");
    let reversed = write_state(nodes.iter().rev().copied(), cluster.policy);
    for viewer in nodes.iter().take(FEW) {
        let view = parse_cluster(&reversed, &viewer.name, l2).expect("valid for one, valid for all");
        assert_eq!(&view.own, *viewer, "the own node");
        assert_eq!(view.remotes.len() + 1, nodes.len(), "as many nodes");
        let same = |node: &&&Node| node.name != viewer.name && view.remotes.get(&node.name) != Some(*node);
        assert_eq!(nodes.iter().find(same), None, "a node that looks different from {}", viewer.name);
    }
}

fn write_state<'a>(nodes: impl Iterator<Item = &'a Node>, policy: Option<u64>) -> String {
    let mut text = policy.map_or_else(String::new, |policy| format!("policy = {policy}\n"));
    for node in nodes {
        assert!(node.subnets.is_empty() || node.stations.is_empty(), "one or the other: {node:?}");
        let subnets: Vec<String> = node.subnets.iter().map(|s| quote(&s.to_string())).collect();
        let (name, vtep, mac) = (quote(&node.name), node.vtep, node.mac);
        let subnets = subnets.join(", ");
        write!(text, "[[node]]\nname = {name}\nvtep = \"{vtep}\"\nmac = \"{mac}\"\nsubnets = [{subnets}]\n")
            .expect("a string takes it");
        for Station { mac, ip } in &node.stations {
            let ip = ip.map_or_else(String::new, |ip| format!("ip = \"{ip}\"\n"));
            write!(text, "[[node.station]]\nmac = \"{mac}\"\n{ip}").expect("a string takes it");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    /// The corpus has what the oracles are for: files that are accepted with everything in them.
    #[test]
    fn all_devices_of_others_are_written_as_they_are_read() {
        assert!(super::config(include_bytes!("../../fuzz/corpus/config/accelerate-all")));
    }

    #[test]
    fn files_with_bridged_networks_are_accepted() {
        assert!(super::config(include_bytes!("../../fuzz/corpus/config/networks")));
        assert!(!super::config(include_bytes!("../../fuzz/corpus/config/networks-that-share-a-device")));
        let stations = include_str!("../../fuzz/corpus/state/stations");
        let twice = include_str!("../../fuzz/corpus/state/stations-at-two-places");
        for (l2, accepted) in [(false, true), (true, false)] {
            assert!(super::state_of(stations, l2));
            assert_eq!(super::state_of(twice, l2), accepted);
        }
    }
}
