//! The cluster, its traffic and its maps, for people.

use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::traffic::{Ping, ping, tcp_bulk, udp_echo};
use crate::lab::{Lab, Netns, Pod, cleanup, run};

/// Entries of a map that are shown.
const ENTRIES: usize = 4;

/// Who is where.
pub(super) fn layout(lab: &Lab) {
    for node in lab.nodes() {
        println!("  {}  underlay {:<12} network namespace {}", node.name, node.underlay, node.namespace());
        for pod in &node.pods {
            println!("      {}  {:<12} {}", pod.name, pod.ip4, pod.ip6);
        }
    }
}

/// From pods to pods of other nodes and of the same one, and from a node to a pod.
pub(super) fn traffic(lab: &Lab) -> Result<()> {
    println!("  {:<14} {:<15} {:>10} {:>12}   UDP 1 B … 4 kB", "from → to", "address", "ping", "TCP");
    let count = u8::try_from(lab.nodes().len())?;
    for from in 1..=count {
        let to = from % count + 1;
        pair(&format!("n{from}p1 → n{to}p1"), lab.pod(from, 1), lab.pod(to, 1))?;
    }
    pair("n1p1 → n1p2", lab.pod(1, 1), lab.pod(1, 2))?;
    pair("n1 → n2p2", lab.node(1), lab.pod(2, 2))
}

fn pair(name: &str, client: &Netns, server: &Pod) -> Result<()> {
    for address in server.ips() {
        one(name, client, server, address).with_context(|| format!("{name} ({address})"))?;
    }
    Ok(())
}

fn one(name: &str, client: &Netns, server: &Pod, address: IpAddr) -> Result<()> {
    let pings = ping(client, address, Ping { count: 20, ..Ping::default() })?;
    ensure!(pings.all_answered(), "pings were lost: {:?}", pings.errors);
    let tcp = tcp_bulk(client, server, address, 256 << 20)?;
    let udp = udp_echo(client, server, address, [1, 64, 512, 1400, 4000])?;
    ensure!(udp.all_intact(), "UDP datagrams were lost or damaged: {udp:?}");
    println!(
        "  {name:<14} {:<15} {:>7} µs {:>7.1} Gb/s   {} of {} back",
        address.to_string(),
        pings.median().as_micros(),
        tcp.gigabits_per_second(),
        udp.intact,
        udp.sent
    );
    Ok(())
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
pub(super) fn how_to_look_round(lab: &Lab) -> Result<()> {
    let (node, pod, agent) = (lab.node(1).namespace(), lab.pod(1, 1).namespace(), lab.agent(1)?);
    let program = crate::lab::agent::agent_binary()?;
    let agent_cli = format!("nsenter --net=/run/netns/{node} {}", program.display());
    let config = agent.config().display();
    println!("\nThe lab stays up, agents running. Look round:");
    println!("  nsenter --net=/run/netns/{pod} ping {}", lab.pod(2, 1).ip4);
    println!("  {agent_cli} status --config {config}");
    println!("  {agent_cli} dump counters --config {config}");
    println!("  {agent_cli} flows list --config {config}");
    println!("  {agent_cli} fastpath off --config {config}");
    println!("  bpftool map dump pinned {}/ROUTES4", agent.pins()?.display());
    println!("  less {}", cleanup::run_dir(lab.prefix()).join("n1.log").display());
    println!("Change {} and the agents follow.", lab.state_path().display());
    println!("Take it down with: cargo xtask demo --down");
    Ok(())
}
