//! Packet filters next to the fast path.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, UdpStream, ping, tcp_bulk, udp_echo};
use vxlan_tests::lab::wait_until;

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
    let denied = nodes[1].packets(underlay_hook(), "unverified");
    assert!(denied >= 5, "{}", nodes[1]);
}

#[test]
fn a_flush_makes_a_running_connection_meet_a_new_rule() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let listener = server.run(|| TcpListener::bind(("0.0.0.0", 0))).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let mut near = client.run(|| from_port(0, (server.ip4, port).into()));
    let (mut far, _) = listener.accept().expect("a connection");
    for round in 0..20 {
        exchange(&mut near, &mut far, round);
    }
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
    assert_took(&one, "pod_egress", "encapsulated", 20);

    nft(
        &lab,
        2,
        &format!(
            "table inet deny {{\n chain forward {{\n  type filter hook forward priority filter - 1;\n  tcp dport {port} drop\n }}\n}}\n"
        ),
    );
    exchange(&mut near, &mut far, 1); // still open: nobody has said anything
    lab.agent(2).and_then(|agent| agent.cli(&["flows", "flush"])).expect("a flush");
    near.write_all(&[2; 100]).expect("into the socket");
    far.set_read_timeout(Some(Duration::from_millis(500))).expect("an option");
    let got = far.read(&mut [0; 100]);
    assert!(got.is_err(), "the rule is not met: {got:?}");
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
