//! Where no packet filter asks for more than addresses, all between two pods is one flow.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, tcp_concurrent, udp_echo};
use vxlan_tests::lab::{Attach, Family, Lab, LabSpec, wait_until};

use super::super::{assert_answered, assert_nothing_dropped, build, counted, warm_up};
use super::{nft, verified};

/// A lab without filters in which all pods have been heard of.
fn unfiltered(spec: LabSpec) -> Lab {
    let lab = build(&spec.unfiltered());
    warm_up(&lab);
    until_judged(&lab, None);
    lab
}

/// What `status` names as the reason to look at connections.
fn judge(lab: &Lab, n: u8) -> Option<String> {
    let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).expect("a status");
    status["networks"][0]["judge"].as_str().map(str::to_owned)
}

fn until_judged(lab: &Lab, by: Option<&str>) {
    let is_so = || match (judge(lab, 1), by) {
        (None, None) => true,
        (Some(judge), Some(by)) => judge.contains(by),
        _ => false,
    };
    wait_until("the judge is known", Duration::from_secs(10), is_so)
        .unwrap_or_else(|_| panic!("the judge is {:?}", judge(lab, 1)));
}

/// Connections begin and end on the fast path, over every underlay and from every kind of pod.
#[test]
fn short_connections_bypass_from_their_first_packet_on() {
    for spec in [verified(), verified().attach(Attach::Ptp), verified().underlay(Family::V6)] {
        let lab = unfiltered(spec);
        let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
        for ip in server.ips() {
            assert_answered(client, ip, Ping { count: 3, ..Ping::default() });
            let nodes = counted(&lab, || {
                tcp_concurrent(client, server, ip, 200, 2_000).expect("200 connections at once");
                assert!(udp_echo(client, server, ip, 1..=100).expect("UDP").all_intact());
            });
            for node in &nodes {
                // One in a second of datagrams, one in ten of TCP.
                let left = node.packets("pod_egress", "unverified");
                let fast = node.packets("pod_egress", "encapsulated");
                assert!(left <= 12 && fast >= 600, "{left} packets took the stack, {fast} not:\n{node}");
                assert_nothing_dropped(node);
            }
        }
    }
}

/// A chain that lets nothing through to a TCP port.
fn drops(port: u16) -> String {
    format!(
        "table inet late {{\n chain forward {{\n  type filter hook forward priority filter;\n  tcp dport {port} drop\n }}\n}}\n"
    )
}

/// Somebody in pod 1 of node 2 who takes connections, and where.
fn listening(lab: &Lab) -> (TcpListener, SocketAddr) {
    let server = lab.pod(2, 1);
    let listener = server.run(|| TcpListener::bind((server.ip4, 0))).expect("a port");
    let to = listener.local_addr().expect("an address");
    (listener, to)
}

/// A connection to `to`, at most so long.
fn connect(lab: &Lab, to: SocketAddr, longest: Duration) -> io::Result<TcpStream> {
    lab.pod(1, 1).run(|| TcpStream::connect_timeout(&to, longest))
}

/// From when a filter is there, new connections are asked for; with none, they are not any more.
#[test]
fn a_filter_that_comes_is_obeyed_at_once() {
    let lab = unfiltered(verified());
    let (_listener, to) = listening(&lab);
    let (server, ip) = (lab.pod(2, 1), to.ip());
    connect(&lab, to, Duration::from_secs(5)).expect("a connection");
    nft(&lab, 1, &drops(to.port()));
    until_judged(&lab, Some("inet late forward"));
    let error = connect(&lab, to, Duration::from_millis(300)).expect_err("the filter says no");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let nodes = counted(&lab, || {
        assert!(udp_echo(lab.pod(1, 1), server, ip, 1..=100).expect("UDP").all_intact());
    });
    assert!(nodes[0].packets("pod_egress", "encapsulated") > 90, "datagrams bypass:\n{}", nodes[0]);
    nft(&lab, 1, "delete table inet late\n");
    until_judged(&lab, None);
    connect(&lab, to, Duration::from_secs(5)).expect("a connection");
}

/// Of what can be seen, too, that judges by ports without being a filter.
#[test]
fn a_routing_rule_about_ports_is_a_judge() {
    let lab = unfiltered(verified());
    for (rule, by) in [("ipproto tcp dport 9", "routing rules"), ("to 192.0.2.77", "")] {
        lab.node(1).sh(&format!("ip rule add {rule} prohibit")).expect("a rule");
        if by.is_empty() {
            assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
            assert_eq!(judge(&lab, 1), None, "a rule about addresses");
        } else {
            until_judged(&lab, Some(by));
        }
        lab.node(1).sh(&format!("ip rule del {rule} prohibit")).expect("no rule");
        until_judged(&lab, None);
    }
}

/// What the host's routes say no to stops, though it was seen to pass.
#[test]
fn an_address_that_the_host_refuses_is_refused_within_a_second() {
    let lab = unfiltered(verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    assert!(udp_echo(client, server, server.ip4.into(), 1..=50).expect("UDP").all_intact());
    lab.node(1).sh(&format!("ip route add prohibit {}", server.ip4)).expect("a route");
    let refused = || {
        let report = udp_echo(client, server, server.ip4.into(), 1..=1);
        !report.is_ok_and(|report| report.all_intact())
    };
    wait_until("the route is obeyed", Duration::from_secs(5), refused).expect("the route is obeyed");
    let v6 = udp_echo(client, server, server.ip6.into(), 1..=50).expect("UDP");
    assert!(v6.all_intact(), "{v6:?}");
}

/// With nobody there to look out for filters, connections are asked for again.
#[test]
fn a_filter_that_comes_when_the_agent_is_dead_is_obeyed() {
    let mut lab = unfiltered(verified());
    lab.agent_mut(1).expect("an agent").kill9().expect("killed");
    let (_listener, to) = listening(&lab);
    let (server, ip) = (lab.pod(2, 1), to.ip());
    connect(&lab, to, Duration::from_secs(5)).expect("a connection");
    nft(&lab, 1, &drops(to.port()));
    let refused = || {
        // Others between the two are well.
        assert!(udp_echo(lab.pod(1, 1), server, ip, 1..=10).expect("UDP").all_intact());
        connect(&lab, to, Duration::from_millis(200)).is_err()
    };
    wait_until("the filter is obeyed", Duration::from_secs(8), refused).expect("the filter is obeyed");
    for _ in 0..3 {
        assert!(refused(), "for good");
    }
    let nodes = counted(&lab, || {
        assert!(udp_echo(lab.pod(1, 1), server, ip, 1..=100).expect("UDP").all_intact());
    });
    assert!(nodes[0].packets("pod_egress", "encapsulated") > 90, "flows bypass:\n{}", nodes[0]);
}
