//! A frame's headers in words, one line for each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};

use super::frame;
use super::report::PacketText;
use crate::net::Mac;

/// What a frame says of itself. `ports`: of UDP, behind which there is VXLAN.
pub(super) fn packet(bytes: &[u8], port: Option<u16>) -> PacketText {
    let mut headers = vec![];
    describe(bytes, port, &mut headers);
    PacketText { length: bytes.len(), headers, bytes: hex(bytes) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn describe(bytes: &[u8], port: Option<u16>, headers: &mut Vec<String>) {
    // A program leaves the outer MACs to the kernel, which resolves the next hop.
    match frame::macs(bytes) {
        Some((from, to)) if from != Mac([0; 6]) || to != Mac([0; 6]) => {
            headers.push(format!("Ethernet {from} to {to}"));
        }
        _ => headers.push("Ethernet, whose MACs the kernel fills in".to_owned()),
    }
    let Ok(packet) = SlicedPacket::from_ethernet(bytes) else {
        return headers.push("bytes that are no whole packet".to_owned());
    };
    headers.extend(packet.net.as_ref().and_then(network));
    headers.extend(packet.transport.as_ref().map(transport));
    let udp = match &packet.transport {
        Some(TransportSlice::Udp(udp)) if Some(udp.destination_port()) == port => udp.payload(),
        _ => return,
    };
    if let Some(([flags, _, _, _, a, b, c, _], inner)) = udp.split_first_chunk::<8>() {
        let vni = u32::from_be_bytes([0, *a, *b, *c]);
        let flag = if *flags == 8 { String::new() } else { format!(", flags 0x{flags:02x}") };
        headers.push(format!("VXLAN VNI {vni}{flag}"));
        describe(inner, None, headers);
    }
}

fn network(net: &NetSlice<'_>) -> Option<String> {
    let (from, to, ttl, tos, more): (IpAddr, IpAddr, _, _, _) = match net {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            let (from, to) = (Ipv4Addr::from(header.source()), Ipv4Addr::from(header.destination()));
            let tos = header.dcp().value() << 2 | header.ecn().value();
            let more = if header.dont_fragment() { ", don't fragment" } else { "" };
            (from.into(), to.into(), header.ttl(), tos, more)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            let (from, to) = (Ipv6Addr::from(header.source()), Ipv6Addr::from(header.destination()));
            (from.into(), to.into(), header.hop_limit(), header.traffic_class(), "")
        }
        NetSlice::Arp(_) => return Some("ARP".to_owned()),
    };
    let version = if from.is_ipv4() { "IPv4" } else { "IPv6" };
    let tos = if tos == 0 { String::new() } else { format!(", TOS 0x{tos:02x}") };
    Some(format!("{version} {from} to {to}, TTL {ttl}{tos}{more}"))
}

fn transport(transport: &TransportSlice<'_>) -> String {
    match transport {
        TransportSlice::Udp(udp) => format!("UDP port {} to {}", udp.source_port(), udp.destination_port()),
        TransportSlice::Tcp(tcp) => {
            let all = [(tcp.syn(), "SYN"), (tcp.ack(), "ACK"), (tcp.fin(), "FIN"), (tcp.rst(), "RST")];
            let flags: Vec<_> = all.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
            format!("TCP port {} to {}, {}", tcp.source_port(), tcp.destination_port(), flags.join(" "))
        }
        TransportSlice::Icmpv4(icmp) => format!("ICMP type {}", icmp.type_u8()),
        TransportSlice::Icmpv6(icmp) => format!("ICMPv6 type {}", icmp.type_u8()),
        TransportSlice::Igmp(_) => "IGMP".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::frame::tests::question;
    use crate::trace::frame::{Outer, build};

    #[test]
    fn a_tunnels_packet_is_described_to_its_inner_headers() {
        let macs = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
        let inner = build(&question(), macs, 0).expect("a packet");
        let ends = (IpAddr::from([192, 0, 2, 2]), IpAddr::from([192, 0, 2, 1]));
        let outer = Outer { macs, ends, port: 8472, vni: 7 }.around(&inner).expect("a packet");
        let text = packet(&outer, Some(8472));
        assert_eq!(
            text.headers,
            [
                "Ethernet 02:00:00:00:00:01 to 02:00:00:00:00:02",
                "IPv4 192.0.2.2 to 192.0.2.1, TTL 64",
                "UDP port 49152 to 8472",
                "VXLAN VNI 7",
                "Ethernet 02:00:00:00:00:01 to 02:00:00:00:00:02",
                "IPv4 10.244.1.1 to 10.244.2.9, TTL 64, don't fragment",
                "UDP port 40000 to 53",
            ]
        );
        assert_eq!(packet(&outer, None).headers.len(), 3);
    }
}
