//! Changes of the datapath, for people. Equal descriptions mean changes of the same thing.

use std::net::IpAddr;

use crate::datapath::Change;
use crate::net::Mac;

/// What `change` does, as "cannot …" would continue.
pub(super) fn describe(change: &Change) -> String {
    match change {
        Change::SetConfig(_) => "write the network's parameters to CONFIG".to_owned(),
        Change::PutVtep(id, vtep) => format!("put VTEP {id} ({})", IpAddr::from(vtep.addr)),
        Change::DeleteVtep(id) => format!("delete VTEP {id}"),
        Change::PutVtepId(addr, id) => format!("put the id {id} of VTEP {}", IpAddr::from(*addr)),
        Change::DeleteVtepId(addr) => format!("delete the id of VTEP {}", IpAddr::from(*addr)),
        Change::PutMac(key, id) => format!("put MAC {} of VTEP {id}", Mac(key.mac)),
        Change::DeleteMac(key) => format!("delete MAC {}", Mac(key.mac)),
        Change::PutRoute(to, id) => format!("put route {to} to VTEP {id}"),
        Change::DeleteRoute(to) => format!("delete route {to}"),
        Change::PutEndpoint(ip, endpoint) => format!("put pod {ip} on interface {}", endpoint.ifindex),
        Change::DeleteEndpoint(ip) => format!("delete pod {ip}"),
        Change::PutVeth(veth, _) => format!("put what is known of the pod on interface {veth}"),
        Change::DeleteVeth(veth) => format!("delete what is known of the pod on interface {veth}"),
        Change::Attach(a) => format!("attach {} to interface {}", a.hook.label(), a.ifindex),
        Change::Detach(a) => format!("detach {} from interface {}", a.hook.label(), a.ifindex),
    }
}
