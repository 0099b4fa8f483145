//! What pods need of their node besides the overlay: masquerading and files.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Duration;

use tempfile::TempDir;
use vxlan_tests::lab::addr::{inner4, inner6, underlay4, underlay6};
use vxlan_tests::lab::traffic::{Ping, uninterrupted};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Netns, Overlay, wait_until};

use super::{build, counted, warm_up};

const TABLE: &str = "list table inet vxlan-agent-pods";

/// Agents with a `[pods]` section of these lines, and without conntrack around the tunnel.
pub(super) fn with_pods(fastpath: &str, lines: &str) -> Overlay {
    let networks = "networks = [\"10.244.0.0/16\", \"fd00:244::/32\"]";
    let sections = format!("[pods]\n{networks}\n{lines}\n");
    let (fastpath, network) = (fastpath.into(), "notrack = true".into());
    Overlay::Agent(AgentOptions { fastpath, network, sections, ..AgentOptions::default() })
}

/// The source address that a server in `server` sees when `client` sends a datagram to `to`.
fn source_seen(client: &Netns, server: &Netns, from: Option<IpAddr>, to: IpAddr) -> IpAddr {
    let any = |ip: IpAddr| if ip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let listener = server.run(|| UdpSocket::bind(any(to))).expect("a server");
    listener.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let port = listener.local_addr().expect("bound").port();
    client.run(|| {
        let socket = match from {
            Some(from) => UdpSocket::bind((from, 0)),
            None => UdpSocket::bind(any(to)),
        };
        socket.and_then(|socket| socket.send_to(b"who am I", (to, port))).expect("sent");
    });
    let (_, seen) = uninterrupted(|| listener.recv_from(&mut [0; 16])).expect("a datagram that arrives");
    seen.ip()
}

fn table(node: &Netns) -> String {
    node.sh(&format!("nft -a {TABLE}")).unwrap_or_else(|error| format!("{error:#}"))
}

/// Masquerading of node 1 is as it should be.
#[track_caller]
pub(super) fn assert_masquerading(lab: &Lab) {
    let (node, pod, other) = (lab.node(1), lab.pod(1, 1), lab.pod(2, 1));
    let address4 = [underlay4(1).into(), underlay4(2).into()];
    let address6 = [underlay6(1).into(), underlay6(2).into()];
    for ([own, outside], (pod_ip, other_ip), tunnel) in [
        (address4, (pod.ip4.into(), other.ip4.into()), IpAddr::from(inner4(1, 0))),
        (address6, (pod.ip6.into(), other.ip6.into()), IpAddr::from(inner6(1, 0))),
    ] {
        let seen = |client: &Netns, server: &Netns, from, to| source_seen(client, server, from, to);
        assert_eq!(seen(pod, lab.node(2), None, outside), own, "pod to elsewhere");
        assert_eq!(seen(pod, other, None, other_ip), pod_ip, "pod to pod");
        assert_eq!(seen(node, other, None, other_ip), tunnel, "the node itself to a pod");
        assert_eq!(seen(node, other, Some(own), other_ip), tunnel, "another address of the node to a pod");
        assert_eq!(seen(node, pod, Some(own), pod_ip), own, "the node to its own pod");
    }
}

#[test]
fn pods_are_masqueraded_towards_the_outside_and_never_among_themselves() {
    for fastpath in ["off", "direct", "verified"] {
        let masquerading = || with_pods(fastpath, "masquerade = true");
        let lab = build(&LabSpec::pair(masquerading(), masquerading()));
        if fastpath == "off" {
            assert_masquerading(&lab);
            continue;
        }
        warm_up(&lab);
        let nodes = counted(&lab, || (0..3).for_each(|_| assert_masquerading(&lab)));
        // Some by way of the stack, because its rules change them.
        super::assert_took(&nodes[0], "tunnel_egress", "encapsulated", 12);
        nodes.iter().for_each(super::assert_nothing_dropped);
        let listed = table(lab.node(1));
        for part in [
            "type nat hook postrouting priority srcnat; policy accept;",
            "ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 ip daddr != 224.0.0.0/4 masquerade fully-random",
            "ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 ip6 daddr != ff00::/8 masquerade fully-random",
            "ip saddr != 10.244.0.0/16 ip daddr 10.244.0.0/16 oifname \"flannel.1\" masquerade fully-random",
        ] {
            assert!(listed.contains(part), "`{part}` is not in\n{listed}");
        }
        let tunnels = lab.agent(1).expect("an agent").nft_table();
        let listed = lab.node(1).sh(&format!("nft list table inet {tunnels}")).expect("a table");
        assert!(listed.contains("udp dport @untracked notrack"), "{listed}");
    }
}

#[test]
fn masquerade_rules_outlive_the_agent_and_go_with_detach() {
    let masquerading = || with_pods("direct", "masquerade = true");
    let mut lab = build(&LabSpec::pair(masquerading(), masquerading()).unfiltered());
    warm_up(&lab);
    lab.node(1).feed("nft", &["-f", "-"], "table inet foreign {\n}\n").expect("a foreign table");
    let before = table(lab.node(1));
    assert!(before.contains("masquerade"), "{before}");
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
    assert_eq!(table(lab.node(1)), before, "it outlives the agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    // With the handles, which change when a rule is made anew.
    assert_eq!(table(lab.node(1)), before, "a restart finds it as it should be");

    // What comes with a repair is looked at, too; otherwise it is within a minute.
    lab.node(1).sh("nft flush table inet vxlan-agent-pods").expect("a flush");
    lab.node(1).sh("ip route del 10.244.2.0/24").expect("damage");
    wait_until("the rules are back", Duration::from_secs(5), || table(lab.node(1)).contains("masquerade"))
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("a repair");
    assert_masquerading(&lab);

    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");
    let tables = lab.node(1).sh("nft list tables").expect("tables");
    assert_eq!(tables.trim(), "table inet foreign");
}

/// The answer to a health check: status line and body.
pub(super) fn ask(node: &Netns, path: &str) -> Option<(String, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let exchange = || {
        let mut stream = TcpStream::connect("127.0.0.1:9475")?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    let answer = node.run(exchange).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

#[test]
fn an_agent_says_whether_it_lives_and_what_it_lacks() {
    let node = "healthz = \"127.0.0.1:9475\"".to_owned();
    let options = AgentOptions { node, ..AgentOptions::default() };
    let mut lab = build(&LabSpec::pair(Overlay::Agent(options), Overlay::agent()));
    let says = |lab: &Lab, path: &str, status: &str, word: &str| {
        let said =
            || ask(lab.node(1), path).is_some_and(|(s, body)| s.contains(status) && body.contains(word));
        wait_until(&format!("{path} says {status}"), Duration::from_secs(5), said)
            .inspect_err(|_| eprintln!("{:?}", ask(lab.node(1), path)))
            .expect("an answer");
    };
    says(&lab, "/healthz", "200", "ok");
    says(&lab, "/readyz", "200", "ok");
    says(&lab, "/", "404", "readyz");
    let state = lab.state().clone();
    fs::write(lab.state_path(), "[[node]]\nname = \"n1\"\n").expect("a broken state");
    says(&lab, "/readyz", "503", "missing field");
    says(&lab, "/healthz", "200", "ok");
    lab.write_state(state).expect("the state of before");
    says(&lab, "/readyz", "200", "ok");
}

#[test]
fn three_capabilities_are_enough() {
    let options = |fastpath: &str| {
        // As `capabilities` in deploy/ has them.
        let wrapper = ["setpriv", "--bounding-set", "-all,+bpf,+net_admin,+perfmon", "--no-new-privs"];
        let sections = "[pods]\nnetworks = [\"10.244.0.0/16\"]\nmasquerade = true\n".to_owned();
        let wrapper = wrapper.map(str::to_owned).to_vec();
        AgentOptions { fastpath: fastpath.into(), sections, wrapper, ..AgentOptions::default() }
    };
    for fastpath in ["direct", "verified"] {
        let mut lab = build(&LabSpec::pair(Overlay::Agent(options(fastpath)), Overlay::agent()));
        warm_up(&lab);
        // Adopting what is pinned needs no more than making it.
        lab.agent_mut(1).and_then(|agent| agent.restart()).expect("a restart");
        let status = fs::read_to_string(format!(
            "/proc/{}/status",
            lab.agent(1).expect("an agent").pid().expect("runs")
        ));
        assert!(status.expect("a process").contains("CapEff:\t000000c000001000"), "these three");
        let ping = Ping { count: 20, ..Ping::default() };
        let [one, _] = counted(&lab, || super::assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, ping));
        super::assert_took(&one, "pod_egress", "encapsulated", 10);
        assert!(table(lab.node(1)).contains("masquerade"));
    }
}

#[test]
fn files_for_pods_come_with_the_agent_and_go_with_detach() {
    let directory = new_directory();
    let (subnet, cni) =
        (directory.path().join("run/subnet.env"), directory.path().join("net.d/10-flannel.conflist"));
    let lines = format!("subnet_file = {subnet:?}\ncni = \"flannel\"\ncni_file = {cni:?}\n");
    let mut lab = build(&LabSpec::pair(with_pods("direct", &lines), Overlay::agent()));
    let written = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/32\n\
                   FLANNEL_IPV6_SUBNET=fd00:244:1::1/64\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n";
    assert_eq!(fs::read_to_string(&subnet).expect("a subnet file"), written);
    assert!(fs::read_to_string(&cni).expect("a CNI configuration").contains("\"flannel\""));
    // A file that somebody has made theirs stays.
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    fs::write(&cni, "{}").expect("written");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");
    assert!(!subnet.exists());
    assert_eq!(fs::read_to_string(&cni).expect("theirs"), "{}");
}

/// A new directory, deleted when dropped: make it before a lab whose agents write into it, so that it
/// goes after them.
pub(super) fn new_directory() -> TempDir {
    tempfile::Builder::new().prefix("vxlan-pods-").tempdir().expect("a directory")
}
