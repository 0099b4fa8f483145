//! What the fast path knows of a bridged network: its ports, and where its stations are.

use std::collections::{BTreeMap, BTreeSet};

use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{
    self, Key6, LOCAL_VTEP, LinkEntry, MacKey, Mode, NetworkId, Station, VniKey, link, station,
};

use super::super::hooked::{Hooked, Role};
use super::SegmentInput;
use crate::config::Fastpath;
use crate::datapath::{Attachment, DatapathState};
use crate::kernel::{Edge, Feature, Foreign, Kind, Link, Place, Scope, Vlan, stations, why_not};
use crate::net::{IfIndex, Mac};
use crate::plan::Input;

/// The fast path of a bridged network.
pub(super) struct SegmentPath {
    pub(super) datapath: DatapathState,
    /// What of others the fast path would pass by.
    pub(super) hooked: Vec<Foreign>,
    /// Why frames are left to the kernel, a sentence each: all of them, or those of a port.
    pub(super) left: Vec<String>,
}

impl SegmentInput<'_> {
    pub(super) fn fastpath(&self) -> SegmentPath {
        let Input { id, tables, cluster, foreign, .. } = *self.input;
        let device = self.side.device;
        let bridge = tables.link_named(&self.segment.bridge).filter(|link| link.kind == Kind::Bridge);
        let bridge = bridge.map(|link| link.index);
        let in_bridge = device.and_then(|device| tables.links.get(&device)?.master) == bridge;
        let (whole, of_ports) = bridge.map(|bridge| self.why_not(bridge)).unwrap_or_default();
        let runs = self.input.is_fast() && bridge.is_some() && in_bridge && whole.is_empty();
        let ports: BTreeMap<_, _> = bridge
            .into_iter()
            .flat_map(|bridge| tables.ports_of(bridge))
            .filter(|port| runs && Some(port.index) != device && port.up && port.sends_ethernet)
            .filter(|port| !of_ports.contains_key(&port.index))
            .map(|port| (port.index, port))
            .collect();
        let hooked = Hooked::new(foreign, &self.roles(&ports));
        let mut network = maps::Network { kind: maps::Kind::L2 as u8, ..self.input.network_entry(&hooked) };
        if !runs {
            network.mode = Mode::Off as u8;
        }
        let mut state = DatapathState { networks: [(id, network)].into(), ..DatapathState::default() };
        state.vnis.insert(VniKey::new(network.vni, network.port()), id);
        for node in cluster.remotes.values() {
            let key = Key6::new(id, node.vtep.into());
            let Some(&vtep) = self.input.vtep_ids.get(&key) else { continue };
            state.vteps.insert(vtep, self.input.vtep(node, &hooked));
            state.vtep_ids.insert(key, vtep);
        }
        let entry = |flags| LinkEntry { network: id, flags };
        state.links = ports.keys().map(|port| (*port, entry(0))).collect();
        state.links.extend(device.map(|device| (device, entry(link::DEVICE))));
        if let (true, Some(device), Some(bridge)) = (runs, device, bridge) {
            state.attachments = self.attachments(device, &ports);
            state.stations = self.stations(id, (device, bridge), &ports, &hooked);
        }
        let name =
            |port: &IfIndex| tables.links.get(port).map_or_else(|| port.to_string(), |l| l.name.clone());
        let of_ports = of_ports.iter().flat_map(|(port, features)| {
            features.iter().map(move |feature| format!("port {}: {feature}", name(port)))
        });
        let left = whole.into_iter().chain(of_ports).filter(|_| self.input.is_fast()).collect();
        SegmentPath { datapath: state, hooked: hooked.all(), left }
    }

    /// Why frames have to come by the bridge: all, or those of some ports.
    fn why_not(&self, bridge: IfIndex) -> (Vec<String>, BTreeMap<IfIndex, Vec<Feature>>) {
        let verified = self.input.config.network.fastpath == Fastpath::Verified;
        let (mut whole, mut of_ports) = (vec![], BTreeMap::<_, Vec<_>>::new());
        for reason in why_not(self.input.tables, bridge, self.filters.netfilter) {
            match (reason.scope, reason.feature) {
                (_, Feature::NetfilterCalls) if !verified => {}
                (Scope::Bridge, feature) => whole.push(feature.to_string()),
                (Scope::Port(port), feature) => of_ports.entry(port).or_default().push(feature),
            }
        }
        if verified {
            let chains = &self.input.ruleset.bridge_chains;
            whole.extend(chains.iter().map(|chain| format!("frames have to pass {chain}")));
            let ebtables = "ebtables of before nf_tables is loaded, and does not say whether it has rules";
            whole.extend(self.filters.ebtables.then(|| ebtables.to_owned()));
        }
        (whole, of_ports)
    }

    /// What interfaces are to the segment.
    fn roles(&self, ports: &BTreeMap<IfIndex, &Link>) -> BTreeSet<(IfIndex, Role)> {
        let ways = self.input.cluster.remotes.values().filter_map(|node| self.input.way(node));
        let ways = ways.map(|hop| (hop.ifindex, Role::Way));
        let own = self.side.device.map(|device| (device, Role::Device));
        let ports = ports.keys().map(|port| (*port, Role::Pod));
        ways.chain(own).chain(ports).chain([(self.side.underlay.ifindex, Role::Underlay)]).collect()
    }

    fn attachments(&self, device: IfIndex, ports: &BTreeMap<IfIndex, &Link>) -> BTreeSet<Attachment> {
        let underlay = (Hook::UnderlayIngress, self.side.underlay.ifindex);
        let fixed = [(Hook::TunnelIngress, device), (Hook::TunnelEgress, device), underlay];
        let both = [Hook::PortIngress, Hook::TunnelEgress];
        let ports = ports.keys().flat_map(|port| both.map(|hook| (hook, *port)));
        fixed.into_iter().chain(ports).map(|(hook, on)| Attachment { hook, ifindex: on.0 }).collect()
    }

    /// Stations behind ports that may be passed to, and behind nodes that have a number.
    fn stations(
        &self,
        network: NetworkId,
        (device, bridge): (IfIndex, IfIndex),
        ports: &BTreeMap<IfIndex, &Link>,
        hooked: &Hooked<'_>,
    ) -> BTreeMap<MacKey, Station> {
        let all = stations(self.input.tables, device, bridge).into_iter();
        let entry = |((mac, vlan), place): ((Mac, Vlan), Place)| {
            let station = match place {
                Place::Port(port) => behind(ports.get(&port)?, hooked),
                Place::Vtep(vtep) => {
                    Station::vtep(*self.input.vtep_ids.get(&Key6::new(network, vtep.into()))?)
                }
            };
            (vlan == 0).then(|| (MacKey::new(network, mac.0), station))
        };
        all.filter_map(entry).collect()
    }
}

/// A station behind `port`. What a program sends out of a port passes what is at its exit, unless it goes right
/// into the other end of a veth.
fn behind(port: &Link, hooked: &Hooked<'_>) -> Station {
    let right_away = port.kind == Kind::Veth && port.peer_elsewhere && !hooked.at(port.index, Edge::Exit);
    let out = hooked.at(port.index, Edge::Entry);
    Station {
        vtep: LOCAL_VTEP,
        ifindex: port.index.0,
        mtu: port.mtu.saturating_u16(),
        flags: if right_away { station::PEER } else { 0 } | if out { station::HOOKED_OUT } else { 0 },
        ..Station::default()
    }
}
