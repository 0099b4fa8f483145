//! What becomes of flows whose packets are seen.
//!
//! A program that sees a packet of a flow has just written to FLOWS. So whoever hears of the packet looks there, and
//! tells what is new.

use std::collections::HashMap;

use serde::Serialize;
use vxlan_ebpf_common::flow::{closing, seen};
use vxlan_ebpf_common::headers::Be16;
use vxlan_ebpf_common::listen::{Event, Head, IpPacket};
use vxlan_ebpf_common::maps::{Flow, FlowKey};
use vxlan_ebpf_common::{Hook, Reason};

use crate::datapath::{Pins, Report};

/// More flows than this are not remembered: what is told of them may then be told twice.
const MOST: usize = 65_536;

/// What is known of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// The host stack is being watched.
    Opened,
    /// The host stack has passed a packet in one direction.
    Verified,
    /// Packets bypass the host stack.
    Bypass,
    /// An end has closed the connection.
    Closing,
    /// Both have, or one has reset it.
    Closed,
    /// Packets that bypassed the host stack take it again: to ask once more, or since all flows were sent back.
    Fallback,
}

impl State {
    /// In words.
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Opened => "flow opened: the host stack has it until it has passed it unchanged",
            Self::Verified => "flow verified in one direction: the host stack has passed it unchanged",
            Self::Bypass => "flow verified: its packets bypass the host stack",
            Self::Closing => "flow closing: one end has closed it, and the host stack sees the rest",
            Self::Closed => "flow closed",
            Self::Fallback => "flow fell back: the host stack has its packets, and is asked once more",
        }
    }

    /// Of `flow` in a network whose flows are of `generation`.
    fn of(protocol: u8, flow: &Flow, generation: u32, before: Option<Self>) -> Self {
        const TCP: u8 = 6;
        let verified = [flow.egress, flow.ingress].map(|way| way.checked != 0);
        let open = if protocol == TCP { verified == [true, true] } else { verified.contains(&true) };
        let pending = [flow.egress, flow.ingress].iter().any(|way| way.state == seen::PENDING);
        match flow.closing() {
            _ if flow.generation != generation => Self::Fallback,
            closing::CLOSED => Self::Closed,
            closing::LOCAL | closing::REMOTE => Self::Closing,
            _ if open && pending && matches!(before, Some(Self::Bypass | Self::Fallback)) => Self::Fallback,
            _ if open => Self::Bypass,
            _ if verified.contains(&true) => Self::Verified,
            _ => Self::Opened,
        }
    }
}

/// The flows that have been told of.
#[derive(Default)]
pub(crate) struct Tracker {
    known: HashMap<FlowKey, State>,
}

impl Tracker {
    /// What is new of the flow of a packet, if anything is.
    pub(crate) fn follow(&mut self, pins: &Pins, report: &Report) -> Option<(FlowKey, State)> {
        let connection = key(report)?;
        // Where no packet filter is, a flow is all between two addresses.
        let pair = FlowKey {
            local_port: Be16(0),
            remote_port: Be16(0),
            protocol: 0,
            dscp: report_dscp(report).unwrap_or(0),
            ..connection
        };
        let (key, flow) = [connection, pair].into_iter().find_map(|key| Some((key, pins.flow(&key)?)))?;
        let generation = pins.generation(report.event.network).ok()?;
        let before = self.known.get(&key).copied();
        let state = match (before, report.event.reason()) {
            // What it is by now its next packets tell.
            (None, Some(Reason::Unverified)) => State::Opened,
            _ => State::of(key.protocol, &flow, generation, before),
        };
        if before == Some(state) {
            return None;
        }
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(key, state);
        Some((key, state))
    }
}

/// The inner frame of a packet as it was found, and the part of it that is IP.
fn inside(event: &Event, bytes: &[u8]) -> Option<(usize, IpPacket)> {
    let head = Head(bytes);
    let at = match event.hook()? {
        Hook::UnderlayIngress | Hook::UnderlayXdp => head.tunnel()?.inner,
        _ => 0,
    };
    Some((at, head.packet(at)?))
}

fn report_dscp(report: &Report) -> Option<u8> {
    let (at, _) = inside(&report.event, &report.before)?;
    Head(&report.before).dscp(at)
}

/// The key of a packet's connection, as the local pod sees it.
fn key(report: &Report) -> Option<FlowKey> {
    const ICMP: u8 = 1;
    const ICMPV6: u8 = 58;
    let event = &report.event;
    let head = Head(&report.before);
    let (_, packet) = inside(event, &report.before)?;
    let (from, to) = match packet.protocol {
        ICMP | ICMPV6 => echo(&head, &packet)?,
        _ => head.ports(&packet)?,
    };
    let is_out = match event.hook()? {
        Hook::PodEgress | Hook::TunnelEgress | Hook::PortIngress => true,
        Hook::UnderlayIngress
        | Hook::UnderlayXdp
        | Hook::TunnelIngress
        | Hook::PodIngress
        | Hook::StrippedIngress => false,
    };
    let (ends, ports) = if is_out {
        ((packet.source, packet.destination), (from, to))
    } else {
        ((packet.destination, packet.source), (to, from))
    };
    Some(FlowKey::new(event.network, ends, ports, packet.protocol))
}

/// As if a request went from port `id` to port 0.
fn echo(head: &Head<'_>, packet: &IpPacket) -> Option<(Be16, Be16)> {
    let at = packet.payload?;
    let kind: u8 = head.load(at)?;
    let id: Be16 = head.load(at + 4)?;
    match kind {
        8 | 128 => Some((id, Be16(0))),
        0 | 129 => Some((Be16(0), id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use vxlan_ebpf_common::maps::Direction;

    use super::*;

    fn flow(out: (u8, u64, u8), back: (u8, u64, u8)) -> Flow {
        let way = |(state, checked, ended)| Direction { state, checked, ended, ..Direction::NEW };
        Flow { generation: 1, egress: way(out), ingress: way(back), ..Flow::default() }
    }

    #[test]
    fn a_connection_opens_is_verified_falls_back_and_closes() {
        const TCP: u8 = 6;
        let (pending, verified) = ((seen::PENDING, 0, 0), (seen::VERIFIED, 9, 0));
        let of = |flow: Flow, before| State::of(TCP, &flow, 1, before);
        assert_eq!(of(flow(pending, (0, 0, 0)), None), State::Opened);
        assert_eq!(of(flow(verified, pending), Some(State::Opened)), State::Verified);
        assert_eq!(of(flow(verified, verified), Some(State::Verified)), State::Bypass);
        let again = flow((seen::PENDING, 9, 0), verified);
        assert_eq!(of(again, Some(State::Bypass)), State::Fallback);
        assert_eq!(of(again, None), State::Bypass);
        assert_eq!(of(flow((seen::PENDING, 9, 1), verified), Some(State::Bypass)), State::Closing);
        assert_eq!(of(flow((seen::PENDING, 9, 1), (seen::PENDING, 9, 1)), None), State::Closed);
        assert_eq!(State::of(TCP, &flow(verified, verified), 2, None), State::Fallback);
    }
}
