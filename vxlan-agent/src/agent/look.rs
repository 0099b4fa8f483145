//! Looking round before a round: the underlay, our devices, the ways to other nodes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::stream::{self, StreamExt as _};

use super::{Agent, feed};
use crate::cluster::{ClusterState, Node};
use crate::config::NodeConfig;
use crate::kernel::{self, KernelState, Sought};
use crate::net::{IfIndex, Mac, Vni, family};
use crate::plan::Side;
use crate::underlay::{self, Underlay};

/// Questions to the kernel that are on their way at the same time.
const AT_ONCE: usize = 64;

impl Agent {
    /// What there is of the network, once for each IP version that it runs over.
    pub(super) fn look(&self, cluster: &ClusterState) -> anyhow::Result<(Vec<KernelState>, Vec<Side>)> {
        let (mut states, mut sides) = (vec![], vec![]);
        for own in cluster.owns() {
            let underlay = self.find_underlay(cluster, own)?;
            let (name, alias) = self.device_over(own.vtep);
            let (mut state, device) = self.observe_device(name, &alias, own.mac, self.config.adopts())?;
            // Head-room is the first side's.
            if !states.is_empty() {
                state.headroom.clear();
                state.headroom_elsewhere.clear();
            }
            states.push(state);
            sides.push(Side { underlay, device });
        }
        Ok((states, sides))
    }

    /// Refuses pod subnets that take addresses away from the underlay's own segment.
    pub(super) fn check_on_link(
        &self,
        cluster: &ClusterState,
        sides: &[Side],
    ) -> Result<(), underlay::Unusable> {
        for side in sides {
            for node in cluster.owns().chain(cluster.remotes.values()) {
                underlay::check_on_link(&side.underlay, &node.subnets, &self.tables)?;
            }
        }
        Ok(())
    }

    fn find_underlay(&self, cluster: &ClusterState, own: &Node) -> Result<Underlay, underlay::Unusable> {
        let over = |node: &&Node| node.vtep.is_ipv4() == own.vtep.is_ipv4();
        let nodes = std::iter::once(own).chain(cluster.remotes.values().filter(over));
        let inner_v6 = nodes.flat_map(|node| &node.subnets).any(|subnet| subnet.is_ipv6());
        let node = self.node_over(own.vtep);
        underlay::find(&node, &self.config.network, own.vtep, inner_v6, &self.tables)
    }

    /// The node's configuration, with what the machine says where that was asked for.
    fn node_over(&self, vtep: IpAddr) -> NodeConfig {
        let mut node = self.config.node.clone();
        if self.config.state.place().is_some() {
            let local = feed::look(&self.config, &self.tables);
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

    pub(super) fn observe_device(
        &self,
        name: &str,
        alias: &str,
        mac: Mac,
        adopt: Option<Vni>,
    ) -> Result<(KernelState, Option<IfIndex>), kernel::ForeignDevice> {
        let network = &self.config.network.name;
        kernel::observed(&self.tables, &Sought { network, alias, name, mac, adopt })
    }

    /// Asks for ways to VTEPs that are not known yet.
    pub(super) async fn find_ways(&mut self, sides: &[Side]) {
        let vteps: BTreeSet<_> = self.cluster.remotes.values().map(|node| node.vtep).collect();
        let interface = |underlay: &Underlay| (underlay.ifindex, underlay.address.is_ipv4());
        let moved = !self.underlays.is_empty()
            && !self.underlays.iter().map(interface).eq(sides.iter().map(|side| interface(&side.underlay)));
        self.next_hops.retain(|vtep, _| !moved && vteps.contains(vtep));
        let netlink = &self.netlink;
        let ask = |vtep: IpAddr| {
            let side = sides.iter().find(|side| side.underlay.address.is_ipv4() == vtep.is_ipv4());
            let underlay = side.map(|side| side.underlay.ifindex);
            async move { (vtep, netlink.next_hop(vtep, underlay).await) }
        };
        let unknown: Vec<IpAddr> =
            vteps.into_iter().filter(|vtep| !self.next_hops.contains_key(vtep)).collect();
        let found: Vec<_> = stream::iter(unknown).map(ask).buffer_unordered(AT_ONCE).collect().await;
        self.next_hops.extend(found);
    }
}
