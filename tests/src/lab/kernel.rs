//! Nodes without an agent: plain routes, or a kernel vxlan device as flannel sets it up.

use std::fmt::Write as _;

use anyhow::Result;

use super::addr::{inner4, inner6, underlay, underlay4, underlay6, vtep_mac};
use super::{DEVICE, LabSpec, Netns, PORT, UNDERLAY, VNI};

/// Routes node `own`'s packets to all other pod subnets over the underlay.
pub(super) fn route_plainly(ns: &Netns, own: u8, count: u8) -> Result<()> {
    let mut batch = String::new();
    for n in (1..=count).filter(|n| *n != own) {
        let (net4, via4) = (inner4(n, 0), underlay4(n));
        let (net6, via6) = (inner6(n, 0), underlay6(n));
        let _ = writeln!(batch, "route add {net4}/24 via {via4} dev {UNDERLAY}");
        let _ = writeln!(batch, "route add {net6}/64 via {via6} dev {UNDERLAY}");
    }
    ns.ip(&batch)
}

/// Makes node `own`'s vxlan device, and for every other node the permanent neighbours, the FDB
/// entry and the routes.
pub(super) fn set_up_vxlan(ns: &Netns, spec: &LabSpec, own: u8, count: u8) -> Result<()> {
    let local = underlay(spec.underlay, own);
    let mtu = spec.mtu - spec.underlay.overhead();
    let mut batch = format!(
        "link add {DEVICE} address {mac} mtu {mtu} type vxlan id {VNI} dev {UNDERLAY} \
         local {local} dstport {PORT} nolearning\n\
         addr add {}/32 dev {DEVICE}\n\
         addr add {}/128 dev {DEVICE} nodad\n\
         link set {DEVICE} up\n",
        inner4(own, 0),
        inner6(own, 0),
        mac = vtep_mac(own),
    );
    let mut fdb = String::new();
    for n in (1..=count).filter(|n| *n != own) {
        let (net4, net6, mac) = (inner4(n, 0), inner6(n, 0), vtep_mac(n));
        let _ = writeln!(batch, "neigh add {net4} lladdr {mac} dev {DEVICE} nud permanent");
        let _ = writeln!(batch, "neigh add {net6} lladdr {mac} dev {DEVICE} nud permanent");
        let _ = writeln!(batch, "route add {net4}/24 via {net4} dev {DEVICE} onlink");
        let _ = writeln!(batch, "route add {net6}/64 via {net6} dev {DEVICE} onlink");
        let remote = underlay(spec.underlay, n);
        let _ = writeln!(fdb, "fdb add {mac} dev {DEVICE} self permanent dst {remote}");
    }
    ns.ip(&batch)?;
    ns.feed("bridge", &["-batch", "-"], &fdb).map(|_| ())
}
