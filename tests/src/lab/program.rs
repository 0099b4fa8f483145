//! BPF programs of somebody else's on an interface.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::libc;

use super::Netns;

/// A TCX program that drops every packet; gone when dropped.
pub struct Dropper {
    _link: OwnedFd,
}

const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// `BPF_F_BEFORE`.
const BEFORE: u32 = 1 << 3;
const TC_ACT_SHOT: u8 = 2;

/// `union bpf_attr` of `BPF_PROG_LOAD`, as far as it has to be filled in.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    log: [u32; 4],
    kernel: u32,
    flags: u32,
    name: [u8; 16],
}

/// `union bpf_attr` of `BPF_LINK_CREATE`, as far as it has to be filled in.
#[repr(C)]
struct Create {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

impl Dropper {
    /// Attaches one to `interface` of `ns`, where packets come in or where they go out; behind what is
    /// there already.
    ///
    /// # Errors
    /// There is no such interface, or the kernel has no TCX (Linux 6.6).
    pub fn behind(ns: &Netns, interface: &str, entry: bool) -> Result<Self> {
        Self::attach(ns, interface, entry, 0)
    }

    /// The same, in front of what is there already.
    ///
    /// # Errors
    /// As [`Dropper::behind`].
    pub fn in_front(ns: &Netns, interface: &str, entry: bool) -> Result<Self> {
        Self::attach(ns, interface, entry, BEFORE)
    }

    fn attach(ns: &Netns, interface: &str, entry: bool, flags: u32) -> Result<Self> {
        let program = load().context("cannot load a program")?;
        let link = || {
            let mut create = Create {
                program: program.as_raw_fd().cast_unsigned(),
                ifindex: nix::net::if_::if_nametoindex(interface)?,
                attach_type: if entry { TCX_INGRESS } else { TCX_EGRESS },
                flags,
                relative: 0,
                padding: 0,
                revision: 0,
            };
            // SAFETY: no pointers involved.
            unsafe { bpf(LINK_CREATE, &mut create) }
        };
        let link = ns.run(link).with_context(|| format!("cannot attach a program to {interface}"))?;
        Ok(Self { _link: link })
    }
}

/// `r0 = TC_ACT_SHOT; exit`, called as no program of ours is.
fn load() -> io::Result<OwnedFd> {
    let code: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, TC_ACT_SHOT, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let mut load = Load {
        kind: SCHED_CLS,
        instructions: code.len() as u32,
        code: code.as_ptr().expose_provenance() as u64,
        licence: c"GPL".as_ptr().expose_provenance() as u64,
        log: [0; 4],
        kernel: 0,
        flags: 0,
        name: *b"somebodys\0\0\0\0\0\0\0",
    };
    // SAFETY: code and licence outlive the call.
    unsafe { bpf(PROG_LOAD, &mut load) }
}

/// # Safety
/// `attributes` is the part of `union bpf_attr` that `command` takes, with valid pointers, and the command
/// returns a descriptor.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    match i32::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
