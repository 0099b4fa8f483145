//! Frames for the way from pod 1 of node 1 to pod 1 of node 2, right ones and damaged ones. In a segment hosts are at
//! the ends, and nothing is routed between them: the nodes' parts are played by the hosts themselves.

use std::net::IpAddr;

use vxlan_ebpf_common::maps::Kind;
use vxlan_ebpf_common::testbed::{Inner, Outer};
use vxlan_tests::lab::addr::vtep_mac;
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::mac_of;
use vxlan_tests::lab::{Family, Lab, NETWORK, PORT, UNDERLAY, VNI};

pub(super) use super::checksum::{mend, mend_header};

/// What is changed about a frame, or a part of one.
pub(super) type Edit = fn(&mut Vec<u8>);

/// Offset of an IP header behind its Ethernet header.
pub(super) const IP: usize = 14;

/// Addresses along the way.
pub(super) struct Course {
    /// Of the network.
    pub(super) kind: Kind,
    /// Family of the tunnel's outer addresses.
    pub(super) underlay: Family,
    /// MACs on the underlay: of node 1, of node 2.
    pub(super) wire: [[u8; 6]; 2],
    /// Underlay addresses.
    pub(super) nodes: [IpAddr; 2],
    /// MACs of the VTEPs.
    pub(super) vteps: [[u8; 6]; 2],
    /// MACs of the pods.
    pub(super) pods: [[u8; 6]; 2],
    /// MACs under which the pods see their nodes.
    pub(super) gateways: [[u8; 6]; 2],
    /// Addresses of the pods.
    pub(super) ips4: [IpAddr; 2],
    /// Addresses of the pods.
    pub(super) ips6: [IpAddr; 2],
}

impl Course {
    /// The way through `lab`, whose tunnel runs over `underlay`.
    pub(super) fn routed(lab: &Lab, underlay: Family) -> Self {
        let nodes = [1, 2];
        Self {
            kind: Kind::L3,
            underlay,
            wire: nodes.map(|n| mac_of(lab.node(n), UNDERLAY).expect("a MAC")),
            nodes: nodes.map(|n| lab.node(n).underlay),
            vteps: nodes.map(|n| parse_mac(&vtep_mac(n))),
            pods: nodes.map(|n| mac_of(lab.pod(n, 1), "eth0").expect("a MAC")),
            gateways: nodes.map(|n| mac_of(lab.node(n), "cni0").expect("a MAC")),
            ips4: nodes.map(|n| lab.pod(n, 1).ip4.into()),
            ips6: nodes.map(|n| lab.pod(n, 1).ip6.into()),
        }
    }

    /// The same through a segment.
    pub(super) fn bridged(lab: &SegmentLab, underlay: Family) -> Self {
        let nodes = [1, 2];
        let hosts = nodes.map(|n| lab.host(n, NETWORK, 1));
        let [one, two] = hosts.map(|host| host.mac);
        Self {
            kind: Kind::L2,
            underlay,
            wire: nodes.map(|n| mac_of(lab.node(n), UNDERLAY).expect("a MAC")),
            nodes: nodes.map(|n| lab.node(n).underlay),
            vteps: [one, two],
            pods: [one, two],
            gateways: [two, one],
            ips4: hosts.map(|host| host.ip4.into()),
            ips6: hosts.map(|host| host.ip6.into()),
        }
    }

    /// Whether it leads through a segment.
    pub(super) const fn is_bridged(&self) -> bool {
        matches!(self.kind, Kind::L2)
    }

    /// A datagram as pod 1 of node 1 sends it.
    pub(super) fn sent(&self, family: Family) -> Inner {
        let [from, to] = match family {
            Family::V4 => self.ips4,
            Family::V6 => self.ips6,
        };
        Inner { from_mac: self.pods[0], to_mac: self.gateways[0], from, ..Inner::from_pod(to) }
    }

    /// The same as it is in the tunnel.
    pub(super) fn inner(&self, family: Family) -> Inner {
        let ttl = if self.is_bridged() { 64 } else { 63 };
        Inner { from_mac: self.vteps[0], to_mac: self.vteps[1], ttl, ..self.sent(family) }
    }

    /// `inner` in a tunnel packet from node 1 to node 2, still to be built.
    pub(super) fn outer(&self, inner: Vec<u8>) -> Outer {
        let [from, to] = self.nodes;
        let [_, a, b, c] = VNI.to_be_bytes();
        Outer { from, to, tos: 0, vxlan: [8, 0, 0, 0, a, b, c, 0], port: PORT, inner }
    }

    /// The frame of `outer`.
    pub(super) fn build(&self, outer: &Outer) -> Vec<u8> {
        let mut bytes = outer.build();
        bytes[..6].copy_from_slice(&self.wire[1]);
        bytes[6..12].copy_from_slice(&self.wire[0]);
        bytes
    }

    /// `inner` in its tunnel.
    pub(super) fn wrap(&self, inner: Vec<u8>) -> Vec<u8> {
        self.build(&self.outer(inner))
    }

    /// An ordinary datagram in its tunnel.
    pub(super) fn plain(&self) -> Vec<u8> {
        self.wrap(self.inner(Family::V4).build())
    }

    /// Offset of the outer UDP header.
    pub(super) const fn udp(&self) -> usize {
        match self.underlay {
            Family::V4 => IP + 20,
            Family::V6 => IP + 40,
        }
    }

    /// Offset of the VXLAN header.
    pub(super) const fn vxlan(&self) -> usize {
        self.udp() + 8
    }

    /// [`Course::plain`] after `edit`.
    pub(super) fn edited(&self, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        edited(self.plain(), edit)
    }

    /// [`Course::plain`] after `edit`, with outer checksums that fit.
    pub(super) fn mended(&self, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = self.edited(edit);
        mend(&mut bytes);
        bytes
    }

    /// A datagram of `family` in its tunnel, after `edit` of the inner frame; all checksums but that
    /// of the inner payload fit.
    pub(super) fn inside(&self, family: Family, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut inner = edited(self.inner(family).build(), edit);
        mend_header(&mut inner);
        self.wrap(inner)
    }

    /// A packet in its tunnel that says which it is and goes through the host stack wherever it can,
    /// so that it overtakes nothing: it has an IP option. In a segment it is for everybody, since a bridge may have
    /// been told that nobody is where it leads, and in a VLAN, so that no program asks who sent it; outside it has
    /// an option, too.
    pub(super) fn marker(&self, number: u32) -> Vec<u8> {
        let marker = self.for_everybody(marker(self.inner(Family::V4), number));
        let mut frame = self.wrap(marker);
        match (self.kind, self.underlay) {
            (Kind::L3, _) => {}
            (Kind::L2, Family::V4) => with_ip_options(&mut frame, 1),
            (Kind::L2, Family::V6) => with_extension(&mut frame, 60, [0, 0, 1, 4, 0, 0, 0, 0]),
        }
        frame
    }

    /// The same as pod 1 of node 1 sends it.
    pub(super) fn sent_marker(&self, number: u32) -> Vec<u8> {
        self.for_everybody(marker(self.sent(Family::V4), number))
    }

    fn for_everybody(&self, mut marker: Vec<u8>) -> Vec<u8> {
        if self.is_bridged() {
            marker[..6].fill(0xff);
            with_tag(&mut marker, 0x8100, 5);
        }
        marker
    }
}

const MARK: &[u8; 8] = b"a marker";

fn marker(inner: Inner, number: u32) -> Vec<u8> {
    let mut bytes = Inner { len: 12, ..inner }.build();
    let at = bytes.len() - 12;
    bytes[at..at + 8].copy_from_slice(MARK);
    bytes[at + 8..].copy_from_slice(&number.to_be_bytes());
    with_ip_options(&mut bytes, 1);
    mend(&mut bytes);
    bytes
}

/// Whether `bytes` end as marker `number` does.
pub(super) fn is_marker(bytes: &[u8], number: u32) -> bool {
    bytes.ends_with(&[MARK.as_slice(), &number.to_be_bytes()].concat())
}

/// `bytes` after `edit`.
pub(super) fn edited(mut bytes: Vec<u8>, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    edit(&mut bytes);
    bytes
}

/// Puts `words` times four bytes of "no operation" behind an IPv4 header of 20 bytes.
pub(super) fn with_ip_options(bytes: &mut Vec<u8>, words: u8) {
    let len = usize::from(words) * 4;
    bytes.splice(IP + 20..IP + 20, std::iter::repeat_n(1, len));
    bytes[IP] += words;
    add(bytes, IP + 2, len as i16);
    mend_header(bytes);
}

/// Puts an IPv6 extension header of type `kind` in front of the payload.
pub(super) fn with_extension(bytes: &mut Vec<u8>, kind: u8, mut header: [u8; 8]) {
    header[0] = bytes[IP + 6];
    bytes[IP + 6] = kind;
    bytes.splice(IP + 40..IP + 40, header);
    add(bytes, IP + 4, 8);
}

/// Puts a VLAN tag of type `kind` behind the Ethernet addresses.
pub(super) fn with_tag(bytes: &mut Vec<u8>, kind: u16, vlan: u16) {
    let tag = [kind.to_be_bytes(), vlan.to_be_bytes()].concat();
    bytes.splice(12..12, tag);
}

/// Cuts an IPv4 packet at multiples of eight bytes of payload; `id` keeps it apart from others.
pub(super) fn fragments(whole: &[u8], id: u16, ranges: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let (header, payload) = whole.split_at(IP + 20);
    let cut = |&(from, to): &(usize, usize)| {
        let to = to.min(payload.len());
        let mut bytes = [header, &payload[from..to]].concat();
        let more = if to < payload.len() { 0x2000 } else { 0 };
        put(&mut bytes, IP + 2, (20 + to - from) as u16);
        put(&mut bytes, IP + 4, id);
        put(&mut bytes, IP + 6, (from / 8) as u16 | more);
        mend_header(&mut bytes);
        bytes
    };
    ranges.iter().map(cut).collect()
}

/// As [`fragments`], of an IPv6 packet.
pub(super) fn fragments6(whole: &[u8], id: u32, ranges: &[(usize, usize)]) -> Vec<Vec<u8>> {
    let (header, payload) = whole.split_at(IP + 40);
    let cut = |&(from, to): &(usize, usize)| {
        let to = to.min(payload.len());
        let mut bytes = [header, &payload[from..to]].concat();
        put(&mut bytes, IP + 4, (to - from) as u16);
        let [a, b] = (from as u16 | u16::from(to < payload.len())).to_be_bytes();
        let [c, d, e, f] = id.to_be_bytes();
        with_extension(&mut bytes, 44, [0, 0, a, b, c, d, e, f]);
        bytes
    };
    ranges.iter().map(cut).collect()
}

/// Writes a word in network byte order.
pub(super) fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The word at an offset.
pub(super) fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Adds to a word.
pub(super) fn add(bytes: &mut [u8], at: usize, more: i16) {
    put(bytes, at, get(bytes, at).wrapping_add_signed(more));
}

fn parse_mac(text: &str) -> [u8; 6] {
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hex")).collect();
    bytes.try_into().expect("six bytes")
}
