//! `check --dry-run`: what an agent would change in the kernel's tables now, as a diff. Nothing is changed.

use std::fmt::Write as _;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{Checked, Problem};
use crate::agent::survey::{self, Survey};
use crate::cluster::ClusterState;
use crate::config::{StateConfig, View};
use crate::datapath::{DatapathState, Pins};
use crate::kernel::{Device, KernelChange, KernelState, Netlink, Route, Tables};
use crate::net::{Vni, full_length};
use crate::report::source;
use crate::status::{self, NetworkStatus};

/// What cannot be told without programs that are loaded, or is no entry of the kernel's tables.
const LEFT_OUT: &str = "entries of BPF maps, programs on interfaces, tables of nf_tables, settings (sysctl), \
                        files for pods, head-room ports of bridges";

/// What an agent would change.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Plan {
    changes: Vec<Difference>,
    /// What is not told, a sentence each.
    left_out: Vec<String>,
}

/// What would be otherwise on one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Difference {
    network: String,
    device: String,
    /// Each begins with a plus or a minus sign.
    lines: Vec<String>,
}

/// Compares the networks of `checked` that nothing is wrong with with this machine. Why one of them cannot run on it is
/// a problem more.
pub(super) async fn compare(checked: &mut Checked) -> anyhow::Result<Plan> {
    let Some(config) = &checked.config else { return Ok(Plan::default()) };
    let netlink = Netlink::open()?;
    let mut tables = netlink.dump().await?;
    tables.make_index();
    let written = status::read(&config.node.run_dir).ok().flatten();
    let written = written.map(|status| status.networks).unwrap_or_default();
    let (mut plan, mut problems) = (Plan::default(), vec![]);
    for view in &config.networks {
        let known = checked.clusters.get(&view.network.name);
        match of_network(view, known, &written, (&tables, &netlink)).await {
            Ok(differences) => plan.changes.extend(differences),
            Err(Untold::CannotRun(reason)) => {
                let reason = format!("network '{}' cannot run on this machine: {reason}", view.network.name);
                problems.push(Problem { file: checked.path.clone(), line: None, reason, mend: None });
            }
            Err(Untold::LeftOut(reason)) => plan.left_out.extend(reason),
        }
        if known.is_none() && !view.network.is_accelerated() && !matches!(view.state, StateConfig::File(_)) {
            let (name, source) = (&view.network.name, source(&view.state));
            plan.left_out.push(format!(
                "network {name}: what {source} says now; its nodes are those that an agent knew last"
            ));
        }
    }
    let named = Pins::open(&config.node.pins()).and_then(|pins| pins.networks()).unwrap_or_default();
    let is_configured = |name: &String| config.networks.iter().any(|view| view.network.name == *name);
    for name in named.iter().filter(|name| !is_configured(name)) {
        plan.changes
            .extend(survey::leftovers(name, &tables).iter().filter_map(|left| difference(name, left)));
    }
    plan.left_out.push(LEFT_OUT.to_owned());
    checked.problems.extend(problems);
    Ok(plan)
}

/// Why nothing is told of a network.
enum Untold {
    CannotRun(String),
    LeftOut(Option<String>),
}

async fn of_network(
    view: &View,
    known: Option<&ClusterState>,
    written: &[NetworkStatus],
    (tables, netlink): (&Tables, &Netlink),
) -> Result<Vec<Difference>, Untold> {
    let name = &view.network.name;
    if view.network.is_accelerated() {
        let reason =
            format!("network {name}: the device is somebody else's, and nothing of it is ever changed");
        return Err(Untold::LeftOut(Some(reason)));
    }
    let cluster = match (&view.state, known) {
        (_, Some(cluster)) => cluster.clone(),
        // What is wrong with it is told already.
        (StateConfig::File(_), None) => return Err(Untold::LeftOut(None)),
        _ => {
            let status = written.iter().find(|status| status.name == *name);
            survey::cluster(view, status).map_err(|reason| Untold::LeftOut(Some(reason)))?
        }
    };
    survey::refusal(view, &cluster, tables).map_err(Untold::CannotRun)?;
    let ways = survey::ways(view, &cluster, tables, netlink).await;
    let surveyed = survey::survey(view, &cluster, tables, &ways, &DatapathState::default());
    let Survey { changes, .. } = surveyed.map_err(|error| Untold::CannotRun(format!("{error:#}")))?;
    Ok(changes.iter().filter_map(|changes| difference(name, changes)).collect())
}

fn difference(network: &str, changes: &survey::Changes) -> Option<Difference> {
    let survey::Changes { device, observed, changes } = changes;
    let lines: Vec<String> = changes.iter().flat_map(|change| lines(device, observed, change)).collect();
    let (network, device) = (network.to_owned(), device.clone());
    (!lines.is_empty()).then_some(Difference { network, device, lines })
}

impl Plan {
    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        if self.changes.is_empty() {
            out += "an agent would change nothing in the kernel's tables\n";
        }
        for Difference { network, device, lines } in &self.changes {
            let _ = writeln!(out, "network {network}, {device}:");
            lines.iter().for_each(|line| _ = writeln!(out, "{line}"));
        }
        self.left_out.iter().for_each(|what| _ = writeln!(out, "left out: {what}"));
        out
    }
}

/// `change` as lines of a diff, where `observed` is what there is.
fn lines(device: &str, observed: &KernelState, change: &KernelChange) -> Vec<String> {
    use KernelChange::*;
    let put = |old: Option<String>, new: String| {
        let old = old.filter(|old| *old != new).map(|old| format!("- {old}"));
        old.into_iter().chain([format!("+ {new}")]).collect::<Vec<_>>()
    };
    let gone = |what: String| vec![format!("- {what}")];
    let neighbour = |ip, mac| format!("neighbour {ip} lladdr {mac} dev {device}");
    let fdb = |mac, vtep| format!("fdb {mac} dst {vtep} dev {device}");
    let route = |to: &IpNetwork, route: &Route| match route.past {
        Some(_) => format!("route {to} via {}, without a tunnel", route.via),
        None => format!("route {to} via {} dev {device}", route.via),
    };
    let host = |ip: &std::net::IpAddr| format!("address {ip}/{} dev {device}", full_length(*ip));
    let to_all = |vtep| format!("fdb 00:00:00:00:00:00 dst {vtep} dev {device}");
    let answer = |bridge: &str, ip, mac| format!("neighbour {ip} lladdr {mac} dev {bridge}");
    let with =
        |what: String, more: Option<String>| more.map_or(what.clone(), |more| format!("{what} {more}"));
    match change {
        DeleteDevice(name) => {
            gone(observed.device.as_ref().map_or_else(|| format!("device {name}"), describe))
        }
        CreateDevice(wanted) => put(None, describe(wanted)),
        SetDevice(wanted) => put(observed.device.as_ref().map(describe), describe(wanted)),
        AddAddress(ip) => put(None, host(ip)),
        RemoveAddress(ip) => gone(host(ip)),
        PutNeighbour(ip, mac) => {
            let old = observed.neighbours.get(ip).map(|old| neighbour(ip, old));
            put(old, neighbour(ip, mac))
        }
        RemoveNeighbour(ip) => gone(with(
            format!("neighbour {ip} dev {device}"),
            observed.neighbours.get(ip).map(|mac| format!("lladdr {mac}")),
        )),
        PutFdb(mac, vtep) => put(observed.fdb.get(mac).map(|old| fdb(mac, old)), fdb(mac, vtep)),
        RemoveFdb(mac) => gone(with(
            format!("fdb {mac} dev {device}"),
            observed.fdb.get(mac).map(|vtep| format!("dst {vtep}")),
        )),
        AddRoute(to, wanted) => put(None, route(to, wanted)),
        ReplaceRoute(to, wanted) => {
            let direct = || Some(format!("route {to} via {}", observed.direct_routes.get(to)?.via));
            let old = observed.routes.get(to).map(|old| route(to, old)).or_else(direct);
            put(old, route(to, wanted))
        }
        RemoveRoute(to, old) => gone(match old.past {
            Some(_) => route(to, old),
            None => format!("route {to} dev {device}"),
        }),
        RemoveDirectRoute(to, old) => gone(format!("route {to} via {}", old.via)),
        CreateBridge(name, own) => put(None, format!("bridge {name} MAC {} MTU {}", own.mac, own.mtu)),
        SetBridge(name, own) => {
            let old = observed.bridge.as_ref().and_then(|bridge| bridge.own.as_ref());
            let describe = |own: &crate::kernel::OwnBridge| {
                format!("bridge {name} MAC {} MTU {}{}", own.mac, own.mtu, ready(own.ready))
            };
            put(old.map(describe), describe(own))
        }
        RemoveBridge(name) => gone(format!("bridge {name}")),
        AddBridgeAddress(bridge, ip) => put(None, format!("address {ip} dev {bridge}")),
        RemoveBridgeAddress(bridge, ip) => gone(format!("address {ip} dev {bridge}")),
        PutStation(mac, vtep) => put(observed.stations.get(mac).map(|old| fdb(mac, old)), fdb(mac, vtep)),
        RemoveStation(mac) => gone(with(
            format!("fdb {mac} dev {device}"),
            observed.stations.get(mac).map(|vtep| format!("dst {vtep}")),
        )),
        PutAnswer(bridge, ip, mac) => {
            put(observed.answers.get(ip).map(|old| answer(bridge, ip, old)), answer(bridge, ip, mac))
        }
        RemoveAnswer(bridge, ip) => gone(format!("neighbour {ip} dev {bridge}")),
        AddFlood(vtep) => put(None, to_all(vtep)),
        RemoveFlood(vtep) => gone(to_all(vtep)),
        // Left out, and said so.
        AddHeadroom(..) | SetHeadroom(..) | RemoveHeadroom(_) => vec![],
    }
}

fn describe(device: &Device) -> String {
    let Device { name, vni, port, local, mac, mtu, ready: is_ready, .. } = device;
    let vni = vni.map_or(0, Vni::get);
    let ready = ready(*is_ready);
    format!("device {name} VNI {vni} port {port} local {local} MAC {mac} MTU {mtu}{ready}")
}

const fn ready(ready: bool) -> &'static str {
    if ready { "" } else { ", half-made" }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::*;
    use crate::kernel::{self, Headers};
    use crate::net::{IfIndex, Mac, Mtu};

    fn state(mtu: u32, mac: u8, via: [u8; 4]) -> KernelState {
        let device = Device {
            name: "vxlan1".into(),
            vni: Vni::try_from(1).ok(),
            port: 8472,
            local: IpAddr::from([192, 0, 2, 1]),
            underlay: IfIndex(2),
            mac: Mac([2, 0, 0, 0, 0, 1]),
            mtu: Mtu(mtu),
            headers: Headers::of_new_device(false),
            ready: true,
            segment: None,
        };
        let to = "10.2.0.0/24".parse().expect("a subnet");
        let mac = Mac([2, 0, 0, 0, 0, mac]);
        KernelState {
            device: Some(device),
            neighbours: BTreeMap::from([(via.into(), mac)]),
            fdb: BTreeMap::from([(mac, IpAddr::from([192, 0, 2, 2]))]),
            routes: BTreeMap::from([(to, Route { via: via.into(), past: None, src: None })]),
            ..KernelState::default()
        }
    }

    fn diff(observed: &KernelState, wanted: &KernelState) -> Vec<String> {
        let changes = kernel::diff(observed, wanted);
        changes.iter().flat_map(|change| lines("vxlan1", observed, change)).collect()
    }

    #[test]
    fn where_nothing_is_everything_is_put() {
        let wanted = state(1450, 2, [10, 2, 0, 0]);
        assert_eq!(
            diff(&KernelState::default(), &wanted),
            [
                "+ device vxlan1 VNI 1 port 8472 local 192.0.2.1 MAC 02:00:00:00:00:01 MTU 1450",
                "+ fdb 02:00:00:00:00:02 dst 192.0.2.2 dev vxlan1",
                "+ neighbour 10.2.0.0 lladdr 02:00:00:00:00:02 dev vxlan1",
                "+ route 10.2.0.0/24 via 10.2.0.0 dev vxlan1",
            ]
        );
        assert_eq!(diff(&wanted, &wanted), [""; 0]);
    }

    #[test]
    fn what_changes_is_told_as_it_is_and_as_it_would_be() {
        let (observed, wanted) = (state(1400, 2, [10, 2, 0, 0]), state(1450, 3, [10, 2, 0, 0]));
        let told = diff(&observed, &wanted);
        for line in [
            "- device vxlan1 VNI 1 port 8472 local 192.0.2.1 MAC 02:00:00:00:00:01 MTU 1400",
            "+ device vxlan1 VNI 1 port 8472 local 192.0.2.1 MAC 02:00:00:00:00:01 MTU 1450",
            "- neighbour 10.2.0.0 lladdr 02:00:00:00:00:02 dev vxlan1",
            "+ neighbour 10.2.0.0 lladdr 02:00:00:00:00:03 dev vxlan1",
            "- fdb 02:00:00:00:00:02 dev vxlan1 dst 192.0.2.2",
        ] {
            assert!(told.iter().any(|told| told == line), "{line}: {told:#?}");
        }
        let told = diff(&observed, &KernelState::default());
        assert_eq!(told, ["- device vxlan1 VNI 1 port 8472 local 192.0.2.1 MAC 02:00:00:00:00:01 MTU 1400"]);
    }
}
