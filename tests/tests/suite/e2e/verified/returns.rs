//! Connections that return to the host stack after a silence, there to meet a stateful filter.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{AgentOptions, Counters, DEVICE, Lab, LabSpec, Overlay};

use super::super::{assert_answered, assert_took, build, counted, warm_up};
use super::{conntrack, exchange, from_port, nft, verified};

/// As controllers make policies: only clients on node 1 open connections.
const ONE_WAY: &str = "table inet oneway {\n chain forward {\n  type filter hook forward priority filter; policy drop;\n  \
    ct state invalid drop\n  ct state established,related accept\n  icmp type echo-request accept\n  \
    meta l4proto 58 accept\n  ip saddr 10.244.1.0/24 tcp dport 7000-7999 accept\n  \
    ip6 saddr fd00:244:1::/64 tcp dport 7000-7999 accept\n }\n}\n";

/// How long conntrack remembers a connection that it does not take for established.
const HALF_OPEN: u64 = 2;

/// A connection to a port of pod 1 on node 2.
type Connection = (TcpStream, TcpStream);

/// Opens a connection to `port` of pod 1 on node 2, and what the nodes counted meanwhile.
fn connect(lab: &Lab, ip: IpAddr, port: u16) -> (Connection, [Counters; 2]) {
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let listener = server.run(|| TcpListener::bind((ip, port))).expect("a listener");
    let mut near = client.run(|| from_port(0, (ip, port).into()));
    let (mut far, _) = listener.accept().expect("a connection");
    let nodes = counted(lab, || {
        for round in 0..10 {
            exchange(&mut near, &mut far, round);
            exchange(&mut far, &mut near, round);
        }
    });
    ((near, far), nodes)
}

/// The same, and it bypasses the stack at both nodes.
fn open(lab: &Lab, ip: IpAddr, port: u16) -> Connection {
    let (connection, nodes) = connect(lab, ip, port);
    for node in &nodes {
        assert_took(node, "pod_egress", "encapsulated", 7);
    }
    connection
}

/// Has conntrack of node `n` forget half-open connections soon, and take up none in the middle.
fn strict(lab: &Lab, n: u8) {
    let half_open = HALF_OPEN.to_string();
    let settings = [
        ("netfilter/nf_conntrack_tcp_timeout_syn_recv", half_open.as_str()),
        ("netfilter/nf_conntrack_tcp_loose", "0"),
    ];
    lab.node(n).sysctl(&settings).expect("settings");
}

fn silence(seconds: u64) {
    std::thread::sleep(Duration::from_secs(seconds));
}

/// Runs a command of the agent's on both nodes.
fn both(lab: &Lab, command: &[&str]) {
    for n in [1, 2] {
        lab.agent(n).and_then(|agent| agent.cli(command)).expect("a command");
    }
}

#[test]
fn a_server_speaks_after_a_silence_whatever_has_closed_the_bypasses() {
    let mut lab = build(&verified());
    for n in [1, 2] {
        nft(&lab, n, ONE_WAY);
        strict(&lab, n);
    }
    warm_up(&lab);
    let [ip4, ip6] = lab.pod(2, 1).ips();
    let mut connections: Vec<_> =
        (7000..).zip([ip4, ip6, ip4, ip6, ip4]).map(|(port, ip)| open(&lab, ip, port)).collect();
    silence(HALF_OPEN + 1);
    let mut speaks = |what: &str| {
        let (mut near, mut far) = connections.pop().expect("a connection");
        far.set_nodelay(true).expect("an option");
        exchange(&mut far, &mut near, 1);
        exchange(&mut near, &mut far, 2);
        drop((near, far));
        println!("after {what}: fine");
    };
    both(&lab, &["flows", "flush"]);
    speaks("a flush over IPv4");
    speaks("a flush over IPv6");
    both(&lab, &["fastpath", "off"]);
    speaks("switching off");
    both(&lab, &["fastpath", "on"]);
    for n in [1, 2] {
        lab.agent_mut(n).and_then(vxlan_tests::lab::Agent::restart).expect("a restart");
    }
    both(&lab, &["flows", "flush"]);
    speaks("a restart");
    for n in [1, 2] {
        lab.agent_mut(n).and_then(vxlan_tests::lab::Agent::kill9).expect("killed");
    }
    both(&lab, &["flows", "flush"]);
    speaks("an agent's death");
}

#[test]
fn conntrack_knows_a_connection_for_as_long_as_it_bypasses() {
    const ESTABLISHED: u64 = 15;
    let lab = build(&verified());
    for n in [1, 2] {
        nft(&lab, n, ONE_WAY);
        let name = "netfilter/nf_conntrack_tcp_timeout_established";
        lab.node(n).sysctl(&[(name, &ESTABLISHED.to_string())]).expect("a setting");
    }
    warm_up(&lab);
    let (mut near, mut far) = open(&lab, lab.pod(2, 1).ip4.into(), 7000);
    for round in 0..20 {
        exchange(&mut near, &mut far, round);
        exchange(&mut far, &mut near, round);
        silence(1);
    }
    for n in [1, 2] {
        let known = conntrack(&lab, n).iter().any(|line| line.contains("ESTABLISHED"));
        assert!(known, "conntrack of node {n} has forgotten a connection that bypasses it");
    }
    both(&lab, &["flows", "flush"]);
    exchange(&mut far, &mut near, 1);
}

#[test]
fn a_server_speaks_after_a_silence_to_a_client_behind_nat() {
    let lab = build(&verified());
    for n in [1, 2] {
        strict(&lab, n);
    }
    nft(&lab, 2, ONE_WAY);
    let nat = format!(
        "table ip clients {{\n chain leave {{\n  type nat hook postrouting priority srcnat;\n  \
         ip saddr {} tcp dport 7000 oifname {DEVICE} masquerade\n }}\n}}\n",
        lab.pod(1, 1).ip4
    );
    nft(&lab, 1, &nat);
    warm_up(&lab);
    let ((mut near, mut far), [one, two]) = connect(&lab, lab.pod(2, 1).ip4.into(), 7000);
    assert_eq!(far.peer_addr().expect("a peer").ip(), IpAddr::from(lab.node(1).vtep4), "not translated");
    assert_eq!(one.packets("pod_egress", "encapsulated"), 0, "what is translated bypasses nothing:\n{one}");
    assert_took(&two, "pod_egress", "encapsulated", 7);
    silence(HALF_OPEN + 1);
    both(&lab, &["flows", "flush"]);
    exchange(&mut far, &mut near, 1);
    exchange(&mut near, &mut far, 2);
}

#[test]
fn where_conntrack_would_not_take_connections_back_tcp_does_not_bypass() {
    // As in a container: what it sets it may not.
    let read_only =
        "mount -o bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", read_only];
    let options =
        || AgentOptions { wrapper: wrapper.map(str::to_owned).to_vec(), ..AgentOptions::verified() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options()), Overlay::Agent(options())));
    for n in [1, 2] {
        strict(&lab, n);
        nft(&lab, n, ONE_WAY);
    }
    warm_up(&lab);
    let ((mut near, mut far), nodes) = connect(&lab, lab.pod(2, 1).ip4.into(), 7000);
    for node in &nodes {
        assert_took(node, "pod_egress", "limited", 10);
        assert_eq!(node.packets("pod_egress", "encapsulated"), 0, "{node}");
    }
    silence(HALF_OPEN + 1);
    both(&lab, &["flows", "flush"]);
    exchange(&mut far, &mut near, 1);
    let echoes = Ping { count: 10, ..Ping::default() };
    let [one, _] = counted(&lab, || assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, echoes));
    assert_took(&one, "pod_egress", "encapsulated", 5);
}
