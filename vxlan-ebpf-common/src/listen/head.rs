//! Headers of a copied packet, for filters and for people.

use crate::ecn;
use crate::headers::{Be16, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Eth, Ipv4, Ipv6, Vxlan};
use crate::inner::Inner;
use crate::maps::Addr;
use crate::packet::{ETH_LEN, Wire};
use crate::underlay::{Underlay, V4, V6};

/// Length of an 802.1Q tag.
const TAG: usize = 4;

/// The first bytes of a frame, from its Ethernet header on.
#[derive(Clone, Copy, Debug)]
pub struct Head<'p>(pub &'p [u8]);

/// What is in front of an inner frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Outer source.
    pub source: Addr,
    /// Outer destination.
    pub destination: Addr,
    /// The VNI, 24 bits.
    pub vni: u32,
    /// Where the inner Ethernet header is.
    pub inner: usize,
}

/// What a filter asks of the IP header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPacket {
    /// Source.
    pub source: Addr,
    /// Destination.
    pub destination: Addr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Where the payload is; `None` where a fragment's or an option's header keeps its ports from sight.
    pub payload: Option<usize>,
}

impl Head<'_> {
    /// The bytes at `offset`, or `None` past the end.
    #[inline(always)]
    pub fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        if offset + size_of::<T>() > self.0.len() {
            return None;
        }
        // SAFETY: the line above checked the bounds; `Wire` is valid for any bytes.
        Some(unsafe { self.0.as_ptr().add(offset).cast::<T>().read_unaligned() })
    }

    /// The Ethernet header at `offset`, and where what it announces begins, behind a tag if there is one.
    #[inline(always)]
    pub fn ethernet(&self, offset: usize) -> Option<(Eth, Be16, usize)> {
        let eth: Eth = self.load(offset)?;
        match eth.ether_type {
            ETH_P_8021Q | ETH_P_8021AD => {
                Some((eth, self.load(offset + ETH_LEN + 2)?, offset + ETH_LEN + TAG))
            }
            ether_type => Some((eth, ether_type, offset + ETH_LEN)),
        }
    }

    /// The tunnel of a frame that is known to be in one.
    #[inline(always)]
    pub fn tunnel(&self) -> Option<Tunnel> {
        let (_, ether_type, at) = self.ethernet(0)?;
        match ether_type {
            ETH_P_IP => self.tunnel_of::<V4, Ipv4>(at),
            ETH_P_IPV6 => self.tunnel_of::<V6, Ipv6>(at),
            _ => None,
        }
    }

    #[inline(always)]
    fn tunnel_of<U: Underlay, H: Inner>(&self, at: usize) -> Option<Tunnel> {
        let ip: H = self.load(at)?;
        let vxlan: Vxlan = self.load(at + U::VXLAN - ETH_LEN)?;
        Some(Tunnel {
            source: H::addr(ip.source()),
            destination: H::addr(ip.destination()),
            vni: vxlan.vni.get() >> 8,
            inner: at + U::INNER_ETH - ETH_LEN,
        })
    }

    /// The IP header behind the Ethernet header at `offset`.
    #[inline(always)]
    pub fn packet(&self, offset: usize) -> Option<IpPacket> {
        let (_, ether_type, at) = self.ethernet(offset)?;
        match ether_type {
            ETH_P_IP => {
                let ip: Ipv4 = self.load(at)?;
                let plain = ip.head.version_tos.first() == 0x45;
                let first = ip.head.frags.get() & Ipv4::FRAGMENT_OFFSET == 0;
                Some(described(&ip, at, plain && first))
            }
            ETH_P_IPV6 => Some(described(&self.load::<Ipv6>(at)?, at, true)),
            _ => None,
        }
    }

    /// TOS or traffic class of the packet behind the Ethernet header at `offset`, without congestion marks.
    pub fn dscp(&self, offset: usize) -> Option<u8> {
        let (_, ether_type, at) = self.ethernet(offset)?;
        let tos = match ether_type {
            ETH_P_IP => self.load::<Ipv4>(at)?.tos(),
            ETH_P_IPV6 => self.load::<Ipv6>(at)?.tos(),
            _ => return None,
        };
        Some(tos & !ecn::MASK)
    }

    /// Source and destination port of `packet`, if its protocol has any.
    #[inline(always)]
    pub fn ports(&self, packet: &IpPacket) -> Option<(Be16, Be16)> {
        use crate::headers::protocol::{SCTP, TCP, UDP};
        let at = packet.payload.filter(|_| matches!(packet.protocol, TCP | UDP | SCTP))?;
        Some((self.load(at)?, self.load(at + 2)?))
    }
}

#[inline(always)]
fn described<H: Inner>(ip: &H, at: usize, plain: bool) -> IpPacket {
    IpPacket {
        source: H::addr(ip.source()),
        destination: H::addr(ip.destination()),
        protocol: ip.protocol(),
        payload: plain.then_some(at + H::LEN),
    }
}
