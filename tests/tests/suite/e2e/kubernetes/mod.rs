//! The nodes of a Kubernetes cluster as the source: node 1 is ours, node 2 one that flannel has set
//! up, node 3 ours with the fast path off. Every node runs IPv4 over IPv4 and IPv6 over IPv6.
//!
//! With `KUBE_APISERVER` the API is a real one; what only the stub can do is left out then, and says
//! so.

mod api;
mod migrate;
mod nodes;
mod pods;
mod rules;
mod scale;

use std::time::Duration;

use serde_json::Value;
use vxlan_tests::lab::kubernetes::Stub;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{Agent, AgentOptions, Lab, LabSpec, Overlay, wait_until};

use super::{assert_answered, build};

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

pub(super) fn reaches(lab: &Lab, from: u8, to: u8) -> bool {
    let once = Ping { timeout: Duration::from_millis(200), ..Ping::default() };
    let answered = |ip| ping(lab.pod(from, 1), ip, once).is_ok_and(|report| report.all_answered());
    lab.pod(to, 1).ips().into_iter().all(answered)
}

pub(super) fn count(log: &str, words: &str) -> usize {
    log.matches(words).count()
}
