use std::net::Ipv4Addr;

use proptest::collection::{btree_map, btree_set};
use proptest::prelude::*;

use super::*;
use crate::kernel::headers::{Field, Headers};
use crate::kernel::state::Segment;
use crate::net::Mtu;

fn ip() -> impl Strategy<Value = IpAddr> {
    (0..6_u8).prop_map(|n| IpAddr::V4(Ipv4Addr::new(10, n, 0, 0)))
}

fn mac() -> impl Strategy<Value = Mac> {
    (0..6_u8).prop_map(|n| Mac([2, 0, 0, 0, 0, n]))
}

fn device() -> impl Strategy<Value = Device> {
    let ttl = prop::sample::select(vec![Field::Fixed(0), Field::Fixed(9), Field::Inherit]);
    (1..3_u32, 1..3_u32, mac(), 1400..1402_u32, any::<bool>(), ttl).prop_map(
        |(vni, underlay, mac, mtu, ready, ttl)| Device {
            name: "vxlan1".into(),
            vni: Vni::try_from(vni).ok(),
            port: 8472,
            local: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            underlay: IfIndex(underlay),
            mac,
            mtu: Mtu(mtu),
            headers: Headers { ttl, ..Headers::of_new_device(false) },
            ready,
            segment: None,
        },
    )
}

fn route() -> impl Strategy<Value = (IpNetwork, Route)> {
    (ip(), prop::option::of(1..3_u32), prop::option::of(ip())).prop_map(|(via, past, src)| {
        (IpNetwork::new(via, 24).expect("prefix"), Route { via, past: past.map(IfIndex), src })
    })
}

fn headroom() -> impl Strategy<Value = (IfIndex, Headroom)> {
    (1..4_u32, 1400..1402_u32, any::<bool>())
        .prop_map(|(i, mtu, ready)| (IfIndex(i), Headroom { mtu: Mtu(mtu), ready }))
}

fn state() -> impl Strategy<Value = KernelState> {
    let content = (btree_set(ip(), 0..4), btree_map(ip(), mac(), 0..6), btree_map(mac(), ip(), 0..6));
    let routes = prop::collection::vec(route(), 0..6);
    (prop::option::of(device()), content, routes, prop::collection::vec(headroom(), 0..3)).prop_map(
        |(device, (addresses, neighbours, fdb), routes, headroom)| {
            let headroom = headroom.into_iter().collect();
            if device.is_none() {
                return KernelState { headroom, ..KernelState::default() };
            }
            KernelState {
                device,
                addresses,
                neighbours,
                fdb,
                routes: routes.into_iter().collect(),
                headroom,
                ..KernelState::default()
            }
        },
    )
}

/// Positions in `changes` of those that `pick` picks.
fn positions(changes: &[KernelChange], pick: impl Fn(&KernelChange) -> bool) -> Vec<usize> {
    changes.iter().enumerate().filter(|(_, c)| pick(c)).map(|(i, _)| i).collect()
}

proptest! {
    #[test]
    fn carrying_out_the_difference_reaches_the_desired_state(observed in state(), desired in state()) {
        let mut now = observed.clone();
        for change in diff(&observed, &desired) {
            now.apply(&change);
        }
        prop_assert_eq!(now, desired);
    }

    #[test]
    fn routes_past_the_device_are_replaced_in_one_step_or_removed(
        observed in state(), desired in state(), direct in prop::collection::vec(ip(), 0..6),
    ) {
        let mut now = observed;
        let oif = IfIndex(2);
        let subnet = |ip| IpNetwork::new(ip, 24).expect("prefix");
        now.direct_routes = direct.into_iter().map(|via| (subnet(via), DirectRoute { via, oif })).collect();
        let observed = now.clone();
        for change in diff(&observed, &desired) {
            if let KernelChange::AddRoute(to, _) = &change {
                prop_assert!(!now.direct_routes.contains_key(to), "{to} would be refused");
            }
            now.apply(&change);
        }
        prop_assert_eq!(now.direct_routes.len(), if desired.device.is_some() { 0 } else { observed.direct_routes.len() });
        prop_assert_eq!(now.routes, desired.routes);
    }

    #[test]
    fn nothing_differs_from_itself(state in state()) {
        prop_assert_eq!(diff(&state, &state), vec![]);
    }

    #[test]
    fn neighbours_and_forwarding_entries_frame_the_routes(observed in state(), desired in state()) {
        use KernelChange::*;
        let changes = diff(&observed, &desired);
        let puts = positions(&changes, |c| matches!(c, AddAddress(_) | PutFdb(..) | PutNeighbour(..)));
        let add = positions(&changes, |c| matches!(c, AddRoute(..) | ReplaceRoute(..)));
        let remove = positions(&changes, |c| matches!(c, RemoveRoute(..)));
        let rest = positions(&changes, |c| matches!(c, RemoveNeighbour(_) | RemoveFdb(_) | RemoveAddress(_)));
        for (earlier, later) in [(&puts, &add), (&add, &remove), (&remove, &rest)] {
            prop_assert!(earlier.iter().max() < later.iter().min() || earlier.is_empty() || later.is_empty());
        }
        prop_assert!(puts.iter().max() < rest.iter().min() || puts.is_empty() || rest.is_empty());
    }

    #[test]
    fn a_device_that_can_become_the_desired_one_is_not_deleted(observed in state(), desired in state()) {
        let in_place = matches!((&observed.device, &desired.device), (Some(a), Some(b)) if a.can_become(b));
        let deletes = diff(&observed, &desired).iter().any(|c| matches!(c, KernelChange::DeleteDevice(_)));
        prop_assert!(!(in_place && deletes));
    }
}

/// A bridged network's state. An operator's bridge is one whatever is desired; without a device there is no
/// content.
fn segment(operators: bool) -> impl Strategy<Value = KernelState> {
    let own = (mac(), 1400..1402_u32, any::<bool>()).prop_map(|(mac, mtu, ready)| OwnBridge {
        mac,
        mtu: Mtu(mtu),
        ready,
    });
    let port =
        (any::<bool>(), prop::option::of(ip()), prop::option::of(Just("br1".to_owned())), any::<bool>())
            .prop_map(|(learning, group, bridge, suppress)| Segment { learning, group, bridge, suppress });
    // Several to a network.
    let address = (0..3_u8, 0..3_u8)
        .prop_map(|(net, host)| IpNetwork::new(IpAddr::from([10, 0, net, host]), 24).expect("prefix"));
    let addresses = btree_set(address, 0..6);
    let content = (btree_map(mac(), ip(), 0..6), btree_set(ip(), 0..4));
    let bridge = (prop::option::of(own), addresses, btree_map(ip(), mac(), 0..6));
    (prop::option::of((device(), port)), bridge, content).prop_map(
        move |(device, (own, bridge_addresses, answers), (stations, flood))| {
            let name = "br1".to_owned();
            let bridge = match operators {
                true => Some(BridgeSpec { name, own: None }),
                false => own.map(|own| BridgeSpec { name, own: Some(own) }),
            };
            let ours = bridge.as_ref().is_some_and(|bridge| bridge.own.is_some());
            let mut state = KernelState { bridge, ..KernelState::default() };
            if ours {
                state.bridge_addresses = bridge_addresses;
            }
            if state.bridge.is_some() {
                state.answers = answers;
            }
            if let Some((device, segment)) = device {
                state.device = Some(Device { segment: Some(segment), ..device });
                state.stations = stations;
                state.flood = flood;
            }
            state
        },
    )
}

fn segments() -> impl Strategy<Value = (KernelState, KernelState)> {
    any::<bool>().prop_flat_map(|operators| (segment(operators), segment(operators)))
}

proptest! {
    #[test]
    fn a_bridged_networks_difference_reaches_the_desired_state((observed, desired) in segments(), old in any::<bool>(), orphans in btree_set(mac(), 0..3)) {
        let mut observed = observed;
        if observed.device.is_some() {
            // The device has one entry for a MAC.
            observed.orphans = orphans.into_iter().filter(|mac| !observed.stations.contains_key(mac)).collect();
        }
        observed.old_bridges.extend(old.then(|| "br0".to_owned()));
        let mut now = observed.clone();
        for change in diff(&observed, &desired) {
            now.apply(&change);
        }
        prop_assert_eq!(&now, &desired);
        prop_assert_eq!(diff(&desired, &desired), vec![]);
    }

    #[test]
    fn a_bridge_is_there_before_its_port_and_until_the_last((observed, desired) in segments()) {
        use KernelChange::*;
        let changes = diff(&observed, &desired);
        let made = positions(&changes, |c| matches!(c, CreateBridge(..) | SetBridge(..)));
        let device = positions(&changes, |c| matches!(c, DeleteDevice(_) | CreateDevice(_) | SetDevice(_)));
        let put = positions(&changes, |c| matches!(c, AddFlood(_) | PutStation(..)));
        let removed = positions(&changes, |c| matches!(c, RemoveFlood(_) | RemoveStation(_)));
        let gone = positions(&changes, |c| matches!(c, RemoveBridge(_)));
        let order = [made, device, put, removed, gone].concat();
        prop_assert!(order.is_sorted(), "{:?}", changes);
    }

    #[test]
    fn an_operators_bridge_is_not_touched(observed in segment(true), desired in segment(true)) {
        use KernelChange::*;
        let touches = |c: &KernelChange| matches!(
            c, CreateBridge(..) | SetBridge(..) | RemoveBridge(_) | AddBridgeAddress(..) | RemoveBridgeAddress(..)
        );
        prop_assert!(!diff(&observed, &desired).iter().any(touches));
        prop_assert!(!diff(&observed, &KernelState::default()).iter().any(touches));
    }
}

#[test]
fn a_bridge_by_another_name_is_replaced_before_the_old_one_goes() {
    let own = OwnBridge { mac: Mac([2, 0, 0, 0, 0, 1]), mtu: Mtu(1450), ready: true };
    let bridge = |name: &str| Some(BridgeSpec { name: name.into(), own: Some(own.clone()) });
    let observed = KernelState { bridge: bridge("br0"), ..KernelState::default() };
    let desired = KernelState { bridge: bridge("br1"), ..KernelState::default() };
    let changes = diff(&observed, &desired);
    let expected = [KernelChange::CreateBridge("br1".into(), own), KernelChange::RemoveBridge("br0".into())];
    assert_eq!(changes, expected);
    let mut now = observed;
    changes.iter().for_each(|change| now.apply(change));
    assert_eq!(now, desired);
}
