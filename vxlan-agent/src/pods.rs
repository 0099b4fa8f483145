//! Local pods, found in the kernel's tables alone, so that any CNI plugin that makes veths will do.
//!
//! A pod's host side is a veth whose other end is in another network namespace and that is
//! - the device of a route to a single address of an own subnet (as the `ptp` plugin makes it), or
//! - a port of a bridge that has an address in an own subnet (`bridge`).
//!
//! Its addresses and MAC are those that the kernel resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::maps::Endpoint;

use crate::kernel::{Headroom, Kind, Link, Tables};
use crate::net::{IfIndex, Mac, Mtu, is_host};

/// What there is of pods on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Host sides of pods' veths, also of pods without a known address.
    pub veths: BTreeSet<IfIndex>,
    /// Pods by address.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Head-room that pod bridges should have.
    pub headroom: BTreeMap<IfIndex, Headroom>,
}

/// Where to look for pods.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// What netlink shows.
    pub tables: &'a Tables,
    /// The node's own pod subnets.
    pub subnets: &'a [IpNetwork],
    /// Never a pod, even if it is a veth.
    pub underlays: &'a BTreeSet<IfIndex>,
    /// The endpoints of before: they outlive what the bridge forgets.
    pub before: &'a BTreeMap<IpAddr, Endpoint>,
}

impl Search<'_> {
    /// Finds the pods.
    pub fn run(&self) -> Pods {
        let mut pods = Pods::default();
        for route in &self.tables.routes {
            if let Some(veth) = self.routed_veth(route) {
                pods.veths.insert(veth.index);
                let ip = route.to.ip();
                let neighbour = self.tables.neighbours.get(&(veth.index, ip));
                pods.endpoints.extend(neighbour.map(|n| (ip, endpoint(veth, n.mac, veth.mac, IfIndex(0)))));
            }
        }
        for bridge in self.tables.links.values().filter(|link| self.is_pod_bridge(link)) {
            self.bridged(bridge, &mut pods);
        }
        pods
    }

    fn is_pod_veth(&self, link: &Link) -> bool {
        link.kind == Kind::Veth && link.peer_elsewhere && !self.underlays.contains(&link.index)
    }

    fn is_pod_address(&self, ip: IpAddr) -> bool {
        self.subnets.iter().any(|subnet| subnet.contains(ip))
    }

    fn routed_veth(&self, route: &crate::kernel::RouteEntry) -> Option<&Link> {
        let single = is_host(&route.to) && route.via.is_none() && self.is_pod_address(route.to.ip());
        let link = self.tables.links.get(&route.oif?)?;
        (single && link.master.is_none() && self.is_pod_veth(link)).then_some(link)
    }

    fn is_pod_bridge(&self, link: &Link) -> bool {
        let mut addresses = self.tables.addresses_of(link.index);
        link.kind == Kind::Bridge && addresses.any(|a| self.is_pod_address(a.ip))
    }

    fn bridged(&self, bridge: &Link, pods: &mut Pods) {
        let ports = || self.tables.ports_of(bridge.index);
        pods.veths.extend(ports().filter(|port| self.is_pod_veth(port)).map(|port| port.index));
        let others = ports().filter(|port| !matches!(port.kind, Kind::Vxlan(_)));
        if let Some(mtu) = others.map(|port| port.mtu).min() {
            pods.headroom.insert(bridge.index, Headroom { mtu, ready: true });
        }
        let ports_by_mac = self.learnt(bridge.index);
        let neighbours = self.tables.neighbours.range((bridge.index, IpAddr::from([0; 4]))..);
        for ((_, ip), neighbour) in neighbours.take_while(|((device, _), _)| *device == bridge.index) {
            let own = self.tables.addresses_of(bridge.index).any(|a| a.ip == *ip);
            if own || !self.is_pod_address(*ip) {
                continue;
            }
            let port = self.port(bridge.index, *ip, neighbour.mac, &ports_by_mac);
            let veth =
                port.and_then(|port| self.tables.links.get(&port)).filter(|link| self.is_pod_veth(link));
            pods.endpoints.extend(veth.map(|v| (*ip, endpoint(v, neighbour.mac, bridge.mac, bridge.index))));
        }
    }

    /// MACs that `bridge` has learnt or been told, with their ports.
    fn learnt(&self, bridge: IfIndex) -> BTreeMap<Mac, IfIndex> {
        let entries = self.tables.fdb.iter().filter(|(_, e)| e.master == Some(bridge));
        // A port's own address shows as permanent; a pod's may be that only if put there by hand,
        // and then it is not the address of the port.
        let foreign = entries.filter(|((port, mac, _), entry)| {
            !entry.permanent
                || self.tables.links.get(port).is_some_and(|link| link.mac != *mac && *port != bridge)
        });
        foreign.map(|((port, mac, _), _)| (*mac, *port)).collect()
    }

    /// The port of `bridge` behind which `mac` is: where the bridge learnt it, or else where it was
    /// before. For packets on the fast path never reach the bridge, so that it forgets a pod that
    /// is busy as if it were silent.
    fn port(
        &self,
        bridge: IfIndex,
        ip: IpAddr,
        mac: Mac,
        learnt: &BTreeMap<Mac, IfIndex>,
    ) -> Option<IfIndex> {
        learnt.get(&mac).copied().or_else(|| {
            let before = self.before.get(&ip)?;
            let port = IfIndex(before.ifindex);
            let still = self.tables.links.get(&port).is_some_and(|link| link.master == Some(bridge));
            (before.mac == mac.0 && before.bridge == bridge.0 && still).then_some(port)
        })
    }
}

fn endpoint(veth: &Link, mac: Mac, gateway: Mac, bridge: IfIndex) -> Endpoint {
    Endpoint {
        ifindex: veth.index.0,
        mac: mac.0,
        gateway_mac: gateway.0,
        bridge: bridge.0,
        mtu: Mtu::saturating_u16(veth.mtu),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests;
