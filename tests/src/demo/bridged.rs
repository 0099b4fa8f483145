//! Bridged segments: two tenants that have the same addresses and MACs, for people.

use std::net::{Ipv4Addr, UdpSocket};

use anyhow::{Result, ensure};

use super::look::Look;
use super::paths::Counted;
use super::{DemoArgs, compare, heading, neighbours, paths, traffic};
use crate::lab::addr::mac_text;
use crate::lab::segment::{Host, TenantSpec};
use crate::lab::{Overlay, SegmentLab, SegmentSpec};

const TENANTS: [&str; 2] = ["red", "blue"];
/// All hosts of a segment.
const EVERYBODY: Ipv4Addr = Ipv4Addr::new(10, 66, 255, 255);
/// Nobody listens there.
const PORT: u16 = 7777;

/// Runs the demo.
pub(super) fn demo(args: &DemoArgs) -> Result<()> {
    heading(&format!(
        "A cluster of {} nodes with two tenants, a host of each per node, one agent per node",
        args.nodes
    ));
    let lab = lab(args.nodes, &Overlay::verified())?;
    layout(&lab);
    let before = snapshot(&lab)?;
    heading("Traffic of each tenant, every byte checked");
    send(&lab)?;
    heading("Nothing crosses: frames of a tenant, captured at all hosts");
    keep_apart(&lab)?;
    heading("The way it took: dump counters --network");
    paths::show(&before, &snapshot(&lab)?)?;
    println!("\n  TCP packets of up to 64 kB are one packet each.");
    println!("  What a program leaves to the kernel, the next one on its way counts again.");
    heading("Who is where, as node 1 knows it: dump stations");
    lab.agent(1)?.cli(&["dump", "stations"])?.lines().for_each(|line| println!("  {line}"));
    heading("Side by side with kernel VXLAN (short; `cargo xtask bench --l2` does it properly)");
    compare::against_kernel(&self::lab(args.nodes, &Overlay::KernelVxlan)?, &lab)?;
    if args.keep {
        how_to_look_round(&lab)?;
        return lab.keep();
    }
    Ok(())
}

fn lab(nodes: u8, overlay: &Overlay) -> Result<SegmentLab> {
    let tenants = TENANTS.into_iter().zip([100, 200]).map(|(name, vni)| TenantSpec::new(name, vni));
    SegmentSpec::of(vec![overlay.clone(); usize::from(nodes)]).tenants(tenants).build()
}

/// Who is where.
fn layout(lab: &SegmentLab) {
    for tenant in &lab.spec().tenants {
        println!("  {:<5} VNI {}, bridge {}", tenant.name, tenant.vni, tenant.bridge());
    }
    for (n, node) in (1..).zip(lab.nodes()) {
        println!("  {}  underlay {:<12} network namespace {}", node.name, node.underlay, node.namespace());
        for host in TENANTS.map(|tenant| lab.host(n, tenant, 1)) {
            println!("      {:<10} {:<12} {:<16} {}", host.name, host.ip4, host.ip6, mac_text(host.mac));
        }
    }
}

/// The counters of every node, network by network.
fn snapshot(lab: &SegmentLab) -> Result<Vec<Counted>> {
    let agents = lab.nodes().iter().zip(lab.agents());
    agents
        .flat_map(|(node, agent)| TENANTS.map(|tenant| (node, agent, tenant)))
        .map(|(node, agent, tenant)| {
            let title = format!("{}, network {tenant}", node.name);
            Ok(Counted { title, counters: agent.counters_of(tenant)? })
        })
        .collect()
}

/// From each node to the next, in each tenant.
fn send(lab: &SegmentLab) -> Result<()> {
    traffic::head();
    for tenant in TENANTS {
        for (from, to) in neighbours(lab.nodes().len()) {
            let (client, server) = (lab.host(from, tenant, 1), lab.host(to, tenant, 1));
            traffic::pair(&format!("{tenant} n{from} → n{to}"), client, server, server.ips())?;
        }
    }
    Ok(())
}

/// What one host sends to one and to all comes by at hosts of its tenant and at no other.
///
/// # Errors
/// It did not arrive, or it crossed.
fn keep_apart(lab: &SegmentLab) -> Result<()> {
    let [red, blue] = TENANTS;
    for [own, other] in [[red, blue], [blue, red]] {
        let (from, to) = (lab.host(1, own, 1), [lab.host(2, own, 1).ip4, EVERYBODY]);
        let payload = format!("a secret of {own}");
        let seen =
            lab.frames_seen([own, other], payload.as_bytes(), || tell(from, to, payload.as_bytes()))?;
        let [at_own, at_other] = seen;
        println!(
            "  {} sends to {} and {}: {at_own} frames at hosts of {own}, {at_other} at hosts of {other}",
            from.name, to[0], to[1]
        );
        // To one: the sender's and the receiver's. To all: one for each host.
        ensure!(at_own >= 2 + lab.nodes().len(), "only {at_own} frames came by at hosts of {own}");
        ensure!(at_other == 0, "{at_other} frames of {own} came by at hosts of {other}");
    }
    Ok(())
}

fn tell(from: &Host, to: [Ipv4Addr; 2], payload: &[u8]) -> Result<()> {
    let socket = from.run(|| UdpSocket::bind((from.ip4, 0)))?;
    socket.set_broadcast(true)?;
    for address in to {
        socket.send_to(payload, (address, PORT))?;
    }
    Ok(())
}

/// What to type while the lab is up.
fn how_to_look_round(lab: &SegmentLab) -> Result<()> {
    let [tenant, _] = TENANTS;
    let (client, server) = (lab.host(1, tenant, 1), lab.host(2, tenant, 1));
    Look {
        prefix: lab.prefix(),
        node: lab.node(1),
        agent: lab.agent(1)?,
        change: lab.state_path().display().to_string(),
        command: format!("nsenter --net=/run/netns/{} ping {}", client.namespace(), server.ip4),
        words: &["status", &format!("dump counters --network {tenant}"), "dump stations", "fastpath off"],
        map: "STATIONS",
    }
    .print()
}
