//! Changes of the datapath, for people. Equal descriptions mean changes of the same thing.

use std::net::IpAddr;

use vxlan_ebpf_common::maps::Station;

use crate::datapath::Change;
use crate::net::Mac;

/// What `change` does, as "cannot …" would continue.
pub(super) fn describe(change: &Change) -> String {
    match change {
        Change::SetNode(_) => "write NODE".to_owned(),
        Change::PutNetwork(_, network) => {
            format!("write the parameters of network {}", network.name().unwrap_or_default())
        }
        Change::DeleteNetwork(id) => format!("clear the parameters of network {id}"),
        Change::PutVni(key, id) => {
            format!("put VNI {} at UDP port {} of network {id}", key.vni, key.port.get())
        }
        Change::DeleteVni(key) => format!("delete VNI {} at UDP port {}", key.vni, key.port.get()),
        Change::PutVtep(id, vtep) => format!("put VTEP {id} ({})", IpAddr::from(vtep.addr)),
        Change::DeleteVtep(id) => format!("delete VTEP {id}"),
        Change::PutVtepId(addr, id) => format!("put the id {id} of VTEP {}", IpAddr::from(addr.addr)),
        Change::DeleteVtepId(addr) => {
            format!("delete the id of VTEP {} in network {}", IpAddr::from(addr.addr), addr.network)
        }
        Change::PutStation(key, station) => {
            let Station { vtep, ifindex, .. } = station;
            format!("put MAC {} of network {} (VTEP {vtep}, port {ifindex})", Mac(key.mac), key.network)
        }
        Change::DeleteStation(key) => format!("delete MAC {} of network {}", Mac(key.mac), key.network),
        Change::PutRoute((_, to), id) => format!("put route {to} to VTEP {id}"),
        Change::PutSubnet((_, subnet), id) => format!("put subnet {subnet} to VTEP {id}"),
        Change::DeleteSubnet((network, subnet)) => format!("delete subnet {subnet} in network {network}"),
        Change::DeleteRoute((network, to)) => format!("delete route {to} in network {network}"),
        Change::PutEndpoint((_, ip), endpoint) => format!("put pod {ip} on interface {}", endpoint.ifindex),
        Change::DeleteEndpoint((network, ip)) => format!("delete pod {ip} in network {network}"),
        Change::PutLink(link, _) => format!("put what is known of interface {link}"),
        Change::DeleteLink(link) => format!("delete what is known of interface {link}"),
        Change::Attach(a) => format!("attach {} to interface {}", a.hook.label(), a.ifindex),
        Change::Detach(a) => format!("detach {} from interface {}", a.hook.label(), a.ifindex),
    }
}
