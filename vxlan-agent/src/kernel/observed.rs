//! What of the kernel's tables is ours.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::message::headroom_vni;
use super::segment;
use super::state::{Device, Headroom, KernelState, Route};
use super::tables::{Kind, Link, RouteEntry, Tables, Vxlan};
use crate::net::{IfIndex, Mac, Vni, full_length};
use crate::ownership::{self, HEADROOM_MAC, HEADROOM_PORT};

/// A device has the name of ours but is somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ForeignDevice {
    #[error(
        "interface {name} exists and is not ours (its alias is not '{alias}'): remove it, or set 'device' to another name"
    )]
    Somebodys { name: String, alias: String },
    #[error(
        "interface {name} is of the network '{other}' and not of '{network}': set 'name' to '{other}', or run 'vxlan-agent release' with the configuration of '{other}' first ('vxlan-agent detach' where no flannel is to go on with it)"
    )]
    OfAnotherNetwork { name: String, other: String, network: String },
}

fn foreign(link: &Link, sought: &Sought<'_>) -> ForeignDevice {
    let other = link.alias.as_deref().and_then(ownership::network_of_device);
    match other.filter(|other| *other != sought.network) {
        Some(other) => ForeignDevice::OfAnotherNetwork {
            name: sought.name.to_owned(),
            other: other.to_owned(),
            network: sought.network.to_owned(),
        },
        None => ForeignDevice::Somebodys { name: sought.name.to_owned(), alias: sought.alias.to_owned() },
    }
}

/// Which device to look for.
#[derive(Clone, Copy, Debug)]
pub struct Sought<'a> {
    /// Name of the network.
    pub network: &'a str,
    /// Alias of the device.
    pub alias: &'a str,
    /// What it is called or is to be called.
    pub name: &'a str,
    /// Tells a device that we left half-made from a foreign one.
    pub mac: Mac,
    /// Take over a device of this name and VNI that carries no alias: flannel left it behind.
    pub adopt: Option<Vni>,
    /// The device that the agent had last. It stays ours if somebody takes its alias away.
    pub held: Option<IfIndex>,
}

/// The state of a network in `tables`; and its device's index.
pub fn observed(
    tables: &Tables,
    sought: &Sought<'_>,
) -> Result<(KernelState, Option<IfIndex>), ForeignDevice> {
    let Sought { network, alias, name, .. } = *sought;
    let mut found = tables.links_with_alias(alias).find(|link| matches!(link.kind, Kind::Vxlan(_)));
    if let Some(link) = tables.link_named(name)
        && found.is_none_or(|f| f.index != link.index)
    {
        let unmarked = is_half_made(link, sought.mac)
            || is_left_behind(link, sought.adopt)
            || has_lost_alias(link, sought.held);
        if !unmarked {
            return Err(foreign(link, sought));
        }
        found = found.or(Some(link));
    }
    let (headroom, headroom_elsewhere) = headroom(tables, network);
    let index = found.map(|link| link.index);
    let old_bridges = segment::idle_bridges(tables, network, index);
    let mut state = KernelState { headroom, headroom_elsewhere, old_bridges, ..KernelState::default() };
    let Some((link, vxlan)) = found.and_then(|link| Some((link, vxlan_of(link)?))) else {
        return Ok((state, None));
    };
    state.device = Some(device(link, vxlan, alias));
    content(tables, link.index, &mut state);
    if is_port_of_ours(tables, link, network) {
        // It was a bridged network's.
        state.device = Some(Device {
            segment: Some(segment::segment(tables, link, vxlan)),
            ..device(link, vxlan, alias)
        });
        state.flood = segment::flood(tables, link.index, vxlan);
    }
    Ok((state, Some(link.index)))
}

fn is_port_of_ours(tables: &Tables, link: &Link, network: &str) -> bool {
    let bridge = link.master.and_then(|master| tables.links.get(&master));
    let alias = bridge.filter(|bridge| bridge.kind == Kind::Bridge).and_then(|bridge| bridge.alias.as_ref());
    alias == Some(&ownership::bridge_alias(network))
}

pub(super) fn vxlan_of(link: &Link) -> Option<&Vxlan> {
    match &link.kind {
        Kind::Vxlan(vxlan) => Some(vxlan),
        _ => None,
    }
}

/// Created with our MAC, but killed before it got its alias.
fn is_half_made(link: &Link, mac: Mac) -> bool {
    vxlan_of(link).is_some() && link.alias.is_none() && link.mac == mac && !link.up
}

/// Ours, as it was a moment ago, but for the alias.
fn has_lost_alias(link: &Link, held: Option<IfIndex>) -> bool {
    held == Some(link.index) && vxlan_of(link).is_some() && link.alias.is_none()
}

/// Made by flannel, which gives no alias.
fn is_left_behind(link: &Link, vni: Option<Vni>) -> bool {
    vni.is_some() && vxlan_of(link).is_some_and(|vxlan| vxlan.vni == vni) && link.alias.is_none()
}

/// A parameter that we never ask for shows as a port of 0, so that the device is made anew.
fn device(link: &Link, vxlan: &Vxlan, alias: &str) -> Device {
    let unspecified = IpAddr::from([0; 4]);
    Device {
        name: link.name.clone(),
        vni: vxlan.vni,
        port: if vxlan.learning { 0 } else { vxlan.port },
        local: vxlan.local.unwrap_or(unspecified),
        underlay: vxlan.underlay.unwrap_or_default(),
        mac: link.mac,
        mtu: link.mtu,
        headers: vxlan.headers(vxlan.local.is_some_and(|local| local.is_ipv6())),
        ready: link.up && link.alias.as_deref() == Some(alias) && !link.makes_addresses,
        segment: None,
    }
}

fn content(tables: &Tables, device: IfIndex, state: &mut KernelState) {
    let single = tables.addresses_of(device).filter(|a| a.prefix == full_length(a.ip));
    state.addresses = single.map(|a| a.ip).collect();
    let neighbours = tables.neighbours.range((device, IpAddr::from([0; 4]))..);
    let neighbours =
        neighbours.take_while(|((ifindex, _), _)| *ifindex == device).filter(|(_, n)| n.permanent);
    state.neighbours = neighbours.map(|((_, ip), n)| (*ip, n.mac)).collect();
    state.fdb = tables.remotes_of(device).filter_map(|(mac, entry)| Some((mac, entry.vtep?))).collect();
    let before = tables.routes_through(device).filter(|r| !r.ours && r.is_overlays());
    let ours = tables.routes_through(device).filter(|r| r.ours);
    // One without a gateway is left from replacing another, half-way.
    let ours = ours.map(|r| (r.to, Route { via: r.via.unwrap_or(r.to.ip()), past: None, src: r.src }));
    let past = past_routes(tables, |to| state.neighbours.contains_key(&to.network()));
    state.routes = before.filter_map(left_behind).chain(ours).chain(past).collect();
}

/// Routes of ours past vxlan devices, to those subnets that are `wanted`. A device's neighbours say to which
/// subnets its network has routes.
pub fn past_routes(
    tables: &Tables,
    wanted: impl Fn(&IpNetwork) -> bool,
) -> impl Iterator<Item = (IpNetwork, Route)> {
    let past = tables.routes_past_tunnels().filter(move |route| wanted(&route.to));
    past.filter_map(|r| Some((r.to, Route { via: r.via?, past: r.oif, src: r.src })))
}

/// A route of the agent that had the device before: with a source that we never ask for, so that it
/// is replaced.
fn left_behind(route: &RouteEntry) -> Option<(IpNetwork, Route)> {
    let via = route.via?;
    let nowhere = if via.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    Some((route.to, Route { via, past: None, src: Some(nowhere) }))
}

/// The head-room ports of this network, and the bridges that have one of somebody else's.
///
/// The kernel announces an interface that is made without its alias, and what changes on one that is
/// down not at all. So one without an alias may be another agent's in the making: it serves its
/// bridge, and is nobody's to remove until the bridge is gone.
fn headroom(tables: &Tables, network: &str) -> (BTreeMap<IfIndex, Headroom>, BTreeSet<IfIndex>) {
    let alias = ownership::headroom_alias(network);
    let (mut ours, mut elsewhere) = (BTreeMap::new(), BTreeSet::new());
    for link in tables.headroom_links() {
        let Some(bridge) = headroom_of(link) else { continue };
        let left_over = link.alias.is_none() && !tables.links.contains_key(&bridge);
        if left_over || link.alias.as_ref() == Some(&alias) {
            let ready = link.master == Some(bridge);
            ours.insert(bridge, Headroom { mtu: link.mtu, ready });
        } else {
            elsewhere.insert(bridge);
        }
    }
    (ours, elsewhere)
}

/// The bridge whose head-room port an agent made `link` as, of whatever network. The bridge may be gone,
/// and with it the link's master; the name still tells it.
pub(super) fn headroom_of(link: &Link) -> Option<IfIndex> {
    let vxlan = vxlan_of(link).filter(|vxlan| vxlan.port == HEADROOM_PORT && link.mac == HEADROOM_MAC)?;
    let bridge = IfIndex(link.name.strip_prefix(ownership::HEADROOM_PREFIX)?.parse().ok()?);
    vxlan.vni.is_some_and(|vni| vni.get() == headroom_vni(bridge)).then_some(bridge)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Neighbour;
    use crate::net::Mtu;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn vxlan_link(alias: Option<&str>, mac: Mac, up: bool) -> Tables {
        let vxlan = Vxlan {
            vni: Vni::try_from(1).ok(),
            port: 8472,
            local: Some(IpAddr::from([192, 0, 2, 1])),
            underlay: Some(IfIndex(2)),
            learning: false,
            ..Vxlan::default()
        };
        let link = Link {
            index: IfIndex(9),
            name: "vxlan1".into(),
            alias: alias.map(str::to_owned),
            kind: Kind::Vxlan(vxlan),
            mac,
            mtu: Mtu(1450),
            up,
            loopback: false,
            master: None,
            lower: None,
            peer_elsewhere: false,
            makes_addresses: false,
            sends_ethernet: true,
        };
        Tables { links: [(link.index, link)].into(), ..Tables::default() }
    }

    const PODS: Sought<'static> = Sought {
        network: "pods",
        alias: "vxlan-agent network pods",
        name: "vxlan1",
        mac: MAC,
        adopt: None,
        held: None,
    };

    fn look(tables: &Tables) -> Result<(KernelState, Option<IfIndex>), ForeignDevice> {
        observed(tables, &PODS)
    }

    #[test]
    fn a_device_with_our_alias_is_ours() {
        let (state, index) = look(&vxlan_link(Some("vxlan-agent network pods"), MAC, true)).expect("ours");
        assert!(state.device.is_some_and(|d| d.ready));
        assert_eq!(index, Some(IfIndex(9)));
    }

    #[test]
    fn a_device_of_our_name_without_our_alias_is_refused() {
        for alias in [None, Some("flannel")] {
            let foreign = look(&vxlan_link(alias, MAC, true)).expect_err("foreign");
            assert!(foreign.to_string().contains("interface vxlan1 exists and is not ours"), "{foreign}");
        }
        assert!(look(&vxlan_link(None, Mac([2, 0, 0, 0, 0, 9]), false)).is_err());
    }

    #[test]
    fn a_device_of_another_network_of_ours_is_refused_with_its_name() {
        let refused = look(&vxlan_link(Some("vxlan-agent network other"), MAC, true)).expect_err("another's");
        let text = refused.to_string();
        assert!(text.contains("set 'name' to 'other'") && text.contains("vxlan-agent release"), "{text}");
    }

    #[test]
    fn a_device_that_was_left_half_made_is_finished() {
        let (state, _) = look(&vxlan_link(None, MAC, false)).expect("ours");
        assert!(state.device.is_some_and(|d| !d.ready));
    }

    #[test]
    fn a_device_whose_alias_is_taken_away_stays_ours_and_gets_it_again() {
        let held = |index| Sought { held: Some(IfIndex(index)), ..PODS };
        let (state, _) = observed(&vxlan_link(None, MAC, true), &held(9)).expect("ours");
        assert!(state.device.is_some_and(|d| !d.ready));
        assert!(observed(&vxlan_link(None, MAC, true), &held(8)).is_err(), "made by somebody since");
        assert!(observed(&vxlan_link(Some("mine"), MAC, true), &held(9)).is_err(), "somebody else's");
    }

    #[test]
    fn a_device_that_flannel_left_behind_is_taken_over_where_that_is_wanted() {
        let left = Mac([2, 0, 0, 0, 0, 9]);
        let adopt = |vni| Sought { adopt: Vni::try_from(vni).ok(), ..PODS };
        let (state, index) = observed(&vxlan_link(None, left, true), &adopt(1)).expect("taken over");
        assert_eq!(index, Some(IfIndex(9)));
        let device = state.device.expect("a device");
        assert!(!device.ready && device.mac == left, "it gets an alias and keeps its MAC: {device:?}");
        assert!(observed(&vxlan_link(None, left, true), &adopt(2)).is_err(), "another network's");
        assert!(observed(&vxlan_link(Some("mine"), left, true), &adopt(1)).is_err(), "somebody else's");
    }

    #[test]
    fn routes_of_the_agent_that_had_the_device_before_are_replaced_and_removed() {
        let mut tables = vxlan_link(Some("vxlan-agent network pods"), MAC, true);
        let route = |oif, to: &str, via: &str, ours| RouteEntry {
            to: to.parse().expect("subnet"),
            priority: 0,
            oif: Some(IfIndex(oif)),
            legs: vec![],
            via: via.parse().ok(),
            src: None,
            ours,
        };
        tables.routes = [
            route(9, "10.2.0.0/24", "10.2.0.0", false),
            route(9, "10.3.0.0/24", "10.3.0.0", true),
            route(9, "10.4.0.7/32", "10.4.0.1", false),
            route(2, "10.5.0.0/24", "10.5.0.0", false),
        ]
        .into();
        let (state, _) = look(&tables).expect("ours");
        let subnets: Vec<_> = state.routes.keys().map(ToString::to_string).collect();
        assert_eq!(subnets, ["10.2.0.0/24", "10.3.0.0/24"]);
        let as_we_want =
            |(to, route): (&IpNetwork, &Route)| route == &Route { via: to.network(), past: None, src: None };
        assert_eq!(state.routes.iter().map(as_we_want).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn a_route_past_the_device_is_the_networks_whose_neighbour_has_its_first_address() {
        let mut tables = vxlan_link(Some("vxlan-agent network pods"), MAC, true);
        let route = |to: &str, ours| RouteEntry {
            to: to.parse().expect("subnet"),
            priority: 0,
            oif: Some(IfIndex(2)),
            legs: vec![],
            via: "192.0.2.2".parse().ok(),
            src: None,
            ours,
        };
        tables.routes =
            [route("10.2.0.0/24", true), route("10.3.0.0/24", true), route("10.4.0.0/24", false)].into();
        let neighbour = |to: &str| {
            let entry = Neighbour { mac: MAC, permanent: true, lasting: true, ours: false };
            ((IfIndex(9), to.parse().expect("an address")), entry)
        };
        tables.neighbours = [neighbour("10.2.0.0"), neighbour("10.4.0.0")].into();
        let (state, _) = look(&tables).expect("ours");
        let past = Route { via: IpAddr::from([192, 0, 2, 2]), past: Some(IfIndex(2)), src: None };
        assert_eq!(state.routes, [("10.2.0.0/24".parse().expect("subnet"), past)].into());
        let gone = crate::kernel::diff(&state, &KernelState::default());
        let first = gone.first().map(ToString::to_string);
        assert_eq!(first.as_deref(), Some("remove route 10.2.0.0/24 via 192.0.2.2"), "before the device");
    }

    #[test]
    fn a_renamed_device_is_found_by_its_alias() {
        let tables = vxlan_link(Some("vxlan-agent network pods"), MAC, true);
        let (state, _) = observed(&tables, &Sought { name: "overlay0", ..PODS }).expect("ours");
        assert_eq!(state.device.map(|d| d.name).as_deref(), Some("vxlan1"));
    }

    /// A head-room port of bridge 7 with `alias`, which may be gone.
    fn headroom_port(alias: Option<&str>, bridge_is_there: bool) -> Tables {
        let mut tables = vxlan_link(alias, HEADROOM_MAC, false);
        let link = tables.links.get_mut(&IfIndex(9)).expect("there");
        link.name = ownership::headroom_name(IfIndex(7));
        link.master = bridge_is_there.then_some(IfIndex(7));
        link.kind = Kind::Vxlan(Vxlan {
            vni: Vni::try_from(7).ok(),
            port: HEADROOM_PORT,
            local: None,
            underlay: None,
            learning: false,
            ..Vxlan::default()
        });
        if bridge_is_there {
            let bridge = Link { index: IfIndex(7), name: "br".into(), kind: Kind::Bridge, ..link.clone() };
            tables.links.insert(IfIndex(7), bridge);
        }
        tables
    }

    #[test]
    fn only_a_head_room_port_with_our_alias_is_ours() {
        for (alias, there, ours) in [
            (Some("vxlan-agent head-room pods"), true, true),
            (Some("vxlan-agent head-room pods"), false, true),
            (Some("vxlan-agent head-room other"), true, false),
            (Some("vxlan-agent head-room other"), false, false),
            (None, true, false),
            (None, false, true),
        ] {
            let (state, _) = look(&headroom_port(alias, there)).expect("a state");
            assert_eq!(state.headroom.contains_key(&IfIndex(7)), ours, "{alias:?}, bridge {there}");
            assert_eq!(state.headroom_elsewhere.contains(&IfIndex(7)), !ours, "{alias:?}, bridge {there}");
        }
    }

    #[test]
    fn a_bridge_with_another_networks_head_room_port_gets_no_second_one() {
        use crate::kernel::{KernelChange, diff};
        let want = KernelState {
            headroom: [(IfIndex(7), Headroom { mtu: Mtu(1450), ready: true })].into(),
            ..KernelState::default()
        };
        for alias in [None, Some("vxlan-agent head-room other")] {
            let (state, _) = look(&headroom_port(alias, true)).expect("a state");
            assert_eq!(diff(&state, &want), [], "it serves");
            assert_eq!(diff(&state, &KernelState::default()), [], "it is not ours to remove");
        }
        let (state, _) = look(&headroom_port(Some("vxlan-agent head-room pods"), true)).expect("a state");
        assert_eq!(diff(&state, &KernelState::default()), [KernelChange::RemoveHeadroom(IfIndex(7))]);
    }
}
