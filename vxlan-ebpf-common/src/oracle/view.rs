//! Frames as `etherparse` sees them. Whatever does not parse panics: only what the engine took for
//! a good packet gets here.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::vec::Vec;

use etherparse::checksum::Sum16BitWords;
use etherparse::{Ethernet2Header, Ipv4Header, Ipv6Header, UdpHeader};

use super::std;
use crate::headers::Be32;
use crate::maps::{Addr, Endpoint, VtepId};
use crate::model::{Frame, Maps};
use crate::tables::Tables;
use crate::testbed;

/// Offset of the IP header in an untagged frame.
pub(super) const IP: usize = 14;

/// An IP packet in an Ethernet frame.
pub(super) struct View<'a> {
    /// Ethernet.
    pub(super) eth: Ethernet2Header,
    /// Source.
    pub(super) source: IpAddr,
    /// Destination.
    pub(super) destination: IpAddr,
    /// TTL or hop limit.
    pub(super) ttl: u8,
    /// TOS or traffic class.
    pub(super) tos: u8,
    /// Protocol of the payload.
    pub(super) protocol: u8,
    /// What follows the IP header.
    pub(super) payload: &'a [u8],
    /// The IPv4 header, if it is one.
    pub(super) v4: Option<Ipv4Header>,
}

impl<'a> View<'a> {
    /// Takes a frame apart that holds exactly one IP packet, neither fragmented nor with options,
    /// whose lengths and header checksum are right.
    pub(super) fn of(frame: &'a [u8]) -> Self {
        let (eth, ip) = Ethernet2Header::from_slice(frame).expect("an Ethernet header");
        match eth.ether_type {
            etherparse::EtherType::IPV4 => Self::v4(eth, ip),
            etherparse::EtherType::IPV6 => Self::v6(eth, ip),
            other => panic!("forwarded, though not IP: {other:?}"),
        }
    }

    fn v4(eth: Ethernet2Header, packet: &'a [u8]) -> Self {
        let (ip, payload) = Ipv4Header::from_slice(packet).expect("an IPv4 header");
        assert_eq!(ip.header_len(), 20, "IPv4 options");
        assert_eq!(usize::from(ip.total_len), packet.len(), "IPv4 length");
        assert!(!ip.more_fragments && ip.fragment_offset.value() == 0, "a fragment");
        assert!(adds_up(Sum16BitWords::new(), &packet[..20]), "IPv4 header checksum");
        Self {
            eth,
            source: Ipv4Addr::from(ip.source).into(),
            destination: Ipv4Addr::from(ip.destination).into(),
            ttl: ip.time_to_live,
            tos: packet[1],
            protocol: ip.protocol.0,
            payload,
            v4: Some(ip),
        }
    }

    fn v6(eth: Ethernet2Header, packet: &'a [u8]) -> Self {
        let (ip, payload) = Ipv6Header::from_slice(packet).expect("an IPv6 header");
        assert_eq!(usize::from(ip.payload_length), payload.len(), "IPv6 length");
        Self {
            eth,
            source: Ipv6Addr::from(ip.source).into(),
            destination: Ipv6Addr::from(ip.destination).into(),
            ttl: ip.hop_limit,
            tos: ip.traffic_class,
            protocol: ip.next_header.0,
            payload,
            v4: None,
        }
    }

    /// The UDP header and what follows it; the length must be right.
    pub(super) fn udp(&self) -> (UdpHeader, &'a [u8]) {
        assert_eq!(self.protocol, etherparse::IpNumber::UDP.0, "not UDP");
        let (udp, payload) = UdpHeader::from_slice(self.payload).expect("a UDP header");
        assert_eq!(usize::from(udp.length), self.payload.len(), "UDP length");
        (udp, payload)
    }

    /// Whether a receiver accepts the payload: its checksum is right, or it is UDP without one. Only
    /// for protocols with a checksum over the pseudo-header, and ICMP.
    pub(super) fn payload_is_good(&self) -> bool {
        let payload = match self.protocol {
            17 => {
                let Ok((udp, _)) = UdpHeader::from_slice(self.payload) else { return false };
                // As the kernel's `udp_rcv`: what follows the datagram does not count.
                match self.payload.get(..udp.length.into()) {
                    Some(datagram) if udp.checksum != 0 && datagram.len() >= 8 => datagram,
                    Some(datagram) => return datagram.len() >= 8,
                    None => return false,
                }
            }
            _ => self.payload,
        };
        let sum = Sum16BitWords::new();
        let mut sum = match (self.source, self.destination) {
            (IpAddr::V4(_), _) if self.protocol == 1 => return adds_up(sum, payload),
            (IpAddr::V4(from), IpAddr::V4(to)) => sum.add_slice(&from.octets()).add_slice(&to.octets()),
            (from, to) => sum.add_slice(&Addr::from(from).0).add_slice(&Addr::from(to).0),
        };
        let len = payload.len() as u32;
        sum = sum.add_2bytes([0, self.protocol]).add_4bytes(len.to_be_bytes());
        adds_up(sum, payload)
    }

    /// Length of the IP packet in bytes.
    pub(super) fn len(&self) -> u32 {
        (self.payload.len() + if self.v4.is_some() { 20 } else { 40 }) as u32
    }

    /// Length of the largest packet that a frame with this segment size will be cut into.
    pub(super) fn largest(&self, segment_size: u32) -> u32 {
        let header = match self.protocol {
            _ if segment_size == 0 => return self.len(),
            6 => usize::from(self.payload[12] >> 4) * 4,
            17 => 8,
            other => panic!("an aggregate of protocol {other}"),
        };
        self.len() - self.payload.len() as u32 + header as u32 + segment_size
    }
}

/// Whether data that contains its own checksum adds up, on top of `sum`.
fn adds_up(sum: Sum16BitWords, data: &[u8]) -> bool {
    sum.add_slice(data).ones_complement() == 0
}

/// The IP packet `old` after `hops` hops and with another TOS, without its IPv4 checksum, which may
/// be written in two ways where it is zero.
pub(super) fn after_hops(old: &[u8], hops: u8, tos: u8) -> Vec<u8> {
    let mut new = without_checksum(old);
    if new[0] >> 4 == 4 {
        new[1] = tos;
        new[8] -= hops;
    } else {
        new[0] = 0x60 | tos >> 4;
        new[1] = new[1] & 0x0f | tos << 4;
        new[7] -= hops;
    }
    new
}

/// An IP packet with a zero IPv4 header checksum.
pub(super) fn without_checksum(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
    }
    packet
}

/// Longest match in the routes.
pub(super) fn route(maps: &Maps, address: IpAddr) -> Option<VtepId> {
    match address {
        IpAddr::V4(a) => maps.route4(&maps.network(), Be32::from_bytes(a.octets())),
        IpAddr::V6(_) => maps.route6(&maps.network(), Addr::from(address).as_v6()),
    }
}

/// The local pod with an address.
pub(super) fn endpoint(maps: &Maps, address: IpAddr) -> Option<&Endpoint> {
    match address {
        IpAddr::V4(a) => maps.endpoints4.get(&testbed::key4(a)),
        IpAddr::V6(a) => maps.endpoints6.get(&testbed::key6(a)),
    }
}

/// What a frame holds before it is forwarded, checked to be fit for it.
pub(super) fn fit(frame: &Frame) -> View<'_> {
    let view = View::of(&frame.bytes);
    if view.v4.is_none() {
        assert!([6, 17, 58, 132].contains(&view.protocol), "IPv6 extension header {}", view.protocol);
    }
    view
}
