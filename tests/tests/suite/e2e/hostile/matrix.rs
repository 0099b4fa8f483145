//! Who sends, in which outer form, to which of the node's addresses: nobody unknown gets a packet into a
//! pod, nor does a known VTEP with another's source; everything proper arrives, whoever delivers it.

use std::net::Ipv4Addr;
use std::time::Duration;

use vxlan_tests::lab::addr::{inner4, underlay4};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay, UNDERLAY, VNI};

use super::super::guard::forged;
use super::super::{assert_answered, build};

const ETH: usize = 14;
const IP: usize = 20;

/// The frames that an outer form makes of a plain one.
type Form = (&'static str, fn(&[u8]) -> Vec<Vec<u8>>);

const FORMS: [Form; 8] = [
    ("plain", |frame| vec![frame.to_vec()]),
    ("options", |frame| vec![with_options(frame)]),
    ("a priority tag", |frame| vec![[&frame[..12], &[0x81, 0, 0, 0], &frame[12..]].concat()]),
    ("fragments", |frame| fragments(frame, 56)),
    ("a first fragment of 8 bytes", |frame| fragments(frame, 8)),
    ("to the vxlan device's address", |frame| vec![to(frame, inner4(1, 0))]),
    ("an inner priority tag", |frame| vec![with_inner_tag(frame)]),
    ("trailing bytes", |frame| vec![[frame, &[0; 6]].concat()]),
];

/// Corrects the outer header's checksum; the datagram's is none.
fn finished(mut frame: Vec<u8>) -> Vec<u8> {
    let length = usize::from(frame[ETH] & 0xf) * 4;
    frame[ETH + 10..ETH + 12].fill(0);
    let words = frame[ETH..ETH + length].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    frame[ETH + 10..ETH + 12].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn with_length(mut frame: Vec<u8>) -> Vec<u8> {
    let length = (frame.len() - ETH) as u16;
    frame[ETH + 2..ETH + 4].copy_from_slice(&length.to_be_bytes());
    finished(frame)
}

fn with_options(frame: &[u8]) -> Vec<u8> {
    let mut frame = [&frame[..ETH + IP], &[1; 4], &frame[ETH + IP..]].concat();
    frame[ETH] = 0x46;
    with_length(frame)
}

fn with_inner_tag(frame: &[u8]) -> Vec<u8> {
    const TAG: usize = ETH + IP + 8 + 8 + 12;
    let mut frame = [&frame[..TAG], &[0x81, 0, 0, 0], &frame[TAG..]].concat();
    let length = (frame.len() - ETH - IP) as u16;
    frame[ETH + IP + 4..ETH + IP + 6].copy_from_slice(&length.to_be_bytes());
    with_length(frame)
}

fn to(frame: &[u8], destination: Ipv4Addr) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[ETH + 16..ETH + 20].copy_from_slice(&destination.octets());
    finished(frame)
}

/// The frame in two fragments, the first with `first` bytes of the datagram.
fn fragments(frame: &[u8], first: usize) -> Vec<Vec<u8>> {
    let (head, payload) = frame.split_at(ETH + IP);
    let fragment = |bytes: &[u8], flags: u16| {
        let mut fragment = [head, bytes].concat();
        fragment[ETH + 4..ETH + 6].copy_from_slice(&[0x77, first as u8]);
        fragment[ETH + 6..ETH + 8].copy_from_slice(&flags.to_be_bytes());
        with_length(fragment)
    };
    vec![fragment(&payload[..first], 0x2000), fragment(&payload[first..], (first / 8) as u16)]
}

/// Whether what node 2 sends reaches pod 1 of node 1.
fn arrives(lab: &Lab, frames: &[Vec<u8>]) -> bool {
    let capture = Capture::start(lab.pod(1, 1), "eth0").expect("a capture");
    for frame in frames {
        inject(lab.node(2), UNDERLAY, frame).expect("sent");
    }
    let ours = |frame: &Frame| frame.udp_ports() == Some((7777, 7777));
    capture.next(Duration::from_millis(200), ours).expect("a capture").is_some()
}

fn only_who_may_send_gets_a_packet_in(fastpath: &str) {
    let options = AgentOptions { fastpath: fastpath.into(), ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options), Overlay::agent()));
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping::default());
    let stranger = Ipv4Addr::new(192, 0, 2, 66);
    for (who, outer, inner, may) in [
        ("a VTEP", underlay4(2), inner4(2, 9), true),
        ("a stranger", stranger, inner4(2, 9), false),
        ("a VTEP as a pod of this node", underlay4(2), inner4(1, 9), false),
        ("a VTEP as a machine outside", underlay4(2), Ipv4Addr::new(8, 8, 8, 8), false),
    ] {
        let mut frame = forged(&lab, outer, inner, VNI);
        frame[ETH + IP + 6..ETH + IP + 8].fill(0);
        for (form, make) in FORMS {
            assert_eq!(arrives(&lab, &make(&frame)), may, "{fastpath}: {who}, {form}");
        }
    }
}

#[test]
fn only_who_may_send_gets_a_packet_in_without_the_fast_path() {
    only_who_may_send_gets_a_packet_in("off");
}

#[test]
fn only_who_may_send_gets_a_packet_in_past_the_stack() {
    only_who_may_send_gets_a_packet_in("direct");
}

#[test]
fn only_who_may_send_gets_a_packet_in_in_mode_verified() {
    only_who_may_send_gets_a_packet_in("verified");
}
