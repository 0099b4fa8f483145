//! Looking round before a round: the underlay, our devices, the ways to other nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Once};

use futures_util::stream::{self, StreamExt as _};
use ipnetwork::IpNetwork;

use super::{Agent, feed};
use crate::cluster::{ClusterState, Node};
use crate::config::{Fastpath, NodeConfig};
use crate::datapath::{self, FIRST_PRIORITY};
use crate::kernel::ruleset::{DeviceHook, Ruleset};
use crate::kernel::{
    self, Asked, DirectRoute, DirectSearch, Edge, Foreign, KernelState, Kind, Link, Ours, Policy, Sought,
    Way, What, offload,
};
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
            if self.config.adopts().is_some() {
                state.direct_routes = self.direct_routes(cluster, own, device, underlay.ifindex);
            }
            // Head-room is the first side's.
            if !states.is_empty() {
                state.headroom.clear();
                state.headroom_elsewhere.clear();
            }
            states.push(state);
            let offloads = device.is_none() || offload::offloads(name);
            sides.push(Side { underlay, device, offloads });
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
        let mut node = NodeConfig::clone(&self.config.node);
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
    ) -> Result<(KernelState, Option<IfIndex>), kernel::ForeignDevice> {
        let network = &self.config.network.name;
        let held = self.devices.get(name).copied();
        kernel::observed(&self.tables, &Sought { network, alias, name, mac, adopt, held })
    }

    /// Routes past the tunnel that flannel left behind. Those to nodes that are gone are looked for
    /// only when the device is taken over: later they are somebody else's.
    fn direct_routes(
        &self,
        cluster: &ClusterState,
        own: &Node,
        device: Option<IfIndex>,
        underlay: IfIndex,
    ) -> BTreeMap<IpNetwork, DirectRoute> {
        let over = |node: &&Node| node.vtep.is_ipv4() == own.vtep.is_ipv4();
        let remotes = cluster.remotes.values().filter(over);
        let remote: Vec<_> = remotes.flat_map(|node| node.subnets.iter().copied()).collect();
        let link = device.and_then(|device| self.tables.links.get(&device));
        let taken_over = link.is_some_and(|link| link.alias.is_none());
        let networks = if taken_over { self.config.pods.networks.as_slice() } else { &[] };
        DirectSearch { remote: &remote, own: &own.subnets, networks, underlay }.run(&self.tables)
    }

    /// Asks for ways to VTEPs that are not known yet.
    pub(super) async fn find_ways(&mut self, sides: &[Side]) {
        self.mention_rules();
        let vteps: BTreeSet<_> = self.cluster.remotes.values().map(|node| node.vtep).collect();
        let interface = |underlay: &Underlay| (underlay.ifindex, underlay.address);
        let moved = !self.underlays.is_empty()
            && !self.underlays.iter().map(interface).eq(sides.iter().map(|side| interface(&side.underlay)));
        self.next_hops.retain(|vtep, _| !moved && vteps.contains(vtep));
        let netlink = &self.netlink;
        let ask = |vtep: IpAddr| {
            let side = sides.iter().find(|side| side.underlay.address.is_ipv4() == vtep.is_ipv4());
            let asked = side.map(|side| self.asked(&side.underlay));
            async move {
                let hop = match asked {
                    Some(asked) => netlink.next_hop(vtep, &asked).await,
                    None => None,
                };
                (vtep, hop)
            }
        };
        let unknown: Vec<IpAddr> =
            vteps.into_iter().filter(|vtep| !self.next_hops.contains_key(vtep)).collect();
        let found: Vec<_> = stream::iter(unknown).map(ask).buffer_unordered(AT_ONCE).collect().await;
        self.next_hops.extend(found);
    }

    /// Destinations whose path MTU the kernel has learnt, or forgotten, since last asked.
    pub(super) async fn learnt_anew(&mut self) -> Vec<IpNetwork> {
        let Ok(now) = kernel::learnt_mtus().await.inspect_err(|error| {
            tracing::debug!(%error, "cannot read what the kernel has learnt of paths");
        }) else {
            return vec![];
        };
        let before = std::mem::replace(&mut self.learnt, now);
        let all = before.keys().chain(self.learnt.keys());
        all.filter(|to| before.get(to) != self.learnt.get(to)).map(|to| IpNetwork::from(*to)).collect()
    }

    /// Reads the IPsec policies. While they cannot be read, any packet may need one.
    pub(super) async fn read_policies(&mut self) {
        self.policies = kernel::policies().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read IPsec policies: the kernel's device carries everything");
            [Way::In, Way::Out].into_iter().flat_map(Policy::everything).collect()
        });
    }

    /// What somebody else has put on interfaces that packets of the overlay pass.
    pub(super) async fn foreign(&mut self, sides: &[Side]) -> Vec<Foreign> {
        let tcx = self.datapath.as_ref().is_none_or(|datapath| datapath.features().tcx);
        if self.traffic.is_none() {
            let ours = Ours { is_called: datapath::is_called, priority: (!tcx).then_some(FIRST_PRIORITY) };
            match kernel::traffic(&ours).await {
                Ok(traffic) => self.traffic = Some(traffic),
                Err(error) => tracing::warn!(%error, "cannot read queueing disciplines and filters"),
            }
        }
        let is_passed =
            |link: &&Link| link.kind == Kind::Veth && link.peer_elsewhere || link.kind == Kind::Bridge;
        let mut passed: BTreeSet<_> = self.tables.links.values().filter(is_passed).map(|l| l.index).collect();
        for side in sides {
            passed.extend(side.device.into_iter().chain([side.underlay.ifindex]));
        }
        passed.extend(self.xdp.iter().flatten().map(|place| place.ifindex));
        let programs = self.tcx.read(&passed, tcx);
        self.traffic.iter().flatten().cloned().chain(programs).chain(self.device_chains()).collect()
    }

    /// Chains of nf_tables at interfaces.
    fn device_chains(&self) -> impl Iterator<Item = Foreign> {
        self.ruleset.device_chains.iter().flat_map(|chain| {
            let on = self.tables.links.values().filter(|link| chain.is_on(&link.name));
            on.map(|link| Foreign {
                ifindex: link.index,
                edge: match chain.hook {
                    DeviceHook::Ingress => Edge::Entry,
                    DeviceHook::Egress => Edge::Exit,
                },
                what: What::Chain,
                name: chain.chain.clone(),
                behind: true,
            })
        })
    }

    /// Says what of others has come and gone because of which packets are left to the kernel.
    pub(super) fn mention_hooked(&mut self, now: Vec<Foreign>) {
        for foreign in now.iter().filter(|foreign| !self.hooked.contains(foreign)) {
            let interface = self.interface_name(foreign.ifindex);
            tracing::info!(interface, "{foreign}: the kernel carries what has to pass it");
        }
        for foreign in self.hooked.iter().filter(|foreign| !now.contains(foreign)) {
            tracing::info!(interface = self.interface_name(foreign.ifindex), "{foreign}: gone");
        }
        self.hooked = now;
    }

    /// The name of an interface, or its number where it is gone.
    pub(super) fn interface_name(&self, ifindex: IfIndex) -> String {
        self.tables.links.get(&ifindex).map_or_else(|| ifindex.to_string(), |link| link.name.clone())
    }

    /// Takes in what packet filters do; whether that is new.
    pub(super) fn take_rules(&mut self, rules: Option<Arc<Ruleset>>) -> bool {
        let Some(rules) = rules.filter(|rules| *rules != self.ruleset) else { return false };
        if rules.meters != self.ruleset.meters && self.config.network.fastpath == Fastpath::Verified {
            match rules.meters.first() {
                Some(meter) => tracing::warn!(
                    rules = rules.meters.len(),
                    "no flow bypasses the host stack, because rules have to see every packet: {meter}"
                ),
                None => {
                    tracing::info!("no rule has to see every packet any more: flows bypass the host stack")
                }
            }
        }
        self.ruleset = rules;
        true
    }

    /// Says once that no question to the kernel covers what its routing rules look at.
    fn mention_rules(&self) {
        static SAID: Once = Once::new();
        let families = [false, true].into_iter().filter(|v6| self.tables.rules_look_deeper(*v6));
        if families.count() != 0 {
            SAID.call_once(|| {
                tracing::warn!(
                    "a routing rule looks at source ports or users: the kernel's device carries everything \
                     over that IP version"
                );
            });
        }
    }

    fn asked(&self, underlay: &Underlay) -> Asked {
        let link = self.tables.links.get(&underlay.ifindex);
        let master = link.and_then(|link| self.tables.links.get(&link.master?));
        let vrf = master.filter(|master| master.kind == Kind::Vrf).map(|vrf| vrf.index);
        Asked { source: underlay.address, vrf, port: self.config.network.port }
    }
}
