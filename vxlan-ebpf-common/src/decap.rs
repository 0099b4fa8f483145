//! From a packet on the underlay to an inner packet for a local pod.

use crate::counters::Reason;
use crate::ecn;
use crate::flow::{self, Recognised, Way};
use crate::headers::{Be16, Eth, Mac, Udp, Vxlan};
use crate::inner::{self, Inner, fills, largest_packet};
use crate::maps::{
    Addr, Endpoint, Family, LocalVtep, NO_HANDOVER, Network, NetworkId, Node, Vtep, endpoint, local, moment,
    tick_mark, vtep,
};
use crate::packet::{ETH_LEN, Packet};
use crate::tables::Tables;
use crate::underlay::{self, OuterIp, Underlay};

/// [`Packet::note`] of what has been left to the host stack in its tunnel, to see whether it comes out of it.
const LEFT: u16 = 0x5658;

/// Where a packet goes that has been taken out of its tunnel.
pub(crate) enum Out<'t> {
    /// To this pod.
    Pod(&'t Endpoint),
    /// To the host stack, as if it came out of the vxlan device of this end of the tunnel.
    Stack(&'t LocalVtep),
}

/// A header that could not be loaded: the frame ends before it, or a program cannot get at it.
#[inline(always)]
pub(crate) fn missing<P: Packet>(p: &P, end: usize) -> Reason {
    if p.length() < end as u32 { Reason::Truncated } else { Reason::Scattered }
}

/// Checks the headers that make a packet VXLAN of this network. What is not for us is left alone
/// without a word.
#[inline(always)]
pub(crate) fn outer<P: Packet, U: Underlay>(p: &mut P, network: &Network) -> Result<OuterIp, Reason> {
    p.linearize(U::INNER_IP);
    let outer = U::parse(p, network.local(U::FAMILY))?;
    let udp: Udp = p.load(U::UDP).ok_or(Reason::NotVxlan)?;
    if udp.dst != network.port() {
        return Err(Reason::NotVxlan);
    }
    let vxlan: Vxlan = p.load(U::VXLAN).ok_or_else(|| missing(p, U::INNER_ETH))?;
    underlay::check_vxlan(network, &vxlan)?;
    if !outer.valid {
        return Err(Reason::BadChecksum);
    }
    Ok(outer)
}

/// Why a packet is refused: that a stranger sent it comes before all else that may be wrong with it.
///
/// For an accepted one the check of its inner source has answered that.
#[inline(always)]
pub(crate) fn refusal<T: Tables>(t: &T, network: &Network, outer: &OuterIp, reason: Reason) -> Reason {
    match reason {
        // Accepted before; what failed then was to change it.
        Reason::NoRoom | Reason::WriteFailed => reason,
        _ if t.vtep_id(network.id, &outer.source).is_none() => Reason::UnknownVtep,
        _ => reason,
    }
}

/// Checks the rest of the tunnel's headers and returns the EtherType of the inner packet.
#[inline(always)]
pub(crate) fn inner_type<P: Packet, U: Underlay>(
    p: &P,
    network: &Network,
    outer: &OuterIp,
) -> Result<Be16, Reason> {
    let inner: Eth = p.load(U::INNER_ETH).ok_or_else(|| missing(p, U::INNER_IP))?;
    let own = Mac::from_bytes(&network.local(U::FAMILY).mac);
    // A frame from ourselves has gone round in a loop (`vxlan_set_mac`, v6.18).
    if inner.dst != own || inner.src == own {
        return Err(Reason::OtherMac);
    }
    check_lengths::<P, U>(p, outer)?;
    Ok(inner.ether_type)
}

/// Checks that the outer headers say how long the packet is, unless the kernel has taken several together.
#[inline(always)]
pub(crate) fn check_lengths<P: Packet, U: Underlay>(p: &P, outer: &OuterIp) -> Result<(), Reason> {
    if p.segment_size() == 0 && !outer.fragment {
        let udp: Udp = p.load(U::UDP).ok_or(Reason::Truncated)?;
        let whole = p.length() - ETH_LEN as u32 - U::IP_LEN as u32;
        fills(outer.payload, whole, underlay::TUNNEL_LEN)?;
        fills(u32::from(udp.len.get()), whole, underlay::TUNNEL_LEN)?;
    }
    Ok(())
}

/// Why a packet from `sender` stays in its tunnel for the kernel, whatever is in it.
#[inline(always)]
pub(crate) fn check_whole<P: Packet, U: Underlay>(
    p: &P,
    network: &Network,
    outer: &OuterIp,
    sender: &Vtep,
) -> Result<(), Reason> {
    if sender.flags & vtep::IPSEC_IN != 0 {
        return Err(Reason::Ipsec);
    }
    if network.local(U::FAMILY).flags & local::HOOKED_DECAP != 0 {
        return Err(Reason::Hooked);
    }
    if outer.fragment {
        return Err(Reason::Fragment);
    }
    if p.segment_size() != 0 {
        return Err(Reason::Aggregate);
    }
    Ok(())
}

/// Takes the inner packet out of the tunnel, ready for the pod or for the host stack.
#[inline(always)]
pub(crate) fn decapsulate<'t, P: Packet, T: Tables, U: Underlay, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &'t Network,
    outer: &OuterIp,
) -> Result<Out<'t>, Reason> {
    p.linearize(U::INNER_IP + H::READ);
    let (endpoint, sender, old, new) = accept::<P, T, U, H>(p, t, network, outer)?;
    match flow::recognise(p, t, network, (&old, U::INNER_IP), Way::Ingress) {
        Recognised::Open => {}
        Recognised::Alone => {
            return hand_over::<P, T, U, H>(p, t, network, sender, (&old, &new)).map(Out::Stack);
        }
        Recognised::Kernel(reason) => return Err(reason),
    }
    p.remove_room(U::FAMILY, H::FAMILY).ok_or(Reason::NoRoom)?;
    readdress(p, endpoint, &old, &new)?;
    Ok(Out::Pod(endpoint))
}

/// Takes the inner packet out of the tunnel for the host stack, if that is known to let in what `sender` sends.
///
/// What the kernel does with a tunnel's packet before its device has it, it does with all of one VTEP
/// ([`NO_HANDOVER`] where it may not), so one in a second shows it.
#[inline(always)]
fn hand_over<'t, P: Packet, T: Tables, U: Underlay, H: Inner>(
    p: &mut P,
    t: &T,
    network: &'t Network,
    sender: &Vtep,
    (old, new): (&H, &H),
) -> Result<&'t LocalVtep, Reason> {
    let end = network.local(U::FAMILY);
    // Rules that come while no agent looks might tell its packets apart.
    if network.flags & NO_HANDOVER != 0 || end.device == 0 || !t.is_watched() {
        return Err(Reason::Unverified);
    }
    if !sender.is_heard(t.now(), t.generation(network.id)) {
        if p.note() == 0 {
            p.set_note(LEFT);
        }
        return Err(Reason::Unverified);
    }
    if !p.has_interface(end.device) {
        return Err(Reason::Unverified);
    }
    let eth: Eth = p.load(U::INNER_ETH).ok_or(Reason::Truncated)?;
    uncover::<P, U, H>(p, &eth, (old, new))?;
    Ok(end)
}

/// Notes that the host stack lets in what the VTEP of `source` sends, if this packet says so.
#[inline(always)]
pub(crate) fn hear<P: Packet, T: Tables, H: Inner>(p: &mut P, t: &T, network: &Network, source: H::Address) {
    if p.note() != LEFT {
        return;
    }
    p.set_note(0);
    let Some(id) = H::route(t, network, source) else { return };
    if let Some(vtep) = t.vtep(id) {
        t.note_heard(vtep, moment(t.now()), t.generation(network.id));
    }
}

/// Takes the inner packet out of the tunnel, with this Ethernet header. TTL or hop limit falls where the packet
/// is routed.
#[inline(always)]
pub(crate) fn uncover<P: Packet, U: Underlay, H: Inner>(
    p: &mut P,
    eth: &Eth,
    (old, new): (&H, &H),
) -> Result<(), Reason> {
    p.remove_room(U::FAMILY, H::FAMILY).ok_or(Reason::NoRoom)?;
    p.store(0, eth).ok_or(Reason::WriteFailed)?;
    if old.tos() != new.tos() {
        old.replace(&old.with_tos(new.tos()), p, ETH_LEN).ok_or(Reason::WriteFailed)?;
    }
    Ok(())
}

/// Takes the inner packet out of the tunnel, with the outer MACs, and marks it.
#[inline(always)]
pub(crate) fn strip<P: Packet, T: Tables, U: Underlay, H: Inner>(
    p: &mut P,
    t: &T,
    network: &Network,
    outer: &OuterIp,
) -> Result<(), Reason> {
    let (_, _, old, new) = accept::<P, T, U, H>(p, t, network, outer)?;
    match flow::recognise(p, t, network, (&old, U::INNER_IP), Way::Ingress) {
        Recognised::Open => {}
        Recognised::Alone => return Err(Reason::Unverified),
        Recognised::Kernel(reason) => return Err(reason),
    }
    let mark = t.node().map_or(0, |node| mark(node, network.id));
    if mark == 0 {
        return Err(Reason::SwitchedOff);
    }
    let eth: Eth = p.load(0).ok_or(Reason::Truncated)?;
    uncover::<P, U, H>(p, &Eth { ether_type: H::ETHER_TYPE, ..eth }, (&old, &new))?;
    p.set_mark(mark).ok_or(Reason::WriteFailed)
}

/// What XDP leaves with a packet of `network` that it has taken out of its tunnel; 0: nothing, and nobody
/// would believe it.
#[inline(always)]
pub(crate) const fn mark(node: &Node, network: NetworkId) -> u64 {
    if node.mark == 0 { 0 } else { (node.mark as u64) << 32 | network as u64 }
}

/// Checks the inner packet: the pod that it is for, the VTEP that it is from, its header, and the header with
/// which it leaves the tunnel and is routed.
#[inline(always)]
fn accept<'t, P: Packet, T: Tables, U: Underlay, H: Inner>(
    p: &P,
    t: &'t T,
    network: &Network,
    outer: &OuterIp,
) -> Result<(&'t Endpoint, &'t Vtep, H, H), Reason> {
    let ip: H = p.load(U::INNER_IP).ok_or_else(|| missing(p, U::INNER_IP + H::LEN))?;
    ip.check_version()?;
    let sender = sender::<T, U, H>(t, network, &outer.source, ip.source()).ok_or(Reason::ForeignSource)?;
    check_whole::<P, U>(p, network, outer, sender)?;
    let len = p.length() - U::INNER_IP as u32;
    ip.check(len)?;
    let endpoint = receiver::<P, T, H>(p, t, network.id, ip.destination())?;
    if len > u32::from(endpoint.mtu) {
        return Err(Reason::TooBig);
    }
    let tos = ecn::decapsulate(outer.tos, ip.tos()).ok_or(Reason::BadEcn)?;
    let forwarded = ip.with_tos(tos).forwarded()?;
    underlay::check_sum::<P, U>(p, network.local(U::FAMILY), || inner::sum(p, &ip, U::INNER_IP, len))?;
    Ok((endpoint, sender, ip, forwarded))
}

/// The VTEP at `vtep` if it may use the inner address `source`: its subnets' and its own.
#[inline(always)]
fn sender<'t, T: Tables, U: Underlay, H: Inner>(
    t: &'t T,
    network: &Network,
    vtep: &Addr,
    source: H::Address,
) -> Option<&'t Vtep> {
    match H::route(t, network, source).and_then(|id| t.vtep(id)) {
        Some(owner) if owner.family != 0 && owner.addr == *vtep => Some(owner),
        _ if same_family(H::FAMILY, U::FAMILY) && H::addr(source) == *vtep => {
            t.vtep(t.vtep_id(network.id, vtep)?)
        }
        _ => None,
    }
}

/// The pod that a packet is for.
///
/// An agent that is dead does not take out a pod that is gone, and who is redirected to an interface that is
/// not there is dropped (`skb_do_redirect`, v6.18). So the interface is looked for, once in two ticks.
#[inline(always)]
pub(crate) fn receiver<'t, P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &'t T,
    network: NetworkId,
    address: H::Address,
) -> Result<&'t Endpoint, Reason> {
    let endpoint = H::endpoint(t, network, address).ok_or(Reason::NoEndpoint)?;
    if endpoint.flags & (endpoint::DISPUTED | endpoint::HOOKED_IN) != 0 {
        let disputed = endpoint.flags & endpoint::DISPUTED != 0;
        return Err(if disputed { Reason::Disputed } else { Reason::Hooked });
    }
    let tick = tick_mark(t.tick());
    if endpoint.found != 0 && endpoint.found != tick {
        if !p.has_interface(endpoint.ifindex) {
            return Err(Reason::NoEndpoint);
        }
        t.note_found(endpoint, tick);
    }
    Ok(endpoint)
}

/// Whether addresses may be compared in the form of the tables, where a mapped IPv4 address looks
/// like the IPv4 one.
#[inline(always)]
const fn same_family(a: Family, b: Family) -> bool {
    matches!((a, b), (Family::V4, Family::V4) | (Family::V6, Family::V6))
}

/// Routes a bare packet to the pod that it is for.
#[inline(always)]
pub(crate) fn route_to_pod<P: Packet, H: Inner>(
    p: &mut P,
    endpoint: &Endpoint,
    ip: &H,
) -> Result<(), Reason> {
    let len = p.length() - ETH_LEN as u32;
    if largest_packet(p, ip, ETH_LEN, len)? > u32::from(endpoint.mtu) {
        return Err(Reason::TooBig);
    }
    let forwarded = ip.forwarded()?;
    readdress(p, endpoint, ip, &forwarded)
}

/// Whether `mac` is that of this node's vxlan device.
#[inline(always)]
pub(crate) fn is_local_vtep(network: &Network, mac: Mac) -> bool {
    let matches = |local: &LocalVtep| local.ifindex != 0 && mac == Mac::from_bytes(&local.mac);
    matches(&network.local4) || matches(&network.local6)
}

#[inline(always)]
fn readdress<P: Packet, H: Inner>(p: &mut P, endpoint: &Endpoint, old: &H, new: &H) -> Result<(), Reason> {
    let eth = Eth {
        dst: Mac::from_bytes(&endpoint.mac),
        src: Mac::from_bytes(&endpoint.gateway_mac),
        ether_type: H::ETHER_TYPE,
    };
    p.store(0, &eth).ok_or(Reason::WriteFailed)?;
    old.replace(new, p, ETH_LEN).ok_or(Reason::WriteFailed)?;
    p.address_to_host();
    Ok(())
}
