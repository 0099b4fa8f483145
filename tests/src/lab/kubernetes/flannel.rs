//! Nodes as flannel sets them up: the kernel alone, and annotations.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::PREFIX;
use crate::lab::addr::{inner4, inner6, underlay4, underlay6, vtep_mac};
use crate::lab::{DEVICE, Lab, Netns, PORT, UNDERLAY, VNI};

/// Flannel's device over IPv6.
pub const DEVICE6: &str = "flannel-v6.1";

/// MAC of a flannel node's VTEP over IPv6.
pub fn vtep_mac6(node: u8) -> String {
    format!("0e:16:00:00:00:{node:02x}")
}

/// What flannel writes on node `n`.
pub fn annotations(n: u8) -> Value {
    json!({
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, vtep_mac(n)),
        "backend-v6-data": format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, vtep_mac6(n)),
        "public-ip": underlay4(n).to_string(),
        "public-ipv6": underlay6(n).to_string(),
    })
}

/// Makes node `n` one of flannel's: devices and annotations, but no other node yet.
///
/// # Errors
/// The kernel or the API server refuses something.
pub fn set_up(lab: &Lab, n: u8) -> Result<()> {
    make_devices(lab, n)?;
    lab.kubernetes().annotate(&format!("n{n}"), &annotations(n)).map(drop)
}

/// Makes the devices of node `n`.
///
/// # Errors
/// The kernel refuses something.
pub(in crate::lab) fn make_devices(lab: &Lab, n: u8) -> Result<()> {
    let mut batch = String::new();
    for (device, local, mac, mtu) in [
        (DEVICE, underlay4(n).to_string(), vtep_mac(n), lab.spec().mtu - 50),
        (DEVICE6, underlay6(n).to_string(), vtep_mac6(n), lab.spec().mtu - 70),
    ] {
        let _ = writeln!(
            batch,
            "link add {device} address {mac} mtu {mtu} type vxlan id {VNI} dev {UNDERLAY} \
             local {local} dstport {PORT} nolearning"
        );
    }
    let _ = write!(
        batch,
        "addr add {}/32 dev {DEVICE}\naddr add {}/128 dev {DEVICE6} nodad\n\
         link set {DEVICE} up\nlink set {DEVICE6} up\n",
        inner4(n, 0),
        inner6(n, 0),
    );
    lab.node(n).ip(&batch)
}

/// Gives node `own` the neighbour, forwarding entry and route of every other node that is
/// annotated, as flannel does when it starts and when a node changes.
///
/// # Errors
/// As [`set_up`].
pub fn follow(lab: &Lab, own: u8) -> Result<()> {
    let mut remotes = vec![];
    for n in (1..=u8::try_from(lab.nodes().len())?).filter(|n| *n != own) {
        let node = lab.kubernetes().node(&format!("n{n}"))?;
        let value = |name: &str| node["metadata"]["annotations"][format!("{PREFIX}{name}")].as_str();
        for (data, ip, net, bits) in [
            ("backend-data", "public-ip", inner4(n, 0).to_string(), "24"),
            ("backend-v6-data", "public-ipv6", inner6(n, 0).to_string(), "64"),
        ] {
            let (Some(data), Some(ip)) = (value(data), value(ip)) else { continue };
            let data: Value = serde_json::from_str(data)?;
            let mac = data["VtepMAC"].as_str().context("a MAC")?.to_owned();
            remotes.push(Remote { mac, ip: ip.to_owned(), net, bits: bits.to_owned() });
        }
    }
    program(lab.node(own), &remotes)
}

/// What flannel knows of another node over one IP version.
pub(in crate::lab) struct Remote {
    /// MAC of its device.
    pub mac: String,
    /// Its underlay address.
    pub ip: String,
    /// First address of its pod subnet.
    pub net: String,
    /// Prefix length of that.
    pub bits: String,
}

/// Gives a node of flannel's the neighbour, forwarding entry and route of each of these.
///
/// # Errors
/// The kernel refuses something.
pub(in crate::lab) fn program(ns: &Netns, remotes: &[Remote]) -> Result<()> {
    let (mut batch, mut fdb) = (String::new(), String::new());
    for Remote { mac, ip, net, bits } in remotes {
        let device = if net.contains(':') { DEVICE6 } else { DEVICE };
        let _ = writeln!(batch, "neigh replace {net} lladdr {mac} dev {device} nud permanent");
        let _ = writeln!(batch, "route replace {net}/{bits} via {net} dev {device} onlink");
        let _ = writeln!(fdb, "fdb replace {mac} dev {device} self permanent dst {ip}");
    }
    ns.feed("bridge", &["-batch", "-"], &fdb)?;
    ns.ip(&batch)
}
