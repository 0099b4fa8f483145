//! Networks whose device somebody else manages: what it does is looked at anew in every round, and nothing of it is
//! ever changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use vxlan_ebpf_common::maps::LinkEntry;

use super::Agent;
use super::network::{Network, Seen};
use super::round::Planned;
use crate::cluster::{ClusterState, Node};
use crate::config::View;
use crate::kernel::{Asked, Field, Headers, NextHop, Tables, offload};
use crate::mirror::{self, Sought, Sources};
use crate::net::{IfIndex, Mac};
use crate::plan::{Side, Ways};

impl Network {
    /// The network beside a device that somebody else manages. It needs no source.
    pub(super) fn beside(config: View) -> Self {
        let cluster = nobody(&config.node.name);
        Self::without_source(config, cluster)
    }

    /// Whether somebody else manages the device.
    pub(super) fn is_accelerated(&self) -> bool {
        self.config.network.is_accelerated()
    }

    /// Devices that are this network's, ours or somebody else's.
    pub(super) fn held(&self) -> impl Iterator<Item = IfIndex> {
        self.devices.values().copied().chain(self.followed)
    }

    /// The device, as it was found last: whoever renames it does not make it another one.
    fn known(&self) -> Option<IfIndex> {
        self.mirror.as_ref().ok().map(|mirror| mirror.device).or(self.followed)
    }

    /// How the kernel is asked what it sends from, and to whom, where the device does not say so itself.
    fn asks(&self, tables: &Tables) -> Option<(Asked, BTreeSet<IpAddr>)> {
        if !self.is_accelerated() {
            return None;
        }
        let link = mirror::find(tables, &self.config.network.device, self.known())?;
        let vxlan = tables.vxlan(link.index).filter(|vxlan| vxlan.local.is_none())?;
        let vteps = mirror::destinations(tables, link.index);
        let v6 = vteps.first()?.is_ipv6();
        let tos = match vxlan.headers(v6).tos {
            Field::Fixed(tos) => tos,
            Field::Inherit => 0,
        };
        Some((Asked { source: unspecified(v6), vrf: None, port: vxlan.port, tos }, vteps))
    }

    /// Takes in what the device does now. Without one the network has no nodes.
    pub(super) fn reflect(&mut self, tables: &Tables, ways: &Ways) {
        if !self.is_accelerated() {
            return;
        }
        let sources = self.asks(tables).and_then(|(asked, vteps)| Some(sources(ways.get(&asked)?, &vteps)));
        let sought =
            Sought { device: &self.config.network.device, held: self.known(), node: &self.config.node.name };
        self.mirror = mirror::mirror(tables, &sought, &sources.unwrap_or_default());
        let network = &mut self.config.network;
        self.cluster = match &self.mirror {
            Ok(mirror) => {
                self.followed = Some(mirror.device);
                (network.vni, network.port) = (mirror.vni, mirror.port);
                mirror.cluster.clone()
            }
            Err(_) => nobody(&self.config.node.name),
        };
    }

    /// Where it runs: nowhere without a device that can be accelerated.
    pub(super) fn look_beside(&self, tables: &Tables) -> Seen {
        let side = self.mirror.as_ref().ok().map(|mirror| {
            let name = tables.links.get(&mirror.device).map_or("", |link| link.name.as_str());
            let v6 = mirror.underlay.address.is_ipv6();
            let found = tables.vxlan(mirror.device).map(|vxlan| vxlan.headers(v6));
            let headers = found.unwrap_or(Headers::of_new_device(v6));
            let (underlay, device) = (mirror.underlay.clone(), Some(mirror.device));
            let asked = self.asks(tables).map(|(asked, _)| asked);
            let asked = asked.unwrap_or_else(|| self.asked(&underlay, &headers, tables));
            Side { underlay, device, asked, offloads: offload::offloads(name), headers }
        });
        Seen { kernel: vec![], sides: side.into_iter().collect() }
    }

    /// Whether packets are routed to other nodes.
    fn leads_somewhere(&self) -> bool {
        self.is_fast() && self.cluster.remotes.values().any(|node| !node.subnets.is_empty())
    }

    /// The name of the bridge, where frames are bridged.
    pub(super) fn bridge_name(&self) -> Option<&str> {
        let mirrored = self.mirror.as_ref().ok().and_then(|mirror| mirror.bridge.as_deref());
        mirrored.or_else(|| self.config.network.segment().map(|segment| segment.bridge.as_str()))
    }

    /// The name of the device, as it is at the moment.
    pub(super) fn device_name<'n>(&'n self, links: &'n BTreeMap<IfIndex, crate::kernel::Link>) -> &'n str {
        let mirrored = self.mirror.as_ref().ok().and_then(|mirror| links.get(&mirror.device));
        mirrored.map_or_else(|| self.config.device_over(self.cluster.own.vtep), |link| link.name.as_str())
    }
}

impl Agent {
    /// Asks what the kernel sends from to the VTEPs of devices that do not say so themselves.
    pub(super) async fn find_sources(&mut self) {
        let mut wanted = BTreeMap::<_, BTreeSet<_>>::new();
        for (asked, vteps) in self.networks.iter().filter_map(|network| network.asks(&self.machine.tables)) {
            wanted.entry(asked).or_default().extend(vteps);
        }
        self.machine.ask_ways(&wanted).await;
    }

    /// What a pod sends takes the short cut of one network, an own one or else the first. Those of the others that
    /// lead somewhere say so.
    pub(super) fn tell_shared(&self, planned: &mut [Option<Planned>]) {
        let mut order: Vec<_> = self.networks.iter().zip(planned).collect();
        order.sort_by_key(|(network, _)| network.is_accelerated());
        let mut owners = BTreeMap::<IfIndex, &str>::new();
        for (network, planned) in order {
            let Some((_, desired)) = planned else { continue };
            if network.is_accelerated() && network.leads_somewhere() {
                desired.left.extend(shared(&desired.datapath.links, &owners));
            }
            for link in desired.datapath.links.keys() {
                owners.entry(*link).or_insert(network.name());
            }
        }
    }
}

/// Sentences about `links` that other networks have, whose names are in `owners`.
fn shared(links: &BTreeMap<IfIndex, LinkEntry>, owners: &BTreeMap<IfIndex, &str>) -> Vec<String> {
    let mut counts = BTreeMap::<&str, usize>::new();
    for owner in links.keys().filter_map(|link| owners.get(link)) {
        *counts.entry(owner).or_default() += 1;
    }
    let sentence = |(owner, count): (&str, usize)| {
        format!("what {count} of the pods send: it takes the short cut of network '{owner}', or none")
    };
    counts.into_iter().map(sentence).collect()
}

/// What the kernel sends from to each of `vteps`.
fn sources(ways: &BTreeMap<IpAddr, Option<NextHop>>, vteps: &BTreeSet<IpAddr>) -> Sources {
    vteps.iter().filter_map(|vtep| Some((*vtep, ways.get(vtep)?.as_ref()?.source?))).collect()
}

/// The address that stands for any of the host's.
fn unspecified(v6: bool) -> IpAddr {
    if v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) }
}

/// A cluster of this node alone, of which nothing is known but the name.
pub(super) fn nobody(name: &str) -> ClusterState {
    let vtep = unspecified(false);
    let own = Node { name: name.to_owned(), vtep, mac: Mac::default(), subnets: vec![], stations: vec![] };
    ClusterState {
        own,
        own6: None,
        remotes: BTreeMap::new(),
        policy: None,
        trouble: None,
        left_out: Default::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_pod_sends_is_one_networks() {
        let entry = |index| (IfIndex(index), LinkEntry { network: 2, flags: 0 });
        let links = [7, 8, 9].map(entry).into();
        assert!(shared(&links, &BTreeMap::new()).is_empty());
        let owners = [(IfIndex(7), "a"), (IfIndex(9), "a"), (IfIndex(10), "b")].into();
        let expected = "what 2 of the pods send: it takes the short cut of network 'a', or none";
        assert_eq!(shared(&links, &owners), [expected]);
    }
}
