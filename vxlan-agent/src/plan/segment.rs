//! What should be of a bridged network: all of it is the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Desired, Side, device_spec};
use crate::cluster::{ClusterState, Node, Station};
use crate::config::{Flood, Segment, View};
use crate::datapath::DatapathState;
use crate::kernel::{self, Device, KernelState, SoughtBridge, Tables, larger_ports, wanted_bridge};
use crate::net::{IfIndex, Mac, Mtu};

/// Everything that the plan of a bridged network depends on.
#[derive(Clone, Copy)]
pub struct SegmentInput<'a> {
    /// The configuration.
    pub config: &'a View,
    /// What it says of the segment.
    pub segment: &'a Segment,
    /// The cluster.
    pub cluster: &'a ClusterState,
    /// What netlink shows.
    pub tables: &'a Tables,
    /// Where the network runs.
    pub side: &'a Side,
    /// The bridge of ours that the agent had last.
    pub held: Option<IfIndex>,
}

/// The bridge to look for. It has the VTEP's MAC, as it would have by itself if the device were its only port.
pub fn sought_bridge<'a>(segment: &'a Segment, own: &Node, held: Option<IfIndex>) -> SoughtBridge<'a> {
    SoughtBridge { name: &segment.bridge, mac: own.mac, held }
}

impl SegmentInput<'_> {
    /// Plans. The fast path knows nothing of the network, so all its packets are the kernel's.
    pub fn plan(&self) -> Desired {
        Desired {
            kernel: vec![self.kernel()],
            datapath: DatapathState::default(),
            hooked: vec![],
            claims: BTreeMap::new(),
        }
    }

    fn kernel(&self) -> KernelState {
        let sought = sought_bridge(self.segment, &self.cluster.own, self.held);
        let mtu = self.side.underlay.inner_mtu;
        let bridge = wanted_bridge(self.tables, &self.config.network.name, &sought, mtu);
        let addresses = self.segment.addresses.iter().filter(|_| bridge.own.is_some());
        KernelState {
            device: Some(self.device()),
            bridge_addresses: addresses.copied().collect(),
            bridge: Some(bridge),
            stations: self.stations().map(|(vtep, station)| (station.mac, vtep)).collect(),
            answers: self.answers(),
            flood: match self.segment.flood {
                Flood::Copies => self.cluster.remotes.values().map(|node| node.vtep).collect(),
                Flood::Group(_) => BTreeSet::new(),
            },
            ..KernelState::default()
        }
    }

    fn device(&self) -> Device {
        let Segment { bridge, flood, learning, suppress, .. } = self.segment;
        let segment = kernel::Segment {
            learning: *learning,
            group: flood.group(),
            bridge: Some(bridge.clone()),
            suppress: *suppress,
        };
        Device { segment: Some(segment), ..device_spec(self.config, &self.cluster.own, self.side) }
    }

    /// Stations behind other nodes, with their VTEP.
    fn stations(&self) -> impl Iterator<Item = (IpAddr, &Station)> {
        let nodes = self.cluster.remotes.values();
        nodes.flat_map(|node| node.stations.iter().map(|station| (node.vtep, station)))
    }

    /// Neighbours, so that questions for known stations need not be sent to all nodes.
    fn answers(&self) -> BTreeMap<IpAddr, Mac> {
        let known = self.stations().filter(|_| self.segment.suppress);
        known.filter_map(|(_, station)| Some((station.ip?, station.mac))).collect()
    }
}

/// What an operator should know of the bridge, a sentence each: nothing fails because of it, and yet not all
/// is as the configuration asks for.
pub fn cautions(segment: &Segment, tables: &Tables, is_ours: bool, mtu: Mtu) -> Vec<String> {
    let name = &segment.bridge;
    let Some(bridge) = tables.link_named(name) else { return vec![] };
    let mut cautions = vec![];
    if !is_ours && !segment.addresses.is_empty() {
        cautions.push(format!("bridge {name} is not ours: this host gets no address of the segment there"));
    }
    if !is_ours && !bridge.up {
        cautions.push(format!("bridge {name} is not ours, and it is down: bring it up"));
    }
    let larger = larger_ports(tables, bridge.index, mtu).chain((bridge.mtu > mtu).then_some(bridge));
    cautions.extend(larger.map(|link| {
        format!("{} has MTU {}: the segment drops what is larger than {mtu}", link.name, link.mtu)
    }));
    cautions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Candidate, Viewer};
    use crate::kernel::{Kind, Link, OwnBridge};
    use crate::plan::tests::{asked, config};
    use crate::underlay::Underlay;

    fn mac(n: u8) -> Mac {
        Mac([2, 0, 0, 0, 1, n])
    }

    fn vtep(n: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, n])
    }

    fn segment() -> Segment {
        Segment {
            bridge: "br7".into(),
            addresses: vec!["10.0.0.1/24".parse().expect("an address")],
            flood: Flood::Copies,
            learning: true,
            suppress: false,
        }
    }

    /// Nodes 1 to 3, each with a station of its number; 2's has an address.
    fn cluster() -> ClusterState {
        let node = |n: u8| Candidate {
            name: format!("n{n}"),
            vtep: vtep(n),
            mac: Some(Mac([2, 0, 0, 0, 0, n])),
            subnets: vec![],
            stations: vec![Station { mac: mac(n), ip: (n == 2).then(|| IpAddr::from([10, 0, 0, n])) }],
        };
        let vni = crate::net::Vni::try_from(7).expect("in range");
        let viewer = Viewer { node: "n1".into(), network: "pods".into(), vni, l2: true };
        ClusterState::new([1, 2, 3].map(node).into(), &viewer).expect("valid")
    }

    fn plan(segment: &Segment, tables: &Tables) -> KernelState {
        let config = config(crate::config::Fastpath::Verified);
        let address = vtep(1);
        let underlay = Underlay { ifindex: IfIndex(2), name: "eth0".into(), address, inner_mtu: Mtu(1450) };
        let side = &Side { asked: asked(&underlay), underlay, device: None, offloads: true };
        let cluster = &cluster();
        let desired = SegmentInput { config: &config, segment, cluster, tables, side, held: None }.plan();
        assert_eq!(desired.datapath, DatapathState::default());
        let [kernel] = <[KernelState; 1]>::try_from(desired.kernel).expect("one side");
        assert!(kernel.routes.is_empty() && kernel.addresses.is_empty() && kernel.neighbours.is_empty());
        kernel
    }

    fn bridge(alias: Option<&str>) -> Tables {
        let mut tables = Tables::default();
        let alias = alias.map(str::to_owned);
        let bridge =
            Link { index: IfIndex(5), name: "br7".into(), alias, kind: Kind::Bridge, ..Link::default() };
        tables.links.insert(IfIndex(5), Link { mtu: Mtu(1500), up: true, ..bridge });
        tables
    }

    #[test]
    fn every_node_gets_a_copy_and_the_host_its_addresses() {
        let kernel = plan(&segment(), &Tables::default());
        assert_eq!(kernel.flood, [2, 3].map(vtep).into());
        assert_eq!(kernel.stations, [(mac(2), vtep(2)), (mac(3), vtep(3))].into());
        assert!(kernel.answers.is_empty());
        assert_eq!(kernel.bridge_addresses, ["10.0.0.1/24".parse().expect("an address")].into());
        let own = OwnBridge { mac: Mac([2, 0, 0, 0, 0, 1]), mtu: Mtu(1450), ready: true };
        assert_eq!(kernel.bridge.and_then(|bridge| bridge.own), Some(own));
        let device = kernel.device.expect("a device");
        let port = device.segment.expect("a port");
        assert_eq!((port.bridge.as_deref(), port.learning, port.group), (Some("br7"), true, None));
    }

    #[test]
    fn a_group_takes_the_place_of_copies() {
        let group = IpAddr::from([239, 1, 1, 1]);
        let kernel = plan(&Segment { flood: Flood::Group(group), ..segment() }, &Tables::default());
        assert!(kernel.flood.is_empty());
        assert_eq!(kernel.device.and_then(|device| device.segment?.group), Some(group));
    }

    #[test]
    fn questions_for_known_stations_are_answered_where_that_is_asked_for() {
        let suppressing = Segment { suppress: true, learning: false, ..segment() };
        let kernel = plan(&suppressing, &Tables::default());
        assert_eq!(kernel.answers, [(IpAddr::from([10, 0, 0, 2]), mac(2))].into());
        let port = kernel.device.and_then(|device| device.segment).expect("a port");
        assert!(port.suppress && !port.learning);
    }

    #[test]
    fn an_operators_bridge_gets_no_addresses_and_somebody_is_told() {
        let kernel = plan(&segment(), &bridge(None));
        assert!(kernel.bridge_addresses.is_empty());
        assert_eq!(kernel.bridge.and_then(|bridge| bridge.own), None);
        let said = cautions(&segment(), &bridge(None), false, Mtu(1450));
        assert!(said.len() == 2 && said[1].contains("br7 has MTU 1500"), "{said:?}");
        assert_eq!(cautions(&segment(), &bridge(None), true, Mtu(1500)), Vec::<String>::new());
    }
}
