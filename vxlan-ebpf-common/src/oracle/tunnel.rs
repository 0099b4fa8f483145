//! Frames that go into the tunnel or come out of it.

use core::net::IpAddr;

use super::view::{self, IP, View};
use super::{Step, local as pods, profile};
use crate::counters::Hook;
use crate::maps::{
    Addr, Endpoint, Key6, LOCAL_VTEP, LocalVtep, MacKey, Mode, NO_HANDOVER, Network, Vtep, VtepId, local,
};

/// VXLAN header and inner Ethernet header.
const INNER_IP: usize = 8 + IP;

/// Inner ECN after decapsulation by inner and outer, in the order Not-ECT, ECT(1), ECT(0), CE
/// (RFC 6040 §4.2, figure 4).
const ECN: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

/// `step` was encapsulated for `vtep`.
pub(super) fn encapsulated(step: &Step<'_>, vtep: &Vtep) {
    assert!(!step.frame.rigid, "no room was made");
    let network = step.maps.network();
    let before = view::fit(step.frame);
    let (id, hops) = destined(step, &before, &network);
    assert_eq!(step.maps.vteps.get(&id), Some(vtep), "for another VTEP");
    assert!(hops == 0 || before.ttl > 1, "TTL {}", before.ttl);

    let (tunnel, local) = in_tunnel(step, &before, &network, vtep);
    assert_eq!(tunnel[8..14], vtep.mac, "inner Ethernet destination");
    assert_eq!(tunnel[14..20], local.mac, "inner Ethernet source");
    assert_eq!(tunnel[20..22], step.frame.bytes[12..14], "inner EtherType");
    let expected = view::after_hops(&step.frame.bytes[IP..], hops, before.tos);
    assert_eq!(view::without_checksum(&tunnel[INNER_IP..]), expected, "inner packet");
    View::of(&tunnel[8..]);
}

/// Checks the outer headers of a frame for `vtep`; what is behind UDP's, and our end of the tunnel.
pub(super) fn in_tunnel<'a>(
    step: &Step<'a>,
    before: &View<'_>,
    network: &Network,
    vtep: &Vtep,
) -> (&'a [u8], LocalVtep) {
    let outer = View::of(step.after);
    let local = end(network, outer.source);
    let tunnel = outer_headers(step, &outer, network, vtep);
    assert!(before.largest(step.frame.segment_size) <= u32::from(local.mtu), "too big");
    assert_eq!(tunnel[..8], header(network.vni), "VXLAN header");
    (tunnel, local)
}

/// Which VTEP a packet is for, and how many hops it makes at this hook.
fn destined(step: &Step<'_>, before: &View<'_>, network: &Network) -> (VtepId, u8) {
    match step.hook {
        Hook::PodEgress => {
            let from = pods::sender(step, before);
            assert_eq!(before.eth.destination, from.gateway_mac, "not for the node");
            let id = view::route(step.maps, before.destination).expect("a route");
            assert_ne!(id, LOCAL_VTEP, "a local destination");
            (id, 1)
        }
        Hook::TunnelEgress => {
            let key = MacKey::new(network.id, before.eth.destination);
            (step.maps.stations.get(&key).expect("the MAC of a VTEP").vtep, 0)
        }
        hook => panic!("{} encapsulates nothing", hook.label()),
    }
}

/// Checks the outer headers and returns what is behind them.
fn outer_headers<'a>(step: &Step<'_>, outer: &View<'a>, network: &Network, vtep: &Vtep) -> &'a [u8] {
    let before = View::of(&step.frame.bytes);
    assert_eq!(outer.source.is_ipv4(), vtep.family == 4, "underlay family");
    assert_eq!(outer.destination, outer_address(&vtep.addr, outer), "outer destination");
    let local = end(network, outer.source);
    profile::check(step, &local, vtep, (outer, &before));
    let (udp, tunnel) = outer.udp();
    assert_eq!(udp.destination_port, u16::from_be_bytes(network.port), "outer port");
    if local.port_min <= local.port_max {
        assert!((local.port_min..=local.port_max).contains(&udp.source_port), "outer source port");
    }
    match local.flags & local::CHECKSUM {
        0 => assert_eq!(udp.checksum, 0, "a checksum"),
        _ => {
            assert_ne!(udp.checksum, 0, "no checksum");
            assert!([1, 6, 17, 58].contains(&before.protocol), "a protocol without a checksum");
            assert_eq!(step.frame.segment_size, 0, "segments get a checksum each");
            // Computed from the headers alone, it is as right as the payload's own.
            assert_eq!(outer.payload_is_good(), before.payload_is_good(), "outer UDP checksum");
        }
    }
    tunnel
}

/// `step` was decapsulated for the pod `to`.
pub(super) fn decapsulated(step: &Step<'_>, to: &Endpoint) {
    let (outer, inner, tunnel) = accepted(step);
    assert_eq!(view::endpoint(step.maps, inner.destination), Some(to), "for somebody else");
    assert!(inner.len() <= u32::from(to.mtu), "too big");

    pods::readdressed(step.after, to);
    let expected = view::after_hops(&tunnel[INNER_IP..], 1, tos(&outer, &inner));
    assert_eq!(view::without_checksum(&step.after[IP..]), expected, "inner packet");
}

/// `step` was decapsulated for the host stack, as if it came out of the device of `local`.
pub(super) fn handed_over(step: &Step<'_>, local: &LocalVtep) {
    let (outer, inner, tunnel) = accepted(step);
    let network = step.maps.network();
    assert_eq!((network.mode, network.flags & NO_HANDOVER), (Mode::Verified as u8, 0));
    assert!(step.maps.watched, "nobody looks whether rules tell packets apart");
    assert_eq!(end(&network, outer.destination), *local, "another device");
    let from = Addr::from(outer.source);
    let mut senders = step.maps.vteps.values().filter(|vtep| vtep.addr == from);
    let heard = |vtep: &Vtep| vtep.is_heard(step.maps.now, step.maps.generation);
    assert!(senders.any(heard), "the stack has not let in what {} sends", outer.source);

    assert_eq!(step.after[..14], tunnel[8..22], "inner Ethernet header");
    let expected = view::after_hops(&tunnel[INNER_IP..], 0, tos(&outer, &inner));
    assert_eq!(view::without_checksum(&step.after[IP..]), expected, "inner packet");
}

/// Checks who sent what `step` took out of a tunnel: outer and inner packet, and all behind the outer UDP header.
fn accepted<'a>(step: &Step<'a>) -> (View<'a>, View<'a>, &'a [u8]) {
    assert_eq!(step.hook, Hook::UnderlayIngress);
    assert!(!step.frame.rigid && step.frame.segment_size == 0, "room, or an aggregate");
    assert!(!step.frame.stray, "for another host");
    let network = step.maps.network();
    let (outer, inner, tunnel) = out_of_tunnel(step, &network);
    let local = end(&network, outer.destination);
    assert_eq!(tunnel[8..14], local.mac, "inner frame for another MAC");
    assert_ne!(tunnel[14..20], local.mac, "inner frame from our own MAC");
    let from = Addr::from(outer.source);
    let owner = view::route(step.maps, inner.source).and_then(|id| step.maps.vteps.get(&id));
    let speaks_for = owner.is_some_and(|vtep| vtep.family != 0 && vtep.addr == from)
        || inner.source == outer.source && step.maps.vtep_ids.contains_key(&Key6::new(network.id, from));
    assert!(speaks_for, "{} may not send from {}", outer.source, inner.source);
    for source in [outer.source, inner.source] {
        // Linux drops what carries one (`ip6_rcv_core`, v6.18), and the tables take it for IPv4.
        assert_eq!(IpAddr::from(Addr::from(source)), source, "a mapped IPv4 address");
    }
    assert!(inner.ttl > 1, "TTL {}", inner.ttl);
    (outer, inner, tunnel)
}

/// The TOS or traffic class with which a packet leaves its tunnel.
pub(super) fn tos(outer: &View<'_>, inner: &View<'_>) -> u8 {
    let ecn = ECN[usize::from(inner.tos & 3)][usize::from(outer.tos & 3)];
    inner.tos & !3 | ecn.expect("a mark that RFC 6040 lets through")
}

/// Checks what `step` came in: outer and inner packet, and all behind the outer UDP header.
pub(super) fn out_of_tunnel<'a>(step: &Step<'a>, network: &Network) -> (View<'a>, View<'a>, &'a [u8]) {
    let outer = View::of(&step.frame.bytes);
    let (udp, tunnel) = outer.udp();
    end(network, outer.destination);
    assert_eq!(udp.destination_port, u16::from_be_bytes(network.port), "not the VXLAN port");
    assert_eq!(tunnel[..8], header(network.vni), "a VNI other than ours, or reserved bits");
    let inner = View::of(&tunnel[8..]);
    match udp.checksum {
        0 => {
            let accepted = end(network, outer.destination).flags & local::ACCEPTS_NO_CHECKSUM != 0;
            assert!(outer.v4.is_some() || accepted, "no checksum over IPv6");
        }
        _ if step.frame.verified => {}
        _ => {
            let covered = [1, 6, 17, 58].contains(&inner.protocol);
            assert!(covered, "judged without a checksum inside");
            // Judged from the headers alone, it is as right as the payload's own.
            assert_eq!(outer.payload_is_good(), inner.payload_is_good(), "outer UDP checksum");
        }
    }
    (outer, inner, tunnel)
}

/// Our end of the tunnel, which must have the address `ip`.
fn end(network: &Network, ip: IpAddr) -> LocalVtep {
    let local = if ip.is_ipv4() { network.local4 } else { network.local6 };
    let found =
        if ip.is_ipv4() { local.addr.0[12..] == Addr::from(ip).0[12..] } else { local.addr == ip.into() };
    assert!(found, "{ip} is not our end of the tunnel");
    local
}

/// An address of the tables in the family of `outer`.
fn outer_address(addr: &Addr, outer: &View<'_>) -> IpAddr {
    match outer.source {
        IpAddr::V4(_) => {
            let [.., a, b, c, d] = addr.0;
            [a, b, c, d].into()
        }
        IpAddr::V6(_) => addr.0.into(),
    }
}

/// The only VXLAN header that may be.
fn header(vni: u32) -> [u8; 8] {
    let [_, a, b, c] = vni.to_be_bytes();
    [8, 0, 0, 0, a, b, c, 0]
}
