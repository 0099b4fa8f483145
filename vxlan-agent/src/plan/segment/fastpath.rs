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
        let (mut whole, mut of_ports) = bridge.map(|bridge| self.why_not(bridge)).unwrap_or_default();
        let name =
            |port: IfIndex| tables.links.get(&port).map_or_else(|| port.to_string(), |l| l.name.clone());
        if let Some((device, features)) = device.and_then(|device| of_ports.remove_entry(&device)) {
            // All that goes to other nodes passes it. What the bridge does not learn there, the device knows.
            let features = features.into_iter().filter(|feature| *feature != Feature::NoLearning);
            whole.extend(features.map(|feature| format!("port {}: {feature}", name(device))));
        }
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
        let of_ports = of_ports.iter().flat_map(|(port, features)| {
            features.iter().map(move |feature| format!("port {}: {feature}", name(*port)))
        });
        let left = whole.into_iter().chain(of_ports).filter(|_| self.input.is_fast());
        let left = left.chain(self.input.odd_devices()).collect();
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
        let all = fixed.into_iter().chain(self.input.before_the_stack()).chain(ports);
        all.map(|(hook, on)| Attachment { hook, ifindex: on.0 }).collect()
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::cluster::{Candidate, ClusterState, Viewer};
    use crate::config::{Flood, Segment};
    use crate::datapath::DatapathState;
    use crate::kernel::{Bridge, FdbEntry, Port, PortState, Remote, Tables};
    use crate::net::{Mtu, Vni};
    use crate::plan::tests::World;
    use crate::plan::{BridgeFilters, Desired};

    const BRIDGE: IfIndex = IfIndex(5);
    /// As the world has it.
    const DEVICE: IfIndex = IfIndex(9);
    const PORT: IfIndex = IfIndex(7);
    const HERE: Mac = Mac([2, 0, 0, 0, 1, 1]);
    const FAR: Mac = Mac([2, 0, 0, 0, 1, 2]);

    fn vtep(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn cluster() -> ClusterState {
        let node = |n: u8| Candidate {
            name: format!("n{n}"),
            vtep: vtep(n),
            mac: Some(Mac([2, 0, 0, 0, 0, n])),
            subnets: vec![],
            stations: vec![],
        };
        let vni = Vni::try_from(7).expect("in range");
        let viewer = Viewer { node: "n1".into(), network: "pods".into(), vni, l2: true };
        ClusterState::new([1, 2].map(node).into(), &viewer).expect("valid")
    }

    /// A bridge with the device and a veth, behind each of which there is a station.
    fn tables() -> Tables {
        let mut tables = Tables::default();
        let link = |index, name: &str, kind| Link {
            index,
            name: name.into(),
            kind,
            mtu: Mtu(1450),
            up: true,
            sends_ethernet: true,
            ..Link::default()
        };
        tables.links.insert(BRIDGE, link(BRIDGE, "br7", Kind::Bridge));
        tables.links.insert(DEVICE, Link { master: Some(BRIDGE), ..link(DEVICE, "vx7", Kind::Other) });
        let veth = Link { peer_elsewhere: true, ..link(PORT, "tap7", Kind::Veth) };
        tables.links.insert(PORT, Link { master: Some(BRIDGE), ..veth });
        tables.bridges.insert(BRIDGE, Bridge::default());
        for port in [DEVICE, PORT] {
            let plain = Port { state: PortState::Forwarding, learning: true, ..Port::default() };
            tables.ports.insert(port, plain);
        }
        for (mac, port) in [(HERE, PORT), (FAR, DEVICE)] {
            tables.fdb.insert((BRIDGE, mac, 0), FdbEntry { port, ages: true, ..FdbEntry::default() });
        }
        tables.remotes.insert((DEVICE, FAR), Remote { vtep: Some(vtep(2)), plain: true, ages: true });
        tables
    }

    fn plan(fastpath: Fastpath, tables: &Tables, filters: BridgeFilters) -> Desired {
        let segment = Segment {
            bridge: "br7".into(),
            addresses: vec![],
            flood: Flood::Copies,
            learning: true,
            suppress: false,
        };
        World::new(fastpath).segment(&segment, tables, &cluster(), filters)
    }

    fn planned(tables: &Tables) -> (DatapathState, Vec<String>) {
        let desired = plan(Fastpath::Direct, tables, BridgeFilters::default());
        (desired.datapath, desired.left)
    }

    fn mode(state: &DatapathState) -> u8 {
        state.networks.values().next().expect("a network").mode
    }

    #[test]
    fn known_stations_and_ports_are_in_the_maps() {
        let (state, left) = planned(&tables());
        assert!(left.is_empty(), "{left:?}");
        let at = |mac: Mac| state.stations.iter().find(|(key, _)| key.mac == mac.0).expect("a station").1;
        assert_eq!((at(HERE).ifindex, at(HERE).mtu, at(HERE).flags), (PORT.0, 1450, station::PEER));
        let id = state.vtep_ids.values().next().expect("a VTEP");
        assert_eq!((at(FAR).vtep, at(FAR).ifindex), (*id, 0));
        assert_eq!((state.links[&DEVICE].flags, state.links[&PORT].flags), (link::DEVICE, 0));
        let on = |ifindex: IfIndex| state.attachments.iter().filter(|at| at.ifindex == ifindex.0).count();
        assert_eq!((on(PORT), on(DEVICE)), (2, 2));
        assert!(state.routes.is_empty() && state.endpoints.is_empty());
    }

    #[test]
    fn a_port_that_only_the_bridge_can_serve_is_left_out() {
        let mut tables = tables();
        tables.ports.get_mut(&PORT).expect("there").isolated = true;
        let (state, left) = planned(&tables);
        assert_eq!(left, ["port tap7: the port is isolated"]);
        assert_eq!(state.stations.keys().map(|key| key.mac).collect::<Vec<_>>(), [FAR.0]);
        assert!(state.attachments.iter().all(|at| at.ifindex != PORT.0));
        assert_eq!(mode(&state), Mode::Direct as u8);
    }

    #[test]
    fn what_only_the_bridge_can_do_leaves_it_all_frames() {
        let mut filtering = tables();
        filtering.bridges.get_mut(&BRIDGE).expect("there").vlan_filtering = true;
        let mut isolated = tables();
        isolated.ports.get_mut(&DEVICE).expect("there").isolated = true;
        let mut elsewhere = tables();
        elsewhere.links.get_mut(&DEVICE).expect("there").master = None;
        for (tables, said) in [(filtering, 1), (isolated, 1), (elsewhere, 0)] {
            let (state, left) = planned(&tables);
            assert_eq!((mode(&state), left.len()), (Mode::Off as u8, said), "{left:?}");
            assert!(state.attachments.is_empty() && state.stations.is_empty());
        }
    }

    #[test]
    fn filters_of_frames_count_in_verified_alone() {
        for filters in [
            BridgeFilters { netfilter: true, ebtables: false },
            BridgeFilters { netfilter: false, ebtables: true },
        ] {
            let verified = plan(Fastpath::Verified, &tables(), filters);
            assert_eq!((mode(&verified.datapath), verified.left.len()), (Mode::Off as u8, 1));
            let direct = plan(Fastpath::Direct, &tables(), filters);
            assert_eq!((mode(&direct.datapath), direct.left.len()), (Mode::Direct as u8, 0));
        }
        let off = plan(Fastpath::Off, &tables(), BridgeFilters::default());
        assert!(off.datapath.attachments.is_empty() && off.left.is_empty());
    }
}
