//! What agents know of stations and nodes, and what becomes of it when somebody deletes it.

use std::time::{Duration, Instant};

use vxlan_tests::bench::many::Crowd;
use vxlan_tests::lab::addr::mac_text;
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::frames::arp_request;
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject};
use vxlan_tests::lab::{SegmentSpec, UNDERLAY, wait_until};

use super::frames::{carries, datagram, tunnelled};
use super::{RED, agents_with, assert_all_reach_each_other, assert_answered, build, direct};

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(200);

/// Writes down every host as a station of its node.
fn know_stations(lab: &mut SegmentLab) {
    let mut state = lab.state().clone();
    for (n, node) in (1..).zip(&mut state.nodes) {
        let hosts = lab.hosts(RED).filter(|host| host.node == n);
        node.stations = hosts.map(|host| (mac_text(host.mac), Some(host.ip4.into()))).collect();
    }
    lab.write_state(state).expect("written");
}

fn fdb(lab: &SegmentLab) -> String {
    fdb_of(lab, 1)
}

fn fdb_of(lab: &SegmentLab, n: u8) -> String {
    lab.node(n).sh("bridge fdb show dev vx-red").expect("a device")
}

/// Whether node 1 has all that it should have of node 2 and its station: both entries of the station, one for
/// floods, and a neighbour.
fn knows_all(lab: &SegmentLab) -> bool {
    let (fdb, vtep, mac) = (fdb(lab), lab.node(2).underlay, mac_text(lab.host(2, RED, 1).mac));
    let has = |parts: &[&str]| fdb.lines().any(|line| parts.iter().all(|part| line.contains(part)));
    let neighbours = lab.node(1).sh("ip neigh show dev br-red").unwrap_or_default();
    has(&["00:00:00:00:00:00", &format!("dst {vtep}"), "permanent"])
        && has(&[&mac, &format!("dst {vtep}"), "extern_learn"])
        && has(&[&mac, "master br-red", "extern_learn"])
        && neighbours.lines().any(|line| line.contains(&mac) && line.contains("PERMANENT"))
}

#[track_caller]
fn wait_for_all(lab: &SegmentLab, what: &str) {
    wait_until(what, SOON, || knows_all(lab))
        .inspect_err(|_| {
            eprintln!("{}{}", fdb(lab), lab.node(1).sh("ip neigh show dev br-red").unwrap_or_default());
            lab.agent(1).expect("an agent").print_log();
        })
        .expect("in time");
}

#[test]
fn entries_that_somebody_deletes_come_back() {
    for spec in [agents_with("suppress = true"), agents_with("suppress = true").agents_make_bridges()] {
        let mut lab = build(&spec);
        know_stations(&mut lab);
        wait_for_all(&lab, "all is known");
        let (vtep, mac, ip) =
            (lab.node(2).underlay, mac_text(lab.host(2, RED, 1).mac), lab.host(2, RED, 1).ip4);
        for line in [
            format!("bridge fdb del 00:00:00:00:00:00 dev vx-red dst {vtep} self"),
            format!("bridge fdb del {mac} dev vx-red self"),
            format!("bridge fdb del {mac} dev vx-red master"),
            format!("ip neigh del {ip} dev br-red"),
            "ip link set vx-red type bridge_slave neigh_suppress off".to_owned(),
        ] {
            lab.node(1).sh(&line).expect(&line);
            let suppressed = || {
                lab.node(1).sh("ip -d link show dev vx-red").is_ok_and(|s| s.contains("neigh_suppress on"))
            };
            wait_until("questions are suppressed", SOON, suppressed).expect("in time");
            wait_for_all(&lab, &format!("all is back after {line}"));
        }
        // What somebody adds by hand is somebody's, but not on our device.
        lab.node(1).sh(&format!("ip neigh add 10.66.77.77 lladdr {mac} dev br-red")).expect("a neighbour");
        lab.node(1)
            .sh("bridge fdb append 00:00:00:00:00:00 dev vx-red dst 192.0.2.77 self")
            .expect("an entry");
        let gone = || !fdb(&lab).contains("192.0.2.77");
        wait_until("nobody floods to a stranger", SOON, gone).expect("in time");
        assert!(lab.node(1).sh("ip neigh show 10.66.77.77 dev br-red").expect("shown").contains("PERMANENT"));
        assert_all_reach_each_other(&lab, RED);
    }
}

#[test]
fn known_stations_are_asked_for_by_nobody_and_reached_without_learning() {
    let mut lab = build(&agents_with("learning = false\nsuppress = true"));
    know_stations(&mut lab);
    wait_for_all(&lab, "all is known");
    let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
    let tunnel = Capture::start(lab.node(2), UNDERLAY).expect("a capture");
    let answers = Capture::start(from, "eth0").expect("a capture");
    inject(from, "eth0", &arp_request(from.mac, from.ip4, to.ip4)).expect("sent");
    let answered = |frame: &Frame| frame.ethertype() == Some(0x0806) && frame.0[6..12] == to.mac;
    assert!(answers.next(SOON, answered).expect("a capture").is_some(), "no answer");
    let asked = |frame: &Frame| frame.udp_ports().is_some() && carries(frame, &to.ip4.octets());
    assert_eq!(tunnel.drain(QUIET, asked).expect("a capture").len(), 0, "nobody else was asked");
    assert_all_reach_each_other(&lab, RED);
    let learnt = fdb(&lab).lines().filter(|line| line.contains("dst") && !line.contains("permanent")).count();
    assert_eq!(learnt, 1, "the station, and nothing that was learnt: {}", fdb(&lab));
}

#[test]
fn a_node_that_is_removed_is_forgotten_at_once_with_all_that_was_learnt_of_it() {
    let mut lab = build(&SegmentSpec::of(vec![direct(), direct(), direct()]));
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        assert_all_reach_each_other(&lab, RED);
        let gone = format!("dst {} ", lab.node(3).underlay);
        assert!(fdb(&lab).lines().filter(|line| line.contains(&gone)).count() >= 2, "{}", fdb(&lab));
        let begin = Instant::now();
        lab.remove_node(3).expect("removed");
        wait_until("node 3 is forgotten", SOON, || !fdb(&lab).contains(&gone))
            .inspect_err(|_| eprintln!("{}", fdb(&lab)))
            .expect("in time");
        fastest = fastest.min(begin.elapsed());
        assert_answered(lab.host(1, RED, 1), lab.host(2, RED, 1).ip4, Ping::default());
        lab.restore_node(3).expect("restored");
        let back = || [1, 2].iter().all(|n| fdb_of(&lab, *n).contains(&gone));
        wait_until("node 3 is back", SOON, back).expect("in time");
    }
    eprintln!("forgotten within {fastest:?}");
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

#[test]
fn floods_go_by_way_of_a_group_where_that_is_asked_for() {
    for (spec, group) in [
        (agents_with("flood = \"239.1.1.1\""), "239.1.1.1"),
        (agents_with("flood = \"ff05::100\"").underlay(vxlan_tests::lab::Family::V6), "ff05::100"),
    ] {
        let lab = build(&spec);
        assert_all_reach_each_other(&lab, RED);
        let flooded = fdb(&lab);
        let copies = flooded.lines().filter(|line| line.starts_with("00:00:00:00:00:00"));
        let copies: Vec<_> = copies.collect();
        assert!(copies.len() == 1 && copies[0].contains(group), "{flooded}");
    }
}

#[test]
fn nobody_but_a_node_sends_into_a_segment() {
    let lab = build(&agents_with(""));
    assert_all_reach_each_other(&lab, RED);
    let (red, target) = (lab.tenant(RED), lab.host(1, RED, 1));
    let inner =
        datagram((lab.host(2, RED, 1).mac, lab.host(2, RED, 1).ip4), (target.mac, target.ip4), b"forged");
    for (source, arrives) in [(lab.node(2).underlay, true), ([192, 0, 2, 66].into(), false)] {
        let capture = Capture::start(target, "eth0").expect("a capture");
        let frame = tunnelled(&lab, source, red.vni, red.port, &inner);
        inject(lab.node(2), UNDERLAY, &frame).expect("sent");
        let got = capture.drain(QUIET, |frame| carries(frame, b"forged")).expect("a capture");
        assert_eq!(!got.is_empty(), arrives, "from {source}");
    }
}

#[test]
fn thousands_of_stations_are_known_soon_and_more_of_them_in_few_rounds() {
    let mut crowd = Crowd::build(5_000).expect("a lab");
    let loaded = crowd.load().expect("a start");
    eprintln!("5 000 stations: {loaded:.2?}");
    assert!(loaded.written < 1.0, "{} s", loaded.written);
    assert!(loaded.mebibytes < 128.0, "{} MiB", loaded.mebibytes);
    let rounds = crowd.burst(1_000).expect("known");
    eprintln!("1 000 more in {rounds} times");
    assert!(rounds < 50, "{rounds}");
}
