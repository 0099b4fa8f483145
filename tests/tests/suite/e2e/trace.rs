//! `trace`: what it says of a packet is what happens to it, and saying so changes nothing.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use vxlan_tests::lab::agent::agent_binary;
use vxlan_tests::lab::segment::{SegmentLab, SegmentSpec};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject, ping};
use vxlan_tests::lab::{Agent, Lab, LabSpec, Netns, Overlay, UNDERLAY, wait_until};

use super::{assert_answered, counters, underlay_hook, warm_up};

const SOON: Duration = Duration::from_secs(2);
/// An address that no route of a lab leads to.
const NOWHERE: &str = "203.0.113.9";

/// Exit status and answer of `trace` with these words.
fn trace(node: &Netns, agent: &Agent, words: &[&str]) -> (Option<i32>, Value) {
    let program = agent_binary().expect("an agent");
    let run = || {
        let mut command = Command::new(program);
        command.arg("trace").args(words).args(["--json", "--config"]).arg(agent.config());
        command.output()
    };
    let output = node.run(run).expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    let answer = serde_json::from_str(&text);
    (output.status.code(), answer.unwrap_or_else(|_| Value::String(errors.into_owned())))
}

/// The answer at node `n`, which ends so, with this status; program and model agree.
#[track_caller]
fn traced(lab: &Lab, n: u8, words: &[&str], ended: &str) -> Value {
    judged(trace(lab.node(n), lab.agent(n).expect("an agent"), words), words, ended)
}

#[track_caller]
fn judged((status, answer): (Option<i32>, Value), words: &[&str], ended: &str) -> Value {
    let expected = i32::from(ended == "dropped");
    assert_eq!(answer["ended"], ended, "{words:?}: {answer:#}");
    assert_eq!(answer["agree"], true, "{words:?}: {answer:#}");
    assert_eq!(status, Some(expected), "{words:?}: {answer:#}");
    answer
}

/// Programs and reasons, in order.
fn decisions(answer: &Value) -> Vec<(String, String)> {
    let steps = answer["steps"].as_array().expect("steps").iter();
    let programs = steps.map(|step| &step["program"]).filter(|program| !program.is_null());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    programs.map(|program| (text(&program["hook"]), text(&program["reason"]))).collect()
}

#[track_caller]
fn assert_decided(answer: &Value, expected: &[(&str, &str)]) {
    let decided = decisions(answer);
    let decided: Vec<_> = decided.iter().map(|(hook, reason)| (hook.as_str(), reason.as_str())).collect();
    assert_eq!(decided, expected, "{answer:#}");
}

/// The maps in which the first program looked something up.
fn maps(answer: &Value) -> Vec<String> {
    let steps = answer["steps"].as_array().expect("steps");
    let looked_up = steps.iter().find_map(|step| step["program"]["looked_up"].as_array()).expect("a program");
    looked_up.iter().filter_map(|entry| Some(entry["map"].as_str()?.to_owned())).collect()
}

/// The bytes of the first program's packet, before or after.
fn bytes(answer: &Value, when: &str) -> Vec<u8> {
    let steps = answer["steps"].as_array().expect("steps");
    let text = steps.iter().find_map(|step| step["program"][when]["bytes"].as_str()).expect("a packet");
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal");
    (0..text.len()).step_by(2).map(digits).collect()
}

/// A node with `direct`, one with `verified`, one that is the kernel's alone.
fn lab() -> Lab {
    let overlays = vec![Overlay::agent(), Overlay::verified(), Overlay::KernelVxlan];
    let lab = LabSpec::of(overlays).pods(2).build().expect("a lab");
    for pod in lab.nodes().iter().flat_map(|node| &node.pods) {
        pod.trust_neighbours("eth0").expect("a setting");
        // Nor for routers: they do so for some seconds.
        pod.sysctl(&[("ipv6/conf/eth0/router_solicitations", "0")]).expect("a setting");
    }
    warm_up(&lab);
    for from in [lab.pod(1, 2), lab.pod(2, 2)] {
        assert_answered(from, lab.pod(3, 1).ip4, Ping { count: 2, ..Ping::default() });
    }
    let all_known = |n| {
        let endpoints = lab.agent(n).and_then(|agent| agent.json(&["dump", "endpoints"])).unwrap_or_default();
        endpoints.as_array().is_some_and(|list| list.len() >= 4)
    };
    wait_until("all pods are known", SOON * 3, || all_known(1) && all_known(2)).expect("in time");
    lab
}

/// What node 1 counted of packets that only these tests make.
fn counted(lab: &Lab, n: u8) -> Vec<u64> {
    let counters = counters(lab, n);
    ["encapsulated", "decapsulated", "switched", "pod_spoofed", "foreign_source", "no_route", "unverified"]
        .map(|reason| counters.total(reason))
        .to_vec()
}

fn flows(lab: &Lab, n: u8) -> Value {
    let mut flows = lab.agent(n).expect("an agent").json(&["flows", "list"]).expect("flows");
    // Ages go on, and nobody says in which order others' flows are listed.
    let all = flows.as_array_mut().expect("a list");
    for flow in all.iter_mut().filter_map(Value::as_object_mut) {
        flow.remove("age");
        flow.remove("idle");
    }
    flows
}

#[test]
fn what_a_trace_says_happens_and_saying_so_changes_nothing() {
    let lab = lab();
    the_peer_receives_what_was_said(&lab);
    let before = counted(&lab, 1);
    packets_of_pods_and_hosts_are_followed(&lab);
    what_arrives_is_followed(&lab);
    the_kernel_is_asked_where_the_fast_path_is_off(&lab);
    assert_eq!(counted(&lab, 1), before, "a trace counts nothing");
    questions_without_an_answer_have_their_own_status(&lab);
    verified_flows_are_told_from_others(&lab);
}

fn the_peer_receives_what_was_said(lab: &Lab) {
    for (from, to) in
        [(lab.pod(1, 1).ips(), lab.pod(3, 1).ips())].into_iter().flat_map(|(a, b)| a.into_iter().zip(b))
    {
        let words = [&from.to_string(), &to.to_string(), "--sport", "4242", "--length", "301"];
        let answer = traced(lab, 1, &words, "sent");
        assert_decided(&answer, &[("pod_egress", "encapsulated")]);
        let looked_up = maps(&answer);
        for map in ["NODE", "SWITCH", "NETWORKS", "VTEPS"] {
            assert!(looked_up.iter().any(|known| known == map), "{map} is not in {looked_up:?}");
        }
        assert!(looked_up.iter().any(|map| map.starts_with("ENDPOINTS")), "{looked_up:?}");
        assert!(
            looked_up.iter().any(|map| map.starts_with("SUBNETS") || map.starts_with("ROUTES")),
            "{looked_up:?}"
        );
        let (sent, said) = (bytes(&answer, "before"), bytes(&answer, "after"));
        let capture = Capture::start(lab.node(3), UNDERLAY).expect("a capture");
        inject(lab.pod(1, 1), "eth0", &sent).expect("sent");
        let inner = &sent[sent.len() - 250..];
        let received = capture.next(SOON, |frame: &Frame| frame.carries(inner)).expect("a capture");
        let Frame(received) = received.expect("the peer receives it");
        // The kernel fills in the outer MACs; identification, checksum and source port come of its flow hash.
        let comparable = |bytes: &[u8]| {
            let mut bytes = bytes[14..].to_vec();
            [4..6, 10..12, 20..22].into_iter().for_each(|range| bytes[range].fill(0));
            bytes
        };
        assert_eq!(comparable(&received), comparable(&said), "received left, said right");
    }
}

fn packets_of_pods_and_hosts_are_followed(lab: &Lab) {
    let [pod, neighbour, remote] =
        [lab.pod(1, 1), lab.pod(1, 2), lab.pod(3, 1)].map(|pod| pod.ip4.to_string());
    let answer = traced(lab, 1, &[&pod, &neighbour], "delivered");
    assert_decided(&answer, &[("pod_egress", "switched")]);

    let answer = traced(lab, 1, &[&pod, NOWHERE], "dropped");
    assert_decided(&answer, &[("pod_egress", "no_route")]);

    let answer = traced(lab, 1, &[&neighbour, &remote, "--in", "veth1"], "dropped");
    assert_decided(&answer, &[("pod_egress", "pod_spoofed")]);

    let answer = traced(lab, 1, &[&pod, &remote, "--length", "1451"], "dropped");
    assert_decided(&answer, &[("pod_egress", "too_big")]);

    let answer = traced(lab, 1, &[&lab.node(1).vtep4.to_string(), &remote, "--proto", "udp"], "sent");
    assert_decided(&answer, &[("tunnel_egress", "encapsulated")]);
}

fn what_arrives_is_followed(lab: &Lab) {
    let [pod, remote] = [lab.pod(1, 1), lab.pod(3, 1)].map(|pod| pod.ip4.to_string());
    let answer = traced(lab, 1, &[&remote, &pod, "--proto", "tcp", "--dport", "443"], "delivered");
    let decided = decisions(&answer);
    let expected = (underlay_hook().to_owned(), "decapsulated".to_owned());
    assert_eq!(decided.first(), Some(&expected), "{answer:#}");

    let other = lab.node(2).underlay.to_string();
    let words = [&remote, &pod, "--in", UNDERLAY, "--vtep", &other];
    let answer = traced(lab, 1, &words, "dropped");
    assert_decided(&answer, &[(underlay_hook(), "foreign_source")]);
}

fn the_kernel_is_asked_where_the_fast_path_is_off(lab: &Lab) {
    let [pod, remote] = [lab.pod(1, 1), lab.pod(3, 1)].map(|pod| pod.ip4.to_string());
    let agent = lab.agent(1).expect("an agent");
    agent.cli(&["fastpath", "off"]).expect("switched off");
    let answer = traced(lab, 1, &[&pod, &remote], "sent");
    let arriving = traced(lab, 1, &[&remote, &pod], "delivered");
    agent.cli(&["fastpath", "on"]).expect("switched on");
    assert_decided(&answer, &[("pod_egress", "switched_off"), ("tunnel_egress", "switched_off")]);
    let tables: Vec<_> = answer["steps"].as_array().expect("steps").iter().collect();
    let asked = |table: &str| {
        let facts = tables.iter().filter_map(|step| step["kernel"].as_array()).flatten();
        facts.filter(|fact| fact["table"] == table).map(|fact| fact["value"].to_string()).collect::<Vec<_>>()
    };
    let vtep = lab.node(3).underlay.to_string();
    assert!(asked("FDB").iter().any(|value| value.contains(&vtep)), "{answer:#}");
    assert!(asked("route").iter().any(|value| value.contains(UNDERLAY)), "{answer:#}");
    assert!(answer["summary"].as_str().is_some_and(|text| text.contains(&vtep)), "{answer:#}");
    assert!(decisions(&arriving).iter().all(|(_, reason)| reason == "switched_off"), "{arriving:#}");
}

fn questions_without_an_answer_have_their_own_status(lab: &Lab) {
    let agent = lab.agent(1).expect("an agent");
    let pod = lab.pod(1, 1).ip4.to_string();
    for words in [[NOWHERE, &pod], [&pod, "fd00::1"], [&pod, "02:00:00:00:00:01"]] {
        assert_eq!(trace(lab.node(1), agent, &words).0, Some(2), "{words:?}");
    }
}

/// A TCP connection, and the port that it comes from.
fn connection(client: &Netns, server: &Netns, ip: IpAddr, port: u16) -> (TcpStream, TcpStream) {
    let listener = server.run(|| TcpListener::bind((ip, port))).expect("a listener");
    let stream = client.run(|| TcpStream::connect((ip, port))).expect("a connection");
    let (accepted, _) = listener.accept().expect("a connection");
    (stream, accepted)
}

fn verified_flows_are_told_from_others(lab: &Lab) {
    let (client, server) = (lab.pod(2, 1), lab.pod(3, 1));
    let [from, to] = [client, server].map(|pod| pod.ip4.to_string());
    let through_the_stack = [("pod_egress", "unverified"), ("tunnel_egress", "encapsulated")];
    let before = flows(lab, 2);
    let words = [&from, &to, "--proto", "udp", "--sport", "5353", "--dport", "5354"];
    let answer = traced(lab, 2, &words, "sent");
    assert_decided(&answer, &through_the_stack);
    let would_write = answer["steps"][0]["program"]["would_write"].to_string();
    assert!(would_write.contains("pending"), "{answer:#}");
    assert_eq!(flows(lab, 2), before, "a trace opens no flow");

    let (mut here, mut there) = connection(client, server, server.ip4.into(), 7000);
    for _ in 0..8 {
        here.write_all(b"question").expect("sent");
        there.read_exact(&mut [0; 8]).expect("received");
        there.write_all(b"answer").expect("sent");
        here.read_exact(&mut [0; 6]).expect("received");
    }
    let port = here.local_addr().expect("an address").port().to_string();
    let words = [&from, &to, "--proto", "tcp", "--sport", &port, "--dport", "7000", "--flags"];
    let open = traced(lab, 2, &[&words[..], &["ack"]].concat(), "sent");
    assert_decided(&open, &[("pod_egress", "encapsulated")]);
    for flags in ["syn", "fin,ack", "rst"] {
        let answer = traced(lab, 2, &[&words[..], &[flags]].concat(), "sent");
        assert_decided(&answer, &through_the_stack);
    }
    let still = traced(lab, 2, &[&words[..], &["ack"]].concat(), "sent");
    assert_decided(&still, &[("pod_egress", "encapsulated")]);
}

fn segment() -> SegmentLab {
    let lab = SegmentSpec::pair(Overlay::agent(), Overlay::KernelVxlan).hosts(2).build().expect("a lab");
    for (from, to) in [((1, 1), (2, 1)), ((1, 2), (1, 1)), ((2, 1), (1, 2))] {
        let (from, to) = (lab.host(from.0, "red", from.1), lab.host(to.0, "red", to.1));
        let report = ping(from, to.ip4, Ping { count: 3, ..Ping::default() }).expect("a socket");
        assert!(report.all_answered(), "{:?}", report.errors);
    }
    let known = || {
        let stations = lab.agent(1).and_then(|agent| agent.json(&["dump", "stations"])).unwrap_or_default();
        stations.as_array().is_some_and(|list| list.len() >= 3)
    };
    wait_until("the stations are known", SOON * 3, known).expect("in time");
    lab
}

#[test]
fn a_trace_follows_frames_of_a_segment_by_their_macs() {
    let lab = segment();
    let [first, second, remote] = [(1, 1), (1, 2), (2, 1)].map(|(n, h)| {
        let [a, b, c, d, e, f] = lab.host(n, "red", h).mac;
        format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    });
    let agent = lab.agent(1).expect("an agent");
    let traced = |words: &[&str], ended: &str| judged(trace(lab.node(1), agent, words), words, ended);
    let first_hook =
        |answer: &Value| decisions(answer).first().map(|(hook, _)| hook.clone()).unwrap_or_default();
    assert_eq!(first_hook(&traced(&[&first, &remote], "sent")), "port_ingress");
    assert_eq!(first_hook(&traced(&[&first, &second], "delivered")), "port_ingress");
    let arriving = traced(&[&remote, &first], "delivered");
    assert!(first_hook(&arriving).starts_with("underlay"), "{arriving:#}");
    traced(&[&first, "ff:ff:ff:ff:ff:ff"], "flooded");
    // A station that shows up elsewhere: a real frame would make the fast path doubt where it is.
    let moved = traced(&[&remote, &first, "--in", &port_of(&lab, 2)], "delivered");
    assert_eq!(decisions(&moved)[0].1, "moved", "{moved:#}");
    let still = traced(&[&remote, &first], "delivered");
    assert!(decisions(&still).iter().all(|(_, reason)| reason != "moved"), "{still:#}");
}

/// The port behind which host `h` of node 1 is.
fn port_of(lab: &SegmentLab, h: u8) -> String {
    let stations = lab.agent(1).and_then(|agent| agent.json(&["dump", "stations"])).expect("stations");
    let [a, b, c, d, e, f] = lab.host(1, "red", h).mac;
    let mac = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
    let all = stations.as_array().expect("a list");
    let station = all.iter().find(|station| station["mac"] == mac.as_str()).expect("the station");
    station["port"].as_str().expect("a port").to_owned()
}

#[test]
fn a_probe_says_where_packets_end() {
    let lab = lab();
    let [pod, other, remote] = [lab.pod(1, 1), lab.pod(1, 2), lab.pod(3, 1)].map(|pod| pod.ip4.to_string());
    let agent = lab.agent(1).expect("an agent");
    let probe = |from: &str, to: &str| {
        let (status, answer) = trace(lab.node(1), agent, &[from, to, "--probe"]);
        let ended = answer["probe"]["ended"].as_str().unwrap_or_default().to_owned();
        (status, ended, answer)
    };
    let assert_whole = |from: &str, to: &str| {
        let (status, ended, answer) = probe(from, to);
        assert_eq!((status, ended.as_str()), (Some(0), "answered"), "{answer:#}");
        assert_eq!(answer["probe"]["path_mtu"]["largest"], 1450, "{answer:#}");
        assert_eq!(answer["probe"]["outer_path_mtu"]["largest"], 1500, "{answer:#}");
        assert_eq!(answer["probe"]["seen"]["left"], true, "{answer:#}");
    };
    assert_whole(&pod, &remote);
    assert_whole(&lab.node(1).vtep4.to_string(), &remote);
    agent.cli(&["fastpath", "off"]).expect("switched off");
    assert_whole(&pod, &remote);
    agent.cli(&["fastpath", "on"]).expect("switched on");

    let fabric = Netns::open(&format!("{}-fabric", lab.prefix())).expect("the fabric");
    fabric.ip("link set n3 mtu 1400\n").expect("a smaller MTU");
    let (status, ended, answer) = probe(&pod, &remote);
    assert_eq!((status, ended.as_str()), (Some(1), "answered"), "{answer:#}");
    for (path, least) in [("path_mtu", 1350), ("outer_path_mtu", 1400)] {
        let path = &answer["probe"][path];
        // A bridge lets frames by that have room for a VLAN tag more.
        assert!((least..=least + 4).contains(&path["largest"].as_u64().unwrap_or_default()), "{answer:#}");
        assert_eq!(path["black_hole"], true, "{answer:#}");
    }
    fabric.ip("link set n3 mtu 1500\nlink set n3 down\n").expect("the peer is gone");
    let (status, ended, answer) = probe(&pod, &remote);
    assert_eq!((status, ended.as_str()), (Some(1), "no_answer"), "{answer:#}");
    assert_eq!(answer["probe"]["vtep_answers"], false, "{answer:#}");

    assert_eq!(probe(&pod, NOWHERE).1, "unreachable");
    lab.pod(1, 2).sh("ip route del default").expect("no route");
    assert_eq!(probe(&other, &remote).1, "not_sent");
}
