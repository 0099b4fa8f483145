//! What arrives on the underlay with something odd about the outer headers.

use vxlan_ebpf_common::Reason;
use vxlan_tests::lab::Family;

use super::course::{
    Course, Edit, IP, add, fragments, fragments6, mend_header, put, with_extension, with_ip_options, with_tag,
};
use super::{Case, device, ends, fast, later, tunnel, unseen};

/// All of them.
pub(super) fn cases(course: &Course) -> Vec<Case> {
    let mut cases = vec![Case::new("nothing odd", course.plain(), fast())];
    cases.extend(cut_off(course));
    cases.extend(ethernet(course));
    cases.extend(match course.underlay {
        Family::V4 => ipv4(course),
        Family::V6 => ipv6(course),
    });
    cases.extend(tunnel::cases(course));
    cases
}

fn cut_off(course: &Course) -> Vec<Case> {
    let (udp, vxlan) = (course.udp(), course.vxlan());
    let inner = vxlan + 8;
    let places = [
        ("outer IP header", IP + 10, unseen()),
        ("outer UDP header", udp + 4, unseen()),
        ("VXLAN header", vxlan + 4, ends(Reason::Truncated)),
        ("inner IP header", inner + IP + 10, ends(Reason::BadLength)),
        ("inner UDP header", inner + IP + 24, ends(Reason::BadLength)),
        ("payload", inner + IP + 60, ends(Reason::BadLength)),
    ];
    let cut = |(what, at, counted): (&str, usize, _)| {
        Case::new(format!("cut off in the {what}"), course.edited(|b| b.truncate(at)), counted)
    };
    let mut cases: Vec<Case> = places.into_iter().map(cut).collect();
    // Whether it is whole is asked first in a segment.
    let in_ethernet = ("inner Ethernet header", inner + 10, ends(Reason::Truncated));
    cases.push(cut(in_ethernet).bridged(ends(Reason::BadLength)));
    let fitting = [
        ("VXLAN header", vxlan + 4, ends(Reason::Truncated)),
        ("VXLAN header's end", vxlan + 8, ends(Reason::Truncated)),
        ("inner Ethernet header", inner + 10, ends(Reason::Truncated)),
        ("inner Ethernet header's end", inner + 14, ends(Reason::Truncated)),
        ("inner IP header", inner + IP + 10, ends(Reason::Truncated)),
        ("inner UDP header", inner + IP + 24, device(Reason::BadLength, Reason::BadLength)),
        ("payload", inner + IP + 60, device(Reason::BadLength, Reason::BadLength)),
    ];
    cases.extend(fitting.map(|(what, at, counted)| {
        let frame = course.mended(|b| {
            b.truncate(at);
            fit_lengths(course, b);
        });
        Case::new(format!("cut off in the {what}, outer lengths fitting"), frame, counted)
    }));
    cases.push(Case::new(
        "a trailer behind the IP packet",
        course.edited(|b| b.extend([0x5a; 6])),
        device(Reason::Padded, Reason::Delivered),
    ));
    cases
}

/// Writes the lengths of what is there into the outer headers.
fn fit_lengths(course: &Course, bytes: &mut [u8]) {
    let (len, udp) = (bytes.len(), course.udp());
    match course.underlay {
        Family::V4 => put(bytes, IP + 2, (len - IP) as u16),
        Family::V6 => put(bytes, IP + 4, (len - udp) as u16),
    }
    put(bytes, udp + 4, (len - udp) as u16);
}

fn ethernet(course: &Course) -> Vec<Case> {
    vec![
        Case::new("for another MAC", course.edited(|b| b[5] ^= 1), unseen()),
        Case::new("for everybody", course.edited(|b| b[..6].fill(0xff)), fast()),
        Case::new("for a multicast MAC", course.edited(|b| b[0] |= 1), fast()),
        Case::new(
            "tagged with no VLAN (priority)",
            course.edited(|b| with_tag(b, 0x8100, 0xa000)),
            later(Reason::Delivered),
        ),
        Case::new("tagged with a VLAN", course.edited(|b| with_tag(b, 0x8100, 5)), unseen()),
        Case::new("tagged with a service VLAN", course.edited(|b| with_tag(b, 0x88a8, 5)), unseen()),
        Case::new(
            "tagged twice",
            course.edited(|b| {
                with_tag(b, 0x8100, 6);
                with_tag(b, 0x88a8, 5);
            }),
            unseen(),
        ),
        Case::new(
            "tagged twice with no VLAN",
            course.edited(|b| {
                with_tag(b, 0x8100, 0);
                with_tag(b, 0x88a8, 0);
            }),
            later(Reason::Delivered),
        ),
        Case::new("of another EtherType", course.edited(|b| put(b, 12, 0x88cc)), unseen()),
    ]
}

fn ipv4(course: &Course) -> Vec<Case> {
    let edits: [(&str, Edit, _); 14] = [
        ("version 5", |b| b[IP] = 0x55, unseen()),
        ("header length 16", |b| b[IP] = 0x44, unseen()),
        ("header length 60", |b| b[IP] = 0x4f, unseen()),
        ("total length too small", |b| add(b, IP + 2, -8), ends(Reason::Padded)),
        ("total length too large", |b| add(b, IP + 2, 8), ends(Reason::BadLength)),
        ("total length 0", |b| put(b, IP + 2, 0), ends(Reason::BadLength)),
        ("total length within the header", |b| put(b, IP + 2, 19), ends(Reason::BadLength)),
        ("reserved flag", |b| b[IP + 6] |= 0x80, fast()),
        ("may be fragmented", |b| b[IP + 6] &= !0x40, fast()),
        ("TTL 0", |b| b[IP + 8] = 0, fast()),
        ("TTL 1", |b| b[IP + 8] = 1, fast()),
        ("TCP", |b| b[IP + 9] = 6, unseen()),
        ("protocol 255", |b| b[IP + 9] = 255, unseen()),
        ("DSCP", |b| b[IP + 1] = 0xb8, fast()),
    ];
    let mut cases: Vec<Case> = edits
        .into_iter()
        .map(|(what, edit, counted)| {
            let frame = course.edited(|b| {
                edit(b);
                mend_header(b);
            });
            Case::new(format!("outer {what}"), frame, counted)
        })
        .collect();
    cases.push(Case::new(
        "outer header checksum wrong",
        course.edited(|b| b[IP + 10] ^= 1),
        ends(Reason::BadChecksum),
    ));
    let options = |words| course.edited(|b| with_ip_options(b, words));
    cases.push(Case::new("outer options", options(1), later(Reason::Delivered)));
    cases.push(Case::new("outer options, as many as fit", options(10), later(Reason::Delivered)));
    cases.extend(ipv4_addresses(course));
    cases.extend(ipv4_fragments(course));
    cases
}

fn ipv4_addresses(course: &Course) -> Vec<Case> {
    let sources = [
        ("nobody", [192, 0, 2, 66]),
        ("the receiver", [192, 0, 2, 2]),
        ("loopback", [127, 0, 0, 1]),
        ("no address", [0, 0, 0, 0]),
        ("everybody", [255, 255, 255, 255]),
        ("a group", [224, 0, 0, 1]),
    ];
    let destinations = [
        ("the subnet", [192, 0, 2, 255]),
        ("everybody", [255, 255, 255, 255]),
        ("a group", [224, 0, 0, 1]),
        ("loopback", [127, 0, 0, 1]),
    ];
    let with = |at: usize, address: [u8; 4]| course.mended(|b| b[at..at + 4].copy_from_slice(&address));
    let from = sources.into_iter().map(|(who, address)| {
        Case::new(format!("outer source {who}"), with(IP + 12, address), ends(Reason::UnknownVtep))
    });
    let to = destinations.into_iter().map(|(who, address)| {
        Case::new(format!("outer destination {who}"), with(IP + 16, address), unseen()).guarded()
    });
    from.chain(to).collect()
}

/// The kernel puts the parts together behind us, and its device sees the whole.
fn ipv4_fragments(course: &Course) -> Vec<Case> {
    let first = |counted| [ends(Reason::Fragment), counted].concat();
    let sets: [(&str, &[(usize, usize)], _); 8] = [
        ("first alone", &[(0, 80)], first(unseen())),
        ("middle alone", &[(40, 80)], unseen()),
        ("last alone", &[(80, 9999)], unseen()),
        ("in order", &[(0, 80), (80, 120), (120, 9999)], first(later(Reason::Delivered))),
        ("last first", &[(120, 9999), (80, 120), (0, 80)], first(later(Reason::Delivered))),
        ("overlapping", &[(0, 80), (64, 120), (120, 9999)], first(unseen())),
        ("first twice", &[(0, 80), (0, 80), (80, 9999)], first(first(later(Reason::Delivered)))),
        ("first too short for VXLAN", &[(0, 8), (8, 9999)], device(Reason::Truncated, Reason::Delivered)),
    ];
    let cases = (100..).zip(sets).map(|(id, (what, ranges, counted))| {
        Case::several(format!("outer fragments, {what}"), fragments(&course.plain(), id, ranges), counted)
    });
    cases.collect()
}

fn ipv6(course: &Course) -> Vec<Case> {
    let edits: [(&str, Edit, _); 10] = [
        ("version 5", |b| b[IP] = 0x50, unseen()),
        ("payload length too small", |b| add(b, IP + 4, -8), ends(Reason::Padded)),
        ("payload length too large", |b| add(b, IP + 4, 8), ends(Reason::BadLength)),
        ("payload length 0", |b| put(b, IP + 4, 0), ends(Reason::BadLength)),
        ("flow label", |b| put(b, IP + 2, 0xbeef), fast()),
        ("hop limit 0", |b| b[IP + 7] = 0, fast()),
        ("hop limit 1", |b| b[IP + 7] = 1, fast()),
        ("TCP", |b| b[IP + 6] = 6, unseen()),
        ("no next header", |b| b[IP + 6] = 59, unseen()),
        ("DSCP", |b| b[IP] = 0x6b, fast()),
    ];
    let edits = edits
        .into_iter()
        .map(|(what, edit, counted)| Case::new(format!("outer {what}"), course.edited(edit), counted));
    let extensions: [(&str, u8, [u8; 8], _); 5] = [
        ("hop-by-hop options", 0, [0, 0, 1, 4, 0, 0, 0, 0], later(Reason::Delivered)),
        ("destination options", 60, [0, 0, 1, 4, 0, 0, 0, 0], later(Reason::Delivered)),
        ("routing header", 43, [0, 0, 4, 0, 0, 0, 0, 0], unseen()),
        ("unknown option", 60, [0, 0, 0xfe, 4, 0, 0, 0, 0], unseen()),
        ("atomic fragment", 44, [0; 8], later(Reason::Delivered)),
    ];
    let extensions = extensions.into_iter().map(|(what, kind, header, counted)| {
        Case::new(format!("outer {what}"), course.edited(|b| with_extension(b, kind, header)), counted)
    });
    let sets: [(&str, &[(usize, usize)], _); 6] = [
        ("first alone", &[(0, 80)], unseen()),
        ("middle alone", &[(40, 80)], unseen()),
        ("last alone", &[(80, 9999)], unseen()),
        ("in order", &[(0, 80), (80, 120), (120, 9999)], later(Reason::Delivered)),
        ("last first", &[(120, 9999), (80, 120), (0, 80)], later(Reason::Delivered)),
        ("overlapping", &[(0, 80), (64, 120), (120, 9999)], unseen()),
    ];
    let fragments = (100..).zip(sets).map(|(id, (what, ranges, counted))| {
        Case::several(format!("outer fragments, {what}"), fragments6(&course.plain(), id, ranges), counted)
    });
    edits.chain(extensions).chain(fragments).chain(ipv6_addresses(course)).collect()
}

fn ipv6_addresses(course: &Course) -> Vec<Case> {
    let sources = [
        ("nobody", "2001:db8::66"),
        ("the receiver", "2001:db8::2"),
        ("loopback", "::1"),
        ("no address", "::"),
        ("a group", "ff02::1"),
        ("the sender's IPv4 address, mapped", "::ffff:192.0.2.1"),
    ];
    let with = |address: &str| {
        let address: std::net::Ipv6Addr = address.parse().expect("an address");
        course.mended(|b| b[IP + 8..IP + 24].copy_from_slice(&address.octets()))
    };
    let from = sources.into_iter().map(|(who, address)| {
        Case::new(format!("outer source {who}"), with(address), ends(Reason::UnknownVtep))
    });
    from.collect()
}
