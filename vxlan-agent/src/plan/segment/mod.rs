//! What should be of a bridged network: in the kernel, all of it; in the fast path, known stations.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Desired, Input, Side, device_spec};
use crate::cluster::{Node, Station};
use crate::config::{Flood, Segment};
use crate::kernel::{self, Device, KernelState, SoughtBridge, Tables, larger_ports, wanted_bridge};
use crate::net::{IfIndex, Mac, Mtu};
use fastpath::SegmentPath;

mod fastpath;

/// What may filter frames on any bridge of the node, besides what netlink shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeFilters {
    /// Bridges pass IP packets to iptables.
    pub netfilter: bool,
    /// The kernel has tables of the ebtables from before nf_tables.
    pub ebtables: bool,
}

/// Everything that the plan of a bridged network depends on.
#[derive(Clone, Copy)]
pub struct SegmentInput<'a> {
    /// What the plan of any network depends on.
    pub input: &'a Input<'a>,
    /// What the configuration says of the segment.
    pub segment: &'a Segment,
    /// Where the network runs.
    pub side: &'a Side,
    /// What may filter frames.
    pub filters: BridgeFilters,
    /// The bridge of ours that the agent had last.
    pub held: Option<IfIndex>,
}

/// The bridge to look for. It has the VTEP's MAC, as it would have by itself if the device were its only port.
pub fn sought_bridge<'a>(segment: &'a Segment, own: &Node, held: Option<IfIndex>) -> SoughtBridge<'a> {
    SoughtBridge { name: &segment.bridge, mac: own.mac, held }
}

impl SegmentInput<'_> {
    /// Plans.
    pub fn plan(&self) -> Desired {
        let SegmentPath { datapath, hooked, left } = self.fastpath();
        Desired { kernel: vec![self.kernel()], datapath, hooked, claims: BTreeMap::new(), left }
    }

    fn kernel(&self) -> KernelState {
        let sought = sought_bridge(self.segment, &self.input.cluster.own, self.held);
        let mtu = self.side.underlay.inner_mtu;
        let bridge = wanted_bridge(self.input.tables, &self.input.config.network.name, &sought, mtu);
        let addresses = self.segment.addresses.iter().filter(|_| bridge.own.is_some());
        KernelState {
            device: Some(self.device()),
            bridge_addresses: addresses.copied().collect(),
            bridge: Some(bridge),
            stations: self.named().map(|(vtep, station)| (station.mac, vtep)).collect(),
            answers: self.answers(),
            flood: match self.segment.flood {
                Flood::Copies => self.input.cluster.remotes.values().map(|node| node.vtep).collect(),
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
        Device {
            segment: Some(segment),
            ..device_spec(self.input.config, &self.input.cluster.own, self.side)
        }
    }

    /// Stations behind other nodes, with their VTEP.
    fn named(&self) -> impl Iterator<Item = (IpAddr, &Station)> {
        let nodes = self.input.cluster.remotes.values();
        nodes.flat_map(|node| node.stations.iter().map(|station| (node.vtep, station)))
    }

    /// Neighbours, so that questions for known stations need not be sent to all nodes.
    fn answers(&self) -> BTreeMap<IpAddr, Mac> {
        let known = self.named().filter(|_| self.segment.suppress);
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
    use crate::cluster::{Candidate, ClusterState, Viewer};
    use crate::config::Fastpath;
    use crate::kernel::{Kind, Link, OwnBridge};
    use crate::plan::tests::World;

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

    fn desired(segment: &Segment, tables: &Tables, world: &World) -> Desired {
        world.segment(segment, tables, &cluster(), BridgeFilters::default())
    }

    fn plan(segment: &Segment, tables: &Tables) -> KernelState {
        let desired = desired(segment, tables, &World::new(Fastpath::Verified));
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
