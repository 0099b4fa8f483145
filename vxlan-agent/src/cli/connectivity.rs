//! `connectivity`: probes every other node from this one.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use vxlan_ebpf_common::{Hook, Reason};

use super::table::table;
use super::{Unwell, doctor, print, print_json, runtime};
use crate::datapath::Pins;
use crate::doctor::{Asked, Facts};
use crate::preflight;
use crate::probe::{PathReport, Row, sweep};

#[derive(Serialize)]
struct Report {
    node: String,
    /// Whether everybody answers both ways.
    all_reachable: bool,
    peers: Vec<Row>,
    /// Which way probes, and whatever else this host sent meanwhile, left by.
    left_by: Option<LeftBy>,
    /// What could not be probed, a sentence each.
    left_out: Vec<String>,
}

/// Packets at `tunnel_egress`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
struct LeftBy {
    /// Encapsulated by a program.
    fast: u64,
    /// Left to the kernel because of their options.
    kernel: u64,
}

pub(super) fn show(config: Option<&Path>, network: Option<&str>, json: bool) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    let asked = doctor::asked(config, network)?;
    let report = runtime()?.block_on(probe(&asked))?;
    if json {
        print_json(&report)?
    } else {
        print(&text(&report))?
    }
    if report.all_reachable { Ok(()) } else { Err(Unwell.into()) }
}

async fn probe(asked: &Asked) -> anyhow::Result<Report> {
    let facts = Facts::read(asked).await?;
    let (overlays, left_out) = facts.overlays();
    let before = counted(asked);
    let peers = sweep(&overlays, true).await?;
    let left_by = before.zip(counted(asked)).map(|(before, after)| LeftBy {
        fast: after.fast.saturating_sub(before.fast),
        kernel: after.kernel.saturating_sub(before.kernel),
    });
    let all_reachable = peers.iter().all(Row::is_well);
    Ok(Report { node: asked.node.name.clone(), all_reachable, peers, left_by, left_out })
}

/// What the programs have counted so far; nothing where there are none.
fn counted(asked: &Asked) -> Option<LeftBy> {
    let pins = Pins::open(&asked.node.pins()).ok()?;
    let mut sum = LeftBy::default();
    for name in pins.networks().ok()? {
        let is_meant = asked.network.as_ref().is_none_or(|wanted| *wanted == name);
        let id = pins.network(&name).ok().filter(|_| is_meant);
        for (hook, reason, counter) in id.and_then(|id| pins.counters(id).ok()).unwrap_or_default() {
            match (hook, reason) {
                (Hook::TunnelEgress, Reason::Encapsulated) => sum.fast += counter.packets,
                (Hook::TunnelEgress, Reason::Options) => sum.kernel += counter.packets,
                _ => {}
            }
        }
    }
    Some(sum)
}

fn text(report: &Report) -> String {
    let head = ["network", "node", "vtep", "address", "fast", "mtu", "kernel", "mtu"];
    let row = |row: &Row| {
        let known =
            [&row.network, &row.node, &row.vtep.to_string(), &row.address.to_string()].map(Clone::clone);
        let paths = [&row.fast, &row.kernel].into_iter().flat_map(cells);
        known.into_iter().chain(paths).collect()
    };
    let mut out = table(&head, &report.peers.iter().map(row).collect::<Vec<_>>());
    let lost = report.peers.iter().filter(|row| !row.is_well());
    for row in lost.clone() {
        let reasons = [("fast", &row.fast), ("kernel", &row.kernel)];
        for (way, path) in reasons.into_iter().filter(|(_, path)| !path.reachable) {
            let reason = path.reason.as_deref().unwrap_or_default();
            let _ = writeln!(out, "unreachable  {} ({}) by the {way} path: {reason}", row.node, row.address);
        }
    }
    let mut nodes: Vec<_> = lost.map(|row| row.node.as_str()).collect();
    nodes.dedup();
    nodes.iter().for_each(|node| _ = writeln!(out, "look for why: vxlan-agent doctor --peer '{node}'"));
    report.left_out.iter().for_each(|reason| _ = writeln!(out, "left out     {reason}"));
    match &report.left_by {
        Some(LeftBy { fast, kernel }) => {
            let _ = writeln!(out, "sent         {fast} by the fast path, {kernel} by the kernel's");
        }
        None => out.push_str("sent         all by the kernel's path: there is no fast path here\n"),
    }
    out
}

/// Round trip and path MTU.
fn cells(path: &PathReport) -> [String; 2] {
    let dash = || "-".to_owned();
    let round_trip =
        path.round_trip_seconds.map_or_else(|| "lost".to_owned(), |s| format!("{:.2} ms", s * 1e3));
    [round_trip, path.path_mtu.map_or_else(dash, |mtu| mtu.to_string())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_named() {
        let well = PathReport {
            reachable: true,
            round_trip_seconds: Some(0.0005),
            path_mtu: Some(1450),
            reason: None,
        };
        let lost = PathReport {
            reachable: false,
            round_trip_seconds: None,
            path_mtu: None,
            reason: Some("no answer".into()),
        };
        let ip = |n: u8| std::net::IpAddr::from([10, 0, n, 0]);
        let row = |n, fast, kernel| Row {
            network: "pods".into(),
            node: format!("n{n}"),
            vtep: ip(n),
            address: ip(n),
            fast,
            kernel,
        };
        let report = Report {
            node: "n1".into(),
            all_reachable: false,
            peers: vec![row(2, well.clone(), well.clone()), row(3, well, lost)],
            left_by: None,
            left_out: vec![],
        };
        let text = text(&report);
        assert!(text.contains("0.50 ms") && text.contains("1450"), "{text}");
        assert!(text.contains("unreachable  n3 (10.0.3.0) by the kernel path: no answer"), "{text}");
        assert!(text.contains("doctor --peer 'n3'") && !text.contains("doctor --peer 'n2'"), "{text}");
    }
}
