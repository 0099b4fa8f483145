//! ARP suppression: FRR tells the addresses of hosts, too, and a node answers for those of other nodes.

use std::net::Ipv4Addr;

use vxlan_tests::lab::addr::mac_text;
use vxlan_tests::lab::traffic::{Capture, Frame, Ping};
use vxlan_tests::lab::wait_until;

use super::super::assert_answered;
use super::{Evpn, RED, SOON};

/// The gateway that all nodes are.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 66, 255, 254);
const GATEWAY_MAC: &str = "02:66:ff:00:00:01";
const ARP: u16 = 0x0806;

#[test]
fn a_node_answers_arp_for_hosts_that_frr_tells_of() {
    let mut evpn = Evpn::new(2, 0);
    let bridge = evpn.lab.tenant(RED).bridge();
    for n in [1, 2] {
        evpn.lab
            .node(n)
            .ip(&format!("link set {bridge} address {GATEWAY_MAC}\naddr add {GATEWAY}/16 dev {bridge}\n"))
            .expect("a gateway");
    }
    [1, 2].into_iter().for_each(|n| evpn.accelerate(n));
    [1, 2].into_iter().for_each(|_| evpn.add_frr());
    let lab = &evpn.lab;
    for n in [1, 2] {
        let host = lab.host(n, RED, 1);
        // By this a node learns the address.
        assert_answered(lab.node(n), host.ip4, Ping::default());
        let told = format!("{} lladdr {} extern_learn NOARP", host.ip4, mac_text(host.mac));
        let shown = || lab.node(3 - n).sh(&format!("ip neigh show dev {bridge}")).expect("neighbours");
        wait_until("FRR tells its address", SOON, || shown().contains(&told))
            .inspect_err(|_| eprintln!("{}", shown()))
            .expect("in time");
    }
    evpn.wait_fast(1, 2);
    let (one, two) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
    two.ip("neigh flush dev eth0\n").expect("nobody is known");
    let capture = Capture::start(one, "eth0").expect("a capture");
    evpn.wait_fast(2, 1);
    let asks = |frame: &Frame| {
        frame.ethertype() == Some(ARP) && frame.0.starts_with(&[0xff; 6]) && frame.0[6..12] == two.mac
    };
    assert!(!capture.pending().expect("frames").iter().any(asks), "node 2 answers");
}
