//! Nodes with subnets that packets are routed to: cluster, traffic and maps, for people.

use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::look::Look;
use super::paths::Counted;
use super::{DemoArgs, compare, heading, paths, traffic};
use crate::lab::{AgentOptions, Lab, LabSpec, Overlay, run};

/// Where agents answer scrapes, each in the network namespace of its node.
const METRICS: &str = "metrics = \"0.0.0.0:9469\"";
/// Entries of a map that are shown.
const ENTRIES: usize = 4;

/// Runs the demo.
pub(super) fn demo(args: &DemoArgs) -> Result<()> {
    heading(&format!("A cluster of {} nodes, two pods each, one agent per node", args.nodes));
    let lab = lab(args.nodes, &metered())?;
    layout(&lab);
    let before = snapshot(&lab)?;
    heading("Traffic, every byte checked");
    send(&lab)?;
    heading("The way it took: what the BPF programs counted");
    paths::show(&before, &snapshot(&lab)?)?;
    println!("\n  A packet counts once; TCP packets of up to 64 kB are one packet each.");
    heading("The maps of node 1, by bpftool map dump pinned");
    maps(&lab)?;
    heading("Side by side with kernel VXLAN (short; `cargo xtask bench` does it properly)");
    compare::against_kernel(&self::lab(args.nodes, &Overlay::KernelVxlan)?, &lab)?;
    if args.keep {
        how_to_look_round(&lab)?;
        return lab.keep();
    }
    Ok(())
}

/// Ours, with metrics.
fn metered() -> Overlay {
    Overlay::Agent(AgentOptions { node: METRICS.to_owned(), ..AgentOptions::verified() })
}

fn lab(nodes: u8, overlay: &Overlay) -> Result<Lab> {
    LabSpec::of(vec![overlay.clone(); usize::from(nodes)]).pods(2).unfiltered().build()
}

/// Who is where.
pub(super) fn layout(lab: &Lab) {
    for node in lab.nodes() {
        println!("  {}  underlay {:<12} network namespace {}", node.name, node.underlay, node.namespace());
        for pod in &node.pods {
            println!("      {}  {:<12} {}", pod.name, pod.ip4, pod.ip6);
        }
    }
}

/// The counters of every node, in order.
pub(super) fn snapshot(lab: &Lab) -> Result<Vec<Counted>> {
    let agents = lab.nodes().iter().zip(lab.agents());
    agents
        .map(|(node, agent)| Ok(Counted { title: node.name.clone(), counters: agent.counters()? }))
        .collect()
}

/// From pods to pods of other nodes and of the same one, and from a node to a pod.
pub(super) fn send(lab: &Lab) -> Result<()> {
    traffic::head();
    for (from, to) in super::neighbours(lab.nodes().len()) {
        let server = lab.pod(to, 1);
        traffic::pair(&format!("n{from}p1 → n{to}p1"), lab.pod(from, 1), server, server.ips())?;
    }
    let (own, far) = (lab.pod(1, 2), lab.pod(2, 2));
    traffic::pair("n1p1 → n1p2", lab.pod(1, 1), own, own.ips())?;
    traffic::pair("n1 → n2p2", lab.node(1), far, far.ips())
}

/// The first entries of the maps that route packets.
pub(super) fn maps(lab: &Lab) -> Result<()> {
    let pins = lab.agent(1)?.pins()?;
    println!("  {}", pins.display());
    for name in ["ROUTES4", "ROUTES6", "VTEPS", "ENDPOINTS4"] {
        println!("  {name}");
        let pin = pins.join(name);
        let text = run(Command::new("bpftool").args(["-j", "map", "dump", "pinned"]).arg(&pin))?;
        let entries: Vec<Value> = serde_json::from_str(&text).context("bpftool printed no list")?;
        let shown: Vec<_> = entries.iter().filter_map(show_entry).collect();
        shown.iter().take(ENTRIES).for_each(|line| println!("    {line}"));
        if shown.len() > ENTRIES {
            println!("    … {} more", shown.len() - ENTRIES);
        }
    }
    Ok(())
}

/// `None` for a free cell of an array.
fn show_entry(entry: &Value) -> Option<String> {
    let fields = entry.get("formatted").unwrap_or(entry);
    let (key, value) = (fields.get("key")?, fields.get("value")?);
    (value.get("family") != Some(&Value::from(0))).then(|| format!("{key} → {value}"))
}

/// What to type while the lab is up.
fn how_to_look_round(lab: &Lab) -> Result<()> {
    let (pod, target) = (lab.pod(1, 1).namespace(), lab.pod(2, 1).ip4);
    Look {
        prefix: lab.prefix(),
        node: lab.node(1),
        agent: lab.agent(1)?,
        change: lab.state_path().display().to_string(),
        command: format!("nsenter --net=/run/netns/{pod} ping {target}"),
        words: &["status", "dump counters", "flows list", "fastpath off"],
        map: "ROUTES4",
    }
    .print()
}
