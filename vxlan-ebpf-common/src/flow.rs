//! Which flows may bypass the host stack: those that it has been seen to pass unchanged.
//!
//! A pod's packet is noted as pending and left to the stack. If the same addresses and ports then
//! appear where the stack hands packets on (the vxlan device, or the veth of the receiving pod),
//! neither NAT nor a packet filter has touched it, and its direction is verified. A translated
//! flow never matches itself, so it stays with the stack.
//!
//! The stack's connection tracking has to know a connection for as long as it bypasses the stack, or
//! would not take it back. So the stack sees what opens a TCP connection, up to the acknowledgement
//! that makes it established, and all from the first FIN or RST on; in between, and for datagrams and
//! echoes, a packet of each direction takes the stack again after [`recheck`]: that keeps conntrack's
//! entry alive, and a filter that says no by now is obeyed. TCP opens once both directions have been
//! verified, datagrams and echoes open each direction on its own.
//!
//! Where no packet filter is at work ([`BY_ADDRESS`]), no connection is known to anybody, and the stack
//! judges by addresses and DSCP alone. So all between two addresses is one flow then, which opens each
//! direction on its own, and connections begin and end without the stack. That counts for as long as an agent
//! looks out for filters that come ([`Watch`](crate::maps::Watch)).

use core::hint::black_box;

use crate::counters::Reason;
use crate::ecn;
use crate::headers::{Be16, protocol};
use crate::inner::Inner;
use crate::maps::{
    BY_ADDRESS, Direction, Flow, FlowKey, MARKS_ROUTE, Mode, NO_BYPASS, NO_TCP_BYPASS, Network,
};
use crate::packet::Packet;
use crate::tables::Tables;

const SECOND: u64 = 1_000_000_000;

/// How long a verified direction bypasses the stack before a packet takes it again, in nanoseconds.
///
/// Of a TCP stream such a packet may be overtaken by those behind it, so there it is done less often.
#[inline(always)]
pub const fn recheck(protocol: u8) -> u64 {
    match protocol {
        protocol::TCP => 10 * SECOND,
        _ => SECOND,
    }
}

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

/// Bits of what [`Flow::closing`] says.
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
    /// IP protocol number of the packet.
    protocol: u8,
    /// TCP flags, 0 for other protocols, and where nobody asks for connections.
    flags: u8,
    /// TOS or traffic class without congestion marks, which change on the way.
    dscp: u8,
}

/// The tuple of the packet with the IP header `ip` at `offset`; `None` if it is of no kind that can
/// be verified.
#[inline(always)]
fn tuple<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    network: &Network,
    (ip, offset): (&H, usize),
    way: Way,
) -> Option<Tuple> {
    let (from, to) = (H::addr(ip.source()), H::addr(ip.destination()));
    let (local, remote) = match way {
        Way::Egress => (from, to),
        Way::Ingress => (to, from),
    };
    let (protocol, dscp) = (ip.protocol(), ip.tos() & !ecn::MASK);
    if network.flags & BY_ADDRESS != 0 && t.is_watched() {
        if protocol == protocol::ICMPV6 && is_of_neighbours(p.load(offset + H::LEN)?) {
            return None;
        }
        let key = FlowKey::pair(network.id, (local, remote), dscp);
        return Some(Tuple { key, protocol, flags: 0, dscp });
    }
    let transport = offset + H::LEN;
    let (source, destination, flags) = match protocol {
        protocol::TCP => (p.load(transport)?, p.load(transport + 2)?, p.load(transport + 13)?),
        protocol::UDP => (p.load(transport)?, p.load(transport + 2)?, 0),
        // As if a request went from port `id` to port 0: who asks is not open to questions.
        _ => match echo(protocol, p.load(transport)?)? {
            Echo::Request => (p.load(transport + 4)?, Be16(0), 0),
            Echo::Reply => (Be16(0), p.load(transport + 4)?, 0),
        },
    };
    let ports = match way {
        Way::Egress => (source, destination),
        Way::Ingress => (destination, source),
    };
    let key = FlowKey::new(network.id, (local, remote), ports, protocol);
    Some(Tuple { key, protocol, flags, dscp })
}

/// Whether an ICMPv6 message is of neighbour discovery (RFC 4861 §4), which a router may answer itself (`proxy_ndp`).
#[inline(always)]
const fn is_of_neighbours(kind: u8) -> bool {
    133 <= kind && kind <= 137
}

enum Echo {
    Request,
    Reply,
}

/// Echo request or reply. Errors are about other flows, and the stack knows which.
#[inline(always)]
const fn echo(protocol: u8, kind: u8) -> Option<Echo> {
    match (protocol, kind) {
        (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => Some(Echo::Request),
        (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => Some(Echo::Reply),
        _ => None,
    }
}

/// Lets a packet bypass the stack, or notes it as pending and says why not.
#[inline(always)]
pub(crate) fn admit<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    network: &Network,
    at: (&H, usize),
    way: Way,
) -> Result<(), Reason> {
    if network.mode != Mode::Verified as u8 {
        return Ok(());
    }
    if network.flags & NO_BYPASS != 0 {
        return Err(Reason::Limited);
    }
    let tuple = tuple(p, t, network, at, way).ok_or(Reason::Unverified)?;
    if stays(network, &tuple) {
        return Err(Reason::Limited);
    }
    if bypass(p, t, network, &tuple, way) {
        return Ok(());
    }
    note(p, t, network, &tuple, way);
    Err(Reason::Unverified)
}

/// What becomes of a packet that is still in its tunnel.
pub(crate) enum Recognised {
    /// It bypasses the stack.
    Open,
    /// The stack has to see it. It overtakes nothing of its flow, however it gets there.
    Alone,
    /// It is the kernel's.
    Kernel(Reason),
}

/// Lets a packet bypass the stack, or says why not. For a packet that is still in its tunnel, and
/// will be looked at again when it is not.
#[inline(always)]
pub(crate) fn recognise<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    network: &Network,
    at: (&H, usize),
    way: Way,
) -> Recognised {
    if network.mode != Mode::Verified as u8 {
        return Recognised::Open;
    }
    if network.flags & NO_BYPASS != 0 {
        return Recognised::Kernel(Reason::Limited);
    }
    let length = p.length() - at.1 as u32;
    let Some(tuple) = tuple(p, t, network, at, way) else {
        return Recognised::Kernel(Reason::Unverified);
    };
    if stays(network, &tuple) {
        return Recognised::Kernel(Reason::Limited);
    }
    let generation = t.generation(network.id);
    let mut begins = true;
    if let Some(mut flow) = t.flow(&tuple.key) {
        if flow.bypass(t, (&tuple, way), generation, p.length()) {
            return Recognised::Open;
        }
        begins = flow.generation != generation;
    }
    if is_alone(&tuple, begins, length - H::LEN as u32) {
        return Recognised::Alone;
    }
    Recognised::Kernel(Reason::Unverified)
}

/// Whether packets of the flow in front of this one and behind it may get to the stack by another way than it,
/// whose IP payload has `length` bytes.
///
/// The kernel's device queues what it decapsulates and takes segments together, so what goes past it may overtake
/// what does not. That makes no difference to a connection's begin and end, and to a bare acknowledgement, which
/// is no longer than TCP's longest header; nor to a flow's first packet.
#[inline(always)]
const fn is_alone(tuple: &Tuple, begins: bool, length: u32) -> bool {
    const LONGEST_HEADER: u32 = 60;
    if tuple.key.protocol == protocol::TCP {
        return tuple.flags & (SYN | FIN | RST) != 0 || length <= LONGEST_HEADER;
    }
    begins
}

/// Whether no connection of the tuple's protocol bypasses the stack, because conntrack would not take it back.
#[inline(always)]
const fn stays(network: &Network, tuple: &Tuple) -> bool {
    network.flags & NO_TCP_BYPASS != 0 && tuple.key.protocol == protocol::TCP
}

#[inline(always)]
fn bypass<P: Packet, T: Tables>(p: &P, t: &T, network: &Network, tuple: &Tuple, way: Way) -> bool {
    match t.flow(&tuple.key) {
        Some(mut flow) => flow.bypass(t, (tuple, way), t.generation(network.id), p.length()),
        None => false,
    }
}

/// Notes a packet that the stack is about to see.
#[inline(always)]
pub(crate) fn announce<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    network: &Network,
    at: (&H, usize),
    way: Way,
) {
    if let Some(tuple) = tuple(p, t, network, at, way) {
        note(p, t, network, &tuple, way);
    }
}

#[inline(always)]
fn note<P: Packet, T: Tables>(p: &P, t: &T, network: &Network, tuple: &Tuple, way: Way) {
    let (now, generation, hash) = (t.now(), t.generation(network.id), p.flow_hash());
    if let Some(mut flow) = t.flow(&tuple.key) {
        return flow.note(tuple, way, hash, now, generation);
    }
    let mut flow = Flow::new(generation, now);
    flow.note(tuple, way, hash, now, generation);
    t.insert_flow(&tuple.key, &flow);
}

/// Verifies the direction of a packet that the stack has passed.
///
/// Equal addresses and ports do not suffice: of two flows, one direct and one translated, each may
/// look behind the stack like the other before it. But a packet keeps its flow hash on its way
/// through the stack, whatever NAT makes of it. A packet that the stack has given another DSCP, or a mark
/// that somebody behind it reads, is not unchanged either.
#[inline(always)]
pub(crate) fn passed<P: Packet, T: Tables, H: Inner>(
    p: &P,
    t: &T,
    network: &Network,
    (ip, offset): (&H, usize),
    way: Way,
) {
    if network.mode != Mode::Verified as u8 {
        return;
    }
    let Some(tuple) = tuple(p, t, network, (ip, offset), way) else { return };
    // Not until the connection's first acknowledgement does conntrack take it for established.
    if tuple.flags & (SYN | ACK) == SYN || is_marked(p, network, way) {
        return;
    }
    let (now, generation, hash) = (t.now(), t.generation(network.id), p.flow_hash());
    let Some(mut flow) = t.flow(&tuple.key) else { return };
    let current = flow.generation == generation;
    let direction = flow.direction(way);
    let same = direction.hash == hash && direction.dscp == tuple.dscp;
    if current && direction.state == seen::PENDING && same && !is_plain(p, network, way) {
        direction.state = seen::VERIFIED;
        direction.checked = now;
    }
}

/// Whether the stack has given the packet a mark that makes a difference behind it: to routing rules
/// when it leaves in a tunnel. Where something on a pod's veth could read it, the stack delivers.
#[inline(always)]
fn is_marked<P: Packet>(p: &P, network: &Network, way: Way) -> bool {
    matches!(way, Way::Egress) && network.flags & MARKS_ROUTE != 0 && p.fwmark() != 0
}

/// Whether a packet to a pod came over the underlay without a tunnel. Rules may tell by the interface, so
/// nothing follows from it for a packet of the same flow that comes in a tunnel.
#[inline(always)]
fn is_plain<P: Packet>(p: &P, network: &Network, way: Way) -> bool {
    let from = p.arrived_by();
    let is_underlay = from == network.local4.ifindex || from == network.local6.ifindex;
    matches!(way, Way::Ingress) && from != 0 && is_underlay
}

impl Flow {
    /// A flow that nothing is known of but that it has begun.
    #[inline(always)]
    fn new(generation: u32, now: u64) -> Self {
        // Of so many zeros next to each other a compiler makes a call, which programs do not make.
        let zero = black_box(0);
        let direction = Direction { checked: zero, ..Direction::NEW };
        Self {
            generation,
            tick: 0,
            since: now,
            last: now,
            egress: direction,
            ingress: direction,
            packets: zero,
            bytes: zero,
        }
    }

    /// Which ends of a TCP connection have ended it: bits of [`closing`].
    pub const fn closing(&self) -> u8 {
        (self.egress.ended * closing::LOCAL) | (self.ingress.ended * closing::REMOTE)
    }

    /// Whether either end has.
    #[inline(always)]
    const fn ends(&self) -> bool {
        self.egress.ended | self.ingress.ended != 0
    }

    #[inline(always)]
    fn direction(&mut self, way: Way) -> &mut Direction {
        match way {
            Way::Egress => &mut self.egress,
            Way::Ingress => &mut self.ingress,
        }
    }

    /// Whether a packet may bypass the stack, and records that it does.
    #[inline(always)]
    fn bypass<T: Tables>(&mut self, t: &T, (tuple, way): (&Tuple, Way), generation: u32, bytes: u32) -> bool {
        // To read the clock takes a call, which is saved for as long as the clock stands still; the low bits of
        // the tick agree again after weeks.
        let tick = t.tick() as u32;
        let now = if self.tick == tick { self.last } else { t.now() };
        let open = self.is_open(tuple, way, now, generation);
        if open {
            self.tick = tick;
            self.count(now, bytes);
        }
        open
    }

    /// Whether a packet may bypass the stack. One that begins or ends a connection never does, nor one with
    /// another DSCP than the stack has been seen to pass.
    #[inline(always)]
    fn is_open(&self, tuple: &Tuple, way: Way, now: u64, generation: u32) -> bool {
        let (this, other) = match way {
            Way::Egress => (&self.egress, &self.ingress),
            Way::Ingress => (&self.ingress, &self.egress),
        };
        let alike = this.state == seen::VERIFIED && this.dscp == tuple.dscp;
        let verified = alike && now.wrapping_sub(this.checked) < recheck(tuple.protocol);
        if tuple.key.protocol == protocol::TCP {
            let ends = tuple.flags & (SYN | FIN | RST) != 0 || self.ends();
            return verified && other.checked != 0 && !ends && self.generation == generation;
        }
        verified && self.generation == generation
    }

    /// Records a packet that bypasses the stack.
    #[inline(always)]
    fn count(&mut self, now: u64, bytes: u32) {
        self.last = now;
        self.packets += 1;
        self.bytes += bytes as u64;
    }

    /// Records a packet that is left to the stack.
    #[inline(always)]
    fn note(&mut self, tuple: &Tuple, way: Way, hash: u32, now: u64, generation: u32) {
        let used = self.packets != 0 || self.ends() || self.direction(way).checked != 0;
        // A SYN begins anew, unless it is one sent again while the first is being verified.
        let begins = tuple.flags & (SYN | ACK) == SYN && used;
        if begins || self.generation != generation {
            *self = Self::new(generation, now);
        }
        self.last = now;
        if tuple.flags & RST != 0 {
            (self.egress.ended, self.ingress.ended) = (1, 1);
        }
        let direction = self.direction(way);
        if tuple.flags & FIN != 0 {
            direction.ended = 1;
        }
        direction.state = seen::PENDING;
        direction.hash = hash;
        direction.dscp = tuple.dscp;
    }
}
