//! VLAN tags inside of the tunnel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use vxlan_tests::lab::segment::Host;
use vxlan_tests::lab::traffic::frames::{BROADCAST, arp_request, tagged};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject, tcp_bulk};

use super::frames::datagram;
use super::{RED, assert_all_reach_each_other, assert_answered, build, over_all};

const ARRIVES: Duration = Duration::from_secs(2);

#[test]
fn tagged_frames_arrive_as_sent() {
    over_all(|pairing| {
        let lab = build(&pairing.pair());
        assert_all_reach_each_other(&lab, RED);
        let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        let unicast = datagram((from.mac, from.ip4), (to.mac, to.ip4), b"tagged");
        let broadcast = datagram((from.mac, from.ip4), (BROADCAST, to.ip4), b"tagged");
        let mut frames = vec![unicast.clone(), arp_request(from.mac, from.ip4, to.ip4)];
        for plain in [&unicast, &broadcast] {
            let one = tagged(7, plain);
            frames.push(tagged(4094, plain));
            // A tag in a tag, a priority, and a priority in VLAN 0.
            frames.push(tagged(100, &one));
            frames.push([&one[..14], &[0xa0, 0x07], &one[16..]].concat());
            frames.push([&one[..14], &[0xe0, 0x00], &one[16..]].concat());
            // A provider's tag (IEEE 802.1ad).
            frames.push([&one[..12], &[0x88, 0xa8], &one[14..]].concat());
            frames.push(one);
        }
        let capture = Capture::start_with_tags(to, "eth0").expect("a capture");
        for sent in frames {
            inject(from, "eth0", &sent).expect("sent");
            let same = |frame: &Frame| frame.0 == sent;
            let got = capture.next(ARRIVES, same).expect("a capture");
            assert!(got.is_some(), "no such frame has arrived: {sent:02x?}");
        }
    });
}

/// Gives a host an interface in VLAN 7 with the addresses `10.77.0.<n>` and `fd00:77::<n>`.
fn enter_vlan(host: &Host, n: u8) -> [IpAddr; 2] {
    let (ip4, ip6) = (Ipv4Addr::new(10, 77, 0, n), Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, n.into()));
    // The tag takes four bytes, for which a tunnel has no room.
    let batch = format!(
        "link add link eth0 name eth0.7 mtu 1446 type vlan id 7\naddr add {ip4}/24 dev eth0.7\n\
         addr add {ip6}/64 dev eth0.7 nodad\nlink set eth0.7 up\n"
    );
    host.ip(&batch).expect("a VLAN");
    [ip4.into(), ip6.into()]
}

#[test]
fn hosts_talk_in_a_vlan_of_their_own() {
    over_all(|pairing| {
        let lab = build(&pairing.pair());
        let (one, other) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        if !one.has_vlans("eth0") {
            return;
        }
        enter_vlan(one, 1);
        for ip in enter_vlan(other, 2) {
            let most = 1446 - if ip.is_ipv4() { 28 } else { 48 };
            for payload in [56, most] {
                assert_answered(one, ip, Ping { payload, dont_fragment: true, ..Ping::default() });
            }
            tcp_bulk(one, other, ip, 8 << 20).expect("a transfer");
        }
    });
}
