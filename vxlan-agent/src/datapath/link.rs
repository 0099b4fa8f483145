//! Where a pinned link is attached, asked of the link itself: to look the other way round, at the
//! programs of an interface, takes `CAP_SYS_ADMIN`.

use std::ffi::CString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;

use super::syscall::bpf;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// The links that belong to an interface (`enum bpf_link_type`, v6.18).
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

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

/// The beginning of `struct bpf_link_info`, with what the union's `xdp` and `tcx` begin with.
#[derive(Default)]
#[repr(C)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    rest: u32,
}

/// The interface that the TCX or XDP link pinned at `path` is on; `None` if that has been deleted, or
/// there is no such link.
pub(super) fn interface_of(path: &Path) -> Option<u32> {
    let name = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut get = Get { path: name.as_ptr().expose_provenance() as u64, fd: 0, flags: 0 };
    // SAFETY: `name` ends with a zero byte and outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut get) }?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut info = LinkInfo::default();
    let mut request = GetInfo {
        fd: u32::try_from(link.as_raw_fd()).ok()?,
        length: size_of::<LinkInfo>() as u32,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: `info` has as many bytes as `length` says, and outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut request) }?;
    // A link whose interface is gone stays, with the index 0.
    let there = matches!(info.kind, BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX) && info.ifindex != 0;
    there.then_some(info.ifindex)
}
