//! `status`: the agent's status file, its lock, and the pins.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;
use vxlan_ebpf_common::maps::endpoint;

use super::table::table;
use super::{Subject, print, print_json};
use crate::config::Fastpath;
use crate::datapath::{DatapathState, Pins};
use crate::status::{self, ACCELERATE, NetworkStatus, Status};

/// How many rules are listed that have to see every packet.
const MOST_METERS: usize = 5;

#[derive(Serialize)]
struct Report {
    /// Whether the agent lives.
    running: bool,
    /// Its process id as seen from here; JSON has the one that the agent wrote down.
    #[serde(skip)]
    pid: Option<i32>,
    /// What it last wrote; absent if it never ran.
    #[serde(flatten)]
    status: Option<Status>,
    /// The fast path as it is now, of all networks together.
    fastpath: FastpathReport,
    /// The same of each network.
    fastpath_of: BTreeMap<String, FastpathReport>,
}

#[derive(Serialize)]
struct FastpathReport {
    /// Whether anything is pinned.
    pinned: bool,
    /// Why the pins cannot be read.
    error: Option<String>,
    /// As set by `fastpath on|off`.
    switched_on: Option<bool>,
    /// Programs on interfaces.
    attachments: Vec<AttachmentReport>,
    routes: usize,
    vteps: usize,
    endpoints: usize,
    /// Addresses that more than one pod claims.
    disputed: Vec<IpAddr>,
}

#[derive(Serialize)]
struct AttachmentReport {
    hook: &'static str,
    ifindex: u32,
}

pub(super) fn show(subject: &Subject, json: bool) -> anyhow::Result<()> {
    let node = &subject.config.node;
    let holder = status::holder(&node.run_dir)?;
    let mut status = status::read(&node.run_dir)?;
    let is_asked_for = |name: &str| subject.all || subject.networks().any(|network| network == name);
    if let Some(status) = &mut status {
        status.networks.retain(|network| is_asked_for(&network.name));
        status.every.take_if(|_| !subject.all);
    }
    let (fastpath, mut fastpath_of) = fastpath(&node.pins());
    fastpath_of.retain(|name, _| is_asked_for(name));
    let pid = holder.as_ref().and_then(|holder| holder.pid);
    let report = Report { running: holder.is_some(), pid, status, fastpath, fastpath_of };
    if json { print_json(&report) } else { print(&text(&node.run_dir, &report)) }
}

/// Pins that cannot be read are something to report, not a reason to report nothing.
fn fastpath(dir: &Path) -> (FastpathReport, BTreeMap<String, FastpathReport>) {
    if !dir.is_dir() {
        return (report(None, &DatapathState::default()), BTreeMap::new());
    }
    let read = || {
        let pins = Pins::open(dir)?;
        let (state, mut each, mut all_on) = (pins.state()?, BTreeMap::new(), true);
        for (id, network) in &state.networks {
            let on = pins.switched_on(*id)?;
            all_on &= on;
            each.insert(network.name().unwrap_or_default().to_owned(), report(Some(on), &state.of(*id)));
        }
        anyhow::Ok((report(Some(all_on), &state), each))
    };
    read().unwrap_or_else(|error| {
        let unreadable = report(None, &DatapathState::default());
        let error = Some(format!("{error:#}"));
        (FastpathReport { pinned: true, error, ..unreadable }, BTreeMap::new())
    })
}

fn report(switched_on: Option<bool>, state: &DatapathState) -> FastpathReport {
    let attachment =
        |a: &crate::datapath::Attachment| AttachmentReport { hook: a.hook.label(), ifindex: a.ifindex };
    let disputed = state.endpoints.iter().filter(|(_, pod)| pod.flags & endpoint::DISPUTED != 0);
    FastpathReport {
        pinned: switched_on.is_some(),
        error: None,
        switched_on,
        attachments: state.attachments.iter().map(attachment).collect(),
        routes: state.routes.len(),
        vteps: state.vteps.len(),
        endpoints: state.endpoints.len(),
        disputed: disputed.map(|((_, address), _)| *address).collect(),
    }
}

fn text(run_dir: &Path, report: &Report) -> String {
    let mut out = String::new();
    let agent = match report.pid {
        Some(pid) => format!("running, pid {pid}"),
        None if report.running => "running, in a container".to_owned(),
        None => "not running; what it set up goes on as it is".to_owned(),
    };
    let _ = writeln!(out, "agent      {agent}");
    let Some(status) = &report.status else {
        let _ = writeln!(out, "           no status in {}", run_dir.display());
        return out;
    };
    let _ = writeln!(out, "node       {}, Linux {}", status.node, status.kernel);
    let fast = |network: &NetworkStatus| network.mode != Fastpath::Off;
    if status.networks.iter().any(fast) {
        out.push_str(&super::features::missing(&status.features));
    }
    for network in &status.networks {
        // One that is not there yet is as good as none.
        let fastpath = report.fastpath_of.get(&network.name).unwrap_or(&report.fastpath);
        network_text(&mut out, network, fastpath);
    }
    if let Some(every) = &status.every {
        let _ = writeln!(
            out,
            "devices    each that somebody else manages has a network, which is named after it"
        );
        every.left.iter().for_each(|reason| _ = writeln!(out, "kernel's   {reason}"));
    }
    if let Some(error) = &status.config_error {
        let _ = writeln!(out, "refused    the configuration, the one before is in force: {error}");
    }
    if let Some(error) = &status.error {
        let _ = writeln!(out, "stuck      {error}");
    }
    for retry in &status.retrying {
        let _ = writeln!(out, "retrying   {} ({} attempts): {}", retry.change, retry.attempts, retry.error);
    }
    out
}

fn network_text(out: &mut String, network: &NetworkStatus, fastpath: &FastpathReport) {
    let unknown = || "?".to_owned();
    let mtu = network.mtu.map_or_else(unknown, |mtu| mtu.to_string());
    let underlay = network.underlay.clone().unwrap_or_else(unknown);
    let address = network.address.map_or_else(unknown, |address| address.to_string());
    let vni = network.vni.map_or_else(unknown, |vni| vni.to_string());
    let port = network.port.map_or_else(unknown, |port| port.to_string());
    let _ = writeln!(out, "network    {}, VNI {vni}, UDP port {port}", network.name);
    let whose = if is_accelerated(network) { ", somebody else's: accelerated" } else { "" };
    let _ = writeln!(out, "device     {}, MTU {mtu}, MAC {}{whose}", network.device, network.mac);
    let _ = writeln!(out, "underlay   {underlay}, address {address}");
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
    let _ = write!(out, "\n{}", nodes_text(network));
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
