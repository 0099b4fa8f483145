//! `flows`: what bypasses the host stack, and how to stop it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use vxlan_ebpf_common::flow::{closing, seen};
use vxlan_ebpf_common::maps::{Flow, FlowKey};

use super::{Of, Subject, print, print_json, print_rows};

#[derive(Serialize)]
struct FlowRow {
    protocol: String,
    local: IpAddr,
    local_port: u16,
    remote: IpAddr,
    remote_port: u16,
    /// What the host stack has been seen to pass.
    egress: &'static str,
    ingress: &'static str,
    state: &'static str,
    /// Seconds since the first packet.
    age: f64,
    /// Seconds since the last packet.
    idle: f64,
    /// Of those that bypassed the stack.
    packets: u64,
    bytes: u64,
}

pub(super) fn list(subject: &Subject, json: bool) -> anyhow::Result<()> {
    let pins = subject.pins()?;
    let mut networks = BTreeMap::new();
    for (name, id) in subject.numbered(&pins)? {
        networks.insert(id, (name, pins.generation(id)?));
    }
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    let now = now.tv_sec() as f64 + now.tv_nsec() as f64 / 1e9;
    let current = |(key, flow): (FlowKey, Flow)| {
        let (name, generation) = networks.get(&u32::from(key.network))?;
        let row = || Of { network: (*name).to_owned(), row: row(&key, &flow, now) };
        (flow.generation == *generation).then(row)
    };
    // What is over keeps its place until another needs it.
    let is_listed = |of: &Of<FlowRow>| of.row.idle <= lifetime(of.row.state);
    let mut rows: Vec<_> = pins.flows().into_iter().filter_map(current).filter(is_listed).collect();
    rows.sort_by_key(|of| std::cmp::Reverse(of.row.bytes));
    let head = ["proto", "local", "remote", "state", "out", "in", "age s", "idle s", "packets", "bytes"];
    print_rows(subject, json, &rows, head, cells)
}

pub(super) fn flush(subject: &Subject, json: bool) -> anyhow::Result<()> {
    let mut pins = subject.pins()?;
    for (_, id) in subject.numbered(&pins)? {
        pins.flush_flows(id)?;
    }
    if json {
        return print_json(&serde_json::json!({ "flushed": true }));
    }
    print("all bypasses are closed; the next packet of every flow meets the host stack\n")
}

fn row(key: &FlowKey, flow: &Flow, now: f64) -> FlowRow {
    let since = |time: u64| (now - time as f64 / 1e9).max(0.0);
    FlowRow {
        protocol: protocol(key.protocol),
        local: key.local.into(),
        local_port: key.local_port.get(),
        remote: key.remote.into(),
        remote_port: key.remote_port.get(),
        egress: direction(flow.egress.state),
        ingress: direction(flow.ingress.state),
        state: state(key.protocol, flow),
        age: since(flow.since),
        idle: since(flow.last),
        packets: flow.packets,
        bytes: flow.bytes,
    }
}

pub(super) fn protocol(number: u8) -> String {
    match number {
        0 => "any".to_owned(),
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => other.to_string(),
    }
}

const fn direction(state: u8) -> &'static str {
    match state {
        seen::PENDING => "pending",
        seen::VERIFIED => "verified",
        _ => "-",
    }
}

/// Whether packets bypass the stack.
fn state(protocol: u8, flow: &Flow) -> &'static str {
    let verified = [flow.egress, flow.ingress].map(|way| way.checked != 0);
    let open = if protocol == 6 { verified == [true, true] } else { verified.contains(&true) };
    match flow.closing() {
        closing::CLOSED => "closed",
        _ if !open => "host stack",
        0 => "bypass",
        _ => "closing",
    }
}

/// How many seconds after its last packet a flow is listed.
fn lifetime(state: &str) -> f64 {
    match state {
        "bypass" => 24.0 * 3600.0,
        "closed" => 10.0,
        _ => 60.0,
    }
}

/// An address and, if there is one, its port.
pub(super) fn end(ip: IpAddr, port: u16) -> String {
    match port {
        0 => ip.to_string(),
        port => std::net::SocketAddr::new(ip, port).to_string(),
    }
}

fn cells(row: &FlowRow) -> [String; 10] {
    [
        row.protocol.clone(),
        end(row.local, row.local_port),
        end(row.remote, row.remote_port),
        row.state.to_owned(),
        row.egress.to_owned(),
        row.ingress.to_owned(),
        format!("{:.1}", row.age),
        format!("{:.1}", row.idle),
        row.packets.to_string(),
        row.bytes.to_string(),
    ]
}
