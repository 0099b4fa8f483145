//! What aya has no function for.

use std::os::fd::{AsFd, AsRawFd as _};

use aya::Pod;
use nix::libc;

const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;

/// `union bpf_attr` of the commands for many entries of a map.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

/// Writes many entries of `map`, whose keys and values have these types, in one call; whether all are
/// written. If not, some may be.
pub(super) fn update_batch<K: Pod, V: Pod>(map: impl AsFd, keys: &[K], values: &[V]) -> bool {
    let (Ok(count), Ok(map)) = (u32::try_from(keys.len()), u32::try_from(map.as_fd().as_raw_fd())) else {
        return false;
    };
    let mut batch = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr().expose_provenance() as u64,
        values: values.as_ptr().expose_provenance() as u64,
        count,
        map,
        entry_flags: 0,
        flags: 0,
    };
    // The kernel says in `count` how many it has written.
    // SAFETY: keys and values are as many as `count` says, of the sizes that the map has, and outlive the call.
    let mut written = || unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut batch) }.is_some();
    keys.len() == values.len() && written() && batch.count == count
}

/// The system call; `None` if it fails.
///
/// # Safety
/// `attributes` is the part of `union bpf_attr` that `command` takes, and the pointers in it are valid for
/// what the kernel reads and writes there.
pub(super) unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> Option<i32> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes at `attributes`, which outlives the
    // call; the rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    i32::try_from(result).ok().filter(|result| *result >= 0)
}
