//! Hosts that move from node to node with their MAC and addresses.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use vxlan_tests::lab::segment::{Announcement, SegmentLab};
use vxlan_tests::lab::traffic::{Ping, StreamReport, UdpStream, ping, tcp_bulk};
use vxlan_tests::lab::{Family, Netns, wait_until};

use super::{Pairing, RED, assert_all_reach_each_other, build, over_all};

/// Datagrams per second: one a millisecond, so that the number of lost ones tells for how long.
const RATE: u32 = 1000;
/// A veth takes a few tens of milliseconds to come up elsewhere; a machine that does other things, more.
const MOST_LOST: u64 = 1500;

/// Moves the host of node 1 to node `to` and tells the others by `how`, or lets the host talk of itself,
/// while the host of node 3 sends to it. Returns what was lost.
fn move_under_traffic(
    lab: &mut SegmentLab,
    to: u8,
    how: Option<Announcement>,
    family: Family,
) -> StreamReport {
    let (sender, moving) = (lab.host(3, RED, 1), lab.host(1, RED, 1));
    let stream = UdpStream::start(sender, moving, moving.address(family), RATE, 100).expect("a stream");
    std::thread::sleep(Duration::from_millis(200));
    lab.move_host(1, RED, 1, to).expect("moved");
    let moved = lab.host(1, RED, 1);
    match how {
        Some(how) => moved.announce(how).expect("sent"),
        None => reached(moved, lab.host(3, RED, 1).address(family)),
    }
    std::thread::sleep(Duration::from_millis(400));
    stream.stop().expect("a report")
}

/// Waits until `client` gets an answer. A moment after a link has come up, or while switches learn, a packet may
/// be lost whoever carries it.
fn reached(client: &Netns, ip: IpAddr) {
    let once = || Ping { timeout: Duration::from_millis(200), ..Ping::default() };
    let answered = || ping(client, ip, once()).is_ok_and(|report| report.all_answered());
    wait_until("the host is reached", Duration::from_secs(5), answered).expect("an answer");
}

/// Waits until all hosts are reached by all others.
fn all_are_reached(lab: &SegmentLab) {
    for client in lab.hosts(RED) {
        let others = lab.hosts(RED).filter(|server| server.name != client.name);
        others.flat_map(|server| server.ips()).for_each(|ip| reached(client, ip));
    }
}

fn a_host_that_moves_is_reached_again(pairing: &Pairing, how: Option<Announcement>) {
    let mut lab = build(&pairing.spec(3));
    assert_all_reach_each_other(&lab, RED);
    // There, on to the sender's own node, and back.
    for (to, family) in [(2, Family::V4), (3, Family::V6), (1, Family::V4), (2, Family::V6)] {
        let report = move_under_traffic(&mut lab, to, how, family);
        eprintln!("to node {to} with {how:?}: {} of {} lost", report.lost, report.sent);
        assert!(report.lost < MOST_LOST && report.received > 300, "{report:?}");
        all_are_reached(&lab);
        assert_all_reach_each_other(&lab, RED);
    }
    let (moved, other) = (lab.host(1, RED, 1), lab.host(3, RED, 1));
    tcp_bulk(other, moved, moved.ip4.into(), 4 << 20).expect("a transfer");
}

#[test]
fn a_host_that_moves_with_a_gratuitous_arp_is_reached_again() {
    over_all(|pairing| a_host_that_moves_is_reached_again(pairing, Some(Announcement::GratuitousArp)));
}

#[test]
fn a_host_that_moves_with_a_rarp_is_reached_again() {
    over_all(|pairing| a_host_that_moves_is_reached_again(pairing, Some(Announcement::Rarp)));
}

#[test]
fn a_host_that_moves_in_silence_is_reached_once_it_talks() {
    over_all(|pairing| a_host_that_moves_is_reached_again(pairing, None));
}

#[test]
fn two_hosts_that_change_places_are_reached_again() {
    over_all(|pairing| {
        let mut lab = build(&pairing.spec(3));
        assert_all_reach_each_other(&lab, RED);
        lab.move_host(1, RED, 1, 2).expect("moved");
        lab.move_host(2, RED, 1, 1).expect("moved");
        let started = Instant::now();
        for n in [1, 2] {
            lab.host(n, RED, 1).announce(Announcement::Rarp).expect("sent");
            lab.host(n, RED, 1).ips().into_iter().for_each(|ip| reached(lab.host(3, RED, 1), ip));
        }
        eprintln!("both were reached after {} ms", started.elapsed().as_millis());
        all_are_reached(&lab);
        assert_all_reach_each_other(&lab, RED);
    });
}
