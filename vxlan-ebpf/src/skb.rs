//! The engine's view of a socket buffer.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_CSUM_LEVEL_DEC, BPF_CSUM_LEVEL_QUERY,
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
};
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_csum_level, bpf_csum_update, bpf_get_hash_recalc, bpf_get_prandom_u32,
    bpf_skb_adjust_room, bpf_skb_change_type, bpf_skb_pull_data, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use vxlan_ebpf_common::headers::Eth;
use vxlan_ebpf_common::maps::Family;
use vxlan_ebpf_common::packet::{ETH_LEN, Wire};
use vxlan_ebpf_common::{Packet, underlay};

/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// `-ENODEV`.
pub(crate) const NO_DEVICE: i64 = -19;
/// `PACKET_OTHERHOST` of the same.
const PACKET_OTHERHOST: u32 = 3;

/// What XDP leaves with a segment's frame. With other packets it leaves the mark alone.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Kept {
    pub(crate) mark: u64,
    /// The frame's Ethernet header. In its place is that of the tunnel, by which the kernel sees that it is for
    /// this host.
    pub(crate) eth: Eth,
    /// The kernel takes only packets together whose metadata are equal.
    pub(crate) zero: u16,
}

/// A packet at a TC hook.
///
/// A program that writes to packets directly gets a prologue that copies the head of one that
/// somebody else holds, too (`bpf_unclone_prologue`, v6.18), a packet socket for example. That loses
/// XDP's metadata, so a program that wants to read it has to write through a `HELPER`, which takes
/// longer.
pub(crate) struct TcPacket<const HELPER: bool>(*mut __sk_buff);

/// A packet that is written to directly.
pub(crate) type Skb = TcPacket<false>;
/// A packet that XDP may have left metadata with.
pub(crate) type MarkedSkb = TcPacket<true>;

impl<const HELPER: bool> TcPacket<HELPER> {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    /// Address of `offset`, if `len` bytes from there are directly accessible.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        (data + offset + len <= end).then_some((data + offset) as *mut u8)
    }

    /// The metadata, if it is as long as `M` at least.
    #[inline(always)]
    fn meta<M: Copy>(&self) -> Option<M> {
        // SAFETY: the context is valid while the program runs.
        let (meta, data) = unsafe { ((*self.0).data_meta as usize, (*self.0).data as usize) };
        if meta + size_of::<M>() > data {
            return None;
        }
        // SAFETY: the line above checked the bounds; see `load` for the alignment.
        Some(unsafe { (meta as *const M).read() })
    }

    /// `flags` as Linux takes them for a header that carries Ethernet.
    #[inline(always)]
    fn adjust_room(&mut self, by: i32, flags: u64) -> Option<()> {
        // SAFETY: the context is valid while the program runs.
        (unsafe { bpf_skb_adjust_room(self.0, by, BPF_ADJ_ROOM_MAC, flags) } == 0).then_some(())
    }
}

impl<const HELPER: bool> Packet for TcPacket<HELPER> {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn linearize(&mut self, len: usize) {
        if self.at(0, len).is_none() {
            let len = len.min(self.length() as usize);
            if self.at(0, ETH_LEN).is_none() || self.at(0, len).is_none() {
                // SAFETY: the context is valid while the program runs. What cannot be pulled
                // stays out of reach of `load`, which says so.
                let _ = unsafe { bpf_skb_pull_data(self.0, len as u32) };
            }
        }
    }

    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let at = self.at(offset, size_of::<T>())?;
        // SAFETY: `at` checked the bounds; `Wire` is valid for any bytes. A header may lie at an
        // address that is no multiple of its alignment: on this target a word is one load all the
        // same, and the kernel lets packets be read so (`check_pkt_ptr_alignment`, v6.18).
        Some(unsafe { at.cast::<T>().read() })
    }

    #[inline(always)]
    fn store<T: Wire>(&mut self, offset: usize, value: &T) -> Option<()> {
        if HELPER {
            let (from, len) = (core::ptr::from_ref(value).cast(), size_of::<T>() as u32);
            // SAFETY: the context is valid while the program runs; `value` has `len` bytes.
            let stored = unsafe { bpf_skb_store_bytes(self.0, offset as u32, from, len, 0) };
            return (stored == 0).then_some(());
        }
        let at = self.at(offset, size_of::<T>())?;
        // SAFETY: `at` checked the bounds; see `load` for the alignment.
        unsafe { at.cast::<T>().write(*value) };
        Some(())
    }

    #[inline(always)]
    fn segment_size(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).vlan_present != 0 }
    }

    #[inline(always)]
    fn priority_tagged(&self) -> bool {
        const VLAN: u32 = 0x0fff;
        // SAFETY: the context is valid while the program runs.
        self.tagged() && unsafe { (*self.0).vlan_tci & VLAN } == 0
    }

    #[inline(always)]
    fn stray(&self) -> bool {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).pkt_type == PACKET_OTHERHOST }
    }

    #[inline(always)]
    fn fwmark(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).mark }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn arrived_by(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn has_interface(&self, ifindex: u32) -> bool {
        let mut mtu = 0;
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_check_mtu(self.0.cast(), ifindex, &raw mut mtu, 0, 0) != NO_DEVICE }
    }

    #[inline(always)]
    fn flow_hash(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_get_hash_recalc(self.0) }
    }

    #[inline(always)]
    fn checksum_verified(&self) -> bool {
        // SAFETY: the context is valid while the program runs. An error stands for a checksum that
        // nobody has verified, that the device has summed up, or that is yet to be filled in.
        unsafe { bpf_csum_level(self.0, u64::from(BPF_CSUM_LEVEL_QUERY)) >= 0 }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn make_room(&mut self, family: Family) -> Option<()> {
        let layer3 = match family {
            Family::V4 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_ENCAP_L3_IPV6,
        };
        let flags = layer3
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
            | BPF_F_ADJ_ROOM_FIXED_GSO
            | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
        // The L2 length without the VXLAN header, or segmentation looks for the inner packet in
        // the wrong place.
        let inner_l2 = (ETH_LEN as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT;
        self.adjust_room(underlay::overhead(family) as i32, u64::from(flags) | inner_l2)
    }

    #[inline(always)]
    fn remove_room(&mut self, family: Family, inner: Family) -> Option<()> {
        let layer3 = match inner {
            Family::V4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
            Family::V6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        };
        // The kernel refuses to leave less than a header of the outer family unless told the
        // inner one, and knows that flag only since Linux 6.3; in one family it is not needed.
        let layer3 = if family == inner { 0 } else { layer3 };
        let flags = layer3 | BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
        self.adjust_room(-(underlay::overhead(family) as i32), u64::from(flags))?;
        // The device may have verified the outer checksum too: one level less remains.
        // SAFETY: the context is valid while the program runs.
        let _ = unsafe { bpf_csum_level(self.0, u64::from(BPF_CSUM_LEVEL_DEC)) };
        Some(())
    }

    #[inline(always)]
    fn note(&self) -> u16 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).tc_index as u16 }
    }

    #[inline(always)]
    fn set_note(&mut self, note: u16) {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.0).tc_index = u32::from(note) };
    }

    #[inline(always)]
    fn mark(&self) -> u64 {
        self.meta::<u64>().unwrap_or(0)
    }

    /// Only XDP leaves marks.
    #[inline(always)]
    fn set_mark(&mut self, _mark: u64) -> Option<()> {
        None
    }

    #[inline(always)]
    fn kept(&self) -> Option<Eth> {
        self.meta().map(|kept: Kept| kept.eth)
    }

    /// Only XDP leaves anything.
    #[inline(always)]
    fn keep(&mut self, _mark: u64, _eth: &Eth) -> Option<()> {
        None
    }

    #[inline(always)]
    fn address_to_host(&mut self) {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            if (*self.0).pkt_type != PACKET_HOST {
                let _ = bpf_skb_change_type(self.0, PACKET_HOST);
            }
        }
    }

    #[inline(always)]
    fn replace_in_sum(&mut self, from: u32, to: u32) {
        let difference = u64::from(!from) + u64::from(to);
        let folded = (difference as u32).wrapping_add((difference >> 32) as u32);
        // SAFETY: the context is valid while the program runs. Without a device's sum there is
        // nothing to update, and the helper says so.
        let _ = unsafe { bpf_csum_update(self.0, folded) };
    }
}
