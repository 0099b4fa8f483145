//! What only packets can tell of another node: `doctor --peer`.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::bail;

use super::facts::NetworkFacts;
use super::underlay::small_path;
use super::{Facts, Finding};
use crate::cluster::Node;
use crate::net::{Mtu, family, overhead};
use crate::plan::Side;
use crate::probe::{Outcome, Overlay, Prober, Row, Way, path_mtu, sweep};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of a packet that asks whether a node answers.
const SMALL: usize = 84;

/// Sends packets to `peer`, a node's name or VTEP address, and says what is wrong with what comes back.
///
/// # Errors
/// There is no such node, or nothing can be sent.
pub async fn probe(facts: &Facts, peer: &str) -> anyhow::Result<Vec<Finding>> {
    let mut found = vec![];
    let mut known = vec![];
    let mut is_known = false;
    for network in &facts.networks {
        let Ok(cluster) = &network.cluster else { continue };
        for node in cluster.remotes.values() {
            known.push(node.name.clone());
            let is_meant = node.name == peer || node.vtep.to_string() == peer;
            let over = |side: &&Side| side.underlay.address.is_ipv4() == node.vtep.is_ipv4();
            let side = network.sides().iter().find(over);
            if let Some(side) = side.filter(|_| is_meant) {
                is_known = true;
                found.extend(probe_node(network, node, side).await?);
            }
        }
    }
    if !is_known {
        known.truncate(10);
        bail!("there is no node '{peer}' to probe: there are {}", known.join(", "));
    }
    Ok(found)
}

async fn probe_node(network: &NetworkFacts, node: &Node, side: &Side) -> anyhow::Result<Vec<Finding>> {
    let mut found = vec![];
    let v6 = node.vtep.is_ipv6();
    let below = Prober::open(v6, Way::Fast, Some(side.underlay.address))?;
    let answer = below.echo(node.vtep, SMALL, PATIENCE).await;
    if let Outcome::Answered(after) = answer {
        let outer = side.underlay.inner_mtu.0 + overhead(family(side.underlay.address));
        let mtu = path_mtu(&below, node.vtep, outer as usize, after).await as u32;
        if mtu < outer {
            found.push(small_path(network, &node.vtep.to_string(), Mtu(mtu), outer));
        }
    }
    let rows = through_tunnel(network, node, side).await?;
    let answers = |row: &Row| Way::ALL.iter().any(|way| row.path(*way).reachable);
    if !rows.is_empty() && !rows.iter().any(answers) {
        found.push(unreachable(network, node, side, &answer));
        return Ok(found);
    }
    for row in &rows {
        for way in Way::ALL.into_iter().filter(|way| !row.path(*way).reachable) {
            found.push(one_way_lost(network, node, row.address, way));
        }
    }
    Ok(found)
}

async fn through_tunnel(network: &NetworkFacts, node: &Node, side: &Side) -> anyhow::Result<Vec<Row>> {
    let Ok(cluster) = &network.cluster else { return Ok(vec![]) };
    let mut overlay = Overlay::new(&network.name, cluster, side.underlay.inner_mtu.0 as usize);
    overlay.targets.retain(|target| target.node == node.name);
    sweep(&[overlay], false).await
}

fn unreachable(network: &NetworkFacts, node: &Node, side: &Side, below: &Outcome) -> Finding {
    let (name, vtep, port) = (&node.name, node.vtep, network.port.unwrap_or_default());
    if below.round_trip().is_some() {
        let what = format!(
            "{name} answers on the underlay and not through the tunnel: UDP port {port} is blocked on the way, or there"
        );
        return Finding::error("port-eaten", what)
            .of(&network.name)
            .seen(format!("echo to {vtep}: {below}; through the tunnel: none"))
            .mend(format!(
                "on {name}: vxlan-agent doctor; tcpdump -ni any udp port {port} shows how far packets come"
            ));
    }
    let what = format!("{name} answers neither on the underlay nor through the tunnel");
    let underlay = &side.underlay.name;
    Finding::error("peer-unreachable", what)
        .of(&network.name)
        .seen(format!("echo to {vtep} out of {underlay}: {below}"))
        .mend(format!(
            "ip route get {vtep}; ip neigh show {vtep}: look at the link, and whether {name} is up"
        ))
}

fn one_way_lost(network: &NetworkFacts, node: &Node, address: IpAddr, way: Way) -> Finding {
    let (name, other) = (&node.name, if way == Way::Fast { "kernel's" } else { "fast" });
    let (id, mend) = match way {
        Way::Fast => ("fast-path-lost", format!("vxlan-agent fastpath off --network {}", network.name)),
        Way::Kernel => ("kernel-path-lost", format!("on {name}: vxlan-agent doctor")),
    };
    let what = format!("{name} answers by the {other} path and not by the {} one", way.word());
    Finding::error(id, what).of(&network.name).seen(format!("echoes to {address}")).mend(mend)
}
