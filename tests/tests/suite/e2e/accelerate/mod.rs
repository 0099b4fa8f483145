//! Devices that somebody else manages, here with what flannel and Calico would enter: the short cut is taken beside
//! them, and nothing of theirs is touched.

mod all;
mod calico;
mod changes;
pub(crate) mod dump;
mod flannel;
mod flanneld;
mod outer;
mod routes;

use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, Counters, DEVICE, Lab, LabSpec, Overlay, wait_until};

use super::{build, counters};

/// More than an agent needs to follow, on a busy machine.
const SOON: Duration = Duration::from_secs(10);

/// Two nodes with kernel devices, which know each other.
fn kernels() -> LabSpec {
    LabSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan)
}

/// The same, with an agent on node 1 that accelerates the device.
fn accelerated() -> Lab {
    let mut lab = build(&kernels());
    lab.add_agent(1, &AgentOptions::beside("direct", DEVICE)).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    wait_fast(&lab, 1, 2);
    lab
}

/// What node `n` counted while its pod and one of node `other` ping each other over both IP versions, `count` times
/// each way; `None` if a ping got lost.
fn pinged(lab: &Lab, n: u8, other: u8, count: u16) -> Option<Counters> {
    let before = counters(lab, n);
    for (from, to) in [(lab.pod(n, 1), lab.pod(other, 1)), (lab.pod(other, 1), lab.pod(n, 1))] {
        for ip in to.ips() {
            let report = ping(from, ip, Ping { count, ..Ping::default() }).expect("a socket");
            if !report.all_answered() {
                return None;
            }
        }
    }
    Some(&counters(lab, n) - &before)
}

/// How many packets a node let pass its stack on the way out, and on the way in. A kernel node on a veth leaves outer
/// checksums to the device, which then takes the packet out of the tunnel.
fn short_cuts(counters: &Counters) -> (u64, u64) {
    let arrived = [("underlay_ingress", "decapsulated"), ("tunnel_ingress", "delivered")];
    let arrived = arrived.into_iter().map(|(hook, reason)| counters.packets(hook, reason)).sum();
    (counters.packets("pod_egress", "encapsulated"), arrived)
}

/// Whether nearly all of these pings take the short cut at node `n`, both ways: in mode `verified` not the first of a
/// flow.
fn is_fast(lab: &Lab, n: u8, other: u8) -> bool {
    let Some(counters) = pinged(lab, n, other, 10) else { return false };
    // Requests and replies of either direction, over both IP versions.
    let (out, arrived) = short_cuts(&counters);
    out >= 32 && arrived >= 32
}

#[track_caller]
fn wait_fast(lab: &Lab, n: u8, other: u8) {
    wait_until("packets take the short cut", SOON, || is_fast(lab, n, other))
        .inspect_err(|_| {
            let agent = lab.agent(n).expect("an agent");
            eprintln!("{}\n{}", agent.cli(&["status"]).unwrap_or_default(), counters(lab, n));
            eprintln!("{}", agent.cli(&["dump", "routes"]).unwrap_or_default());
            agent.print_log();
        })
        .expect("in time");
}

/// Whether the pod of node 1 is answered by that of node `other`, over IPv4.
fn answers4(lab: &Lab, other: u8) -> bool {
    let once = Ping { timeout: Duration::from_millis(500), ..Ping::default() };
    ping(lab.pod(1, 1), lab.pod(other, 1).ip4, once).is_ok_and(|report| report.all_answered())
}

/// Whether pings between pods of node 1 and node `other`, either way, take the short cut at node 1, over IPv4.
fn is_fast4(lab: &Lab, other: u8) -> bool {
    let Ok(before) = lab.agent(1).and_then(|agent| agent.counters()) else { return false };
    let options = Ping { count: 10, ..Ping::default() };
    for (from, to) in [(1, other), (other, 1)] {
        if !ping(lab.pod(from, 1), lab.pod(to, 1).ip4, options).expect("a socket").all_answered() {
            return false;
        }
    }
    let (out, arrived) = short_cuts(&(&counters(lab, 1) - &before));
    out >= 16 && arrived >= 16
}

#[track_caller]
fn wait_fast4(lab: &Lab, other: u8) {
    wait_until("packets take the short cut", SOON, || is_fast4(lab, other))
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
}

/// What is left to the kernel on node `n`, as its agent says it.
fn left(lab: &Lab, n: u8) -> String {
    let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).expect("a status");
    status["networks"][0]["left"].to_string()
}
