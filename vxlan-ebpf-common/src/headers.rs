//! Protocol headers as the engine loads and stores them.
//!
//! Fields are words in network byte order, not byte arrays: a BPF program copies a byte array byte
//! by byte, and the kernel's verifier refuses the shortcuts a compiler takes to avoid that on its
//! stack. With words an IPv4 header is eight loads.

use network_types::eth::EtherType;
use network_types::ip::IpProto;

use crate::checksum::Sum;

/// EtherType of IPv4.
pub const ETH_P_IP: Be16 = Be16(EtherType::Ipv4 as u16);
/// EtherType of IPv6.
pub const ETH_P_IPV6: Be16 = Be16(EtherType::Ipv6 as u16);
/// EtherType of an 802.1Q tag.
pub const ETH_P_8021Q: Be16 = Be16(EtherType::Ieee8021q as u16);
/// 802.1ad (QinQ).
pub const ETH_P_8021AD: Be16 = Be16::new(0x88a8);

/// IP protocol numbers that the engine looks into.
pub mod protocol {
    use super::IpProto;

    /// ICMP.
    pub const ICMP: u8 = IpProto::Icmp as u8;
    /// TCP.
    pub const TCP: u8 = IpProto::Tcp as u8;
    /// UDP.
    pub const UDP: u8 = IpProto::Udp as u8;
    /// ICMPv6.
    pub const ICMPV6: u8 = IpProto::Ipv6Icmp as u8;
    /// SCTP.
    pub const SCTP: u8 = IpProto::Sctp as u8;
}

/// 16 bits in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Be16(pub u16);

impl Be16 {
    /// From a number.
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self(value.to_be())
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// From two bytes in the order of the wire.
    #[inline(always)]
    pub const fn of(first: u8, second: u8) -> Self {
        Self::new((first as u16) << 8 | second as u16)
    }

    /// The byte that is first on the wire.
    #[inline(always)]
    pub const fn first(self) -> u8 {
        (self.get() >> 8) as u8
    }

    /// The byte that is second on the wire.
    #[inline(always)]
    pub const fn second(self) -> u8 {
        self.get() as u8
    }
}

/// 32 bits in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Be32(pub u32);

impl Be32 {
    /// From a number.
    #[inline(always)]
    pub const fn new(value: u32) -> Self {
        Self(value.to_be())
    }

    /// The number.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }

    /// From bytes in the order of the wire.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }

    /// Bytes in the order of the wire.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

/// An Ethernet address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Mac(pub [Be16; 3]);

impl Mac {
    /// From bytes in the order of the wire.
    #[inline(always)]
    pub const fn from_bytes(bytes: &[u8; 6]) -> Self {
        // Word by word: of all six at once a compiler makes a call, which programs do not make.
        let [a, b, c, d, e, f] = *bytes;
        Self([Be16::of(a, b), Be16::of(c, d), Be16::of(e, f)])
    }
}

/// Ethernet II without tags.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Eth {
    /// Destination.
    pub dst: Mac,
    /// Source.
    pub src: Mac,
    /// EtherType.
    pub ether_type: Be16,
}

/// IPv4 without options (RFC 791 §3.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ipv4 {
    /// Everything but the addresses.
    pub head: Ipv4Head,
    /// Source.
    pub src: Be32,
    /// Destination.
    pub dst: Be32,
}

/// The part of an IPv4 header that forwarding may change.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ipv4Head {
    /// Version, header length, TOS.
    pub version_tos: Be16,
    /// Length of the packet.
    pub len: Be16,
    /// Identification.
    pub id: Be16,
    /// Flags and fragment offset.
    pub frags: Be16,
    /// TTL and protocol.
    pub ttl_protocol: Be16,
    /// Header checksum.
    pub check: Be16,
}

impl Ipv4 {
    /// More-fragments flag and fragment offset.
    pub const FRAGMENT: u16 = 0x3fff;
    /// Fragment offset.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff;
    /// Don't-fragment flag.
    pub const DONT_FRAGMENT: u16 = 0x4000;

    /// Sum over the header, its checksum included.
    #[inline(always)]
    pub fn sum(&self) -> Sum {
        let h = &self.head;
        Sum::default()
            .word(h.version_tos)
            .word(h.len)
            .word(h.id)
            .word(h.frags)
            .word(h.ttl_protocol)
            .word(h.check)
            .double(self.src)
            .double(self.dst)
    }
}

/// IPv6 (RFC 8200 §3).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ipv6 {
    /// Everything but the addresses.
    pub head: Ipv6Head,
    /// Source.
    pub src: [Be32; 4],
    /// Destination.
    pub dst: [Be32; 4],
}

/// The part of an IPv6 header that forwarding may change.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ipv6Head {
    /// Version, traffic class, flow label.
    pub version_class_flow: Be32,
    /// Length of what follows the header.
    pub payload_len: Be16,
    /// Next header and hop limit.
    pub next_hops: Be16,
}

impl Ipv6 {
    /// The traffic class.
    #[inline(always)]
    pub const fn class(&self) -> u8 {
        (self.head.version_class_flow.get() >> 20) as u8
    }

    /// The flow label.
    #[inline(always)]
    pub const fn label(&self) -> u32 {
        self.head.version_class_flow.get() & 0xf_ffff
    }
}

/// UDP (RFC 768).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Udp {
    /// Source port.
    pub src: Be16,
    /// Destination port.
    pub dst: Be16,
    /// Length of header and payload.
    pub len: Be16,
    /// Checksum, 0 for none.
    pub check: Be16,
}

/// VXLAN (RFC 7348 §5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Vxlan {
    /// Flags and 24 reserved bits.
    pub flags: Be32,
    /// VNI and 8 reserved bits.
    pub vni: Be32,
}

impl Vxlan {
    /// "VNI present" and nothing else.
    pub const FLAGS: Be32 = Be32::new(0x0800_0000);

    /// The header of a packet in `vni`.
    #[inline(always)]
    pub const fn new(vni: u32) -> Self {
        Self { flags: Self::FLAGS, vni: Be32::new(vni << 8) }
    }
}
