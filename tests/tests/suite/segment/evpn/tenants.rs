//! Many VNIs, a bridge and a device for each, whose hosts have the same MACs and addresses.

use std::net::UdpSocket;

use vxlan_tests::lab::segment::{Announcement, SegmentSpec, TenantSpec};
use vxlan_tests::lab::wait_until;

use super::super::kernel;
use super::{Evpn, RED, SOON};

const TENANTS: [&str; 5] = [RED, "green", "blue", "white", "black"];

#[test]
fn tenants_that_frr_tells_of_stay_apart() {
    let tenants = TENANTS.iter().zip(1..).map(|(name, k)| TenantSpec::new(name, 100 * k));
    let mut evpn = Evpn::of(&SegmentSpec::pair(kernel(), kernel()).tenants(tenants), 2);
    evpn.accelerate(1);
    TENANTS.iter().for_each(|tenant| evpn.wait_fast_in(tenant, 1, 2));
    for pair in TENANTS.windows(2) {
        let [own, other] = [pair[0], pair[1]];
        let (from, to) = (evpn.lab.host(1, own, 1), evpn.lab.host(2, own, 1));
        let tell = || {
            let socket = from.run(|| UdpSocket::bind((from.ip4, 0)))?;
            Ok(socket.send_to(own.as_bytes(), (to.ip4, 7777)).map(drop)?)
        };
        let [at_own, at_other] = evpn.lab.frames_seen([own, other], own.as_bytes(), tell).expect("frames");
        // The sender's, the receiver's, and what that answers.
        assert!(at_own >= 2 && at_other == 0, "{own}: {at_own}, {other}: {at_other}");
    }
    // A host moves in one segment, and those with its MAC in the others stay.
    let [stays, moves] = [RED, "green"];
    evpn.lab.move_host(1, moves, 1, 2).expect("moved");
    evpn.lab.host(1, moves, 1).announce(Announcement::GratuitousArp).expect("sent");
    wait_until("all hear of it", SOON, || evpn.knows_in(moves, 1, 1)).expect("in time");
    assert!(!evpn.knows_in(stays, 1, 1), "it is at node 1");
    TENANTS.iter().filter(|tenant| **tenant != moves).for_each(|tenant| evpn.wait_fast_in(tenant, 1, 2));
}
