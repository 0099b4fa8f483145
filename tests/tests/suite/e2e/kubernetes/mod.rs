//! The nodes of a Kubernetes cluster as the source: node 1 is ours, node 2 one that flannel has set
//! up, node 3 ours with the fast path off. Every node runs IPv4 over IPv4 and IPv6 over IPv6.
//!
//! With `KUBE_APISERVER` the API is a real one; what only the stub can do is left out then, and says
//! so.

mod api;
mod manifests;
mod migrate;
mod nodes;
mod pods;
mod rules;
mod scale;

use std::time::Duration;

use serde_json::Value;
use vxlan_tests::lab::kubernetes::Stub;
use vxlan_tests::lab::traffic::{Ping, ping, tcp_bulk};
use vxlan_tests::lab::{Agent, AgentOptions, Lab, LabSpec, Overlay, wait_until};

use super::{assert_answered, assert_nothing_dropped, assert_took, build, counters, underlay_hook};

const SOON: Duration = Duration::from_secs(15);

pub(super) fn off() -> Overlay {
    Overlay::Agent(AgentOptions { fastpath: "off".into(), ..AgentOptions::default() })
}

fn three() -> LabSpec {
    LabSpec::of(vec![Overlay::agent(), Overlay::KernelVxlan, off()]).kubernetes()
}

fn cluster() -> Lab {
    build(&three())
}

pub(super) fn agent(lab: &Lab) -> &Agent {
    lab.agent(1).expect("an agent")
}

/// The stub, for what a real server cannot be told to do.
fn stub(lab: &Lab) -> Option<&Stub> {
    let stub = lab.kubernetes().stub();
    if stub.is_none() {
        eprintln!("NOT TESTED with a real API server: this needs the stub");
    }
    stub
}

#[track_caller]
pub(super) fn soon(lab: &Lab, what: &str, condition: impl FnMut() -> bool) {
    wait_until(what, SOON, condition).inspect_err(|_| agent(lab).print_log()).expect("soon");
}

/// How long a source has to be away for the pauses between attempts to get long.
pub(super) const LONG_PAUSES: Duration = Duration::from_secs(4);

/// The condition holds without another pause once the agent of node 1 follows its source again, which
/// it has said `times` times by then.
#[track_caller]
pub(super) fn at_once_when_back(lab: &Lab, times: usize, what: &str, condition: impl FnMut() -> bool) {
    let back = || count(&agent(lab).log(), "following") >= times;
    soon(lab, "the agent follows again", back);
    let at_once = wait_until(what, Duration::from_secs(2), condition);
    at_once.inspect_err(|_| agent(lab).print_log()).expect("at once");
}

/// The entry of `node` in what the agent of node 1 knows; over IPv6 it is called `n2 (IPv6)`.
pub(super) fn known(lab: &Lab, node: &str) -> Option<Value> {
    let status = agent(lab).json(&["status"]).ok()?;
    status["networks"][0]["nodes"].as_array()?.iter().find(|entry| entry["name"] == node).cloned()
}

/// Every pod reaches every other one over both IP versions.
#[track_caller]
pub(super) fn assert_all_reach_all(lab: &Lab) {
    for from in lab.nodes() {
        for to in lab.nodes().iter().filter(|to| to.name != from.name) {
            for ip in to.pods[0].ips() {
                assert_answered(&from.pods[0], ip, Ping { count: 2, ..Ping::default() });
            }
        }
    }
}

/// All pods reach each other, and those of node 1 do so on the fast path.
#[track_caller]
pub(super) fn assert_one_cluster(lab: &Lab) {
    assert_all_reach_all(lab);
    let before = counters(lab, 1);
    for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1), (2, 3)] {
        for ip in lab.pod(to, 1).ips() {
            tcp_bulk(lab.pod(from, 1), lab.pod(to, 1), ip, 4 << 20).expect("a transfer");
        }
    }
    // A node's own processes are heard of by the address of its device.
    assert_answered(lab.node(2), lab.pod(1, 1).ip4, Ping::default());
    assert_answered(lab.node(1), lab.pod(2, 1).ip6, Ping::default());
    let one = &counters(lab, 1) - &before;
    assert_took(&one, "pod_egress", "encapsulated", 100);
    assert_took(&one, underlay_hook(), "decapsulated", 20);
    assert_nothing_dropped(&one);
}

/// MAC of a device of node 1.
pub(super) fn mac(lab: &Lab, device: &str) -> String {
    let link = lab.node(1).sh(&format!("ip -o link show {device}")).expect("a device");
    let mac = link.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
    mac.expect("a MAC").to_owned()
}

pub(super) fn reaches(lab: &Lab, from: u8, to: u8) -> bool {
    let once = Ping { timeout: Duration::from_millis(200), ..Ping::default() };
    let answered = |ip| ping(lab.pod(from, 1), ip, once).is_ok_and(|report| report.all_answered());
    lab.pod(to, 1).ips().into_iter().all(answered)
}

pub(super) fn count(log: &str, words: &str) -> usize {
    log.matches(words).count()
}
