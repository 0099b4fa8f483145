//! Where a pinned link is attached, asked of the link itself: to look the other way round, at the
//! programs of an interface, takes `CAP_SYS_ADMIN`.

use std::path::Path;

use super::syscall::{describe, pinned};

/// The links that belong to an interface (`enum bpf_link_type`, v6.18).
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

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
    let mut info = LinkInfo::default();
    // SAFETY: these are the first fields of `struct bpf_link_info`, none of them a pointer.
    unsafe { describe(&pinned(path)?, &mut info) }?;
    // A link whose interface is gone stays, with the index 0.
    let there = matches!(info.kind, BPF_LINK_TYPE_XDP | BPF_LINK_TYPE_TCX) && info.ifindex != 0;
    there.then_some(info.ifindex)
}
