//! Tenants with the same addresses and MACs never see each other's frames.

use std::net::{IpAddr, Ipv4Addr};

use vxlan_tests::lab::UNDERLAY;
use vxlan_tests::lab::addr::{segment4, station_mac};
use vxlan_tests::lab::segment::{SegmentLab, TenantSpec};
use vxlan_tests::lab::traffic::frames::{BROADCAST, arp_request};
use vxlan_tests::lab::traffic::{inject, tcp_bulk};

use super::frames::{datagram, tunnelled};
use super::{BLUE, RED, assert_all_reach_each_other, build, over_all, two_tenants};

const SECRET: &[u8] = b"of the red tenant";
/// Second tenant's port: that of the first, and another.
const PORTS: [u16; 2] = [4789, 4790];

/// How many frames with `payload` come by at the hosts of each tenant while `work` runs: first those of
/// red, then those of blue.
fn seen(lab: &SegmentLab, payload: &[u8], work: impl FnOnce()) -> [usize; 2] {
    let work = || {
        work();
        Ok(())
    };
    lab.frames_seen([RED, BLUE], payload, work).expect("captures")
}

/// Where frames of a tenant may be addressed to: a host, everybody, a group, and nobody.
const TARGETS: [[u8; 6]; 4] =
    [station_mac(2, 1), BROADCAST, [0x01, 0x00, 0x5e, 1, 2, 3], [0x02, 0xff, 0, 0, 0, 9]];

#[test]
fn what_a_tenant_sends_stays_with_it() {
    over_all(|pairing| {
        for port in PORTS {
            let lab = build(&pairing.spec(3).tenants(two_tenants(port)));
            assert_all_reach_each_other(&lab, RED);
            assert_all_reach_each_other(&lab, BLUE);
            let from = lab.host(1, RED, 1);
            for target in TARGETS {
                let frame = datagram((from.mac, from.ip4), (target, segment4(2, 1)), SECRET);
                let [red, blue] = seen(&lab, SECRET, || inject(from, "eth0", &frame).expect("sent"));
                // The sender's own capture has it, too.
                assert!(red >= 2, "{target:?} got {red} frames");
                assert_eq!(blue, 0, "frames for {target:?} crossed");
            }
        }
    });
}

#[test]
fn a_tenant_does_not_take_over_the_mac_of_another() {
    over_all(|pairing| {
        let lab = build(&pairing.pair().tenants(two_tenants(4789)));
        assert_all_reach_each_other(&lab, BLUE);
        // Red claims on node 1 what is on node 2, where blue has a host with the same MAC and address.
        let (mac, ip) = (station_mac(2, 1), segment4(2, 1));
        let claim = arp_request(mac, ip, ip);
        for _ in 0..10 {
            inject(lab.host(1, RED, 1), "eth0", &claim).expect("sent");
        }
        assert_all_reach_each_other(&lab, BLUE);
        tcp_bulk(lab.host(1, BLUE, 1), lab.host(2, BLUE, 1), ip.into(), 4 << 20).expect("a transfer");
    });
}

/// Addresses from which nobody of the cluster sends, and one that somebody has.
fn sources(lab: &SegmentLab) -> [IpAddr; 2] {
    [lab.node(2).underlay, Ipv4Addr::new(192, 0, 2, 66).into()]
}

/// VNIs and ports that are not those of `other`: of `own`, of nobody, and such as do not belong together.
fn forged_numbers(own: &TenantSpec, other: &TenantSpec) -> Vec<(u32, u16)> {
    let mut numbers = vec![(own.vni, own.port), (0, other.port), (0xff_ffff, other.port)];
    numbers.extend([(other.vni + 1, other.port), (other.vni, other.port + 9)]);
    if other.port != own.port {
        numbers.extend([(own.vni, other.port), (other.vni, own.port)]);
    }
    numbers
}

#[test]
fn forged_tunnels_lead_into_no_other_tenant() {
    over_all(|pairing| {
        for port in PORTS {
            let lab = build(&pairing.pair().tenants(two_tenants(port)));
            assert_all_reach_each_other(&lab, BLUE);
            let (red, blue) = (lab.tenant(RED), lab.tenant(BLUE));
            for source in sources(&lab) {
                let sender = (station_mac(2, 1), segment4(2, 1));
                let targets = TARGETS.into_iter().chain([station_mac(1, 1)]);
                let frames = targets.flat_map(|target| {
                    let inner = datagram(sender, (target, segment4(1, 1)), SECRET);
                    let wrap = |(vni, port)| tunnelled(&lab, source, vni, port, &inner);
                    forged_numbers(red, blue).into_iter().map(wrap).collect::<Vec<_>>()
                });
                let frames: Vec<_> = frames.collect();
                let [_, crossed] = seen(&lab, SECRET, || {
                    frames.iter().for_each(|frame| inject(lab.node(2), UNDERLAY, frame).expect("sent"));
                });
                assert_eq!(crossed, 0, "of {} from {source}", frames.len());
            }
            // The forgery is good enough: with blue's own numbers, from a node of the cluster, it arrives.
            let target = (station_mac(1, 1), segment4(1, 1));
            let inner = datagram((station_mac(2, 1), segment4(2, 1)), target, SECRET);
            let frame = tunnelled(&lab, lab.node(2).underlay, blue.vni, blue.port, &inner);
            let got = seen(&lab, SECRET, || inject(lab.node(2), UNDERLAY, &frame).expect("sent"));
            // The host may answer that nobody listens, and quote the datagram.
            assert!(got[0] == 0 && got[1] > 0, "red and blue got {got:?}");
        }
    });
}
