//! Entries of the maps in words.

use std::net::IpAddr;

use vxlan_ebpf_common::flow::seen;
use vxlan_ebpf_common::maps::{
    Endpoint, Flow, FlowKey, KERNEL_VTEP, Key6, LOCAL_VTEP, MacKey, Mode, NO_NETWORK, Network, NextHop, Node,
    Station, Vtep, VtepId, endpoint, moved, names, vtep,
};

use super::report::Looked;
use crate::datapath::{LookUp, Written};
use crate::net::Mac;

/// Name of an interface, or its index where it has none.
pub(super) fn interface(ifindex: u32) -> String {
    let name = nix::net::if_::if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("#{ifindex}"))
}

/// Map, key and value of a look-up.
pub(super) fn looked_up(look_up: &LookUp) -> Looked {
    let of = |map, key: String, value: Option<String>| Looked {
        map,
        key,
        found: value.is_some(),
        value: value.unwrap_or_else(|| "no entry".to_owned()),
    };
    let family = |v4, v6, ip: &IpAddr| if ip.is_ipv4() { v4 } else { v6 };
    match look_up {
        LookUp::Node(node) => of(names::NODE, String::new(), Some(of_node(node))),
        LookUp::Off(id, off) => {
            let value = if *off { "switched off" } else { "switched on" };
            of(names::SWITCH, format!("network {id}"), Some(value.to_owned()))
        }
        LookUp::Generation(id, number) => of(
            names::SWITCH,
            format!("network {id}, flows"),
            Some(format!("those of generation {number} count")),
        ),
        LookUp::Network(id, network) => {
            let value = (network.id != NO_NETWORK).then(|| of_network(network));
            of(names::NETWORKS, id.to_string(), value)
        }
        LookUp::Watch(watch) => {
            let value = format!(
                "an agent looks out for packet filters until {} s after boot",
                watch.until / 1_000_000_000
            );
            of(names::WATCH, String::new(), Some(value))
        }
        LookUp::Vni(key, found) => {
            let value = found.map(|id| format!("network {id}"));
            of(names::VNIS, format!("VNI {}, port {}", key.vni, key.port.get()), value)
        }
        LookUp::Link(index, found) => {
            let value = found.map(|link| format!("network {}, flags 0x{:x}", link.network, link.flags));
            of(names::LINKS, interface(*index), value)
        }
        LookUp::Subnet(_, prefix, found) => {
            let map = family(names::SUBNETS4, names::SUBNETS6, &prefix.ip());
            of(map, prefix.to_string(), found.map(of_vtep_id))
        }
        LookUp::Route(_, ip, found) => {
            let value =
                found.map(|(prefix, id)| format!("{prefix} is the longest prefix: {}", of_vtep_id(id)));
            of(family(names::ROUTES4, names::ROUTES6, ip), ip.to_string(), value)
        }
        LookUp::Vtep(id, found) => {
            let value = found.filter(|vtep| vtep.family != 0).map(|vtep| of_vtep(&vtep));
            of(names::VTEPS, id.to_string(), value)
        }
        LookUp::VtepId(Key6 { addr, .. }, found) => {
            of(names::VTEP_IDS, IpAddr::from(*addr).to_string(), found.map(of_vtep_id))
        }
        LookUp::Station(key, found) => of(names::STATIONS, of_mac(key), found.map(|s| of_station(&s))),
        LookUp::Endpoint(_, ip, found) => {
            let map = family(names::ENDPOINTS4, names::ENDPOINTS6, ip);
            of(map, ip.to_string(), found.map(|e| of_endpoint(&e)))
        }
        LookUp::Flow(key, found) => of(names::FLOWS, of_flow_key(key), found.map(|f| of_flow(&f))),
    }
}

fn of_node(node: &Node) -> String {
    match node.only {
        NO_NETWORK => "interface or VNI say which network it is".to_owned(),
        only => format!("the only network is number {only}"),
    }
}

fn of_network(network: &Network) -> String {
    let mode = match network.mode {
        mode if mode == Mode::Direct as u8 => "direct",
        mode if mode == Mode::Verified as u8 => "verified",
        _ => "off",
    };
    let name = network.name().unwrap_or("?");
    format!(
        "{name}, VNI {}, port {}, mode {mode}, flags 0x{:x}",
        network.vni,
        network.port().get(),
        network.flags
    )
}

fn of_vtep_id(id: VtepId) -> String {
    match id {
        LOCAL_VTEP => "this node".to_owned(),
        KERNEL_VTEP => "only the kernel can route there".to_owned(),
        id => format!("VTEP {id}"),
    }
}

/// The on-link neighbour that leads to a VTEP; none: the kernel looks for it.
pub(super) fn next_hop(hop: &NextHop) -> Option<IpAddr> {
    let [a, b, c, d, ..] = hop.addr;
    match i32::try_from(hop.family) {
        Ok(nix::libc::AF_INET) => Some(IpAddr::from([a, b, c, d])),
        Ok(nix::libc::AF_INET6) => Some(IpAddr::from(hop.addr)),
        _ => None,
    }
}

fn of_vtep(entry: &Vtep) -> String {
    let way = match (entry.ifindex, next_hop(&entry.next_hop)) {
        (0, _) => "no way there that a program may use".to_owned(),
        (index, Some(hop)) => format!("next hop {hop} by {}", interface(index)),
        (index, None) => format!("by {}, the kernel finds the next hop", interface(index)),
    };
    let flags = [
        (vtep::IPSEC_OUT, "IPsec out"),
        (vtep::IPSEC_IN, "IPsec in"),
        (vtep::HOOKED_OUT, "hooked"),
        (vtep::DIRECT, "on the same link: direct"),
    ];
    let address = IpAddr::from(entry.addr);
    let value = format!("{address}, MAC {}, {way}, MTU {}", Mac(entry.mac), entry.mtu);
    with_flags(value, &flags, entry.flags)
}

fn with_flags(mut value: String, names: &[(u8, &str)], flags: u8) -> String {
    for (_, name) in names.iter().filter(|(flag, _)| flags & flag != 0) {
        value += ", ";
        value += name;
    }
    value
}

fn of_mac(key: &MacKey) -> String {
    let mac = Mac(key.mac).to_string();
    if key.vlan == 0 { mac } else { format!("{mac}, VLAN {}", key.vlan) }
}

fn of_station(station: &Station) -> String {
    let place = match station.ifindex {
        0 => format!("behind {}", of_vtep_id(station.vtep)),
        index => format!("behind port {}, MTU {}", interface(index), station.mtu),
    };
    match station.moved {
        moved::AWAY => place + ", seen elsewhere since",
        moved::BACK => place + ", seen elsewhere and back since",
        _ => place,
    }
}

fn of_endpoint(entry: &Endpoint) -> String {
    let flags = [
        (endpoint::DISPUTED, "disputed"),
        (endpoint::HOOKED_OUT, "hooked out"),
        (endpoint::HOOKED_IN, "hooked in"),
    ];
    let bridge =
        if entry.bridge == 0 { String::new() } else { format!(", bridge {}", interface(entry.bridge)) };
    let (mac, gateway) = (Mac(entry.mac), Mac(entry.gateway_mac));
    let value = format!(
        "pod at {}, MAC {mac}, gateway {gateway}{bridge}, MTU {}",
        interface(entry.ifindex),
        entry.mtu
    );
    with_flags(value, &flags, entry.flags)
}

/// Protocol, the pod's end, the other end.
pub(super) fn of_flow_key(key: &FlowKey) -> String {
    let (local, remote) = (IpAddr::from(key.local), IpAddr::from(key.remote));
    let protocol = match key.protocol {
        0 => return format!("anything between {local} and {remote}"),
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        other => format!("protocol {other}"),
    };
    let (here, there) = (key.local_port.get(), key.remote_port.get());
    format!("{protocol} between {local} port {here} and {remote} port {there}")
}

const fn of_direction(state: u8) -> &'static str {
    match state {
        seen::PENDING => "pending",
        seen::VERIFIED => "verified",
        _ => "not seen",
    }
}

/// How far each direction is verified.
pub(super) fn of_flow(flow: &Flow) -> String {
    let (out, back) = (of_direction(flow.egress.state), of_direction(flow.ingress.state));
    format!("generation {}, from the pod {out}, to the pod {back}", flow.generation)
}

/// What the engine has written since `before`, a sentence for each entry.
pub(super) fn changes(before: &Written, after: &Written) -> Vec<String> {
    let mut all = vec![];
    for (key, flow) in &after.flows {
        let was = before.flows.get(key).copied().flatten();
        let of = |flow: &Option<Flow>| flow.as_ref().map_or_else(|| "no entry".to_owned(), of_flow);
        if *flow != was {
            all.push(format!("FLOWS {}: {}, before {}", of_flow_key(key), of(flow), of(&was)));
        }
    }
    for (key, station) in &after.stations {
        if before.stations.get(key) != Some(station) {
            all.push(format!(
                "STATIONS {}: {}, the kernel's bridge is given a frame",
                of_mac(key),
                of_station(station)
            ));
        }
    }
    for (id, entry) in &after.vteps {
        if before.vteps.get(id) != Some(entry) {
            all.push(format!(
                "VTEPS {id}: the host stack has let a packet in from {}",
                IpAddr::from(entry.addr)
            ));
        }
    }
    all
}
