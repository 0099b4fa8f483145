//! Mode `verified`: which packets bypass the host stack, and when.

use super::*;
use crate::flow::{closing, seen};
use crate::hooks::{pod_egress, pod_ingress, tunnel_egress, tunnel_ingress, underlay_ingress};
use crate::maps::{Flow, MARKS_ROUTE, Mode, NO_BYPASS, NO_TCP_BYPASS, Network};
use crate::testbed::*;

pub(super) const SECOND: u64 = 1_000_000_000;
pub(super) const SYN: u8 = 0x02;
pub(super) const ACK: u8 = 0x10;
pub(super) const FIN_ACK: u8 = 0x11;
pub(super) const SYN_ACK: u8 = 0x12;
pub(super) const RST: u8 = 0x04;

pub(super) fn verified() -> Maps {
    let network = Network { mode: Mode::Verified as u8, ..maps().network() };
    Maps { networks: [(NETWORK, network)].into(), now: 1000 * SECOND, ..maps() }
}

/// A connection between pod 1 and a remote pod, or one of this node.
pub(super) struct Connection {
    pub(super) payload: Payload,
    v6: bool,
    pub(super) out_hash: u32,
    in_hash: u32,
}

impl Connection {
    pub(super) fn new(payload: Payload, v6: bool) -> Self {
        Self { payload, v6, out_hash: 11, in_hash: 22 }
    }

    pub(super) fn out(&self) -> Inner {
        let to = if self.v6 { pod6(2, 7).into() } else { pod4(2, 7).into() };
        Inner { payload: self.payload, ..Inner::from_pod(to) }
    }

    fn back(&self) -> Inner {
        Inner { payload: self.payload, ..Inner::from_remote(REMOTE4, self.v6) }
    }

    /// `inner` with these TCP flags and, unless it goes out, with ports swapped.
    pub(super) fn frame(&self, inner: &Inner, flags: u8, hash: u32) -> Frame {
        let mut frame = inner.frame();
        frame.flow_hash = hash;
        let transport = 14 + if self.v6 { 40 } else { 20 };
        if inner.to_mac == LOCAL_MAC && self.payload == Payload::Echo {
            // A reply.
            frame.bytes[transport] = if self.v6 { 129 } else { 0 };
        } else if inner.to_mac == LOCAL_MAC {
            let (source, destination) = frame.bytes[transport..transport + 4].split_at_mut(2);
            source.swap_with_slice(destination);
        }
        if self.payload == Payload::Tcp {
            frame.bytes[transport + 13] = flags;
        }
        frame
    }

    /// The pod sends. If the stack gets it, it passes it on.
    pub(super) fn sends(&self, maps: &Maps, flags: u8) -> Reason {
        let frame = self.frame(&self.out(), flags, self.out_hash);
        let (reason, _) = run_with(pod_egress, &frame, maps);
        if reason == Reason::Unverified {
            let routed = Inner { from_mac: LOCAL_MAC, to_mac: vtep_mac(REMOTE4), ttl: 63, ..self.out() };
            let frame = self.frame(&routed, flags, self.out_hash);
            assert_eq!(run_with(tunnel_egress, &frame, maps).0, Reason::Encapsulated);
        }
        reason
    }

    /// The remote pod sends. If the stack gets it, it passes it on.
    pub(super) fn receives(&self, maps: &Maps, flags: u8) -> Reason {
        let frame = self.frame(&self.back(), flags, self.in_hash);
        let tunnelled = Outer::from_remote(REMOTE4, frame.bytes.clone()).frame();
        // As our nodes send it; the flags have changed what a checksum would cover.
        let tunnelled = with(&tunnelled, |bytes| bytes[40..42].fill(0));
        let (reason, _) = run_with(underlay_ingress, &tunnelled, maps);
        if reason == Reason::Unverified {
            assert_eq!(run_with(tunnel_ingress, &frame, maps).0, Reason::Unverified);
            assert_eq!(run_with(pod_ingress, &frame, maps).0, Reason::Passed);
        }
        reason
    }

    fn open(&self, maps: &Maps) {
        if self.payload == Payload::Tcp {
            assert_eq!(self.sends(maps, SYN), Reason::Unverified);
            assert_eq!(self.receives(maps, SYN_ACK), Reason::Unverified);
            assert_eq!(self.sends(maps, ACK), Reason::Unverified);
        } else {
            assert_eq!(self.sends(maps, 0), Reason::Unverified);
            assert_eq!(self.receives(maps, 0), Reason::Unverified);
        }
    }
}

pub(super) fn only_flow(maps: &Maps) -> Flow {
    let flows = maps.flows.borrow();
    assert_eq!(flows.len(), 1, "{flows:?}");
    *flows.values().next().expect("one flow")
}

#[test]
fn a_connection_bypasses_once_the_stack_has_passed_both_directions() {
    for v6 in [false, true] {
        for payload in Payload::ALL {
            let (maps, connection) = (verified(), Connection::new(payload, v6));
            connection.open(&maps);
            for _ in 0..3 {
                assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated, "{payload:?}");
                assert_eq!(connection.receives(&maps, ACK), Reason::Decapsulated, "{payload:?}");
            }
            assert_eq!(only_flow(&maps).packets, 6);
        }
    }
}

#[test]
fn tcp_does_not_open_on_one_direction_alone() {
    let (maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    for _ in 0..5 {
        assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
    }
}

#[test]
fn datagrams_open_each_direction_on_its_own() {
    let (maps, connection) = (verified(), Connection::new(Payload::Udp, false));
    assert_eq!(connection.sends(&maps, 0), Reason::Unverified);
    assert_eq!(connection.sends(&maps, 0), Reason::Encapsulated);
    assert_eq!(only_flow(&maps).ingress.state, seen::NOTHING);
}

#[test]
fn a_packet_that_the_stack_does_not_pass_verifies_nothing() {
    let (maps, connection) = (verified(), Connection::new(Payload::Udp, false));
    let frame = connection.frame(&connection.out(), 0, 11);
    for _ in 0..5 {
        assert_eq!(run_with(pod_egress, &frame, &maps).0, Reason::Unverified);
    }
    assert_eq!(only_flow(&maps).egress.state, seen::PENDING);
}

#[test]
fn a_translated_packet_does_not_verify_the_flow_that_it_looks_like() {
    let (maps, connection) = (verified(), Connection::new(Payload::Udp, false));
    let frame = connection.frame(&connection.out(), 0, 11);
    assert_eq!(run_with(pod_egress, &frame, &maps).0, Reason::Unverified);
    // Behind the stack appears a packet with the same addresses and ports, but of another flow.
    let routed = Inner { from_mac: LOCAL_MAC, to_mac: vtep_mac(REMOTE4), ..connection.out() };
    run_with(tunnel_egress, &connection.frame(&routed, 0, 33), &maps);
    assert_eq!(only_flow(&maps).egress.state, seen::PENDING);
    let translated = connection.frame(&connection.back(), 0, 33);
    run_with(tunnel_ingress, &connection.frame(&connection.back(), 0, 22), &maps);
    run_with(pod_ingress, &translated, &maps);
    assert_eq!(only_flow(&maps).ingress.state, seen::PENDING);
}

#[test]
fn a_packet_that_came_without_a_tunnel_verifies_nothing_for_those_in_one() {
    let (maps, connection) = (verified(), Connection::new(Payload::Udp, false));
    let here = maps.networks.values().next().expect("a network").local4;
    let frame = connection.frame(&connection.back(), 0, 22);
    assert_eq!(run_with(tunnel_ingress, &frame, &maps).0, Reason::Unverified);
    let plain = Frame { arrived_by: here.ifindex, ..frame.clone() };
    assert_eq!(run_with(pod_ingress, &plain, &maps).0, Reason::Passed);
    assert_eq!(only_flow(&maps).ingress.state, seen::PENDING);
    let tunnelled = Frame { arrived_by: here.device, ..frame };
    assert_eq!(run_with(pod_ingress, &tunnelled, &maps).0, Reason::Passed);
    assert_eq!(only_flow(&maps).ingress.state, seen::VERIFIED);
}

#[test]
fn datagrams_are_looked_at_again_after_a_second() {
    let (mut maps, connection) = (verified(), Connection::new(Payload::Udp, false));
    connection.open(&maps);
    assert_eq!(connection.sends(&maps, 0), Reason::Encapsulated);
    maps.now += SECOND;
    assert_eq!(connection.sends(&maps, 0), Reason::Unverified);
    assert_eq!(connection.sends(&maps, 0), Reason::Encapsulated);
    assert_eq!(connection.receives(&maps, 0), Reason::Unverified);
    assert_eq!(connection.receives(&maps, 0), Reason::Decapsulated);
}

#[test]
fn datagrams_are_looked_at_again_though_the_low_bits_of_the_tick_are_the_same() {
    let (mut maps, connection) = (verified(), Connection::new(Payload::Udp, false));
    connection.open(&maps);
    assert_eq!(connection.sends(&maps, 0), Reason::Encapsulated);
    maps.now += 1 << 30;
    assert_eq!(connection.sends(&maps, 0), Reason::Unverified);
}

#[test]
fn a_packet_of_tcp_is_the_last_one_in_whichever_tick_it_comes() {
    let (mut maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    connection.open(&maps);
    for later in [0, 0, 1, 0, SECOND] {
        maps.now += later;
        assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
        assert_eq!(only_flow(&maps).last, maps.now);
    }
}

#[test]
fn each_direction_of_tcp_is_looked_at_again_after_ten_seconds() {
    let (mut maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    connection.open(&maps);
    assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
    maps.now += 24 * 3600 * SECOND;
    for _ in 0..3 {
        maps.now += 10 * SECOND;
        assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
        assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
        assert_eq!(connection.receives(&maps, ACK), Reason::Unverified);
        assert_eq!(connection.receives(&maps, ACK), Reason::Decapsulated);
    }
}

#[test]
fn a_direction_of_tcp_that_the_stack_drops_by_now_does_not_bypass_any_more() {
    let (mut maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    connection.open(&maps);
    maps.now += 10 * SECOND;
    let frame = connection.frame(&connection.out(), ACK, 11);
    for _ in 0..3 {
        assert_eq!(run_with(pod_egress, &frame, &maps).0, Reason::Unverified);
    }
}

#[test]
fn a_server_that_speaks_first_waits_for_the_clients_acknowledgement() {
    let (maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    assert_eq!(connection.receives(&maps, SYN), Reason::Unverified);
    assert_eq!(connection.sends(&maps, SYN_ACK), Reason::Unverified);
    assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
    assert_eq!(connection.receives(&maps, ACK), Reason::Unverified);
    assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
    assert_eq!(connection.receives(&maps, ACK), Reason::Decapsulated);
}

#[test]
fn a_new_generation_closes_every_bypass() {
    for payload in Payload::ALL {
        let (mut maps, connection) = (verified(), Connection::new(payload, false));
        connection.open(&maps);
        assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
        maps.generation += 1;
        assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
        assert_eq!(connection.receives(&maps, ACK), Reason::Unverified);
        assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated, "and opens again");
    }
}

#[test]
fn from_the_first_fin_or_rst_on_the_stack_sees_all_of_a_connection() {
    for (flags, state) in [
        ([FIN_ACK, FIN_ACK], closing::CLOSED),
        ([ACK, RST], closing::CLOSED),
        ([FIN_ACK, ACK], closing::LOCAL),
    ] {
        let (maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
        connection.open(&maps);
        connection.sends(&maps, flags[0]);
        connection.receives(&maps, flags[1]);
        assert_eq!(only_flow(&maps).closing(), state);
        assert_eq!(connection.sends(&maps, ACK), Reason::Unverified, "the last acknowledgement");
        assert_eq!(connection.receives(&maps, ACK), Reason::Unverified);
    }
}

#[test]
fn a_tick_that_looks_like_the_last_one_opens_nothing() {
    let (mut maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    connection.open(&maps);
    assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
    // In the model a tick is a nanosecond, and this many of them end with 17 zero bits.
    maps.now += 16 * 3600 * SECOND;
    assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
}

#[test]
fn both_ends_of_a_connection_within_a_node_learn_that_it_is_over() {
    let maps = verified();
    local_connection(&maps, &[(1, SYN), (2, SYN_ACK), (1, ACK), (2, FIN_ACK), (1, FIN_ACK), (2, ACK)]);
    let flows = maps.flows.borrow();
    assert_eq!(flows.len(), 2);
    assert!(flows.values().all(|flow| flow.closing() == closing::CLOSED), "{flows:?}");
}

#[test]
fn the_same_ports_used_again_are_a_new_connection() {
    let (maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    connection.open(&maps);
    assert_eq!(connection.sends(&maps, FIN_ACK), Reason::Unverified);
    assert_eq!(connection.receives(&maps, FIN_ACK), Reason::Unverified);
    connection.open(&maps);
    assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
    assert_eq!(only_flow(&maps).closing(), 0);
}

#[test]
fn who_asks_is_not_open_to_questions_of_the_same_identifier() {
    let (maps, connection) = (verified(), Connection::new(Payload::Echo, false));
    connection.open(&maps);
    assert_eq!(connection.receives(&maps, 0), Reason::Decapsulated, "a reply");
    let request = with(&connection.frame(&connection.back(), 0, 22), |bytes| bytes[34] = 8);
    let tunnelled = Outer::from_remote(REMOTE4, request.bytes.clone()).frame();
    let tunnelled = with(&tunnelled, |bytes| bytes[40..42].fill(0));
    assert_eq!(run_with(underlay_ingress, &tunnelled, &maps).0, Reason::Unverified);
    assert_eq!(run_with(tunnel_ingress, &request, &maps).0, Reason::Unverified);
}

#[test]
fn a_packet_of_an_open_flow_with_another_dscp_meets_the_stack() {
    for payload in [Payload::Tcp, Payload::Udp] {
        let (maps, connection) = (verified(), Connection::new(payload, false));
        connection.open(&maps);
        let with_tos = |tos| {
            let frame = connection.frame(&Inner { tos, ..connection.out() }, ACK, connection.out_hash);
            run_with(pod_egress, &frame, &maps).0
        };
        let usual = connection.out().tos;
        assert_eq!(with_tos(usual), Reason::Encapsulated, "{payload:?}");
        assert_eq!(with_tos(usual ^ 3), Reason::Encapsulated, "congestion marks change on the way");
        assert_eq!(with_tos(usual ^ 0x40), Reason::Unverified, "{payload:?}");
        // The stack may refuse it, and what is alike.
        assert_eq!(with_tos(usual ^ 0x40), Reason::Unverified, "{payload:?}");
        assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
        assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
    }
}

#[test]
fn a_packet_with_another_dscp_or_a_mark_that_matters_verifies_nothing() {
    let routed = |connection: &Connection| {
        let inner = Inner { from_mac: LOCAL_MAC, to_mac: vtep_mac(REMOTE4), ttl: 63, ..connection.out() };
        connection.frame(&inner, 0, 11)
    };
    let marked = |connection: &Connection| Frame { fwmark: 7, ..routed(connection) };
    let classed = |connection: &Connection| {
        with(&routed(connection), |bytes| {
            bytes[15] = 0x20;
            fix_checksum(bytes, 14);
        })
    };
    for (behind, flags, state) in [
        (&classed as &dyn Fn(&Connection) -> Frame, 0, seen::PENDING),
        (&marked, MARKS_ROUTE, seen::PENDING),
        (&marked, 0, seen::VERIFIED),
    ] {
        let (mut maps, connection) = (verified(), Connection::new(Payload::Udp, false));
        maps.network_mut().expect("a network").flags = flags;
        run_with(pod_egress, &connection.frame(&connection.out(), 0, 11), &maps);
        run_with(tunnel_egress, &behind(&connection), &maps);
        assert_eq!(only_flow(&maps).egress.state, state);
    }
}

#[test]
fn nothing_bypasses_rules_that_limit_and_tcp_no_conntrack_that_is_strict() {
    for (flags, payload, bypasses) in [
        (NO_BYPASS, Payload::Tcp, false),
        (NO_BYPASS, Payload::Udp, false),
        (NO_TCP_BYPASS, Payload::Tcp, false),
        (NO_TCP_BYPASS, Payload::Udp, true),
    ] {
        let (mut maps, connection) = (verified(), Connection::new(payload, false));
        connection.open(&maps);
        maps.network_mut().expect("a network").flags = flags;
        let sent = if bypasses { Reason::Encapsulated } else { Reason::Limited };
        assert_eq!(connection.sends(&maps, ACK), sent);
    }
}

#[test]
fn a_syn_sent_again_does_not_undo_what_was_seen() {
    let (maps, connection) = (verified(), Connection::new(Payload::Tcp, false));
    assert_eq!(connection.sends(&maps, SYN), Reason::Unverified);
    assert_eq!(connection.receives(&maps, SYN_ACK), Reason::Unverified);
    assert_eq!(connection.sends(&maps, SYN), Reason::Unverified);
    assert_eq!(connection.receives(&maps, SYN_ACK), Reason::Unverified);
    assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
    assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated);
}

#[test]
fn errors_and_unknown_protocols_stay_with_the_stack() {
    let (maps, connection) = (verified(), Connection::new(Payload::Echo, false));
    let unreachable = with(&connection.frame(&connection.out(), 0, 11), |bytes| bytes[34] = 3);
    assert_eq!(run_with(pod_egress, &unreachable, &maps).0, Reason::Unverified);
    let sctp = with(&connection.frame(&connection.out(), 0, 11), |bytes| {
        bytes[23] = 132;
        fix_checksum(bytes, 14);
    });
    assert_eq!(run_with(pod_egress, &sctp, &maps).0, Reason::Unverified);
    assert!(maps.flows.borrow().is_empty());
}

/// Pods 1 and 2 of this node exchange packets with these TCP flags; what became of each.
fn local_connection(maps: &Maps, packets: &[(u32, u8)]) -> std::vec::Vec<Reason> {
    let there = Inner { payload: Payload::Tcp, ..Inner::from_pod(pod4(1, 2).into()) };
    let back =
        Inner { from_mac: pod_mac(2), from: pod4(1, 2).into(), to: pod4(1, 1).into(), ..there.clone() };
    let sent = |&(pod, flags): &(u32, u8)| {
        let inner = if pod == 1 { &there } else { &back };
        let mut frame = Frame { ifindex: pod, flow_hash: pod, ..inner.frame() };
        frame.bytes[14 + 20 + 13] = flags;
        if pod == 2 {
            let (source, destination) = frame.bytes[34..38].split_at_mut(2);
            source.swap_with_slice(destination);
        }
        let (reason, _) = run_with(pod_egress, &frame, maps);
        if reason == Reason::Unverified {
            assert_eq!(run_with(pod_ingress, &frame, maps).0, Reason::Passed);
        }
        reason
    };
    packets.iter().map(sent).collect()
}

#[test]
fn pods_of_one_node_bypass_once_the_stack_has_passed_both_directions() {
    use Reason::{Routed, Unverified};
    let packets = [(1, SYN), (2, SYN_ACK), (1, ACK), (1, ACK), (2, ACK)];
    let became = local_connection(&verified(), &packets);
    assert_eq!(became, [Unverified, Unverified, Unverified, Routed, Routed]);
}

#[test]
fn what_is_left_to_the_stack_is_left_as_it_was() {
    let (maps, connection) = (verified(), Connection::new(Payload::Tcp, true));
    let frame = connection.frame(&connection.out(), SYN, 11);
    assert_eq!(run_with(pod_egress, &frame, &maps), (Reason::Unverified, frame.clone()));
    assert_eq!(run_with(pod_ingress, &frame, &maps).1, frame);
}
