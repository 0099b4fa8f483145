//! Which flows may bypass the host stack: those that it has been seen to pass unchanged.
//!
//! A pod's packet is noted as pending and left to the stack. If the same addresses and ports then
//! appear where the stack hands packets on (the vxlan device, or the veth of the receiving pod),
//! neither NAT nor a packet filter has touched it, and its direction is verified. A translated
//! flow never matches itself, so it stays with the stack.
//!
//! TCP needs both directions and then stays open until it is over: a packet in mid-stream that is
//! handed back to the stack lies outside of conntrack's window. Datagrams and echoes open each
//! direction on its own, and about once a second one of them takes the stack again, so that
//! conntrack and filters go on seeing the flow and can end it.

use crate::counters::Reason;
use crate::headers::{Be16, protocol};
use crate::inner::Inner;
use crate::maps::{Config, Direction, Flow, FlowKey, Mode};
use crate::packet::Packet;
use crate::tables::Tables;

const SECOND: u64 = 1_000_000_000;
/// A verified direction of datagrams takes the stack again after this time.
const RECHECK: u64 = SECOND;

/// TCP flags.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Direction of a packet as its local pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the pod.
    Egress,
    /// To the pod.
    Ingress,
}

/// Values of [`Direction::state`].
pub mod seen {
    /// Nothing.
    pub const NOTHING: u8 = 0;
    /// A packet that was left to the stack.
    pub const PENDING: u8 = 1;
    /// The same packet behind the stack.
    pub const VERIFIED: u8 = 2;
}

/// Bits of [`Flow::closing`].
pub mod closing {
    /// The local pod has sent FIN.
    pub const LOCAL: u8 = 1;
    /// The remote side has sent FIN.
    pub const REMOTE: u8 = 2;
    /// Either has sent RST, or both FIN.
    pub const CLOSED: u8 = 3;
}

/// The flow of a packet, and what matters of it.
pub(crate) struct Tuple {
    key: FlowKey,
    /// TCP flags, 0 for other protocols.
    flags: u8,
}

/// The tuple of the packet with the IP header `ip` at `offset`; `None` if it is of no kind that can
/// be verified.
#[inline(always)]
pub(crate) fn tuple<P: Packet, H: Inner>(p: &P, ip: &H, offset: usize, way: Way) -> Option<Tuple> {
    let transport = offset + H::LEN;
    let protocol = ip.protocol();
    let (source, destination, flags) = match protocol {
        protocol::TCP => (p.load(transport)?, p.load(transport + 2)?, p.load(transport + 13)?),
        protocol::UDP => (p.load(transport)?, p.load(transport + 2)?, 0),
        _ if is_echo(protocol, p.load(transport)?) => {
            let id: Be16 = p.load(transport + 4)?;
            (id, id, 0)
        }
        _ => return None,
    };
    let (from, to) = (H::addr(ip.source()), H::addr(ip.destination()));
    let key = match way {
        Way::Egress => FlowKey::new(from, to, source, destination, protocol),
        Way::Ingress => FlowKey::new(to, from, destination, source, protocol),
    };
    Some(Tuple { key, flags })
}

/// Echo request or reply. Errors are about other flows, and the stack knows which.
#[inline(always)]
const fn is_echo(protocol: u8, kind: u8) -> bool {
    matches!((protocol, kind), (protocol::ICMP, 0 | 8) | (protocol::ICMPV6, 128 | 129))
}

/// Lets a packet bypass the stack, or notes it as pending and says why not.
#[inline(always)]
pub(crate) fn admit<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    config: &Config,
    at: (&H, usize),
    way: Way,
) -> Result<(), Reason> {
    let refused = recognise(p, t, config, at, way);
    if refused.is_err() {
        announce(p, t, at, way);
    }
    refused
}

/// Lets a packet bypass the stack, or says why not. For a packet that is still in its tunnel, and
/// will be looked at again when it is not.
#[inline(always)]
pub(crate) fn recognise<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    config: &Config,
    (ip, offset): (&H, usize),
    way: Way,
) -> Result<(), Reason> {
    if config.mode != Mode::Verified as u8 {
        return Ok(());
    }
    let tuple = tuple(p, ip, offset, way).ok_or(Reason::Unverified)?;
    let mut flow = t.flow(&tuple.key).ok_or(Reason::Unverified)?;
    if flow.bypass(t, &tuple, way, p.length()) { Ok(()) } else { Err(Reason::Unverified) }
}

/// Notes a packet that the stack is about to see.
#[inline(always)]
pub(crate) fn announce<P: Packet, T: Tables, H: Inner>(p: &P, t: &T, (ip, offset): (&H, usize), way: Way) {
    let Some(tuple) = tuple(p, ip, offset, way) else { return };
    let (now, generation, hash) = (t.now(), t.generation(), p.flow_hash());
    if let Some(mut flow) = t.flow(&tuple.key) {
        return flow.note(&tuple, way, hash, now, generation);
    }
    let mut flow = Flow::new(generation, now);
    flow.note(&tuple, way, hash, now, generation);
    t.insert_flow(&tuple.key, &flow);
}

/// Verifies the direction of a packet that the stack has passed.
///
/// Equal addresses and ports do not suffice: of two flows, one direct and one translated, each may
/// look behind the stack like the other before it. But a packet keeps its flow hash on its way
/// through the stack, whatever NAT makes of it.
#[inline(always)]
pub(crate) fn passed<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    config: &Config,
    (ip, offset): (&H, usize),
    way: Way,
) {
    if config.mode != Mode::Verified as u8 {
        return;
    }
    let Some(tuple) = tuple(p, ip, offset, way) else { return };
    let (now, generation, hash) = (t.now(), t.generation(), p.flow_hash());
    let Some(mut flow) = t.flow(&tuple.key) else { return };
    let current = flow.generation == generation;
    let direction = flow.direction(way);
    if current && direction.state == seen::PENDING && direction.hash == hash {
        direction.state = seen::VERIFIED;
        direction.checked = now;
    }
}

impl Flow {
    /// A flow that nothing is known of but that it has begun.
    #[inline(always)]
    const fn new(generation: u32, now: u64) -> Self {
        Self {
            generation,
            closing: 0,
            reserved: 0,
            tick: 0,
            since: now,
            last: now,
            egress: Direction::NEW,
            ingress: Direction::NEW,
            packets: 0,
            bytes: 0,
        }
    }

    /// How long the flow outlives its last packet, in nanoseconds.
    #[inline(always)]
    pub const fn lifetime(&self, protocol: u8) -> u64 {
        match protocol {
            // Long enough for a last acknowledgement, and for a FIN that is sent again.
            protocol::TCP if self.closing == closing::CLOSED => 10 * SECOND,
            protocol::TCP if self.is_verified() => 24 * 3600 * SECOND,
            protocol::TCP => 60 * SECOND,
            _ => 30 * SECOND,
        }
    }

    #[inline(always)]
    fn direction(&mut self, way: Way) -> &mut Direction {
        match way {
            Way::Egress => &mut self.egress,
            Way::Ingress => &mut self.ingress,
        }
    }

    #[inline(always)]
    fn is_current(&self, protocol: u8, now: u64, generation: u32) -> bool {
        self.generation == generation && now.wrapping_sub(self.last) <= self.lifetime(protocol)
    }

    #[inline(always)]
    const fn is_verified(&self) -> bool {
        self.egress.state == seen::VERIFIED && self.ingress.state == seen::VERIFIED
    }

    /// Whether a packet may bypass the stack, and takes down that it does.
    #[inline(always)]
    fn bypass<T: Tables>(&mut self, t: &T, tuple: &Tuple, way: Way, bytes: u32) -> bool {
        // To read the clock takes a call. A TCP connection does without for as long as the clock
        // stands still, and should the low bits of the tick agree by chance, it does no harm.
        let tick = t.tick() as u16;
        let still = tuple.key.protocol == protocol::TCP && self.tick == tick;
        let now = if still { self.last } else { t.now() };
        let open = self.is_open(tuple, way, now, t.generation());
        if open {
            self.tick = tick;
            self.count(tuple, way, now, bytes);
        }
        open
    }

    /// Whether a packet may bypass the stack. One that begins a connection never does.
    #[inline(always)]
    fn is_open(&self, tuple: &Tuple, way: Way, now: u64, generation: u32) -> bool {
        let protocol = tuple.key.protocol;
        if !self.is_current(protocol, now, generation) {
            return false;
        }
        if protocol == protocol::TCP {
            return self.is_verified() && tuple.flags & SYN == 0;
        }
        let direction = match way {
            Way::Egress => &self.egress,
            Way::Ingress => &self.ingress,
        };
        direction.state == seen::VERIFIED && now.wrapping_sub(direction.checked) < RECHECK
    }

    /// Takes down a packet that bypasses the stack.
    #[inline(always)]
    fn count(&mut self, tuple: &Tuple, way: Way, now: u64, bytes: u32) {
        self.last = now;
        self.packets += 1;
        self.bytes += bytes as u64;
        if tuple.flags & RST != 0 {
            self.closing = closing::CLOSED;
        } else if tuple.flags & FIN != 0 {
            self.closing |= match way {
                Way::Egress => closing::LOCAL,
                Way::Ingress => closing::REMOTE,
            };
        }
    }

    /// Takes down a packet that is left to the stack.
    #[inline(always)]
    fn note(&mut self, tuple: &Tuple, way: Way, hash: u32, now: u64, generation: u32) {
        let protocol = tuple.key.protocol;
        // A SYN begins anew, unless it is one sent again while the first is being verified.
        let begins = tuple.flags & (SYN | ACK) == SYN && self.packets != 0;
        if begins || !self.is_current(protocol, now, generation) {
            *self = Self::new(generation, now);
        }
        self.last = now;
        let direction = self.direction(way);
        if protocol != protocol::TCP || direction.state != seen::VERIFIED {
            direction.state = seen::PENDING;
            direction.hash = hash;
        }
    }
}
