//! Networks whose device somebody else manages: what it does is looked at anew in every round, and nothing of it is
//! ever changed.

use super::network::{Network, Seen};
use crate::cluster::{ClusterState, Node};
use crate::config::View;
use crate::kernel::{Headers, Tables, offload};
use crate::mirror;
use crate::net::{IfIndex, Mac};
use crate::plan::Side;
use std::collections::BTreeMap;

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

    /// Takes in what the device does now. Without one the network has no nodes.
    pub(super) fn reflect(&mut self, tables: &Tables) {
        if !self.is_accelerated() {
            return;
        }
        let network = &mut self.config.network;
        // Whoever renames it does not make it another one.
        let held = self.mirror.as_ref().ok().map(|mirror| mirror.device).or(self.followed);
        self.mirror = mirror::mirror(tables, &network.device, held, &self.config.node.name);
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
            let asked = self.asked(&underlay, &headers, tables);
            Side { underlay, device, asked, offloads: offload::offloads(name), headers }
        });
        Seen { kernel: vec![], sides: side.into_iter().collect() }
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

/// A cluster of this node alone, of which nothing is known but the name.
fn nobody(name: &str) -> ClusterState {
    let vtep = std::net::IpAddr::from([0; 4]);
    let own = Node { name: name.to_owned(), vtep, mac: Mac::default(), subnets: vec![], stations: vec![] };
    ClusterState { own, own6: None, remotes: BTreeMap::new(), policy: None, trouble: None }
}
