//! Connections that end after they have bypassed the stack, and their ports used again.

use std::io::Read as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use vxlan_tests::lab::traffic::{tcp_concurrent, uninterrupted};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay, wait_until};

use super::super::{assert_nothing_dropped, assert_took, build, counted, warm_up};
use super::{FILTER, conntrack, exchange, from_port, guarded, nft, verified};

/// TCP connections that conntrack of node `n` believes to be up.
fn established(lab: &Lab, n: u8) -> usize {
    tracked(lab, n, "ESTABLISHED").len()
}

/// What conntrack of node `n` knows of TCP, of the lines that contain `what`.
fn tracked(lab: &Lab, n: u8, what: &str) -> Vec<String> {
    conntrack(lab, n).into_iter().filter(|line| line.contains("tcp") && line.contains(what)).collect()
}

#[test]
fn connections_close_before_the_stack_and_leave_nothing_in_conntrack() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let nodes = counted(&lab, || {
        tcp_concurrent(client, server, server.ip4.into(), 300, 2_000)
            .expect("connections that open and close");
    });
    for node in &nodes {
        // What an end says and that it ends may come in one packet, which is the stack's; on a slow machine
        // nearly always.
        assert_took(node, "pod_egress", "encapsulated", 10);
        assert_nothing_dropped(node);
    }
    for n in [1, 2] {
        assert_eq!(established(&lab, n), 0, "node {n} keeps connections that are over");
        let flows = lab.agent(n).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
        let flows = flows.as_array().expect("a list");
        let closed =
            flows.iter().filter(|flow| flow["protocol"] == "tcp" && flow["state"] == "closed").count();
        assert!(closed >= 290, "{closed} of 300 connections are known to be closed");
    }
}

/// Two nodes whose agents run without a fast path, and conntrack.
fn without_fast_path() -> Lab {
    let options = || AgentOptions { fastpath: "off".into(), ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options()), Overlay::Agent(options())));
    for n in [1, 2] {
        nft(&lab, n, FILTER);
    }
    lab
}

/// Restarts the agents with the fast path in mode `verified`.
fn verify(lab: &mut Lab) {
    for n in [1, 2] {
        let agent = lab.agent_mut(n).expect("an agent");
        let config = std::fs::read_to_string(agent.config()).expect("a configuration");
        let config = config.replace("fastpath = \"off\"", "fastpath = \"verified\"");
        std::fs::write(agent.config(), config).expect("a configuration");
        agent.restart().expect("a restart");
    }
    warm_up(lab);
}

/// How a connection ends.
enum End {
    /// Both sides send FIN.
    Fin,
    /// One sends RST.
    Reset,
}

fn end(near: TcpStream, mut far: TcpStream, end: &End) {
    if matches!(end, End::Reset) {
        socket2::SockRef::from(&near).set_linger(Some(Duration::ZERO)).expect("an option");
    }
    drop(near);
    far.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    match (end, uninterrupted(|| far.read(&mut [0; 1]))) {
        (End::Fin, Ok(0)) | (End::Reset, Err(_)) => {}
        (_, got) => panic!("it has not ended: {got:?}"),
    }
}

#[test]
fn connections_that_were_up_before_the_fast_path_leave_nothing_in_conntrack() {
    let mut lab = without_fast_path();
    let addresses = lab.pod(2, 1).ips();
    let connections: Vec<_> = addresses
        .into_iter()
        .flat_map(|ip| [(ip, End::Fin), (ip, End::Reset)])
        .map(|(ip, end)| {
            let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
            let listener = server.run(|| TcpListener::bind((ip, 0))).expect("a listener");
            let port = listener.local_addr().expect("an address").port();
            let near = client.run(|| from_port(0, (ip, port).into()));
            (near, listener.accept().expect("a connection").0, end)
        })
        .collect();
    for n in [1, 2] {
        assert_eq!(established(&lab, n), connections.len(), "conntrack of node {n} sees connections open");
    }
    verify(&mut lab);
    let mut connections = connections;
    let nodes = counted(&lab, || {
        for (near, far, _) in &mut connections {
            for round in 0..20 {
                exchange(near, far, round);
                exchange(far, near, round);
            }
        }
    });
    for node in &nodes {
        assert_took(node, "pod_egress", "encapsulated", 4 * 18);
        assert_nothing_dropped(node);
    }
    connections.into_iter().for_each(|(near, far, how)| end(near, far, &how));
    for n in [1, 2] {
        // A reset that does not follow the last packet that conntrack has seen shortens the entry's life
        // to ten seconds (`nf_conntrack_tcp_packet`, v6.18).
        assert!(established(&lab, n) <= 2, "conntrack of node {n} does not see connections end");
        let gone = || established(&lab, n) == 0;
        wait_until("conntrack forgets", Duration::from_secs(15), gone)
            .unwrap_or_else(|error| panic!("node {n}: {error}: {:?}", tracked(&lab, n, "")));
    }
}

/// Connects from port `from` of pod 1 on node 1 to `to`; whether that succeeds.
fn connects(lab: &Lab, from: u16, to: SocketAddr) -> Option<TcpStream> {
    lab.pod(1, 1).run(|| {
        let socket =
            socket2::Socket::new(socket2::Domain::for_address(to), socket2::Type::STREAM, None).ok()?;
        socket.set_reuse_address(true).ok()?;
        socket.bind(&SocketAddr::from((lab.pod(1, 1).ip4, from)).into()).ok()?;
        socket.connect_timeout(&to.into(), Duration::from_secs(1)).ok()?;
        Some(TcpStream::from(socket))
    })
}

#[test]
fn ports_used_again_meet_a_rule_against_new_connections_though_the_agent_is_dead() {
    const PORT: u16 = 40_123;
    let mut lab = guarded(&verified());
    let server = lab.pod(2, 1);
    let listener = server.run(|| TcpListener::bind((server.ip4, 0))).expect("a listener");
    let to = listener.local_addr().expect("an address");
    // TIME_WAIT is the server's, so that the client may use the port again.
    let open = |lab: &Lab| {
        let mut near = connects(lab, PORT, to).expect("a connection");
        let (mut far, _) = listener.accept().expect("a connection");
        let [one, _] = counted(lab, || {
            for round in 0..20 {
                exchange(&mut near, &mut far, round);
                exchange(&mut far, &mut near, round);
            }
        });
        assert_took(&one, "pod_egress", "encapsulated", 15);
        drop(far);
        end_of(&mut near);
    };
    open(&lab);
    open(&lab);
    lab.agent_mut(1).expect("an agent").kill9().expect("killed");
    let rule = format!(
        "table inet deny {{\n chain forward {{\n  type filter hook forward priority filter - 1;\n  \
         ct state new tcp dport {} drop\n }}\n}}\n",
        to.port()
    );
    nft(&lab, 1, &rule);
    assert!(connects(&lab, PORT, to).is_none(), "a new connection passes as an old one");
}

/// Waits for the other side's FIN.
fn end_of(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    assert_eq!(uninterrupted(|| stream.read(&mut [0; 1])).expect("an end"), 0);
}
