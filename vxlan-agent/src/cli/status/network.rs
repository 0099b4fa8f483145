//! What `status` says of a network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::fastpath::{FastpathReport, Share};
use crate::cli::table::table;
use crate::config::Fastpath;
use crate::status::{ACCELERATE, NetworkStatus};

/// How many rules are listed that have to see every packet.
const MOST_METERS: usize = 5;
/// How many interfaces are listed that a program is on.
const MOST_INTERFACES: usize = 8;

/// Everything about a network.
pub(super) fn network_text(out: &mut String, network: &NetworkStatus, fastpath: &FastpathReport) {
    let unknown = || "?".to_owned();
    let mtu = network.mtu.map_or_else(unknown, |mtu| mtu.to_string());
    let underlay = network.underlay.clone().unwrap_or_else(unknown);
    let address = network.address.map_or_else(unknown, |address| address.to_string());
    let vni = network.vni.map_or_else(unknown, |vni| vni.to_string());
    let port = network.port.map_or_else(unknown, |port| port.to_string());
    let _ = writeln!(out, "network    {}, VNI {vni}, UDP port {port}", network.name);
    let whose = if is_accelerated(network) { ", somebody else's: accelerated" } else { "" };
    let _ = writeln!(out, "device     {}, MTU {mtu}, MAC {}{whose}", network.device, network.mac);
    let below = network.underlay_mtu.map_or_else(unknown, |mtu| mtu.to_string());
    let _ = writeln!(out, "underlay   {underlay}, MTU {below}, address {address}");
    match &network.bridge {
        Some(bridge) => {
            let whose = if bridge.ours { "made by the agent" } else { "an operator's" };
            let _ = writeln!(out, "bridge     {}, {whose}", bridge.name);
        }
        None => {
            let subnets: Vec<String> = network.subnets.iter().map(ToString::to_string).collect();
            let _ = writeln!(out, "subnets    {}", subnets.join(", "));
        }
    }
    let _ = writeln!(out, "fast path  {}", fastpath_text(network, fastpath));
    out.push_str(&attached_text(fastpath));
    out.push_str(&share_text(fastpath));
    if let Some(xdp) = &network.xdp {
        let _ = writeln!(out, "xdp        {xdp}");
    }
    let _ = writeln!(out, "guarded    {}", network.guard);
    pods_text(out, network, fastpath);
    let about = if is_accelerated(network) { "" } else { "frames, because of: " };
    for reason in &network.left {
        let _ = writeln!(out, "kernel's   {about}{reason}");
    }
    for caution in network.bridge.iter().flat_map(|bridge| &bridge.cautions) {
        let _ = writeln!(out, "caution    {caution}");
    }
    let errors =
        [("pending", &network.pending), ("refused", &network.reload_error), ("stuck", &network.plan_error)];
    for (label, error) in errors {
        if let Some(error) = error {
            let _ = writeln!(out, "{label:<10} {error}");
        }
    }
    let guarded: Vec<&str> = network.nodes.iter().filter(|n| n.ipsec).map(|n| n.name.as_str()).collect();
    if !guarded.is_empty() {
        let _ = writeln!(out, "ipsec      no fast path, because of policies: {}", guarded.join(", "));
    }
    let direct: BTreeSet<&str> = network.nodes.iter().filter(|n| n.direct).map(|n| n.name.as_str()).collect();
    if !direct.is_empty() {
        let direct: Vec<&str> = direct.into_iter().collect();
        let _ = writeln!(out, "direct     on the same link, without a tunnel: {}", direct.join(", "));
    }
    for hooked in &network.hooked {
        let _ = writeln!(out, "kernel's   what passes {} because of: {}", hooked.interface, hooked.what);
    }
    if network.mode == Fastpath::Verified && network.bridge.is_none() {
        let _ = writeln!(out, "{}", judge_text(network.judge.as_deref()));
        if let Some(reason) = &network.handover {
            let _ = writeln!(
                out,
                "arrivals   all that the host stack has to see by its own way, because of {reason}"
            );
        }
    }
    out.push_str(&meters_text(network));
    let nodes: BTreeSet<&str> = network.nodes.iter().map(|node| node.name.as_str()).collect();
    if fastpath.pinned {
        let _ = writeln!(out, "peers      {}", fastpath.peers.sentence(nodes.len()));
    }
    let _ = write!(out, "\n{}", nodes_text(network));
}

/// Which program is where.
fn attached_text(fastpath: &FastpathReport) -> String {
    let mut by_hook = BTreeMap::<_, Vec<&str>>::new();
    for attachment in &fastpath.attachments {
        by_hook.entry(attachment.hook).or_default().push(&attachment.interface);
    }
    let mut out = String::new();
    for (n, (hook, interfaces)) in by_hook.into_iter().enumerate() {
        let label = if n == 0 { "attached" } else { "" };
        let _ = writeln!(out, "{label:<10} {hook:<16} {}", some_of(&interfaces, MOST_INTERFACES));
    }
    out
}

/// The first `most` of `names`, and how many there are besides.
fn some_of(names: &[&str], most: usize) -> String {
    let first = names.iter().take(most).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// How much of the traffic takes the short cut.
fn share_text(fastpath: &FastpathReport) -> String {
    let share = |(direction, share): (&&str, &Share)| {
        let part = share.percent()?;
        let dropped = if share.drop == 0 { String::new() } else { format!(", {} dropped", share.drop) };
        Some(format!("{part} of {} packets {direction}{dropped}", share.all()))
    };
    let shares: Vec<String> = fastpath.tunnel.iter().rev().filter_map(share).collect();
    if shares.is_empty() { String::new() } else { format!("share      {}\n", shares.join("; ")) }
}

/// Whether somebody else manages the device.
fn is_accelerated(network: &NetworkStatus) -> bool {
    network.kind == ACCELERATE
}

/// The other nodes; those of a bridged network have no subnets.
fn nodes_text(network: &NetworkStatus) -> String {
    let bridged = network.bridge.is_some();
    let rows = network.nodes.iter().map(|node| {
        let subnets: Vec<String> = node.subnets.iter().map(ToString::to_string).collect();
        let subnets = (!bridged).then(|| subnets.join(", "));
        let cells = [node.name.clone(), node.vtep.to_string(), node.mac.to_string()];
        cells.into_iter().chain(subnets).collect()
    });
    let head: &[&str] = if bridged { &["node", "vtep", "mac"] } else { &["node", "vtep", "mac", "subnets"] };
    table(head, &rows.collect::<Vec<_>>())
}

fn pods_text(out: &mut String, network: &NetworkStatus, fastpath: &FastpathReport) {
    let (attached, known) = (network.pods_attached, network.endpoints);
    let _ = match network.bridge {
        Some(_) => writeln!(out, "ports      {attached} attached, {known} stations"),
        None => writeln!(out, "pods       {attached} attached, {known} addresses"),
    };
    if !fastpath.disputed.is_empty() {
        let addresses: Vec<String> = fastpath.disputed.iter().map(ToString::to_string).collect();
        let _ = writeln!(
            out,
            "disputed   the kernel's, because more than one pod claims it: {}",
            addresses.join(", ")
        );
    }
}

/// What a flow is, and why.
fn judge_text(judge: Option<&str>) -> String {
    judge.map_or_else(
        || "flows      all between two pods, since no packet filter asks for more than addresses".into(),
        |judge| format!("flows      connections, because of {judge}"),
    )
}

/// Rules that the fast path would not keep, and what becomes of it.
fn meters_text(network: &NetworkStatus) -> String {
    let (first, meters) = match network.mode {
        Fastpath::Verified => (
            "no flow bypasses the host stack while there are rules that have to see every packet;\n           \
             remove them, or let fastpath = \"direct\" skip them, with all others:",
            network.meters.as_slice(),
        ),
        Fastpath::Direct => ("skipped, as every rule in this mode:", network.meters.as_slice()),
        Fastpath::Off => ("", &[][..]),
    };
    let mut out = String::new();
    if !meters.is_empty() {
        let _ = writeln!(out, "limits     {first}");
    }
    for meter in meters.iter().take(MOST_METERS) {
        let _ = writeln!(out, "           {meter}");
    }
    if let Some(more) = meters.len().checked_sub(MOST_METERS).filter(|more| *more > 0) {
        let _ = writeln!(out, "           and {more} more (--json)");
    }
    out
}

fn fastpath_text(network: &NetworkStatus, fastpath: &FastpathReport) -> String {
    let mode = network.mode.word();
    let attach = network.attach.as_deref().unwrap_or("not loaded");
    if let Some(error) = &fastpath.error {
        return format!("{mode}, {attach}: {error}");
    }
    match fastpath.switched_on {
        None => format!("{mode}, nothing pinned: the kernel does all the work"),
        Some(true) => format!("{mode}, {attach}, {} programs attached", fastpath.attachments.len()),
        Some(false) => format!("{mode}, {attach}, switched off by hand: every packet is the kernel's"),
    }
}
