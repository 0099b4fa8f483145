//! The IP header that is routed through the overlay, of either family.

use crate::checksum::{self, Sum};
use crate::counters::Reason;
use crate::headers::{Be16, Be32, ETH_P_IP, ETH_P_IPV6, Ipv4, Ipv6, Udp, protocol};
use crate::maps::{Addr, Endpoint, Family, Network, NetworkId, VtepId};
use crate::packet::{Packet, Wire};
use crate::tables::Tables;

/// A TTL or hop limit counted down once.
#[inline(always)]
const fn one_hop_less(ttl: u8) -> Result<u8, Reason> {
    if ttl > 1 { Ok(ttl - 1) } else { Err(Reason::TtlExpired) }
}

/// Whether a packet that says it is `said` bytes long, of which its headers take `headers`, fills the
/// `len` bytes that there are.
#[inline(always)]
pub(crate) const fn fills(said: u32, len: u32, headers: usize) -> Result<(), Reason> {
    if said == len {
        Ok(())
    } else if said > len || said < headers as u32 {
        Err(Reason::BadLength)
    } else {
        Err(Reason::Padded)
    }
}

/// What the engine asks of an inner header.
pub trait Inner: Wire {
    /// The family's address.
    type Address: Copy + PartialEq;
    /// Length of the header in bytes.
    const LEN: usize = size_of::<Self>();
    /// Bytes that the engine reads from the header on: up to the flags of a TCP header. No more, since
    /// a packet that TCP still holds is copied to make the first byte behind its headers readable
    /// (`bpf_skb_pull_data`, `skb_clone_writable`, v6.18).
    const READ: usize = Self::LEN + 14;
    /// The family.
    const FAMILY: Family;
    /// Its EtherType.
    const ETHER_TYPE: Be16;

    /// Refuses what is not this family.
    fn check_version(&self) -> Result<(), Reason>;
    /// Refuses what only the kernel handles; `len` is the length of the IP packet in bytes.
    fn check(&self, len: u32) -> Result<(), Reason>;
    /// Source.
    fn source(&self) -> Self::Address;
    /// Destination.
    fn destination(&self) -> Self::Address;
    /// Protocol of the payload.
    fn protocol(&self) -> u8;
    /// IPv4 identification, any bytes; 0 if the sender gave it none.
    fn id(&self) -> u16;
    /// TTL or hop limit.
    fn ttl(&self) -> u8;
    /// Whether nobody on the way may fragment it.
    fn is_whole(&self) -> bool;
    /// Flow label, 0 of IPv4.
    fn label(&self) -> u32;
    /// TOS or traffic class.
    fn tos(&self) -> u8;
    /// The header with the given TOS or traffic class.
    fn with_tos(self, tos: u8) -> Self;
    /// The header after one hop.
    fn forwarded(self) -> Result<Self, Reason>;
    /// Overwrites the header `self` at `offset` with `new`, which has the same addresses.
    fn replace<P: Packet>(&self, new: &Self, p: &mut P, offset: usize) -> Option<()>;
    /// Sum of this header minus that of the payload's pseudo-header: what header and payload add
    /// to an enclosing checksum once the payload's own checksum, which covers the pseudo-header,
    /// is filled in. `None` for protocols without such a checksum.
    fn enclosed_sum(&self) -> Option<Sum>;

    /// Longest match in ROUTES.
    fn route<T: Tables>(t: &T, network: &Network, address: Self::Address) -> Option<VtepId>;
    /// ENDPOINTS.
    fn endpoint<T: Tables>(t: &T, network: NetworkId, address: Self::Address) -> Option<&Endpoint>;
    /// In the form of the underlay tables.
    fn addr(address: Self::Address) -> Addr;
}

impl Inner for Ipv4 {
    type Address = Be32;
    const FAMILY: Family = Family::V4;
    const ETHER_TYPE: Be16 = ETH_P_IP;

    #[inline(always)]
    fn check_version(&self) -> Result<(), Reason> {
        if self.head.version_tos.first() >> 4 == 4 { Ok(()) } else { Err(Reason::NotIp) }
    }

    #[inline(always)]
    fn check(&self, len: u32) -> Result<(), Reason> {
        self.check_version()?;
        if self.head.version_tos.first() != 0x45 {
            return Err(Reason::Options);
        }
        if self.head.frags.get() & Self::FRAGMENT != 0 {
            return Err(Reason::Fragment);
        }
        fills(u32::from(self.head.len.get()), len, Self::LEN)?;
        if !self.sum().is_valid() {
            return Err(Reason::BadChecksum);
        }
        Ok(())
    }

    #[inline(always)]
    fn source(&self) -> Be32 {
        self.src
    }

    #[inline(always)]
    fn destination(&self) -> Be32 {
        self.dst
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.head.ttl_protocol.second()
    }

    #[inline(always)]
    fn id(&self) -> u16 {
        self.head.id.0
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.head.ttl_protocol.first()
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        self.head.frags.get() & Self::DONT_FRAGMENT != 0
    }

    #[inline(always)]
    fn label(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn tos(&self) -> u8 {
        self.head.version_tos.second()
    }

    #[inline(always)]
    fn with_tos(mut self, tos: u8) -> Self {
        let head = &mut self.head;
        if tos != head.version_tos.second() {
            let version_tos = Be16::of(head.version_tos.first(), tos);
            head.check = checksum::replace(head.check, head.version_tos, version_tos);
            head.version_tos = version_tos;
        }
        self
    }

    #[inline(always)]
    fn forwarded(mut self) -> Result<Self, Reason> {
        let head = &mut self.head;
        let ttl = one_hop_less(head.ttl_protocol.first())?;
        let ttl_protocol = Be16::of(ttl, head.ttl_protocol.second());
        head.check = checksum::replace(head.check, head.ttl_protocol, ttl_protocol);
        head.ttl_protocol = ttl_protocol;
        Ok(self)
    }

    #[inline(always)]
    fn replace<P: Packet>(&self, new: &Self, p: &mut P, offset: usize) -> Option<()> {
        // The header's own checksum keeps every sum over it unchanged.
        p.store(offset, &new.head)
    }

    #[inline(always)]
    fn enclosed_sum(&self) -> Option<Sum> {
        // A valid IPv4 header adds nothing, nor does an ICMP message: both contain their checksum.
        let protocol = self.protocol();
        match protocol {
            protocol::ICMP => Some(Sum::default()),
            protocol::TCP | protocol::UDP => {
                let payload = self.head.len.get().wrapping_sub(Self::LEN as u16);
                let pseudo = Sum::default().double(self.src).double(self.dst);
                let pseudo = pseudo.word(Be16::new(u16::from(protocol))).word(Be16::new(payload));
                Some(Sum::default().minus(pseudo))
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn route<T: Tables>(t: &T, network: &Network, address: Be32) -> Option<VtepId> {
        t.route4(network, address)
    }

    #[inline(always)]
    fn endpoint<T: Tables>(t: &T, network: NetworkId, address: Be32) -> Option<&Endpoint> {
        t.endpoint4(network, address)
    }

    #[inline(always)]
    fn addr(address: Be32) -> Addr {
        Addr::v4(address)
    }
}

impl Inner for Ipv6 {
    type Address = [Be32; 4];
    const FAMILY: Family = Family::V6;
    const ETHER_TYPE: Be16 = ETH_P_IPV6;

    #[inline(always)]
    fn check_version(&self) -> Result<(), Reason> {
        if self.head.version_class_flow.get() >> 28 == 6 { Ok(()) } else { Err(Reason::NotIp) }
    }

    #[inline(always)]
    fn check(&self, len: u32) -> Result<(), Reason> {
        self.check_version()?;
        fills(u32::from(self.head.payload_len.get()) + Self::LEN as u32, len, Self::LEN)?;
        match self.protocol() {
            protocol::TCP | protocol::UDP | protocol::ICMPV6 | protocol::SCTP => Ok(()),
            _ => Err(Reason::Options),
        }
    }

    #[inline(always)]
    fn source(&self) -> [Be32; 4] {
        self.src
    }

    #[inline(always)]
    fn destination(&self) -> [Be32; 4] {
        self.dst
    }

    #[inline(always)]
    fn protocol(&self) -> u8 {
        self.head.next_hops.first()
    }

    #[inline(always)]
    fn id(&self) -> u16 {
        0
    }

    #[inline(always)]
    fn ttl(&self) -> u8 {
        self.head.next_hops.second()
    }

    #[inline(always)]
    fn is_whole(&self) -> bool {
        true
    }

    #[inline(always)]
    fn label(&self) -> u32 {
        Self::label(self)
    }

    #[inline(always)]
    fn tos(&self) -> u8 {
        self.class()
    }

    #[inline(always)]
    fn with_tos(mut self, tos: u8) -> Self {
        let rest = self.head.version_class_flow.get() & 0xf00f_ffff;
        self.head.version_class_flow = Be32::new(rest | u32::from(tos) << 20);
        self
    }

    #[inline(always)]
    fn forwarded(mut self) -> Result<Self, Reason> {
        let next_hops = self.head.next_hops;
        self.head.next_hops = Be16::of(next_hops.first(), one_hop_less(next_hops.second())?);
        Ok(self)
    }

    #[inline(always)]
    fn replace<P: Packet>(&self, new: &Self, p: &mut P, offset: usize) -> Option<()> {
        let (old, new) = (&self.head, &new.head);
        if old.next_hops != new.next_hops {
            p.replace_in_sum(u32::from(old.next_hops.0), u32::from(new.next_hops.0));
        }
        if old.version_class_flow != new.version_class_flow {
            p.replace_in_sum(old.version_class_flow.0, new.version_class_flow.0);
        }
        p.store(offset, new)
    }

    #[inline(always)]
    fn enclosed_sum(&self) -> Option<Sum> {
        let protocol = self.protocol();
        match protocol {
            // Addresses and length are in header and pseudo-header, and cancel out.
            protocol::TCP | protocol::UDP | protocol::ICMPV6 => {
                let rest = Sum::default().double(self.head.version_class_flow).word(self.head.next_hops);
                Some(rest.minus(Sum::default().word(Be16::new(u16::from(protocol)))))
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn route<T: Tables>(t: &T, network: &Network, address: [Be32; 4]) -> Option<VtepId> {
        t.route6(network, address)
    }

    #[inline(always)]
    fn endpoint<T: Tables>(t: &T, network: NetworkId, address: [Be32; 4]) -> Option<&Endpoint> {
        t.endpoint6(network, address)
    }

    #[inline(always)]
    fn addr(address: [Be32; 4]) -> Addr {
        Addr::v6(address)
    }
}

/// Length of the largest IP packet that `p` is or will be cut into, whose IP header is at `offset`
/// and which is `len` bytes long from there.
#[inline(always)]
pub fn largest_packet<P: Packet, H: Inner>(p: &P, ip: &H, offset: usize, len: u32) -> Result<u32, Reason> {
    let segment = p.segment_size();
    if segment == 0 {
        return Ok(len);
    }
    let transport = match ip.protocol() {
        protocol::TCP => {
            let offset_and_flags: u8 = p.load(offset + H::LEN + 12).ok_or(Reason::Truncated)?;
            u32::from(offset_and_flags >> 4) * 4
        }
        protocol::UDP => 8,
        _ => return Err(Reason::Aggregate),
    };
    Ok(H::LEN as u32 + transport + segment)
}

/// What the packet of `len` bytes with the IP header `ip` at `offset` adds to an enclosing checksum,
/// computed from its headers alone.
///
/// The payload's checksum covers payload and pseudo-header, so header and payload together sum up
/// to something that [`Inner::enclosed_sum`] knows, whether the checksum is in place already or
/// left to the device ("local checksum offload", `Documentation/networking/checksum-offloads.rst`).
/// Not so for an aggregate, whose segments get a checksum each, or a payload without one.
#[inline(always)]
pub fn sum<P: Packet, H: Inner>(p: &P, ip: &H, offset: usize, len: u32) -> Result<Sum, Reason> {
    if p.segment_size() != 0 {
        return Err(Reason::NeedsChecksum);
    }
    if ip.protocol() == protocol::UDP {
        let udp: Udp = p.load(offset + H::LEN).ok_or(Reason::Truncated)?;
        let covered = u32::from(udp.len.get()) + H::LEN as u32;
        if udp.check.0 == 0 || covered != len {
            return Err(Reason::NeedsChecksum);
        }
    }
    ip.enclosed_sum().ok_or(Reason::NeedsChecksum)
}
