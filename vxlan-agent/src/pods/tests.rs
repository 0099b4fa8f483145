use super::*;
use crate::kernel::{Address, FdbEntry, Neighbour, RouteEntry};

const UNDERLAY: u32 = 2;
const BRIDGE: u32 = 3;
const POD: u32 = 10;

fn mac(n: u32) -> Mac {
    Mac([2, 0, 0, 0, 0, n as u8])
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn link(index: u32, kind: Kind) -> Link {
    Link {
        index: IfIndex(index),
        name: format!("if{index}"),
        alias: None,
        lower: None,
        peer_elsewhere: kind == Kind::Veth,
        kind,
        mac: mac(index),
        mtu: Mtu(1450),
        up: true,
        loopback: false,
        master: None,
        makes_addresses: true,
        sends_ethernet: true,
    }
}

struct World {
    tables: Tables,
    before: BTreeMap<IpAddr, Endpoint>,
}

impl World {
    fn new(links: Vec<Link>) -> Self {
        let links = links.into_iter().map(|link| (link.index, link)).collect();
        Self { tables: Tables { links, ..Tables::default() }, before: BTreeMap::new() }
    }

    /// A bridge 10.1.0.1/24 with one pod veth.
    fn bridged() -> Self {
        let port = Link { master: Some(IfIndex(BRIDGE)), ..link(POD, Kind::Veth) };
        let mut world = Self::new(vec![link(UNDERLAY, Kind::Veth), link(BRIDGE, Kind::Bridge), port]);
        world.tables.addresses.insert(Address { ifindex: IfIndex(BRIDGE), ip: ip("10.1.0.1"), prefix: 24 });
        world
    }

    fn neighbour(mut self, device: u32, address: &str, mac: Mac) -> Self {
        self.tables.neighbours.insert((IfIndex(device), ip(address)), Neighbour { mac, permanent: false });
        self
    }

    fn learnt(mut self, port: u32, mac: Mac, permanent: bool) -> Self {
        let entry = FdbEntry { master: Some(IfIndex(BRIDGE)), vtep: None, permanent };
        self.tables.fdb.insert((IfIndex(port), mac, 0), entry);
        self
    }

    fn route(mut self, to: &str, oif: u32) -> Self {
        let to = to.parse().expect("prefix");
        let oif = Some(IfIndex(oif));
        self.tables.routes.insert(RouteEntry {
            to,
            priority: 0,
            oif,
            legs: vec![],
            via: None,
            src: None,
            ours: false,
        });
        self
    }

    fn pods(&self) -> Pods {
        let subnets = ["10.1.0.0/24", "fd00:1::/64"].map(|s| s.parse().expect("subnet"));
        let (tables, before) = (&self.tables, &self.before);
        let underlays = &[IfIndex(UNDERLAY)].into();
        Search { tables, subnets: &subnets, underlays, before }.run()
    }
}

#[test]
fn a_veth_on_a_pod_bridge_is_known_before_any_address() {
    let pods = World::bridged().pods();
    assert_eq!(pods.veths, [IfIndex(POD)].into());
    assert_eq!(pods.endpoints, BTreeMap::new());
    assert_eq!(pods.headroom[&IfIndex(BRIDGE)].mtu, Mtu(1450));
}

#[test]
fn a_bridged_pod_is_where_the_bridge_learnt_its_mac() {
    let world = World::bridged()
        .neighbour(BRIDGE, "10.1.0.2", mac(99))
        .neighbour(BRIDGE, "fd00:1::2", mac(99))
        .learnt(POD, mac(99), false);
    let expected = Endpoint {
        ifindex: POD,
        mac: mac(99).0,
        gateway_mac: mac(BRIDGE).0,
        bridge: BRIDGE,
        mtu: 1450,
        ..Endpoint::default()
    };
    assert_eq!(world.pods().endpoints, [(ip("10.1.0.2"), expected), (ip("fd00:1::2"), expected)].into());
}

#[test]
fn a_neighbour_that_the_bridge_has_not_seen_is_no_endpoint() {
    let world = World::bridged().neighbour(BRIDGE, "10.1.0.2", mac(99));
    assert_eq!(world.pods().endpoints, BTreeMap::new());
}

#[test]
fn a_pod_stays_when_the_bridge_forgets_its_mac() {
    let mut world = World::bridged().neighbour(BRIDGE, "10.1.0.2", mac(99)).learnt(POD, mac(99), false);
    world.before = world.pods().endpoints;
    world.tables.fdb.clear();
    assert_eq!(world.pods().endpoints, world.before);
    // … unless the address is another's by now, or the veth left the bridge.
    let moved = World { tables: world.tables.clone(), before: world.before.clone() };
    assert_eq!(moved.neighbour(BRIDGE, "10.1.0.2", mac(98)).pods().endpoints, BTreeMap::new());
    world.tables.links.remove(&IfIndex(POD));
    assert_eq!(world.pods().endpoints, BTreeMap::new());
}

#[test]
fn a_pod_that_moved_to_another_port_is_found_there() {
    let mut world = World::bridged().neighbour(BRIDGE, "10.1.0.2", mac(99)).learnt(POD, mac(99), false);
    world.before = world.pods().endpoints;
    world.tables.fdb.clear();
    world.tables.links.insert(IfIndex(11), Link { master: Some(IfIndex(BRIDGE)), ..link(11, Kind::Veth) });
    let world = world.learnt(11, mac(99), false);
    assert_eq!(world.pods().endpoints[&ip("10.1.0.2")].ifindex, 11);
}

#[test]
fn only_addresses_of_own_subnets_count_and_never_the_bridges_own() {
    let world = World::bridged()
        .neighbour(BRIDGE, "10.1.0.1", mac(99))
        .neighbour(BRIDGE, "10.2.0.2", mac(99))
        .neighbour(BRIDGE, "fe80::2", mac(99))
        .learnt(POD, mac(99), false);
    assert_eq!(world.pods().endpoints, BTreeMap::new());
}

#[test]
fn the_ports_own_address_is_no_pods() {
    let world = World::bridged().neighbour(BRIDGE, "10.1.0.2", mac(POD)).learnt(POD, mac(POD), true);
    assert_eq!(world.pods().endpoints, BTreeMap::new());
}

#[test]
fn a_bridge_without_an_address_of_ours_is_no_pod_bridge() {
    let mut world = World::bridged();
    world.tables.addresses.clear();
    assert_eq!(world.pods(), Pods::default());
}

#[test]
fn a_routed_pod_has_a_host_route_and_a_neighbour() {
    let world = World::new(vec![link(POD, Kind::Veth)]).route("10.1.0.2/32", POD);
    assert_eq!(world.pods().veths, [IfIndex(POD)].into());
    assert_eq!(world.pods().endpoints, BTreeMap::new());
    let world = world.neighbour(POD, "10.1.0.2", mac(99));
    let expected =
        Endpoint { ifindex: POD, mac: mac(99).0, gateway_mac: mac(POD).0, mtu: 1450, ..Endpoint::default() };
    assert_eq!(world.pods().endpoints, [(ip("10.1.0.2"), expected)].into());
}

#[test]
fn routes_that_lead_elsewhere_make_no_pods() {
    let local = Link { peer_elsewhere: false, ..link(11, Kind::Veth) };
    let links = vec![link(UNDERLAY, Kind::Veth), link(POD, Kind::Veth), local, link(12, Kind::Other)];
    let world = World::new(links)
        .route("10.2.0.2/32", POD)
        .route("10.1.0.2/32", 11)
        .route("10.1.0.3/32", 12)
        .route("10.1.0.4/32", UNDERLAY)
        .route("10.1.0.0/28", POD);
    assert_eq!(world.pods(), Pods::default());
}
