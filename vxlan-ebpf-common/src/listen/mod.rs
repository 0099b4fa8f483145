//! Events: what programs tell a process that listens, and which of it they tell.
//!
//! While nobody listens, [`Listen::until`] is zero, and a packet costs two branches. While somebody does, each
//! program copies the beginning of a packet to [`Snapshot`] before it looks at it. When it is done it leaves
//! there what became of it and makes a tail call to the program `report`, which applies the [`Filter`], takes
//! samples and keeps the rate, and hands [`Event`], copy and packet to EVENTS.
//!
//! The listener renews `until` every second. If it ends without a word, the first packet after that makes it zero.

mod filter;
mod head;

pub use filter::Filter;
pub use head::{Head, IpPacket, Tunnel};

use crate::counters::{Hook, Reason};
use crate::maps::NetworkId;

/// The most that [`Snapshot`] has of a packet as it was found, in bytes.
pub const HEAD_LEN: usize = 2048;
/// The most that an event has of a packet as it was left, in bytes. A record of the kernel's has less than 65 536.
pub const MAX_AFTER: u32 = 16_384;
/// [`Listen::sample`] that takes every packet.
pub const EVERY_PACKET: u32 = u32::MAX;
/// What may be saved up of a rate, in nanoseconds.
const BURST: u64 = 1_000_000_000;

/// The entry of LISTEN: who listens, and to what.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Listen {
    /// `CLOCK_MONOTONIC` in nanoseconds; 0: nobody listens.
    pub until: u64,
    /// Nanoseconds from event to event on one CPU, on average; 0: any number of events.
    pub interval: u64,
    /// A packet whose random number is above is left out.
    pub sample: u32,
    /// Bytes of each packet that a program forwards, as it was found, at most [`HEAD_LEN`].
    pub before: u32,
    /// Bytes of each packet that a program forwards, as it was left, at most [`MAX_AFTER`].
    pub after: u32,
    /// Bytes of each packet that no program changes, at most [`MAX_AFTER`].
    pub untouched: u32,
    /// The listener's process, as it knows itself.
    pub pid: u32,
    /// Zero.
    pub reserved: u32,
    /// Which packets.
    pub filter: Filter,
}

/// What became of a packet at a hook. Behind it come [`before`](Self::before) and then [`after`](Self::after)
/// bytes of the packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Event {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// Whose packet it is.
    pub network: NetworkId,
    /// The interface that the hook belongs to.
    pub ifindex: u32,
    /// Bytes of the packet as it was found, from the Ethernet header on.
    pub length: u32,
    /// Bytes of the packet as it was left.
    pub length_after: u32,
    /// Payload bytes per segment of an aggregate, else 0.
    pub segment: u32,
    /// How many bytes of the packet as it was found there are; none of one that no program has changed.
    pub before: u32,
    /// How many bytes of the packet as it was left there are.
    pub after: u32,
    /// A [`Hook`].
    pub hook: u8,
    /// A [`Reason`].
    pub reason: u8,
    /// 1: a program has dropped it.
    pub dropped: u8,
    /// 1: a program has forwarded it, and changed it for that.
    pub forwarded: u8,
}

impl Event {
    /// The hook, if this version knows it.
    pub fn hook(&self) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| *hook as u8 == self.hook)
    }

    /// The reason, if this version knows it.
    pub fn reason(&self) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| *reason as u8 == self.reason)
    }
}

/// How many packets of a CPU passed the filter, and what kept events of them from the listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Heard {
    /// Packets that passed the filter.
    pub matched: u64,
    /// Those that no sample was taken of.
    pub unsampled: u64,
    /// Those that were too many.
    pub suppressed: u64,
    /// Those that found no place in EVENTS.
    pub lost: u64,
}

/// A token bucket: what the events of a CPU may still cost.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Bucket {
    /// Nanoseconds saved up.
    pub credit: u64,
    /// When that was, `CLOCK_MONOTONIC` in nanoseconds.
    pub at: u64,
}

impl Bucket {
    /// Takes what one event costs at a rate of one in `interval` nanoseconds; whether there was enough.
    #[inline(always)]
    pub fn take(&mut self, now: u64, interval: u64) -> bool {
        if interval == 0 {
            return true;
        }
        let saved = self.credit.saturating_add(now.saturating_sub(self.at));
        self.credit = if saved > BURST { BURST } else { saved };
        self.at = now;
        let is_enough = self.credit >= interval;
        if is_enough {
            self.credit -= interval;
        }
        is_enough
    }
}

/// The entry of SNAPSHOT, one per CPU: what a program leaves to `report`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// What events may still cost.
    pub bucket: Bucket,
    /// What was counted.
    pub heard: Heard,
    /// What the program returns.
    pub action: i32,
    /// How many bytes `head` has of the packet.
    pub copied: u32,
    /// The event.
    pub event: Event,
    /// The packet as it was found.
    pub head: [u8; HEAD_LEN],
}

impl Snapshot {
    /// Of nothing.
    pub const EMPTY: Self = Self {
        bucket: Bucket { credit: 0, at: 0 },
        heard: Heard { matched: 0, unsampled: 0, suppressed: 0, lost: 0 },
        action: 0,
        copied: 0,
        event: Event {
            time: 0,
            network: 0,
            ifindex: 0,
            length: 0,
            length_after: 0,
            segment: 0,
            before: 0,
            after: 0,
            hook: 0,
            reason: 0,
            dropped: 0,
            forwarded: 0,
        },
        head: [0; HEAD_LEN],
    };
}

#[cfg(feature = "user")]
mod pod {
    //! Both are `repr(C)`, `Copy`, without padding, and valid for any bytes.
    use super::{Listen, Snapshot};

    // SAFETY: see the module's first line; `size_of` below checks the absence of padding.
    unsafe impl aya::Pod for Listen {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Snapshot {}
}

/// No type has padding: the sizes are the sums of the fields.
const _: () = {
    assert!(size_of::<Filter>() == 8 + 3 * 4 + 4 * 16 + 6 + 2 + 1 + 3);
    assert!(size_of::<Listen>() == 2 * 8 + 6 * 4 + size_of::<Filter>());
    assert!(size_of::<Event>() == 8 + 7 * 4 + 4);
    assert!(size_of::<Snapshot>() == 6 * 8 + 8 + size_of::<Event>() + HEAD_LEN);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_and_a_second_of_it_is_saved_up() {
        const TENTH: u64 = 100_000_000;
        let (mut bucket, start) = (Bucket::default(), 1_000 * BURST);
        let mut taken = |at: u64| (0..100).filter(|_| bucket.take(at, TENTH)).count();
        assert_eq!(taken(start), 10);
        assert_eq!(taken(start + TENTH / 2), 0);
        assert_eq!(taken(start + TENTH), 1);
        assert_eq!(taken(start + 100 * BURST), 10);
        // A clock that another CPU has read a little earlier.
        assert_eq!(taken(start), 0);
        assert!(bucket.take(start, 0));
    }
}
