//! Which packets filters take.

extern crate std;

use core::net::IpAddr;
use std::vec::Vec;

use crate::counters::{Hook, Reason};
use crate::headers::Be16;
use crate::listen::{Event, Filter, Head};
use crate::maps::Addr;
use crate::testbed::{self, Inner, NETWORK, Outer, REMOTE4, REMOTE6, VNI, node4, pod4, pod6, vtep_mac};

fn takes(filter: Filter, hook: Hook, bytes: &[u8]) -> bool {
    let maps = testbed::maps();
    let event =
        Event { network: NETWORK, hook: hook as u8, reason: Reason::Encapsulated as u8, ..Event::default() };
    filter.takes(&maps, maps.networks.get(&NETWORK), &event, &Head(bytes))
}

fn address(ip: impl Into<IpAddr>) -> Filter {
    Filter { address: testbed::addr(ip), mask: Addr([0xff; 16]), ..Filter::default() }
}

fn vtep(ip: impl Into<IpAddr>) -> Filter {
    Filter { vteps: [testbed::addr(ip); 2], ..Filter::default() }
}

#[test]
fn a_tunnels_headers_are_found_over_both_versions_and_behind_a_tag() {
    for (id, inner) in [(REMOTE4, 50), (REMOTE6, 70)] {
        let outer = Outer::from_remote(id, Inner::from_remote(id, false).build());
        let plain = outer.build();
        let tagged: Vec<u8> = [&plain[..12], &[0x81, 0, 0, 7], &plain[12..]].concat();
        for (bytes, inner) in [(plain, inner), (tagged, inner + 4)] {
            let tunnel = Head(&bytes).tunnel().expect("a tunnel");
            assert_eq!((tunnel.vni, tunnel.inner), (VNI, inner));
            assert_eq!(
                (tunnel.source, tunnel.destination),
                (testbed::addr(outer.from), testbed::addr(outer.to))
            );
            assert_eq!(&bytes[tunnel.inner..], Inner::from_remote(id, false).build());
        }
    }
}

#[test]
fn inner_addresses_ports_protocols_and_macs_are_compared_at_every_hook() {
    for v6 in [false, true] {
        let inner = Inner::from_remote(REMOTE4, v6);
        let tunnelled = Outer::from_remote(REMOTE4, inner.build()).build();
        for (hook, bytes) in [(Hook::UnderlayXdp, &tunnelled), (Hook::TunnelIngress, &inner.build())] {
            let mac = Filter { mac: vtep_mac(REMOTE4), ..Filter::default() };
            let port = |port| Filter { port: Be16::new(port), ..Filter::default() };
            let protocol = |protocol| Filter { protocol, ..Filter::default() };
            for filter in [
                address(inner.from),
                address(inner.to),
                mac,
                port(53),
                port(40000),
                protocol(17),
                Filter::default(),
            ] {
                assert!(takes(filter, hook, bytes), "{filter:?}");
            }
            let stranger = Filter { mac: [9; 6], ..Filter::default() };
            for filter in [address(pod4(9, 9)), address(pod6(9, 9)), stranger, port(54), protocol(6)] {
                assert!(!takes(filter, hook, bytes), "{filter:?}");
            }
            // All of it has to hold.
            assert!(!takes(Filter { port: Be16::new(54), ..address(inner.from) }, hook, bytes));
        }
    }
}

#[test]
fn a_vni_is_that_of_the_packet_or_of_its_network() {
    let vni = |vni| Filter { vni, ..Filter::default() };
    let inner = Inner::from_remote(REMOTE4, false).build();
    let other =
        Outer { vxlan: [8, 0, 0, 0, 0, 0, 9, 0], ..Outer::from_remote(REMOTE4, inner.clone()) }.build();
    assert!(takes(vni(VNI), Hook::TunnelIngress, &inner));
    assert!(takes(vni(9), Hook::UnderlayIngress, &other));
    assert!(!takes(vni(VNI), Hook::UnderlayIngress, &other));
}

#[test]
fn a_nodes_packets_are_those_in_its_tunnel_and_those_routed_there() {
    let out = Inner::from_pod(pod4(2, 9).into()).build();
    let elsewhere = Inner::from_pod(pod6(3, 9).into()).build();
    let inner = Inner::from_remote(REMOTE4, false).build();
    let back = Outer::from_remote(REMOTE4, inner.clone()).build();
    // Not what its addresses say.
    let forged = Outer::from_remote(REMOTE4, Inner::from_remote(REMOTE6, true).build()).build();
    let strange = Outer { from: node4(88).into(), ..Outer::from_remote(REMOTE4, inner) }.build();
    for (hook, bytes, is_its) in [
        (Hook::PodEgress, &out, true),
        (Hook::PodEgress, &elsewhere, false),
        (Hook::UnderlayIngress, &back, true),
        (Hook::UnderlayIngress, &forged, true),
        (Hook::UnderlayIngress, &strange, false),
    ] {
        assert_eq!(takes(vtep(node4(2)), hook, bytes), is_its);
        assert!(!takes(vtep(node4(77)), hook, bytes));
    }
}

#[test]
fn hooks_reasons_and_networks_are_compared_without_a_packet() {
    let only = |hooks, reasons, network| Filter { hooks, reasons, network, ..Filter::default() };
    let (hook, reason) = (Filter::hook(Hook::PodEgress), Filter::reason(Reason::Encapsulated));
    assert!(takes(only(hook, reason, NETWORK), Hook::PodEgress, &[]));
    assert!(!takes(only(hook, reason, NETWORK), Hook::TunnelEgress, &[]));
    assert!(!takes(only(hook, !reason, NETWORK), Hook::PodEgress, &[]));
    assert!(!takes(only(hook, reason, NETWORK + 1), Hook::PodEgress, &[]));
}

#[test]
fn frames_cut_off_anywhere_are_not_taken_for_what_they_do_not_show() {
    let inner = Inner::from_remote(REMOTE4, false);
    let whole = Outer::from_remote(REMOTE4, inner.build()).build();
    let filter = Filter { port: Be16::new(53), ..address(inner.from) };
    // Up to the end of the ports.
    const SEEN: usize = 50 + 14 + 20 + 4;
    for len in 0..whole.len() {
        assert_eq!(takes(filter, Hook::UnderlayIngress, &whole[..len]), len >= SEEN, "{len}");
    }
}

#[test]
fn ports_of_later_fragments_and_behind_options_are_not_looked_for() {
    let port = Filter { port: Be16::new(53), ..Filter::default() };
    let plain = Inner::from_pod(pod4(2, 9).into()).build();
    assert!(takes(port, Hook::PodEgress, &plain));
    for (at, value) in [(14, 0x46), (21, 1)] {
        let mut changed = plain.clone();
        changed[at] = value;
        assert!(!takes(port, Hook::PodEgress, &changed));
        assert!(takes(address(pod4(2, 9)), Hook::PodEgress, &changed));
    }
}
