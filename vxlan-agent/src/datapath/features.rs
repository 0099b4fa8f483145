//! What a kernel offers to the fast path beyond what it needs, found by trying.
//!
//! Nothing here decides anything: programs are attached as the kernel lets them, and hand a packet
//! that it cannot change as they ask to the kernel. This is so that an operator can know.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use nix::libc;
use serde::{Deserialize, Serialize};

use super::attach;

/// What the kernel offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFeatures {
    /// TCX links (Linux 6.6).
    pub tcx: bool,
    /// `BPF_F_ADJ_ROOM_DECAP_L3_IPV4` and `_IPV6` (Linux 6.3): taking off headers of another family.
    pub mixed_decap: bool,
    /// `BPF_F_ADJ_ROOM_DECAP_L4_UDP`: taking tunnel headers off an aggregate, marks and all. In no
    /// released kernel so far, and not made use of.
    pub aggregate_decap: bool,
    /// XDP programs for packets in several buffers (Linux 5.18).
    pub xdp_frags: bool,
    /// The kernel's types at `/sys/kernel/btf/vmlinux`.
    pub btf: bool,
}

impl KernelFeatures {
    /// Tries each. Needs `CAP_BPF` and `CAP_NET_ADMIN`; without them everything seems to be missing.
    pub fn probe() -> Self {
        Self {
            tcx: attach::has_tcx(),
            mixed_decap: can_take_off(DECAP_L3_IPV6),
            aggregate_decap: can_take_off(DECAP_L4_UDP),
            xdp_frags: has_xdp_frags(),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        }
    }

    /// What the programs would use and is missing, and what happens instead.
    pub fn missing(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            (self.tcx, "TCX", "programs are attached as clsact filters"),
            (
                self.mixed_decap,
                "mixed decapsulation",
                "the device takes IPv6 out of IPv4, and IPv4 out of IPv6",
            ),
            (self.xdp_frags, "XDP frags", "TC takes all packets out of the tunnel"),
            (self.btf, "BTF", "tools cannot show the kernel's types"),
        ];
        all.into_iter().filter(|(has, ..)| !has).map(|(_, name, instead)| (name, instead)).collect()
    }
}

/// One instruction, `struct bpf_insn`: operation, registers (source << 4 | destination), offset,
/// immediate value.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction(u8, u8, i16, i32);

/// `dst = imm`, all 64 bits.
const fn load(dst: u8, imm: i32) -> Instruction {
    Instruction(0xb7, dst, 0, imm)
}

const fn call(helper: i32) -> Instruction {
    Instruction(0x85, 0, 0, helper)
}
const EXIT: Instruction = Instruction(0x95, 0, 0, 0);

const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
/// `BPF_F_XDP_HAS_FRAGS`.
const HAS_FRAGS: u32 = 1 << 5;

/// Flags of `bpf_skb_adjust_room`.
const DECAP_L3_IPV6: i32 = 1 << 8;
const DECAP_L4_UDP: i32 = 1 << 10;

/// Takes an outer IPv4 header, with UDP, VXLAN and Ethernet, off a packet; what the program returns
/// is the helper's verdict.
fn can_take_off(flag: i32) -> bool {
    const SKB_ADJUST_ROOM: i32 = 50;
    const OUTER: i32 = 50;
    const ROOM_MAC: i32 = 1;
    const FIXED_GSO: i32 = 1;
    let take_off =
        [load(2, -OUTER), load(3, ROOM_MAC), load(4, FIXED_GSO | flag), call(SKB_ADJUST_ROOM), EXIT];
    let mut frame = [0; 200];
    // The EtherType of IPv4.
    frame[12] = 0x08;
    load_program(SCHED_CLS, 0, &take_off).and_then(|program| run(&program, &frame)).is_ok_and(|ret| ret == 0)
}

fn has_xdp_frags() -> bool {
    const XDP_PASS: i32 = 2;
    load_program(XDP, HAS_FRAGS, &[load(0, XDP_PASS), EXIT]).is_ok()
}

/// `union bpf_attr` of `BPF_PROG_LOAD`, as far as it has to be filled in.
#[repr(C)]
struct LoadAttr {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

fn load_program(kind: u32, flags: u32, instructions: &[Instruction]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    let attr = LoadAttr {
        kind,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buffer: 0,
        kernel_version: 0,
        flags,
    };
    // SAFETY: `attr` is what the command takes; instructions and licence outlive the call.
    let fd = unsafe { bpf(PROG_LOAD, &mut { attr }) }?;
    // SAFETY: the kernel returned a descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `union bpf_attr` of `BPF_PROG_TEST_RUN`, as far as it has to be filled in.
#[repr(C)]
struct RunAttr {
    program: u32,
    returned: u32,
    input_length: u32,
    output_length: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
}

/// Runs a program on a frame and returns what it returned.
fn run(program: &OwnedFd, frame: &[u8]) -> io::Result<u32> {
    const PROG_TEST_RUN: libc::c_int = 10;
    let mut attr = RunAttr {
        program: program.as_raw_fd().cast_unsigned(),
        returned: 0,
        input_length: frame.len() as u32,
        output_length: 0,
        input: frame.as_ptr() as u64,
        output: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: `attr` is what the command takes, the kernel only reads `frame`, which outlives it.
    unsafe { bpf(PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.returned)
}

/// # Safety
/// `attr` is the part of `union bpf_attr` that `command` takes, with valid pointers.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_happens_instead() {
        let all = KernelFeatures {
            tcx: true,
            mixed_decap: true,
            aggregate_decap: false,
            xdp_frags: true,
            btf: true,
        };
        assert!(all.missing().is_empty());
        let missing = KernelFeatures { tcx: false, ..all }.missing();
        assert_eq!(missing, [("TCX", "programs are attached as clsact filters")]);
    }
}
