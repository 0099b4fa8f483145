//! Connections of pod 1, and their packets.

use core::net::IpAddr;

use crate::checksum;
use crate::headers::Be16;
use crate::maps::FlowKey;
use crate::model::Frame;
use crate::testbed::{
    self, Inner, LOCAL_MAC, Outer, Payload, REMOTE4, REMOTE6, pod_mac, pod4, pod6, vtep_mac,
};

/// TCP flags.
pub(super) const SYN: u8 = 0x02;
/// TCP flags.
pub(super) const ACK: u8 = 0x10;

/// Payload types, families, peers and look-alikes.
const CONNECTIONS: u8 = 3 * 2 * 3 * 2;
/// What tells a connection's port from its look-alike's.
const OTHER_PORT: u16 = 40001;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Pod 1.
    Pod,
    /// The other end.
    Peer,
}

impl Side {
    pub(super) const fn other(self) -> Self {
        match self {
            Self::Pod => Self::Peer,
            Self::Peer => Self::Pod,
        }
    }
}

/// A connection between pod 1 and a pod of another node or of this one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    number: u8,
}

impl Connection {
    /// The connection called `number`.
    pub(super) const fn of(number: u8) -> Self {
        Self { number: number % CONNECTIONS }
    }

    /// The one that differs in pod 1's port alone.
    pub(super) const fn lookalike(self) -> Self {
        Self::of(self.number + CONNECTIONS / 2)
    }

    pub(super) fn is_tcp(self) -> bool {
        self.payload() == Payload::Tcp
    }

    const fn payload(self) -> Payload {
        Payload::ALL[(self.number % 3) as usize]
    }

    const fn is_v6(self) -> bool {
        self.number / 3 % 2 == 1
    }

    /// Whether the peer is a pod of this node.
    pub(super) const fn is_local(self) -> bool {
        self.number / 6 % 3 == 2
    }

    const fn node(self) -> u32 {
        match self.number / 6 % 3 {
            0 => REMOTE4,
            _ => REMOTE6,
        }
    }

    fn pod(self) -> IpAddr {
        if self.is_v6() { pod6(1, 1).into() } else { pod4(1, 1).into() }
    }

    fn peer(self) -> IpAddr {
        let (node, pod) = if self.is_local() { (1, 2) } else { (self.node() as u8 + 1, 7) };
        if self.is_v6() { pod6(node, pod).into() } else { pod4(node, pod).into() }
    }

    /// The flow as it is known where `side` is a local pod.
    pub(super) fn key(self, side: Side) -> FlowKey {
        let own = if self.number < CONNECTIONS / 2 { 40000 } else { OTHER_PORT };
        let (own, other, protocol) = match (self.payload(), self.is_v6()) {
            (Payload::Udp, _) => (own, 53, 17),
            (Payload::Tcp, _) => (own, 80, 6),
            // The pod asks, the peer answers.
            (Payload::Echo, false) => (own, 0, 1),
            (Payload::Echo, true) => (own, 0, 58),
        };
        let ends =
            [(testbed::addr(self.pod()), Be16::new(own)), (testbed::addr(self.peer()), Be16::new(other))];
        let [(local, local_port), (remote, remote_port)] = match side {
            Side::Pod => ends,
            Side::Peer => [ends[1], ends[0]],
        };
        FlowKey::new(testbed::NETWORK, (local, remote), (local_port, remote_port), protocol)
    }

    /// What `side`, a pod of this node, sends.
    pub(super) fn sent(self, side: Side, flags: u8) -> Frame {
        let inner = match side {
            Side::Pod => Inner::from_pod(self.peer()),
            Side::Peer => self.back(),
        };
        // Pods of one bridge reach each other by their own MACs, too.
        let to_mac = match side {
            Side::Pod if self.is_local() && self.is_v6() => pod_mac(2),
            _ => inner.to_mac,
        };
        self.finish(Inner { to_mac, ..inner }, side, flags)
    }

    /// The same behind the host stack.
    pub(super) fn behind_stack(self, side: Side, flags: u8) -> Frame {
        if self.is_local() {
            return self.sent(side, flags);
        }
        let sent = Inner::from_pod(self.peer());
        let routed = Inner { from_mac: LOCAL_MAC, to_mac: vtep_mac(self.node()), ttl: 63, ..sent };
        self.finish(routed, side, flags)
    }

    /// What the peer on another node sends, in its tunnel and out of it.
    pub(super) fn received(self, flags: u8) -> (Frame, Frame) {
        let bare = self.finish(self.back(), Side::Peer, flags);
        (Outer::from_remote(self.node(), bare.bytes.clone()).frame(), bare)
    }

    /// From the peer to pod 1.
    fn back(self) -> Inner {
        if self.is_local() {
            return Inner { from_mac: pod_mac(2), from: self.peer(), ..Inner::from_pod(self.pod()) };
        }
        Inner::from_remote(self.node(), self.is_v6())
    }

    /// Builds `inner` as a packet of this connection from `side`.
    fn finish(self, inner: Inner, side: Side, flags: u8) -> Frame {
        let mut frame = Inner { payload: self.payload(), ..inner }.frame();
        frame.ifindex = if side == Side::Peer && self.is_local() { 2 } else { testbed::POD_IFINDEX };
        frame.flow_hash = u32::from(self.number) * 2 + side as u32 + 1;
        let key = self.key(side);
        let transport = 14 + if self.is_v6() { 40 } else { 20 };
        let mut put = |at: usize, check: usize, word: Be16| {
            let bytes = &mut frame.bytes[transport..];
            let read = |bytes: &[u8], at: usize| Be16::of(bytes[at], bytes[at + 1]);
            let fixed = checksum::replace(read(bytes, check), read(bytes, at), word);
            bytes[check..check + 2].copy_from_slice(&fixed.get().to_be_bytes());
            bytes[at..at + 2].copy_from_slice(&word.get().to_be_bytes());
        };
        match self.payload() {
            Payload::Echo => {
                put(4, 2, Be16::new(key.local_port.get() | key.remote_port.get()));
                if side == Side::Peer {
                    put(0, 2, Be16::of(if self.is_v6() { 129 } else { 0 }, 0));
                }
            }
            payload => {
                let check = if payload == Payload::Udp { 6 } else { 16 };
                put(0, check, key.local_port);
                put(2, check, key.remote_port);
                if payload == Payload::Tcp {
                    put(12, check, Be16::of(0x50, flags));
                }
            }
        }
        frame
    }
}
