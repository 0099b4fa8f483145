//! The bytes of the packet that a trace is about, at each place where somebody looks at them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result};
use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, PacketBuilder,
};

use super::question::{Protocol, Question};
use super::{End, Unanswerable};
use crate::net::Mac;

/// Length of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Length of a UDP header and a VXLAN header.
const UDP_AND_VXLAN: usize = 8 + 8;
/// The addresses of a packet between two MACs, which nobody looks at (RFC 5737).
const NOBODYS: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
/// The TTL of outer packets on arrival.
const OUTER_TTL: u8 = 64;

/// Ethernet source and destination.
pub(super) type Macs = (Mac, Mac);

/// Whose addresses a packet has.
pub(super) fn addresses(question: &Question) -> Result<(IpAddr, IpAddr)> {
    match (question.source, question.destination) {
        (End::Ip(from), End::Ip(to)) if from.is_ipv4() == to.is_ipv4() => Ok((from, to)),
        (End::Mac(_), End::Mac(_)) => Ok((NOBODYS.0.into(), NOBODYS.1.into())),
        _ => Err(Unanswerable(
            "SRC and DST have to be two IPv4 addresses, two IPv6 addresses, or two MACs".to_owned(),
        )
        .into()),
    }
}

/// The packet as its sender sends it, or as it is after `hops` routers.
pub(super) fn build(question: &Question, (from_mac, to_mac): Macs, hops: u8) -> Result<Vec<u8>> {
    let (from, to) = addresses(question)?;
    let overhead = if from.is_ipv4() { 20 } else { 40 } + question.protocol.header();
    let Some(payload) = question.length.checked_sub(overhead) else {
        let text =
            format!("an IP packet of this kind has {overhead} bytes or more: choose a larger --length");
        return Err(Unanswerable(text).into());
    };
    let ttl = question.ttl.saturating_sub(hops);
    let eth = PacketBuilder::ethernet2(from_mac.0, to_mac.0);
    let ip = eth.ip(ip_headers((from, to), ttl, question.tos, question.may_fragment)?);
    let data = vec![0x5a; usize::from(payload)];
    let (sport, dport, flags) = (question.source_port, question.destination_port, question.flags);
    let mut bytes = Vec::new();
    match (question.protocol, from.is_ipv4()) {
        (Protocol::Udp, _) => ip.udp(sport, dport).write(&mut bytes, &data),
        (Protocol::Icmp, true) => ip.icmpv4_echo_request(sport, 1).write(&mut bytes, &data),
        (Protocol::Icmp, false) => ip.icmpv6_echo_request(sport, 1).write(&mut bytes, &data),
        (Protocol::Tcp, _) => {
            let mut tcp = ip.tcp(sport, dport, 1, 0xffff);
            if flags.syn {
                tcp = tcp.syn();
            }
            if flags.ack {
                tcp = tcp.ack(1);
            }
            if flags.fin {
                tcp = tcp.fin();
            }
            if flags.rst {
                tcp = tcp.rst();
            }
            tcp.write(&mut bytes, &data)
        }
    }
    .context("cannot build the packet")?;
    Ok(bytes)
}

fn ip_headers(ends: (IpAddr, IpAddr), ttl: u8, tos: u8, may_fragment: bool) -> Result<IpHeaders> {
    match ends {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = Ipv4Header::new(0, ttl, IpNumber(0), from.octets(), to.octets())?;
            header.dscp = IpDscp::try_new(tos >> 2)?;
            header.ecn = IpEcn::try_new(tos & 3)?;
            header.dont_fragment = !may_fragment;
            header.identification = 0x7472;
            Ok(IpHeaders::Ipv4(header, Ipv4Extensions::default()))
        }
        (from, to) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => Ipv6Addr::octets(&ip),
            };
            let header = Ipv6Header {
                traffic_class: tos,
                hop_limit: ttl,
                source: octets(from),
                destination: octets(to),
                ..Ipv6Header::default()
            };
            Ok(IpHeaders::Ipv6(header, Ipv6Extensions::default()))
        }
    }
}

/// The tunnel's ends of a packet that arrives on the underlay.
pub(super) struct Outer {
    /// Ethernet source and destination.
    pub(super) macs: Macs,
    /// The VTEP that sends, and this node.
    pub(super) ends: (IpAddr, IpAddr),
    /// UDP destination port.
    pub(super) port: u16,
    /// VNI.
    pub(super) vni: u32,
}

impl Outer {
    /// `inner` in its tunnel.
    pub(super) fn around(&self, inner: &[u8]) -> Result<Vec<u8>> {
        /// Where the kernel's flow hash may have put it.
        const SOURCE_PORT: u16 = 49_152;
        let [_, a, b, c] = self.vni.to_be_bytes();
        let payload = [&[8, 0, 0, 0, a, b, c, 0], inner].concat();
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(self.macs.0.0, self.macs.1.0)
            .ip(ip_headers(self.ends, OUTER_TTL, 0, true)?)
            .udp(SOURCE_PORT, self.port)
            .write(&mut bytes, &payload)
            .context("cannot build the outer headers")?;
        Ok(bytes)
    }
}

/// What is in a tunnel's packet.
pub(super) fn inside(bytes: &[u8]) -> Option<&[u8]> {
    let ip = if is_ipv4(bytes) { 20 } else { 40 };
    bytes.get(ETHERNET + ip + UDP_AND_VXLAN..)
}

/// Ethernet source and destination of a frame.
pub(super) fn macs(bytes: &[u8]) -> Option<Macs> {
    Some((Mac(*bytes.get(6..)?.first_chunk()?), Mac(*bytes.first_chunk()?)))
}

/// Whether a frame's EtherType is that of IPv4.
pub(super) fn is_ipv4(bytes: &[u8]) -> bool {
    bytes.get(12..14) == Some(&[8, 0])
}

/// TTL or hop limit of the packet in a frame.
pub(super) fn ttl(bytes: &[u8]) -> u8 {
    bytes.get(ETHERNET + if is_ipv4(bytes) { 8 } else { 7 }).copied().unwrap_or_default()
}

/// What the host stack passes on: with these MACs, and if it is routed, one hop less.
pub(super) fn passed_on(mut bytes: Vec<u8>, (from, to): Macs, routed: bool) -> Vec<u8> {
    if let Some(macs) = bytes.first_chunk_mut::<12>() {
        macs[..6].copy_from_slice(&to.0);
        macs[6..].copy_from_slice(&from.0);
    }
    let v4 = is_ipv4(&bytes);
    let at = ETHERNET + if v4 { 8 } else { 7 };
    if let Some(ttl) = bytes.get_mut(at).filter(|_| routed) {
        *ttl = ttl.saturating_sub(1);
    }
    if v4 && let Some(header) = bytes.get_mut(ETHERNET..ETHERNET + 20) {
        header[10..12].fill(0);
        let sum = header_sum(header).to_be_bytes();
        header[10..12].copy_from_slice(&sum);
    }
    bytes
}

/// The checksum of an IPv4 header (RFC 1071).
fn header_sum(header: &[u8]) -> u16 {
    let words = header.as_chunks::<2>().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair)));
    let sum: u32 = words.sum();
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::trace::Flags;

    /// A datagram between two pods of the testbed.
    pub(crate) fn question() -> Question {
        Question {
            source: End::Ip(IpAddr::from([10, 244, 1, 1])),
            destination: End::Ip(IpAddr::from([10, 244, 2, 9])),
            protocol: Protocol::Udp,
            source_port: 40_000,
            destination_port: 53,
            flags: Flags::default(),
            length: 84,
            ttl: 64,
            tos: 0,
            may_fragment: false,
            interface: None,
            vtep: None,
        }
    }

    const MACS: Macs = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));

    #[test]
    fn the_packet_is_as_long_as_asked_for() {
        let bytes = build(&question(), MACS, 0).expect("a packet");
        assert_eq!(bytes.len(), ETHERNET + 84);
        assert_eq!((macs(&bytes), ttl(&bytes)), (Some(MACS), 64));
        let short = Question { length: 27, ..question() };
        assert!(build(&short, MACS, 0).is_err());
    }

    #[test]
    fn what_is_passed_on_has_one_hop_less_and_a_right_checksum() {
        let bytes = build(&question(), MACS, 0).expect("a packet");
        let routed = passed_on(bytes.clone(), MACS, true);
        assert_eq!(routed, build(&question(), MACS, 1).expect("a packet"));
        assert_eq!(passed_on(bytes.clone(), MACS, false), bytes);
    }

    #[test]
    fn what_goes_into_a_tunnel_comes_out_of_it() {
        let inner = build(&question(), MACS, 1).expect("a packet");
        for ends in [("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")] {
            let ends = (ends.0.parse().expect("an address"), ends.1.parse().expect("an address"));
            let outer = Outer { macs: MACS, ends, port: 8472, vni: 1 }.around(&inner).expect("a packet");
            assert_eq!(inside(&outer), Some(inner.as_slice()));
        }
    }

    #[test]
    fn families_are_not_mixed() {
        let mixed = Question { destination: End::Mac(MACS.0), ..question() };
        assert!(addresses(&mixed).is_err());
        let mixed = Question { destination: End::Ip(Ipv6Addr::LOCALHOST.into()), ..question() };
        assert!(addresses(&mixed).is_err());
    }
}
