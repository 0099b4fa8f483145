//! From an inner packet to one on the underlay.

use crate::checksum::Sum;
use crate::counters::Reason;
use crate::headers::{Be16, Eth, Mac};
use crate::inner::{self, Inner, largest_packet};
use crate::maps::{Family, MARKS_ROUTE, Network, Vtep};
use crate::packet::{ETH_LEN, Packet};
use crate::profile;
use crate::underlay::{self, Encap, Underlay, V4, V6};

/// Encapsulates `p`, whose IP header is `old` and shall be `new`, for `vtep`. In the tunnel it has the
/// Ethernet header `frame`, or else that of the VTEPs.
#[inline(always)]
pub(crate) fn encapsulate<'t, P: Packet, H: Inner>(
    p: &mut P,
    network: &Network,
    vtep: &'t Vtep,
    frame: Option<&Eth>,
    (old, new): (&H, &H),
) -> Result<&'t Vtep, Reason> {
    if network.flags & MARKS_ROUTE != 0 && p.fwmark() != 0 {
        return Err(Reason::Marked);
    }
    match vtep.family {
        4 => over::<P, H, V4>(p, network, vtep, frame, (old, new)),
        6 => over::<P, H, V6>(p, network, vtep, frame, (old, new)),
        _ => Err(Reason::NoVtep),
    }?;
    Ok(vtep)
}

#[inline(always)]
fn over<P: Packet, H: Inner, U: Underlay>(
    p: &mut P,
    network: &Network,
    vtep: &Vtep,
    frame: Option<&Eth>,
    (old, new): (&H, &H),
) -> Result<(), Reason> {
    let local = network.local(U::FAMILY);
    if let Some(reason) = local.refuses_encap().or(vtep.refuses_encap()) {
        return Err(reason);
    }
    let inner_len = p.length() - ETH_LEN as u32;
    let largest = largest_packet(p, old, ETH_LEN, inner_len)?;
    if largest > u32::from(vtep.mtu) || !underlay::fits(inner_len) {
        return Err(Reason::TooBig);
    }
    let hash = p.flow_hash();
    let encap = Encap {
        inner_len,
        eth: match frame {
            Some(frame) => *frame,
            None => Eth {
                dst: Mac::from_bytes(&vtep.mac),
                src: Mac::from_bytes(&local.mac),
                ether_type: H::ETHER_TYPE,
            },
        },
        tos: profile::tos(local, new),
        ttl: profile::ttl(local, vtep, new),
        frags: match U::FAMILY {
            Family::V4 => profile::frags(local, vtep, new),
            Family::V6 => Be16(0),
        },
        label: match U::FAMILY {
            Family::V4 => 0,
            Family::V6 => profile::label(local, new),
        },
        source_port: underlay::source_port(hash, local.port_min, local.port_max),
        id: match U::FAMILY {
            Family::V4 => identification(p, old, hash),
            Family::V6 => 0,
        },
        inner_sum: match profile::has_checksum(local) {
            true => inner::sum(p, new, ETH_LEN, inner_len)?,
            false => Sum::default(),
        },
    };
    p.make_room(U::FAMILY).ok_or(Reason::NoRoom)?;
    underlay::write::<P, U>(p, network, (local, vtep), &encap).ok_or(Reason::WriteFailed)?;
    old.replace(new, p, U::INNER_IP).ok_or(Reason::WriteFailed)
}

/// Keeps apart the fragments of packets, should the underlay have to cut them: as the sender did
/// within its flow, shifted by the flow.
#[inline(always)]
fn identification<P: Packet, H: Inner>(p: &P, ip: &H, hash: u32) -> u16 {
    match ip.id() {
        0 => p.random() as u16,
        id => id.wrapping_add(hash as u16),
    }
}
