//! Frames that hosts of a segment send without being asked, and tags.

use std::net::Ipv4Addr;

/// The MAC that all stations listen to.
pub const BROADCAST: [u8; 6] = [0xff; 6];

const ARP: u16 = 0x0806;
const RARP: u16 = 0x8035;
const VLAN: u16 = 0x8100;
/// Operations of RFC 826 and RFC 903.
const ARP_REQUEST: u16 = 1;
const RARP_REQUEST: u16 = 3;
/// Shortest frame of Ethernet without its checksum, in bytes.
const SHORTEST: usize = 60;

/// An ARP request for `target` by who has `mac` and `ip` (RFC 826).
pub fn arp_request(mac: [u8; 6], ip: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    resolution(ARP, ARP_REQUEST, (mac, ip), ([0; 6], target))
}

/// An ARP request for `ip` by who has it: tells everybody its MAC (RFC 5227, section 3).
pub fn gratuitous_arp(mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    arp_request(mac, ip, ip)
}

/// A RARP request for the own MAC (RFC 903), which tells every bridge where it is and nobody an address.
pub fn rarp(mac: [u8; 6]) -> Vec<u8> {
    resolution(RARP, RARP_REQUEST, (mac, Ipv4Addr::UNSPECIFIED), (mac, Ipv4Addr::UNSPECIFIED))
}

/// `frame` with a tag of VLAN `id` behind its addresses (IEEE 802.1Q), priority 0.
///
/// # Panics
/// The frame has no addresses.
pub fn tagged(id: u16, frame: &[u8]) -> Vec<u8> {
    let (addresses, rest) = frame.split_at(12);
    [addresses, &VLAN.to_be_bytes(), &(id & 0xfff).to_be_bytes(), rest].concat()
}

/// A broadcast of ARP's format.
fn resolution(
    ethertype: u16,
    operation: u16,
    (mac, ip): ([u8; 6], Ipv4Addr),
    (target_mac, target): ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let mut frame = [&BROADCAST[..], &mac, &ethertype.to_be_bytes()].concat();
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend([0, 1, 0x08, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend(target_mac);
    frame.extend(target.octets());
    frame.resize(SHORTEST, 0);
    frame
}
