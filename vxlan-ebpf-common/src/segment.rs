//! Frames of a segment: the stations that send and receive them, and the ways between.
//!
//! Only frames from a known station to a known station take the fast path; who that is, and behind what, the
//! kernel's bridge and vxlan device learn. So what they have to see is theirs: a station's first frame, one that
//! comes from elsewhere, and one of each station in [`CONFIRM`].

use crate::counters::Reason;
use crate::decap;
use crate::ecn;
use crate::encap;
use crate::headers::{ETH_P_IP, ETH_P_IPV6, Eth, Ipv4, Ipv6, Mac};
use crate::hooks::{self, Bridged, Forward};
use crate::inner::{self, Inner, largest_packet};
use crate::maps::{LOCAL_VTEP, MacKey, Network, Station, link, moved, station, tick_mark};
use crate::packet::{ETH_LEN, Packet};
use crate::tables::Tables;
use crate::underlay::{self, OuterIp, Underlay};

/// After how long the kernel gets a frame of a station again, in nanoseconds.
pub const CONFIRM: u64 = 1_000_000_000;

/// Whether a MAC stands for several stations (the lowest bit of its first byte, IEEE 802).
#[inline(always)]
const fn is_group(Mac([first, _, _]): Mac) -> bool {
    first.first() & 1 != 0
}

/// What a station behind a port sent.
#[inline(always)]
pub(crate) fn from_port<'t, P: Packet, T: Tables>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    let eth = hooks::untagged(p)?;
    let sender = sender(t, network, &eth)?;
    if sender.ifindex != p.ifindex() {
        return Err(elsewhere(t, sender));
    }
    if sender.flags & station::HOOKED_OUT != 0 {
        return Err(Reason::Hooked);
    }
    confirm(t, sender, moved::AWAY)?;
    let receiver = receiver(t, network, &eth)?;
    match eth.ether_type {
        ETH_P_IP => switch::<P, T, Ipv4>(p, t, network, &eth, receiver),
        ETH_P_IPV6 => switch::<P, T, Ipv6>(p, t, network, &eth, receiver),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn switch<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &Network,
    eth: &Eth,
    receiver: &'t Station,
) -> Result<Forward<'t>, Reason> {
    let ip: H = hooks::checked(p)?;
    if receiver.vtep != LOCAL_VTEP {
        let vtep = t.vtep(receiver.vtep).ok_or(Reason::NoVtep)?;
        return encap::encapsulate(p, network, vtep, Some(eth), (&ip, &ip)).map(Forward::Encapsulated);
    }
    if receiver.ifindex == p.ifindex() {
        return Err(Reason::SamePort);
    }
    find_port(p, t, receiver)?;
    to_port(p, &ip, receiver)?;
    Ok(Forward::Bridged(receiver, Bridged::Switched))
}

/// What the kernel's bridge sends out of a port, or to the vxlan device: looked at, never forwarded.
///
/// Somebody may answer it before the agent has heard that its sender is elsewhere now. Where it came in there
/// may be no program yet.
#[inline(always)]
pub(crate) fn from_bridge<P: Packet, T: Tables>(p: &P, t: &T, network: &Network, eth: &Eth) -> Reason {
    let from = p.arrived_by();
    match t.station(&MacKey::of(network.id, eth.src)) {
        Some(sender) if from != 0 && !is_at(t, network, sender, from) => elsewhere(t, sender),
        _ => Reason::Passed,
    }
}

/// Whether frames of `station` arrive by the interface `from`: its port; or the vxlan device, or the underlay,
/// if a program has taken them out of the tunnel.
#[inline(always)]
fn is_at<T: Tables>(t: &T, network: &Network, station: &Station, from: u32) -> bool {
    if station.ifindex != 0 {
        return station.ifindex == from;
    }
    from == network.local4.ifindex || from == network.local6.ifindex || t.link(from).flags & link::DEVICE != 0
}

/// What the kernel's vxlan device took out of a tunnel. It has learnt who sent it.
#[inline(always)]
pub(crate) fn from_tunnel<'t, P: Packet, T: Tables>(
    p: &mut P,
    t: &'t T,
    network: &Network,
    eth: &Eth,
) -> Result<Forward<'t>, Reason> {
    let sender = sender(t, network, eth)?;
    if sender.ifindex != 0 {
        return Err(elsewhere(t, sender));
    }
    confirm(t, sender, moved::BACK)?;
    let receiver = behind_port(p, t, network, eth)?;
    match eth.ether_type {
        ETH_P_IP => deliver::<P, Ipv4>(p, receiver),
        ETH_P_IPV6 => deliver::<P, Ipv6>(p, receiver),
        _ => Err(Reason::NotIp),
    }?;
    Ok(Forward::Bridged(receiver, Bridged::Delivered))
}

#[inline(always)]
fn deliver<P: Packet, H: Inner>(p: &mut P, receiver: &Station) -> Result<(), Reason> {
    let ip: H = hooks::checked(p)?;
    to_port(p, &ip, receiver)
}

/// What arrived in a tunnel.
#[inline(always)]
pub(crate) fn from_underlay<'t, P: Packet, T: Tables, U: Underlay>(
    p: &mut P,
    t: &'t T,
    network: &Network,
    outer: &OuterIp,
) -> Result<Forward<'t>, Reason> {
    let (eth, receiver) = arrived::<P, T, U>(p, t, network, outer)?;
    match eth.ether_type {
        ETH_P_IP => extract::<P, U, Ipv4>(p, network, outer, &eth, receiver),
        ETH_P_IPV6 => extract::<P, U, Ipv6>(p, network, outer, &eth, receiver),
        _ => Err(Reason::NotIp),
    }?;
    address_to(p, receiver);
    Ok(Forward::Bridged(receiver, Bridged::Decapsulated))
}

/// Takes what arrived in a tunnel out of it, with the outer MACs, by which the kernel sees that it is for this
/// host; its own are left with the mark.
#[inline(always)]
pub(crate) fn strip<P: Packet, T: Tables, U: Underlay>(
    p: &mut P,
    t: &T,
    network: &Network,
    outer: &OuterIp,
) -> Result<(), Reason> {
    let mark = t.node().map_or(0, |node| decap::mark(node, network.id));
    // Should the receiver be elsewhere by the time that the frame is delivered, the device's bridge says where.
    if mark == 0 || device(network) == 0 {
        return Err(Reason::SwitchedOff);
    }
    let (eth, receiver) = arrived::<P, T, U>(p, t, network, outer)?;
    let Some(tunnels) = p.load(0) else { return Err(Reason::Truncated) };
    let tunnels: Eth = tunnels;
    let with = Eth { ether_type: eth.ether_type, ..tunnels };
    match eth.ether_type {
        ETH_P_IP => extract::<P, U, Ipv4>(p, network, outer, &with, receiver),
        ETH_P_IPV6 => extract::<P, U, Ipv6>(p, network, outer, &with, receiver),
        _ => Err(Reason::NotIp),
    }?;
    p.keep(mark, &eth).ok_or(Reason::WriteFailed)
}

/// The interface of the network's vxlan device; 0: there is none.
#[inline(always)]
const fn device(network: &Network) -> u32 {
    if network.local4.device != 0 { network.local4.device } else { network.local6.device }
}

/// What [`strip`] has taken out of its tunnel, and the kernel perhaps merged since, gets its Ethernet header `eth`
/// back. If it cannot go to a port right away, the bridge behind the vxlan device has it.
#[inline(always)]
pub(crate) fn from_xdp<'t, P: Packet, T: Tables>(
    p: &mut P,
    t: &'t T,
    network: &'t Network,
    eth: &Eth,
) -> Result<Forward<'t>, Reason> {
    p.store(0, eth).ok_or(Reason::WriteFailed)?;
    let receiver = match eth.ether_type {
        ETH_P_IP => stripped_for::<P, T, Ipv4>(p, t, network, eth),
        _ => stripped_for::<P, T, Ipv6>(p, t, network, eth),
    };
    match receiver {
        Ok(receiver) => Ok(Forward::Bridged(receiver, Bridged::Delivered)),
        Err(_) if network.local4.device != 0 => Ok(Forward::HandedOver(&network.local4)),
        Err(_) => Ok(Forward::HandedOver(&network.local6)),
    }
}

#[inline(always)]
fn stripped_for<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &Network,
    eth: &Eth,
) -> Result<&'t Station, Reason> {
    let receiver = behind_port(p, t, network, eth)?;
    let ip: H = hooks::checked(p)?;
    to_port(p, &ip, receiver)?;
    Ok(receiver)
}

/// Checks a frame that is in its tunnel, but for the packet in it: its Ethernet header, and whom it is for.
#[inline(always)]
fn arrived<'t, P: Packet, T: Tables, U: Underlay>(
    p: &P,
    t: &'t T,
    network: &Network,
    outer: &OuterIp,
) -> Result<(Eth, &'t Station), Reason> {
    decap::check_lengths::<P, U>(p, outer)?;
    let Some(eth) = p.load(U::INNER_ETH) else { return Err(decap::missing(p, U::INNER_IP)) };
    let eth: Eth = eth;
    let sender = sender(t, network, &eth)?;
    let vtep = t.vtep(sender.vtep).ok_or(Reason::NoVtep)?;
    if sender.vtep == LOCAL_VTEP || vtep.family == 0 || vtep.addr != outer.source {
        // What a stranger sends says nothing of anybody.
        let known = t.vtep_id(network.id, &outer.source).is_some();
        return Err(if known { elsewhere(t, sender) } else { Reason::UnknownVtep });
    }
    decap::check_whole::<P, U>(p, network, outer, vtep)?;
    // What the kernel's bridge has to see is noted behind the vxlan device, where it is next.
    if sender.moved != moved::NOT {
        t.note_moved(sender, moved::BACK);
        return Err(Reason::Moved);
    }
    if is_due(t, sender).is_some() {
        return Err(Reason::Unconfirmed);
    }
    Ok((eth, behind_port(p, t, network, &eth)?))
}

/// Takes the frame out of its tunnel, as it is but for congestion marks, with the Ethernet header `eth`.
#[inline(always)]
fn extract<P: Packet, U: Underlay, H: Inner>(
    p: &mut P,
    network: &Network,
    outer: &OuterIp,
    eth: &Eth,
    receiver: &Station,
) -> Result<(), Reason> {
    p.linearize(U::INNER_IP + H::READ);
    let Some(ip) = p.load(U::INNER_IP) else { return Err(decap::missing(p, U::INNER_IP + H::LEN)) };
    let ip: H = ip;
    let len = p.length() - U::INNER_IP as u32;
    ip.check(len)?;
    if len > u32::from(receiver.mtu) {
        return Err(Reason::TooBig);
    }
    let tos = ecn::decapsulate(outer.tos, ip.tos()).ok_or(Reason::BadEcn)?;
    underlay::check_sum::<P, U>(p, network.local(U::FAMILY), || inner::sum(p, &ip, U::INNER_IP, len))?;
    decap::uncover::<P, U, H>(p, eth, (&ip, &ip.with_tos(tos)))
}

/// Who sent a frame, if that is known.
#[inline(always)]
fn sender<'t, T: Tables>(t: &'t T, network: &Network, eth: &Eth) -> Result<&'t Station, Reason> {
    t.station(&MacKey::of(network.id, eth.src)).ok_or(Reason::UnknownStation)
}

/// Notes that `station` is elsewhere: the kernel's bridge is given the frame, and says where.
#[inline(always)]
fn elsewhere<T: Tables>(t: &T, station: &Station) -> Reason {
    t.note_moved(station, moved::AWAY);
    Reason::Moved
}

/// Gives the kernel's bridge a frame of `station` if it is time to, or if there was one from elsewhere. It is
/// from where the station is known to be if what is noted of that is no less than `back`.
#[inline(always)]
fn confirm<T: Tables>(t: &T, station: &Station, back: u8) -> Result<(), Reason> {
    if station.moved != moved::NOT {
        if station.moved >= back {
            t.note_moved(station, moved::NOT);
        }
        return Err(Reason::Moved);
    }
    match is_due(t, station) {
        Some(now) => {
            t.note_confirmed(station, now);
            Err(Reason::Unconfirmed)
        }
        None => Ok(()),
    }
}

/// The time, if the kernel has had no frame of `station` for long enough.
#[inline(always)]
fn is_due<T: Tables>(t: &T, station: &Station) -> Option<u64> {
    let tick = t.tick() as u32;
    if station.tick == tick && station.confirmed != 0 {
        return None;
    }
    let now = t.now();
    if station.confirmed == 0 || now.wrapping_sub(station.confirmed) >= CONFIRM {
        return Some(now.max(1));
    }
    t.note_tick(station, tick);
    None
}

/// Whom a frame is for, if that is known.
#[inline(always)]
fn receiver<'t, T: Tables>(t: &'t T, network: &Network, eth: &Eth) -> Result<&'t Station, Reason> {
    if is_group(eth.dst) {
        return Err(Reason::Flooded);
    }
    let receiver = t.station(&MacKey::of(network.id, eth.dst)).ok_or(Reason::UnknownStation)?;
    if receiver.moved != moved::NOT {
        return Err(Reason::Moved);
    }
    if receiver.flags & station::HOOKED_IN != 0 {
        return Err(Reason::Hooked);
    }
    Ok(receiver)
}

/// As [`receiver`], if that is behind a port of this node.
#[inline(always)]
fn behind_port<'t, P: Packet, T: Tables>(
    p: &P,
    t: &'t T,
    network: &Network,
    eth: &Eth,
) -> Result<&'t Station, Reason> {
    let receiver = receiver(t, network, eth)?;
    if receiver.ifindex == 0 {
        return Err(Reason::NoEndpoint);
    }
    find_port(p, t, receiver)?;
    Ok(receiver)
}

/// Looks whether the port of `receiver` is there, once in two ticks; see [`decap::receiver`].
#[inline(always)]
fn find_port<P: Packet, T: Tables>(p: &P, t: &T, receiver: &Station) -> Result<(), Reason> {
    let tick = tick_mark(t.tick());
    if receiver.found != tick {
        if !p.has_interface(receiver.ifindex) {
            return Err(Reason::NoEndpoint);
        }
        t.note_port_found(receiver, tick);
    }
    Ok(())
}

/// Makes a bare frame ready for the receiver's port, if it fits.
#[inline(always)]
fn to_port<P: Packet, H: Inner>(p: &mut P, ip: &H, receiver: &Station) -> Result<(), Reason> {
    let largest = largest_packet(p, ip, ETH_LEN, p.length() - ETH_LEN as u32)?;
    if largest > u32::from(receiver.mtu) {
        return Err(Reason::TooBig);
    }
    address_to(p, receiver);
    Ok(())
}

/// Has the other end of a veth take a frame that it gets right away: it does not look whose MAC it has
/// (`eth_type_trans` would, v6.18), and the station has said that it is there.
#[inline(always)]
fn address_to<P: Packet>(p: &mut P, receiver: &Station) {
    if receiver.flags & station::PEER != 0 {
        p.address_to_host();
    }
}
