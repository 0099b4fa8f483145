//! Why frames between ports of a bridge have to come by the bridge itself.

use std::fmt;

use super::bridge::{Bridge, Port, PortState};
use super::tables::{Link, Tables};
use crate::net::{IfIndex, Mtu};

/// What a reason is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All frames of the bridge.
    Bridge,
    /// Frames from and to one port.
    Port(IfIndex),
}

/// What only the bridge itself does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// VLAN filtering.
    VlanFiltering,
    /// Packet filters of IP packets (`br_netfilter`).
    NetfilterCalls,
    /// A state in which the port forwards nothing.
    NotForwarding(PortState),
    /// Isolation.
    Isolated,
    /// IEEE 802.1X.
    Locked,
    /// MAC authentication bypass.
    Mab,
    /// Hairpin mode.
    Hairpin,
    /// Tunnel numbers for VLANs.
    VlanTunnel,
    /// A port that takes over.
    Backup(IfIndex),
    /// Learning is off.
    NoLearning,
    /// A ring that was found open.
    RingOpen,
}

/// Why frames have to come by the bridge itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reason {
    /// Which frames.
    pub scope: Scope,
    /// What would be missed.
    pub feature: Feature,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VlanFiltering => f.write_str("the bridge filters VLANs"),
            Self::NetfilterCalls => f.write_str(
                "the bridge passes IP packets to iptables (bridge-nf-call-iptables, bridge-nf-call-ip6tables)",
            ),
            Self::NotForwarding(state) => write!(f, "the port does not forward: it is {state}"),
            Self::Isolated => f.write_str("the port is isolated"),
            Self::Locked => f.write_str("the port is locked"),
            Self::Mab => f.write_str("the port authenticates stations by their MAC"),
            Self::Hairpin => f.write_str("the port is in hairpin mode"),
            Self::VlanTunnel => f.write_str("the port maps VLANs to tunnels"),
            Self::Backup(backup) => write!(f, "interface {backup} takes over for the port"),
            Self::NoLearning => f.write_str("the bridge does not learn from the port"),
            Self::RingOpen => f.write_str("the port is part of an open ring (MRP)"),
        }
    }
}

impl fmt::Display for Reason {
    /// With the port's index: "port 7: the port is isolated".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scope {
            Scope::Bridge => self.feature.fmt(f),
            Scope::Port(port) => write!(f, "port {port}: {}", self.feature),
        }
    }
}

/// Why unicast IP frames between ports of `bridge` have to come by it; nothing where they may pass it by.
/// `netfilter` says whether the namespace's setting has bridges pass IP packets to iptables
/// ([`sysctl::bridges_call_netfilter`](super::sysctl::bridges_call_netfilter)).
///
/// No reason are: answering ARP and neighbour solicitations (`proxyarp`, `neigh_suppress`), because a unicast
/// one may as well reach the station itself; arptables, which sees ARP alone; the spanning tree as such,
/// because what it decides shows in the ports' states, and so `guard` and `protect`; whatever is about
/// groups. A port that is down or has no carrier forwards nothing whoever asks, so it is passed over. Chains
/// of the family bridge are in [`Ruleset`](super::ruleset::Ruleset).
pub fn why_not(tables: &Tables, bridge: IfIndex, netfilter: bool) -> Vec<Reason> {
    let settings = tables.bridges.get(&bridge);
    let of_bridge = settings.into_iter().flat_map(|settings| bridge_features(settings, netfilter));
    let mut reasons: Vec<_> = of_bridge.map(|feature| Reason { scope: Scope::Bridge, feature }).collect();
    for link in tables.ports_of(bridge).filter(|link| link.up && link.sends_ethernet) {
        let Some(port) = tables.ports.get(&link.index) else { continue };
        let scope = Scope::Port(link.index);
        reasons.extend(port_features(port).map(|feature| Reason { scope, feature }));
    }
    reasons
}

fn bridge_features(bridge: &Bridge, netfilter: bool) -> impl Iterator<Item = Feature> {
    let calls = netfilter || bridge.nf_call_iptables || bridge.nf_call_ip6tables;
    let all = [(bridge.vlan_filtering, Feature::VlanFiltering), (calls, Feature::NetfilterCalls)];
    all.into_iter().filter_map(|(on, feature)| on.then_some(feature))
}

fn port_features(port: &Port) -> impl Iterator<Item = Feature> {
    let all = [
        (port.state != PortState::Forwarding, Feature::NotForwarding(port.state)),
        (port.isolated, Feature::Isolated),
        (port.locked, Feature::Locked),
        (port.mab, Feature::Mab),
        (port.hairpin, Feature::Hairpin),
        (port.vlan_tunnel, Feature::VlanTunnel),
        (port.backup.is_some(), Feature::Backup(port.backup.unwrap_or_default())),
        (!port.learning, Feature::NoLearning),
        (port.ring_open, Feature::RingOpen),
    ];
    all.into_iter().filter_map(|(on, feature)| on.then_some(feature))
}

/// Ports of `bridge` that send larger packets than `mtu`, the overlay's: the bridge drops them on their way
/// to the vxlan device, and tells nobody.
pub fn larger_ports(tables: &Tables, bridge: IfIndex, mtu: Mtu) -> impl Iterator<Item = &Link> {
    tables.ports_of(bridge).filter(move |link| link.mtu > mtu)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BRIDGE: IfIndex = IfIndex(5);
    const PORT: IfIndex = IfIndex(7);

    fn plain() -> Port {
        Port { state: PortState::Forwarding, learning: true, unicast_flood: true, ..Port::default() }
    }

    fn tables(bridge: Bridge, port: Port) -> Tables {
        let mut tables = Tables::default();
        tables.bridges.insert(BRIDGE, bridge);
        tables.ports.insert(PORT, port);
        let link =
            Link { index: PORT, up: true, sends_ethernet: true, master: Some(BRIDGE), ..Link::default() };
        tables.links.insert(PORT, link);
        tables
    }

    fn of_port(port: Port) -> Vec<Reason> {
        why_not(&tables(Bridge::default(), port), BRIDGE, false)
    }

    #[test]
    fn a_plain_bridge_may_be_passed_by() {
        assert_eq!(of_port(plain()), []);
        let answering = Port { neigh_suppress: true, proxyarp: true, proxyarp_wifi: true, ..plain() };
        assert_eq!(of_port(answering), [], "that is about ARP");
        assert_eq!(of_port(Port { guard: true, protect: true, fast_leave: true, ..plain() }), []);
        let bridge = Bridge { stp: true, mcast_snooping: true, nf_call_arptables: true, ..Bridge::default() };
        assert_eq!(why_not(&tables(bridge, plain()), BRIDGE, false), []);
    }

    #[test]
    fn what_a_port_does_is_a_reason_for_that_port() {
        let backup = Some(IfIndex(9));
        for (port, feature) in [
            (Port { state: PortState::Blocking, ..plain() }, Feature::NotForwarding(PortState::Blocking)),
            (Port { isolated: true, ..plain() }, Feature::Isolated),
            (Port { locked: true, ..plain() }, Feature::Locked),
            (Port { mab: true, ..plain() }, Feature::Mab),
            (Port { hairpin: true, ..plain() }, Feature::Hairpin),
            (Port { vlan_tunnel: true, ..plain() }, Feature::VlanTunnel),
            (Port { backup, ..plain() }, Feature::Backup(IfIndex(9))),
            (Port { learning: false, ..plain() }, Feature::NoLearning),
            (Port { ring_open: true, ..plain() }, Feature::RingOpen),
        ] {
            assert_eq!(of_port(port), [Reason { scope: Scope::Port(PORT), feature }]);
        }
        let isolated = Reason { scope: Scope::Port(PORT), feature: Feature::Isolated };
        assert_eq!(isolated.to_string(), "port 7: the port is isolated");
    }

    #[test]
    fn what_the_bridge_does_is_a_reason_for_all_ports() {
        let reasons = |bridge, netfilter| why_not(&tables(bridge, plain()), BRIDGE, netfilter);
        let of_bridge = |feature| [Reason { scope: Scope::Bridge, feature }];
        let filtering = Bridge { vlan_filtering: true, ..Bridge::default() };
        assert_eq!(reasons(filtering, false), of_bridge(Feature::VlanFiltering));
        assert_eq!(reasons(Bridge::default(), true), of_bridge(Feature::NetfilterCalls));
        let calls = Bridge { nf_call_ip6tables: true, ..Bridge::default() };
        assert_eq!(reasons(calls, false), of_bridge(Feature::NetfilterCalls));
    }

    #[test]
    fn a_port_that_is_down_is_passed_over() {
        let mut tables = tables(Bridge::default(), Port::default());
        assert_eq!(why_not(&tables, BRIDGE, false).len(), 2, "disabled, and no learning");
        tables.links.get_mut(&PORT).expect("there").sends_ethernet = false;
        assert_eq!(why_not(&tables, BRIDGE, false), []);
    }

    #[test]
    fn a_port_of_a_larger_mtu_is_found() {
        let mut tables = tables(Bridge::default(), plain());
        tables.links.get_mut(&PORT).expect("there").mtu = Mtu(1500);
        assert_eq!(
            larger_ports(&tables, BRIDGE, Mtu(1450)).map(|link| link.index).collect::<Vec<_>>(),
            [PORT]
        );
        assert_eq!(larger_ports(&tables, BRIDGE, Mtu(1500)).count(), 0);
    }
}
