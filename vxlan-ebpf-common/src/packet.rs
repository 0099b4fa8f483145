//! The seam between the engine and the bytes of a packet.

use crate::headers::{Be16, Eth, Ipv4, Ipv4Head, Ipv6, Ipv6Head, Udp, Vxlan};
use crate::maps::Family;

/// Length of an untagged Ethernet header.
pub const ETH_LEN: usize = size_of::<Eth>();

/// A fixed-size piece of a packet, copied in and out as a whole.
///
/// # Safety
///
/// The type has no padding and is valid for any bytes.
pub unsafe trait Wire: Copy {}

// SAFETY: a byte.
unsafe impl Wire for u8 {}
// SAFETY: `repr(transparent)` over an integer.
unsafe impl Wire for Be16 {}
// SAFETY: `repr(C)` of seven 16-bit words.
unsafe impl Wire for Eth {}
// SAFETY: `repr(C)` of words, each at a multiple of its size.
unsafe impl Wire for Ipv4 {}
// SAFETY: as above.
unsafe impl Wire for Ipv4Head {}
// SAFETY: as above.
unsafe impl Wire for Ipv6 {}
// SAFETY: as above.
unsafe impl Wire for Ipv6Head {}
// SAFETY: as above.
unsafe impl Wire for Udp {}
// SAFETY: as above.
unsafe impl Wire for Vxlan {}

/// A packet that begins with its Ethernet header.
///
/// Offsets are bytes from there. They are compile-time constants wherever the engine calls these
/// methods, which is what lets the kernel's verifier follow them.
pub trait Packet {
    /// Length of the frame in bytes, all of an aggregate.
    fn length(&self) -> u32;

    /// Makes the first `len` bytes loadable, or as many as there are.
    fn linearize(&mut self, len: usize);

    /// The bytes at `offset`, or `None` past the end of what is loadable.
    fn load<T: Wire>(&self, offset: usize) -> Option<T>;

    /// Overwrites the bytes at `offset`; `None`, and nothing written, past the end.
    fn store<T: Wire>(&mut self, offset: usize, value: &T) -> Option<()>;

    /// Payload bytes per segment if this is a GSO or GRO aggregate, else 0.
    fn segment_size(&self) -> u32;

    /// Whether a VLAN tag is kept outside of the bytes.
    fn tagged(&self) -> bool;

    /// Whether the tag that is kept outside of the bytes is of no VLAN (802.1p).
    fn priority_tagged(&self) -> bool {
        false
    }

    /// Whether the frame's Ethernet destination is that of another host, so that the kernel drops it
    /// wherever it arrives.
    fn stray(&self) -> bool {
        false
    }

    /// The mark that rules of the host give to packets (`SO_MARK`, `meta mark`); 0 for none.
    fn fwmark(&self) -> u32 {
        0
    }

    /// Interface that the hook belongs to.
    fn ifindex(&self) -> u32;

    /// Interface that the packet came to this host by, 0 if none or if that cannot be told.
    fn arrived_by(&self) -> u32 {
        0
    }

    /// Whether there is an interface of this index where the hook is.
    fn has_interface(&self, ifindex: u32) -> bool;

    /// The kernel's flow hash, from which it derives UDP source ports.
    fn flow_hash(&self) -> u32;

    /// Whether the device has verified the outermost UDP or TCP checksum. A packet that cannot tell
    /// says no.
    fn checksum_verified(&self) -> bool {
        false
    }

    /// A random number.
    fn random(&self) -> u32;

    /// Inserts room for an outer header of `family` plus an inner Ethernet header behind the
    /// Ethernet header, which becomes the outer one. `None`: refused, nothing changed.
    fn make_room(&mut self, family: Family) -> Option<()>;

    /// Undoes [`make_room`](Self::make_room); `inner` is the family of what remains. The Ethernet
    /// header's bytes are anything afterwards. `None`: refused, nothing changed.
    fn remove_room(&mut self, family: Family, inner: Family) -> Option<()>;

    /// A number that stays with the packet on its way through the host (`tc_index`), 0 unless somebody has set it.
    fn note(&self) -> u16 {
        0
    }

    /// Sets [`note`](Self::note).
    fn set_note(&mut self, _note: u16) {}

    /// What an XDP program has left with the packet, 0 if nothing.
    fn mark(&self) -> u64;

    /// Leaves something with a packet from which room has been removed.
    fn set_mark(&mut self, mark: u64) -> Option<()>;

    /// The Ethernet header that an XDP program has left behind its [`mark`](Self::mark), if it has left one.
    fn kept(&self) -> Option<Eth>;

    /// As [`set_mark`](Self::set_mark), with an Ethernet header behind it.
    fn keep(&mut self, mark: u64, eth: &Eth) -> Option<()>;

    /// Marks the packet as addressed to this host, as the receiver of a redirected packet expects.
    fn address_to_host(&mut self);

    /// Replaces bytes that no checksum of their own covers in the device's sum over the packet, if
    /// it brought one.
    fn replace_in_sum(&mut self, from: u32, to: u32);
}
