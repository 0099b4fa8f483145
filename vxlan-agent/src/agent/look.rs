//! Looking round before a round: the underlay and our devices.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Network, feed};
use crate::cluster::{ClusterState, Node};
use crate::config::{NodeConfig, StateConfig};
use crate::kernel::{
    self, Asked, DirectRoute, DirectSearch, Field, Headers, KernelState, Kind, Sought, Tables, offload,
};
use crate::net::{IfIndex, Mac, Vni, family};
use crate::plan::Side;
use crate::underlay::{self, Underlay};

impl Network {
    /// What there is of the network, once for each IP version that it runs over.
    pub(super) fn look(
        &self,
        cluster: &ClusterState,
        tables: &Tables,
    ) -> anyhow::Result<(Vec<KernelState>, Vec<Side>)> {
        let (mut states, mut sides) = (vec![], vec![]);
        for own in cluster.owns() {
            let underlay = self.find_underlay(cluster, own, tables)?;
            let (name, alias) = self.device_over(own.vtep);
            let (mut state, device) = match self.config.network.segment() {
                Some(segment) => self.observe_segment(segment, cluster, own, tables)?,
                None => self.observe_device(name, &alias, own.mac, self.config.adopts(), tables)?,
            };
            self.observe_past_routes(cluster, own, tables, &mut state);
            if self.config.adopts().is_some() {
                state.direct_routes = self.direct_routes(cluster, own, device, underlay.ifindex, tables);
            }
            // Head-room is the first side's.
            if !states.is_empty() {
                state.headroom.clear();
                state.headroom_elsewhere.clear();
            }
            states.push(state);
            let offloads = device.is_none() || offload::offloads(name);
            let v6 = underlay.address.is_ipv6();
            let found = device.and_then(|device| tables.vxlan(device)).map(|vxlan| vxlan.headers(v6));
            let headers = self.config.network.headers.over(found.unwrap_or(Headers::of_new_device(v6)));
            let asked = self.asked(&underlay, &headers, tables);
            sides.push(Side { underlay, device, asked, offloads, headers });
        }
        Ok((states, sides))
    }

    /// Whether `cluster` can be planned for on this machine; one sentence otherwise.
    pub(super) fn check(&self, cluster: &ClusterState, tables: &Tables) -> Result<(), String> {
        let (_, sides) = self.look(cluster, tables).map_err(|e| e.to_string())?;
        // What a cluster gives its nodes, its nodes cannot change.
        match self.config.state {
            StateConfig::File(_) => check_on_link(cluster, &sides, tables).map_err(|e| e.to_string()),
            _ => Ok(()),
        }
    }

    fn find_underlay(
        &self,
        cluster: &ClusterState,
        own: &Node,
        tables: &Tables,
    ) -> Result<Underlay, underlay::Unusable> {
        let over = |node: &&Node| node.vtep.is_ipv4() == own.vtep.is_ipv4();
        let nodes = std::iter::once(own).chain(cluster.remotes.values().filter(over));
        let inner_v6 = nodes.flat_map(|node| &node.subnets).any(|subnet| subnet.is_ipv6());
        let node = self.node_over(own.vtep, tables);
        underlay::find(&node, &self.config.network, own.vtep, inner_v6, tables)
    }

    /// The node's configuration, with what the machine says where that was asked for.
    fn node_over(&self, vtep: IpAddr, tables: &Tables) -> NodeConfig {
        let mut node = NodeConfig::clone(&self.config.node);
        if self.config.state.place().is_some() {
            let local = feed::look(&self.config, tables);
            let addresses = &local.side(family(vtep)).addresses;
            let given = node.address.filter(|ip| ip.is_ipv4() == vtep.is_ipv4());
            let own = (!addresses.contains(&vtep)).then(|| addresses.first().copied()).flatten();
            node.address = given.or(own);
            node.underlay = local.interface;
        }
        node
    }

    pub(super) fn device_over(&self, vtep: IpAddr) -> (&str, String) {
        let name = self.config.device_over(vtep);
        let alias = self.config.devices().into_iter().find(|(device, _)| *device == name);
        (name, alias.map(|(_, alias)| alias).unwrap_or_default())
    }

    /// Devices that there are, by name.
    pub(super) fn found_devices(&self, sides: &[Side]) -> BTreeMap<String, IfIndex> {
        let device = |side: &Side| Some((self.device_over(side.underlay.address).0.to_owned(), side.device?));
        sides.iter().filter_map(device).collect()
    }

    pub(super) fn observe_device(
        &self,
        name: &str,
        alias: &str,
        mac: Mac,
        adopt: Option<Vni>,
        tables: &Tables,
    ) -> Result<(KernelState, Option<IfIndex>), kernel::ForeignDevice> {
        let network = &self.config.network.name;
        let held = self.devices.get(name).copied();
        kernel::observed(tables, &Sought { network, alias, name, mac, adopt, held })
    }

    /// Routes of ours past the tunnel to nodes whose neighbours somebody has removed.
    fn observe_past_routes(
        &self,
        cluster: &ClusterState,
        own: &Node,
        tables: &Tables,
        state: &mut KernelState,
    ) {
        let mut past = kernel::past_routes(tables, |_| true).peekable();
        if past.peek().is_none() {
            return;
        }
        let remotes = cluster.remotes.values().filter(|node| node.vtep.is_ipv4() == own.vtep.is_ipv4());
        let subnets: BTreeSet<_> = remotes.flat_map(|node| &node.subnets).collect();
        state.routes.extend(past.filter(|(to, _)| subnets.contains(to)));
    }

    /// Routes past the tunnel that flannel left behind. Those to nodes that are gone are looked for
    /// only when the device is taken over: later they are somebody else's.
    fn direct_routes(
        &self,
        cluster: &ClusterState,
        own: &Node,
        device: Option<IfIndex>,
        underlay: IfIndex,
        tables: &Tables,
    ) -> BTreeMap<IpNetwork, DirectRoute> {
        let over = |node: &&Node| node.vtep.is_ipv4() == own.vtep.is_ipv4();
        let remotes = cluster.remotes.values().filter(over);
        let remote: Vec<_> = remotes.flat_map(|node| node.subnets.iter().copied()).collect();
        let link = device.and_then(|device| tables.links.get(&device));
        let taken_over = link.is_some_and(|link| link.alias.is_none());
        let networks = if taken_over { self.config.pods.networks.as_slice() } else { &[] };
        DirectSearch { remote: &remote, own: &own.subnets, networks, underlay }.run(tables)
    }

    /// How the device over `underlay` asks for its ways.
    pub(super) fn asked(&self, underlay: &Underlay, headers: &Headers, tables: &Tables) -> Asked {
        let link = tables.links.get(&underlay.ifindex);
        let master = link.and_then(|link| tables.links.get(&link.master?));
        let vrf = master.filter(|master| master.kind == Kind::Vrf).map(|vrf| vrf.index);
        let tos = match headers.tos {
            Field::Fixed(tos) => tos,
            Field::Inherit => 0,
        };
        Asked { source: underlay.address, vrf, port: self.config.network.port, tos }
    }
}

/// Refuses pod subnets that take addresses away from the underlay's own segment.
fn check_on_link(cluster: &ClusterState, sides: &[Side], tables: &Tables) -> Result<(), underlay::Unusable> {
    for side in sides {
        for node in cluster.owns().chain(cluster.remotes.values()) {
            underlay::check_on_link(&side.underlay, &node.subnets, tables)?;
        }
    }
    Ok(())
}
