//! Local pods, found in the kernel's tables alone, so that any CNI plugin that makes veths will do.
//!
//! A pod's host side is a veth whose other end is in another network namespace and that is
//! - the device of a route to a single address of an own subnet (as the `ptp` plugin makes it), or
//! - a port of a bridge that has an address in an own subnet (`bridge`).
//!
//! Its addresses and MAC are those that the kernel resolved.
//!
//! Whoever answers first is believed, but not for ever: an address that another pod claims while the pod that
//! had it is still there is in dispute, and whatever has to do with it is the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::maps::{Endpoint, Family, LinkEntry, NetworkId, endpoint, link, tick_mark};

use crate::kernel::{Headroom, Kind, Link, Tables};
use crate::net::{IfIndex, Mac, Mtu, family, is_host};

mod recent;

pub use recent::{Patience, Recent};

/// What there is of pods on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pods {
    /// Host sides of pods' veths, also of pods without a known address, and what is known of the pods.
    pub veths: BTreeMap<IfIndex, LinkEntry>,
    /// Pods by address.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    /// What the kernel says of each disputed address at the moment.
    pub claims: BTreeMap<IpAddr, Claim>,
    /// Head-room that pod bridges should have.
    pub headroom: BTreeMap<IfIndex, Headroom>,
}

/// What the kernel has resolved an address to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The MAC.
    pub mac: Mac,
    /// The bridge's port that it was learnt at, if it was.
    pub port: Option<IfIndex>,
}

/// Where to look for pods.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Whose pods.
    pub network: NetworkId,
    /// What netlink shows.
    pub tables: &'a Tables,
    /// The node's own pod subnets.
    pub subnets: &'a [IpNetwork],
    /// Never a pod, even if it is a veth.
    pub underlays: &'a BTreeSet<IfIndex>,
    /// The endpoints of before: they outlive what the bridge forgets.
    pub before: &'a BTreeMap<IpAddr, Endpoint>,
    /// What was known of pods before.
    pub veths_before: &'a BTreeMap<IfIndex, LinkEntry>,
    /// What has been so for long enough.
    pub patience: &'a Patience,
}

impl Search<'_> {
    /// Finds the pods.
    pub fn run(&self) -> Pods {
        let mut pods = Pods::default();
        for route in self.tables.routes_to_hosts() {
            if let Some(veth) = self.routed_veth(route) {
                pods.veths.insert(veth.index, self.new_link());
                let ip = route.to.ip();
                if let Some(neighbour) = self.tables.neighbours.get(&(veth.index, ip)) {
                    let endpoint = endpoint(veth, neighbour.mac, veth.mac, IfIndex(0));
                    // Of two routes the kernel takes the one with the lower metric, which comes first here.
                    pods.endpoints.entry(ip).or_insert(endpoint);
                }
            }
        }
        for bridge in self.tables.addressed_bridges().filter(|link| self.is_pod_bridge(link)) {
            self.bridged(bridge, &mut pods);
        }
        self.judge(&mut pods);
        pods
    }

    /// Finds out what may be held against each pod. An address counts once it is in the maps: a pod is not held
    /// to one that found no place there.
    fn judge(&self, pods: &mut Pods) {
        for (index, known) in &mut pods.veths {
            let before = self.veths_before.get(index).copied();
            known.flags = before.map_or(link::NEW, |before| before.flags & !(link::OWNS4 | link::OWNS6));
            if self.patience.grown.contains(index) {
                known.flags &= !link::NEW;
            }
        }
        let mut counts: BTreeMap<(IfIndex, bool), usize> = BTreeMap::new();
        let same = |ip, e: &Endpoint| self.before.get(ip).is_some_and(|before| before.ifindex == e.ifindex);
        let undisputed =
            pods.endpoints.iter().filter(|(ip, e)| e.flags & endpoint::DISPUTED == 0 && same(ip, e));
        for (ip, endpoint) in undisputed {
            let index = IfIndex(endpoint.ifindex);
            let Some(known) = pods.veths.get_mut(&index) else { continue };
            let count = counts.entry((index, ip.is_ipv4())).or_default();
            *count += 1;
            let (owns, had, several) = match family(*ip) {
                Family::V4 => (link::OWNS4, link::HAD4, link::SEVERAL4),
                Family::V6 => (link::OWNS6, link::HAD6, link::SEVERAL6),
            };
            known.flags |= owns | had | if *count > 1 { several } else { 0 };
        }
    }

    fn new_link(&self) -> LinkEntry {
        LinkEntry { network: self.network, flags: 0 }
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
        let veths = ports().filter(|port| self.is_pod_veth(port));
        pods.veths.extend(veths.map(|port| (port.index, self.new_link())));
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
            let claim = Claim { mac: neighbour.mac, port: ports_by_mac.get(&neighbour.mac).copied() };
            let Some((veth, mac, disputed)) = self.owner(bridge, *ip, claim) else { continue };
            let flags = if disputed { endpoint::DISPUTED } else { 0 };
            pods.endpoints.insert(*ip, Endpoint { flags, ..endpoint(veth, mac, bridge.mac, bridge.index) });
            if disputed {
                pods.claims.insert(*ip, claim);
            }
        }
    }

    /// The pod that has `ip`, its MAC, and whether that is in dispute.
    ///
    /// A pod can make the kernel believe anything of its neighbours. So who had the address before keeps it
    /// while its veth is there: any answer of another is a dispute, which ends when the kernel's tables have
    /// said for a while what they said before it, and never in favour of who began it.
    fn owner(&self, bridge: &Link, ip: IpAddr, claim: Claim) -> Option<(&Link, Mac, bool)> {
        let Some((holder, before)) = self.holder(bridge, ip) else {
            let veth = self.tables.links.get(&claim.port?).filter(|link| self.is_pod_veth(link))?;
            return Some((veth, claim.mac, false));
        };
        // The bridge forgets a pod that is busy as if it were silent: packets on the fast path do not reach it.
        let agreed = match claim.port {
            Some(port) => port == holder.index,
            None => claim.mac.0 == before.mac,
        };
        let was_disputed = before.flags & endpoint::DISPUTED != 0;
        match agreed {
            true => Some((holder, claim.mac, was_disputed && !self.patience.calm.contains(&ip))),
            false => Some((holder, Mac(before.mac), true)),
        }
    }

    /// The port of `bridge` whose pod had `ip` before, if it is still there.
    fn holder(&self, bridge: &Link, ip: IpAddr) -> Option<(&Link, &Endpoint)> {
        let before = self.before.get(&ip).filter(|before| before.bridge == bridge.index.0)?;
        let link = self.tables.links.get(&IfIndex(before.ifindex))?;
        let there = link.master == Some(bridge.index) && self.is_pod_veth(link) && link.sends_ethernet;
        there.then_some((link, before))
    }

    /// MACs that `bridge` has learnt or been told, with their ports.
    fn learnt(&self, bridge: IfIndex) -> BTreeMap<Mac, IfIndex> {
        let entries = self.tables.fdb_of(bridge);
        // A port's own address shows as permanent; a pod's may be that only if put there by hand,
        // and then it is not the address of the port.
        let foreign = entries.filter(|(mac, _, entry)| {
            let link = || self.tables.links.get(&entry.port);
            !entry.permanent || link().is_some_and(|link| link.mac != *mac && entry.port != bridge)
        });
        foreign.map(|(mac, _, entry)| (mac, entry.port)).collect()
    }
}

fn endpoint(veth: &Link, mac: Mac, gateway: Mac, bridge: IfIndex) -> Endpoint {
    Endpoint {
        ifindex: veth.index.0,
        mac: mac.0,
        gateway_mac: gateway.0,
        bridge: bridge.0,
        mtu: Mtu::saturating_u16(veth.mtu),
        found: tick_mark(0),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests;
