//! What may happen to the API server, and to the way to it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use serde_json::json;
use vxlan_tests::lab::kubernetes::{ADDRESS, flannel};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, NETWORK, Overlay, UNDERLAY};

use super::super::metrics::scrape::scrape;
use super::super::pods::ask;
use super::super::verified::nft;
use super::{
    LONG_PAUSES, agent, assert_all_reach_all, at_once_when_back, build, cluster, count, known, off, soon,
    stub,
};

/// Adds a node of flannel's that nobody is, and waits until node 1 knows it.
fn a_new_node_is_known(lab: &Lab, n: u8) {
    add(lab, n);
    soon(lab, "a new node is known", || known(lab, &format!("x{n}")).is_some());
}

fn add(lab: &Lab, n: u8) {
    let cidrs = json!([format!("10.244.{n}.0/24"), format!("fd00:244:{n}::/64")]);
    let node = json!({
        "kind": "Node", "apiVersion": "v1", "metadata": { "name": format!("x{n}") },
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
    });
    lab.kubernetes().create(&node).expect("a node");
    lab.kubernetes().annotate(&format!("x{n}"), &flannel::annotations(n)).expect("annotated");
}

#[test]
fn an_api_server_that_is_away_is_missed_once_and_greeted_once() {
    let mut lab = cluster();
    lab.kubernetes_mut().stop();
    let said = || count(&agent(&lab).log(), "cannot follow the Kubernetes API") == 1;
    soon(&lab, "the agent says so", said);
    // Long enough for several attempts.
    std::thread::sleep(Duration::from_secs(3));
    assert_all_reach_all(&lab);
    lab.kubernetes_mut().resume().expect("it comes back");
    a_new_node_is_known(&lab, 50);
    let log = agent(&lab).log();
    assert_eq!(count(&log, "cannot follow the Kubernetes API"), 1, "{log}");
    assert_eq!(count(&log, "following the Kubernetes API again"), 1, "{log}");
}

#[test]
fn an_agent_that_starts_without_an_api_server_leaves_everything_as_it_is() {
    let node = "healthz = \"127.0.0.1:9475\"\nmetrics = \"127.0.0.1:9469\"".to_owned();
    let options = AgentOptions { node, ..AgentOptions::default() };
    let spec = LabSpec::of(vec![Overlay::Agent(options), Overlay::KernelVxlan, off()]);
    let mut lab = build(&spec.kubernetes());
    assert_all_reach_all(&lab);
    lab.kubernetes_mut().stop();
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
    let waits =
        |(status, why): (String, String)| status.contains("503") && why.contains("has not answered yet");
    soon(&lab, "the agent says what it waits for", || ask(lab.node(1), "/readyz").is_some_and(waits));
    let (live, _) = ask(lab.node(1), "/healthz").expect("an answer");
    assert!(live.contains("200"), "{live}");
    let connected = |lab: &Lab, value: f64| {
        let source = [("network", NETWORK), ("source", "kubernetes")];
        scrape(lab.node(1))
            .is_some_and(|scraped| scraped.value("vxlan_agent_source_connected", &source) == value)
    };
    soon(&lab, "metrics say so", || connected(&lab, 0.0));
    assert_all_reach_all(&lab);
    lab.kubernetes_mut().resume().expect("it comes back");
    lab.agent(1).and_then(|agent| agent.wait_ready()).expect("ready");
    soon(&lab, "metrics say that it answers", || connected(&lab, 1.0));
    a_new_node_is_known(&lab, 50);
    assert_all_reach_all(&lab);
}

#[test]
fn what_changed_while_the_connection_was_cut_is_caught_up_with() {
    let lab = cluster();
    let Some(stub) = stub(&lab) else { return };
    let lists = stub.asked("stream") + stub.asked("list");
    for n in 50..55 {
        stub.cut();
        a_new_node_is_known(&lab, n);
    }
    assert_eq!(stub.asked("stream") + stub.asked("list"), lists, "the watch is taken up where it ended");
}

#[test]
fn a_watch_that_is_too_old_begins_anew() {
    let mut lab = cluster();
    if stub(&lab).is_none() {
        return;
    }
    for (times, by_status) in [(1, false), (2, true)] {
        let n = 60 + u8::from(by_status);
        a_new_node_is_known(&lab, n);
        lab.kubernetes_mut().stop();
        std::thread::sleep(LONG_PAUSES);
        let stub = lab.kubernetes().stub().expect("the stub");
        stub.faults().expire_by_status.store(by_status, Relaxed);
        stub.store().delete(&format!("x{n}")).expect("deleted");
        stub.store().compact();
        lab.kubernetes_mut().resume().expect("it comes back");
        // Nothing tells of the deletion but its absence from the list.
        let forgotten = || known(&lab, &format!("x{n}")).is_none();
        at_once_when_back(&lab, times, "the deleted node is forgotten", forgotten);
    }
    assert_all_reach_all(&lab);
}

/// A server that has started anew knows no changes from before: real ones say that the watch is too old.
#[test]
fn a_deletion_that_a_new_server_knows_nothing_of_is_found_out() {
    let mut lab = cluster();
    a_new_node_is_known(&lab, 60);
    let (server, _) = ADDRESS.split_once(':').expect("an address and a port");
    // The agent hears nothing, not even of the end of its connection.
    let deaf = format!(
        "table inet deaf {{\nchain input {{\ntype filter hook input priority 0\nip saddr {server} drop\n}}\n}}\n"
    );
    nft(&lab, 1, &deaf);
    lab.kubernetes().delete("x60").expect("deleted");
    lab.kubernetes_mut().stop();
    lab.kubernetes_mut().resume().expect("it comes back");
    assert!(known(&lab, "x60").is_some(), "it cannot know");
    nft(&lab, 1, "delete table inet deaf");
    // With another address, connections are made anew.
    lab.node(1).ip(&format!("addr add 192.0.2.73/24 dev {UNDERLAY}\n")).expect("another address");
    soon(&lab, "the deleted node is forgotten", || known(&lab, "x60").is_none());
    assert_all_reach_all(&lab);
}

#[test]
fn servers_without_streaming_lists_are_asked_for_pages() {
    let mut lab = cluster();
    let Some(stub) = stub(&lab) else { return };
    assert!(stub.asked("stream") > 0 && stub.asked("list") == 0, "a streaming list will do");
    // Without an end: old servers that do not know what was asked. It is waited for, so it is last.
    for (code, endless) in [(410, false), (422, false), (500, false), (0, true)] {
        let stub = lab.kubernetes().stub().expect("the stub");
        stub.faults().refuse_streaming.store(code, Relaxed);
        stub.faults().endless_streaming.store(endless, Relaxed);
        let before = stub.asked("list");
        lab.agent_mut(1).and_then(|agent| agent.restart()).expect("a restart");
        let stub = lab.kubernetes().stub().expect("the stub");
        assert!(stub.asked("list") > before, "status {code}");
    }
    a_new_node_is_known(&lab, 50);
    let log = agent(&lab).log();
    assert_eq!(count(&log, "cannot follow"), 0, "nothing to complain of:\n{log}");
}

#[test]
fn more_nodes_than_a_page_has_are_listed() {
    let mut lab = cluster();
    let Some(stub) = stub(&lab) else { return };
    stub.faults().refuse_streaming.store(422, Relaxed);
    for n in 0..600_u32 {
        let [_, _, a, b] = n.to_be_bytes();
        let cidr = format!("10.{}.{b}.0/24", 100 + a);
        let annotations = json!({
            "flannel.alpha.coreos.com/kube-subnet-manager": "true",
            "flannel.alpha.coreos.com/backend-type": "vxlan",
            "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"0e:12:00:00:{a:02x}:{b:02x}"}}"#),
            "flannel.alpha.coreos.com/public-ip": format!("198.18.{a}.{b}"),
        });
        stub.store()
            .create(json!({
                "kind": "Node", "apiVersion": "v1",
                "metadata": { "name": format!("y{n}"), "annotations": annotations },
                "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
            }))
            .expect("a node");
    }
    lab.agent_mut(1).and_then(|agent| agent.restart()).expect("a restart");
    let status = agent(&lab).json(&["status"]).expect("a status");
    assert_eq!(status["networks"][0]["nodes"].as_array().map(Vec::len), Some(600 + 4));
}

#[test]
fn slow_streams_and_such_that_break_in_mid_line_lose_no_node() {
    let lab = cluster();
    let Some(stub) = stub(&lab) else { return };
    stub.faults().break_after.store(2, Relaxed);
    stub.cut();
    for n in 50..56 {
        add(&lab, n);
    }
    for n in 50..56 {
        soon(&lab, "every node is known", || known(&lab, &format!("x{n}")).is_some());
    }
    stub.faults().break_after.store(0, Relaxed);
    stub.faults().slow.store(50, Relaxed);
    stub.cut();
    a_new_node_is_known(&lab, 56);
    assert_all_reach_all(&lab);
}
