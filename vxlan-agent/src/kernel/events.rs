//! Netlink notifications: [`Tables`] is kept current by them and dumped anew only when some were
//! lost. (Subscribe, then dump, then apply what was notified meanwhile: an old notification may
//! set a row back, but then a newer one for that row follows.)

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream::Stream;
use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_REPLACE, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::{MulticastGroup, new_multicast_connection};

use super::bell::Bell;
use super::decode::Fdb;
use super::paths::Path;
use super::tables::{Kind, Link, Tables};
use super::{bridge, decode, paths};
use crate::net::{self, IfIndex};

/// Room for notifications that wait, in bytes: some ten thousand.
const RECEIVE_BUFFER: usize = 8 << 20;

/// A stream of notifications.
pub struct Events {
    messages: Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin>,
    policies: Bell,
    next_hops: Bell,
    traffic: Bell,
}

/// What notifications changed beyond the rows of [`Tables`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Some row is different now.
    pub changed: bool,
    /// Notifications were lost: dump everything.
    pub lost: bool,
    /// Destinations to which the way may be another now.
    pub destinations: BTreeSet<IpNetwork>,
    /// Interfaces that are gone, or went up, down, or gained or lost carrier.
    pub links: BTreeSet<IfIndex>,
    /// The way to any destination may be another now.
    pub routing: bool,
    /// IPsec policies may be others now.
    pub policies: bool,
    /// Queueing disciplines or filters may be others now, ours among them.
    pub traffic: bool,
}

impl Events {
    /// Subscribes to everything that [`Tables`] holds, in this thread's network namespace.
    pub fn subscribe() -> anyhow::Result<Self> {
        use MulticastGroup::{Ipv4Ifaddr, Ipv4Route, Ipv4Rule, Ipv6Ifaddr, Ipv6Route, Ipv6Rule, Link, Neigh};
        let groups = [Link, Neigh, Ipv4Ifaddr, Ipv6Ifaddr, Ipv4Route, Ipv6Route, Ipv4Rule, Ipv6Rule];
        let (mut connection, _, messages) =
            new_multicast_connection(&groups).context("cannot subscribe to netlink notifications")?;
        let socket = connection.socket_mut().socket_mut();
        if let Err(error) = socket.set_rx_buf_sz(RECEIVE_BUFFER as i32) {
            tracing::warn!(%error, "cannot enlarge the buffer for netlink notifications");
        }
        tokio::spawn(connection);
        Ok(Self {
            messages: Box::new(messages.map(|(message, _)| message)),
            policies: Bell::of_policies(),
            next_hops: Bell::of_next_hops(),
            traffic: Bell::of_traffic(),
        })
    }

    /// Waits for a notification and applies it; `None` when there will be no more.
    pub async fn next(&mut self, tables: &mut Tables, touched: &mut Touched) -> Option<()> {
        tokio::select! {
            message = self.messages.next() => tables.notice(&message?, touched),
            () = self.policies.rung() => touched.policies = true,
            heard = self.next_hops.heard() => match heard {
                Some(messages) => tables.notice_next_hops(&messages, touched),
                None => (touched.routing, touched.lost) = (true, true),
            },
            () = self.traffic.rung() => touched.traffic = true,
        }
        Some(())
    }
}

impl Tables {
    /// Applies a notification, or one message of a dump.
    pub fn notice(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>, touched: &mut Touched) {
        let NetlinkPayload::InnerMessage(inner) = &message.payload else {
            touched.lost |= matches!(message.payload, NetlinkPayload::Overrun(_));
            return;
        };
        use RouteNetlinkMessage::{
            DelAddress, DelLink, DelNeighbour, DelRoute, DelRule, NewAddress, NewLink, NewNeighbour,
            NewRoute, NewRule,
        };
        let changed = match inner {
            NewLink(link) => self.new_link(link, touched),
            DelLink(link) if decode::is_device(link) => self.forget_link(IfIndex(link.header.index), touched),
            DelLink(port) => self.ports.remove(&IfIndex(port.header.index)).is_some(),
            NewAddress(address) => self.new_address(address, touched),
            DelAddress(address) => decode::address(address).is_some_and(|a| {
                self.passing.remove(&(a.ifindex, a.ip));
                touched.routing |= !net::is_link_local(a.ip);
                // The kernel drops routes with that source without a word (`fib_sync_down_addr`).
                self.routes.retain(|route| route.src != Some(a.ip));
                self.paths.retain(|path| path.src != Some(a.ip));
                self.addresses.remove(&a)
            }),
            NewRoute(route) => self.new_route(route, message.header.flags & NLM_F_REPLACE != 0, touched),
            DelRoute(route) => {
                touched.destinations.extend(decode::destination(route));
                let path = self.wide && paths::path(route).is_some_and(|path| self.paths.remove(&path));
                decode::route(route).is_some_and(|r| self.routes.remove(&r)) | path
            }
            // Rules have no key: they are read anew.
            NewRule(_) | DelRule(_) => {
                touched.lost = true;
                true
            }
            NewNeighbour(entry) if decode::is_fdb(entry) => {
                decode::fdb(entry).is_some_and(|entry| self.new_fdb(entry))
            }
            DelNeighbour(entry) if decode::is_fdb(entry) => {
                decode::fdb(entry).is_some_and(|entry| self.forget_fdb(&entry))
            }
            NewNeighbour(entry) => decode::neighbour(entry).is_some_and(|(key, value)| match value {
                Some(value) => self.neighbours.insert(key, value.clone()) != Some(value),
                None => self.neighbours.remove(&key).is_some(),
            }),
            DelNeighbour(entry) => {
                decode::neighbour(entry).is_some_and(|(key, _)| self.neighbours.remove(&key).is_some())
            }
            _ => false,
        };
        touched.changed |= changed;
        self.index = None;
    }

    fn new_link(&mut self, message: &LinkMessage, touched: &mut Touched) -> bool {
        let Some(mut link) = decode::link(message) else {
            // What changes on a port alone is announced so.
            return bridge::announced_port(message)
                .is_some_and(|(port, settings)| self.ports.insert(port, settings.clone()) != Some(settings));
        };
        let index = link.index;
        let settings = keep(&mut self.bridges, index, bridge::bridge(message))
            | keep(&mut self.ports, index, bridge::port(message));
        // The kernel does not announce an alias that an interface gets while it is down, so the notification
        // of its making, when it comes late, knows nothing of an alias that a dump has shown.
        if !link.up && link.alias.is_none() {
            let before = self.links.get(&index).filter(|before| before.name == link.name);
            link.alias = before.and_then(|before| before.alias.clone());
        }
        let state = |link: &Link| (link.up, link.sends_ethernet, link.mtu, link.master);
        if self.links.get(&index).is_some_and(|before| state(before) != state(&link)) {
            touched.links.insert(index);
        }
        let before = self.links.insert(index, link.clone());
        if !link.up && before.as_ref().is_some_and(|before| before.up) {
            self.drop_routes_of(index);
        }
        // Offloads are asked for in the round that follows.
        let features = matches!(link.kind, Kind::Vxlan(_)) && decode::is_about_features(message);
        features || settings || before != Some(link)
    }

    fn forget_link(&mut self, index: IfIndex, touched: &mut Touched) -> bool {
        self.addresses.retain(|address| address.ifindex != index);
        self.neighbours.retain(|(device, _), _| *device != index);
        self.passing.retain(|(device, _)| *device != index);
        self.fdb.retain(|(bridge, ..), entry| *bridge != index && entry.port != index);
        self.remotes.retain(|(device, _), _| *device != index);
        self.flood.retain(|flood| flood.device != index);
        self.bridges.remove(&index);
        self.ports.remove(&index);
        touched.links.insert(index);
        let removed = self.links.remove(&index).is_some();
        self.drop_routes_of(index);
        removed
    }

    /// The kernel drops IPv4 routes of an interface that goes down without a word; one with several
    /// next hops when the last of them is down.
    fn drop_routes_of(&mut self, index: IfIndex) {
        let links = &self.links;
        let up = |leg: &IfIndex| links.get(leg).is_some_and(|link| link.up);
        self.routes
            .retain(|route| route.oif != Some(index) && (route.legs.is_empty() || route.legs.iter().any(up)));
        let stays = |path: &Path| !path.legs.contains(&index) || path.legs.iter().any(up);
        self.paths.retain(|path| stays(path));
        self.drop_next_hops_of(index);
    }

    /// A bridge has a MAC at one port; that it has moved is announced for the new one only
    /// (`br_fdb_update`, v6.18), as is the new VTEP of a station (`vxlan_snoop`).
    fn new_fdb(&mut self, entry: Fdb) -> bool {
        match entry {
            Fdb::Bridge(key, entry) => insert(&mut self.fdb, key, entry),
            Fdb::Remote(key, entry) => insert(&mut self.remotes, key, entry),
            Fdb::Flood(entry) => self.flood.insert(entry),
        }
    }

    fn forget_fdb(&mut self, entry: &Fdb) -> bool {
        match entry {
            Fdb::Bridge(key, entry) => {
                let there = self.fdb.get(key).is_some_and(|known| known.port == entry.port);
                there && self.fdb.remove(key).is_some()
            }
            Fdb::Remote(key, _) => self.remotes.remove(key).is_some(),
            Fdb::Flood(entry) => self.flood.remove(entry),
        }
    }

    fn new_address(&mut self, message: &AddressMessage, touched: &mut Touched) -> bool {
        let Some(address) = decode::address(message) else { return false };
        let key = (address.ifindex, address.ip);
        let lifetime = match decode::is_passing(message) {
            true => self.passing.insert(key),
            false => self.passing.remove(&key),
        };
        let is_new = self.addresses.insert(address);
        // The kernel may send from it, where nobody has told a device what to send from.
        touched.routing |= self.wide && is_new && !net::is_link_local(key.1);
        is_new | lifetime
    }

    fn new_route(&mut self, message: &RouteMessage, replaces: bool, touched: &mut Touched) -> bool {
        let route = decode::route(message);
        if !route.as_ref().is_some_and(|r| r.ours) {
            touched.destinations.extend(decode::destination(message));
        }
        let path = self.wide && self.new_path(message, replaces);
        let Some(route) = route else { return path };
        if replaces {
            self.routes.retain(|r| (r.to, r.priority) != (route.to, route.priority) || *r == route);
        }
        self.routes.insert(route) | path
    }

    fn new_path(&mut self, message: &RouteMessage, replaces: bool) -> bool {
        let Some(path) = paths::path(message) else { return false };
        if replaces {
            let key = |path: &Path| (path.table, path.to, path.priority);
            self.paths.retain(|other| key(other) != key(&path) || *other == path);
        }
        self.paths.insert(path)
    }
}

/// Puts a row, and says whether it is another than before.
fn insert<K: Ord, V: Clone + PartialEq>(rows: &mut BTreeMap<K, V>, key: K, row: V) -> bool {
    rows.insert(key, row.clone()).as_ref() != Some(&row)
}

/// Puts a row or takes it away, and says whether it is another than before.
fn keep<K: Ord, V: Clone + PartialEq>(rows: &mut BTreeMap<K, V>, key: K, row: Option<V>) -> bool {
    match row {
        Some(row) => insert(rows, key, row),
        None => rows.remove(&key).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use rtnetlink::packet_core::{DefaultNla, NetlinkHeader};
    use rtnetlink::packet_route::AddressFamily;
    use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags};
    use rtnetlink::packet_route::neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
    };

    use super::*;

    fn notice(tables: &mut Tables, inner: RouteNetlinkMessage) -> Touched {
        let mut touched = Touched::default();
        let message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(inner));
        tables.notice(&message, &mut touched);
        touched
    }

    fn link(index: u32, up: bool) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.attributes = vec![LinkAttribute::IfName(format!("if{index}")), LinkAttribute::Mtu(1500)];
        message
    }

    fn neighbour(state: NeighbourState) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = 7;
        message.header.state = state;
        let ip = NeighbourAddress::Inet(Ipv4Addr::new(10, 1, 0, 2));
        message.attributes = vec![
            NeighbourAttribute::Destination(ip),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
        ];
        message
    }

    #[test]
    fn a_link_that_is_notified_twice_changes_once() {
        let mut tables = Tables::default();
        assert!(notice(&mut tables, RouteNetlinkMessage::NewLink(link(7, true))).changed);
        assert!(!notice(&mut tables, RouteNetlinkMessage::NewLink(link(7, true))).changed);
        assert_eq!(
            notice(&mut tables, RouteNetlinkMessage::NewLink(link(7, false))).links,
            BTreeSet::from([IfIndex(7)])
        );
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_no_deleted_device() {
        let mut tables = Tables::default();
        notice(&mut tables, RouteNetlinkMessage::NewLink(link(7, true)));
        let mut port = link(7, true);
        port.header.interface_family = AddressFamily::Bridge;
        assert!(!notice(&mut tables, RouteNetlinkMessage::DelLink(port)).changed);
        assert!(notice(&mut tables, RouteNetlinkMessage::DelLink(link(7, true))).changed);
        assert!(tables.links.is_empty());
    }

    #[test]
    fn a_deleted_device_takes_its_rows_along() {
        let mut tables = Tables::default();
        notice(&mut tables, RouteNetlinkMessage::NewLink(link(7, true)));
        notice(&mut tables, RouteNetlinkMessage::NewNeighbour(neighbour(NeighbourState::Stale)));
        assert_eq!(tables.neighbours.len(), 1);
        notice(&mut tables, RouteNetlinkMessage::DelLink(link(7, true)));
        assert_eq!(tables, Tables::default());
    }

    #[test]
    fn a_neighbour_that_failed_is_unknown() {
        let mut tables = Tables::default();
        assert!(
            notice(&mut tables, RouteNetlinkMessage::NewNeighbour(neighbour(NeighbourState::Reachable)))
                .changed
        );
        let key = (IfIndex(7), IpAddr::from([10, 1, 0, 2]));
        assert!(tables.neighbours.contains_key(&key));
        assert!(
            !notice(&mut tables, RouteNetlinkMessage::NewNeighbour(neighbour(NeighbourState::Stale))).changed
        );
        assert!(
            notice(&mut tables, RouteNetlinkMessage::NewNeighbour(neighbour(NeighbourState::Failed))).changed
        );
        assert!(tables.neighbours.is_empty());
    }

    #[test]
    fn a_mac_that_moves_to_another_port_leaves_the_one_before() {
        let mut tables = Tables::default();
        for port in [7, 8] {
            let mut message = link(port, true);
            message.attributes.push(LinkAttribute::Controller(5));
            notice(&mut tables, RouteNetlinkMessage::NewLink(message));
        }
        for (port, changed) in [(7, true), (7, false), (8, true), (7, true)] {
            let mut entry = NeighbourMessage::default();
            entry.header.family = AddressFamily::Bridge;
            entry.header.ifindex = port;
            entry.attributes = vec![
                NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 1]),
                NeighbourAttribute::Controller(5),
            ];
            assert_eq!(notice(&mut tables, RouteNetlinkMessage::NewNeighbour(entry)).changed, changed);
            let ports: Vec<u32> = tables.fdb.values().map(|entry| entry.port.0).collect();
            assert_eq!(ports, [port]);
        }
    }

    fn entry(device: u32, mac: [u8; 6], attributes: Vec<NeighbourAttribute>) -> NeighbourMessage {
        let mut entry = NeighbourMessage::default();
        entry.header.family = AddressFamily::Bridge;
        entry.header.ifindex = device;
        entry.header.state = NeighbourState::Permanent;
        entry.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
        entry.attributes.extend(attributes);
        entry
    }

    fn to(vtep: u8) -> NeighbourAttribute {
        NeighbourAttribute::Destination(NeighbourAddress::Other(vec![192, 0, 2, vtep]))
    }

    #[test]
    fn the_all_zero_mac_has_many_vteps_which_come_and_go_one_by_one() {
        let mut tables = Tables::default();
        for vtep in 1..4 {
            notice(&mut tables, RouteNetlinkMessage::NewNeighbour(entry(6, [0; 6], vec![to(vtep)])));
        }
        notice(&mut tables, RouteNetlinkMessage::DelNeighbour(entry(6, [0; 6], vec![to(2)])));
        let vteps: Vec<_> = tables.flood.iter().map(|flood| flood.vtep.to_string()).collect();
        assert_eq!(vteps, ["192.0.2.1", "192.0.2.3"]);
        assert!(tables.remotes.is_empty() && tables.fdb.is_empty());
    }

    #[test]
    fn a_mac_has_an_entry_of_the_device_and_one_of_its_bridge() {
        let mut tables = Tables::default();
        let mac = [2, 0, 0, 0, 0, 1];
        notice(&mut tables, RouteNetlinkMessage::NewNeighbour(entry(6, mac, vec![to(2)])));
        let of_bridge = entry(6, mac, vec![NeighbourAttribute::Controller(5)]);
        notice(&mut tables, RouteNetlinkMessage::NewNeighbour(of_bridge.clone()));
        assert_eq!((tables.remotes.len(), tables.fdb.len()), (1, 1));
        let mut elsewhere = of_bridge.clone();
        elsewhere.header.ifindex = 7;
        notice(&mut tables, RouteNetlinkMessage::DelNeighbour(elsewhere));
        assert_eq!(tables.fdb.len(), 1, "that was its port before");
        notice(&mut tables, RouteNetlinkMessage::DelNeighbour(of_bridge));
        assert_eq!((tables.remotes.len(), tables.fdb.len()), (1, 0));
    }

    #[test]
    fn an_entry_with_a_vni_a_port_or_a_next_hop_of_its_own_is_not_plain() {
        let next_hop = NeighbourAttribute::Other(DefaultNla::new(13, vec![1, 0, 0, 0]));
        for odd in [NeighbourAttribute::Vni(7), NeighbourAttribute::Port(8472), next_hop.clone()] {
            let mut tables = Tables::default();
            let mac = [2, 0, 0, 0, 0, 1];
            notice(&mut tables, RouteNetlinkMessage::NewNeighbour(entry(6, mac, vec![to(2), odd])));
            assert!(tables.remotes.values().all(|remote| !remote.plain) && tables.remotes.len() == 1);
        }
        let mut tables = Tables::default();
        notice(&mut tables, RouteNetlinkMessage::NewNeighbour(entry(6, [2; 6], vec![next_hop])));
        assert_eq!(tables.remotes.values().next().map(|remote| remote.vtep), Some(None));
        notice(&mut tables, RouteNetlinkMessage::NewNeighbour(entry(9, [4; 6], vec![])));
        assert_eq!(tables.remotes.len(), 1, "what a device without a tunnel filters by");
    }

    #[test]
    fn an_entry_is_as_lasting_as_its_state_and_flags_say() {
        use NeighbourState::{Noarp, Other, Permanent, Reachable, Stale};
        let none = NeighbourFlags::empty();
        for (state, flags, ages) in [
            (Reachable, none, true),
            (Stale, none, true),
            (Reachable, NeighbourFlags::ExtLearned, false),
            (Noarp, none, false),
            (Permanent, none, false),
            (Other(0x82), none, false),
        ] {
            let mut tables = Tables::default();
            let mut message = entry(6, [2; 6], vec![NeighbourAttribute::Controller(5)]);
            (message.header.state, message.header.flags) = (state, flags);
            notice(&mut tables, RouteNetlinkMessage::NewNeighbour(message));
            assert!(
                tables.fdb.values().all(|entry| entry.ages == ages) && tables.fdb.len() == 1,
                "{state:?}"
            );
        }
    }

    #[test]
    fn a_hundred_thousand_entries_among_a_thousand_ports_are_taken_in_quickly() {
        let mut tables = Tables::default();
        for port in 10..1010 {
            let mut message = link(port, true);
            message.attributes.push(LinkAttribute::Controller(5));
            notice(&mut tables, RouteNetlinkMessage::NewLink(message));
        }
        let begin = std::time::Instant::now();
        for n in 0..100_000_u32 {
            let [_, a, b, c] = n.to_be_bytes();
            let mac = [2, 0, 0, a, b, c];
            let message = entry(10 + n % 1000, mac, vec![NeighbourAttribute::Controller(5)]);
            notice(&mut tables, RouteNetlinkMessage::NewNeighbour(message));
        }
        assert_eq!(tables.fdb.len(), 100_000);
        // Some 0.2 s without optimisation; to go through all ports for each would take minutes.
        assert!(begin.elapsed().as_secs() < 10, "{:?}", begin.elapsed());
    }

    #[test]
    fn an_overrun_asks_for_a_new_dump() {
        let mut touched = Touched::default();
        let message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::Overrun(vec![]));
        Tables::default().notice(&message, &mut touched);
        assert!(touched.lost);
    }

    #[test]
    fn a_late_notification_does_not_take_the_alias_that_a_dump_has_shown() {
        let mut tables = Tables::default();
        let mut dumped = link(7, false);
        dumped.attributes.push(LinkAttribute::IfAlias("ours".into()));
        notice(&mut tables, RouteNetlinkMessage::NewLink(dumped));
        assert!(!notice(&mut tables, RouteNetlinkMessage::NewLink(link(7, false))).changed);
        notice(&mut tables, RouteNetlinkMessage::NewLink(link(7, true)));
        assert_eq!(tables.links[&IfIndex(7)].alias, None, "announced, as it is up");
    }
}
