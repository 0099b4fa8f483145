//! Mode `verified` where no packet filter is at work: what bypasses the host stack, and when.

use super::flows::*;
use super::*;
use crate::hooks::{pod_egress, tunnel_egress};
use crate::maps::{BY_ADDRESS, MARKS_ROUTE, Network};
use crate::testbed::*;

fn unfiltered() -> Maps {
    let network = Network { flags: BY_ADDRESS, ..verified().network() };
    Maps { networks: [(NETWORK, network)].into(), ..verified() }
}

#[test]
fn a_connection_begins_and_ends_without_the_stack() {
    for v6 in [false, true] {
        let (maps, connection) = (unfiltered(), Connection::new(Payload::Tcp, v6));
        assert_eq!(connection.sends(&maps, SYN), Reason::Unverified);
        assert_eq!(connection.receives(&maps, SYN_ACK), Reason::Unverified);
        for flags in [ACK, FIN_ACK, RST, SYN, ACK] {
            assert_eq!(connection.sends(&maps, flags), Reason::Encapsulated);
            assert_eq!(connection.receives(&maps, flags), Reason::Decapsulated);
        }
        assert_eq!(only_flow(&maps).packets, 10);
    }
}

#[test]
fn what_the_stack_passes_of_one_protocol_it_passes_of_all() {
    let maps = unfiltered();
    assert_eq!(Connection::new(Payload::Udp, false).sends(&maps, 0), Reason::Unverified);
    for payload in Payload::ALL {
        assert_eq!(Connection::new(payload, false).sends(&maps, SYN), Reason::Encapsulated, "{payload:?}");
    }
    let v6 = Connection::new(Payload::Udp, true);
    assert_eq!(v6.sends(&maps, 0), Reason::Unverified, "other addresses");
    assert_eq!(Connection::new(Payload::Udp, false).receives(&maps, 0), Reason::Unverified, "the way back");
}

#[test]
fn another_dscp_is_another_flow() {
    let (maps, connection) = (unfiltered(), Connection::new(Payload::Udp, false));
    assert_eq!(connection.sends(&maps, 0), Reason::Unverified);
    assert_eq!(connection.sends(&maps, 0), Reason::Encapsulated);
    for (tos, expected) in [(0x28, Reason::Unverified), (0x02, Reason::Encapsulated)] {
        let frame = connection.frame(&Inner { tos, ..connection.out() }, 0, connection.out_hash);
        assert_eq!(run_with(pod_egress, &frame, &maps).0, expected, "{tos:#x}");
    }
    assert_eq!(connection.sends(&maps, 0), Reason::Encapsulated, "the first is as it was");
}

#[test]
fn the_stack_is_asked_again_after_a_second_or_for_tcp_ten() {
    for (payload, seconds) in [(Payload::Udp, 1), (Payload::Echo, 1), (Payload::Tcp, 10)] {
        let (mut maps, connection) = (unfiltered(), Connection::new(payload, false));
        assert_eq!(connection.sends(&maps, ACK), Reason::Unverified);
        maps.now += seconds * SECOND - 1;
        assert_eq!(connection.sends(&maps, ACK), Reason::Encapsulated, "{payload:?}");
        maps.now += 1;
        assert_eq!(connection.sends(&maps, ACK), Reason::Unverified, "{payload:?}");
    }
}

#[test]
fn what_the_stack_does_not_pass_stays_with_it() {
    let (maps, connection) = (unfiltered(), Connection::new(Payload::Tcp, false));
    let frame = connection.frame(&connection.out(), SYN, connection.out_hash);
    for _ in 0..3 {
        assert_eq!(run_with(pod_egress, &frame, &maps).0, Reason::Unverified);
    }
    let network = Network { flags: BY_ADDRESS | MARKS_ROUTE, ..maps.network() };
    let marks = Maps { networks: [(NETWORK, network)].into(), ..unfiltered() };
    assert_eq!(run_with(pod_egress, &frame, &marks).0, Reason::Unverified);
    let routed = Inner { from_mac: LOCAL_MAC, to_mac: vtep_mac(REMOTE4), ttl: 63, ..connection.out() };
    let marked = Frame { fwmark: 7, ..connection.frame(&routed, SYN, connection.out_hash) };
    run_with(tunnel_egress, &marked, &marks);
    assert_eq!(run_with(pod_egress, &frame, &marks).0, Reason::Unverified, "the stack has marked it");
}

#[test]
fn flows_of_connections_and_of_addresses_are_not_mixed_up() {
    let (maps, connection) = (unfiltered(), Connection::new(Payload::Udp, false));
    assert_eq!(connection.sends(&maps, 0), Reason::Unverified);
    assert_eq!(connection.sends(&maps, 0), Reason::Encapsulated);
    let filtered = Maps { networks: [(NETWORK, verified().network())].into(), ..maps };
    assert_eq!(connection.sends(&filtered, 0), Reason::Unverified, "a filter has come");
}
