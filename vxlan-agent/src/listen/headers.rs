//! Headers of a packet in words.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use etherparse::{
    ArpOperation, EtherType, Icmpv4Type, Icmpv6Type, IpNumber, LaxNetSlice, LaxSlicedPacket, LinkSlice,
    TcpSlice, TransportSlice,
};
use serde::Serialize;
use vxlan_ebpf_common::listen::Tunnel;

use crate::net::Mac;

/// What a frame says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Headers {
    pub(crate) source_mac: Option<Mac>,
    pub(crate) destination_mac: Option<Mac>,
    pub(crate) vlan: Option<u16>,
    pub(crate) source: Option<IpAddr>,
    pub(crate) destination: Option<IpAddr>,
    /// Number of the IP protocol.
    pub(crate) protocol_number: Option<u8>,
    /// Its name, or that of what there is instead of IP.
    pub(crate) protocol: Option<String>,
    pub(crate) source_port: Option<u16>,
    pub(crate) destination_port: Option<u16>,
    /// TCP's flags, what an ICMP message is, and the like.
    pub(crate) detail: Option<String>,
}

/// The two ends of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Outer {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) vni: u32,
}

impl From<Tunnel> for Outer {
    fn from(tunnel: Tunnel) -> Self {
        Self { source: tunnel.source.into(), destination: tunnel.destination.into(), vni: tunnel.vni }
    }
}

impl fmt::Display for Outer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} VNI {}", self.source, self.destination, self.vni)
    }
}

impl Headers {
    /// Of the frame that begins with `bytes`, as far as it can be read.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut headers = Self::default();
        let Ok(packet) = LaxSlicedPacket::from_ethernet(bytes) else { return headers };
        if let Some(LinkSlice::Ethernet2(eth)) = &packet.link {
            headers.source_mac = Some(Mac(eth.source()));
            headers.destination_mac = Some(Mac(eth.destination()));
            let payload = packet.ether_payload().map_or(eth.ether_type(), |payload| payload.ether_type);
            headers.protocol = Some(ether_type(payload));
        }
        headers.vlan = packet.vlan_ids().first().map(|vlan| vlan.value());
        headers.note_net(packet.net.as_ref());
        headers.note_transport(packet.transport.as_ref());
        headers
    }

    fn note_net(&mut self, net: Option<&LaxNetSlice<'_>>) {
        let number = match net {
            Some(LaxNetSlice::Ipv4(ip)) => {
                let header = ip.header();
                self.source = Some(header.source_addr().into());
                self.destination = Some(header.destination_addr().into());
                self.detail = ip.is_payload_fragmented().then(|| "fragment".to_owned());
                ip.payload_ip_number()
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let header = ip.header();
                self.source = Some(header.source_addr().into());
                self.destination = Some(header.destination_addr().into());
                self.detail = ip.is_payload_fragmented().then(|| "fragment".to_owned());
                ip.payload().ip_number
            }
            Some(LaxNetSlice::Arp(arp)) => {
                let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
                self.source = address(arp.sender_protocol_addr());
                self.destination = address(arp.target_protocol_addr());
                self.detail = match arp.operation() {
                    ArpOperation::REQUEST => Some("request".to_owned()),
                    ArpOperation::REPLY => Some("reply".to_owned()),
                    _ => None,
                };
                return;
            }
            None => return,
        };
        self.protocol_number = Some(number.0);
        self.protocol = Some(protocol(number));
    }

    fn note_transport(&mut self, transport: Option<&TransportSlice<'_>>) {
        match transport {
            Some(TransportSlice::Tcp(tcp)) => {
                self.source_port = Some(tcp.source_port());
                self.destination_port = Some(tcp.destination_port());
                self.detail = Some(flags(tcp));
            }
            Some(TransportSlice::Udp(udp)) => {
                self.source_port = Some(udp.source_port());
                self.destination_port = Some(udp.destination_port());
            }
            Some(TransportSlice::Icmpv4(icmp)) => {
                self.detail = Some(match icmp.icmp_type() {
                    Icmpv4Type::EchoRequest(echo) => format!("echo request {}/{}", echo.id, echo.seq),
                    Icmpv4Type::EchoReply(echo) => format!("echo reply {}/{}", echo.id, echo.seq),
                    Icmpv4Type::DestinationUnreachable(_) => "destination unreachable".to_owned(),
                    Icmpv4Type::TimeExceeded(_) => "time exceeded".to_owned(),
                    _ => format!("type {} code {}", icmp.type_u8(), icmp.code_u8()),
                });
            }
            Some(TransportSlice::Icmpv6(icmp)) => {
                self.detail = Some(match icmp.icmp_type() {
                    Icmpv6Type::EchoRequest(echo) => format!("echo request {}/{}", echo.id, echo.seq),
                    Icmpv6Type::EchoReply(echo) => format!("echo reply {}/{}", echo.id, echo.seq),
                    Icmpv6Type::DestinationUnreachable(_) => "destination unreachable".to_owned(),
                    Icmpv6Type::PacketTooBig { mtu } => format!("packet too big, MTU {mtu}"),
                    Icmpv6Type::TimeExceeded(_) => "time exceeded".to_owned(),
                    _ => match icmp.type_u8() {
                        133..=137 => "neighbour discovery".to_owned(),
                        kind => format!("type {kind} code {}", icmp.code_u8()),
                    },
                });
            }
            Some(TransportSlice::Igmp(_)) | None => {}
        }
    }
}

impl fmt::Display for Headers {
    /// `10.244.1.2:34512 > 10.244.2.9:80 TCP SYN`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.source, self.destination) {
            (Some(source), Some(destination)) => {
                let end = |ip: IpAddr, port: Option<u16>| {
                    port.map_or_else(|| ip.to_string(), |port| SocketAddr::new(ip, port).to_string())
                };
                let from = end(source, self.source_port);
                write!(f, "{from} > {}", end(destination, self.destination_port))?;
            }
            _ => match (self.source_mac, self.destination_mac) {
                (Some(source), Some(destination)) => write!(f, "{source} > {destination}")?,
                _ => return f.write_str("a frame too short to read"),
            },
        }
        for word in [&self.protocol, &self.detail].into_iter().flatten() {
            write!(f, " {word}")?;
        }
        match self.vlan {
            Some(vlan) => write!(f, " VLAN {vlan}"),
            None => Ok(()),
        }
    }
}

fn ether_type(ether_type: EtherType) -> String {
    match ether_type {
        EtherType::ARP => "ARP".to_owned(),
        EtherType::IPV4 => "IPv4".to_owned(),
        EtherType::IPV6 => "IPv6".to_owned(),
        other => format!("EtherType {:#06x}", other.0),
    }
}

fn protocol(number: IpNumber) -> String {
    match number {
        IpNumber::ICMP => "ICMP".to_owned(),
        IpNumber::TCP => "TCP".to_owned(),
        IpNumber::UDP => "UDP".to_owned(),
        IpNumber::IPV6_ICMP => "ICMPv6".to_owned(),
        IpNumber::SCTP => "SCTP".to_owned(),
        IpNumber::IGMP => "IGMP".to_owned(),
        other => format!("protocol {}", other.0),
    }
}

fn flags(tcp: &TcpSlice<'_>) -> String {
    let flags = [
        (tcp.syn(), "SYN"),
        (tcp.fin(), "FIN"),
        (tcp.rst(), "RST"),
        (tcp.psh(), "PSH"),
        (tcp.ack(), "ACK"),
        (tcp.urg(), "URG"),
    ];
    let set: Vec<_> = flags.into_iter().filter(|(is_set, _)| *is_set).map(|(_, name)| name).collect();
    if set.is_empty() { "without flags".to_owned() } else { set.join(" ") }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(build: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut bytes = vec![];
        build(&mut bytes);
        bytes
    }

    #[test]
    fn packets_are_told_by_their_headers() {
        let eth = || PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let four = || eth().ipv4([10, 244, 1, 2], [10, 244, 2, 9], 64);
        let (one, two) = ([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0xfe; 16]);
        let syn = frame(|b| four().tcp(34512, 80, 1, 99).syn().write(b, &[]).expect("a packet"));
        let udp = frame(|b| eth().ipv6(one, two, 64).udp(1, 53).write(b, &[]).expect("a packet"));
        let ping = frame(|b| four().icmpv4_echo_request(7, 3).write(b, &[]).expect("a packet"));
        let other = [&[2; 12][..], &[0x88, 0xcc, 0, 0]].concat();
        for (bytes, told) in [
            (&syn, "10.244.1.2:34512 > 10.244.2.9:80 TCP SYN"),
            (&udp, "[fd00::1]:1 > [fefe:fefe:fefe:fefe:fefe:fefe:fefe:fefe]:53 UDP"),
            (&ping, "10.244.1.2 > 10.244.2.9 ICMP echo request 7/3"),
            (&other, "02:02:02:02:02:02 > 02:02:02:02:02:02 EtherType 0x88cc"),
        ] {
            assert_eq!(Headers::of(bytes).to_string(), told);
        }
    }

    #[test]
    fn frames_cut_off_anywhere_are_told_as_far_as_they_go() {
        let bytes = frame(|b| {
            let eth = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            eth.tcp(1, 2, 3, 4).ack(5).write(b, b"payload").expect("a packet");
        });
        (0..bytes.len()).for_each(|len| assert!(!Headers::of(&bytes[..len]).to_string().is_empty()));
        assert_eq!(Headers::of(&bytes[..13]).to_string(), "a frame too short to read");
    }
}
