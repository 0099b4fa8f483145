//! What a pod sends with something odd about it.

use vxlan_ebpf_common::testbed::{Inner, Outer, Payload};
use vxlan_ebpf_common::{Hook, Reason};
use vxlan_tests::lab::Family;

use super::course::{
    Course, Edit, IP, add, edited, fragments, fragments6, mend_header, put, with_extension, with_ip_options,
    with_tag,
};
use super::{Case, Counted};

/// All of them.
pub(super) fn cases(course: &Course) -> Vec<Case> {
    let lists =
        [ordinary(course), ethernet(course), ipv4(course), ipv6(course), addresses(course), payloads(course)];
    lists.into_iter().flatten().collect()
}

/// Encapsulated by us.
fn fast() -> Counted {
    vec![(Hook::PodEgress, Reason::Encapsulated)]
}

/// Left to the kernel or dropped, and not seen again.
fn ends(reason: Reason) -> Counted {
    vec![(Hook::PodEgress, reason)]
}

/// Left to the host stack, and then to the kernel's device.
fn stays(reason: Reason) -> Counted {
    vec![(Hook::PodEgress, reason), (Hook::TunnelEgress, reason)]
}

/// Encapsulated by us unless the outer checksum cannot be computed from the headers.
fn fast_without_checksum(course: &Course) -> Counted {
    match course.underlay {
        Family::V4 => fast(),
        Family::V6 => stays(Reason::NeedsChecksum),
    }
}

/// Left to the host stack, which cuts off what is too much, and then taken like that.
fn trimmed(reason: Reason) -> Counted {
    vec![(Hook::PodEgress, Reason::Padded), (Hook::TunnelEgress, reason)]
}

/// What becomes of a packet without a checksum that covers all of it.
fn without(course: &Course) -> Reason {
    match course.underlay {
        Family::V4 => Reason::Encapsulated,
        Family::V6 => Reason::NeedsChecksum,
    }
}

/// Each kind of packet, with each ECN mark.
fn ordinary(course: &Course) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        for payload in Payload::ALL {
            for tos in [0x28, 0xb9, 2, 3] {
                let inner = Inner { payload, tos, ..course.sent(family) };
                cases.push(Case::new(
                    format!("{payload:?} in {family:?}, TOS {tos:#x}"),
                    inner.build(),
                    fast(),
                ));
            }
        }
    }
    cases
}

fn ethernet(course: &Course) -> Vec<Case> {
    let addresses: [(&str, Edit, Counted, Reason); 4] = [
        ("for another MAC", |b| b[5] ^= 0x40, ends(Reason::NotForNode), Reason::UnknownStation),
        ("for everybody", |b| b[..6].fill(0xff), ends(Reason::NotForNode), Reason::Flooded),
        (
            "for a multicast MAC",
            |b| b[..6].copy_from_slice(&[1, 0, 0x5e, 0, 0, 9]),
            ends(Reason::NotForNode),
            Reason::Flooded,
        ),
        ("from another MAC", |b| b[11] ^= 0x40, fast(), Reason::UnknownStation),
    ];
    let edits: [(&str, Edit, Counted); 7] = [
        ("LLDP", |b| put(b, 12, 0x88cc), ends(Reason::NotIp)),
        ("of an unknown EtherType", |b| put(b, 12, 0x1234), ends(Reason::NotIp)),
        ("a length instead of an EtherType", |b| put(b, 12, 100), ends(Reason::NotIp)),
        ("tagged with a VLAN", |b| with_tag(b, 0x8100, 5), ends(Reason::NotIp)),
        ("tagged with a service VLAN", |b| with_tag(b, 0x88a8, 5), ends(Reason::NotIp)),
        (
            "tagged twice",
            |b| {
                with_tag(b, 0x8100, 6);
                with_tag(b, 0x88a8, 5);
            },
            ends(Reason::NotIp),
        ),
        ("nothing but a header", |b| b.truncate(14), ends(Reason::Truncated)),
    ];
    let case = |what, edit: Edit, counted| {
        Case::new(format!("sent {what}"), edited(course.sent(Family::V4).build(), edit), counted)
    };
    let at_port = |reason| vec![(Hook::PortIngress, reason)];
    let of_addresses = addresses
        .into_iter()
        .map(|(what, edit, counted, bridged)| case(what, edit, counted).bridged(at_port(bridged)));
    of_addresses.chain(edits.into_iter().map(|(what, edit, counted)| case(what, edit, counted))).collect()
}

fn ipv4(course: &Course) -> Vec<Case> {
    let edits: [(&str, Edit, Counted); 17] = [
        ("version 5", |b| b[IP] = 0x55, ends(Reason::NotIp)),
        ("header length 16", |b| b[IP] = 0x44, ends(Reason::Options)),
        ("header length 60", |b| b[IP] = 0x4f, ends(Reason::Options)),
        ("options", |b| with_ip_options(b, 1), stays(Reason::Options)),
        ("as many options as fit", |b| with_ip_options(b, 10), stays(Reason::Options)),
        ("total length too small", |b| add(b, IP + 2, -8), trimmed(without(course))),
        ("total length too large", |b| add(b, IP + 2, 8), ends(Reason::BadLength)),
        ("total length 0", |b| put(b, IP + 2, 0), ends(Reason::BadLength)),
        ("a trailer", |b| b.extend([0x5a; 6]), trimmed(Reason::Encapsulated)),
        ("cut off in the header", |b| b.truncate(IP + 10), ends(Reason::Truncated)),
        ("cut off in the payload", |b| b.truncate(IP + 60), ends(Reason::BadLength)),
        ("reserved flag", |b| b[IP + 6] |= 0x80, fast()),
        ("may be fragmented", |b| b[IP + 6] &= !0x40, fast()),
        ("TTL 0", |b| b[IP + 8] = 0, ends(Reason::TtlExpired)),
        ("TTL 1", |b| b[IP + 8] = 1, ends(Reason::TtlExpired)),
        ("TTL 255", |b| b[IP + 8] = 255, fast()),
        ("protocol 255", |b| b[IP + 9] = 255, fast_without_checksum(course)),
    ];
    let mended = |edit: Edit| {
        edited(course.sent(Family::V4).build(), |b| {
            edit(b);
            mend_header(b);
        })
    };
    let mut cases: Vec<Case> = edits
        .into_iter()
        .map(|(what, edit, counted)| Case::new(format!("sent IPv4, {what}"), mended(edit), counted))
        .collect();
    cases.push(Case::new(
        "sent IPv4, header checksum wrong",
        edited(course.sent(Family::V4).build(), |b| b[IP + 10] ^= 1),
        ends(Reason::BadChecksum),
    ));
    let sets: [(&str, &[(usize, usize)]); 6] = [
        ("first alone", &[(0, 40)]),
        ("middle alone", &[(40, 80)]),
        ("last alone", &[(80, 9999)]),
        ("in order", &[(0, 40), (40, 80), (80, 9999)]),
        ("last first", &[(80, 9999), (40, 80), (0, 40)]),
        ("overlapping", &[(0, 40), (32, 80), (80, 9999)]),
    ];
    cases.extend((500..).zip(sets).map(|(id, (what, ranges))| {
        let frames = fragments(&course.sent(Family::V4).build(), id, ranges);
        let counted = frames.iter().flat_map(|_| stays(Reason::Fragment)).collect();
        Case::several(format!("sent IPv4 fragments, {what}"), frames, counted)
    }));
    cases
}

fn ipv6(course: &Course) -> Vec<Case> {
    let edits: [(&str, Edit, Counted); 9] = [
        ("version 4 in an IPv6 frame", |b| b[IP] = 0x45, ends(Reason::NotIp)),
        ("payload length too small", |b| add(b, IP + 4, -8), trimmed(without(course))),
        ("payload length too large", |b| add(b, IP + 4, 8), ends(Reason::BadLength)),
        ("a trailer", |b| b.extend([0x5a; 6]), trimmed(Reason::Encapsulated)),
        ("cut off in the header", |b| b.truncate(IP + 30), ends(Reason::Truncated)),
        ("hop limit 0", |b| b[IP + 7] = 0, ends(Reason::TtlExpired)),
        ("hop limit 1", |b| b[IP + 7] = 1, ends(Reason::TtlExpired)),
        ("hop limit 255", |b| b[IP + 7] = 255, fast()),
        ("flow label", |b| put(b, IP + 2, 0xbeef), fast()),
    ];
    let edits = edits.into_iter().map(|(what, edit, counted)| {
        let frame = edited(course.sent(Family::V6).build(), edit);
        Case::new(format!("sent IPv6, {what}"), frame, counted)
    });
    let extensions: [(&str, u8, [u8; 8], Counted); 7] = [
        ("hop-by-hop options", 0, [0, 0, 1, 4, 0, 0, 0, 0], stays(Reason::Options)),
        ("destination options", 60, [0, 0, 1, 4, 0, 0, 0, 0], stays(Reason::Options)),
        ("unknown hop-by-hop option", 0, [0, 0, 0xfe, 4, 0, 0, 0, 0], ends(Reason::Options)),
        ("routing header", 43, [0, 0, 4, 0, 0, 0, 0, 0], stays(Reason::Options)),
        ("authentication header", 51, [0, 0, 0, 0, 0, 0, 0, 1], stays(Reason::Options)),
        ("atomic fragment", 44, [0; 8], stays(Reason::Options)),
        ("no next header", 59, [0; 8], stays(Reason::Options)),
    ];
    let extensions = extensions.into_iter().map(|(what, kind, header, counted)| {
        let frame = edited(course.sent(Family::V6).build(), |b| with_extension(b, kind, header));
        Case::new(format!("sent IPv6, {what}"), frame, counted)
    });
    let sets: [(&str, &[(usize, usize)]); 3] = [
        ("first alone", &[(0, 40)]),
        ("in order", &[(0, 40), (40, 80), (80, 9999)]),
        ("overlapping", &[(0, 40), (32, 80), (80, 9999)]),
    ];
    let fragments = (500..).zip(sets).map(|(id, (what, ranges))| {
        let frames = fragments6(&course.sent(Family::V6).build(), id, ranges);
        let counted = frames.iter().flat_map(|_| stays(Reason::Options)).collect();
        Case::several(format!("sent IPv6 fragments, {what}"), frames, counted)
    });
    edits.chain(extensions).chain(fragments).collect()
}

/// Addresses that are not the pod's own, or that lead elsewhere.
fn addresses(course: &Course) -> Vec<Case> {
    let ip = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let sources = [
        ("8.8.8.8", Reason::PodSpoofed),
        ("10.244.2.2", Reason::PodSpoofed),
        ("10.244.2.9", Reason::PodSpoofed),
        ("127.0.0.1", Reason::PodSpoofed),
        ("0.0.0.0", Reason::PodSpoofed),
        ("255.255.255.255", Reason::PodSpoofed),
        ("224.0.0.1", Reason::PodSpoofed),
        ("2001:db8:8::8", Reason::PodSpoofed),
        ("::1", Reason::PodSpoofed),
        ("::", Reason::PodSpoofed),
        ("::ffff:10.244.1.2", Reason::PodSpoofed),
    ];
    let destinations = [
        ("127.0.0.1", Reason::NoRoute),
        ("255.255.255.255", Reason::NoRoute),
        ("224.0.0.1", Reason::NoRoute),
        ("10.99.2.1", Reason::NoRoute),
        ("10.244.1.1", Reason::NoEndpoint),
        ("10.244.1.2", Reason::NotForNode),
        ("::1", Reason::NoRoute),
        ("ff02::1", Reason::NoRoute),
        ("::ffff:10.244.2.2", Reason::NoRoute),
    ];
    let family = |ip: &std::net::IpAddr| if ip.is_ipv4() { Family::V4 } else { Family::V6 };
    let from = sources.into_iter().map(|(from, reason)| {
        let from = ip(from);
        let frame = Inner { from, ..course.sent(family(&from)) }.build();
        Case::new(format!("sent from {from}"), frame, ends(reason))
    });
    let to = destinations.into_iter().map(|(to, reason)| {
        let to = ip(to);
        Case::new(format!("sent to {to}"), Inner { to, ..course.sent(family(&to)) }.build(), ends(reason))
    });
    from.chain(to).collect()
}

fn payloads(course: &Course) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let udp = if family == Family::V4 { IP + 20 } else { IP + 40 };
        let with = |edit: &dyn Fn(&mut Vec<u8>)| edited(course.sent(family).build(), |b| edit(b));
        let mut add = |what: &str, frame, counted| {
            cases.push(Case::new(format!("sent {what} in {family:?}"), frame, counted));
        };
        for len in [0, 1, 1300] {
            add(&format!("{len} bytes"), Inner { len, ..course.sent(family) }.build(), fast());
        }
        add("UDP checksum wrong", with(&|b| b[udp + 6] ^= 1), fast());
        add("UDP checksum 0", with(&|b| put(b, udp + 6, 0)), fast_without_checksum(course));
        add("UDP length too small", with(&|b| put(b, udp + 4, 20)), fast_without_checksum(course));
        add("UDP length too large", with(&|b| put(b, udp + 4, 2000)), fast_without_checksum(course));
    }
    let [from, to] = course.ips4;
    let tunnel = Outer { from, to, ..course.outer(course.inner(Family::V4).build()) };
    let frame = edited(tunnel.build(), |b| {
        b[..6].copy_from_slice(&course.gateways[0]);
        b[6..12].copy_from_slice(&course.pods[0]);
    });
    cases.push(Case::new("sent VXLAN", frame, fast()));
    cases
}
