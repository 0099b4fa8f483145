use proptest::prelude::*;

use super::*;
use crate::cluster::{Candidate, Viewer};
use crate::config::{KubernetesConfig, NetworkConfig, NodeConfig, PodsConfig, Segment, StateConfig};
use crate::datapath;
use crate::kernel;
use crate::kernel::{Kind, Link, Rule, WantedHeaders};
use crate::net::{Mac, Mtu, Vni};
use vxlan_ebpf_common::maps::Addr;

/// The network's number.
const NETWORK: NetworkId = 3;

pub(super) fn config(fastpath: Fastpath) -> View {
    let node = NodeConfig {
        name: "a".into(),
        underlay: None,
        address: None,
        pin_dir: "/".into(),
        run_dir: "/".into(),
        attach: crate::config::Attach::Auto,
        xdp: crate::config::Xdp::Auto,
        healthz: None,
        metrics: None,
        connectivity: None,
    };
    let network = NetworkConfig {
        name: "pods".into(),
        kind: crate::config::Kind::L3,
        vni: Vni::try_from(7).expect("in range"),
        port: 8472,
        mtu: None,
        device: "vxlan7".into(),
        fastpath,
        source_check: SourceCheck::Count,
        flows: 256,
        malformed: Guard::Kernel,
        other_vni: Guard::Kernel,
        notrack: false,
        direct_routing: false,
        headers: WantedHeaders::default(),
    };
    View { node: node.into(), network, pods: PodsConfig::default(), state: StateConfig::File("/".into()) }
}

/// Nodes 192.0.2.n with subnets 10.n.0.0/24 and fd00:n::/64, seen from node 1, called 'a'.
pub(super) fn cluster(numbers: &BTreeSet<u8>) -> ClusterState {
    let node = |n: u8| Candidate {
        name: if n == 1 { "a".into() } else { format!("node-{n}") },
        vtep: IpAddr::from([192, 0, 2, n]),
        mac: None,
        stations: vec![],
        subnets: vec![
            format!("10.{n}.0.0/24").parse().expect("subnet"),
            format!("fd00:{n}::/64").parse().expect("subnet"),
        ],
    };
    let viewer = Viewer {
        node: "a".into(),
        network: "pods".into(),
        l2: false,
        vni: Vni::try_from(7).expect("in range"),
    };
    let nodes = std::iter::once(1).chain(numbers.iter().copied().filter(|n| *n != 1)).map(node).collect();
    ClusterState::new(nodes, &viewer).expect("valid")
}

pub(super) fn asked(underlay: &Underlay) -> Asked {
    Asked { source: underlay.address, vrf: None, port: 8472, tos: 0 }
}

/// Numbers of the cluster's VTEPs.
fn ids(cluster: &ClusterState, previous: &DatapathState) -> BTreeMap<Key6, VtepId> {
    let keys = cluster.remotes.values().map(|node| Key6::new(NETWORK, node.vtep.into()));
    vtep_ids(&keys.collect(), previous)
}

pub(super) struct World {
    config: View,
    tables: Tables,
    underlay: Underlay,
    next_hops: BTreeMap<IpAddr, Option<NextHop>>,
    previous: DatapathState,
    xdp: Option<Place>,
    foreign: Vec<Foreign>,
    ruleset: Ruleset,
    by_address: bool,
    policies: Vec<Policy>,
}

impl World {
    pub(super) fn new(fastpath: Fastpath) -> Self {
        let underlay = Underlay {
            ifindex: IfIndex(2),
            name: "eth0".into(),
            address: IpAddr::from([192, 0, 2, 1]),
            inner_mtu: Mtu(1450),
        };
        let (tables, next_hops, previous) = (Tables::default(), BTreeMap::new(), DatapathState::default());
        let config = config(fastpath);
        let (xdp, foreign, ruleset) = (None, vec![], Ruleset::default());
        let (by_address, policies) = (false, vec![]);
        Self { config, tables, underlay, next_hops, previous, xdp, foreign, ruleset, by_address, policies }
    }

    fn plan(&self, cluster: &ClusterState) -> Desired {
        self.with_input(&self.tables, cluster, |input| input.plan())
    }

    /// The plan of a bridged network.
    pub(super) fn segment(
        &self,
        segment: &Segment,
        tables: &Tables,
        cluster: &ClusterState,
        filters: BridgeFilters,
    ) -> Desired {
        let plan = |input: &Input<'_>| {
            SegmentInput { input, segment, side: &input.sides[0], filters, held: None }.plan()
        };
        self.with_input(tables, cluster, plan)
    }

    pub(super) fn with_input(
        &self,
        tables: &Tables,
        cluster: &ClusterState,
        plan: impl FnOnce(&Input<'_>) -> Desired,
    ) -> Desired {
        let Self { config, underlay, next_hops, previous, xdp, foreign, ruleset, by_address, .. } = self;
        let (source_ports, xdp) = ((32_768, 60_999), xdp.as_ref());
        let asked = asked(underlay);
        let headers = config.network.headers.over(Headers::of_new_device(false));
        let (underlay, device) = (underlay.clone(), Some(IfIndex(9)));
        let sides = &[Side { underlay, device, asked, offloads: true, headers }];
        let ways = &[(asked, next_hops.clone())].into();
        let vtep_ids = &ids(cluster, previous);
        plan(&Input {
            id: NETWORK,
            vtep_ids,
            config,
            cluster,
            tables,
            sides,
            ways,
            policies: &self.policies,
            foreign,
            source_ports,
            hop_limits: &HopLimits { v4: 64, v6: BTreeMap::new() },
            xdp,
            takes_back: true,
            ruleset,
            by_address: *by_address,
            hands_over: true,
            patience: &Patience::default(),
            previous,
        })
    }
}

#[test]
fn flows_are_all_between_two_addresses_where_nobody_asks_for_more() {
    for by_address in [false, true] {
        let world = World { by_address, ..World::new(Fastpath::Verified) };
        let desired = world.plan(&cluster(&[2].into()));
        let flags = desired.datapath.networks[&NETWORK].flags;
        assert_eq!(flags & BY_ADDRESS != 0, by_address);
    }
}

#[test]
fn xdp_comes_with_its_delivery_and_a_mark_that_stays() {
    let mut world = World::new(Fastpath::Direct);
    let nodes = cluster(&[2].into());
    let without = world.plan(&nodes).datapath;
    assert_eq!(node(None, 99, &world.previous), maps::Node::default());
    world.xdp = Some(Place { ifindex: IfIndex(1), name: "eth0".into(), vlan: 5 });
    let with = world.plan(&nodes).datapath;
    let marked = node(world.xdp.as_ref(), 99, &world.previous);
    assert_eq!((marked.mark, marked.vlan), (99, 5));
    let added: Vec<_> =
        with.attachments.difference(&without.attachments).map(|a| (a.hook, a.ifindex)).collect();
    assert_eq!(added, [(Hook::StrippedIngress, 2), (Hook::UnderlayXdp, 1)]);
    let previous = DatapathState { node: maps::Node { mark: 7, ..marked }, ..with };
    assert_eq!(node(world.xdp.as_ref(), 99, &previous).mark, 7);
}

fn subnet(text: &str) -> IpNetwork {
    text.parse().expect("subnet")
}

#[test]
fn the_kernel_gets_what_flannel_would_put_there() {
    let kernel = World::new(Fastpath::Direct).plan(&cluster(&[2].into())).kernel.remove(0);
    let (own4, own6) = (subnet("10.1.0.0/24").ip(), subnet("fd00:1::/64").ip());
    let (via4, via6) = (subnet("10.2.0.0/24").ip(), subnet("fd00:2::/64").ip());
    assert_eq!(kernel.addresses, [own4, own6].into());
    let mac = cluster(&[2].into()).remotes["node-2"].mac;
    assert_eq!(kernel.neighbours, [(via4, mac), (via6, mac)].into());
    assert_eq!(kernel.fdb, [(mac, IpAddr::from([192, 0, 2, 2]))].into());
    assert_eq!(kernel.routes[&subnet("10.2.0.0/24")], Route { via: via4, past: None, src: None });
    assert_eq!(kernel.routes[&subnet("fd00:2::/64")], Route { via: via6, past: None, src: Some(own6) });
    let device = kernel.device.expect("planned");
    assert_eq!((device.name.as_str(), device.port, device.mtu), ("vxlan7", 8472, Mtu(1450)));
}

#[test]
fn the_maps_get_the_network_and_its_vteps() {
    let datapath = World::new(Fastpath::Direct).plan(&cluster(&[2].into())).datapath;
    let network = datapath.networks[&NETWORK];
    assert_eq!((network.id, network.name()), (NETWORK, Some("pods")));
    assert_eq!(datapath.vnis, [(VniKey::new(7, network.port()), NETWORK)].into());
    assert_eq!(datapath.links[&IfIndex(9)].network, NETWORK, "the vxlan device");
    assert_eq!(network.port, [0x21, 0x18]);
    assert_eq!(datapath.networks[&NETWORK].mode, Mode::Direct as u8);
    assert_eq!(datapath.networks[&NETWORK].flags, TOLERATE_VIOLATIONS);
    assert_eq!(
        (datapath.networks[&NETWORK].local4.port_min, datapath.networks[&NETWORK].local4.port_max),
        (32_768, 60_999)
    );
    assert_eq!(datapath.networks[&NETWORK].local4.addr, Addr::from(IpAddr::from([192, 0, 2, 1])));
    assert_eq!(datapath.networks[&NETWORK].local4.mtu, 1450);
    assert_eq!(datapath.networks[&NETWORK].local6, LocalVtep::default());
    assert_eq!(datapath.routes[&(NETWORK, subnet("10.1.0.0/24"))], LOCAL_VTEP);
    let id = datapath.routes[&(NETWORK, subnet("fd00:2::/64"))];
    assert_eq!(datapath.vteps[&id].addr, Addr::from(IpAddr::from([192, 0, 2, 2])));
    assert_eq!(datapath.vtep_ids[&Key6::new(NETWORK, IpAddr::from([192, 0, 2, 2]).into())], id);
    assert_eq!(datapath.stations.values().map(|station| station.vtep).collect::<Vec<_>>(), [id]);
    assert_eq!(datapath.attachments.len(), 3);
}

#[test]
fn with_the_fast_path_off_nothing_is_attached() {
    let datapath = World::new(Fastpath::Off).plan(&cluster(&[2].into())).datapath;
    assert_eq!(datapath.attachments, BTreeSet::new());
    assert_eq!(datapath.networks[&NETWORK].mode, Mode::Off as u8);
}

fn link(index: u32) -> Link {
    Link {
        index: IfIndex(index),
        name: format!("eth{index}"),
        alias: None,
        kind: Kind::Other,
        mac: Mac::default(),
        mtu: Mtu(1500),
        up: true,
        loopback: false,
        master: None,
        lower: None,
        peer_elsewhere: false,
        makes_addresses: true,
        sends_ethernet: true,
    }
}

/// A world with `direct_routing`, in which node 2 is on the link of `eth2` and node 3 behind a router.
fn world_with_direct_routing() -> World {
    let mut world = World::new(Fastpath::Verified);
    world.config.network.direct_routing = true;
    world.tables.links.insert(IfIndex(2), link(2));
    for (n, neighbour) in [(2, 2), (3, 254)] {
        let hop = NextHop::new(IfIndex(2), IpAddr::from([192, 0, 2, neighbour]));
        world.next_hops.insert(IpAddr::from([192, 0, 2, n]), Some(hop));
    }
    world
}

/// Interfaces that lead past the tunnel to the IPv4 subnets of nodes 2 and 3, and whether programs know of it.
fn past(world: &World) -> [(Option<u32>, bool); 2] {
    let Desired { kernel, datapath, .. } = world.plan(&cluster(&[2, 3].into()));
    [2, 3].map(|n| {
        let to = subnet(&format!("10.{n}.0.0/24"));
        let vtep = datapath.vteps[&datapath.routes[&(NETWORK, to)]];
        (kernel[0].routes[&to].past.map(|oif| oif.0), vtep.flags & vtep::DIRECT != 0)
    })
}

#[test]
fn a_node_on_the_same_link_is_reached_past_the_tunnel_over_its_addresss_ip_version() {
    let world = world_with_direct_routing();
    assert_eq!(past(&world), [(Some(2), true), (None, false)]);
    let kernel = world.plan(&cluster(&[2, 3].into())).kernel.remove(0);
    let route = Route { via: IpAddr::from([192, 0, 2, 2]), past: Some(IfIndex(2)), src: None };
    assert_eq!(kernel.routes[&subnet("10.2.0.0/24")], route);
    assert_eq!(kernel.routes[&subnet("fd00:2::/64")].past, None, "IPv6 stays in the tunnel over IPv4");
    assert_eq!((kernel.neighbours.len(), kernel.fdb.len()), (4, 2), "what the tunnel needs stays");
}

#[test]
fn nobody_is_reached_past_the_tunnel_unless_it_is_asked_for() {
    let mut world = world_with_direct_routing();
    world.config.network.direct_routing = false;
    assert_eq!(past(&world), [(None, false); 2]);
}

#[test]
fn a_link_that_is_not_the_underlays_or_carries_no_frames_leads_to_nobody() {
    let mut world = world_with_direct_routing();
    world.tables.links.get_mut(&IfIndex(2)).expect("there").sends_ethernet = false;
    assert_eq!(past(&world), [(None, false); 2]);
    let mut world = world_with_direct_routing();
    world.tables.links.insert(IfIndex(3), link(3));
    let vtep = IpAddr::from([192, 0, 2, 2]);
    world.next_hops.insert(vtep, Some(NextHop::new(IfIndex(3), vtep)));
    assert_eq!(past(&world), [(None, false); 2]);
    world.next_hops.insert(vtep, None);
    assert_eq!(past(&world), [(None, false); 2]);
}

#[test]
fn what_ipsec_protects_stays_in_the_tunnel() {
    let mut world = world_with_direct_routing();
    world.policies = Policy::everything(Way::Out).into();
    assert_eq!(past(&world), [(None, false); 2]);
}

#[test]
fn what_no_program_may_send_out_of_is_no_next_hop() {
    let mut world = World::new(Fastpath::Direct);
    let vtep = IpAddr::from([192, 0, 2, 2]);
    let ifindex = |world: &World| world.plan(&cluster(&[2].into())).datapath.vteps[&1].ifindex;
    let hop = |index| Some(NextHop::new(IfIndex(index), vtep));
    world.next_hops = [(vtep, hop(5))].into();
    assert_eq!(ifindex(&world), 0, "an unknown interface");
    world.tables.links.insert(IfIndex(5), link(5));
    assert_eq!(ifindex(&world), 5);
    world.tables.links.insert(IfIndex(5), Link { sends_ethernet: false, ..link(5) });
    assert_eq!(ifindex(&world), 0, "down, or no Ethernet");
    world.next_hops = [(vtep, hop(9))].into();
    world.tables.links.insert(IfIndex(9), link(9));
    assert_eq!(ifindex(&world), 0, "our own device");
    world.next_hops = [(vtep, hop(5))].into();
    world.tables.links.insert(IfIndex(5), link(5));
    world.tables.rules = vec![Rule { looks_deeper: true, ..Rule::default() }];
    assert_eq!(ifindex(&world), 0, "a rule that no question can express");
}

#[test]
fn a_vtep_takes_what_its_route_takes() {
    let mut world = World::new(Fastpath::Direct);
    let vtep = IpAddr::from([192, 0, 2, 2]);
    for (interface, route, inner) in
        [(1500, None, 1450), (9000, None, 1450), (1400, None, 1350), (1500, Some(Mtu(1300)), 1250)]
    {
        let mtu = Mtu(interface);
        world.tables.links.insert(IfIndex(5), Link { mtu, ..link(5) });
        let hop = NextHop { mtu: route, ..NextHop::new(IfIndex(5), vtep) };
        world.next_hops = [(vtep, Some(hop))].into();
        assert_eq!(world.plan(&cluster(&[2].into())).datapath.vteps[&1].mtu, inner);
    }
}

#[test]
fn outer_headers_are_the_devices_or_the_ways() {
    let mut world = World::new(Fastpath::Direct);
    let plan = |world: &World| {
        let Desired { datapath, left, .. } = world.plan(&cluster(&[2].into()));
        (datapath.networks[&NETWORK].local4, datapath.vteps[&1], left)
    };
    let vtep = IpAddr::from([192, 0, 2, 2]);
    world.tables.links.insert(IfIndex(5), link(5));
    let plain = NextHop::new(IfIndex(5), vtep);
    world.next_hops = [(vtep, Some(plain.clone()))].into();
    let (local, to, _) = plan(&world);
    assert_eq!((local.ttl, local.tos, local.flags, to.ttl, to.flags), (0, 0, 0, 64, 0));

    world.next_hops = [(vtep, Some(NextHop { hop_limit: Some(9), mtu_locked: true, ..plain }))].into();
    let (_, to, _) = plan(&world);
    assert_eq!((to.ttl, to.flags), (9, vtep::NO_DF));

    let device = kernel::Vxlan { source_ports: (1000, 2000), label: 5, ..kernel::Vxlan::default() };
    world.tables.links.insert(IfIndex(9), Link { kind: Kind::Vxlan(device.clone()), ..link(9) });
    world.config.network.headers = WantedHeaders {
        ttl: Some(Field::Fixed(7)),
        tos: Some(Field::Inherit),
        checksum: Some(true),
        df: None,
    };
    let (local, to, left) = plan(&world);
    assert_eq!((local.ttl, local.flags), (7, local::TOS_INSIDE | local::CHECKSUM));
    assert_eq!((local.port_min, local.port_max, local.label), (1000, 2000, 5));
    assert_eq!((to.ifindex, left), (5, vec![]));

    let by_tos = Rule { looks_at_tos: true, ..Rule::default() };
    world.tables.rules = vec![by_tos];
    assert_eq!(plan(&world).1.ifindex, 0, "packets of different TOS leave by different ways");

    let odd = kernel::Vxlan { plain: false, ..device };
    world.tables.links.insert(IfIndex(9), Link { kind: Kind::Vxlan(odd), ..link(9) });
    let (local, _, left) = plan(&world);
    assert_ne!(local.flags & local::NO_OFFLOAD, 0);
    assert!(left.len() == 1 && left[0].starts_with("device eth9 writes more than a VNI"), "{left:?}");
}

#[test]
fn next_hops_are_on_link_or_a_gateway_or_left_to_the_kernel() {
    let mut world = World::new(Fastpath::Direct);
    let vtep = |n| IpAddr::from([192, 0, 2, n]);
    let hop = |neighbour| Some(NextHop::new(IfIndex(5), neighbour));
    world.tables.links.insert(IfIndex(5), link(5));
    world.next_hops = [(vtep(2), hop(vtep(2))), (vtep(3), hop(vtep(254))), (vtep(4), None)].into();
    let datapath = world.plan(&cluster(&[2, 3, 4, 5].into())).datapath;
    let of = |n| datapath.vteps[&datapath.vtep_ids[&Key6::new(NETWORK, vtep(n).into())]];
    assert_eq!(
        (of(2).ifindex, of(2).next_hop.family, &of(2).next_hop.addr[..4]),
        (5, 2, &[192, 0, 2, 2][..])
    );
    assert_eq!(of(3).next_hop.addr[..4], [192, 0, 2, 254]);
    for unresolved in [of(4), of(5)] {
        assert_eq!((unresolved.ifindex, unresolved.next_hop), (0, MapNextHop::default()));
    }
}

fn nodes() -> impl Strategy<Value = BTreeSet<u8>> {
    prop::collection::btree_set(2..30_u8, 0..20)
}

proptest! {
    #[test]
    fn a_vtep_keeps_its_id_and_no_id_changes_hands_in_one_step(steps in prop::collection::vec(nodes(), 1..6)) {
        let mut world = World::new(Fastpath::Direct);
        for step in steps {
            let next = world.plan(&cluster(&step)).datapath;
            let ids: BTreeSet<_> = next.vtep_ids.values().collect();
            prop_assert_eq!(ids.len(), step.len());
            for (address, id) in &next.vtep_ids {
                prop_assert_eq!(world.previous.vtep_ids.get(address).unwrap_or(id), id);
                prop_assert!(world.previous.vteps.get(id).is_none_or(|vtep| vtep.addr == address.addr));
            }
            world.previous = next;
        }
    }

    #[test]
    fn planning_again_changes_nothing(step in nodes()) {
        let mut world = World::new(Fastpath::Direct);
        let first = world.plan(&cluster(&step));
        world.previous = first.datapath.clone();
        let second = world.plan(&cluster(&step));
        prop_assert_eq!(datapath::diff(&first.datapath, &second.datapath), vec![]);
        prop_assert_eq!(kernel::diff(&first.kernel[0], &second.kernel[0]), vec![]);
    }
}

#[test]
fn a_network_over_both_ip_versions_has_a_device_for_each_and_one_fast_path() {
    let viewer = Viewer {
        node: "a".into(),
        network: "pods".into(),
        l2: false,
        vni: Vni::try_from(7).expect("in range"),
    };
    let node = |name: &str, vtep: &str, mac, to: &str| Candidate {
        name: name.into(),
        vtep: vtep.parse().expect("address"),
        mac: Some(Mac([2, 0, 0, 0, 0, mac])),
        stations: vec![],
        subnets: vec![subnet(to)],
    };
    let over = |nodes| ClusterState::new(nodes, &viewer).expect("valid");
    let cluster = ClusterState::dual(
        over(vec![node("a", "192.0.2.1", 1, "10.1.0.0/24"), node("b", "192.0.2.2", 2, "10.2.0.0/24")]),
        over(vec![node("a", "2001:db8::1", 3, "fd00:1::/64"), node("b", "2001:db8::2", 4, "fd00:2::/64")]),
    );
    let mut world = World::new(Fastpath::Direct);
    world.config.state = StateConfig::Kubernetes(KubernetesConfig::new(viewer.vni));
    let address = "2001:db8::1".parse().expect("address");
    let over6 = Underlay { address, ifindex: IfIndex(3), ..world.underlay.clone() };
    let sides = [(world.underlay.clone(), 9), (over6, 10)].map(|(underlay, device)| Side {
        asked: asked(&underlay),
        underlay,
        device: Some(IfIndex(device)),
        offloads: true,
        headers: Headers::of_new_device(device == 10),
    });
    let input = Input {
        id: NETWORK,
        vtep_ids: &ids(&cluster, &world.previous),
        config: &world.config,
        cluster: &cluster,
        tables: &world.tables,
        sides: &sides,
        ways: &Ways::new(),
        policies: &[],
        foreign: &[],
        source_ports: (32_768, 60_999),
        hop_limits: &HopLimits { v4: 64, v6: BTreeMap::new() },
        xdp: Some(&Place { ifindex: IfIndex(2), name: "eth0".into(), vlan: 0 }),
        takes_back: true,
        ruleset: &world.ruleset,
        by_address: world.by_address,
        hands_over: true,
        patience: &Patience::default(),
        previous: &world.previous,
    };
    let Desired { kernel, datapath, .. } = input.plan();
    let devices: Vec<_> =
        kernel.iter().flat_map(|k| &k.device).map(|d| (d.name.as_str(), d.mac.0[5])).collect();
    assert_eq!(devices, [("vxlan7", 1), ("flannel-v6.7", 3)]);
    let routes: Vec<Vec<_>> = kernel.iter().map(|k| k.routes.keys().copied().collect()).collect();
    assert_eq!(routes, [[subnet("10.2.0.0/24")], [subnet("fd00:2::/64")]]);
    assert_eq!(
        (datapath.networks[&NETWORK].local4.mac[5], datapath.networks[&NETWORK].local6.mac[5]),
        (1, 3)
    );
    assert_eq!((datapath.vteps.len(), datapath.stations.len(), datapath.routes.len()), (2, 2, 4));
    let devices: BTreeSet<u32> = datapath.attachments.iter().map(|a| a.ifindex).collect();
    assert_eq!(devices, [2, 3, 9, 10].into());
    let delivers = |a: &&Attachment| matches!(a.hook, Hook::StrippedIngress | Hook::UnderlayXdp);
    let with_xdp: Vec<u32> = datapath.attachments.iter().filter(delivers).map(|a| a.ifindex).collect();
    assert_eq!(with_xdp, [2, 2], "XDP goes to the first underlay");
}

#[test]
fn what_somebody_else_has_put_on_an_interface_is_passed_by_the_kernel() {
    use kernel::{Edge, What};
    let mut world = World::new(Fastpath::Verified);
    let hop = NextHop::new(IfIndex(2), IpAddr::from([192, 0, 2, 2]));
    world.next_hops.insert(IpAddr::from([192, 0, 2, 2]), Some(hop));
    world.tables.links.insert(IfIndex(2), link(2));
    let nodes = cluster(&[2].into());
    let mut flags = |ifindex, edge, what, behind| {
        let name = String::new();
        world.foreign = vec![Foreign { ifindex: IfIndex(ifindex), edge, what, name, behind }];
        let planned = world.plan(&nodes);
        let vtep = planned.datapath.vteps.values().next().map(|vtep| vtep.flags);
        assert_eq!(planned.hooked, world.foreign, "said in status");
        (planned.datapath.networks[&NETWORK].local4.flags, vtep)
    };
    let (device, underlay) = (9, 2);
    assert_eq!(flags(device, Edge::Exit, What::Qdisc, true), (local::HOOKED_ENCAP, Some(0)));
    let tunnel = local::HOOKED_DECAP | local::HOOKED_TUNNEL;
    assert_eq!(flags(device, Edge::Entry, What::Program, true), (tunnel, Some(0)));
    assert_eq!(flags(device, Edge::Entry, What::Program, false), (local::HOOKED_DECAP, Some(0)));
    assert_eq!(flags(underlay, Edge::Entry, What::Filter, true), (local::HOOKED_DECAP, Some(0)));
    assert_eq!(flags(underlay, Edge::Exit, What::Chain, true), (0, Some(vtep::HOOKED_OUT)));
}

#[test]
fn a_network_keeps_its_number_and_no_number_changes_hands_in_one_step() {
    let numbered = |names: &[&str], previous: &DatapathState| network_ids(names.iter().copied(), previous);
    let mut previous = DatapathState::default();
    assert_eq!(numbered(&["a", "b"], &previous), [("a".into(), 1), ("b".into(), 2)].into());
    let network = |name, id| (id, Network { id, name: name_bytes(name), ..Network::default() });
    previous.networks = [network("a", 1), network("b", 2)].into();
    assert_eq!(numbered(&["c", "b"], &previous), [("b".into(), 2), ("c".into(), 3)].into());
    let all = (0..maps::MAX_NETWORKS).map(|n| format!("n{n}")).collect::<Vec<_>>();
    let ids = network_ids(all.iter().map(String::as_str), &previous);
    let distinct: BTreeSet<_> = ids.values().collect();
    assert_eq!((ids.len(), distinct.len()), (8189, 8189), "what finds no place has none");
}

#[test]
fn networks_are_merged_and_taken_apart_again() {
    let world = World::new(Fastpath::Direct);
    let one = world.plan(&cluster(&[2].into())).datapath;
    let mut all = one.clone();
    all.count_networks();
    assert_eq!((all.node.only, all.node.ports[0].get()), (NETWORK, 8472));
    let other = Network { id: 4, vni: 9, ..one.networks[&NETWORK] };
    let mut two = DatapathState { networks: [(4, other)].into(), ..DatapathState::default() };
    two.vnis.insert(VniKey::new(9, maps_port(4789)), 4);
    two.links.insert(IfIndex(33), LinkEntry { network: 4, flags: 0 });
    all.extend(two.clone());
    all.count_networks();
    assert_eq!((all.node.only, all.node.more_ports), (NO_NETWORK, 0));
    assert_eq!(all.of(NETWORK), one);
    let attachments = all.attachments.iter().filter(|at| at.ifindex == 2).copied().collect();
    assert_eq!(all.of(4), DatapathState { attachments, ..two }, "the underlay's program is everybody's");
}

fn maps_port(port: u16) -> vxlan_ebpf_common::headers::Be16 {
    vxlan_ebpf_common::headers::Be16::new(port)
}
