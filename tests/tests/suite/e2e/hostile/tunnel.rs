//! What arrives with something odd about the UDP or the VXLAN header, or marked as congested.

use vxlan_ebpf_common::Reason;
use vxlan_ebpf_common::testbed::Inner;
use vxlan_tests::lab::Family;

use super::course::{Course, IP, edited, get, mend, put};
use super::{Case, ends, fast, unseen};

/// All of them.
pub(super) fn cases(course: &Course) -> Vec<Case> {
    [udp(course), vxlan(course), congestion(course)].into_iter().flatten().collect()
}

fn udp(course: &Course) -> Vec<Case> {
    let udp = course.udp();
    let zero = match course.underlay {
        Family::V4 => fast(),
        Family::V6 => ends(Reason::NeedsChecksum),
    };
    let with = |at: usize, value: u16| course.mended(|b| put(b, udp + at, value));
    let mut cases = vec![
        Case::new("UDP source port 0", with(0, 0), fast()),
        Case::new("UDP source port that of VXLAN", with(0, vxlan_tests::lab::PORT), fast()),
        Case::new("UDP destination port next to ours", with(2, vxlan_tests::lab::PORT + 1), unseen()),
        Case::new("UDP without a checksum", course.edited(|b| put(b, udp + 6, 0)), zero),
        Case::new("UDP checksum wrong", course.edited(|b| b[udp + 7] ^= 0x55), ends(Reason::NeedsChecksum)),
        Case::new(
            "UDP checksum left to a device that is none",
            course.edited(|b| {
                put(b, udp + 6, 0);
                let len = get(b, udp + 4);
                let addresses = if udp == IP + 20 { IP + 12..IP + 20 } else { IP + 8..IP + 40 };
                let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&b[addresses]);
                let sum = sum.add_2bytes([0, 17]).add_2bytes(len.to_be_bytes()).ones_complement();
                b[udp + 6..udp + 8].copy_from_slice(&(!sum).to_ne_bytes());
            }),
            ends(Reason::NeedsChecksum),
        ),
    ];
    let actual = get(&course.plain(), udp + 4);
    for (what, len) in [("too small", actual - 8), ("too large", actual + 8), ("0", 0), ("7", 7), ("8", 8)] {
        // A receiver cuts off what is behind the datagram.
        let reason = if what == "too small" { Reason::Padded } else { Reason::BadLength };
        cases.push(Case::new(format!("UDP length {what}"), with(4, len), ends(reason)));
    }
    cases
}

fn vxlan(course: &Course) -> Vec<Case> {
    let with = |at: usize, value: u8| course.mended(|b| b[course.vxlan() + at] = value);
    let mut cases = Vec::new();
    for (bit, name) in
        (0..8).map(|bit| 1u8 << bit).filter(|bit| *bit != 8).map(|bit| (bit, format!("{bit:#x}")))
    {
        cases.push(Case::new(format!("VXLAN flag {name}"), with(0, 8 | bit), ends(Reason::ReservedBits)));
    }
    cases.push(Case::new("no VXLAN flag", with(0, 0), ends(Reason::ReservedBits)));
    for at in [1, 2, 3, 7] {
        cases.push(Case::new(format!("VXLAN reserved byte {at}"), with(at, 1), ends(Reason::ReservedBits)));
    }
    cases.push(Case::new("a VNI of nobody", with(5, 0xff), ends(Reason::OtherVni)));
    cases.push(Case::new("VNI 0", with(6, 0), ends(Reason::OtherVni)));
    cases.push(Case::new("the VNI of the other network", with(6, 2), ends(Reason::OtherVni)));
    cases
}

/// All combinations of RFC 6040, with a DSCP on either side.
fn congestion(course: &Course) -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [Family::V4, Family::V6] {
        for inner in 0..4 {
            for outer in 0..4 {
                let sent = Inner { tos: 0x28 | inner, ..course.inner(family) }.build();
                let frame = edited(course.wrap(sent), |b| {
                    match course.underlay {
                        Family::V4 => b[IP + 1] = 0xb8 | outer,
                        Family::V6 => put(b, IP, 0x6000 | u16::from(0xb8 | outer) << 4),
                    }
                    mend(b);
                });
                let counted = if (inner, outer) == (0, 3) { ends(Reason::BadEcn) } else { fast() };
                let name = format!("ECN {outer} outside, {inner} inside, {family:?}");
                cases.push(Case::new(name, frame, counted));
            }
        }
    }
    cases
}
