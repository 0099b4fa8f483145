//! The programs, one per hook: the packet engine bound to the kernel's packets and maps.

#![no_std]
#![no_main]

mod listen;
mod maps;
mod skb;
mod xdp;

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use vxlan_ebpf_common::maps::NetworkId;
use vxlan_ebpf_common::maps::{Endpoint, LocalVtep, NextHop, Station, Vtep, station};
use vxlan_ebpf_common::{Forward, Hook, Packet, Reason, Tables, Verdict, hooks};

use crate::listen::What;
use crate::maps::Maps;
use crate::skb::{MarkedSkb, Skb};
use crate::xdp::Xdp;

/// Leave the packet to the next program, and after the last to the kernel: `TCX_NEXT` on TCX,
/// `TC_ACT_UNSPEC` on clsact.
const NEXT: i32 = TC_ACT_UNSPEC;

/// TC ingress on the host side of a pod's veth.
///
/// Inlined, because kernels before 6.6 count a frame of 32 bytes for a function without any
/// (`check_max_stack_depth`), and this one has none to spare.
#[classifier]
#[inline(always)]
fn pod_egress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let (bytes, maps) = (skb.length(), Maps::new());
    let listen = listen::note(&ctx, bytes);
    finish(&ctx, (Hook::PodEgress, bytes, listen), &maps, hooks::pod_egress(&mut skb, &maps))
}

/// TC egress on the vxlan device.
#[classifier]
fn tunnel_egress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let (bytes, maps) = (skb.length(), Maps::new());
    let listen = listen::note(&ctx, bytes);
    finish(&ctx, (Hook::TunnelEgress, bytes, listen), &maps, hooks::tunnel_egress(&mut skb, &maps))
}

/// TC ingress on the underlay interface. Inlined like [`pod_egress`].
#[classifier]
#[inline(always)]
fn underlay_ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let (bytes, maps) = (skb.length(), Maps::new());
    let listen = listen::note(&ctx, bytes);
    finish(&ctx, (Hook::UnderlayIngress, bytes, listen), &maps, hooks::underlay_ingress(&mut skb, &maps))
}

/// TC ingress on the vxlan device.
#[classifier]
fn tunnel_ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let (bytes, maps) = (skb.length(), Maps::new());
    let listen = listen::note(&ctx, bytes);
    finish(&ctx, (Hook::TunnelIngress, bytes, listen), &maps, hooks::tunnel_ingress(&mut skb, &maps))
}

/// TC egress on the host side of a pod's veth.
#[classifier]
fn pod_ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let (bytes, maps) = (skb.length(), Maps::new());
    let listen = listen::note(&ctx, bytes);
    finish(&ctx, (Hook::PodIngress, bytes, listen), &maps, hooks::pod_ingress(&mut skb, &maps))
}

/// TC ingress on the underlay interface, for what XDP has taken out of its tunnel.
#[classifier]
fn stripped_ingress(ctx: TcContext) -> i32 {
    let mut skb = MarkedSkb::new(&ctx);
    let (bytes, maps) = (skb.length(), Maps::new());
    let listen = listen::note(&ctx, bytes);
    finish(&ctx, (Hook::StrippedIngress, bytes, listen), &maps, hooks::stripped_ingress(&mut skb, &maps))
}

/// TC ingress on a port of a segment's bridge.
#[classifier]
fn port_ingress(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(&ctx);
    let (bytes, maps) = (skb.length(), Maps::new());
    let listen = listen::note(&ctx, bytes);
    finish(&ctx, (Hook::PortIngress, bytes, listen), &maps, hooks::port_ingress(&mut skb, &maps))
}

/// XDP on the underlay interface, over packets of several buffers, too.
#[xdp(frags)]
#[inline(always)]
fn underlay_xdp(ctx: XdpContext) -> u32 {
    let mut packet = Xdp::new(&ctx);
    let maps = Maps::new();
    packet.skip_tag(hooks::is_in_vlan(&packet, &maps));
    let bytes = packet.length();
    let listen = listen::note_xdp(&ctx);
    let Verdict { network, outcome } = hooks::underlay_xdp(&mut packet, &maps);
    let reason = outcome.map_or_else(|reason| reason, |forward| forward.reason());
    maps.count(network, Hook::UnderlayXdp, reason, bytes);
    let action = if outcome.is_err() && is_dropped(&maps, network, Hook::UnderlayXdp, reason) {
        xdp_action::XDP_DROP
    } else {
        xdp_action::XDP_PASS
    };
    let (hook, forwarded) = (Hook::UnderlayXdp, outcome.is_ok());
    listen::report_xdp(&ctx, listen, What { network, hook, reason, bytes, action: action as i32, forwarded });
    action
}

/// Carries out the verdict, counts it and tells who listens; in this order, because the verifier forgets across calls what belongs to
/// which verdict.
#[inline(always)]
fn finish(
    ctx: &TcContext,
    (hook, bytes, listen): (Hook, u32, bool),
    maps: &Maps,
    verdict: Verdict<'_>,
) -> i32 {
    let Verdict { network, outcome } = verdict;
    let action = match outcome {
        Ok(Forward::Encapsulated(vtep)) => to_underlay(hook, vtep),
        Ok(
            Forward::Decapsulated(endpoint)
            | Forward::Delivered(endpoint)
            | Forward::Routed(endpoint)
            | Forward::Switched(endpoint),
        ) => to_pod(endpoint),
        Ok(Forward::Bridged(station, _)) => to_port(station),
        Ok(Forward::HandedOver(end)) => to_device(end),
        Ok(Forward::Stripped) => NEXT,
        Err(reason) => give_up(maps, network, hook, reason),
    };
    let reason = verdict.reason();
    maps.count(network, hook, reason, bytes);
    let forwarded = outcome.is_ok();
    listen::report(ctx, listen, What { network, hook, reason, bytes, action, forwarded });
    action
}

#[inline(always)]
fn give_up(maps: &Maps, network: NetworkId, hook: Hook, reason: Reason) -> i32 {
    if reason == Reason::WriteFailed || is_dropped(maps, network, hook, reason) { TC_ACT_SHOT } else { NEXT }
}

#[inline(always)]
fn is_dropped(maps: &Maps, network: NetworkId, hook: Hook, reason: Reason) -> bool {
    maps.network(network).is_some_and(|network| network.drops(hook, reason))
}

/// The kernel resolves the next hop's MAC, and keeps it fresh.
///
/// A packet that the host routed brings its route along. Should it have to wait for the MAC, the
/// kernel afterwards sends it to that route's neighbour (`neigh_update`, v6.18) unless it has
/// looked the route up anew, so there it is not told the next hop.
#[inline(always)]
fn to_underlay(hook: Hook, vtep: &Vtep) -> i32 {
    let next_hop: *const NextHop = &vtep.next_hop;
    let routed = matches!(hook, Hook::TunnelEgress);
    // SAFETY: `NextHop` has the layout of `struct bpf_redir_neigh`; the helper only reads it.
    let action = unsafe {
        if routed || vtep.next_hop.family == 0 {
            bpf_redirect_neigh(vtep.ifindex, core::ptr::null_mut(), 0, 0)
        } else {
            bpf_redirect_neigh(vtep.ifindex, next_hop.cast_mut().cast(), size_of::<NextHop>() as i32, 0)
        }
    };
    action as i32
}

/// Out of a port of a bridge, as the bridge sends (`br_dev_queue_push_xmit`, v6.18), or right into the other
/// end of its veth.
#[inline(always)]
fn to_port(station: &Station) -> i32 {
    // SAFETY: no pointers involved.
    let action = unsafe {
        if station.flags & station::PEER != 0 {
            bpf_redirect_peer(station.ifindex, 0)
        } else {
            bpf_redirect(station.ifindex, 0)
        }
    };
    action as i32
}

/// Into the host stack, as if the vxlan device had decapsulated it.
#[inline(always)]
fn to_device(end: &LocalVtep) -> i32 {
    // SAFETY: no pointers involved.
    unsafe { bpf_redirect(end.device, u64::from(BPF_F_INGRESS)) as i32 }
}

/// Into the pod's namespace, without a detour over the host's receive queue.
#[inline(always)]
fn to_pod(endpoint: &Endpoint) -> i32 {
    // SAFETY: no pointers involved.
    let action = unsafe { bpf_redirect_peer(endpoint.ifindex, 0) } as i32;
    debug_assert!(action == TC_ACT_REDIRECT);
    action
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier accepts no endless loop, so this compiles only as long as nothing panics.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
