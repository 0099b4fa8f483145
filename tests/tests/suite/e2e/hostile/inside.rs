//! What arrives on the underlay with something odd inside of the tunnel.

use vxlan_ebpf_common::Reason;
use vxlan_ebpf_common::testbed::{Inner, Outer, Payload};
use vxlan_tests::lab::{Family, VNI};

use super::course::{
    Course, Edit, IP, add, edited, fragments, fragments6, mend, put, with_extension, with_ip_options,
    with_tag,
};
use super::{Case, Counted, device, ends, fast, later, stays};

/// All of them.
pub(super) fn cases(course: &Course) -> Vec<Case> {
    let lists = [
        ethernet(course),
        other_networks(course),
        ipv4(course),
        ipv4_addresses(course),
        ipv6(course),
        ipv6_addresses(course),
        payloads(course),
        nested(course),
    ];
    lists.into_iter().flatten().collect()
}

fn ethernet(course: &Course) -> Vec<Case> {
    let addresses: [(&str, Edit, Counted, Counted); 6] = [
        ("for another MAC", |b| b[5] ^= 0x40, stays(Reason::OtherMac), stays(Reason::UnknownStation)),
        ("for everybody", |b| b[..6].fill(0xff), stays(Reason::OtherMac), stays(Reason::Flooded)),
        ("for a multicast MAC", |b| b[0] |= 1, stays(Reason::OtherMac), stays(Reason::Flooded)),
        (
            "from the receiver's own MAC",
            |b| b.copy_within(..6, 6),
            ends(Reason::OtherMac),
            stays(Reason::Moved),
        ),
        ("from a multicast MAC", |b| b[6] |= 1, fast(), ends(Reason::UnknownStation)),
        ("from no MAC", |b| b[6..12].fill(0), fast(), ends(Reason::UnknownStation)),
    ];
    let edits: [(&str, Edit, Counted); 7] = [
        ("ARP", |b| put(b, 12, 0x0806), stays(Reason::NotIp)),
        ("LLDP", |b| put(b, 12, 0x88cc), stays(Reason::NotIp)),
        ("a length instead of an EtherType", |b| put(b, 12, 100), stays(Reason::NotIp)),
        ("tagged with a VLAN", |b| with_tag(b, 0x8100, 5), stays(Reason::NotIp)),
        ("tagged with no VLAN", |b| with_tag(b, 0x8100, 0), stays(Reason::NotIp)),
        ("tagged with a service VLAN", |b| with_tag(b, 0x88a8, 5), stays(Reason::NotIp)),
        (
            "tagged twice",
            |b| {
                with_tag(b, 0x8100, 6);
                with_tag(b, 0x88a8, 5);
            },
            stays(Reason::NotIp),
        ),
    ];
    let case = |what, edit: Edit, counted| {
        let frame = course.wrap(edited(course.inner(Family::V4).build(), edit));
        Case::new(format!("inner frame {what}"), frame, counted)
    };
    let of_addresses = addresses
        .into_iter()
        .map(|(what, edit, counted, bridged)| case(what, edit, counted).bridged(bridged));
    of_addresses.chain(edits.into_iter().map(|(what, edit, counted)| case(what, edit, counted))).collect()
}

/// Packets for either network that use the addresses of the other.
fn other_networks(course: &Course) -> Vec<Case> {
    let other = |inner: Inner| {
        let [_, a, b, c] = (VNI + 1).to_be_bytes();
        course.build(&Outer { vxlan: [8, 0, 0, 0, a, b, c, 0], ..course.outer(inner.build()) })
    };
    let inner = || course.inner(Family::V4);
    let address = [10, 99, 2, 1].into();
    vec![
        Case::new("for our pod in the other VNI", other(inner()), ends(Reason::OtherVni)),
        Case::new(
            "for everybody in the other VNI",
            other(Inner { to_mac: [0xff; 6], ..inner() }),
            ends(Reason::OtherVni),
        ),
        Case::new(
            "for an address of the other network in our VNI",
            course.wrap(Inner { to: address, ..inner() }.build()),
            stays(Reason::NoEndpoint),
        ),
        Case::new(
            "from an address of the other network",
            course.wrap(Inner { from: address, ..inner() }.build()),
            ends(Reason::ForeignSource),
        ),
    ]
}

fn ipv4(course: &Course) -> Vec<Case> {
    let edits: [(&str, Edit, Counted); 17] = [
        ("version 6 in an IPv4 frame", |b| b[IP] = 0x65, stays(Reason::NotIp)),
        ("header length 16", |b| b[IP] = 0x44, stays(Reason::Options)),
        ("header length 60", |b| b[IP] = 0x4f, stays(Reason::Options)),
        ("options", |b| with_ip_options(b, 1), stays(Reason::Options)),
        ("as many options as fit", |b| with_ip_options(b, 10), stays(Reason::Options)),
        ("total length too small", |b| add(b, IP + 2, -8), stays(Reason::Padded)),
        ("total length too large", |b| add(b, IP + 2, 8), stays(Reason::BadLength)),
        ("total length 0", |b| put(b, IP + 2, 0), stays(Reason::BadLength)),
        ("a trailer", |b| b.extend([0x5a; 6]), stays(Reason::Padded)),
        ("reserved flag", |b| b[IP + 6] |= 0x80, fast()),
        ("may be fragmented", |b| b[IP + 6] &= !0x40, fast()),
        ("TTL 0", |b| b[IP + 8] = 0, stays(Reason::TtlExpired)),
        ("TTL 1", |b| b[IP + 8] = 1, stays(Reason::TtlExpired)),
        ("TTL 2", |b| b[IP + 8] = 2, fast()),
        ("SCTP", |b| b[IP + 9] = 132, device(Reason::NeedsChecksum, Reason::Delivered)),
        ("protocol 0", |b| b[IP + 9] = 0, device(Reason::NeedsChecksum, Reason::Delivered)),
        ("ESP", |b| b[IP + 9] = 50, device(Reason::NeedsChecksum, Reason::Delivered)),
    ];
    let mut cases: Vec<Case> = edits
        .into_iter()
        .map(|(what, edit, counted)| {
            Case::new(format!("inner IPv4, {what}"), course.inside(Family::V4, edit), counted)
        })
        .collect();
    cases.push(Case::new(
        "inner IPv4 header checksum wrong",
        course.wrap(edited(course.inner(Family::V4).build(), |b| b[IP + 10] ^= 1)),
        stays(Reason::BadChecksum),
    ));
    let sets: [(&str, &[(usize, usize)]); 6] = [
        ("first alone", &[(0, 40)]),
        ("middle alone", &[(40, 80)]),
        ("last alone", &[(80, 9999)]),
        ("in order", &[(0, 40), (40, 80), (80, 9999)]),
        ("last first", &[(80, 9999), (40, 80), (0, 40)]),
        ("overlapping", &[(0, 40), (32, 80), (80, 9999)]),
    ];
    cases.extend((300..).zip(sets).map(|(id, (what, ranges))| {
        let parts = fragments(&course.inner(Family::V4).build(), id, ranges).into_iter();
        let frames: Vec<_> = parts.map(|part| course.wrap(part)).collect();
        let counted = frames.iter().flat_map(|_| stays(Reason::Fragment)).collect();
        Case::several(format!("inner IPv4 fragments, {what}"), frames, counted)
    }));
    cases
}

fn ipv4_addresses(course: &Course) -> Vec<Case> {
    let sources = [
        ("the receiver", course.ips4[1]),
        ("somebody outside", [8, 8, 8, 8].into()),
        ("loopback", [127, 0, 0, 1].into()),
        ("no address", [0, 0, 0, 0].into()),
        ("everybody", [255, 255, 255, 255].into()),
        ("a group", [224, 0, 0, 1].into()),
    ];
    let destinations = [
        ("no pod", [10, 244, 2, 77]),
        ("the gateway", [10, 244, 2, 1]),
        ("the VTEP", [10, 244, 2, 0]),
        ("the pods' broadcast address", [10, 244, 2, 255]),
        ("loopback", [127, 0, 0, 1]),
        ("everybody", [255, 255, 255, 255]),
        ("a group", [224, 0, 0, 1]),
    ];
    let inner = || course.inner(Family::V4);
    let from = sources.into_iter().map(|(who, from)| {
        let frame = course.wrap(Inner { from, ..inner() }.build());
        Case::new(format!("inner IPv4 source {who}"), frame, ends(Reason::ForeignSource))
    });
    let to = destinations.into_iter().map(|(who, to)| {
        let frame = course.wrap(Inner { to: to.into(), ..inner() }.build());
        Case::new(format!("inner IPv4 destination {who}"), frame, stays(Reason::NoEndpoint))
    });
    let itself = Inner { from: course.nodes[0], ..inner() };
    let itself = course.nodes[0]
        .is_ipv4()
        .then(|| Case::new("inner IPv4 source the sending node", course.wrap(itself.build()), fast()));
    from.chain(to).chain(itself).collect()
}

fn ipv6(course: &Course) -> Vec<Case> {
    let edits: [(&str, Edit, Counted); 9] = [
        ("version 4 in an IPv6 frame", |b| b[IP] = 0x45, stays(Reason::NotIp)),
        ("payload length too small", |b| add(b, IP + 4, -8), stays(Reason::Padded)),
        ("payload length too large", |b| add(b, IP + 4, 8), stays(Reason::BadLength)),
        ("payload length 0", |b| put(b, IP + 4, 0), stays(Reason::Padded)),
        ("a trailer", |b| b.extend([0x5a; 6]), stays(Reason::Padded)),
        ("hop limit 0", |b| b[IP + 7] = 0, stays(Reason::TtlExpired)),
        ("hop limit 1", |b| b[IP + 7] = 1, stays(Reason::TtlExpired)),
        ("hop limit 2", |b| b[IP + 7] = 2, fast()),
        ("SCTP", |b| b[IP + 6] = 132, device(Reason::NeedsChecksum, Reason::Delivered)),
    ];
    let edits = edits.into_iter().map(|(what, edit, counted)| {
        Case::new(format!("inner IPv6, {what}"), course.inside(Family::V6, edit), counted)
    });
    let extensions: [(&str, u8, [u8; 8]); 9] = [
        ("hop-by-hop options", 0, [0, 0, 1, 4, 0, 0, 0, 0]),
        ("destination options", 60, [0, 0, 1, 4, 0, 0, 0, 0]),
        ("unknown option", 60, [0, 0, 0xfe, 4, 0, 0, 0, 0]),
        ("jumbo payload", 0, [0, 0, 0xc2, 4, 0, 1, 0, 0]),
        ("routing header", 43, [0, 0, 4, 0, 0, 0, 0, 0]),
        ("routing header of type 0", 43, [0, 0, 0, 1, 0, 0, 0, 0]),
        ("authentication header", 51, [0, 0, 0, 0, 0, 0, 0, 1]),
        ("atomic fragment", 44, [0; 8]),
        ("no next header", 59, [0; 8]),
    ];
    let extensions = extensions.into_iter().map(|(what, kind, header)| {
        let frame = course.inside(Family::V6, |b| with_extension(b, kind, header));
        Case::new(format!("inner IPv6, {what}"), frame, stays(Reason::Options))
    });
    let sets: [(&str, &[(usize, usize)]); 5] = [
        ("first alone", &[(0, 40)]),
        ("last alone", &[(80, 9999)]),
        ("in order", &[(0, 40), (40, 80), (80, 9999)]),
        ("last first", &[(80, 9999), (40, 80), (0, 40)]),
        ("overlapping", &[(0, 40), (32, 80), (80, 9999)]),
    ];
    let fragments = (300..).zip(sets).map(|(id, (what, ranges))| {
        let parts = fragments6(&course.inner(Family::V6).build(), id, ranges).into_iter();
        let frames: Vec<_> = parts.map(|part| course.wrap(part)).collect();
        let counted = frames.iter().flat_map(|_| stays(Reason::Options)).collect();
        Case::several(format!("inner IPv6 fragments, {what}"), frames, counted)
    });
    edits.chain(extensions).chain(fragments).collect()
}

fn ipv6_addresses(course: &Course) -> Vec<Case> {
    let ip = |text: &str| text.parse::<std::net::IpAddr>().expect("an address");
    let sources = ["2001:db8:8::8", "::1", "::", "ff02::1", "fe80::1", "::ffff:10.244.1.2"];
    let destinations =
        ["fd00:244:2::77", "fd00:244:2::1", "fd00:244:2::", "::1", "ff02::1", "::ffff:10.244.2.2"];
    let inner = || course.inner(Family::V6);
    let from = sources.into_iter().map(|from| {
        let frame = course.wrap(Inner { from: ip(from), ..inner() }.build());
        Case::new(format!("inner IPv6 source {from}"), frame, ends(Reason::ForeignSource))
    });
    let to = destinations.into_iter().map(|to| {
        let frame = course.wrap(Inner { to: ip(to), ..inner() }.build());
        Case::new(format!("inner IPv6 destination {to}"), frame, stays(Reason::NoEndpoint))
    });
    from.chain(to).collect()
}

/// Odd things that are for the pod to notice.
fn payloads(course: &Course) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        let udp = if family == Family::V4 { IP + 20 } else { IP + 40 };
        let with = |edit: &dyn Fn(&mut Vec<u8>)| course.wrap(edited(course.inner(family).build(), edit));
        let unsure = || device(Reason::NeedsChecksum, Reason::Delivered);
        let mut add = |what: &str, frame, counted| {
            cases.push(Case::new(format!("{what} in inner {family:?}"), frame, counted));
        };
        for payload in [Payload::Tcp, Payload::Echo] {
            let inner = Inner { payload, ..course.inner(family) };
            add(&format!("{payload:?}"), course.wrap(inner.build()), fast());
        }
        for len in [0, 1, 7, 8, 1300] {
            let inner = Inner { len, ..course.inner(family) };
            add(&format!("{len} bytes"), course.wrap(inner.build()), fast());
        }
        add("UDP checksum wrong", with(&|b| b[udp + 6] ^= 1), unsure());
        add("UDP checksum 0", with(&|b| put(b, udp + 6, 0)), unsure());
        add("UDP length too small", with(&|b| put(b, udp + 4, 20)), unsure());
        add("UDP length too large", with(&|b| put(b, udp + 4, 2000)), unsure());
        add("UDP length 0", with(&|b| put(b, udp + 4, 0)), unsure());
        let zero = |b: &mut Vec<u8>| b[udp..udp + 2].fill(0);
        let zero = edited(course.inner(family).build(), |b| {
            zero(b);
            mend(b);
        });
        add("UDP source port 0", course.wrap(zero), fast());
    }
    cases
}

/// Tunnel packets in tunnel packets: between pods, and for the node, which takes off both.
fn nested(course: &Course) -> Vec<Case> {
    let [from, to] = course.ips4;
    let innermost = || course.outer(course.inner(Family::V4).build());
    let in_tunnel = |outer: &Outer| {
        course.wrap(edited(outer.build(), |b| {
            b[..6].copy_from_slice(&course.vteps[1]);
            b[6..12].copy_from_slice(&course.vteps[0]);
        }))
    };
    let twice = [stays(Reason::NoEndpoint), later(Reason::Delivered)].concat();
    vec![
        Case::new("VXLAN for a pod", in_tunnel(&Outer { from, to, ..innermost() }), fast()),
        Case::new("VXLAN for the node", in_tunnel(&innermost()), twice).bridged(fast()),
    ]
}
