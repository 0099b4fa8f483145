//! How the network's vxlan device makes outer headers, field by field (`vxlan_xmit_one`, v6.18).
//!
//! The settings are those of the device at this node's end ([`LocalVtep`]); what it has no setting for comes from
//! the way to the other end ([`Vtep`]), or from the inner packet.

use crate::ecn;
use crate::headers::{Be16, Ipv4};
use crate::inner::Inner;
use crate::maps::{LocalVtep, Vtep, local, vtep};

/// TTL or hop limit (`ip_tunnel_get_ttl`, `ip4_dst_hoplimit`, `ip6_dst_hoplimit`).
#[inline(always)]
pub(crate) fn ttl<H: Inner>(local: &LocalVtep, vtep: &Vtep, inner: &H) -> u8 {
    let ttl = if local.flags & local::TTL_INSIDE != 0 { inner.ttl() } else { local.ttl };
    if ttl == 0 { vtep.ttl } else { ttl }
}

/// TOS or traffic class (`ip_tunnel_get_dsfield`, `ip_tunnel_ecn_encap`).
#[inline(always)]
pub(crate) fn tos<H: Inner>(local: &LocalVtep, inner: &H) -> u8 {
    let tos = if local.flags & local::TOS_INSIDE != 0 { inner.tos() } else { local.tos };
    ecn::encapsulate(tos, inner.tos())
}

/// Flags and fragment offset over IPv4 (`iptunnel_xmit`).
#[inline(always)]
pub(crate) fn frags<H: Inner>(local: &LocalVtep, to: &Vtep, inner: &H) -> Be16 {
    let inside = local.flags & local::DF_INSIDE != 0 && inner.is_whole();
    let whole = (inside || local.flags & local::DF != 0) && to.flags & vtep::NO_DF == 0;
    Be16::new(if whole { Ipv4::DONT_FRAGMENT } else { 0 })
}

/// Flow label over IPv6 (`ip_tunnel_get_flowlabel`).
#[inline(always)]
pub(crate) fn label<H: Inner>(local: &LocalVtep, inner: &H) -> u32 {
    if local.flags & local::LABEL_INSIDE != 0 { inner.label() } else { local.label }
}

/// Whether there is a UDP checksum.
#[inline(always)]
pub(crate) const fn has_checksum(local: &LocalVtep) -> bool {
    local.flags & local::CHECKSUM != 0
}
