use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::cluster::Viewer;
use crate::config::Config;
use crate::kernel::{Address, Kind, Link, RouteEntry, Vxlan};
use crate::source::parse_state;
use crate::text::Text;

fn link(index: u32, name: &str) -> Link {
    Link { index: IfIndex(index), name: name.into(), mtu: Mtu(1500), up: true, ..Link::default() }
}

fn address(index: u32, ip: &str, prefix: u8) -> Address {
    Address { ifindex: IfIndex(index), ip: ip.parse().expect("an address"), prefix }
}

fn route(to: &str, out_of: u32) -> RouteEntry {
    RouteEntry {
        to: to.parse().expect("a prefix"),
        priority: 0,
        oif: Some(IfIndex(out_of)),
        legs: vec![],
        via: None,
        src: None,
        ours: false,
    }
}

/// Loopback, and two interfaces with addresses; the default route leads out of the second.
fn machine() -> Tables {
    let lo = Link { loopback: true, ..link(1, "lo") };
    let links = [lo, link(2, "eth0"), link(3, "eth1")];
    let addresses = [
        address(1, "127.0.0.1", 8),
        address(2, "198.51.100.7", 24),
        address(3, "192.0.2.9", 24),
        address(3, "fe80::9", 64),
        address(3, "2001:db8::9", 64),
    ];
    Tables {
        links: links.into_iter().map(|link| (link.index, link)).collect(),
        addresses: addresses.into(),
        routes: [route("0.0.0.0/0", 3)].into(),
        ..Tables::default()
    }
}

fn request(kind: Wanted, underlay: Option<&str>) -> Request {
    let underlay = underlay.map(str::to_owned);
    Request { node: "alpha".into(), network: "hosts".into(), kind, underlay }
}

fn found(kind: Wanted, tables: &Tables) -> Found {
    Found::of(request(kind, None), tables).expect("an underlay")
}

fn subnets(kind: Wanted, tables: &Tables) -> Vec<String> {
    found(kind, tables).subnets.iter().map(ToString::to_string).collect()
}

fn parse(text: &str) -> Config {
    let parsed = Config::parse(&Text::new("config.toml", text), Path::new("/etc"), &|| None);
    parsed.unwrap_or_else(|refused| panic!("{refused}\n{text}"))
}

/// The key of a line, whether it is commented out or not.
fn key(line: &str) -> Option<&str> {
    let (key, _) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
    key.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '6').then_some(key)
}

/// As somebody would have it who takes the number sign from these lines.
fn uncommented(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    let line = |line: &str| match key(line) {
        Some(_) if line.starts_with("# ") && wanted(line) => line.replacen("# ", "", 1),
        None if line == "# [pods]" => "[pods]".to_owned(),
        _ => line.to_owned(),
    };
    text.lines().map(|one| line(one) + "\n").collect()
}

#[test]
fn what_was_found_is_filled_in() {
    let config = parse(&found(Wanted::L3, &machine()).configuration());
    assert_eq!((config.node.name.as_str(), config.node.underlay.as_deref()), ("alpha", Some("eth1")));
    let nodes = found(Wanted::L3, &machine()).nodes();
    assert!(nodes.contains("vtep = \"192.0.2.9\"\n"), "{nodes}");
    assert!(nodes.contains("subnets = [\"10.244.9.0/24\", \"fd00:244:9::/64\"]\n"), "{nodes}");
    assert!(nodes.contains("all nodes alike: 2001:db8::9\n"), "{nodes}");
    let text = found(Wanted::L3, &machine()).configuration();
    assert!(text.contains("takes 50 bytes over IPv4") && text.contains("not send more than 1450"), "{text}");
}

#[test]
fn everything_that_is_commented_out_has_the_default() {
    for kind in [Wanted::L3, Wanted::L2] {
        let text = found(kind, &machine()).configuration();
        let defaults = uncommented(&text, |line| {
            let has_none = ["address", "healthz", "metrics", "networks"].map(Some).contains(&key(line));
            !has_none && !line.contains("# example")
        });
        assert_eq!(parse(&defaults), parse(&text), "{defaults}");
    }
}

#[test]
fn examples_can_be_taken_as_they_are() {
    for kind in [Wanted::L3, Wanted::L2] {
        let text = found(kind, &machine()).configuration();
        let all = uncommented(&text, |_| true);
        assert_ne!(parse(&all), parse(&text));
    }
}

#[test]
fn every_key_of_the_reference_is_there() {
    let text = [Wanted::L3, Wanted::L2].map(|kind| found(kind, &machine()).configuration()).concat();
    let there: BTreeSet<_> = text.lines().filter_map(key).collect();
    for section in ["`[node]`", "`[[network]]`", "`[pods]`"] {
        for key in crate::config::documented(section) {
            // Sections of their own, or for devices that somebody else manages.
            let elsewhere = ["state", "devices"].contains(&key);
            assert!(there.contains(key) || elsewhere, "{section} {key}: {text}");
        }
    }
}

#[test]
fn subnets_overlap_nothing_that_is_here_or_routed() {
    let mut tables = machine();
    assert_eq!(subnets(Wanted::L3, &tables), ["10.244.9.0/24", "fd00:244:9::/64"]);
    assert_eq!(subnets(Wanted::L2, &tables), ["10.244.0.9/24", "fd00:244::9/64"]);
    tables.routes.extend([
        route("10.244.128.0/20", 2),
        route("10.245.7.7/32", 2),
        route("fd00:244:9::/48", 2),
    ]);
    tables.addresses.insert(address(2, "10.246.0.1", 30));
    assert_eq!(subnets(Wanted::L3, &tables), ["10.247.9.0/24", "fd00:245:9::/64"]);
    tables.paths.insert(crate::kernel::Path::first(7, "10.0.0.0/8".parse().expect("a prefix")));
    assert_eq!(subnets(Wanted::L3, &tables)[0], "172.16.9.0/24", "another table's route");
    tables.routes.extend([route("0.0.0.0/1", 2), route("128.0.0.0/1", 2)]);
    assert_eq!(subnets(Wanted::L3, &tables)[0], "172.16.9.0/24", "a VPN's default route");
    tables.routes.extend([route("172.16.0.0/12", 2), route("192.168.1.0/24", 2), route("fd00::/8", 2)]);
    assert_eq!(subnets(Wanted::L3, &tables), [""; 0]);
    let nothing_free = found(Wanted::L3, &tables);
    assert!(nothing_free.nodes().contains("# subnets = "), "{}", nothing_free.nodes());
    parse(&nothing_free.configuration());
}

#[test]
fn a_small_underlay_has_no_ipv6_inside() {
    let mut tables = machine();
    tables.links.values_mut().for_each(|link| link.mtu = Mtu(1329));
    assert_eq!(subnets(Wanted::L3, &tables), ["10.244.9.0/24"]);
    assert!(found(Wanted::L3, &tables).configuration().contains("IPv6 needs 1280"));
}

#[test]
fn the_vni_and_the_name_of_its_device_are_free() {
    let mut tables = machine();
    assert_eq!((found(Wanted::L3, &tables).vni, found(Wanted::L2, &tables).vni), (1, 100));
    let vxlan = Vxlan { vni: Vni::try_from(1).ok(), ..Vxlan::default() };
    let flannel = Link { kind: Kind::Vxlan(vxlan), ..link(8, "flannel.1") };
    tables.links.extend([(IfIndex(8), flannel), (IfIndex(9), link(9, "vxlan2"))]);
    assert_eq!(found(Wanted::L3, &tables).vni, 3);
}

#[test]
fn addresses_that_stay_come_first_and_those_with_a_lifetime_are_marked() {
    let mut tables = machine();
    tables.addresses.extend([address(3, "192.0.2.1", 24), address(3, "192.0.2.2", 32)]);
    tables.passing.extend([1, 9].map(|host| (IfIndex(3), [192, 0, 2, host].into())));
    let found = found(Wanted::L3, &tables);
    assert_eq!(found.vtep, IpAddr::from([192, 0, 2, 2]), "a single address, but not a lease");
    let text = found.configuration();
    assert!(text.contains("#   192.0.2.1   (with a lifetime"), "{text}");
}

#[test]
fn without_a_default_route_the_only_interface_will_do() {
    let mut tables = machine();
    tables.routes.clear();
    let refused = Found::of(request(Wanted::L3, None), &tables).expect_err("two of them").to_string();
    assert!(refused.contains("eth0 (198.51.100.7), eth1 (192.0.2.9)"), "{refused}");
    assert!(refused.contains("--underlay"), "{refused}");
    let named = Found::of(request(Wanted::L3, Some("eth0")), &tables).expect("named");
    assert_eq!(named.vtep, IpAddr::from([198, 51, 100, 7]));
    tables.links.remove(&IfIndex(2));
    assert_eq!(found(Wanted::L3, &tables).underlay.name, "eth1");
}

#[test]
fn no_underlay_is_refused_with_what_was_looked_at() {
    let mut tables = machine();
    tables.addresses.retain(|address| address.ip.is_loopback() || address.ip == IpAddr::from([192, 0, 2, 9]));
    tables.links.entry(IfIndex(3)).and_modify(|link| link.up = false);
    let refused = |underlay| Found::of(request(Wanted::L3, underlay), &tables).expect_err("none").to_string();
    let all = refused(None);
    for part in
        ["lo (it is the loopback interface)", "eth0 (it has no address", "eth1 (it is down)", "try again"]
    {
        assert!(all.contains(part), "{part}: {all}");
    }
    assert!(refused(Some("eth1")).contains("eth1 cannot be the underlay: it is down"));
    assert!(refused(Some("eth9")).contains("does not exist; this machine has lo, eth0, eth1"));
}

#[test]
fn a_network_whose_name_is_too_long_for_a_bridge_gets_a_shorter_bridge() {
    let named = |network: &str| Request { network: network.into(), ..request(Wanted::L2, None) };
    for (network, bridge) in [("a-twelve-one", "br-a-twelve-one"), ("a-thirteen-one", "br-a-thirteen-o")] {
        let found = Found::of(named(network), &machine()).expect("an underlay");
        let config = parse(&found.configuration());
        let network = &config.networks[0].network;
        assert_eq!(network.segment().map(|segment| segment.bridge.as_str()), Some(bridge));
    }
}

#[test]
fn the_list_of_nodes_is_one_that_an_agent_takes() {
    for (kind, l2) in [(Wanted::L3, false), (Wanted::L2, true)] {
        let found = found(kind, &machine());
        let vni = Vni::try_from(found.vni).expect("in range");
        let viewer = Viewer { node: "alpha".into(), network: "hosts".into(), l2, vni };
        let cluster = parse_state(&Text::new(NODES, found.nodes()), &viewer).expect("a list");
        assert_eq!(cluster.remote_nodes(), 0);
    }
}

#[test]
fn names_are_written_as_toml_has_them() {
    let mut tables = machine();
    tables.links.entry(IfIndex(3)).and_modify(|link| link.name = "a\"b\\".into());
    let config = parse(&found(Wanted::L3, &tables).configuration());
    assert_eq!(config.node.underlay.as_deref(), Some("a\"b\\"));
}
