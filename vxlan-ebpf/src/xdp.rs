//! The engine's view of a packet that has no socket buffer yet.

use core::hint::black_box;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::{
    bpf_check_mtu, bpf_get_prandom_u32, bpf_xdp_adjust_head, bpf_xdp_adjust_meta, bpf_xdp_get_buff_len,
};
use aya_ebpf::programs::XdpContext;
use vxlan_ebpf_common::headers::Eth;
use vxlan_ebpf_common::maps::Family;
use vxlan_ebpf_common::packet::Wire;
use vxlan_ebpf_common::{Packet, underlay};

use crate::skb::{Kept, NO_DEVICE};

/// Length of an 802.1Q tag.
const TAG: usize = 4;

/// A packet at the XDP hook, or what is behind its VLAN tag: from there on its bytes look like an
/// untagged frame but for the addresses, which nobody reads.
pub(crate) struct Xdp {
    md: *mut xdp_md,
    /// Bytes in front of what the engine sees: none, or those of a tag.
    skip: usize,
}

impl Xdp {
    #[inline(always)]
    pub(crate) fn new(ctx: &XdpContext) -> Self {
        Self { md: ctx.as_ptr().cast(), skip: 0 }
    }

    /// The same behind its tag, which stays in front of what is decapsulated.
    ///
    /// For the compiler the length is now any, so that there is one program for both: two of them
    /// need more than the half kilobyte of stack that there is.
    #[inline(always)]
    pub(crate) fn skip_tag(&mut self, tagged: bool) {
        self.skip = black_box(if tagged { TAG } else { 0 });
    }

    /// Address of `offset` of the whole frame, if `len` bytes from there are directly accessible.
    #[inline(always)]
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        // SAFETY: the context is valid while the program runs.
        let (data, end) = unsafe { ((*self.md).data as usize, (*self.md).data_end as usize) };
        (data + offset + len <= end).then_some((data + offset) as *mut u8)
    }

    /// Where the metadata begins, if it is that of `M`.
    #[inline(always)]
    fn meta<M>(&self) -> Option<*mut M> {
        // SAFETY: the context is valid while the program runs.
        let (meta, data) = unsafe { ((*self.md).data_meta as usize, (*self.md).data as usize) };
        (meta + size_of::<M>() <= data).then_some(meta as *mut M)
    }
}

impl Packet for Xdp {
    #[inline(always)]
    fn length(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        (unsafe { bpf_xdp_get_buff_len(self.md) }) as u32 - self.skip as u32
    }

    /// Drivers put the headers into one piece; what they do not is out of reach.
    #[inline(always)]
    fn linearize(&mut self, _len: usize) {}

    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let at = self.at(self.skip + offset, size_of::<T>())?;
        // SAFETY: `at` checked the bounds; `Wire` is valid for any bytes; see `Skb::load` for the
        // alignment.
        Some(unsafe { at.cast::<T>().read() })
    }

    #[inline(always)]
    fn store<T: Wire>(&mut self, offset: usize, value: &T) -> Option<()> {
        let at = self.at(self.skip + offset, size_of::<T>())?;
        // SAFETY: as above.
        unsafe { at.cast::<T>().write(*value) };
        Some(())
    }

    /// Nothing has been merged yet.
    #[inline(always)]
    fn segment_size(&self) -> u32 {
        0
    }

    /// A tag that the device took off says which VLAN interface the packet is for; the kernel reads
    /// it when the program is done.
    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context is valid while the program runs.
        unsafe { (*self.md).ingress_ifindex }
    }

    #[inline(always)]
    fn has_interface(&self, ifindex: u32) -> bool {
        let mut mtu = 0;
        // SAFETY: the context is valid while the program runs.
        unsafe { bpf_check_mtu(self.md.cast(), ifindex, &raw mut mtu, 0, 0) != NO_DEVICE }
    }

    /// There is none before the socket buffer.
    #[inline(always)]
    fn flow_hash(&self) -> u32 {
        0
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    /// Nothing is sent from here.
    #[inline(always)]
    fn make_room(&mut self, _family: Family) -> Option<()> {
        None
    }

    /// Makes room for the mark, too, so that a driver without metadata refuses in time.
    #[inline(always)]
    fn remove_room(&mut self, family: Family, _inner: Family) -> Option<()> {
        let overhead = underlay::overhead(family);
        // The first bytes of a tagged frame, up to where the engine's view begins.
        let skipped: Option<u32> = if self.skip == 0 { None } else { Some(self.head()?) };
        // SAFETY: the context is valid while the program runs.
        if unsafe { bpf_xdp_adjust_meta(self.md, -(size_of::<u64>() as i32)) } != 0 {
            return None;
        }
        self.set_mark(0)?;
        // SAFETY: as above.
        if unsafe { bpf_xdp_adjust_head(self.md, overhead as i32) } != 0 {
            return None;
        }
        if let Some(bytes) = skipped {
            let at = self.at(0, size_of::<u32>())?;
            // SAFETY: `at` checked the bounds.
            unsafe { at.cast::<u32>().write_unaligned(bytes) };
        }
        Some(())
    }

    #[inline(always)]
    fn mark(&self) -> u64 {
        // SAFETY: `meta` checked the bounds.
        self.meta::<u64>().map_or(0, |meta| unsafe { meta.read() })
    }

    #[inline(always)]
    fn set_mark(&mut self, mark: u64) -> Option<()> {
        let meta = self.meta::<u64>()?;
        // SAFETY: `meta` checked the bounds.
        unsafe { meta.write(mark) };
        Some(())
    }

    /// Nothing reads it here.
    #[inline(always)]
    fn kept(&self) -> Option<Eth> {
        None
    }

    /// The head-room that the tunnel has left takes it, whatever the driver.
    #[inline(always)]
    fn keep(&mut self, mark: u64, eth: &Eth) -> Option<()> {
        let more = size_of::<Kept>() - size_of::<u64>();
        // SAFETY: the context is valid while the program runs.
        if unsafe { bpf_xdp_adjust_meta(self.md, -(more as i32)) } != 0 {
            return None;
        }
        let meta = self.meta::<Kept>()?;
        // SAFETY: `meta` checked the bounds.
        unsafe { meta.write(Kept { mark, eth: *eth, zero: 0 }) };
        Some(())
    }

    #[inline(always)]
    fn address_to_host(&mut self) {}

    /// Drivers give no sum over packets that a program may have changed.
    #[inline(always)]
    fn replace_in_sum(&mut self, _from: u32, _to: u32) {}
}

impl Xdp {
    #[inline(always)]
    fn head(&self) -> Option<u32> {
        let at = self.at(0, size_of::<u32>())?;
        // SAFETY: `at` checked the bounds.
        Some(unsafe { at.cast::<u32>().read() })
    }
}
