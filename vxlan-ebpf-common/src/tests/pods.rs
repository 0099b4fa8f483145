use super::*;
use crate::counters::Hook;
use crate::hooks::{self, pod_egress};
use crate::maps::{LinkEntry, Mode, Network, endpoint, link};
use crate::testbed::*;

#[test]
fn a_packet_to_a_pod_of_this_node_is_routed() {
    for to in [pod4(1, 2).into(), pod6(1, 2).into(), pod4(1, 3).into(), pod6(1, 3).into()] {
        let sent = Inner::from_pod(to);
        let (reason, after) = run(pod_egress, &sent.frame());
        assert_eq!(reason, Reason::Routed);
        let pod = if to == pod4(1, 2) || to == pod6(1, 2) { 2 } else { 3 };
        let expected = Inner { from_mac: GATEWAY_MAC, to_mac: pod_mac(pod), ttl: 63, ..sent };
        assert_eq!(after.bytes, expected.build());
    }
}

#[test]
fn a_packet_to_a_pod_on_the_same_bridge_is_switched_unchanged() {
    let sent = Inner { to_mac: pod_mac(2), ttl: 1, ..Inner::from_pod(pod4(1, 2).into()) };
    let (reason, after) = run(pod_egress, &sent.frame());
    assert_eq!((reason, after.bytes), (Reason::Switched, sent.build()));
}

#[test]
fn a_frame_for_a_mac_that_is_neither_node_nor_neighbour_is_left_to_the_bridge() {
    for (to, mac) in [(pod4(1, 2), [0xff; 6]), (pod4(1, 3), pod_mac(3)), (pod4(2, 9), pod_mac(2))] {
        let frame = Inner { to_mac: mac, ..Inner::from_pod(to.into()) }.frame();
        left_alone(pod_egress, &frame, Reason::NotForNode);
    }
}

#[test]
fn a_pod_does_not_reach_itself_on_the_fast_path() {
    left_alone(pod_egress, &Inner::from_pod(pod4(1, 1).into()).frame(), Reason::NotForNode);
}

#[test]
fn a_pod_sends_only_from_its_own_address() {
    for to in [pod4(2, 9), pod4(1, 2)] {
        for from in [pod4(1, 2), pod4(2, 1), [8, 8, 8, 8].into()] {
            let spoofed = Inner { from: from.into(), ..Inner::from_pod(to.into()) };
            left_alone(pod_egress, &spoofed.frame(), Reason::PodSpoofed);
        }
    }
}

#[test]
fn a_pod_that_is_not_known_yet_is_left_to_the_kernel() {
    let early = Inner { from: pod4(1, 77).into(), ..Inner::from_pod(pod4(2, 9).into()) };
    left_alone(pod_egress, &early.frame(), Reason::UnknownSource);
}

/// What pod 1 is told when it sends from each of these with what is known of it.
fn told(flags: u32, from: impl Into<core::net::IpAddr>, to: impl Into<core::net::IpAddr>) -> Reason {
    let mut maps = maps();
    maps.links.insert(POD_IFINDEX, LinkEntry { network: NETWORK, flags });
    let mut frame = Inner { from: from.into(), ..Inner::from_pod(to.into()) }.frame();
    hooks::run(Hook::PodEgress, &mut frame, &maps).reason()
}

#[test]
fn a_pod_is_held_to_its_own_address_once_that_is_known() {
    use link::{HAD4, HAD6, NEW, OWNS4, OWNS6, SEVERAL4, SEVERAL6};
    for (flags, anothers, nobodys) in [
        (0, Reason::PodSpoofed, Reason::UnknownSource),
        (NEW, Reason::UnknownSource, Reason::UnknownSource),
        (HAD4, Reason::UnknownSource, Reason::UnknownSource),
        (HAD6 | OWNS6 | SEVERAL6, Reason::PodSpoofed, Reason::UnknownSource),
        (OWNS4 | HAD4, Reason::PodSpoofed, Reason::PodSpoofed),
        (OWNS4 | HAD4 | NEW, Reason::PodSpoofed, Reason::PodSpoofed),
        (OWNS4 | HAD4 | SEVERAL4, Reason::PodSpoofed, Reason::UnknownSource),
    ] {
        assert_eq!(told(flags, pod4(1, 2), pod4(2, 9)), anothers, "{flags:#b}");
        assert_eq!(told(flags, pod4(1, 77), pod4(2, 9)), nobodys, "{flags:#b}");
        assert_eq!(told(flags, pod4(2, 1), pod4(2, 9)), Reason::PodSpoofed, "a foreign address");
        assert_eq!(told(flags, pod4(1, 1), pod4(2, 9)), Reason::Encapsulated, "its own");
        // The same of the other IP version.
        let mirrored = flags & NEW | (flags & !NEW) << 3 | (flags >> 3) & !NEW;
        assert_eq!(told(mirrored, pod6(1, 2), pod6(2, 9)), anothers, "{flags:#b}");
        assert_eq!(told(mirrored, pod6(1, 77), pod6(2, 9)), nobodys, "{flags:#b}");
    }
}

#[test]
fn an_address_in_dispute_is_the_kernels_whoever_uses_it() {
    for pod in 1..=2 {
        let mut maps = maps();
        maps.links.insert(POD_IFINDEX, LinkEntry { network: NETWORK, flags: link::OWNS4 | link::HAD4 });
        maps.endpoints4.get_mut(&key4(pod4(1, pod))).expect("there").flags = endpoint::DISPUTED;
        for (from, to) in [(pod4(1, pod), pod4(2, 9)), (pod4(1, pod), pod4(1, 3)), (pod4(1, 1), pod4(1, pod))]
        {
            let mut frame = Inner { from: from.into(), ..Inner::from_pod(to.into()) }.frame();
            assert_eq!(
                hooks::run(Hook::PodEgress, &mut frame, &maps).reason(),
                Reason::Disputed,
                "{from} to {to}"
            );
        }
    }
}

#[test]
fn a_packet_for_a_pod_whose_interface_is_gone_is_left_to_the_kernel() {
    let mut maps = maps();
    for (found, gone, reason) in [
        (0, 2, Reason::Routed),
        (1, 2, Reason::NoEndpoint),
        (1, 3, Reason::Routed),
        // Looked for in this tick, or the one before.
        (5, 2, Reason::Routed),
        (7, 2, Reason::NoEndpoint),
    ] {
        maps.now = 4;
        maps.endpoints4.get_mut(&key4(pod4(1, 2))).expect("there").found = found;
        let mut frame = Frame { gone, ..Inner::from_pod(pod4(1, 2).into()).frame() };
        let verdict = hooks::run(Hook::PodEgress, &mut frame, &maps);
        assert_eq!(verdict.reason(), reason, "{found}, {gone}");
    }
}

#[test]
fn a_pod_asks_neighbours_from_its_link_local_address() {
    let from = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    for to in [pod6(1, 2), pod6(2, 9)] {
        for own in ["fe80::1", "febf:ffff::1"] {
            let asks = Inner { from: from(own), payload: Payload::Echo, ..Inner::from_pod(to.into()) };
            left_alone(pod_egress, &asks.frame(), Reason::UnknownSource);
        }
        for other in ["fe7f:ffff::1", "fec0::1", "::1"] {
            let spoofed = Inner { from: from(other), payload: Payload::Echo, ..Inner::from_pod(to.into()) };
            left_alone(pod_egress, &spoofed.frame(), Reason::PodSpoofed);
        }
    }
}

#[test]
fn destinations_outside_of_the_overlay_are_left_to_the_kernel_whatever_their_source() {
    let outside = Inner { from: [0, 0, 0, 0].into(), ..Inner::from_pod([255, 255, 255, 255].into()) };
    left_alone(pod_egress, &outside.frame(), Reason::NoRoute);
    left_alone(pod_egress, &Inner::from_pod([8, 8, 8, 8].into()).frame(), Reason::NoRoute);
}

#[test]
fn the_host_itself_is_left_to_the_kernel() {
    left_alone(pod_egress, &Inner::from_pod(pod4(1, 0).into()).frame(), Reason::NoEndpoint);
}

#[test]
fn a_local_packet_larger_than_the_receivers_mtu_is_left_to_the_kernel() {
    let packet = |len| Inner { len, ..Inner::from_pod(pod4(1, 2).into()) }.frame();
    assert_eq!(run(pod_egress, &packet(usize::from(MTU) - 28)).0, Reason::Routed);
    left_alone(pod_egress, &packet(usize::from(MTU) - 27), Reason::TooBig);
}

#[test]
fn switched_off_means_every_packet_to_the_kernel() {
    let frame = Inner::from_pod(pod4(2, 9).into()).frame();
    let off = Network { mode: Mode::Off as u8, ..maps().network() };
    for network in [None, Some(off)] {
        let networks = network.map(|network| (NETWORK, network)).into_iter().collect();
        let maps = Maps { networks, ..maps() };
        assert_eq!(run_with(pod_egress, &frame, &maps), (Reason::SwitchedOff, frame.clone()));
    }
}

#[test]
fn tagged_frames_and_other_protocols_are_left_to_the_kernel() {
    let frame = Inner::from_pod(pod4(2, 9).into()).frame();
    left_alone(pod_egress, &Frame { tagged: true, ..frame.clone() }, Reason::NotIp);
    for ether_type in [[0x81, 0], [8, 6], [0x88, 0xcc]] {
        let other = with(&frame, |bytes| bytes[12..14].copy_from_slice(&ether_type));
        left_alone(pod_egress, &other, Reason::NotIp);
    }
}
