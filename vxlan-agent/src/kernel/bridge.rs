//! Settings of bridges and their ports.

use std::fmt;

use rtnetlink::packet_core::{Emitable as _, NlaBuffer, Parseable as _};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    BridgePortState, BridgeStpState, InfoBridge, InfoBridgePort, InfoData, InfoPortData, LinkAttribute,
    LinkInfo, LinkMessage, LinkProtoInfoBridge,
};

use crate::net::IfIndex;

/// Settings of a bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bridge {
    /// It tells VLANs apart.
    pub vlan_filtering: bool,
    /// It takes part in the spanning tree protocol, in the kernel or by a daemon.
    pub stp: bool,
    /// It sends groups' frames to their members only.
    pub mcast_snooping: bool,
    /// Which of the addresses 01:80:c2:00:00:0X it forwards, by bit.
    pub group_fwd_mask: u16,
    /// IPv4 packets come by iptables (with `br_netfilter`).
    pub nf_call_iptables: bool,
    /// IPv6 packets come by ip6tables.
    pub nf_call_ip6tables: bool,
    /// ARP comes by arptables.
    pub nf_call_arptables: bool,
    /// After how many hundredths of a second a learnt entry that is not used goes.
    pub ageing: u32,
    /// The VLAN of what comes untagged to a new port.
    pub default_pvid: u16,
    /// EtherType of its VLAN tags, in the host's byte order.
    pub vlan_protocol: u16,
}

/// Settings of a bridge's port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "they are the kernel's")]
pub struct Port {
    /// What it does with frames.
    pub state: PortState,
    /// The bridge learns MACs from it.
    pub learning: bool,
    /// It gets frames to MACs that the bridge does not know.
    pub unicast_flood: bool,
    /// Frames may leave by it that came in by it.
    pub hairpin: bool,
    /// Spanning tree messages are refused.
    pub guard: bool,
    /// It never leads to the root of the spanning tree (`IFLA_BRPORT_PROTECT`).
    pub protect: bool,
    /// A group is left without a query.
    pub fast_leave: bool,
    /// The bridge answers ARP on it.
    pub proxyarp: bool,
    /// The same, where stations behind one access point are kept apart.
    pub proxyarp_wifi: bool,
    /// The bridge answers ARP and neighbour solicitations in the place of stations behind it.
    pub neigh_suppress: bool,
    /// It exchanges frames with ports that are not isolated only.
    pub isolated: bool,
    /// Only stations that were entered for it may send (IEEE 802.1X).
    pub locked: bool,
    /// A locked port lists stations that want to send (MAC authentication bypass).
    pub mab: bool,
    /// VLANs become tunnel numbers.
    pub vlan_tunnel: bool,
    /// Where frames go while it has no carrier.
    pub backup: Option<IfIndex>,
    /// It is one of a ring's (MRP) that has been found open.
    pub ring_open: bool,
}

/// What a port does with frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortState {
    /// Nothing: it is down, has no carrier, or was switched off.
    #[default]
    Disabled,
    /// It takes spanning tree messages only.
    Listening,
    /// It learns MACs and forwards nothing.
    Learning,
    /// It forwards.
    Forwarding,
    /// It forwards nothing: there is a better way to where it leads.
    Blocking,
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "disabled",
            Self::Listening => "listening",
            Self::Learning => "learning",
            Self::Forwarding => "forwarding",
            Self::Blocking => "blocking",
        })
    }
}

fn infos(message: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    let all = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    all.flatten()
}

/// The settings of the bridge that a message describes, if it describes one.
pub(super) fn bridge(message: &LinkMessage) -> Option<Bridge> {
    let parameters = infos(message).find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(parameters)) => Some(parameters),
        _ => None,
    })?;
    let mut bridge = Bridge::default();
    for parameter in parameters {
        match parameter {
            InfoBridge::VlanFiltering(on) => bridge.vlan_filtering = *on,
            InfoBridge::StpState(state) => bridge.stp = *state != BridgeStpState::Disabled,
            InfoBridge::MulticastSnooping(on) => bridge.mcast_snooping = *on,
            InfoBridge::GroupFwdMask(mask) => bridge.group_fwd_mask = *mask,
            InfoBridge::NfCallIpTables(on) => bridge.nf_call_iptables = *on,
            InfoBridge::NfCallIp6Tables(on) => bridge.nf_call_ip6tables = *on,
            InfoBridge::NfCallArpTables(on) => bridge.nf_call_arptables = *on,
            InfoBridge::AgeingTime(hundredths) => bridge.ageing = *hundredths,
            InfoBridge::VlanDefaultPvid(vlan) => bridge.default_pvid = *vlan,
            InfoBridge::VlanProtocol(protocol) => bridge.vlan_protocol = u16::from(*protocol),
            _ => {}
        }
    }
    Some(bridge)
}

/// The settings of the bridge port that a message describes, if it describes one.
pub(super) fn port(message: &LinkMessage) -> Option<Port> {
    infos(message).find_map(|info| match info {
        LinkInfo::PortData(InfoPortData::BridgePort(parameters)) => Some(settings(parameters)),
        _ => None,
    })
}

/// The port that a notification of the bridge is about, and its settings. The kernel announces so what the
/// spanning tree, `bridge link set` and files below `brport` change (`br_ifinfo_notify`).
pub(super) fn announced_port(message: &LinkMessage) -> Option<(IfIndex, Port)> {
    if message.header.interface_family != AddressFamily::Bridge {
        return None;
    }
    let attributes = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::ProtoInfoBridge(attributes) => Some(attributes),
        _ => None,
    })?;
    let parameters: Vec<_> = attributes.iter().filter_map(parameter).collect();
    // A driver's message about its own switch has a part of the settings, and no number.
    let whole = parameters.iter().any(|parameter| matches!(parameter, InfoBridgePort::PortNumber(_)));
    whole.then(|| (IfIndex(message.header.index), settings(&parameters)))
}

/// The attributes are the same here as in a port's own message, where the library reads them.
fn parameter(attribute: &LinkProtoInfoBridge) -> Option<InfoBridgePort> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    InfoBridgePort::parse(&NlaBuffer::new_checked(bytes.as_slice()).ok()?).ok()
}

fn settings(parameters: &[InfoBridgePort]) -> Port {
    let mut port = Port::default();
    for parameter in parameters {
        match parameter {
            InfoBridgePort::State(state) => port.state = port_state(*state),
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::UnicastFlood(on) => port.unicast_flood = *on,
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            InfoBridgePort::Guard(on) => port.guard = *on,
            InfoBridgePort::Protect(on) => port.protect = *on,
            InfoBridgePort::FastLeave(on) => port.fast_leave = *on,
            InfoBridgePort::ProxyARP(on) => port.proxyarp = *on,
            InfoBridgePort::ProxyARPWifi(on) => port.proxyarp_wifi = *on,
            InfoBridgePort::NeighSupress(on) | InfoBridgePort::NeighVlanSuppress(on) => {
                port.neigh_suppress |= *on;
            }
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::Locked(on) => port.locked = *on,
            InfoBridgePort::Mab(on) => port.mab = *on,
            InfoBridgePort::VlanTunnel(on) => port.vlan_tunnel = *on,
            InfoBridgePort::BackupPort(index) if *index != 0 => port.backup = Some(IfIndex(*index)),
            InfoBridgePort::MrpRingOpen(open) | InfoBridgePort::MrpInOpen(open) => port.ring_open |= *open,
            _ => {}
        }
    }
    port
}

fn port_state(state: BridgePortState) -> PortState {
    match state {
        BridgePortState::Listening => PortState::Listening,
        BridgePortState::Learning => PortState::Learning,
        BridgePortState::Forwarding => PortState::Forwarding,
        BridgePortState::Blocking => PortState::Blocking,
        _ => PortState::Disabled,
    }
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::DefaultNla;

    use super::*;

    #[test]
    fn a_port_is_read_from_either_kind_of_message() {
        let mut own = LinkMessage::default();
        own.header.index = 7;
        own.attributes =
            vec![LinkAttribute::LinkInfo(vec![LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::State(BridgePortState::Forwarding),
                InfoBridgePort::Isolated(true),
            ]))])];
        let mut announced = LinkMessage::default();
        announced.header.index = 7;
        announced.header.interface_family = AddressFamily::Bridge;
        let other = |kind, value: &[u8]| LinkProtoInfoBridge::Other(DefaultNla::new(kind, value.to_vec()));
        let attributes = vec![other(1, &[3]), other(33, &[1]), other(18, &[1, 0])];
        announced.attributes = vec![LinkAttribute::ProtoInfoBridge(attributes.clone())];
        let expected = Port { state: PortState::Forwarding, isolated: true, ..Port::default() };
        assert_eq!(port(&own), Some(expected.clone()));
        assert_eq!(announced_port(&announced), Some((IfIndex(7), expected)));
        announced.attributes = vec![LinkAttribute::ProtoInfoBridge(attributes[..2].to_vec())];
        assert_eq!(announced_port(&announced), None, "a driver's message");
        assert_eq!(announced_port(&own), None);
    }
}
