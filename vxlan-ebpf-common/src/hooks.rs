//! One entry point per hook.

use crate::counters::{Hook, Reason};
use crate::decap::{self, Out};
use crate::encap;
use crate::flow::{self, Way};
use crate::headers::{Be16, ETH_P_8021AD, ETH_P_8021Q, ETH_P_IP, ETH_P_IPV6, Eth, Ipv4, Ipv6, Mac, protocol};
use crate::inner::{Inner, largest_packet};
use crate::maps::{
    Endpoint, Kind, LOCAL_VTEP, LocalVtep, MacKey, Mode, NO_NETWORK, Network, NetworkId, Station, Vtep,
    endpoint, local,
};
use crate::packet::{ETH_LEN, Packet};
use crate::segment;
use crate::tables::Tables;
use crate::underlay::{self, OuterIp, Underlay, V4, V6};

/// Where a rewritten packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward<'t> {
    /// Out of the underlay, encapsulated for this VTEP.
    Encapsulated(&'t Vtep),
    /// Decapsulated, into this pod.
    Decapsulated(&'t Endpoint),
    /// Decapsulated, up to the TC hook of the same interface.
    Stripped,
    /// Decapsulated before, into this pod.
    Delivered(&'t Endpoint),
    /// From a pod into this one, routed.
    Routed(&'t Endpoint),
    /// From a pod into this one, switched: not rewritten.
    Switched(&'t Endpoint),
    /// Encapsulated nowhere or decapsulated by now, out of the port of this station.
    Bridged(&'t Station, Bridged),
    /// Decapsulated, into the host stack as if it came out of the vxlan device of this end of the tunnel.
    HandedOver(&'t LocalVtep),
}

/// How a segment's frame came to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bridged {
    /// Out of its tunnel.
    Decapsulated,
    /// Out of its tunnel before.
    Delivered,
    /// From another port.
    Switched,
}

impl Forward<'_> {
    /// How to count it.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Encapsulated(_) => Reason::Encapsulated,
            Self::Decapsulated(_) | Self::Stripped => Reason::Decapsulated,
            Self::Delivered(_) => Reason::Delivered,
            Self::HandedOver(_) => Reason::HandedOver,
            Self::Routed(_) => Reason::Routed,
            Self::Switched(_) => Reason::Switched,
            Self::Bridged(_, Bridged::Decapsulated) => Reason::Decapsulated,
            Self::Bridged(_, Bridged::Delivered) => Reason::Delivered,
            Self::Bridged(_, Bridged::Switched) => Reason::Switched,
        }
    }
}

/// What a program has decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict<'t> {
    /// Whose packet it is.
    pub network: NetworkId,
    /// Where it goes, or why it is left to the kernel.
    pub outcome: Result<Forward<'t>, Reason>,
}

impl<'t> Verdict<'t> {
    /// About a packet of no network.
    #[inline(always)]
    const fn stranger(reason: Reason) -> Self {
        Self { network: NO_NETWORK, outcome: Err(reason) }
    }

    /// How to count it.
    #[inline(always)]
    pub const fn reason(&self) -> Reason {
        match &self.outcome {
            Ok(forward) => forward.reason(),
            Err(reason) => *reason,
        }
    }
}

/// The entry point of `hook`.
#[inline(always)]
pub fn run<'t, P: Packet, T: Tables>(hook: Hook, p: &mut P, t: &'t T) -> Verdict<'t> {
    match hook {
        Hook::PodEgress => pod_egress(p, t),
        Hook::TunnelEgress => tunnel_egress(p, t),
        Hook::UnderlayIngress => underlay_ingress(p, t),
        Hook::TunnelIngress => tunnel_ingress(p, t),
        Hook::PodIngress => pod_ingress(p, t),
        Hook::StrippedIngress => stripped_ingress(p, t),
        Hook::UnderlayXdp => underlay_xdp(p, t),
        Hook::PortIngress => port_ingress(p, t),
    }
}

/// What a pod sent, on the host side of its veth.
#[inline(always)]
pub fn pod_egress<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    let id = network_behind(p, t);
    let outcome = match running(t, id) {
        Ok(network) => sent_by_pod(p, t, network),
        Err(reason) => Err(reason),
    };
    Verdict { network: id, outcome }
}

#[inline(always)]
fn sent_by_pod<'t, P: Packet, T: Tables>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    // The kernel takes a priority tag off and then looks at the packet as at any other
    // (`__netif_receive_skb_core`, v6.18), so its source is checked. Behind a second tag it cannot be.
    if p.tagged() && !p.priority_tagged() {
        return Err(Reason::NotIp);
    }
    let eth = ethernet(p)?;
    match eth.ether_type {
        ETH_P_IP => from_pod::<P, T, Ipv4>(p, t, network, &eth),
        ETH_P_IPV6 if is_of_the_link(p) => Err(Reason::UnknownSource),
        ETH_P_IPV6 => from_pod::<P, T, Ipv6>(p, t, network, &eth),
        ETH_P_8021Q | ETH_P_8021AD if p.tagged() => Err(Reason::PodSpoofed),
        _ => Err(Reason::NotIp),
    }
}

/// What the host stack routed into the vxlan device.
#[inline(always)]
pub fn tunnel_egress<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    let id = network_behind(p, t);
    let outcome = match running(t, id) {
        Ok(network) => routed_to_tunnel(p, t, network),
        Err(reason) => Err(reason),
    };
    Verdict { network: id, outcome }
}

#[inline(always)]
fn routed_to_tunnel<'t, P: Packet, T: Tables>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    let eth = untagged(p)?;
    if network.kind == Kind::L2 as u8 {
        return Err(segment::from_bridge(p, t, network, &eth));
    }
    match eth.ether_type {
        ETH_P_IP => from_host::<P, T, Ipv4>(p, t, network, &eth),
        ETH_P_IPV6 => from_host::<P, T, Ipv6>(p, t, network, &eth),
        _ => Err(Reason::NotIp),
    }
}

/// What arrived on the underlay interface.
#[inline(always)]
pub fn underlay_ingress<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    if p.stray() {
        return Verdict::stranger(Reason::NotVxlan);
    }
    let (id, ether_type) = match tunnel_of(p, t) {
        Ok(found) => found,
        Err(reason) => return Verdict::stranger(reason),
    };
    let outcome = match (running(t, id), ether_type) {
        (Ok(network), ETH_P_IP) => from_underlay::<P, T, V4>(p, t, network),
        (Ok(network), ETH_P_IPV6) => from_underlay::<P, T, V6>(p, t, network),
        (Ok(_), _) => Err(Reason::NotVxlan),
        (Err(reason), _) => Err(reason),
    };
    Verdict { network: id, outcome }
}

/// Whether [`underlay_xdp`] should look behind the tag that `p` begins with: an 802.1Q tag of the VLAN
/// that the underlay is in.
#[inline(always)]
pub fn is_in_vlan<P: Packet, T: Tables>(p: &P, t: &T) -> bool {
    const VLAN: u16 = 0x0fff;
    let tagged = p.load(0).is_some_and(|eth: Eth| eth.ether_type == ETH_P_8021Q);
    let tag: Option<Be16> = p.load(ETH_LEN);
    let vlan = t.node().map_or(0, |node| node.vlan);
    tagged && vlan != 0 && tag.is_some_and(|tag| tag.get() & VLAN == vlan)
}

/// What arrived on the underlay interface, before the kernel merges TCP segments (GRO).
///
/// Takes a packet for a pod out of its tunnel and marks it, so that what the kernel merges are
/// ordinary packets, which [`stripped_ingress`] then delivers.
#[inline(always)]
pub fn underlay_xdp<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    let (id, ether_type) = match tunnel_of(p, t) {
        Ok(found) => found,
        Err(reason) => return Verdict::stranger(reason),
    };
    let outcome = match (running(t, id), ether_type) {
        (Ok(network), ETH_P_IP) => strip::<P, T, V4>(p, t, network),
        (Ok(network), ETH_P_IPV6) => strip::<P, T, V6>(p, t, network),
        (Ok(_), _) => Err(Reason::NotVxlan),
        (Err(reason), _) => Err(reason),
    };
    Verdict { network: id, outcome }
}

/// What [`underlay_xdp`] has taken out of its tunnel, and the kernel perhaps merged since.
///
/// It has to be delivered, even if the fast path has been switched off meanwhile: the host stack, to
/// which it did not come through the vxlan device, may refuse it.
#[inline(always)]
pub fn stripped_ingress<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    let id = p.mark() as NetworkId;
    let mark = t.node().map_or(0, |node| decap::mark(node, id));
    if mark == 0 || p.mark() != mark || p.stray() {
        return Verdict::stranger(Reason::NotVxlan);
    }
    if let Some(eth) = p.kept() {
        let outcome = match (t.network(id), untagged(p)) {
            (Some(network), Ok(_)) => segment::from_xdp(p, t, network, &eth),
            _ => Err(Reason::SwitchedOff),
        };
        return Verdict { network: id, outcome };
    }
    let outcome = match untagged(p) {
        Ok(Eth { ether_type: ETH_P_IP, .. }) => deliver::<P, T, Ipv4>(p, t, id),
        Ok(Eth { ether_type: ETH_P_IPV6, .. }) => deliver::<P, T, Ipv6>(p, t, id),
        Ok(_) => Err(Reason::NotIp),
        Err(reason) => Err(reason),
    };
    Verdict { network: id, outcome }
}

/// What the kernel's vxlan device decapsulated.
#[inline(always)]
pub fn tunnel_ingress<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    let id = network_behind(p, t);
    let outcome = match running(t, id) {
        Ok(network) => out_of_device(p, t, network),
        Err(reason) => Err(reason),
    };
    Verdict { network: id, outcome }
}

#[inline(always)]
fn out_of_device<'t, P: Packet, T: Tables>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    let eth = untagged(p)?;
    if network.kind == Kind::L2 as u8 {
        return segment::from_tunnel(p, t, network, &eth);
    }
    if !decap::is_local_vtep(network, eth.dst) {
        return Err(Reason::OtherMac);
    }
    if (network.local4.flags | network.local6.flags) & local::HOOKED_TUNNEL != 0 {
        return Err(Reason::Hooked);
    }
    match eth.ether_type {
        ETH_P_IP => from_tunnel::<P, T, Ipv4>(p, t, network),
        ETH_P_IPV6 => from_tunnel::<P, T, Ipv6>(p, t, network),
        _ => Err(Reason::NotIp),
    }
}

/// What the host stack passes to a pod: looked at, never forwarded.
#[inline(always)]
pub fn pod_ingress<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    let id = network_behind(p, t);
    let outcome = match running(t, id) {
        Ok(network) => passed_to_pod(p, t, network),
        Err(reason) => Err(reason),
    };
    Verdict { network: id, outcome }
}

#[inline(always)]
fn passed_to_pod<'t, P: Packet, T: Tables>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    let eth = untagged(p)?;
    match eth.ether_type {
        ETH_P_IP => to_pod::<P, T, Ipv4>(p, t, network),
        ETH_P_IPV6 => to_pod::<P, T, Ipv6>(p, t, network),
        _ => Err(Reason::NotIp),
    }
}

/// What a station behind a port of a segment's bridge sent.
#[inline(always)]
pub fn port_ingress<'t, P: Packet, T: Tables>(p: &mut P, t: &'t T) -> Verdict<'t> {
    let id = network_behind(p, t);
    let outcome = match running(t, id) {
        Ok(network) => segment::from_port(p, t, network),
        Err(reason) => Err(reason),
    };
    Verdict { network: id, outcome }
}

/// The network, if its fast path is on.
#[inline(always)]
fn running<T: Tables>(t: &T, id: NetworkId) -> Result<&Network, Reason> {
    match t.network(id) {
        Some(network) if network.mode != Mode::Off as u8 => Ok(network),
        _ => Err(Reason::SwitchedOff),
    }
}

/// The network of packets at the hook's interface. Where there is only one, nobody is asked.
#[inline(always)]
fn network_behind<P: Packet, T: Tables>(p: &P, t: &T) -> NetworkId {
    match t.node() {
        Some(node) if node.only != NO_NETWORK => node.only,
        Some(_) => t.link(p.ifindex()).network,
        None => NO_NETWORK,
    }
}

/// The network whose tunnel a frame on the underlay may be in, and the frame's EtherType. Where there is only
/// one network, that it is its tunnel is still to be found out.
#[inline(always)]
fn tunnel_of<P: Packet, T: Tables>(p: &mut P, t: &T) -> Result<(NetworkId, Be16), Reason> {
    let node = t.node().ok_or(Reason::NotVxlan)?;
    let eth = untagged(p).map_err(|_| Reason::NotVxlan)?;
    let id = match (node.only, eth.ether_type) {
        (NO_NETWORK, ETH_P_IP) => underlay::network::<P, T, V4>(p, t, node)?,
        (NO_NETWORK, ETH_P_IPV6) => underlay::network::<P, T, V6>(p, t, node)?,
        (NO_NETWORK, _) => return Err(Reason::NotVxlan),
        (only, _) => only,
    };
    Ok((id, eth.ether_type))
}

#[inline(always)]
pub(crate) fn untagged<P: Packet>(p: &mut P) -> Result<Eth, Reason> {
    if p.tagged() {
        return Err(Reason::NotIp);
    }
    ethernet(p)
}

#[inline(always)]
fn ethernet<P: Packet>(p: &mut P) -> Result<Eth, Reason> {
    p.linearize(ETH_LEN);
    p.load(0).ok_or(Reason::Truncated)
}

/// The IP header of a bare packet.
#[inline(always)]
fn bare<P: Packet, H: Inner>(p: &mut P) -> Result<H, Reason> {
    p.linearize(ETH_LEN + H::READ);
    p.load(ETH_LEN).ok_or(Reason::Truncated)
}

/// The checked IP header of a bare packet.
#[inline(always)]
pub(crate) fn checked<P: Packet, H: Inner>(p: &mut P) -> Result<H, Reason> {
    let ip: H = bare(p)?;
    ip.check(p.length() - ETH_LEN as u32)?;
    Ok(ip)
}

/// Whether an IPv6 packet comes from a link-local address (`fe80::/10`). Neighbours ask each other from it
/// whether they are still there (`ndisc_solicit`, v6.18), and the kernel forwards it nowhere (`ip6_forward`).
#[inline(always)]
fn is_of_the_link<P: Packet>(p: &mut P) -> bool {
    const SOURCE: usize = ETH_LEN + 8;
    p.linearize(ETH_LEN + Ipv6::READ);
    p.load(SOURCE).is_some_and(|first: Be16| first.get() >> 6 == 0xfe80 >> 6)
}

#[inline(always)]
fn from_pod<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &Network,
    eth: &Eth,
) -> Result<Forward<'t>, Reason> {
    let ip: H = bare(p)?;
    let Some(id) = H::route(t, network, ip.destination()) else {
        return Err(elsewhere(p, t, network, &ip));
    };
    let sender = sender::<P, T, H>(p, t, network, &ip)?;
    if p.tagged() {
        return Err(Reason::NotIp);
    }
    ip.check(p.length() - ETH_LEN as u32)?;
    let to_node = eth.dst == Mac::from_bytes(&sender.gateway_mac);
    if id == LOCAL_VTEP {
        return to_neighbour(p, t, network, (eth, to_node), &ip, sender);
    }
    if !to_node {
        return Err(Reason::NotForNode);
    }
    let forwarded = ip.forwarded()?;
    let vtep = t.vtep(id).ok_or(Reason::NoVtep)?;
    // Before a flow is noted that nobody would see come out of the stack.
    if vtep.is_direct(H::FAMILY) {
        return Err(Reason::DirectRoute);
    }
    flow::admit(p, t, network, (&ip, ETH_LEN), Way::Egress)?;
    encap::encapsulate(p, network, vtep, None, (&ip, &forwarded)).map(Forward::Encapsulated)
}

/// Why a pod's packet that leaves the overlay is not forwarded.
///
/// A pod has no business at the tunnel's port of a node: with the node's address as its source, which
/// masquerading gives it, what the pod has encapsulated would pass for the overlay's. Where the port
/// cannot be read, the nf_tables table looks for it; it knows pods by their addresses.
#[inline(always)]
fn elsewhere<P: Packet, T: Tables, H: Inner>(p: &P, t: &T, network: &Network, ip: &H) -> Reason {
    let plain = ip.check(p.length() - ETH_LEN as u32);
    let others = plain.is_ok() && ip.protocol() != protocol::UDP;
    if others || !is_node::<T, H>(t, network, ip.destination()) {
        return Reason::NoRoute;
    }
    if plain.is_ok() {
        let tunnels = p.load(ETH_LEN + H::LEN + 2).is_some_and(|port: Be16| port == network.port());
        return if tunnels { Reason::PodTunnels } else { Reason::NoRoute };
    }
    match sender::<P, T, H>(p, t, network, ip) {
        Err(Reason::PodSpoofed) => Reason::PodSpoofed,
        _ => Reason::NoRoute,
    }
}

/// Whether `address` is the underlay address of a node of the network.
#[inline(always)]
fn is_node<T: Tables, H: Inner>(t: &T, network: &Network, address: H::Address) -> bool {
    let address = H::addr(address);
    address == network.local4.addr
        || address == network.local6.addr
        || t.vtep_id(network.id, &address).is_some()
}

/// The pod that a packet came from, if it uses an address of its own.
///
/// What is known of the sender itself is looked up only where the address is not known to be its own.
#[inline(always)]
fn sender<'t, P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &'t T,
    network: &Network,
    ip: &H,
) -> Result<&'t Endpoint, Reason> {
    match H::endpoint(t, network.id, ip.source()) {
        // Not a violation, however it is settled.
        Some(sender) if sender.flags & endpoint::DISPUTED != 0 => Err(Reason::Disputed),
        Some(sender) if sender.ifindex == p.ifindex() && sender.flags & endpoint::HOOKED_OUT != 0 => {
            Err(Reason::Hooked)
        }
        Some(sender) if sender.ifindex == p.ifindex() => Ok(sender),
        Some(_) if t.link(p.ifindex()).takes_anothers(H::FAMILY) => Err(Reason::PodSpoofed),
        Some(_) => Err(Reason::UnknownSource),
        None if H::route(t, network, ip.source()) != Some(LOCAL_VTEP) => Err(Reason::PodSpoofed),
        None if t.link(p.ifindex()).takes_nobodys(H::FAMILY) => Err(Reason::PodSpoofed),
        // A pod that has just come up.
        None => Err(Reason::UnknownSource),
    }
}

/// From pod to pod on this node: routed if addressed to the node, switched on a common bridge.
#[inline(always)]
fn to_neighbour<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &Network,
    (eth, to_node): (&Eth, bool),
    ip: &H,
    sender: &Endpoint,
) -> Result<Forward<'t>, Reason> {
    let endpoint = decap::receiver::<P, T, H>(p, t, network.id, ip.destination())?;
    if endpoint.ifindex == sender.ifindex {
        return Err(Reason::NotForNode);
    }
    if let Err(reason) = flow::admit(p, t, network, (ip, ETH_LEN), Way::Egress) {
        // For the pod that receives it, too.
        flow::announce(p, t, network, (ip, ETH_LEN), Way::Ingress);
        return Err(reason);
    }
    if to_node {
        decap::route_to_pod(p, endpoint, ip)?;
        return Ok(Forward::Routed(endpoint));
    }
    if eth.dst != Mac::from_bytes(&endpoint.mac) || endpoint.bridge == 0 || endpoint.bridge != sender.bridge {
        return Err(Reason::NotForNode);
    }
    if largest_packet(p, ip, ETH_LEN, p.length() - ETH_LEN as u32)? > u32::from(endpoint.mtu) {
        return Err(Reason::TooBig);
    }
    p.address_to_host();
    Ok(Forward::Switched(endpoint))
}

#[inline(always)]
fn from_host<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &Network,
    eth: &Eth,
) -> Result<Forward<'t>, Reason> {
    let id = t.station(&MacKey::of(network.id, eth.dst)).ok_or(Reason::OtherMac)?.vtep;
    let ip: H = checked(p)?;
    flow::passed(p, t, network, (&ip, ETH_LEN), Way::Egress);
    let vtep = t.vtep(id).ok_or(Reason::NoVtep)?;
    encap::encapsulate(p, network, vtep, None, (&ip, &ip)).map(Forward::Encapsulated)
}

#[inline(always)]
fn from_underlay<'t, P: Packet, T: Tables, U: Underlay>(
    p: &mut P,
    t: &'t T,
    network: &'t Network,
) -> Result<Forward<'t>, Reason> {
    let outer = decap::outer::<P, U>(p, network)?;
    let outcome = if network.kind == Kind::L2 as u8 {
        segment::from_underlay::<P, T, U>(p, t, network, &outer)
    } else {
        to_local_pod::<P, T, U>(p, t, network, &outer)
    };
    match outcome {
        Ok(forward) => Ok(forward),
        Err(reason) => Err(decap::refusal(t, network, &outer, reason)),
    }
}

#[inline(always)]
fn to_local_pod<'t, P: Packet, T: Tables, U: Underlay>(
    p: &mut P,
    t: &'t T,
    network: &'t Network,
    outer: &OuterIp,
) -> Result<Forward<'t>, Reason> {
    let out = match decap::inner_type::<P, U>(p, network, outer)? {
        ETH_P_IP => decap::decapsulate::<P, T, U, Ipv4>(p, t, network, outer)?,
        ETH_P_IPV6 => decap::decapsulate::<P, T, U, Ipv6>(p, t, network, outer)?,
        _ => return Err(Reason::NotIp),
    };
    Ok(match out {
        Out::Pod(endpoint) => Forward::Decapsulated(endpoint),
        Out::Stack(end) => Forward::HandedOver(end),
    })
}

#[inline(always)]
fn strip<'t, P: Packet, T: Tables, U: Underlay>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    let outer = decap::outer::<P, U>(p, network)?;
    let stripped = if network.kind == Kind::L2 as u8 {
        segment::strip::<P, T, U>(p, t, network, &outer)
    } else {
        strip_routed::<P, T, U>(p, t, network, &outer)
    };
    match stripped {
        Ok(()) => Ok(Forward::Stripped),
        Err(reason) => Err(decap::refusal(t, network, &outer, reason)),
    }
}

#[inline(always)]
fn strip_routed<P: Packet, T: Tables, U: Underlay>(
    p: &mut P,
    t: &T,
    network: &Network,
    outer: &OuterIp,
) -> Result<(), Reason> {
    match decap::inner_type::<P, U>(p, network, outer)? {
        ETH_P_IP => decap::strip::<P, T, U, Ipv4>(p, t, network, outer),
        ETH_P_IPV6 => decap::strip::<P, T, U, Ipv6>(p, t, network, outer),
        _ => Err(Reason::NotIp),
    }
}

#[inline(always)]
fn deliver<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: NetworkId,
) -> Result<Forward<'t>, Reason> {
    let ip: H = checked(p)?;
    let endpoint = H::endpoint(t, network, ip.destination()).ok_or(Reason::NoEndpoint)?;
    decap::route_to_pod(p, endpoint, &ip)?;
    Ok(Forward::Delivered(endpoint))
}

#[inline(always)]
fn from_tunnel<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    let ip: H = checked(p)?;
    decap::hear::<P, T, H>(p, t, network, ip.source());
    let endpoint = decap::receiver::<P, T, H>(p, t, network.id, ip.destination())?;
    flow::admit(p, t, network, (&ip, ETH_LEN), Way::Ingress)?;
    decap::route_to_pod(p, endpoint, &ip)?;
    Ok(Forward::Delivered(endpoint))
}

/// Verifies the direction to the receiving pod, and from the sending one if that is local too.
#[inline(always)]
fn to_pod<'t, P: Packet, T: Tables, H: Inner>(
    p: &mut P,
    t: &'t T,
    network: &Network,
) -> Result<Forward<'t>, Reason> {
    let ip: H = checked(p)?;
    flow::passed(p, t, network, (&ip, ETH_LEN), Way::Ingress);
    if H::route(t, network, ip.source()) == Some(LOCAL_VTEP) {
        flow::passed(p, t, network, (&ip, ETH_LEN), Way::Egress);
    }
    Err(Reason::Passed)
}
