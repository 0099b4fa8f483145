//! The outer headers: Ethernet, IPv4 or IPv6, UDP, VXLAN (RFC 7348 §5), inner Ethernet.

use crate::checksum::Sum;
use crate::counters::Reason;
use crate::headers::{
    Be16, Be32, ETH_P_IP, ETH_P_IPV6, Eth, Ipv4, Ipv4Head, Ipv6, Ipv6Head, Mac, Udp, Vxlan, protocol,
};
use crate::maps::{Addr, Family, LocalVtep, Network, NetworkId, Node, VniKey, Vtep, local};
use crate::packet::{ETH_LEN, Packet, Wire};
use crate::profile;
use crate::tables::Tables;

/// UDP, VXLAN and inner Ethernet header.
pub(crate) const TUNNEL_LEN: usize = size_of::<Udp>() + size_of::<Vxlan>() + ETH_LEN;
/// Bytes that encapsulation adds to a frame.
pub const fn overhead(family: Family) -> u32 {
    match family {
        Family::V4 => V4::ROOM as u32,
        Family::V6 => V6::ROOM as u32,
    }
}

/// What the engine finds in an outer IP header that it accepts.
pub struct OuterIp {
    /// Source.
    pub source: Addr,
    /// TOS or traffic class.
    pub tos: u8,
    /// Whether this is the first of several fragments.
    pub fragment: bool,
    /// Bytes of IP payload as the header says.
    pub payload: u32,
    /// Whether the header's own checksum holds.
    pub valid: bool,
}

/// What encapsulation has decided, beyond the two VTEPs.
pub struct Encap {
    /// Length of the inner IP packet in bytes.
    pub inner_len: u32,
    /// Ethernet header of the inner packet.
    pub eth: Eth,
    /// TOS or traffic class.
    pub tos: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// IPv4 flags and fragment offset.
    pub frags: Be16,
    /// IPv6 flow label.
    pub label: u32,
    /// UDP source port.
    pub source_port: Be16,
    /// IPv4 identification, any bytes.
    pub id: u16,
    /// Sum of the inner IP packet if there is to be an outer UDP checksum, otherwise zero. No `Option`: the verifier of
    /// Linux 6.1 does not see that what nobody has written is not read where somebody asks the device again.
    pub inner_sum: Sum,
}

impl Encap {
    /// Length of the UDP datagram; the caller has checked that it [`fits`].
    #[inline(always)]
    const fn udp_len(&self) -> u16 {
        (self.inner_len + TUNNEL_LEN as u32) as u16
    }
}

/// An underlay family.
pub trait Underlay {
    /// The outer IP header.
    type Ip: Wire;
    /// The family.
    const FAMILY: Family;
    /// Its EtherType.
    const ETHER_TYPE: Be16;
    /// Length of the outer IP header.
    const IP_LEN: usize = size_of::<Self::Ip>();
    /// Bytes in front of the inner IP header that encapsulation adds.
    const ROOM: usize = Self::IP_LEN + TUNNEL_LEN;
    /// Offset of the UDP header.
    const UDP: usize = ETH_LEN + Self::IP_LEN;
    /// Offset of the VXLAN header.
    const VXLAN: usize = Self::UDP + size_of::<Udp>();
    /// Offset of the inner Ethernet header.
    const INNER_ETH: usize = Self::VXLAN + size_of::<Vxlan>();
    /// Offset of the inner IP header.
    const INNER_IP: usize = Self::INNER_ETH + ETH_LEN;

    /// Whether the outer IP header is followed by UDP's at once.
    fn is_plain_udp(ip: &Self::Ip) -> bool;
    /// The outer IP header if it is UDP for `local` without options; everything else is none of
    /// ours.
    fn parse<P: Packet>(p: &P, local: &LocalVtep) -> Result<OuterIp, Reason>;
    /// The header of a packet from `local` to `vtep`.
    fn ip(local: &LocalVtep, vtep: &Vtep, encap: &Encap) -> Self::Ip;
    /// Sum over the addresses.
    fn pseudo_sum(ip: &Self::Ip) -> Sum;
}

/// IPv4 underlay.
pub struct V4;
/// IPv6 underlay.
pub struct V6;

impl Underlay for V4 {
    type Ip = Ipv4;
    const FAMILY: Family = Family::V4;
    const ETHER_TYPE: Be16 = ETH_P_IP;

    #[inline(always)]
    fn is_plain_udp(ip: &Ipv4) -> bool {
        ip.head.ttl_protocol.second() == protocol::UDP
            && ip.head.version_tos.first() == 0x45
            && ip.head.frags.get() & Ipv4::FRAGMENT_OFFSET == 0
    }

    #[inline(always)]
    fn parse<P: Packet>(p: &P, local: &LocalVtep) -> Result<OuterIp, Reason> {
        let ip: Ipv4 = p.load(ETH_LEN).ok_or(Reason::NotVxlan)?;
        if ip.dst != local.addr.as_v4() || !Self::is_plain_udp(&ip) {
            return Err(Reason::NotVxlan);
        }
        Ok(OuterIp {
            source: Addr::v4(ip.src),
            tos: ip.head.version_tos.second(),
            fragment: ip.head.frags.get() & Ipv4::FRAGMENT != 0,
            payload: u32::from(ip.head.len.get()).wrapping_sub(Self::IP_LEN as u32),
            valid: ip.sum().is_valid(),
        })
    }

    #[inline(always)]
    fn ip(local: &LocalVtep, vtep: &Vtep, encap: &Encap) -> Ipv4 {
        let mut ip = Ipv4 {
            head: Ipv4Head {
                version_tos: Be16::of(0x45, encap.tos),
                len: Be16::new(encap.udp_len() + Self::IP_LEN as u16),
                id: Be16(encap.id),
                frags: encap.frags,
                ttl_protocol: Be16::of(encap.ttl, protocol::UDP),
                check: Be16(0),
            },
            src: local.addr.as_v4(),
            dst: vtep.addr.as_v4(),
        };
        ip.head.check = ip.sum().checksum();
        ip
    }

    #[inline(always)]
    fn pseudo_sum(ip: &Ipv4) -> Sum {
        Sum::default().double(ip.src).double(ip.dst)
    }
}

impl Underlay for V6 {
    type Ip = Ipv6;
    const FAMILY: Family = Family::V6;
    const ETHER_TYPE: Be16 = ETH_P_IPV6;

    #[inline(always)]
    fn is_plain_udp(ip: &Ipv6) -> bool {
        ip.head.next_hops.first() == protocol::UDP && ip.head.version_class_flow.get() >> 28 == 6
    }

    #[inline(always)]
    fn parse<P: Packet>(p: &P, local: &LocalVtep) -> Result<OuterIp, Reason> {
        let ip: Ipv6 = p.load(ETH_LEN).ok_or(Reason::NotVxlan)?;
        if ip.dst != local.addr.as_v6() || !Self::is_plain_udp(&ip) {
            return Err(Reason::NotVxlan);
        }
        Ok(OuterIp {
            source: if is_mapped(ip.src) { NOBODY } else { Addr::v6(ip.src) },
            tos: ip.class(),
            fragment: false,
            payload: u32::from(ip.head.payload_len.get()),
            valid: true,
        })
    }

    #[inline(always)]
    fn ip(local: &LocalVtep, vtep: &Vtep, encap: &Encap) -> Ipv6 {
        Ipv6 {
            head: Ipv6Head {
                version_class_flow: Be32::new(0x6000_0000 | u32::from(encap.tos) << 20 | encap.label),
                payload_len: Be16::new(encap.udp_len()),
                next_hops: Be16::of(protocol::UDP, encap.ttl),
            },
            src: local.addr.as_v6(),
            dst: vtep.addr.as_v6(),
        }
    }

    #[inline(always)]
    fn pseudo_sum(ip: &Ipv6) -> Sum {
        Sum::default().address(ip.src).address(ip.dst)
    }
}

/// The address of no VTEP: the unspecified one.
const NOBODY: Addr = Addr([0; 16]);

/// Whether an IPv6 address is a mapped IPv4 one, which the tables take for IPv4. Linux lets packets
/// from one in.
#[inline(always)]
const fn is_mapped([a, b, c, _]: [Be32; 4]) -> bool {
    a.0 | b.0 == 0 && c.0 == Be32::new(0xffff).0
}

/// Whether a packet of `inner_len` bytes can be described by the outer length fields.
#[inline(always)]
pub const fn fits(inner_len: u32) -> bool {
    inner_len + TUNNEL_LEN as u32 + size_of::<Ipv6>() as u32 <= u16::MAX as u32
}

/// Writes all headers in front of an inner IP packet from `local` to `vtep` into room that has
/// been made. The kernel fills in the outer MACs when it resolves the next hop.
#[inline(always)]
pub fn write<P: Packet, U: Underlay>(
    p: &mut P,
    network: &Network,
    (local, vtep): (&LocalVtep, &Vtep),
    encap: &Encap,
) -> Option<()> {
    let ip = U::ip(local, vtep, encap);
    let mut udp =
        Udp { src: encap.source_port, dst: network.port(), len: Be16::new(encap.udp_len()), check: Be16(0) };
    let vxlan = Vxlan::new(network.vni);
    if profile::has_checksum(local) {
        let sum = tunnel_sum::<U>(&ip, &udp, &vxlan, &encap.eth).plus(encap.inner_sum);
        udp.check = nonzero(sum.checksum());
    }
    p.store(0, &Eth { ether_type: U::ETHER_TYPE, ..Eth::default() })?;
    p.store(ETH_LEN, &ip)?;
    p.store(U::UDP, &udp)?;
    p.store(U::VXLAN, &vxlan)?;
    p.store(U::INNER_ETH, &encap.eth)
}

/// Whether the outer UDP checksum is what `local` wants, judged without reading the payload: `inner` yields the
/// sum of the inner packet. Over IPv6 there has to be one unless the device says otherwise (RFC 8200 §8.1).
///
/// A checksum that fits the headers is right if and only if the inner one is, which the pod's stack
/// checks. Any other may still be right, as around a payload without a checksum; or it is for the
/// device to fill in, as on a veth. The kernel knows, and so may the device.
#[inline(always)]
pub fn check_sum<P: Packet, U: Underlay>(
    p: &P,
    local: &LocalVtep,
    inner: impl FnOnce() -> Result<Sum, Reason>,
) -> Result<(), Reason> {
    let udp: Udp = p.load(U::UDP).ok_or(Reason::Truncated)?;
    if udp.check.0 == 0 {
        let wanted = match U::FAMILY {
            Family::V4 => false,
            Family::V6 => local.flags & local::ACCEPTS_NO_CHECKSUM == 0,
        };
        return if wanted { Err(Reason::NeedsChecksum) } else { Ok(()) };
    }
    // Read again behind the question for the inner sum: there is little stack to keep it on.
    let tunnel =
        || Some(tunnel_sum::<U>(&p.load(ETH_LEN)?, &udp, &p.load(U::VXLAN)?, &p.load(U::INNER_ETH)?));
    let fits = |inner| tunnel().is_some_and(|tunnel| tunnel.plus(inner).is_valid());
    if inner().is_ok_and(fits) || p.checksum_verified() { Ok(()) } else { Err(Reason::NeedsChecksum) }
}

/// Sum of everything that the outer UDP checksum covers in front of the inner IP header, the
/// checksum itself included.
#[inline(always)]
fn tunnel_sum<U: Underlay>(ip: &U::Ip, udp: &Udp, vxlan: &Vxlan, eth: &Eth) -> Sum {
    let Eth { dst: Mac([a, b, c]), src: Mac([d, e, f]), ether_type } = *eth;
    let sum = U::pseudo_sum(ip).word(Be16::new(u16::from(protocol::UDP))).word(udp.len);
    let sum = sum.word(udp.src).word(udp.dst).word(udp.len).word(udp.check);
    let sum = sum.double(vxlan.flags).double(vxlan.vni);
    sum.word(a).word(b).word(c).word(d).word(e).word(f).word(ether_type)
}

/// An all-zero checksum means "none" (RFC 768): its other representation is sent.
#[inline(always)]
const fn nonzero(checksum: Be16) -> Be16 {
    if checksum.0 == 0 { Be16(0xffff) } else { checksum }
}

/// The network whose tunnel a frame on the underlay of a node with several is in: port and VNI say so.
#[inline(always)]
pub(crate) fn network<P: Packet, T: Tables, U: Underlay>(
    p: &mut P,
    t: &T,
    node: &Node,
) -> Result<NetworkId, Reason> {
    p.linearize(U::INNER_IP);
    let ip: U::Ip = p.load(ETH_LEN).ok_or(Reason::NotVxlan)?;
    let udp: Udp = p.load(U::UDP).ok_or(Reason::NotVxlan)?;
    if !U::is_plain_udp(&ip) || !node.uses(udp.dst) {
        return Err(Reason::NotVxlan);
    }
    let vxlan: Vxlan = p.load(U::VXLAN).ok_or(Reason::Truncated)?;
    t.network_of(&VniKey::new(vxlan.vni.get() >> 8, udp.dst)).ok_or(Reason::OtherVni)
}

/// The VXLAN header's verdict, for a frame that is UDP to our port.
#[inline(always)]
pub fn check_vxlan(network: &Network, vxlan: &Vxlan) -> Result<(), Reason> {
    if vxlan.flags != Vxlan::FLAGS || vxlan.vni.get() & 0xff != 0 {
        return Err(Reason::ReservedBits);
    }
    if vxlan.vni.get() >> 8 != network.vni {
        return Err(Reason::OtherVni);
    }
    Ok(())
}

/// UDP source port for a flow hash, as the kernel's `udp_flow_src_port` (v6.18) chooses it.
#[inline(always)]
pub const fn source_port(hash: u32, min: u16, max: u16) -> Be16 {
    let hash = hash ^ (hash << 16);
    let span = max.wrapping_sub(min) as u64;
    Be16::new((((hash as u64 * span) >> 32) as u16).wrapping_add(min))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn source_ports_stay_in_their_range(hash: u32, a: u16, b: u16) {
            let (min, max) = (a.min(b), a.max(b));
            let port = source_port(hash, min, max).get();
            prop_assert!((min..=max).contains(&port));
            prop_assert!(port < max || min == max);
        }
    }

    #[test]
    fn source_ports_depend_on_the_low_half_of_the_hash_too() {
        assert_ne!(source_port(0x4000, 32768, 61000), source_port(0x8000, 32768, 61000));
    }
}
