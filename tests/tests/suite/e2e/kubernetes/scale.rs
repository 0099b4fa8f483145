//! Five thousand nodes. What is measured is printed; limits are on CPU time and memory, which other
//! programs on the machine do not change.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vxlan_tests::lab::kubernetes::{PREFIX, Stub};
use vxlan_tests::lab::{Lab, wait_until};

use super::{agent, assert_all_reach_all, cluster, stub};

const NODES: u32 = 5_000;
/// Of other nodes on a dual-stack cluster's three: two, over two IP versions.
const OTHERS: usize = 4;
/// Ticks of the clock that the kernel counts CPU time with.
const TICKS: f64 = 100.0;

/// Node `n` with as much in it as a real one has: some 12 KB.
fn big_node(n: u32, mac: u32) -> Value {
    let [_, _, a, b] = n.to_be_bytes();
    let cidr = format!("10.{}.{b}.0/24", a + 1);
    let image = |i: u32| {
        json!({
            "names": [format!("registry.example/library/image-{i}@sha256:{:064x}", i), format!("registry.example/library/image-{i}:v1.{i}")],
            "sizeBytes": 123_456_789,
        })
    };
    let condition = |kind: &str| {
        json!({
            "type": kind, "status": "False", "reason": "KubeletHasSufficient", "message": "kubelet is fine",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let conditions = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].map(condition);
    let fields: serde_json::Map<_, _> =
        (0..60).map(|i| (format!("f:field-{i}"), json!({ "f:x": {}, "f:y": {} }))).collect();
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": format!("s{n}"),
            "labels": (0..15).map(|i| (format!("example.com/label-{i}"), json!("value"))).collect::<serde_json::Map<_, _>>(),
            "annotations": {
                format!("{PREFIX}kube-subnet-manager"): "true",
                format!("{PREFIX}backend-type"): "vxlan",
                format!("{PREFIX}backend-data"): data(n, mac),
                format!("{PREFIX}public-ip"): format!("198.18.{a}.{b}"),
                "node.alpha.kubernetes.io/ttl": "0",
            },
            "managedFields": [{ "manager": "kubelet", "operation": "Update", "fieldsV1": fields }],
        },
        "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
        "status": {
            "capacity": { "cpu": "64", "memory": "263906816Ki", "pods": "110" },
            "conditions": conditions,
            "addresses": [{ "type": "InternalIP", "address": format!("198.18.{a}.{b}") }],
            "images": (0..40).map(image).collect::<Vec<_>>(),
        },
    })
}

fn data(n: u32, mac: u32) -> String {
    let [_, x, y, z] = (n + mac * 8_192).to_be_bytes();
    format!(r#"{{"VNI":1,"VtepMAC":"0e:12:00:{x:02x}:{y:02x}:{z:02x}"}}"#)
}

fn fill(stub: &Stub) {
    for n in 0..NODES {
        stub.store().create(big_node(n, 0)).expect("a node");
    }
}

/// CPU seconds of the agent so far.
fn cpu(lab: &Lab) -> f64 {
    let pid = agent(lab).pid().expect("it runs");
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a process");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    (fields[11].parse::<f64>().expect("a number") + fields[12].parse::<f64>().expect("a number")) / TICKS
}

/// The most memory that the agent has had, in MiB.
fn memory(lab: &Lab) -> f64 {
    let pid = agent(lab).pid().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

/// Routes that the fast path has.
fn routes(lab: &Lab) -> usize {
    let dump = agent(lab).json(&["dump", "routes"]).unwrap_or_default();
    dump.as_array().map_or(0, Vec::len)
}

fn wait_for_routes(lab: &Lab, count: usize) {
    let complete = || routes(lab) == count;
    wait_until(&format!("{count} routes"), Duration::from_secs(60), complete)
        .inspect_err(|_| agent(lab).print_log())
        .expect("all routes");
}

#[test]
fn five_thousand_nodes_cost_little() {
    let mut lab = cluster();
    let Some(server) = stub(&lab) else { return };
    fill(server);
    let complete = NODES as usize + OTHERS + 2;
    wait_for_routes(&lab, complete);
    for streaming in [true, false] {
        let refuse = if streaming { 0 } else { 422 };
        let server = stub(&lab).expect("still the stub");
        server.faults().refuse_streaming.store(refuse, std::sync::atomic::Ordering::Relaxed);
        // With everything in place, and from nothing.
        for fresh in [false, true] {
            if fresh {
                lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
                lab.agent_mut(1).and_then(|agent| agent.stop().or(Ok(()))).expect("ended");
            } else {
                lab.agent_mut(1).and_then(|agent| agent.stop()).expect("ended");
            }
            let started = Instant::now();
            lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
            wait_for_routes(&lab, complete);
            lab.agent(1).and_then(|agent| agent.wait_ready()).expect("ready");
            eprintln!(
                "{NODES} nodes, streaming list {streaming}, from nothing {fresh}: {:.2} s, {:.2} s of CPU, {:.0} MiB",
                started.elapsed().as_secs_f64(),
                cpu(&lab),
                memory(&lab)
            );
            assert!(memory(&lab) < 64.0, "{} MiB", memory(&lab));
        }
    }
    assert_all_reach_all(&lab);
}

#[test]
fn a_thousand_changes_a_second_are_followed() {
    let lab = cluster();
    let Some(server) = stub(&lab) else { return };
    fill(server);
    wait_for_routes(&lab, NODES as usize + OTHERS + 2);
    let (before, started) = (cpu(&lab), Instant::now());
    let (mut behind, mut changes) = (Duration::ZERO, 0_u32);
    for second in 1..=5_u32 {
        for n in 0..1_000 {
            let due = started + Duration::from_millis(u64::from(changes));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let patch = json!({ "metadata": { "annotations": { format!("{PREFIX}backend-data"): data(n, second) } } });
            server.store().patch(&format!("s{n}"), &patch, true).expect("changed");
            changes += 1;
        }
        let wanted = data(999, second);
        let mac = &wanted[wanted.len() - 19..wanted.len() - 2];
        let changed = Instant::now();
        let known = || {
            let macs = agent(&lab).json(&["dump", "macs"]).unwrap_or_default();
            macs.to_string().contains(mac)
        };
        wait_until("the last change is there", Duration::from_secs(20), known).expect("followed");
        behind = behind.max(changed.elapsed());
    }
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{changes} changes in {seconds:.1} s: {:.2} s behind at most, {:.2} s of CPU, {:.0} MiB",
        behind.as_secs_f64(),
        cpu(&lab) - before,
        memory(&lab)
    );
    assert!(behind < Duration::from_secs(5), "falling behind: {behind:?}");
}
