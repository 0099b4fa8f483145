mod rules;

use super::*;
use crate::kernel::{Address, Flood, Kind, Leads, Link, MAIN, Neighbour, Object, Odd, Path, Remote, Vxlan};
use crate::net::Mtu;

const DEVICE: IfIndex = IfIndex(9);
const UNDERLAY: IfIndex = IfIndex(2);
const BRIDGE: IfIndex = IfIndex(5);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNetwork {
    text.parse().expect("a prefix")
}

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

fn vtep(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn link(index: IfIndex, name: &str, kind: Kind) -> Link {
    let mtu = Mtu(1450);
    Link {
        index,
        name: name.into(),
        kind,
        mac: mac(1),
        mtu,
        up: true,
        sends_ethernet: true,
        ..Link::default()
    }
}

/// Tables with the device, a bridge with a pod, and no other node.
fn tables() -> Tables {
    let vxlan = Vxlan { vni: Vni::try_from(1).ok(), port: 8472, local: Some(vtep(1)), ..Vxlan::default() };
    let pod = Link { master: Some(BRIDGE), peer_elsewhere: true, ..link(IfIndex(7), "veth7", Kind::Veth) };
    let links = [
        link(UNDERLAY, "eth0", Kind::Other),
        link(BRIDGE, "cni0", Kind::Bridge),
        link(DEVICE, "flannel.1", Kind::Vxlan(vxlan)),
        pod,
    ];
    let mut tables = Tables { wide: true, ..Tables::default() };
    tables.links = links.into_iter().map(|link| (link.index, link)).collect();
    tables.addresses.insert(Address { ifindex: UNDERLAY, ip: vtep(1), prefix: 24 });
    tables.addresses.insert(Address { ifindex: BRIDGE, ip: ip("10.1.0.1"), prefix: 24 });
    tables.paths.insert(path("10.1.0.0/24", BRIDGE, None));
    tables.paths.insert(path("0.0.0.0/0", UNDERLAY, Some("192.0.2.254")));
    tables
}

fn path(to: &str, leg: IfIndex, via: Option<&str>) -> Path {
    let leads = Leads::Plainly { via: via.map(ip) };
    Path { table: MAIN, to: net(to), priority: 0, leads, legs: vec![leg], src: None, object: None }
}

/// Node `n`, as flannel enters it.
fn add_node(tables: &mut Tables, n: u8) {
    let gateway = format!("10.{n}.0.0");
    let neighbour = Neighbour { mac: mac(n), permanent: true, lasting: true, ours: false };
    tables.neighbours.insert((DEVICE, ip(&gateway)), neighbour);
    tables.remotes.insert((DEVICE, mac(n)), Remote { vtep: Some(vtep(n)), plain: true, ages: false });
    tables.paths.insert(path(&format!("10.{n}.0.0/24"), DEVICE, Some(&gateway)));
}

fn sought(tables: &Tables, held: Option<IfIndex>) -> Result<Mirror, String> {
    mirror(tables, &Sought { device: "flannel.1", held, node: "a" }, &Sources::new())
}

fn seen(tables: &Tables) -> Mirror {
    sought(tables, None).expect("a device")
}

fn subnets(mirror: &Mirror) -> Vec<(String, String)> {
    let all = mirror.cluster.remotes.values();
    all.flat_map(|node| node.subnets.iter().map(|to| (to.to_string(), node.vtep.to_string()))).collect()
}

#[test]
fn flannels_nodes_are_seen_with_their_subnets() {
    let mut tables = tables();
    (2..4).for_each(|n| add_node(&mut tables, n));
    let mirror = seen(&tables);
    assert_eq!((mirror.device, mirror.vni.get(), mirror.port), (DEVICE, 1, 8472));
    let own = &mirror.cluster.own;
    assert_eq!(
        (own.vtep, own.mac, own.subnets.as_slice()),
        (vtep(1), mac(1), [net("10.1.0.0/24")].as_slice())
    );
    let expected = [("10.2.0.0/24", "192.0.2.2"), ("10.3.0.0/24", "192.0.2.3")];
    assert_eq!(subnets(&mirror), expected.map(|(to, vtep)| (to.to_owned(), vtep.to_owned())));
    assert_eq!((mirror.holes, mirror.left), (BTreeSet::new(), vec![]));
    assert_eq!((mirror.underlay.ifindex, mirror.underlay.inner_mtu), (UNDERLAY, Mtu(1450)));
}

#[test]
fn a_route_that_a_short_cut_cannot_do_is_left_alone_and_so_is_what_lies_inside() {
    let odd = |leads| {
        let mut tables = tables();
        add_node(&mut tables, 2);
        let inside = Path { leads, ..path("10.2.0.128/25", DEVICE, None) };
        tables.paths.insert(inside);
        seen(&tables)
    };
    for reason in [Odd::Several, Odd::Nowhere, Odd::Encapsulates, Odd::Choosy, Odd::Mtu] {
        let mirror = odd(Leads::Oddly(reason));
        assert_eq!(mirror.left, [format!("the route to 10.2.0.128/25: {reason}")]);
        assert_eq!(mirror.holes, [net("10.2.0.128/25")].into());
        assert_eq!(subnets(&mirror).len(), 1, "the rest goes on");
    }
    let mirror = odd(Leads::Plainly { via: Some(ip("10.2.0.7")) });
    assert!(mirror.left[0].contains("no neighbour 10.2.0.7") && mirror.holes.len() == 1, "{mirror:?}");
}

#[test]
fn what_leads_elsewhere_is_cut_out() {
    let mut tables = tables();
    add_node(&mut tables, 2);
    tables.paths.insert(path("10.2.0.5/32", UNDERLAY, None));
    tables.paths.insert(path("10.9.0.0/16", UNDERLAY, None));
    tables.addresses.insert(Address { ifindex: UNDERLAY, ip: ip("10.2.0.9"), prefix: 32 });
    let mirror = seen(&tables);
    assert_eq!(mirror.holes, [net("10.2.0.5/32"), net("10.2.0.9/32")].into());
    assert!(mirror.left.is_empty(), "the owner's route is kept, and nothing to be said of");
    // With a lower metric, the whole subnet leads elsewhere.
    let mut worse = path("10.2.0.0/24", DEVICE, Some("10.2.0.0"));
    worse.priority = 7;
    tables.paths.remove(&path("10.2.0.0/24", DEVICE, Some("10.2.0.0")));
    tables.paths.insert(worse);
    assert_eq!(subnets(&seen(&tables)).len(), 1);
    tables.paths.insert(path("10.2.0.0/24", UNDERLAY, Some("192.0.2.9")));
    assert_eq!(subnets(&seen(&tables)), []);
}

#[test]
fn what_leads_elsewhere_is_no_pods_address() {
    let mut tables = tables();
    add_node(&mut tables, 2);
    let nowhere =
        Path { leads: Leads::Oddly(Odd::Nowhere), legs: vec![], ..path("10.1.0.0/25", DEVICE, None) };
    tables.paths.insert(nowhere);
    tables.paths.insert(path("10.1.0.192/26", DEVICE, Some("10.2.0.0")));
    assert_eq!(seen(&tables).cluster.own.subnets, [net("10.1.0.128/26")]);
}

#[test]
fn two_routes_of_one_metric_are_the_kernels_to_choose_from() {
    let mut tables = tables();
    (2..4).for_each(|n| add_node(&mut tables, n));
    tables.paths.insert(path("10.2.0.0/24", DEVICE, Some("10.3.0.0")));
    let mirror = seen(&tables);
    assert_eq!(subnets(&mirror).len(), 1);
    assert_eq!(mirror.left, ["the route to 10.2.0.0/24: it has several next hops"]);
}

#[test]
fn what_the_kernel_has_learnt_it_has_to_ask_for() {
    let mut learnt = tables();
    add_node(&mut learnt, 2);
    learnt.neighbours.values_mut().for_each(|neighbour| neighbour.lasting = false);
    let mut ages = tables();
    add_node(&mut ages, 2);
    ages.remotes.values_mut().for_each(|remote| remote.ages = true);
    let mut odd = tables();
    add_node(&mut odd, 2);
    odd.remotes.values_mut().for_each(|remote| remote.plain = false);
    for (tables, word) in [(learnt, "learnt"), (ages, "lasting"), (odd, "plain")] {
        let mirror = seen(&tables);
        assert!(subnets(&mirror).is_empty() && mirror.left[0].contains(word), "{mirror:?}");
    }
}

#[test]
fn neighbours_on_the_link_are_led_to_one_by_one() {
    let mut tables = tables();
    add_node(&mut tables, 2);
    tables.paths.remove(&path("10.2.0.0/24", DEVICE, Some("10.2.0.0")));
    tables.paths.insert(path("10.2.0.0/16", DEVICE, None));
    tables.paths.insert(path("10.2.7.0/24", UNDERLAY, None));
    let elsewhere = Neighbour { mac: mac(2), permanent: true, lasting: true, ours: false };
    tables.neighbours.insert((DEVICE, ip("10.2.7.1")), elsewhere);
    let mirror = seen(&tables);
    assert_eq!(subnets(&mirror), [("10.2.0.0/32".to_owned(), "192.0.2.2".to_owned())]);
    assert!(mirror.left[0].contains("who is there"), "{:?}", mirror.left);
}

#[test]
fn a_device_that_is_renamed_is_the_same() {
    let mut tables = tables();
    tables.links.get_mut(&DEVICE).expect("there").name = "renamed".into();
    let followed = sought(&tables, Some(DEVICE)).expect("followed");
    assert_eq!(followed.device, DEVICE);
    assert!(sought(&tables, Some(UNDERLAY)).is_err(), "no vxlan device");
}

#[test]
fn a_vtep_has_one_mac() {
    let mut tables = tables();
    (2..4).for_each(|n| add_node(&mut tables, n));
    tables.remotes.values_mut().for_each(|remote| remote.vtep = Some(vtep(2)));
    let mirror = seen(&tables);
    assert_eq!(subnets(&mirror), [("10.2.0.0/24".to_owned(), "192.0.2.2".to_owned())]);
    assert!(mirror.left[0].contains("another MAC besides, 02:00:00:00:00:02"), "{:?}", mirror.left);
}

#[test]
fn a_route_may_refer_to_a_next_hop_object() {
    let mut tables = tables();
    add_node(&mut tables, 2);
    let before = tables.paths.take(&path("10.2.0.0/24", DEVICE, Some("10.2.0.0"))).expect("there");
    tables.paths.insert(Path {
        object: Some(7),
        legs: vec![],
        leads: Leads::Plainly { via: None },
        ..before
    });
    assert_eq!(subnets(&seen(&tables)), [], "nobody knows the object");
    let object = |leads, members| Object { leads, leg: Some(DEVICE), members };
    tables.next_hops.insert(7, object(Leads::Plainly { via: Some(ip("10.2.0.0")) }, vec![]));
    assert_eq!(subnets(&seen(&tables)), [("10.2.0.0/24".to_owned(), "192.0.2.2".to_owned())]);
    tables.next_hops.insert(8, object(Leads::Plainly { via: None }, vec![]));
    tables.next_hops.insert(7, Object { leg: None, ..object(Leads::Oddly(Odd::Group), vec![8]) });
    let mirror = seen(&tables);
    assert!(subnets(&mirror).is_empty() && mirror.left[0].contains("a group of next hop"), "{mirror:?}");
}

#[test]
fn a_pod_behind_a_route_of_its_own_is_found() {
    let mut tables = tables();
    let pod = Link { peer_elsewhere: true, ..link(IfIndex(8), "cali8", Kind::Veth) };
    tables.links.insert(pod.index, pod);
    tables.paths.insert(path("10.1.4.7/32", IfIndex(8), None));
    let block =
        Path { leads: Leads::Oddly(Odd::Nowhere), legs: vec![], ..path("10.1.4.0/26", UNDERLAY, None) };
    tables.paths.insert(block);
    assert_eq!(seen(&tables).cluster.own.subnets, [net("10.1.0.0/24"), net("10.1.4.7/32")]);
}

#[test]
fn a_device_of_a_bridge_has_vteps_and_no_routes() {
    let mut tables = tables();
    (2..4).for_each(|n| add_node(&mut tables, n));
    tables.links.get_mut(&DEVICE).expect("there").master = Some(BRIDGE);
    tables.remotes.insert((DEVICE, mac(7)), Remote { vtep: Some(vtep(7)), plain: true, ages: true });
    tables.remotes.insert((DEVICE, mac(8)), Remote { vtep: Some(vtep(8)), plain: false, ages: false });
    for vtep in [vtep(1), vtep(9), ip("239.1.1.1")] {
        tables.flood.insert(Flood { device: DEVICE, vtep, plain: true });
    }
    let mirror = seen(&tables);
    assert_eq!(mirror.bridge.as_deref(), Some("cni0"));
    let vteps: Vec<IpAddr> = mirror.cluster.remotes.values().map(|node| node.vtep).collect();
    assert_eq!(vteps, [2, 3, 7, 9].map(vtep), "learnt, entered, and flooded to");
    assert!(subnets(&mirror).is_empty() && mirror.cluster.own.subnets.is_empty());
    assert!(mirror.left[0].starts_with("1 stations"), "{:?}", mirror.left);
}

#[test]
fn addresses_of_the_device_are_nobodys_to_lead_to() {
    let mut tables = tables();
    tables.addresses.insert(Address { ifindex: DEVICE, ip: ip("fd00:1::"), prefix: 128 });
    tables.paths.insert(path("fd00:1::/128", DEVICE, None));
    assert!(seen(&tables).left.is_empty());
}

#[test]
fn a_device_that_only_the_kernel_can_serve_is_left_alone_and_says_why() {
    type Change = dyn Fn(&mut Link, &mut Vxlan);
    let refused = |change: &Change| {
        let mut tables = tables();
        let link = tables.links.get_mut(&DEVICE).expect("there");
        let Kind::Vxlan(mut vxlan) = link.kind.clone() else { panic!("a vxlan device") };
        change(link, &mut vxlan);
        if link.kind != Kind::Other {
            link.kind = Kind::Vxlan(vxlan);
        }
        sought(&tables, None).expect_err("refused")
    };
    let cases: [(&Change, &str); 8] = [
        (&|link, _| link.name = "vxlan1".into(), "there is no interface flannel.1"),
        (&|link, _| link.kind = Kind::Other, "no vxlan device"),
        (&|link, _| link.up = false, "is down"),
        (&|link, _| link.master = Some(UNDERLAY), "belongs to eth0, which is no bridge"),
        (&|link, _| link.alias = Some("vxlan-agent network pods".into()), "our own network 'pods'"),
        (&|_, vxlan| vxlan.plain = false, "external"),
        (&|_, vxlan| vxlan.local = None, "no local address"),
        (&|_, vxlan| vxlan.local = Some(vtep(9)), "no interface that leads out has that address"),
    ];
    for (change, words) in cases {
        let reason = refused(change);
        assert!(reason.contains(words), "{reason}");
    }
}

#[test]
fn a_device_without_an_address_sends_from_what_the_kernel_takes() {
    let mut tables = tables();
    (2..5).for_each(|n| add_node(&mut tables, n));
    let link = tables.links.get_mut(&DEVICE).expect("there");
    let Kind::Vxlan(vxlan) = &mut link.kind else { panic!("a vxlan device") };
    vxlan.local = None;
    assert!(check(&tables, &tables.links[&DEVICE]).is_ok(), "once there are VTEPs");
    assert_eq!(destinations(&tables, DEVICE), [2, 3, 4].map(vtep).into());
    let other = ip("198.51.100.1");
    let sources: Sources = [(vtep(2), vtep(1)), (vtep(3), other), (vtep(4), vtep(1))].into();
    let sought = Sought { device: "flannel.1", held: None, node: "a" };
    let mirror = mirror(&tables, &sought, &sources).expect("a device");
    assert_eq!((mirror.underlay.address, mirror.cluster.remotes.len()), (vtep(1), 3));
    let expected = "the VTEP 192.0.2.3: the kernel sends to it from 198.51.100.1, and to most from 192.0.2.1";
    assert_eq!(mirror.left, [expected]);
}
