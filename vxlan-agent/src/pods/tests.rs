use super::*;
use crate::kernel::{Address, FdbEntry, Neighbour, RouteEntry};
use vxlan_ebpf_common::maps::link as link_flags;

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

fn route(to: &str, oif: u32) -> RouteEntry {
    let (to, oif) = (to.parse().expect("prefix"), Some(IfIndex(oif)));
    RouteEntry { to, priority: 0, oif, legs: vec![], via: None, src: None, ours: false }
}

#[derive(Clone, Default)]
struct World {
    tables: Tables,
    before: BTreeMap<IpAddr, Endpoint>,
    veths_before: BTreeMap<IfIndex, LinkEntry>,
    patience: Patience,
}

impl World {
    fn new(links: Vec<Link>) -> Self {
        let links = links.into_iter().map(|link| (link.index, link)).collect();
        Self { tables: Tables { links, ..Tables::default() }, ..Self::default() }
    }

    /// A bridge 10.1.0.1/24 with one pod veth.
    fn bridged() -> Self {
        let port = Link { master: Some(IfIndex(BRIDGE)), ..link(POD, Kind::Veth) };
        let mut world = Self::new(vec![link(UNDERLAY, Kind::Veth), link(BRIDGE, Kind::Bridge), port]);
        world.tables.addresses.insert(Address { ifindex: IfIndex(BRIDGE), ip: ip("10.1.0.1"), prefix: 24 });
        world
    }

    fn neighbour(mut self, device: u32, address: &str, mac: Mac) -> Self {
        self.tables.neighbours.insert(
            (IfIndex(device), ip(address)),
            Neighbour { mac, permanent: false, lasting: false, ours: false },
        );
        self
    }

    fn learnt(mut self, port: u32, mac: Mac, permanent: bool) -> Self {
        let entry = FdbEntry { port: IfIndex(port), permanent, ..FdbEntry::default() };
        self.tables.fdb.insert((IfIndex(BRIDGE), mac, 0), entry);
        self
    }

    fn route(mut self, to: &str, oif: u32) -> Self {
        self.tables.routes.insert(route(to, oif));
        self
    }

    fn pods(&self) -> Pods {
        let subnets = ["10.1.0.0/24", "fd00:1::/64"].map(|s| s.parse().expect("subnet"));
        let Self { tables, before, veths_before, patience } = self;
        let underlays = &[IfIndex(UNDERLAY)].into();
        Search { network: 1, tables, subnets: &subnets, underlays, before, veths_before, patience }.run()
    }
}

#[test]
fn a_veth_on_a_pod_bridge_is_known_before_any_address() {
    let pods = World::bridged().pods();
    assert_eq!(pods.veths, [(IfIndex(POD), LinkEntry { network: 1, flags: link_flags::NEW })].into());
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
        found: 1,
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
    world.tables.links.remove(&IfIndex(POD));
    assert_eq!(world.pods().endpoints, BTreeMap::new(), "unless the veth left the bridge");
}

/// The address of the pod of [`two_pods`] that the other one claims.
const HELD: &str = "10.1.0.2";
const OTHER: u32 = 11;

/// A pod that has had [`HELD`] for long, and another on the same bridge with 10.1.0.3.
fn two_pods() -> World {
    let mut world = World::bridged();
    let port = Link { master: Some(IfIndex(BRIDGE)), ..link(OTHER, Kind::Veth) };
    world.tables.links.insert(port.index, port);
    let world = world.neighbour(BRIDGE, HELD, mac(98)).learnt(POD, mac(98), false);
    let world = world.neighbour(BRIDGE, "10.1.0.3", mac(99)).learnt(OTHER, mac(99), false);
    let world =
        World { patience: Patience { grown: [POD, OTHER].map(IfIndex).into(), ..world.patience }, ..world };
    world.later().later()
}

impl World {
    /// With what was found in the maps.
    fn later(self) -> Self {
        let Pods { endpoints, veths, .. } = self.pods();
        Self { before: endpoints, veths_before: veths, ..self }
    }

    /// The interface that [`HELD`] belongs to, and whether that is in dispute.
    fn held(&self) -> Option<(u32, bool)> {
        let endpoint = *self.pods().endpoints.get(&ip(HELD))?;
        Some((endpoint.ifindex, endpoint.flags & endpoint::DISPUTED != 0))
    }

    fn calm(mut self) -> Self {
        self.patience.calm = [ip(HELD)].into();
        self
    }

    fn flags(&self, veth: u32) -> u32 {
        self.pods().veths[&IfIndex(veth)].flags
    }
}

#[test]
fn an_address_that_a_neighbour_claims_is_in_dispute_and_stays_so() {
    let claimed = two_pods().neighbour(BRIDGE, HELD, mac(99));
    assert_eq!(claimed.held(), Some((POD, true)));
    let claim = Claim { mac: mac(99), port: Some(IfIndex(OTHER)) };
    assert_eq!(claimed.pods().claims, [(ip(HELD), claim)].into());
    assert_eq!(
        claimed.clone().later().calm().held(),
        Some((POD, true)),
        "time proves nothing for the claimant"
    );
    assert_eq!(claimed.pods().endpoints[&ip("10.1.0.3")].flags, 0, "the claimant's own address");
    // Nor is a MAC that the bridge has not learnt yet anybody's.
    assert_eq!(two_pods().neighbour(BRIDGE, HELD, mac(97)).held(), Some((POD, true)));
}

#[test]
fn an_address_whose_mac_a_neighbour_has_taken_is_in_dispute() {
    let mut world = two_pods();
    world.tables.fdb.remove(&(IfIndex(BRIDGE), mac(98), 0));
    let world = world.learnt(OTHER, mac(98), false);
    assert_eq!(world.held(), Some((POD, true)));
    assert_eq!(world.pods().endpoints[&ip(HELD)].mac, mac(98).0);
}

#[test]
fn a_dispute_ends_when_the_kernel_has_said_for_long_what_it_said_before() {
    let back = two_pods().neighbour(BRIDGE, HELD, mac(99)).later().neighbour(BRIDGE, HELD, mac(98));
    assert_eq!(back.held(), Some((POD, true)), "not at once");
    assert_eq!(back.pods().claims[&ip(HELD)].port, Some(IfIndex(POD)));
    let back = back.calm();
    assert_eq!((back.held(), back.pods().claims), (Some((POD, false)), BTreeMap::new()));
}

#[test]
fn an_address_whose_pod_is_gone_is_the_claimants_at_once() {
    let claimed = || two_pods().neighbour(BRIDGE, HELD, mac(99));
    for claimed in [claimed(), claimed().later()] {
        for gone in [
            |world: &mut World| drop(world.tables.links.remove(&IfIndex(POD))),
            |world: &mut World| world.tables.links.get_mut(&IfIndex(POD)).expect("there").master = None,
            |world: &mut World| {
                world.tables.links.get_mut(&IfIndex(POD)).expect("there").sends_ethernet = false
            },
        ] {
            let mut world = claimed.clone();
            gone(&mut world);
            assert_eq!(world.held(), Some((OTHER, false)));
        }
    }
}

#[test]
fn a_pod_with_a_new_mac_is_no_dispute() {
    let world = two_pods().neighbour(BRIDGE, HELD, mac(97)).learnt(POD, mac(97), false);
    assert_eq!(world.held(), Some((POD, false)));
    assert_eq!(world.pods().endpoints[&ip(HELD)].mac, mac(97).0);
}

#[test]
fn a_pod_is_known_once_its_address_is_in_the_maps() {
    use link_flags::{HAD4, HAD6, NEW, OWNS4, OWNS6, SEVERAL4};
    let world = World::bridged().neighbour(BRIDGE, HELD, mac(99)).learnt(POD, mac(99), false);
    assert_eq!(world.flags(POD), NEW);
    let world = world.later();
    assert_eq!(world.flags(POD), NEW | OWNS4 | HAD4);
    let world = world.neighbour(BRIDGE, "fd00:1::2", mac(99)).later();
    assert_eq!(world.flags(POD), NEW | OWNS4 | HAD4 | OWNS6 | HAD6);
    let mut world = world.neighbour(BRIDGE, "10.1.0.9", mac(99)).later().later();
    world.patience.grown = [IfIndex(POD)].into();
    let old = OWNS4 | HAD4 | SEVERAL4 | OWNS6 | HAD6;
    assert_eq!(world.flags(POD), old);
    let mut world = world.later();
    world.tables.neighbours.clear();
    assert_eq!(world.flags(POD), HAD4 | SEVERAL4 | HAD6, "what it had is not forgotten");
    world.patience = Patience::default();
    assert_eq!(world.flags(POD) & NEW, 0, "it comes up once");
}

#[test]
fn a_pod_whose_address_is_in_dispute_is_not_held_to_it() {
    let claimed = two_pods().neighbour(BRIDGE, HELD, mac(99));
    assert_eq!(claimed.flags(POD), link_flags::HAD4);
    assert_eq!(claimed.flags(OTHER), link_flags::HAD4 | link_flags::OWNS4);
}

#[test]
fn of_two_routes_to_a_pod_the_kernels_choice_counts() {
    let mut world =
        World::new(vec![link(POD, Kind::Veth), link(OTHER, Kind::Veth)]).route("10.1.0.2/32", OTHER);
    let second = RouteEntry { priority: 100, ..route("10.1.0.2/32", POD) };
    world.tables.routes.insert(second);
    let world = world.neighbour(POD, HELD, mac(98)).neighbour(OTHER, HELD, mac(99));
    assert_eq!(world.held(), Some((OTHER, false)));
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
    assert!(world.pods().veths.contains_key(&IfIndex(POD)));
    assert_eq!(world.pods().endpoints, BTreeMap::new());
    let world = world.neighbour(POD, "10.1.0.2", mac(99));
    let expected = Endpoint {
        ifindex: POD,
        mac: mac(99).0,
        gateway_mac: mac(POD).0,
        mtu: 1450,
        found: 1,
        ..Endpoint::default()
    };
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
