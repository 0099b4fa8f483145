use std::collections::BTreeSet;
use std::net::IpAddr;

use super::facts::NetworkFacts;
use super::host::{socket, udp_counts};
use super::*;
use crate::cluster::{Candidate, ClusterState, Viewer};
use crate::config::Fastpath;
use crate::kernel::{Asked as Question, Headers, Kind, Link, Neighbour};
use crate::net::{IfIndex, Mac, Mtu, Vni};
use crate::plan::Side;
use crate::status::Holder;
use crate::underlay::Underlay;

fn vni() -> Vni {
    Vni::try_from(1).expect("in range")
}

fn network() -> NetworkFacts {
    let node = |n: u8| Candidate {
        name: format!("n{n}"),
        vtep: IpAddr::from([192, 0, 2, n]),
        mac: Some(Mac([2, 0, 0, 0, 0, n])),
        subnets: vec![format!("10.{n}.0.0/24").parse().expect("a subnet")],
        stations: vec![],
    };
    let viewer = Viewer { node: "n1".into(), network: "pods".into(), vni: vni(), l2: false };
    let address = IpAddr::from([192, 0, 2, 1]);
    let underlay = Underlay { ifindex: IfIndex(2), name: "eth0".into(), address, inner_mtu: Mtu(1450) };
    let side = Side {
        underlay,
        device: Some(IfIndex(9)),
        asked: Question { source: address, vrf: None, port: 8472, tos: 0 },
        offloads: true,
        headers: Headers::of_new_device(false),
    };
    NetworkFacts {
        name: "pods".into(),
        kind: "l3".into(),
        source: "file",
        vni: Some(vni()),
        port: Some(8472),
        mode: Fastpath::Verified,
        cluster: Ok(ClusterState::new(vec![node(1), node(2)], &viewer).expect("valid")),
        sides: Ok(vec![side]),
        changes: vec![],
        direct: BTreeSet::new(),
        ways: BTreeMap::new(),
        leads: BTreeMap::new(),
        status: None,
    }
}

/// A healthy node.
fn facts() -> Facts {
    let link =
        |index, name: &str| Link { index: IfIndex(index), name: name.into(), up: true, ..Link::default() };
    let mut facts = Facts {
        now: 1000,
        kernel: "6.18.0".into(),
        is_fast: true,
        holder: Some(Holder { pid: Some(1) }),
        status: Ok(None),
        networks: vec![network()],
        ..Facts::default()
    };
    facts.fastpath.is_pinned = true;
    for link in [link(2, "eth0"), Link { kind: Kind::Bridge, ..link(5, "cni0") }, link(9, "flannel.1")] {
        facts.tables.links.insert(link.index, link);
    }
    facts
}

#[track_caller]
fn assert_found(facts: &Facts, expected: &[&str]) -> Vec<Finding> {
    let found = examine(facts);
    let ids: Vec<&str> = found.iter().map(|finding| finding.id).collect();
    assert_eq!(ids, expected, "{found:#?}");
    found
}

fn set(facts: &mut Facts, name: &str, value: &str) {
    facts.settings.insert(name.to_owned(), value.to_owned());
}

#[test]
fn a_healthy_node_gives_no_finding() {
    assert_found(&facts(), &[]);
}

#[test]
fn an_old_kernel_is_found_where_a_fast_path_is_wanted() {
    let mut old = facts();
    old.kernel = "5.10.0-30-amd64".into();
    assert_found(&old, &["kernel-old"]);
    old.is_fast = false;
    assert_found(&old, &[]);
}

#[test]
fn too_little_locked_memory_is_found_where_the_kernel_counts_maps_as_such() {
    let mut limited = facts();
    limited.memlock = Some(64 << 10);
    assert_found(&limited, &[]);
    limited.kernel = "5.10.0".into();
    assert_found(&limited, &["kernel-old", "memlock"]);
}

#[test]
fn a_missing_bpffs_is_found() {
    let mut without = facts();
    without.no_bpffs = Some("/sys/fs/bpf/vxlan-agent is not on bpffs".into());
    without.fastpath.is_pinned = false;
    assert_found(&without, &["bpffs-missing"]);
}

#[test]
fn an_agent_of_another_version_is_found() {
    let mut other = facts();
    other.status = Err("status.json is not the status of this version's agent".into());
    assert_found(&other, &["agent-version"]);
    let mut other = facts();
    other.status = Ok(Some(status("0.0.1", 500)));
    let found = assert_found(&other, &["agent-version"]);
    assert!(found[0].evidence.contains("0.0.1"), "{found:?}");
    other.holder = None;
    assert_found(&other, &["agent-not-running"]);
}

#[test]
fn a_clock_that_has_gone_back_is_found() {
    let mut back = facts();
    back.status = Ok(Some(status(env!("CARGO_PKG_VERSION"), 5000)));
    assert_found(&back, &["clock"]);
    back.now = 5000;
    assert_found(&back, &[]);
}

fn status(version: &str, started: u64) -> crate::status::Status {
    crate::status::Status { version: version.into(), started, ..crate::status::tests::status() }
}

#[test]
fn conntrack_that_is_nearly_full_is_found() {
    let mut full = facts();
    set(&mut full, "netfilter/nf_conntrack_count", "940");
    set(&mut full, "netfilter/nf_conntrack_max", "1000");
    assert_found(&full, &[]);
    set(&mut full, "netfilter/nf_conntrack_count", "960");
    let found = assert_found(&full, &["conntrack-full"]);
    assert_eq!(found[0].mend, "sysctl -w net.netfilter.nf_conntrack_max=2000");
}

#[test]
fn a_table_of_neighbours_that_is_nearly_full_is_found() {
    let mut full = facts();
    set(&mut full, "ipv4/neigh/default/gc_thresh3", "100");
    let neighbour = |permanent| Neighbour { mac: Mac::default(), permanent, lasting: permanent, ours: false };
    let ip = |n: u8, permanent: bool| IpAddr::from([10, u8::from(permanent), 0, n]);
    // Those that somebody has entered do not count.
    full.tables.neighbours = (0..200).map(|n| ((IfIndex(9), ip(n, true)), neighbour(true))).collect();
    assert_found(&full, &[]);
    full.tables.neighbours.extend((0..95).map(|n| ((IfIndex(5), ip(n, false)), neighbour(false))));
    assert_found(&full, &["neighbour-limit"]);
}

#[test]
fn a_node_that_is_reached_without_a_tunnel_is_no_fault_unless_the_kernel_sends_its_packets_elsewhere() {
    let subnet = "10.2.0.0/24".parse().expect("a subnet");
    let mut direct = facts();
    set(&mut direct, "ipv4/conf/all/rp_filter", "1");
    direct.networks[0].leads.insert(subnet, Some(IfIndex(2)));
    assert_found(&direct, &["rp-filter", "route-elsewhere"]);
    direct.networks[0].direct.insert(subnet);
    assert_found(&direct, &[]);
    direct.networks[0].leads.insert(subnet, Some(IfIndex(5)));
    assert_found(&direct, &["route-elsewhere"]);
}

#[test]
fn netfilter_on_bridges_is_a_fault_of_segments_and_its_absence_one_of_services() {
    let mut bridged = facts();
    set(&mut bridged, "bridge/bridge-nf-call-iptables", "1");
    assert_found(&bridged, &[]);
    bridged.networks[0].kind = "l2".into();
    assert_found(&bridged, &["br-netfilter"]);
    let mut kubernetes = facts();
    set(&mut kubernetes, "bridge/bridge-nf-call-iptables", "0");
    assert_found(&kubernetes, &[]);
    kubernetes.networks[0].source = "kubernetes";
    assert_found(&kubernetes, &["br-netfilter"]);
}

#[test]
fn wrong_checksums_are_found_where_they_are_many() {
    let text = "Udp: InDatagrams NoPorts InCsumErrors\nUdp: 100000 3 5\n";
    let mut wrong = facts();
    wrong.counts = udp_counts(text);
    assert_found(&wrong, &[]);
    wrong.counts = udp_counts(&text.replace(" 5\n", " 500\n"));
    assert_found(&wrong, &["checksum"]);
}

#[test]
fn a_mac_of_udevs_is_found_where_it_is_not_the_nodes() {
    let mut udev = facts();
    udev.udev_macs = vec![(IfIndex(9), "/usr/lib/systemd/network/99-default.link".into())];
    udev.tables.links.entry(IfIndex(9)).and_modify(|link| link.mac = Mac([2, 0, 0, 0, 0, 1]));
    assert_found(&udev, &[]);
    udev.tables.links.entry(IfIndex(9)).and_modify(|link| link.mac = Mac([2, 9, 9, 9, 9, 9]));
    assert_found(&udev, &["udev-mac"]);
}

#[test]
fn checks_that_need_no_configuration_run_without_one() {
    let mut refused = facts();
    refused.refused = Some("line 3: no".into());
    refused.networks.clear();
    set(&mut refused, "netfilter/nf_conntrack_count", "1000");
    set(&mut refused, "netfilter/nf_conntrack_max", "1000");
    assert_found(&refused, &["config-refused", "conntrack-full"]);
}

#[test]
fn of_many_alike_a_few_are_told_and_how_many_there_are() {
    let many = (0..9).map(|n| Finding::error("route-missing", format!("{n}")).of("pods").seen("x"));
    let few = [Finding::notice("hooked", "a"), Finding::error("other", "b")];
    let told = in_order(few.into_iter().chain(many).collect());
    assert_eq!(told.len(), 7);
    assert_eq!((told[0].id, told[6].id), ("other", "hooked"), "the worst first");
    assert_eq!(told[5].evidence, "x; and 4 more of the kind");
}

#[test]
fn sockets_are_read_as_the_kernel_writes_them() {
    let line = "  123: 00000000:2118 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2 0 0 0";
    assert_eq!(socket(line), Some((8472, 4711)));
    assert_eq!(socket("sl local_address"), None);
}

#[test]
fn every_finding_says_what_mends_it() {
    let mut wrong = facts();
    wrong.kernel = "5.10.0".into();
    wrong.holder = None;
    set(&mut wrong, "ipv4/ip_forward", "0");
    for finding in examine(&wrong) {
        assert!(!finding.what.is_empty() && !finding.mend.is_empty(), "{finding:?}");
    }
}
