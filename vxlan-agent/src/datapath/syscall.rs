//! What aya has no function for.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya::Pod;
use nix::libc;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
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

/// A part of a map, as [`lookup_batch`] has read it.
pub(super) struct Part {
    /// How many entries were read.
    pub(super) count: usize,
    /// Where to go on: of an array the last key, of a hash the number of buckets that were read. `None`: this was
    /// the end.
    pub(super) next: Option<u32>,
}

/// Reads entries of `map` from behind `place` on, as many as `keys` takes or fewer; `values` has place for as many
/// values, of maps per CPU for one of each possible CPU.
///
/// # Errors
/// The kernel refuses.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: impl AsFd,
    place: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<Part> {
    let (place, mut next) = (place.as_ref().map_or(std::ptr::null(), std::ptr::from_ref), 0_u32);
    let mut batch = Batch {
        in_batch: place.expose_provenance() as u64,
        out_batch: (&raw mut next).expose_provenance() as u64,
        keys: keys.as_mut_ptr().expose_provenance() as u64,
        values: values.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(keys.len()).map_err(io::Error::other)?,
        map: u32::try_from(map.as_fd().as_raw_fd()).map_err(io::Error::other)?,
        entry_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel writes no more keys and values than `count` says, of the sizes that the map has; both places
    // are of 4 bytes. All outlive the call.
    let is_done = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) }.is_some();
    let error = io::Error::last_os_error();
    // The kernel says so when it has come to the end, after the last entries.
    let is_end = !is_done && error.raw_os_error() == Some(libc::ENOENT);
    if !is_done && !is_end {
        return Err(error);
    }
    Ok(Part { count: batch.count as usize, next: is_done.then_some(next) })
}

/// `union bpf_attr` of `BPF_OBJ_GET`, as far as it is needed.
#[repr(C)]
struct Get {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// What is pinned at `path`, if anything is.
pub(super) fn pinned(path: &Path) -> Option<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut get = Get { path: name.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    // SAFETY: `name` ends with a zero byte and outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the kernel write what it says of `object` to `info`.
///
/// # Safety
/// `info` is the beginning of the structure that the kernel has for this kind of object, valid for any bytes, and
/// pointers in it are zero.
pub(super) unsafe fn describe<T>(object: &OwnedFd, info: &mut T) -> Option<()> {
    let mut request = GetInfo {
        fd: u32::try_from(object.as_raw_fd()).ok()?,
        length: u32::try_from(size_of::<T>()).ok()?,
        info: std::ptr::from_mut(info).expose_provenance() as u64,
    };
    // SAFETY: `info` has as many bytes as `length` says, and outlives the call; the rest is the caller's promise.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut request) }.map(|_| ())
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
