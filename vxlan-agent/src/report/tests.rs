use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use prometheus_client::metrics::counter::Counter;

use super::*;
use crate::source::Contact;

fn network(name: &str) -> NetworkFacts {
    NetworkFacts {
        name: name.to_owned(),
        kind: "l3",
        mode: "verified",
        vni: Some(1),
        device: "flannel.1".to_owned(),
        source: "etcd",
        contact: Contact::default(),
        snapshot: None,
        refused: false,
        ready: true,
        nodes: 4,
        vteps: 8,
        interfaces: 0,
        endpoints: 0,
        meters: 0,
        foreign: 0,
        entry: None,
    }
}

/// A node without a datapath.
fn facts(networks: &[&str]) -> Facts {
    let networks = networks.iter().map(|name| network(name)).collect();
    Facts { pins: "/nonexistent".into(), kernel: "6.18".into(), retrying: 2, networks, ..Facts::default() }
}

fn report(facts: Facts) -> (watch::Sender<Arc<Facts>>, Report, Pulse) {
    let (sender, facts) = watch::channel(Arc::new(facts));
    let pulse = Pulse::new(Counter::default());
    (sender, Report::new(&pulse, facts), pulse)
}

#[track_caller]
fn assert_says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|said| said == *line), "`{line}` is not in\n{text}");
    }
}

#[test]
fn a_node_without_a_fast_path_says_so_and_tells_the_rest() {
    let (_sender, report, pulse) = report(facts(&["pods", "blue"]));
    pulse.settled(Duration::from_millis(2), Some(Duration::from_millis(300)), true);
    let text = report.text(Instant::now()).expect("a text");
    assert_says(
        &text,
        &[
            "vxlan_agent_fastpath_loaded 0",
            "vxlan_agent_retrying_changes 2",
            "vxlan_agent_reconcile_failures_total 1",
            "vxlan_agent_reconcile_lag_seconds_bucket{le=\"0.256\"} 0",
            "vxlan_agent_reconcile_lag_seconds_bucket{le=\"1.024\"} 1",
            "vxlan_agent_nodes{network=\"pods\"} 4",
            "vxlan_agent_vteps{network=\"blue\"} 8",
            "vxlan_agent_source_connected{network=\"blue\",source=\"etcd\"} 0",
            "# TYPE vxlan_agent_reconcile_duration_seconds histogram",
        ],
    );
    assert!(!text.contains("packets_total") && !text.contains("snapshot_time"), "{text}");
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().expect("a name");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} is not explained");
    }
}

#[test]
fn names_cannot_break_the_text() {
    let (_sender, report, _) = report(facts(&["a\"} 1\n\\"]));
    let text = report.text(Instant::now()).expect("a text");
    assert_says(&text, &["vxlan_agent_nodes{network=\"a\\\"} 1\\n\\\\\"} 4"]);
}

#[test]
fn who_asks_again_at_once_gets_the_same_text() {
    let (sender, report, _) = report(facts(&["pods"]));
    let now = Instant::now();
    let first = report.text(now).expect("a text");
    sender.send_replace(Arc::new(facts(&["pods", "blue"])));
    assert_eq!(report.text(now + FRESH / 2).expect("a text"), first);
    let later = report.text(now + FRESH).expect("a text");
    assert!(later.contains("network=\"blue\"") && !first.contains("network=\"blue\""), "{later}");
}

#[test]
fn metrics_are_at_one_path() {
    let (_sender, report, _) = report(facts(&[]));
    let answer = |path| report.answer(&Method::GET, path);
    assert_eq!((answer("/metrics").status, answer("/metrics").kind), (StatusCode::OK, CONTENT_TYPE));
    assert_eq!(answer("/").status, StatusCode::NOT_FOUND);
    assert_eq!(report.answer(&Method::POST, "/metrics").status, StatusCode::NOT_FOUND);
}

#[test]
fn an_address_that_is_taken_is_waited_for() {
    let other = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = other.local_addr().expect("bound");
    let _sender = serve(address, &Pulse::new(Counter::default()), facts(&[])).expect("a server");
    drop(other);
    let ask = || {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let end = Instant::now() + LISTEN_AGAIN * 5;
    let answer = loop {
        match ask() {
            Ok(answer) => break answer,
            Err(error) if Instant::now() > end => panic!("{error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("vxlan_agent_build_info"), "{answer}");
}
