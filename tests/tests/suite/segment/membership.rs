//! Nodes that leave the cluster and come back.

use std::time::Duration;

use vxlan_tests::lab::UNDERLAY;
use vxlan_tests::lab::segment::{Host, SegmentLab};
use vxlan_tests::lab::traffic::frames::arp_request;
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject, ping};
use vxlan_tests::lab::wait_until;

use super::{RED, assert_all_reach_each_other, assert_answered, build, over_all};

/// How many broadcasts of the host of node 1 leave for node 3, which has `port` as the tunnel's.
fn flooded(lab: &SegmentLab, port: u16) -> usize {
    let from = lab.host(1, RED, 1);
    let capture = Capture::start(lab.node(3), UNDERLAY).expect("a capture");
    for _ in 0..10 {
        let frame = arp_request(from.mac, from.ip4, lab.host(3, RED, 1).ip4);
        inject(from, "eth0", &frame).expect("sent");
    }
    let arriving = |frame: &Frame| frame.udp_ports().is_some_and(|(_, to)| to == port);
    capture.drain(Duration::from_millis(200), arriving).expect("a capture").len()
}

fn reaches(from: &Host, to: &Host) -> bool {
    let impatient = Ping { timeout: Duration::from_millis(300), ..Ping::default() };
    ping(from, to.ip4, impatient).is_ok_and(|report| report.all_answered())
}

#[test]
fn a_node_that_is_removed_gets_nothing_until_it_is_back() {
    over_all(|pairing| {
        let mut lab = build(&pairing.spec(3));
        let port = lab.tenant(RED).port;
        assert_all_reach_each_other(&lab, RED);
        assert!(flooded(&lab, port) >= 10);
        lab.remove_node(3).expect("removed");
        wait_until("node 3 gets nothing", Duration::from_secs(5), || flooded(&lab, port) == 0)
            .expect("a node that is forgotten");
        if lab.agent(1).is_ok() {
            assert!(!reaches(lab.host(1, RED, 1), lab.host(3, RED, 1)));
        }
        // A kernel without an agent learns again from what is late of node 3, such as reports of group members.
        let gone = |lab: &mut SegmentLab| {
            lab.remove_node(3).expect("removed");
            !reaches(lab.host(1, RED, 1), lab.host(3, RED, 1))
        };
        wait_until("node 3 is not reached", Duration::from_secs(5), || gone(&mut lab)).expect("in time");
        for (from, to) in [(1, 2), (2, 1)] {
            for ip in lab.host(to, RED, 1).ips() {
                assert_answered(lab.host(from, RED, 1), ip, Ping::default());
            }
        }
        lab.restore_node(3).expect("restored");
        wait_until("node 3 is back", Duration::from_secs(5), || {
            reaches(lab.host(1, RED, 1), lab.host(3, RED, 1))
                && reaches(lab.host(2, RED, 1), lab.host(3, RED, 1))
        })
        .expect("a node that is back");
        assert_all_reach_each_other(&lab, RED);
    });
}
