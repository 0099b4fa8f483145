//! Telling a process that listens what became of packets: see [`vxlan_ebpf_common::listen`].
//!
//! Programs make a tail call for it, since they have neither the stack nor the registers for more, and the verifier
//! looks at what is called once, not once for each verdict. None of them calls a function beside that: together the
//! two need a recent kernel on arm64 (Linux 6.0).

use core::hint::black_box;
use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{__sk_buff, BPF_F_CURRENT_CPU, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action, xdp_md};
use aya_ebpf::helpers::generated::{bpf_skb_load_bytes, bpf_xdp_load_bytes};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_ns, bpf_perf_event_output, bpf_xdp_get_buff_len};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::error;
use vxlan_ebpf_common::listen::{Event, HEAD_LEN, Head, Listen, MAX_AFTER, Snapshot};
use vxlan_ebpf_common::maps::NetworkId;
use vxlan_ebpf_common::{Hook, Reason};

use crate::maps::{EVENTS, LISTEN, Maps, REPORT, REPORT_XDP, SNAPSHOT};

/// What became of a packet.
pub(crate) struct What {
    pub(crate) network: NetworkId,
    pub(crate) hook: Hook,
    pub(crate) reason: Reason,
    /// Its length before.
    pub(crate) bytes: u32,
    pub(crate) action: i32,
    /// Whether it is forwarded.
    pub(crate) forwarded: bool,
}

/// What somebody listens to, if somebody does.
#[inline(always)]
fn listening() -> Option<&'static Listen> {
    LISTEN.get(0).filter(|listen| listen.until != 0)
}

/// How much of a packet of `bytes` is copied, if any of it.
///
/// What is left of the number at the end is from one to [`HEAD_LEN`], as it is before. But the verifier of Linux 6.1
/// forgets what it knew of a 32-bit number that has been on the stack, and does not see that what is not zero is more.
#[inline(always)]
fn copied(listen: &Listen, bytes: u32) -> Option<u32> {
    const { assert!(HEAD_LEN.is_power_of_two()) };
    let len = bytes.min(listen.before).min(HEAD_LEN as u32);
    if len == 0 {
        return None;
    }
    Some((black_box(u64::from(len) - 1) & (HEAD_LEN as u64 - 1)) as u32 + 1)
}

/// `len`, which is no more than [`HEAD_LEN`], compared once more in a register of its own; see [`copied`].
#[inline(always)]
fn bounded(len: u32) -> Option<u64> {
    let len = black_box(u64::from(len));
    (len <= HEAD_LEN as u64).then_some(len)
}

/// Copies the beginning of a packet of `bytes`, if somebody listens; whether somebody does.
#[inline(always)]
pub(crate) fn note(ctx: &TcContext, bytes: u32) -> bool {
    let Some(listen) = listening() else { return false };
    let Some(snapshot) = SNAPSHOT.get_ptr_mut(0) else { return false };
    // SAFETY: the context is valid while the program runs, and what is copied is no more than `head` has. The snapshot
    // is this CPU's, where no other program runs meanwhile.
    unsafe {
        (*snapshot).copied = 0;
        let Some(len) = copied(listen, bytes) else { return true };
        let to = (&raw mut (*snapshot).head).cast();
        if bpf_skb_load_bytes(ctx.as_ptr(), 0, to, len) == 0 {
            (*snapshot).copied = len;
        }
    }
    true
}

/// The same at XDP.
#[inline(always)]
pub(crate) fn note_xdp(ctx: &XdpContext) -> bool {
    let Some(listen) = listening() else { return false };
    let Some(snapshot) = SNAPSHOT.get_ptr_mut(0) else { return false };
    // SAFETY: as above.
    unsafe {
        (*snapshot).copied = 0;
        let bytes = bpf_xdp_get_buff_len(ctx.as_ptr().cast()) as u32;
        let Some(len) = copied(listen, bytes) else { return true };
        let to = (&raw mut (*snapshot).head).cast();
        if bpf_xdp_load_bytes(ctx.as_ptr().cast(), 0, to, len) == 0 {
            (*snapshot).copied = len;
        }
    }
    true
}

/// Has [`report_event`] take over, if somebody `listens`; it returns what the program would.
#[inline(always)]
pub(crate) fn report(ctx: &TcContext, listens: bool, what: What) {
    if leave(listens, what) {
        // SAFETY: nothing is left to be dropped here.
        unsafe { REPORT.tail_call(ctx, 0) };
    }
}

/// The same at XDP.
#[inline(always)]
pub(crate) fn report_xdp(ctx: &XdpContext, listens: bool, what: What) {
    if leave(listens, what) {
        // SAFETY: as above.
        unsafe { REPORT_XDP.tail_call(ctx, 0) };
    }
}

/// Leaves what became of a packet in SNAPSHOT, if anybody is to be told.
#[inline(always)]
fn leave(listens: bool, what: What) -> bool {
    let is_told = listens && what.reason != Reason::NotVxlan;
    if !is_told && what.reason != Reason::WriteFailed {
        return false;
    }
    let Some(snapshot) = SNAPSHOT.get_ptr_mut(0) else { return false };
    // SAFETY: see `note`.
    unsafe {
        (*snapshot).action = what.action;
        (*snapshot).event.network = what.network;
        (*snapshot).event.length = what.bytes;
        (*snapshot).event.hook = what.hook as u8;
        (*snapshot).event.reason = what.reason as u8;
        (*snapshot).event.forwarded = u8::from(what.forwarded);
    }
    true
}

/// Tells of a packet at TC, and does with it what the program has decided.
#[classifier]
fn report_event(ctx: TcContext) -> i32 {
    // SAFETY: see `note`.
    let Some(snapshot) = SNAPSHOT.get_ptr_mut(0).map(|snapshot| unsafe { &mut *snapshot }) else {
        return TC_ACT_UNSPEC;
    };
    let action = snapshot.action;
    if snapshot.event.reason == Reason::WriteFailed as u8 {
        // A kernel that makes room and then does not let us write there: nothing else logs.
        error!(&ctx, "dropped a packet that could not be written to, hook {}", snapshot.event.hook);
    }
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context is valid while the program runs.
    let (ifindex, segment, length) = unsafe { ((*skb).ifindex, (*skb).gso_size, (*skb).len) };
    snapshot.event.segment = segment;
    tell(&ctx, snapshot, (ifindex, length), action == TC_ACT_SHOT);
    action
}

/// Tells of a packet at XDP, and does with it what the program has decided.
#[xdp(frags)]
fn report_event_xdp(ctx: XdpContext) -> u32 {
    // SAFETY: see `note`.
    let Some(snapshot) = SNAPSHOT.get_ptr_mut(0).map(|snapshot| unsafe { &mut *snapshot }) else {
        return xdp_action::XDP_PASS;
    };
    let action = snapshot.action as u32;
    let md: *mut xdp_md = ctx.as_ptr().cast();
    // SAFETY: the context is valid while the program runs.
    let (ifindex, length) = unsafe { ((*md).ingress_ifindex, bpf_xdp_get_buff_len(md) as u32) };
    snapshot.event.segment = 0;
    tell(&ctx, snapshot, (ifindex, length), action == xdp_action::XDP_DROP);
    action
}

/// Hands the event to the listener, if it is to have it.
#[inline(always)]
fn tell(ctx: &impl EbpfContext, snapshot: &mut Snapshot, (ifindex, length): (u32, u32), dropped: bool) {
    let Some(listen) = LISTEN.get_ptr_mut(0) else { return };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the entry lies in a map's memory, which any program may write to. A listener that is still there
    // writes it again.
    let listen = unsafe {
        if now >= (*listen).until {
            (&raw mut (*listen).until).write_volatile(0);
            return;
        }
        &*listen
    };
    if !is_wanted(listen, snapshot, now) {
        return;
    }
    let (before, after) = match snapshot.event.forwarded {
        0 => (0, listen.untouched),
        _ => (snapshot.copied.min(HEAD_LEN as u32), listen.after),
    };
    let after = length.min(after).min(MAX_AFTER);
    let event = &mut snapshot.event;
    (event.time, event.ifindex, event.length_after) = (now, ifindex, length);
    (event.before, event.after, event.dropped) = (before, after, u8::from(dropped));
    let flags = u64::from(after) << 32 | BPF_F_CURRENT_CPU;
    let Some(behind) = bounded(before) else { return };
    let size = size_of::<Event>() as u64 + behind;
    // SAFETY: the context is valid while the program runs; behind the event lies the head, of which `before` bytes
    // are there.
    let told = unsafe {
        let data = core::ptr::from_mut(snapshot).byte_add(offset_of!(Snapshot, event)).cast();
        let events = (&raw const EVENTS).cast_mut().cast();
        bpf_perf_event_output(ctx.as_ptr(), events, flags, data, size)
    };
    if told != 0 {
        snapshot.heard.lost += 1;
    }
}

/// Whether the listener is to hear of a packet; counts what it does not hear of.
#[inline(always)]
fn is_wanted(listen: &Listen, snapshot: &mut Snapshot, now: u64) -> bool {
    let len = snapshot.copied.min(HEAD_LEN as u32) as usize;
    let Some(bytes) = snapshot.head.get(..len) else { return false };
    let maps = Maps::new();
    let network = maps.listed(snapshot.event.network);
    if !listen.filter.takes(&maps, network, &snapshot.event, &Head(bytes)) {
        return false;
    }
    snapshot.heard.matched += 1;
    // SAFETY: no arguments.
    if unsafe { bpf_get_prandom_u32() } > listen.sample {
        snapshot.heard.unsampled += 1;
        return false;
    }
    let is_taken = snapshot.bucket.take(now, listen.interval);
    if !is_taken {
        snapshot.heard.suppressed += 1;
    }
    is_taken
}
