//! Packet filters next to the fast path.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, UdpStream, ping, tcp_bulk, udp_echo, uninterrupted};
use vxlan_tests::lab::{Lab, StateFile, wait_until};

use super::super::{assert_took, counted, underlay_hook};
use super::{MIB, exchange, from_port, guarded, nft, verified};

#[test]
fn what_a_filter_denies_never_bypasses_it() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    nft(
        &lab,
        2,
        "table inet deny {\n chain forward {\n  type filter hook forward priority filter - 1;\n  udp dport 1-65535 drop\n  icmp type echo-request drop\n }\n}\n",
    );
    let nodes = counted(&lab, || {
        let report = udp_echo(client, server, server.ip4.into(), [10, 20]).expect("a socket");
        assert_eq!(report.intact, 0, "{report:?}");
        let impatient = Ping { count: 3, timeout: Duration::from_millis(200), ..Ping::default() };
        let report = ping(client, server.ip4, impatient).expect("a socket");
        assert_eq!(report.rtts.len(), 0);
        tcp_bulk(client, server, server.ip4.into(), MIB).expect("what is not denied arrives");
    });
    let handed_over = nodes[1].packets("underlay_ingress", "handed_over");
    let denied = nodes[1].packets(underlay_hook(), "unverified") + handed_over;
    assert!(denied >= 5, "{}", nodes[1]);
}

/// A connection from pod 1 of node 1 to pod 1 of node 2 that bypasses the stack, and its port.
pub(in super::super) fn running(lab: &Lab) -> (TcpStream, TcpStream, u16) {
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let listener = server.run(|| TcpListener::bind(("0.0.0.0", 0))).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let mut near = client.run(|| from_port(0, (server.ip4, port).into()));
    let (mut far, _) = listener.accept().expect("a connection");
    let [one, _] = counted(lab, || {
        for round in 0..20 {
            exchange(&mut near, &mut far, round);
            exchange(&mut far, &mut near, round);
        }
    });
    assert_took(&one, "pod_egress", "encapsulated", 15);
    (near, far, port)
}

/// Denies what goes to `port` on node 2.
pub(in super::super) fn deny(lab: &Lab, port: u16) {
    nft(
        lab,
        2,
        &format!(
            "table inet deny {{\n chain forward {{\n  type filter hook forward priority filter - 1;\n  tcp dport {port} drop\n }}\n}}\n"
        ),
    );
}

pub(in super::super) fn assert_cut(near: &mut TcpStream, far: &mut TcpStream) {
    near.write_all(&[2; 100]).expect("into the socket");
    far.set_read_timeout(Some(Duration::from_millis(500))).expect("an option");
    let got = uninterrupted(|| far.read(&mut [0; 100]));
    assert!(got.is_err(), "the rule is not met: {got:?}");
}

#[test]
fn a_flush_makes_a_running_connection_meet_a_new_rule() {
    let lab = guarded(&verified());
    let (mut near, mut far, port) = running(&lab);
    // A flush alone does no harm: the connection returns to the stack, is seen, and bypasses again.
    let [one, _] = counted(&lab, || {
        for n in [1, 2] {
            lab.agent(n).and_then(|agent| agent.cli(&["flows", "flush"])).expect("a flush");
        }
        for round in 0..20 {
            exchange(&mut near, &mut far, round);
            exchange(&mut far, &mut near, round);
        }
    });
    assert_took(&one, "pod_egress", "unverified", 1);
    assert_took(&one, "pod_egress", "encapsulated", 15);
    deny(&lab, port);
    exchange(&mut near, &mut far, 1); // still open: nobody has said anything
    lab.agent(2).and_then(|agent| agent.cli(&["flows", "flush"])).expect("a flush");
    assert_cut(&mut near, &mut far);
}

#[test]
fn a_source_that_knows_of_a_new_rule_makes_a_running_connection_meet_it() {
    let mut lab = guarded(&verified());
    let (mut near, mut far, port) = running(&lab);
    let flushes = |lab: &Lab| lab.agent(2).expect("an agent").log().matches("rules have changed").count();
    let before = flushes(&lab);
    deny(&lab, port);
    exchange(&mut near, &mut far, 1);
    let told = StateFile { policy: Some(7), ..lab.state().clone() };
    lab.write_state(told).expect("a state file");
    wait_until("the bypasses are closed", Duration::from_secs(5), || flushes(&lab) > before)
        .expect("a flush");
    assert_cut(&mut near, &mut far);
}

#[test]
fn a_list_of_flows_says_how_old_and_how_large_they_are() {
    let lab = guarded(&verified());
    let (mut near, mut far, port) = running(&lab);
    std::thread::sleep(Duration::from_millis(300));
    exchange(&mut near, &mut far, 1);
    for (n, side) in [(1, "remote_port"), (2, "local_port")] {
        let flows = lab.agent(n).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
        let flows = flows.as_array().expect("a list");
        let flow = flows.iter().find(|flow| flow[side] == port).expect("the flow");
        assert_eq!(
            (flow["protocol"].as_str(), flow["state"].as_str()),
            (Some("tcp"), Some("bypass")),
            "{flow}"
        );
        let [age, idle] = ["age", "idle"].map(|time| flow[time].as_f64().expect("seconds"));
        assert!(age >= idle + 0.29, "{flow}");
        let [packets, bytes] = ["packets", "bytes"].map(|sum| flow[sum].as_u64().expect("a sum"));
        // 41 messages of 100 bytes, but for what made the flow known.
        assert!(packets >= 40 && bytes >= 40 * 100 + packets * 40, "{flow}");
    }
}

#[test]
fn a_stream_of_datagrams_meets_a_new_rule_within_two_seconds_without_a_flush() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let stream = UdpStream::start(client, server, server.ip4.into(), 1_000, 100).expect("a stream");
    let [one, two] = counted(&lab, || std::thread::sleep(Duration::from_millis(2500)));
    // One way only, and nevertheless on the fast path; about one packet a second takes the stack.
    assert_took(&one, "pod_egress", "encapsulated", 2_000);
    assert_took(&two, underlay_hook(), "decapsulated", 2_000);
    let looked_at = one.packets("pod_egress", "unverified");
    assert!((2..=8).contains(&looked_at), "{looked_at} packets took the stack");
    nft(
        &lab,
        2,
        "table inet deny {\n chain forward {\n  type filter hook forward priority filter - 1;\n  meta l4proto udp drop\n }\n}\n",
    );
    let stopped = || {
        let [_, two] = counted(&lab, || std::thread::sleep(Duration::from_millis(200)));
        two.packets(underlay_hook(), "decapsulated") == 0
    };
    wait_until("the rule is met", Duration::from_secs(3), stopped)
        .expect("the flow is looked at about once a second");
    drop(stream.stop());
}
