//! A small network to send packets in: one node with two pods on a bridge and a routed one, and
//! one remote node per underlay family. Frames come from an independent builder.

extern crate std;

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::vec::Vec;

use etherparse::PacketBuilder;

use crate::counters::Hook;
use crate::headers::Be16;
use crate::maps::{
    Addr, Endpoint, Key4, Key6, Kind, LOCAL_VTEP, LinkEntry, LocalVtep, MacKey, Mode, Network, NetworkId,
    NextHop, Node, Station, VniKey, Vtep, VtepId, local,
};
use crate::model::{Frame, Maps};

/// The network.
pub const NETWORK: NetworkId = 1;
/// VNI of the network.
pub const VNI: u32 = 0x01_0203;
/// What XDP leaves with a packet that it has decapsulated.
pub const MARK: u32 = 0x5eca_11ed;
/// UDP destination port.
pub const PORT: u16 = 8472;
/// Interface of the first pod; every kernel has it.
pub const POD_IFINDEX: u32 = 1;
/// The vxlan device; a network namespace has an interface with this index.
pub const DEVICE: u32 = 1;
/// Bridge of the first two pods.
pub const BRIDGE: u32 = 90;
/// MTU of pods and overlay.
pub const MTU: u16 = 1430;
/// TTL of the ways to other nodes.
pub const TTL: u8 = 64;
/// MAC of this node's VTEP.
pub const LOCAL_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// MAC of the node as the pods see it.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
/// MAC of a router on the underlay.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 2, 0];
/// MAC of this node on the underlay: that of the loopback interface, on which the kernel lets
/// programs find the frames of a test run.
pub const UNDERLAY_MAC: [u8; 6] = [0; 6];
/// Remote node on the IPv4 underlay, with the subnets `10.244.2.0/24` and `fd00:244:2::/64`.
pub const REMOTE4: VtepId = 1;
/// Remote node on the IPv6 underlay, with the subnets `10.244.3.0/24` and `fd00:244:3::/64`.
pub const REMOTE6: VtepId = 2;

/// MAC of a pod.
pub const fn pod_mac(pod: u8) -> [u8; 6] {
    [2, 0, 0, 1, 0, pod]
}

/// MAC of a remote VTEP.
pub const fn vtep_mac(id: VtepId) -> [u8; 6] {
    [2, 0, 0, 2, 0, id as u8]
}

/// Address of a pod: node 1 is this one.
pub const fn pod4(node: u8, pod: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, pod)
}

/// Address of a pod: node 1 is this one.
pub const fn pod6(node: u8, pod: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x244, node as u16, 0, 0, 0, 0, pod as u16)
}

/// Underlay address of a node.
pub const fn node4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node)
}

/// Underlay address of a node.
pub const fn node6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node as u16)
}

/// The maps of this node. Pods 1 and 2 share a bridge, pod 3 has a routed veth.
pub fn maps() -> Maps {
    let port = Be16::new(PORT);
    let mut maps = Maps {
        node: Node { only: NETWORK, mark: MARK, ports: [port, Be16(0), Be16(0), Be16(0)], ..Node::default() },
        networks: [(NETWORK, network())].into(),
        vnis: [(VniKey::new(VNI, port), NETWORK)].into(),
        links: (1..=3).map(|pod| (pod, LinkEntry { network: NETWORK, flags: 0 })).collect(),
        ..Maps::default()
    };
    for (node, id) in [(1, LOCAL_VTEP), (2, REMOTE4), (3, REMOTE6)] {
        maps.routes4.insert((key4(pod4(node, 0)), 24), id);
        maps.routes6.insert((key6(pod6(node, 0)), 64), id);
    }
    for (id, addr) in [(REMOTE4, IpAddr::from(node4(2))), (REMOTE6, IpAddr::from(node6(3)))] {
        maps.vteps.insert(id, vtep(id, addr));
        maps.vtep_ids.insert(key6(addr), id);
        maps.stations.insert(MacKey::new(NETWORK, vtep_mac(id)), Station::vtep(id));
    }
    for pod in 1..=3 {
        maps.endpoints4.insert(key4(pod4(1, pod)), endpoint(pod));
        maps.endpoints6.insert(key6(pod6(1, pod)), endpoint(pod));
    }
    maps
}

/// MAC of a station of the segment behind remote node `id`.
pub const fn station_mac(id: VtepId) -> [u8; 6] {
    [2, 0, 0, 9, 0, id as u8]
}

/// The maps of this node if the network is a segment: pods 1 and 2 are stations behind ports of its bridge, and
/// each remote node has one. The kernel was given a frame of each at the time `now`.
pub fn segment(now: u64) -> Maps {
    let mut maps = Maps { now, ..maps() };
    maps.networks.values_mut().for_each(|network| network.kind = Kind::L2 as u8);
    let ports = (1..=2).map(|pod| {
        let ifindex = u32::from(pod);
        (pod_mac(pod), Station { vtep: LOCAL_VTEP, ifindex, mtu: MTU, ..Station::default() })
    });
    let remote = [REMOTE4, REMOTE6].map(|id| (station_mac(id), Station::vtep(id)));
    let stations = ports.chain(remote);
    maps.stations =
        stations.map(|(mac, at)| (MacKey::new(NETWORK, mac), Station { confirmed: now, ..at })).collect();
    maps
}

/// A frame to the station `to` from that of pod 1. It has one hop left.
pub fn frame_to(to: [u8; 6], v6: bool) -> Inner {
    let ip = if v6 { pod6(2, 9).into() } else { pod4(2, 9).into() };
    Inner { from_mac: pod_mac(1), to_mac: to, ttl: 1, ..Inner::from_pod(ip) }
}

/// A frame from the station behind remote node `id` to that of pod 1, and that in its tunnel.
pub fn frame_from(id: VtepId, v6: bool) -> (Inner, Frame) {
    let inner = Inner { from_mac: station_mac(id), to_mac: pod_mac(1), ttl: 1, ..Inner::from_remote(id, v6) };
    let frame = Outer::from_remote(id, inner.build()).frame();
    (inner, frame)
}

/// Frames that the programs forward in a [`segment`], of every kind.
pub fn segment_seeds() -> Vec<(Hook, Frame)> {
    let mut seeds = Vec::new();
    for payload in Payload::ALL {
        for v6 in [false, true] {
            seeds.push((Hook::PortIngress, Inner { payload, ..frame_to(pod_mac(2), v6) }.frame()));
            for id in [REMOTE4, REMOTE6] {
                seeds.push((Hook::PortIngress, Inner { payload, ..frame_to(station_mac(id), v6) }.frame()));
                let inner = Inner { payload, ..frame_from(id, v6).0 };
                seeds.push((Hook::TunnelIngress, inner.frame()));
                let outer = Outer::from_remote(id, inner.build()).frame();
                seeds.push((Hook::UnderlayXdp, outer.clone()));
                seeds.push((Hook::UnderlayIngress, outer));
            }
        }
    }
    seeds
}

/// The key of an address in the network.
pub const fn key4(ip: Ipv4Addr) -> Key4 {
    Key4 { network: NETWORK, addr: ip.octets() }
}

/// The key of an address in the network.
pub fn key6(ip: impl Into<IpAddr>) -> Key6 {
    Key6::new(NETWORK, addr(ip))
}

fn network() -> Network {
    let end = |addr: IpAddr| LocalVtep {
        addr: addr.into(),
        mac: LOCAL_MAC,
        mtu: MTU,
        ifindex: 80,
        device: DEVICE,
        flags: if addr.is_ipv6() { local::CHECKSUM } else { 0 },
        port_min: 32768,
        port_max: 60999,
        ..LocalVtep::default()
    };
    Network {
        id: NETWORK,
        vni: VNI,
        port: PORT.to_be_bytes(),
        mode: Mode::Direct as u8,
        local4: end(node4(1).into()),
        local6: end(node6(1).into()),
        ..Network::default()
    }
}

fn vtep(id: VtepId, addr: IpAddr) -> Vtep {
    let mut next_hop = NextHop::default();
    let family = match addr {
        IpAddr::V4(addr) => {
            next_hop.family = 2;
            next_hop.addr[..4].copy_from_slice(&addr.octets());
            4
        }
        IpAddr::V6(addr) => {
            next_hop = NextHop { family: 10, addr: addr.octets() };
            6
        }
    };
    Vtep {
        addr: addr.into(),
        mac: vtep_mac(id),
        family,
        ifindex: 80,
        next_hop,
        mtu: MTU,
        ttl: TTL,
        ..Vtep::default()
    }
}

/// The entry of a local pod.
pub fn endpoint(pod: u8) -> Endpoint {
    Endpoint {
        ifindex: u32::from(pod),
        mac: pod_mac(pod),
        gateway_mac: GATEWAY_MAC,
        bridge: if pod < 3 { BRIDGE } else { 0 },
        mtu: MTU,
        flags: 0,
        reserved: 0,
        found: 0,
    }
}

/// What an inner packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// A UDP datagram.
    Udp,
    /// A TCP segment.
    Tcp,
    /// An echo request.
    Echo,
}

impl Payload {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Udp, Self::Tcp, Self::Echo];
}

/// An IP packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub struct Inner {
    /// Ethernet source.
    pub from_mac: [u8; 6],
    /// Ethernet destination.
    pub to_mac: [u8; 6],
    /// IP source.
    pub from: IpAddr,
    /// IP destination, of the same family.
    pub to: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// What it carries.
    pub payload: Payload,
    /// Bytes in the innermost payload.
    pub len: usize,
}

impl Inner {
    /// A packet from pod 1 to `to`, addressed to the node.
    pub fn from_pod(to: IpAddr) -> Self {
        let from = if to.is_ipv4() { pod4(1, 1).into() } else { pod6(1, 1).into() };
        Self {
            from_mac: pod_mac(1),
            to_mac: GATEWAY_MAC,
            from,
            to,
            ttl: 64,
            tos: 0,
            payload: Payload::Udp,
            len: 100,
        }
    }

    /// A packet from a pod of remote node `id` to pod 1, as it is inside of the tunnel.
    pub fn from_remote(id: VtepId, v6: bool) -> Self {
        let node = id as u8 + 1;
        let (from, to) = if v6 {
            (pod6(node, 7).into(), pod6(1, 1).into())
        } else {
            (pod4(node, 7).into(), pod4(1, 1).into())
        };
        Self { from_mac: vtep_mac(id), to_mac: LOCAL_MAC, from, to, ..Self::from_pod(to) }
    }

    /// The frame's bytes, with all lengths and checksums right.
    pub fn build(&self) -> Vec<u8> {
        let data: Vec<u8> = (0..self.len).map(|n| n as u8).collect();
        let mut bytes = Vec::new();
        let eth = PacketBuilder::ethernet2(self.from_mac, self.to_mac);
        let ip = match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => eth.ip(self.header4(from, to)),
            (IpAddr::V6(from), IpAddr::V6(to)) => eth.ip(self.header6(from, to)),
            _ => panic!("two families in one packet"),
        };
        match (self.payload, self.from.is_ipv4()) {
            (Payload::Udp, _) => ip.udp(40000, 53).write(&mut bytes, &data),
            (Payload::Tcp, _) => ip.tcp(40000, 80, 1, 512).ack(7).write(&mut bytes, &data),
            (Payload::Echo, true) => ip.icmpv4_echo_request(1, 2).write(&mut bytes, &data),
            (Payload::Echo, false) => ip.icmpv6_echo_request(1, 2).write(&mut bytes, &data),
        }
        .expect("a vector takes what is written to it");
        bytes
    }

    fn header4(&self, from: Ipv4Addr, to: Ipv4Addr) -> etherparse::IpHeaders {
        let mut header =
            etherparse::Ipv4Header::new(0, self.ttl, etherparse::IpNumber(0), from.octets(), to.octets())
                .expect("no payload is not too much");
        header.dscp = etherparse::IpDscp::try_new(self.tos >> 2).expect("six bits");
        header.ecn = etherparse::IpEcn::try_new(self.tos & 3).expect("two bits");
        etherparse::IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default())
    }

    fn header6(&self, from: Ipv6Addr, to: Ipv6Addr) -> etherparse::IpHeaders {
        let header = etherparse::Ipv6Header {
            traffic_class: self.tos,
            flow_label: etherparse::Ipv6FlowLabel::try_new(0x12345).expect("twenty bits"),
            hop_limit: self.ttl,
            source: from.octets(),
            destination: to.octets(),
            ..etherparse::Ipv6Header::default()
        };
        etherparse::IpHeaders::Ipv6(header, etherparse::Ipv6Extensions::default())
    }

    /// As a frame at the first pod's hook.
    pub fn frame(&self) -> Frame {
        Frame {
            bytes: self.build(),
            ifindex: POD_IFINDEX,
            flow_hash: 0x1234_5678,
            random: 0xbeef,
            ..Frame::default()
        }
    }
}

/// A VXLAN packet on the underlay.
#[derive(Clone, Debug)]
pub struct Outer {
    /// IP source.
    pub from: IpAddr,
    /// IP destination, of the same family.
    pub to: IpAddr,
    /// TOS or traffic class.
    pub tos: u8,
    /// Eight bytes of VXLAN header.
    pub vxlan: [u8; 8],
    /// UDP destination port.
    pub port: u16,
    /// The inner frame.
    pub inner: Vec<u8>,
}

impl Outer {
    /// `inner` from remote node `id` to this one.
    pub fn from_remote(id: VtepId, inner: Vec<u8>) -> Self {
        let (from, to) = match id {
            REMOTE4 => (node4(2).into(), node4(1).into()),
            _ => (node6(3).into(), node6(1).into()),
        };
        let [_, a, b, c] = VNI.to_be_bytes();
        Self { from, to, tos: 0, vxlan: [8, 0, 0, 0, a, b, c, 0], port: PORT, inner }
    }

    /// The frame's bytes, with all lengths and checksums right.
    pub fn build(&self) -> Vec<u8> {
        let mut payload = self.vxlan.to_vec();
        payload.extend(&self.inner);
        let ip = Inner {
            from_mac: ROUTER_MAC,
            to_mac: UNDERLAY_MAC,
            from: self.from,
            to: self.to,
            tos: self.tos,
            ..Inner::from_pod(self.to)
        };
        let eth = PacketBuilder::ethernet2(ip.from_mac, ip.to_mac);
        let mut bytes = Vec::new();
        match (self.from, self.to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => eth.ip(ip.header4(from, to)),
            (IpAddr::V6(from), IpAddr::V6(to)) => eth.ip(ip.header6(from, to)),
            _ => panic!("two families in one packet"),
        }
        .udp(50000, self.port)
        .write(&mut bytes, &payload)
        .expect("a vector takes what is written to it");
        bytes
    }

    /// As a frame on the underlay.
    pub fn frame(&self) -> Frame {
        Frame { bytes: self.build(), ifindex: POD_IFINDEX, ..Frame::default() }
    }
}

/// Every kind of packet to a pod of either node, sent by a pod or routed by the host, with the hook
/// that gets it. The order is for good: inputs of the fuzz targets say which by number.
pub fn outbound() -> Vec<(Hook, Inner)> {
    let to: [IpAddr; 6] = [
        pod4(2, 9).into(),
        pod6(2, 9).into(),
        pod4(3, 9).into(),
        pod6(3, 9).into(),
        pod4(1, 2).into(),
        pod6(1, 3).into(),
    ];
    let sent = to.into_iter().map(|to| (Hook::PodEgress, Inner::from_pod(to)));
    // Each family through either VTEP.
    let vteps = [REMOTE6, REMOTE6, REMOTE4, REMOTE4, REMOTE6, REMOTE6];
    let routed = to
        .into_iter()
        .zip(vteps)
        .map(|(to, id)| (Hook::TunnelEgress, Inner { to_mac: vtep_mac(id), ..Inner::from_pod(to) }));
    let all = sent
        .chain(routed)
        .flat_map(|(hook, inner)| Payload::ALL.map(|payload| (hook, Inner { payload, ..inner.clone() })));
    all.collect()
}

/// Every kind of packet from a pod of either node, in its tunnel or out of it, with the hook that
/// gets it and the node. The order is for good, as that of [`outbound`].
pub fn inbound() -> Vec<(Hook, VtepId, Inner)> {
    let mut all = Vec::new();
    for hook in [Hook::UnderlayIngress, Hook::TunnelIngress] {
        for v6 in [false, true] {
            for id in [REMOTE4, REMOTE6] {
                let inner = |payload| Inner { payload, ..Inner::from_remote(id, v6) };
                all.extend(Payload::ALL.map(|payload| (hook, id, inner(payload))));
            }
        }
    }
    all
}

/// A valid frame of every kind, with the hook that it belongs to.
pub fn seeds() -> Vec<(Hook, Frame)> {
    let outbound = outbound().into_iter().map(|(hook, inner)| (hook, inner.frame()));
    let inbound = inbound().into_iter().map(|(hook, id, inner)| match hook {
        Hook::UnderlayIngress => (hook, Outer::from_remote(id, inner.build()).frame()),
        _ => (hook, inner.frame()),
    });
    let seeds: Vec<_> = outbound.chain(inbound).collect();
    let underlay = seeds.iter().filter(|(hook, _)| *hook == Hook::UnderlayIngress);
    let xdp: Vec<_> = underlay.map(|(_, frame)| (Hook::UnderlayXdp, frame.clone())).collect();
    seeds.into_iter().chain(xdp).collect()
}

/// The mapped form of an address.
pub fn addr(ip: impl Into<IpAddr>) -> Addr {
    ip.into().into()
}
