//! Which packets a listener hears of.

use super::{Event, Head, IpPacket};
use crate::counters::{Hook, Reason};
use crate::headers::{Be16, Be32, Ipv4, Ipv6, Mac};
use crate::inner::Inner;
use crate::maps::{Addr, Kind, MacKey, NO_NETWORK, Network, NetworkId, VtepId};
use crate::tables::Tables;

/// What a packet has to be. All that is said has to hold.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// A bit for each [`Reason`].
    pub reasons: u64,
    /// A bit for each [`Hook`].
    pub hooks: u32,
    /// Whose packet; [`NO_NETWORK`]: anybody's.
    pub network: NetworkId,
    /// The VNI on the underlay, elsewhere that of the packet's network; [`ANY_VNI`](Self::ANY_VNI): any.
    pub vni: u32,
    /// Inner source or destination, as far as [`mask`](Self::mask) goes.
    pub address: Addr,
    /// Bits of `address` that count.
    pub mask: Addr,
    /// VTEPs: the packet is in a tunnel from one of them, or elsewhere from or to what is behind it; both all zero: any.
    pub vteps: [Addr; 2],
    /// Source or destination of the inner frame; all zero: any.
    pub mac: [u8; 6],
    /// Source or destination port of the inner packet; 0: any.
    pub port: Be16,
    /// IP protocol of the inner packet; 0: any.
    pub protocol: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

const NOBODY: Addr = Addr([0; 16]);

impl Filter {
    /// [`vni`](Self::vni) of any packet.
    pub const ANY_VNI: u32 = u32::MAX;

    /// The bit of a hook.
    #[inline(always)]
    pub const fn hook(hook: Hook) -> u32 {
        1 << hook as u32
    }

    /// The bit of a reason.
    #[inline(always)]
    pub const fn reason(reason: Reason) -> u64 {
        1 << reason as u64
    }

    /// Whether it asks for anything that only the packet's headers can tell.
    #[inline(always)]
    fn is_about_headers(&self) -> bool {
        self.vni != Self::ANY_VNI
            || self.mask != NOBODY
            || self.vteps != [NOBODY; 2]
            || self.mac != [0; 6]
            || self.port.0 != 0
            || self.protocol != 0
    }

    /// Whether a packet of `network` with these first bytes, of which `event` tells, is one of them.
    #[inline(always)]
    pub fn takes<T: Tables>(&self, t: &T, network: Option<&Network>, event: &Event, head: &Head<'_>) -> bool {
        let hook = self.hooks & 1u32.wrapping_shl(u32::from(event.hook)) != 0;
        let reason = self.reasons & 1u64.wrapping_shl(u32::from(event.reason)) != 0;
        let whose = self.network == NO_NETWORK || self.network == event.network;
        hook && reason && whose && (!self.is_about_headers() || self.fits(t, network, event, head))
    }

    #[inline(always)]
    fn fits<T: Tables>(&self, t: &T, network: Option<&Network>, event: &Event, head: &Head<'_>) -> bool {
        let from_underlay =
            event.hook == Hook::UnderlayIngress as u8 || event.hook == Hook::UnderlayXdp as u8;
        let tunnel = if from_underlay { head.tunnel() } else { None };
        let at = tunnel.map_or(0, |tunnel| tunnel.inner);
        let vni = tunnel.map_or(network.map_or(0, |network| network.vni), |tunnel| tunnel.vni);
        if self.vni != Self::ANY_VNI && self.vni != vni {
            return false;
        }
        let Some((eth, ..)) = head.ethernet(at) else { return false };
        let mac = Mac::from_bytes(&self.mac);
        if self.mac != [0; 6] && eth.src != mac && eth.dst != mac {
            return false;
        }
        let packet = head.packet(at);
        if !self.fits_packet(head, packet.as_ref()) {
            return false;
        }
        if self.vteps == [NOBODY; 2] {
            return true;
        }
        if let Some(tunnel) = tunnel {
            return self.is_vtep(&tunnel.source);
        }
        let Some(network) = network else { return false };
        if network.kind == Kind::L2 as u8 {
            let behind = |mac| t.station(&MacKey::of(network.id, mac)).map(|station| station.vtep);
            return self.leads(t, behind(eth.src)) || self.leads(t, behind(eth.dst));
        }
        packet.is_some_and(|packet| {
            self.leads(t, route(t, network, packet.source))
                || self.leads(t, route(t, network, packet.destination))
        })
    }

    #[inline(always)]
    fn fits_packet(&self, head: &Head<'_>, packet: Option<&IpPacket>) -> bool {
        if self.mask == NOBODY && self.port.0 == 0 && self.protocol == 0 {
            return true;
        }
        let Some(packet) = packet else { return false };
        if self.protocol != 0 && packet.protocol != self.protocol {
            return false;
        }
        if !self.covers(&packet.source) && !self.covers(&packet.destination) {
            return false;
        }
        if self.port.0 == 0 {
            return true;
        }
        head.ports(packet).is_some_and(|(from, to)| from == self.port || to == self.port)
    }

    #[inline(always)]
    fn covers(&self, address: &Addr) -> bool {
        let ([a, b, c, d], [e, f, g, h], [i, j, k, l]) =
            (address.as_v6(), self.address.as_v6(), self.mask.as_v6());
        (a.0 ^ e.0) & i.0 | (b.0 ^ f.0) & j.0 | (c.0 ^ g.0) & k.0 | (d.0 ^ h.0) & l.0 == 0
    }

    #[inline(always)]
    fn is_vtep(&self, address: &Addr) -> bool {
        let [a, b] = self.vteps;
        *address != NOBODY && (*address == a || *address == b)
    }

    /// Whether `id` is one of the VTEPs.
    #[inline(always)]
    fn leads<T: Tables>(&self, t: &T, id: Option<VtepId>) -> bool {
        id.and_then(|id| t.vtep(id)).is_some_and(|vtep| self.is_vtep(&vtep.addr))
    }
}

impl Default for Filter {
    /// Of every packet.
    fn default() -> Self {
        Self {
            reasons: u64::MAX,
            hooks: u32::MAX,
            network: NO_NETWORK,
            vni: Self::ANY_VNI,
            address: NOBODY,
            mask: NOBODY,
            vteps: [NOBODY; 2],
            mac: [0; 6],
            port: Be16(0),
            protocol: 0,
            reserved: [0; 3],
        }
    }
}

/// Where an inner address is routed to.
#[inline(always)]
fn route<T: Tables>(t: &T, network: &Network, address: Addr) -> Option<VtepId> {
    match address.as_v6() {
        [Be32(0), Be32(0), Addr::MAPPED, v4] => Ipv4::route(t, network, v4),
        v6 => Ipv6::route(t, network, v6),
    }
}
