//! Bridges that filter VLANs: what passes them is what passes the kernel's.
//!
//! Not every kernel's bridges can (`CONFIG_BRIDGE_VLAN_FILTERING`); `cargo xtask test-kernels` has some that do.

use std::time::Duration;

use vxlan_tests::lab::segment::{Host, SegmentLab};
use vxlan_tests::lab::traffic::frames::{BROADCAST, tagged};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject, tcp_bulk};
use vxlan_tests::lab::{Overlay, SegmentSpec, wait_until};

use super::fast::{counted, is_fast, warm_up};
use super::frames::datagram;
use super::{PAIRINGS, RED, assert_answered, build, direct, verified};

const SOON: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(200);
/// The VLANs of the first and the second host of every node.
const VLANS: [u16; 2] = [10, 20];

/// Has the bridge of node `n` filter, or not; false where the kernel cannot.
fn filter(lab: &SegmentLab, n: u8, on: bool) -> bool {
    let bridge = lab.tenant(RED).bridge();
    let set = lab.node(n).ip(&format!("link set {bridge} type bridge vlan_filtering {}\n", u8::from(on)));
    if let Err(error) = &set {
        eprintln!("SKIPPED: this kernel's bridges filter no VLANs: {error:#}");
    }
    set.is_ok()
}

/// Puts the hosts of every node into VLANs of their own, which the tunnel carries with tags.
fn separate(lab: &SegmentLab) {
    let device = lab.tenant(RED).device();
    for n in [1, 2] {
        let vlan = |what: &str| lab.node(n).sh(&format!("bridge vlan {what}")).expect("a VLAN");
        vlan(&format!("del dev {device} vid 1"));
        for (h, vid) in (1..).zip(VLANS) {
            let port = &lab.host(n, RED, h).port;
            vlan(&format!("del dev {port} vid 1"));
            vlan(&format!("add dev {port} vid {vid} pvid untagged"));
            vlan(&format!("add dev {device} vid {vid}"));
        }
    }
}

/// Which hosts get which of the frames that the first host of node 1 sends: a line for each, with the bytes.
fn course(lab: &SegmentLab) -> Vec<String> {
    let from = lab.host(1, RED, 1);
    let others: Vec<&Host> = lab.hosts(RED).filter(|host| host.name != from.name).collect();
    let mut lines = Vec::new();
    for to in others.iter().map(|host| (host.name.as_str(), host.mac)).chain([("all", BROADCAST)]) {
        let plain = datagram((from.mac, from.ip4), (to.1, lab.host(2, RED, 1).ip4), b"course");
        let sent = [("plain", plain.clone())].into_iter();
        let sent = sent.chain([0, VLANS[0], VLANS[1], 30].map(|id| ("tagged", tagged(id, &plain))));
        for (kind, frame) in sent {
            let captures =
                others.iter().map(|host| Capture::start_with_tags(host, "eth0").expect("a capture"));
            let captures: Vec<Capture> = captures.collect();
            inject(from, "eth0", &frame).expect("sent");
            std::thread::sleep(QUIET);
            for (host, capture) in others.iter().zip(captures) {
                // Not what somebody answers: ports that nobody listens to are unreachable.
                let sent = |frame: &Frame| frame.carries(b"course") && frame.0[6..12] == from.mac;
                let got = capture.drain(Duration::from_millis(1), sent);
                for got in got.expect("a capture") {
                    lines.push(format!(
                        "{kind} {:02x?} to {} at {}: {:02x?}",
                        &frame[12..16],
                        to.0,
                        host.name,
                        got.0
                    ));
                }
            }
        }
    }
    lines
}

#[test]
fn a_bridge_that_filters_vlans_is_left_to_the_kernel_and_status_says_so() {
    for overlay in [direct, verified] {
        let lab = build(&SegmentSpec::pair(overlay(), overlay()).hosts(2));
        warm_up(&lab);
        wait_until("it is fast", SOON, || is_fast(&lab)).expect("in time");
        if !filter(&lab, 1, true) {
            return;
        }
        let told = || {
            let status = lab.agent(1).and_then(|agent| agent.json(&["status"]));
            status.is_ok_and(|status| status["networks"][0]["left"].to_string().contains("filters VLANs"))
        };
        wait_until("status says so", SOON, told).expect("in time");
        let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        let ([one, _], ()) = counted(&lab, || {
            assert_answered(from, to.ip4, Ping { count: 20, ..Ping::default() });
            assert_answered(from, lab.host(1, RED, 2).ip6, Ping { count: 20, ..Ping::default() });
            tcp_bulk(to, from, from.ip4.into(), 4 << 20).expect("a transfer");
        });
        for fast in ["encapsulated", "decapsulated", "switched", "delivered"] {
            assert_eq!(one.total(fast), 0, "{fast}: {one}");
        }
        assert!(filter(&lab, 1, false));
        wait_until("it is fast again", SOON, || is_fast(&lab)).expect("in time");
    }
}

#[test]
fn frames_pass_a_bridge_that_filters_vlans_as_without_agents() {
    let mut referee = None;
    for pairing in PAIRINGS {
        eprintln!("pairing {}", pairing.name);
        let lab = build(&pairing.pair().hosts(2));
        if !(filter(&lab, 1, true) && filter(&lab, 2, true)) {
            return;
        }
        separate(&lab);
        for n in [1, 2] {
            for h in [1, 2] {
                let (from, to) = (lab.host(n, RED, h), lab.host(3 - n, RED, h));
                to.ips().into_iter().for_each(|ip| assert_answered(from, ip, Ping::default()));
                tcp_bulk(from, to, to.ip4.into(), 4 << 20).expect("a transfer");
            }
        }
        let seen = course(&lab);
        let of = |host: &str| seen.iter().filter(|line| line.contains(&format!(" at {host}: "))).count();
        assert!(of("red-2-1") > 0, "{seen:#?}");
        match &referee {
            // Without agents on either node.
            None => referee = Some(seen),
            Some(kernels) => assert_eq!(&seen, kernels),
        }
    }
}

#[test]
fn a_vlan_of_a_port_that_is_taken_away_is_taken_away_from_frames_that_flow() {
    for overlay in [Overlay::KernelVxlan, direct(), verified()] {
        let lab = build(&SegmentSpec::pair(overlay.clone(), overlay).hosts(2));
        if !(filter(&lab, 1, true) && filter(&lab, 2, true)) {
            return;
        }
        separate(&lab);
        let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        assert_answered(from, to.ip4, Ping { count: 20, ..Ping::default() });
        let vlan = |what: &str| {
            let port = &lab.host(2, RED, 1).port;
            lab.node(2).sh(&format!("bridge vlan {what} dev {port} vid {}", VLANS[0])).expect("a VLAN");
        };
        vlan("del");
        let once = Ping { timeout: Duration::from_millis(100), ..Ping::default() };
        for _ in 0..5 {
            let report = vxlan_tests::lab::traffic::ping(from, to.ip4, once).expect("a socket");
            assert!(report.rtts.is_empty(), "{report:?}");
        }
        lab.node(2)
            .sh(&format!("bridge vlan add dev {} vid {} pvid untagged", to.port, VLANS[0]))
            .expect("a VLAN");
        assert_answered(from, to.ip4, Ping { count: 20, ..Ping::default() });
    }
}
