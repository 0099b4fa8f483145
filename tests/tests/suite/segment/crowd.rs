//! A station that moves while a thousand others do.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::frames::{gratuitous_arp, rarp};
use vxlan_tests::lab::traffic::{Capture, Injector};

use super::frames::datagram;
use super::{Pairing, RED, assert_all_reach_each_other, build, over_all};

/// Stations that change places, each about once a second.
const OTHERS: u32 = 1000;
/// Moves of the one that is looked at.
const MOVES: usize = 24;
/// Between two frames to it.
const PACE: Duration = Duration::from_millis(1);
/// Its MAC and address.
const STATION: ([u8; 6], Ipv4Addr) = ([0x02, 0x77, 0, 0, 0, 1], Ipv4Addr::new(10, 9, 9, 9));

/// Has stations speak at node 1 and node 2 in turn, until `done`.
fn wander(lab: &SegmentLab, done: &AtomicBool) {
    let places = [1, 2].map(|n| Injector::open(lab.host(n, RED, 1), "eth0").expect("an interface"));
    let pause = Duration::from_secs(1) / OTHERS;
    let mut next = Instant::now();
    for round in 0.. {
        for n in 0..OTHERS {
            if done.load(Ordering::Relaxed) {
                return;
            }
            let [_, _, high, low] = n.to_be_bytes();
            let place = &places[(round + n as usize) % 2];
            place.send(&rarp([0x02, 0x88, 0, 0, high, low])).expect("sent");
            next += pause;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

/// Sends frames to the station from the host of node 3, until `done`.
fn talk(lab: &SegmentLab, done: &AtomicBool) {
    let host = lab.host(3, RED, 1);
    let out = Injector::open(host, "eth0").expect("an interface");
    let frame = datagram((host.mac, host.ip4), STATION, b"to who moves");
    while !done.load(Ordering::Relaxed) {
        out.send(&frame).expect("sent");
        std::thread::sleep(PACE);
    }
}

/// How long it takes from the station's first word at another place until frames get there, the shortest first.
fn follow(lab: &SegmentLab) -> Vec<Duration> {
    let places = [1, 2].map(|n| {
        let host = lab.host(n, RED, 1);
        (
            Injector::open(host, "eth0").expect("an interface"),
            Capture::start(host, "eth0").expect("a capture"),
        )
    });
    let mut times: Vec<Duration> = (0..MOVES)
        .map(|n| {
            let (speaks, hears) = &places[n % 2];
            // What arrived before it left.
            hears.pending().expect("frames");
            let spoke = Instant::now();
            speaks.send(&gratuitous_arp(STATION.0, STATION.1)).expect("sent");
            let is_for_it = |frame: &vxlan_tests::lab::traffic::Frame| frame.carries(b"to who moves");
            let heard = hears.next(Duration::from_secs(5), is_for_it).expect("a capture");
            assert!(heard.is_some(), "nothing arrived after move {n}");
            let followed = spoke.elapsed();
            // Long enough for everybody to hear of it.
            std::thread::sleep(Duration::from_millis(100));
            followed
        })
        .collect();
    times.sort();
    times
}

fn is_followed(pairing: &Pairing) -> Vec<Duration> {
    let lab = build(&pairing.spec(3));
    assert_all_reach_each_other(&lab, RED);
    let done = AtomicBool::new(false);
    let times = std::thread::scope(|scope| {
        scope.spawn(|| wander(&lab, &done));
        scope.spawn(|| talk(&lab, &done));
        std::thread::sleep(Duration::from_millis(1500));
        let times = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| follow(&lab)));
        done.store(true, Ordering::Relaxed);
        times.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    assert_all_reach_each_other(&lab, RED);
    times
}

#[test]
fn a_station_is_followed_while_a_thousand_others_move() {
    let mut kernel = Duration::ZERO;
    over_all(|pairing| {
        let times = is_followed(pairing);
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        eprintln!("followed after {median:?}, at worst {worst:?}");
        if pairing.name == "kernel-kernel" {
            kernel = worst;
        }
        assert!(median < Duration::from_millis(50), "{median:?}");
        assert!(worst < kernel * 2 + Duration::from_millis(100), "{worst:?}, the kernel {kernel:?}");
    });
}
