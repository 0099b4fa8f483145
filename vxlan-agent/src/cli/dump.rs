//! `dump`: what the maps hold.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;
use vxlan_ebpf_common::maps::{
    Counter, Endpoint, KERNEL_VTEP, LOCAL_VTEP, MacKey, NO_NETWORK, NetworkId, NextHop, Station, Vtep, VtepId,
};
use vxlan_ebpf_common::{Disposition, Hook, Reason};

use super::{Of, Subject, What, print_rows};
use crate::datapath::{DatapathState, Pins};
use crate::net::{Mac, interface_name as name};

#[derive(Serialize)]
struct RouteRow {
    to: IpNetwork,
    vtep_id: VtepId,
    vtep: Option<IpAddr>,
    local: bool,
}

#[derive(Serialize)]
struct VtepRow {
    id: VtepId,
    address: IpAddr,
    mac: Mac,
    interface: String,
    ifindex: u32,
    next_hop: Option<IpAddr>,
}

#[derive(Serialize)]
struct StationRow {
    vni: u32,
    mac: Mac,
    vtep_id: VtepId,
    /// The node that it is behind; none of others' stands for this one.
    vtep: Option<IpAddr>,
    /// The port of this node that it is behind.
    port: Option<String>,
}

#[derive(Serialize)]
struct EndpointRow {
    address: IpAddr,
    interface: String,
    ifindex: u32,
    mac: Mac,
    gateway_mac: Mac,
    bridge: Option<String>,
    mtu: u16,
    /// Why it is the kernel's, in part or altogether.
    kernel: Vec<&'static str>,
}

#[derive(Serialize)]
struct CounterRow {
    hook: &'static str,
    reason: &'static str,
    disposition: &'static str,
    packets: u64,
    bytes: u64,
    meaning: &'static str,
}

pub(super) fn show(subject: &Subject, what: What, json: bool) -> anyhow::Result<()> {
    let pins = subject.pins()?;
    match what {
        What::Routes => routes(subject, &pins, json),
        What::Vteps => vteps(subject, &pins, json),
        What::Stations => stations(subject, &pins, json),
        What::Endpoints => endpoints(subject, &pins, json),
        What::Counters => counters(subject, &pins, json),
    }
}

/// Rows that `of` makes of what the maps hold of each network.
fn rows<R>(
    subject: &Subject,
    pins: &Pins,
    of: impl Fn(&DatapathState) -> Vec<R>,
) -> anyhow::Result<Vec<Of<R>>> {
    let (state, mut rows) = (pins.state()?, vec![]);
    for (name, id) in subject.numbered(pins)? {
        let part = state.of(id);
        rows.extend(of(&part).into_iter().map(|row| Of { network: name.to_owned(), row }));
    }
    Ok(rows)
}

fn routes(subject: &Subject, pins: &Pins, json: bool) -> anyhow::Result<()> {
    let of = |state: &DatapathState| {
        let row = |((_, to), id): (&(NetworkId, IpNetwork), &VtepId)| RouteRow {
            to: *to,
            vtep_id: *id,
            vtep: state.vteps.get(id).map(|vtep| vtep.addr.into()),
            local: *id == LOCAL_VTEP,
        };
        state.routes.iter().map(row).collect()
    };
    print_rows(subject, json, &rows(subject, pins, of)?, ["to", "vtep"], |r| {
        let unknown = || match r.vtep_id {
            _ if r.local => "this node".to_owned(),
            KERNEL_VTEP => "the kernel".to_owned(),
            id => format!("{id} (not programmed)"),
        };
        [r.to.to_string(), r.vtep.map_or_else(unknown, |vtep| vtep.to_string())]
    })
}

fn vteps(subject: &Subject, pins: &Pins, json: bool) -> anyhow::Result<()> {
    let of = |state: &DatapathState| {
        let row = |(id, vtep): (&VtepId, &Vtep)| VtepRow {
            id: *id,
            address: vtep.addr.into(),
            mac: Mac(vtep.mac),
            interface: name(vtep.ifindex),
            ifindex: vtep.ifindex,
            next_hop: next_hop(&vtep.next_hop),
        };
        state.vteps.iter().map(row).collect()
    };
    let head = ["id", "address", "mac", "interface", "next hop"];
    print_rows(subject, json, &rows(subject, pins, of)?, head, |r| {
        let hop = r.next_hop.map_or_else(|| "kernel".to_owned(), |hop| hop.to_string());
        [r.id.to_string(), r.address.to_string(), r.mac.to_string(), r.interface.clone(), hop]
    })
}

fn stations(subject: &Subject, pins: &Pins, json: bool) -> anyhow::Result<()> {
    let of = |state: &DatapathState| {
        let vni = |id: NetworkId| state.networks.get(&id).map_or(0, |network| network.vni);
        let row = |(key, station): (&MacKey, &Station)| StationRow {
            vni: vni(key.network),
            mac: Mac(key.mac),
            vtep_id: station.vtep,
            vtep: state.vteps.get(&station.vtep).map(|vtep| vtep.addr.into()),
            port: (station.ifindex != 0).then(|| name(station.ifindex)),
        };
        state.stations.iter().map(row).collect()
    };
    print_rows(subject, json, &rows(subject, pins, of)?, ["vni", "mac", "behind"], |r| {
        let vtep = || r.vtep.map_or_else(|| format!("VTEP {}", r.vtep_id), |vtep| vtep.to_string());
        [r.vni.to_string(), r.mac.to_string(), r.port.clone().unwrap_or_else(vtep)]
    })
}

fn endpoints(subject: &Subject, pins: &Pins, json: bool) -> anyhow::Result<()> {
    let of = |state: &DatapathState| {
        let row = |((_, address), e): (&(NetworkId, IpAddr), &Endpoint)| EndpointRow {
            address: *address,
            interface: name(e.ifindex),
            ifindex: e.ifindex,
            mac: Mac(e.mac),
            gateway_mac: Mac(e.gateway_mac),
            bridge: (e.bridge != 0).then(|| name(e.bridge)),
            mtu: e.mtu,
            kernel: left_to_kernel(e.flags),
        };
        state.endpoints.iter().map(row).collect()
    };
    let head = ["address", "interface", "mac", "gateway", "bridge", "mtu", "kernel's"];
    print_rows(subject, json, &rows(subject, pins, of)?, head, |r| {
        let bridge = r.bridge.clone().unwrap_or_else(|| "-".to_owned());
        let macs = [r.mac, r.gateway_mac].map(|mac| mac.to_string());
        let [mac, gateway] = macs;
        let kernel = if r.kernel.is_empty() { "-".to_owned() } else { r.kernel.join(", ") };
        [r.address.to_string(), r.interface.clone(), mac, gateway, bridge, r.mtu.to_string(), kernel]
    })
}

/// The names of an endpoint's flags.
fn left_to_kernel(flags: u8) -> Vec<&'static str> {
    use vxlan_ebpf_common::maps::endpoint::{DISPUTED, HOOKED_IN, HOOKED_OUT};
    let names = [(DISPUTED, "disputed"), (HOOKED_OUT, "hooked out"), (HOOKED_IN, "hooked in")];
    names.into_iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| name).collect()
}

fn counters(subject: &Subject, pins: &Pins, json: bool) -> anyhow::Result<()> {
    let row = |(hook, reason, counter): (Hook, Reason, Counter)| CounterRow {
        hook: hook.label(),
        reason: reason.label(),
        disposition: disposition(reason.disposition()),
        packets: counter.packets,
        bytes: counter.bytes,
        meaning: reason.describe().trim(),
    };
    let mut rows = vec![];
    for (name, id) in subject.numbered(pins)? {
        let counted = pins.counters(id)?.into_iter();
        rows.extend(counted.map(|counter| Of { network: name.to_owned(), row: row(counter) }));
    }
    if subject.all {
        // Packets of no network.
        let counted = pins.counters(NO_NETWORK)?.into_iter();
        rows.extend(counted.map(|counter| Of { network: "-".to_owned(), row: row(counter) }));
    }
    print_rows(subject, json, &rows, ["hook", "reason", "what", "packets", "bytes", "meaning"], |r| {
        let numbers = [r.packets, r.bytes].map(|n| n.to_string());
        let [packets, bytes] = numbers;
        [r.hook.into(), r.reason.into(), r.disposition.into(), packets, bytes, r.meaning.into()]
    })
}

const fn disposition(disposition: Disposition) -> &'static str {
    match disposition {
        Disposition::Forwarded => "fast",
        Disposition::Kernel => "kernel",
        Disposition::Malformed => "malformed",
        Disposition::Violation => "violation",
        Disposition::Dropped => "dropped",
    }
}

fn next_hop(hop: &NextHop) -> Option<IpAddr> {
    let [a, b, c, d, ..] = hop.addr;
    match i32::try_from(hop.family) {
        Ok(nix::libc::AF_INET) => Some(IpAddr::from([a, b, c, d])),
        Ok(nix::libc::AF_INET6) => Some(IpAddr::from(hop.addr)),
        _ => None,
    }
}
