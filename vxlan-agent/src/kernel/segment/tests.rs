use super::*;
use crate::kernel::{Address, FdbEntry, Flood, KernelChange, Neighbour, Remote, diff};
use crate::net::Vni;

const BRIDGE: IfIndex = IfIndex(5);
const DEVICE: IfIndex = IfIndex(6);
const PORT: IfIndex = IfIndex(7);
const DEVICE_MAC: Mac = Mac([2, 0, 0, 0, 0, 6]);
const BRIDGE_MAC: Mac = Mac([2, 0, 0, 0, 0, 5]);

const SOUGHT: Sought<'static> = Sought {
    network: "lan",
    alias: "vxlan-agent network lan",
    name: "vxlan1",
    mac: DEVICE_MAC,
    adopt: None,
    held: None,
};
const BRIDGE_SOUGHT: SoughtBridge<'static> = SoughtBridge { name: "br1", mac: BRIDGE_MAC, held: None };

fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, n])
}

fn vtep(n: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, n])
}

fn link(index: IfIndex, name: &str, alias: Option<&str>, kind: Kind) -> Link {
    let mtu = Mtu(1450);
    Link { index, name: name.into(), alias: alias.map(str::to_owned), kind, mtu, up: true, ..Link::default() }
}

/// A bridge with this alias, our device as its port, and a port of somebody else's.
fn world(alias: Option<&str>) -> Tables {
    let vxlan = Vxlan { vni: Vni::try_from(1).ok(), port: 4789, learning: true, ..Vxlan::default() };
    let bridge = Link { mac: BRIDGE_MAC, ..link(BRIDGE, "br1", alias, Kind::Bridge) };
    let device = link(DEVICE, "vxlan1", Some(SOUGHT.alias), Kind::Vxlan(vxlan));
    let device = Link { mac: DEVICE_MAC, master: Some(BRIDGE), ..device };
    let port = Link { master: Some(BRIDGE), ..link(PORT, "veth1", None, Kind::Veth) };
    let links = [bridge, device, port].map(|link| (link.index, link)).into();
    Tables { links, ..Tables::default() }
}

fn ours() -> Tables {
    world(Some("vxlan-agent bridge lan"))
}

fn look(tables: &Tables) -> KernelState {
    observed_segment(tables, &SOUGHT, &BRIDGE_SOUGHT).expect("ours").0
}

fn ready() -> OwnBridge {
    OwnBridge { mac: BRIDGE_MAC, mtu: Mtu(1450), ready: true }
}

#[test]
fn a_device_is_seen_as_the_port_of_its_bridge() {
    let state = look(&ours());
    assert_eq!(state.bridge, Some(BridgeSpec { name: "br1".into(), own: Some(ready()) }));
    let bridge = Some("br1".to_owned());
    let segment = Segment { learning: true, group: None, bridge, suppress: false };
    let device = state.device.expect("a device");
    assert_eq!(device.segment, Some(segment));
    assert_eq!(device.port, 4789, "learning is no fault here");
    let mut odd = ours();
    let Kind::Vxlan(vxlan) = &mut odd.links.get_mut(&DEVICE).expect("there").kind else { panic!() };
    vxlan.plain = false;
    assert_eq!(look(&odd).device.map(|device| device.port), Some(0), "made anew");
}

#[test]
fn an_operators_bridge_is_used_as_it_is() {
    for alias in [None, Some("mine"), Some("vxlan-agent bridge other")] {
        let mut tables = world(alias);
        tables.addresses.insert(Address { ifindex: BRIDGE, ip: vtep(1), prefix: 24 });
        let operators = BridgeSpec { name: "br1".into(), own: None };
        let state = look(&tables);
        assert_eq!(state.bridge, Some(operators.clone()));
        assert!(state.bridge_addresses.is_empty(), "not ours");
        assert_eq!(wanted_bridge(&tables, "lan", &BRIDGE_SOUGHT, Mtu(1450)), operators);
        tables.links.remove(&PORT);
        let removal = diff(&look(&tables), &KernelState::default());
        assert_eq!(removal, [KernelChange::DeleteDevice("vxlan1".into())], "{alias:?}");
    }
}

#[test]
fn a_bridge_of_ours_goes_with_the_network_unless_others_use_it() {
    let mut tables = ours();
    let device = KernelChange::DeleteDevice("vxlan1".into());
    assert_eq!(diff(&look(&tables), &KernelState::default()), std::slice::from_ref(&device));
    tables.links.remove(&PORT);
    let bridge = KernelChange::RemoveBridge("br1".into());
    assert_eq!(diff(&look(&tables), &KernelState::default()), [device, bridge]);
}

#[test]
fn a_bridge_of_ours_by_another_name_goes_unless_others_use_it() {
    let sought = SoughtBridge { name: "br2", ..BRIDGE_SOUGHT };
    let old = |tables: &Tables| {
        observed_segment(tables, &SOUGHT, &sought)
            .expect("ours")
            .0
            .old_bridges
            .into_iter()
            .collect::<Vec<_>>()
    };
    let mut tables = ours();
    assert!(old(&tables).is_empty());
    tables.links.remove(&PORT);
    assert_eq!(old(&tables), ["br1"]);
    assert!(look(&tables).old_bridges.is_empty());
}

#[test]
fn a_bridge_that_was_left_half_made_is_finished() {
    let mut tables = world(None);
    tables.links.remove(&PORT);
    tables.links.remove(&DEVICE);
    tables.links.get_mut(&BRIDGE).expect("there").up = false;
    let own = |tables: &Tables| look(tables).bridge.and_then(|bridge| bridge.own);
    assert_eq!(own(&tables), Some(OwnBridge { ready: false, ..ready() }));
    tables.links.get_mut(&BRIDGE).expect("there").mac = mac(9);
    assert_eq!(own(&tables), None, "an operator's");
}

#[test]
fn a_bridge_whose_alias_is_taken_away_stays_ours() {
    let held = SoughtBridge { held: Some(BRIDGE), ..BRIDGE_SOUGHT };
    let state = observed_segment(&world(None), &SOUGHT, &held).expect("ours").0;
    let own = state.bridge.and_then(|bridge| bridge.own);
    assert_eq!(own, Some(OwnBridge { ready: false, ..ready() }));
}

#[test]
fn an_interface_of_the_bridges_name_that_is_none_is_refused() {
    let mut tables = ours();
    tables.links.get_mut(&BRIDGE).expect("there").kind = Kind::Other;
    let refused = observed_segment(&tables, &SOUGHT, &BRIDGE_SOUGHT).expect_err("no bridge");
    assert!(refused.to_string().contains("interface br1 exists and is not a bridge"), "{refused}");
}

#[test]
fn addresses_of_a_bridge_of_ours_are_ours_but_for_the_kernels_and_those_with_a_lifetime() {
    let mut tables = ours();
    let leased = IpAddr::from([198, 51, 100, 9]);
    for ip in [vtep(1), leased, "fe80::1".parse().expect("an address")] {
        tables.addresses.insert(Address { ifindex: BRIDGE, ip, prefix: 24 });
    }
    tables.passing.insert((BRIDGE, leased));
    assert_eq!(look(&tables).bridge_addresses, ["192.0.2.1/24".parse().expect("an address")].into());
}

#[test]
fn a_station_is_there_when_device_and_bridge_have_it() {
    let nowhere = IpAddr::from([0; 4]);
    let far = |ages| Remote { vtep: Some(vtep(2)), plain: true, ages };
    let at = |port, ages| FdbEntry { port, ages, ..FdbEntry::default() };
    for (remote, entry, seen) in [
        (Some(far(false)), Some(at(DEVICE, false)), Some(vtep(2))),
        (Some(far(false)), Some(at(DEVICE, true)), Some(nowhere)),
        (Some(far(false)), None, Some(nowhere)),
        (None, Some(at(DEVICE, false)), Some(nowhere)),
        // It has moved here, and the bridge is not to be told otherwise.
        (Some(far(false)), Some(at(PORT, true)), Some(vtep(2))),
        (Some(far(false)), Some(FdbEntry { permanent: true, ..at(BRIDGE, false) }), Some(vtep(2))),
        // Learnt, or somebody's.
        (Some(far(true)), Some(at(DEVICE, true)), None),
        (Some(Remote { plain: false, ..far(false) }), None, None),
        (None, Some(FdbEntry { permanent: true, ..at(DEVICE, false) }), None),
        (None, Some(at(PORT, false)), None),
    ] {
        let mut tables = ours();
        tables.remotes.extend(remote.clone().map(|remote| ((DEVICE, mac(1)), remote)));
        tables.fdb.extend(entry.clone().map(|entry| ((BRIDGE, mac(1), 0), entry)));
        let state = look(&tables);
        assert_eq!(state.stations.get(&mac(1)).copied(), seen, "{remote:?} {entry:?}");
        assert!(state.fdb.is_empty());
    }
}

#[test]
fn flooding_to_the_group_is_the_devices() {
    let group = IpAddr::from([239, 1, 1, 1]);
    let mut tables = ours();
    let Kind::Vxlan(vxlan) = &mut tables.links.get_mut(&DEVICE).expect("there").kind else { panic!() };
    vxlan.group = Some(group);
    for (device, vtep, plain) in
        [(DEVICE, group, true), (DEVICE, vtep(2), true), (DEVICE, vtep(3), false), (PORT, vtep(4), true)]
    {
        tables.flood.insert(Flood { device, vtep, plain });
    }
    assert_eq!(look(&tables).flood, [vtep(2)].into());
}

#[test]
fn a_network_that_becomes_a_routed_one_leaves_its_bridge() {
    let mut tables = ours();
    tables.links.remove(&PORT);
    let Kind::Vxlan(vxlan) = &mut tables.links.get_mut(&DEVICE).expect("there").kind else { panic!() };
    vxlan.learning = false;
    tables.flood.insert(Flood { device: DEVICE, vtep: vtep(2), plain: true });
    let (state, _) = observed(&tables, &SOUGHT).expect("ours");
    let device = state.device.clone().map(|device| crate::kernel::Device { segment: None, ..device });
    let routed = KernelState { device: device.clone(), ..KernelState::default() };
    let expected = [
        KernelChange::SetDevice(device.expect("a device")),
        KernelChange::RemoveFlood(vtep(2)),
        KernelChange::RemoveBridge("br1".into()),
    ];
    assert_eq!(diff(&state, &routed), expected);
    tables.links.get_mut(&BRIDGE).expect("there").alias = None;
    let (state, _) = observed(&tables, &SOUGHT).expect("ours");
    assert_eq!(diff(&state, &routed), [], "what an operator has made it");
}

#[test]
fn neighbours_on_the_bridge_are_ours_by_their_protocol_number() {
    let known = |n: u8, permanent, ours| {
        (
            (BRIDGE, IpAddr::from([10, 0, 0, n])),
            Neighbour { mac: mac(n), permanent, lasting: permanent, ours },
        )
    };
    for alias in [None, Some("vxlan-agent bridge lan")] {
        let mut tables = world(alias);
        tables.neighbours.extend([known(1, true, true), known(2, true, false), known(3, false, true)]);
        let state = look(&tables);
        assert_eq!(state.answers, [(IpAddr::from([10, 0, 0, 1]), mac(1))].into(), "{alias:?}");
        let desired = KernelState { answers: [].into(), ..state.clone() };
        let removal = KernelChange::RemoveAnswer("br1".into(), [10, 0, 0, 1].into());
        assert_eq!(diff(&state, &desired), [removal]);
    }
}

#[test]
fn what_was_learnt_of_somebody_who_is_no_node_is_forgotten() {
    let far = |n, ages| Remote { vtep: Some(vtep(n)), plain: true, ages };
    let mut tables = ours();
    for (n, remote) in [(1, far(2, true)), (2, far(3, true)), (3, far(3, false))] {
        tables.remotes.insert((DEVICE, mac(n)), remote);
    }
    tables.remotes.insert((PORT, mac(4)), far(3, true));
    let state = KernelState { orphans: orphans(&tables, DEVICE, &[vtep(2)].into()), ..look(&tables) };
    assert_eq!(state.orphans, [mac(2)].into());
    let desired = KernelState { orphans: [].into(), ..state.clone() };
    assert_eq!(diff(&state, &desired), [KernelChange::RemoveStation(mac(2))]);
}
