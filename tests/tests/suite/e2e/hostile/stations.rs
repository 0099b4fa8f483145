//! What only a segment takes for odd: who has which MAC, groups of bridges, and what is no IP.

use vxlan_ebpf_common::testbed::{Inner, Outer};
use vxlan_ebpf_common::{Hook, Reason};
use vxlan_tests::lab::Family;
use vxlan_tests::lab::addr::{station_mac, underlay};
use vxlan_tests::lab::traffic::frames::{gratuitous_arp, rarp};

use super::course::{Course, Edit, IP, edited, mend_header, put, with_tag};
use super::ground::ABSENT;
use super::{Case, Counted, ends, fast, stays};

/// Groups of bridges (IEEE 802.1Q, table 8-1): spanning trees, pauses, authentication, neighbours; and the first
/// behind them.
const GROUPS: [u8; 5] = [0x00, 0x01, 0x03, 0x0e, 0x10];
/// EtherTypes, and a length in their place.
const NO_IP: [u16; 8] = [0x0806, 0x8035, 0x8863, 0x8847, 0x88a8, 0x88e5, 0x6558, 46];
/// A MAC that is nobody's, of no group.
const NOBODY: [u8; 6] = [2, 0xff, 0, 0, 0, 9];

/// All that arrives on the underlay.
pub(super) fn arriving(course: &Course) -> Vec<Case> {
    let [from, to] = course.pods;
    let neighbour = station_mac(2, 2);
    let inner = |from_mac, to_mac| Inner { from_mac, to_mac, ..course.inner(Family::V4) }.build();
    let case =
        |what: &str, frame, counted| Case::new(format!("arriving, {what}"), course.wrap(frame), counted);
    let mut cases = vec![
        case("from a station of the receiver", inner(neighbour, to), stays(Reason::Moved)),
        case("from nobody known", inner(NOBODY, to), stays(Reason::UnknownStation)),
        case("for another station of the receiver", inner(from, neighbour), fast()),
        case("for a station of the sender", inner(from, station_mac(1, 2)), Vec::new())
            .bridged(stays(Reason::NoEndpoint)),
        case("for its sender", inner(from, from), Vec::new()).bridged(stays(Reason::NoEndpoint)),
        case("from everybody", inner([0xff; 6], to), ends(Reason::UnknownStation)),
    ];
    cases.extend(forged(course));
    let twice: [(&str, Edit); 3] = [
        ("with a priority", |b| with_tag(b, 0x8100, 0xa000)),
        ("in a VLAN behind a tag of none", |b| twice(b, 0x8100, 0)),
        ("in a VLAN behind a service's", |b| twice(b, 0x88a8, 7)),
    ];
    cases.extend(twice.map(|(what, edit)| case(what, edited(inner(from, to), edit), stays(Reason::NotIp))));
    cases.extend(others(course, course.inner(Family::V4)).into_iter().map(|(what, frame, reason)| {
        // The device wants an IP header where there has to be one.
        let counted = if reason == Reason::Truncated { ends(reason) } else { stays(reason) };
        case(&what, frame, counted)
    }));
    cases.extend(announcements(course).map(|(what, frame)| case(what, frame, stays(Reason::Flooded))));
    cases
}

/// All that a station sends.
pub(super) fn sent(course: &Course) -> Vec<Case> {
    let [from, to] = course.pods;
    let neighbour = station_mac(1, 2);
    let inner = |from_mac, to_mac| Inner { from_mac, to_mac, ..course.sent(Family::V4) }.build();
    let at_port = |reason| -> Counted { vec![(Hook::PortIngress, reason)] };
    let case = |what: &str, frame, reason| Case::new(format!("sent, {what}"), frame, at_port(reason));
    let mut cases = vec![
        case("to a station of the same node", inner(from, neighbour), Reason::Switched),
        case("to itself", inner(from, from), Reason::SamePort),
        case("from a station of the same node", inner(neighbour, to), Reason::Moved),
        case("from a station of another node", inner(station_mac(2, 2), to), Reason::Moved),
        case("from its receiver", inner(to, to), Reason::Moved),
        case("from nobody known", inner(NOBODY, neighbour), Reason::UnknownStation),
        case("from everybody", inner([0xff; 6], to), Reason::UnknownStation),
        case("from a group", inner([1, 0, 0x5e, 0, 0, 9], to), Reason::UnknownStation),
        case("from no MAC", inner([0; 6], to), Reason::UnknownStation),
        case("to no MAC", inner(from, [0; 6]), Reason::UnknownStation),
        case("with a priority", edited(inner(from, to), |b| with_tag(b, 0x8100, 0xa000)), Reason::NotIp),
        case(
            "in a VLAN behind a tag of none",
            edited(inner(from, to), |b| twice(b, 0x8100, 0)),
            Reason::NotIp,
        ),
    ];
    cases.extend(
        others(course, course.sent(Family::V4))
            .into_iter()
            .map(|(what, frame, reason)| case(&what, frame, reason)),
    );
    cases.extend(announcements(course).map(|(what, frame)| case(what, frame, Reason::Flooded)));
    cases
}

/// From stations whose node did not send it: from behind another node of the cluster, and by a stranger.
fn forged(course: &Course) -> Vec<Case> {
    let third = underlay(course.underlay, ABSENT);
    let stranger = underlay(course.underlay, 66);
    let by = |from, inner: &Inner| course.build(&Outer { from, ..course.outer(inner.build()) });
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let known = course.inner(family);
        let unknown = Inner { from_mac: NOBODY, ..course.inner(family) };
        let local = Inner { from_mac: station_mac(2, 2), ..course.inner(family) };
        let mut add = |what: &str, frame, counted| {
            cases.push(Case::new(format!("{family:?} {what}"), frame, counted));
        };
        add("from a station behind another node than it was", by(third, &known), stays(Reason::Moved));
        add("from a station of the receiver behind a node", by(third, &local), stays(Reason::Moved));
        add("from a station that a stranger has", by(stranger, &known), ends(Reason::UnknownVtep));
        add("from nobody known, by a stranger", by(stranger, &unknown), ends(Reason::UnknownVtep));
        add("from a station of the receiver, by a stranger", by(stranger, &local), ends(Reason::UnknownVtep));
        let to_all = Inner { to_mac: [0xff; 6], ..course.inner(family) };
        add("for everybody, by a stranger", by(stranger, &to_all), ends(Reason::UnknownVtep));
    }
    cases
}

/// What `inner` may carry besides IP, to whom it may go besides a station, and in which lengths it may come.
fn others(course: &Course, inner: Inner) -> Vec<(String, Vec<u8>, Reason)> {
    let mut others = Vec::new();
    for kind in NO_IP {
        let frame = edited(inner.build(), |b| put(b, 12, kind));
        others.push((format!("of EtherType {kind:#06x}"), frame, Reason::NotIp));
    }
    for last in GROUPS {
        let to_mac = [0x01, 0x80, 0xc2, 0, 0, last];
        let frame = Inner { to_mac, ..inner.clone() }.build();
        others.push((format!("to the bridges' group {last:#04x}"), frame, Reason::Flooded));
    }
    for (len, padding) in [(0, 18), (1, 17), (100, 2)] {
        let frame = edited(Inner { len, ..inner.clone() }.build(), |b| b.extend(vec![0x5a; padding]));
        others.push((format!("{len} bytes and {padding} of padding"), frame, Reason::Padded));
    }
    let version = edited(inner.build(), |b| {
        b[IP] = 0x65;
        mend_header(b);
    });
    others.push(("version 6 in an IPv4 frame".into(), version, Reason::NotIp));
    let [from, _] = course.pods;
    let short = [&inner.to_mac[..], &from, &[8, 0], &[0x45, 0]].concat();
    others.push(("an IP header of two bytes".into(), short, Reason::Truncated));
    others
}

/// What a station says of itself.
fn announcements(course: &Course) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    let [from, _] = course.pods;
    let ip = match course.ips4[0] {
        std::net::IpAddr::V4(ip) => ip,
        std::net::IpAddr::V6(_) => std::net::Ipv4Addr::UNSPECIFIED,
    };
    [("a gratuitous ARP", gratuitous_arp(from, ip)), ("a RARP", rarp(from))].into_iter()
}

/// Puts a frame into VLAN 5, behind another tag.
fn twice(bytes: &mut Vec<u8>, kind: u16, vlan: u16) {
    with_tag(bytes, 0x8100, 5);
    with_tag(bytes, kind, vlan);
}
