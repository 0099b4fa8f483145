//! What of the network is missing in the kernel's tables, is otherwise, or is left over: what an agent would
//! change, and the commands that do the same.

use std::net::IpAddr;

use super::facts::NetworkFacts;
use super::{Check, Facts, Finding, Severity};
use crate::kernel::{Device, KernelChange, Route};
use crate::net::full_length;
use crate::ownership::ROUTE_PROTOCOL;

pub(super) const CHECKS: &[Check] = &[differences];

fn differences(facts: &Facts) -> Vec<Finding> {
    let of_network = |network: &NetworkFacts| {
        let changes = network.changes.iter();
        let found = changes.flat_map(|(device, change)| difference(facts, device, change));
        found.map(|finding| finding.of(&network.name)).collect::<Vec<_>>()
    };
    facts.networks.iter().flat_map(of_network).collect()
}

fn difference(facts: &Facts, device: &str, change: &KernelChange) -> Vec<Finding> {
    use KernelChange::{
        AddAddress, AddFlood, AddRoute, CreateDevice, DeleteDevice, PutFdb, PutNeighbour, PutStation,
        RemoveAddress, RemoveDirectRoute, RemoveFdb, RemoveFlood, RemoveNeighbour, RemoveRoute,
        RemoveStation, ReplaceRoute, SetDevice,
    };
    let seen = format!("an agent would {change}");
    let ip = |address: &IpAddr| if address.is_ipv6() { "ip -6" } else { "ip" };
    let out = |route: &Route| route.past.map_or_else(|| device.to_owned(), |oif| facts.interface(oif));
    let (id, what, mend) = match change {
        SetDevice(wanted) => return otherwise(facts, device, wanted),
        CreateDevice(_) => (
            "device-missing",
            format!("the vxlan device {device} is missing, or cannot become what it is to be"),
            restart(),
        ),
        // What takes its place is told.
        DeleteDevice(_) => return vec![],
        AddAddress(address) => (
            "address-missing",
            format!("{device} lacks the address {address}"),
            format!("ip address add {address}/{} dev {device}", full_length(*address)),
        ),
        RemoveAddress(address) => (
            "address-stale",
            format!("{device} has the address {address}, which is not this node's"),
            format!("ip address del {address}/{} dev {device}", full_length(*address)),
        ),
        PutNeighbour(address, mac) => (
            "neighbour-missing",
            format!("the neighbour entry for {address} is missing or wrong: packets to that node are lost"),
            format!("ip neigh replace {address} lladdr {mac} dev {device} nud permanent"),
        ),
        RemoveNeighbour(address) => (
            "neighbour-stale",
            format!("there is a neighbour entry for {address}, which is no node's any more"),
            format!("ip neigh del {address} dev {device}"),
        ),
        PutFdb(mac, vtep) => (
            "fdb-missing",
            format!("the forwarding entry for {mac} is missing or wrong: packets to VTEP {vtep} are lost"),
            format!("bridge fdb replace {mac} dev {device} dst {vtep} self permanent"),
        ),
        RemoveFdb(mac) => (
            "fdb-stale",
            format!("there is a forwarding entry for {mac}, which is no node's any more"),
            format!("bridge fdb del {mac} dev {device} self"),
        ),
        AddRoute(to, route) | ReplaceRoute(to, route) => {
            let src = route.src.map(|src| format!(" src {src}")).unwrap_or_default();
            let (ip, via, out) = (ip(&route.via), route.via, out(route));
            (
                "route-missing",
                format!("the route to {to} is missing or wrong: packets to that node's pods go elsewhere"),
                format!("{ip} route replace {to} via {via} dev {out} onlink proto {ROUTE_PROTOCOL}{src}"),
            )
        }
        RemoveRoute(to, route) => (
            "route-stale",
            format!("there is a route to {to}, which is no node's any more"),
            format!("{} route del {to} dev {}", ip(&to.ip()), out(route)),
        ),
        RemoveDirectRoute(to, route) => (
            "route-stale",
            format!("there is a route to {to} past the tunnel, which flannel has left behind"),
            format!("{} route del {to} via {}", ip(&to.ip()), route.via),
        ),
        PutStation(mac, vtep) => (
            "fdb-missing",
            format!(
                "the forwarding entry for station {mac} is missing or wrong: frames to it go to all nodes"
            ),
            format!("bridge fdb replace {mac} dev {device} dst {vtep} self extern_learn"),
        ),
        RemoveStation(mac) => (
            "fdb-stale",
            format!("there is a forwarding entry for station {mac} behind what is no node's any more"),
            format!("bridge fdb del {mac} dev {device} self"),
        ),
        AddFlood(vtep) => (
            "fdb-missing",
            format!("VTEP {vtep} gets no copy of what goes to all stations"),
            format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {vtep} self permanent"),
        ),
        RemoveFlood(vtep) => (
            "fdb-stale",
            format!("{vtep}, which is no node's any more, gets a copy of what goes to all stations"),
            format!("bridge fdb del 00:00:00:00:00:00 dev {device} dst {vtep} self"),
        ),
        _ => ("bridge", "the bridge is not as the configuration asks for".to_owned(), restart()),
    };
    let severity = if id.ends_with("stale") { Severity::Warning } else { Severity::Error };
    vec![Finding::new(id, severity, what).seen(seen).mend(mend)]
}

/// The device is there, and not as it is to be.
fn otherwise(facts: &Facts, name: &str, wanted: &Device) -> Vec<Finding> {
    let Some(link) = facts.tables.link_named(name) else { return vec![] };
    let mut found = vec![];
    if link.mac != wanted.mac {
        let what = format!("the MAC of {name} is another than the other nodes send to: they are not heard");
        let evidence = format!("{} instead of {}", link.mac, wanted.mac);
        let mend = format!("ip link set dev {name} address {}", wanted.mac);
        found.push(Finding::error("vtep-mac", what).seen(evidence).mend(mend));
    }
    if link.mtu != wanted.mtu {
        let what = format!(
            "the MTU of {name} is not what the underlay leaves: packets are lost, or smaller than they could be"
        );
        let evidence = format!("{} instead of {}", link.mtu, wanted.mtu);
        let mend = format!("ip link set dev {name} mtu {}", wanted.mtu);
        found.push(Finding::error("device-mtu", what).seen(evidence).mend(mend));
    }
    if !link.up {
        let mend = format!("ip link set dev {name} up");
        found.push(Finding::error("device-down", format!("{name} is down: no packet passes")).mend(mend));
    }
    if found.is_empty() {
        let what = format!("{name} is not as an agent makes it: its alias, its outer headers or its bridge");
        found.push(Finding::warning("device-otherwise", what).mend(restart()));
    }
    found
}

/// Where no single command does.
fn restart() -> String {
    "systemctl restart vxlan-agent".to_owned()
}
