//! Keys and values of the BPF maps: the interface between agent, programs and `bpftool map dump`.
//!
//! Multi-byte protocol fields are byte arrays in network byte order; everything else is in the
//! host's. Every type is `repr(C)` without implicit padding, because the kernel hashes key bytes.

use crate::counters::{Disposition, Hook, Reason};
use crate::headers::{Be16, Be32, Mac};

/// Changes with every incompatible change of a map's layout; part of the pin directory's name.
pub const LAYOUT_VERSION: u32 = 8;

/// Names of the maps, as pinned.
pub mod names {
    /// Array of one [`Node`](super::Node).
    pub const NODE: &str = "NODE";
    /// Array: [`NetworkId`](super::NetworkId) → [`Network`](super::Network).
    pub const NETWORKS: &str = "NETWORKS";
    /// Array of one [`Watch`](super::Watch).
    pub const WATCH: &str = "WATCH";
    /// Array of `u32`, two for each network; see [`switch`](super::switch).
    pub const SWITCH: &str = "SWITCH";
    /// Hash: [`VniKey`](super::VniKey) → [`NetworkId`](super::NetworkId).
    pub const VNIS: &str = "VNIS";
    /// Hash: interface → [`LinkEntry`](super::LinkEntry).
    pub const LINKS: &str = "LINKS";
    /// LPM trie: [`NetworkId`](super::NetworkId) and inner IPv4 prefix → [`VtepId`](super::VtepId).
    pub const ROUTES4: &str = "ROUTES4";
    /// LPM trie: [`NetworkId`](super::NetworkId) and inner IPv6 prefix → [`VtepId`](super::VtepId).
    pub const ROUTES6: &str = "ROUTES6";
    /// Hash: [`Key4`](super::Key4) of a subnet → [`VtepId`](super::VtepId): what ROUTES4 has, too, but of one
    /// length for each network; see [`subnet4`](super::subnet4).
    pub const SUBNETS4: &str = "SUBNETS4";
    /// As SUBNETS4, of ROUTES6; see [`subnet6`](super::subnet6).
    pub const SUBNETS6: &str = "SUBNETS6";
    /// Array: [`VtepId`](super::VtepId) → [`Vtep`](super::Vtep).
    pub const VTEPS: &str = "VTEPS";
    /// Hash: [`Key6`](super::Key6) of an underlay address → [`VtepId`](super::VtepId): who may send us
    /// anything.
    pub const VTEP_IDS: &str = "VTEP_IDS";
    /// Hash: [`MacKey`](super::MacKey) → [`Station`](super::Station).
    pub const STATIONS: &str = "STATIONS";
    /// Hash: [`Key4`](super::Key4) of a local pod → [`Endpoint`](super::Endpoint).
    pub const ENDPOINTS4: &str = "ENDPOINTS4";
    /// Hash: [`Key6`](super::Key6) of a local pod → [`Endpoint`](super::Endpoint).
    pub const ENDPOINTS6: &str = "ENDPOINTS6";
    /// Per-CPU array of [`Counter`](super::Counter), indexed by
    /// [`counters::index`](crate::counters::index).
    pub const COUNTERS: &str = "COUNTERS";
    /// Per-CPU array of [`Cached4`](super::Cached4): what programs have found in SUBNETS4.
    pub const CACHED_SUBNETS4: &str = "CACHED_SUBNETS4";
    /// Per-CPU array of [`Cached6`](super::Cached6): what programs have found in SUBNETS6.
    pub const CACHED_SUBNETS6: &str = "CACHED_SUBNETS6";
    /// Per-CPU array of [`Cached4`](super::Cached4): what programs have found in ENDPOINTS4.
    pub const CACHED_ENDPOINTS4: &str = "CACHED_ENDPOINTS4";
    /// Per-CPU array of [`Cached6`](super::Cached6): what programs have found in ENDPOINTS6.
    pub const CACHED_ENDPOINTS6: &str = "CACHED_ENDPOINTS6";
    /// LRU hash: [`FlowKey`](super::FlowKey) → [`Flow`](super::Flow).
    pub const FLOWS: &str = "FLOWS";
    /// Array of one [`Listen`](crate::listen::Listen).
    pub const LISTEN: &str = "LISTEN";
    /// Per-CPU array of one [`Snapshot`](crate::listen::Snapshot).
    pub const SNAPSHOT: &str = "SNAPSHOT";
    /// Perf event array, a place for each CPU: events as [`Event`](crate::listen::Event) has them.
    pub const EVENTS: &str = "EVENTS";
    /// Program array of one: what programs of TC report by.
    pub const REPORT: &str = "REPORT";
    /// Program array of one: what the program of XDP reports by.
    pub const REPORT_XDP: &str = "REPORT_XDP";
    /// All of them.
    pub const ALL: [&str; 26] = [
        NODE,
        WATCH,
        NETWORKS,
        SWITCH,
        VNIS,
        LINKS,
        ROUTES4,
        ROUTES6,
        SUBNETS4,
        SUBNETS6,
        VTEPS,
        VTEP_IDS,
        STATIONS,
        ENDPOINTS4,
        ENDPOINTS6,
        CACHED_SUBNETS4,
        CACHED_SUBNETS6,
        CACHED_ENDPOINTS4,
        CACHED_ENDPOINTS6,
        COUNTERS,
        FLOWS,
        LISTEN,
        SNAPSHOT,
        EVENTS,
        REPORT,
        REPORT_XDP,
    ];
}

/// Index into NETWORKS, SWITCH and COUNTERS. [`NO_NETWORK`] is none in particular.
pub type NetworkId = u32;

/// What concerns the node as a whole, or packets whose network is not known.
pub const NO_NETWORK: NetworkId = 0;

/// Networks that fit into the maps unless the agent sizes them otherwise, with [`NO_NETWORK`].
pub const DEFAULT_NETWORKS: u32 = 16;
/// Networks that the maps may have room for, with [`NO_NETWORK`].
pub const MAX_NETWORKS: u32 = 8192;

/// Of SWITCH, what [`switch`] picks: 0 lets the fast path run, 1 leaves every packet to the kernel.
pub const SWITCH_OFF: u32 = 0;
/// Of SWITCH, what [`switch`] picks: a flow counts only while its generation is this one, so that writing
/// another number closes all bypasses.
pub const SWITCH_GENERATION: u32 = 1;

/// Index into SWITCH: `what` of `network`.
#[inline(always)]
pub const fn switch(network: NetworkId, what: u32) -> u32 {
    network * 2 + what
}

/// Index into VTEPS. [`LOCAL_VTEP`] is this node.
pub type VtepId = u32;

/// The VTEP id of this node; routes to it are the node's own pod subnets.
pub const LOCAL_VTEP: VtepId = 0;

/// No VTEP's id: what is routed there, only the kernel can route.
pub const KERNEL_VTEP: VtepId = VtepId::MAX;

/// Remote nodes that fit into VTEPS unless the agent sizes it otherwise.
pub const DEFAULT_VTEPS: u32 = 16_384;
/// Prefixes per family that fit into ROUTES4, ROUTES6 and SUBNETS4, SUBNETS6 unless the agent sizes them
/// otherwise.
pub const MAX_ROUTES: u32 = 131_072;
/// Flows in verification or verified, unless the agent sizes it otherwise.
pub const DEFAULT_FLOWS: u32 = 65_536;
/// Local pod addresses per family, and pods.
pub const MAX_ENDPOINTS: u32 = 8_192;

/// An IP address of either family: IPv6 as it is, IPv4 mapped (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2).
///
/// Aligned, because the verifier refuses a wide access to a misaligned copy on the stack.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// The third word of every mapped address.
    pub const MAPPED: Be32 = Be32::new(0xffff);

    /// The mapped form of an IPv4 address.
    #[inline(always)]
    pub const fn v4(address: Be32) -> Self {
        Self::v6([Be32(0), Be32(0), Self::MAPPED, address])
    }

    /// An IPv6 address.
    #[inline(always)]
    pub const fn v6(address: [Be32; 4]) -> Self {
        // SAFETY: same size, no padding, valid for any bytes.
        Self(unsafe { core::mem::transmute::<[Be32; 4], [u8; 16]>(address) })
    }

    /// As an IPv6 address.
    #[inline(always)]
    pub const fn as_v6(&self) -> [Be32; 4] {
        // SAFETY: as above.
        unsafe { core::mem::transmute::<[u8; 16], [Be32; 4]>(self.0) }
    }

    /// The IPv4 address in the last four bytes; meaningful only for a mapped address.
    #[inline(always)]
    pub const fn as_v4(&self) -> Be32 {
        let [.., address] = self.as_v6();
        address
    }

    /// Whether this is a mapped IPv4 address.
    pub fn is_v4(&self) -> bool {
        self.0.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(a) => Self::v4(Be32::from_bytes(a.octets())),
            core::net::IpAddr::V6(a) => Self(a.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            core::net::Ipv4Addr::from(addr.as_v4().get()).into()
        } else {
            core::net::Ipv6Addr::from(addr.0).into()
        }
    }
}

/// An IPv4 address in a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key4 {
    /// Which network.
    pub network: NetworkId,
    /// Which address.
    pub addr: [u8; 4],
}

impl Key4 {
    /// The key of `addr` in `network`.
    #[inline(always)]
    pub const fn new(network: NetworkId, addr: Be32) -> Self {
        Self { network, addr: addr.to_bytes() }
    }

    /// As bytes, for a trie. The network's number is the host's to order: all of it counts.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 8] {
        // SAFETY: same size, no padding.
        unsafe { core::mem::transmute::<Self, [u8; 8]>(self) }
    }
}

/// An IPv6 address, or in VTEP_IDS one of either version, in a network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Key6 {
    /// Which network.
    pub network: NetworkId,
    /// Which address.
    pub addr: Addr,
}

impl Key6 {
    /// The key of `addr` in `network`.
    #[inline(always)]
    pub const fn new(network: NetworkId, addr: Addr) -> Self {
        Self { network, addr }
    }

    /// As bytes, for a trie; see [`Key4::bytes`].
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 20] {
        // SAFETY: same size, no padding.
        unsafe { core::mem::transmute::<Self, [u8; 20]>(self) }
    }
}

/// Where a subnet's length is in the first word of its key in SUBNETS4 and SUBNETS6: above the network.
const LENGTH_SHIFT: u32 = 24;

/// The key in SUBNETS4 of the subnet of `length` bits, from 1 to 32, that `address` is in.
#[inline(always)]
pub const fn subnet4(network: NetworkId, length: u8, address: Be32) -> Key4 {
    let mask = Be32::new(u32::MAX << ((32 - length as u32) % 32));
    Key4::new(network | (length as u32) << LENGTH_SHIFT, Be32(address.0 & mask.0))
}

/// The key in SUBNETS6 of the subnet of `length` bits, from 1 to [`LONGEST_SUBNET6`], that `address` is in.
#[inline(always)]
pub const fn subnet6(network: NetworkId, length: u8, [a, b, _, _]: [Be32; 4]) -> Key6 {
    let mask = u64::MAX << ((64 - length as u32) % 64);
    let (high, low) = (Be32::new((mask >> 32) as u32), Be32::new(mask as u32));
    let subnet = [Be32(a.0 & high.0), Be32(b.0 & low.0), Be32(0), Be32(0)];
    Key6::new(network | (length as u32) << LENGTH_SHIFT, Addr::v6(subnet))
}

/// The network and the length of the subnet whose key in SUBNETS4 or SUBNETS6 begins with this word.
pub const fn subnet_of(word: u32) -> (NetworkId, u8) {
    (word & ((1 << LENGTH_SHIFT) - 1), (word >> LENGTH_SHIFT) as u8)
}

/// Longest prefix in bits that SUBNETS6 has.
pub const LONGEST_SUBNET6: u8 = 64;

/// Bits in front of the address in the keys of ROUTES4 and ROUTES6: the network's.
pub const NETWORK_BITS: u32 = 32;

/// Key of VNIS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct VniKey {
    /// The VNI, 24 bits.
    pub vni: u32,
    /// UDP destination port.
    pub port: Be16,
    /// Zero.
    pub reserved: [u8; 2],
}

impl VniKey {
    /// The key of `vni` at `port`.
    #[inline(always)]
    pub const fn new(vni: u32, port: Be16) -> Self {
        Self { vni, port, reserved: [0; 2] }
    }
}

/// Family of the underlay a VTEP is reached over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4 underlay: 50 bytes in front of the inner IP header.
    V4,
    /// IPv6 underlay: 70 bytes in front of the inner IP header.
    V6,
}

impl Family {
    /// As [`Vtep::family`] has it.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }
}

/// This node's end of the tunnel over one underlay family.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LocalVtep {
    /// Underlay address; all zero where the node has none of this family.
    pub addr: Addr,
    /// MAC of the vxlan device: inner source on send, inner destination on receive.
    pub mac: [u8; 6],
    /// Largest inner IP packet in bytes.
    pub mtu: u16,
    /// The underlay interface.
    pub ifindex: u32,
    /// The vxlan device; 0: none, or none that takes what has left its tunnel.
    pub device: u32,
    /// Or of [`local`]'s bits.
    pub flags: u32,
    /// UDP source ports lie in `port_min..port_max`, as the kernel's device chooses them.
    pub port_min: u16,
    /// See `port_min`.
    pub port_max: u16,
    /// TTL or hop limit of outer packets; 0: what the way has ([`Vtep::ttl`]).
    pub ttl: u8,
    /// TOS or traffic class of outer packets, without congestion marks.
    pub tos: u8,
    /// Zero.
    pub reserved: u16,
    /// Flow label of outer IPv6 packets, 20 bits.
    pub label: u32,
}

/// Bits of [`LocalVtep::flags`]: what is left to the kernel's device, whatever the packet, and how it makes
/// outer headers.
pub mod local {
    /// Encapsulation would skip what somebody else has put on the vxlan device, or at the underlay's exit.
    pub const HOOKED_ENCAP: u32 = 1 << 0;
    /// Decapsulation would skip what somebody else has put on the vxlan device, or at the underlay's entry.
    pub const HOOKED_DECAP: u32 = 1 << 1;
    /// The vxlan device does more than programs do: its checksum or segmentation offload is switched off, so
    /// that it completes packets itself, or it is set to write more than a VNI.
    pub const NO_OFFLOAD: u32 = 1 << 2;
    /// Delivery behind the vxlan device would skip what somebody else has put there behind our program.
    pub const HOOKED_TUNNEL: u32 = 1 << 3;
    /// Outer packets have the inner one's TTL or hop limit; if that is 0, what the way has.
    pub const TTL_INSIDE: u32 = 1 << 4;
    /// Outer packets have the inner one's TOS or traffic class.
    pub const TOS_INSIDE: u32 = 1 << 5;
    /// Outer IPv4 packets have Don't Fragment set.
    pub const DF: u32 = 1 << 6;
    /// Outer IPv4 packets have Don't Fragment set if the inner one has, or is IPv6.
    pub const DF_INSIDE: u32 = 1 << 7;
    /// Outer packets have a UDP checksum.
    pub const CHECKSUM: u32 = 1 << 8;
    /// Packets without a UDP checksum are accepted over IPv6; over IPv4 they always are.
    pub const ACCEPTS_NO_CHECKSUM: u32 = 1 << 9;
    /// Outer IPv6 packets have the inner one's flow label, if that is IPv6.
    pub const LABEL_INSIDE: u32 = 1 << 10;
}

impl LocalVtep {
    /// Why no packet is encapsulated here, if so.
    #[inline(always)]
    pub const fn refuses_encap(&self) -> Option<Reason> {
        if self.flags & (local::HOOKED_ENCAP | local::NO_OFFLOAD) == 0 {
            return None;
        }
        Some(if self.flags & local::HOOKED_ENCAP != 0 { Reason::Hooked } else { Reason::Offload })
    }
}

/// [`Network::flags`]: count violations of the source checks, but leave the packets to the kernel.
pub const TOLERATE_VIOLATIONS: u32 = 1 << 0;
/// [`Network::flags`]: drop malformed packets from the underlay.
pub const DROP_MALFORMED: u32 = 1 << 1;
/// [`Network::flags`]: drop packets from the underlay for a VNI that is nobody's here.
pub const DROP_OTHER_VNI: u32 = 1 << 2;
/// [`Network::flags`]: no flow bypasses the host stack, because a rule there counts or limits packets.
pub const NO_BYPASS: u32 = 1 << 3;
/// [`Network::flags`]: no TCP connection bypasses the host stack, because conntrack would not take it back.
pub const NO_TCP_BYPASS: u32 = 1 << 4;
/// [`Network::flags`]: a routing rule of the host looks at packets' marks.
pub const MARKS_ROUTE: u32 = 1 << 5;
/// [`Network::flags`]: not every VTEP and subnet of the network found a place in the tables, so what is
/// missing there is no violation.
pub const PARTIAL: u32 = 1 << 6;
/// [`Network::flags`]: the host stack looks at nothing but addresses and DSCP, since no packet filter is there
/// to ask: what it makes of one packet, it makes of all between the same two. Counts only while [`Watch`] holds.
pub const BY_ADDRESS: u32 = 1 << 7;
/// [`Network::flags`]: a rule of the host may tell one of the tunnel's packets from another of the same VTEP, so
/// all that the host stack has to see take the kernel's way out of the tunnel.
pub const NO_HANDOVER: u32 = 1 << 8;

/// UDP ports that [`Node::ports`] has room for.
pub const NODE_PORTS: usize = 4;

/// What programs need to know before they know a packet's network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Node {
    /// The network of every packet while there is only one; [`NO_NETWORK`] while there are several: then
    /// interface or VNI say which.
    pub only: NetworkId,
    /// Secret that the XDP program leaves with a packet which it has decapsulated, so that the TC
    /// program believes it; 0 while there is no XDP program.
    pub mark: u32,
    /// VLAN of frames that XDP looks into behind their tag; 0: none.
    pub vlan: u16,
    /// 1: more UDP ports are in use than [`ports`](Self::ports) has room for.
    pub more_ports: u16,
    /// UDP destination ports of networks, in network byte order; 0: none.
    pub ports: [Be16; NODE_PORTS],
    /// Another number, but never 0, behind every change of subnets and endpoints: what programs have
    /// [cached](Cached) under an earlier one counts no longer.
    pub tables: u32,
}

impl Node {
    /// The entry as it is planned, without the number that the maps give it.
    pub const fn planned(self) -> Self {
        Self { tables: 0, ..self }
    }

    /// Whether a network may use this UDP destination port.
    #[inline(always)]
    pub const fn uses(&self, port: Be16) -> bool {
        let [a, b, c, d] = self.ports;
        let Be16(port) = port;
        a.0 == port || b.0 == port || c.0 == port || d.0 == port || self.more_ports != 0
    }
}

/// Until when an agent that looks out for packet filters can be relied upon: [`BY_ADDRESS`] counts no longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Watch {
    /// `CLOCK_MONOTONIC` in nanoseconds.
    pub until: u64,
    /// A program's note: the tick, its low bits, in which the clock was last compared.
    pub tick: u32,
    /// A program's note: 1: it was before [`until`](Self::until).
    pub holds: u32,
}

/// What every program needs to know of a network. That of [`NO_NETWORK`] has nothing but flags, for packets
/// of no network.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Network {
    /// Its number; [`NO_NETWORK`]: the entry is free.
    pub id: NetworkId,
    /// The VNI, 24 bits.
    pub vni: u32,
    /// UDP destination port in network byte order.
    pub port: [u8; 2],
    /// A [`Mode`].
    pub mode: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// Or of [`TOLERATE_VIOLATIONS`], [`DROP_MALFORMED`], [`DROP_OTHER_VNI`], [`NO_BYPASS`],
    /// [`NO_TCP_BYPASS`], [`MARKS_ROUTE`], [`PARTIAL`], [`BY_ADDRESS`] and [`NO_HANDOVER`].
    pub flags: u32,
    /// This node on the IPv4 underlay.
    pub local4: LocalVtep,
    /// This node on the IPv6 underlay.
    pub local6: LocalVtep,
    /// Length in bits of the prefixes that SUBNETS4 has of the network; 0: it has none.
    pub subnet4: u8,
    /// As `subnet4`, of SUBNETS6.
    pub subnet6: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Its name, filled up with zeros.
    pub name: [u8; NAME_LEN],
}

/// Longest name of a network, in bytes.
pub const NAME_LEN: usize = 32;

/// The form of a network's name in [`Network::name`]; what is too long is cut.
pub fn name_bytes(name: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    bytes.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

impl Network {
    /// The network's name, if it is text.
    pub fn name(&self) -> Option<&str> {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
        core::str::from_utf8(&self.name[..end]).ok()
    }

    /// UDP destination port.
    #[inline(always)]
    pub const fn port(&self) -> Be16 {
        let [a, b] = self.port;
        Be16::of(a, b)
    }

    /// Whether a packet that was refused at `hook` is dropped, rather than left to the kernel.
    #[inline(always)]
    pub const fn drops(&self, hook: Hook, reason: Reason) -> bool {
        let underlay = matches!(hook, Hook::UnderlayXdp | Hook::UnderlayIngress);
        match (reason.disposition(), reason) {
            (Disposition::Violation, Reason::UnknownVtep | Reason::ForeignSource) => {
                self.flags & (TOLERATE_VIOLATIONS | PARTIAL) == 0
            }
            (Disposition::Violation, _) => self.flags & TOLERATE_VIOLATIONS == 0,
            (Disposition::Malformed, _) => underlay && self.flags & DROP_MALFORMED != 0,
            (_, Reason::OtherVni) => underlay && self.flags & DROP_OTHER_VNI != 0,
            (Disposition::Dropped, _) => true,
            _ => false,
        }
    }

    /// This node's end of the tunnel over `family`.
    #[inline(always)]
    pub const fn local(&self, family: Family) -> &LocalVtep {
        match family {
            Family::V4 => &self.local4,
            Family::V6 => &self.local6,
        }
    }
}

/// Values of [`Network::kind`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nodes have subnets, and packets are routed: what is in a tunnel has the VTEPs' MACs.
    L3 = 0,
    /// One Ethernet segment: what is in a tunnel are its stations' frames.
    L2 = 1,
}

/// Values of [`Network::mode`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Every packet is left to the kernel.
    Off = 0,
    /// Stateless bypass of the host stack.
    Direct = 1,
    /// Bypass of the host stack for flows that it has been seen to pass unchanged.
    Verified = 2,
}

/// The kernel's `struct bpf_redir_neigh`, so that a map value can be handed to
/// `bpf_redirect_neigh` as it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct NextHop {
    /// `AF_INET` (2), `AF_INET6` (10), or 0: let the kernel look the route up.
    pub family: u32,
    /// Address in network byte order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
}

/// A remote node's end of the tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Vtep {
    /// Underlay address.
    pub addr: Addr,
    /// MAC of its vxlan device.
    pub mac: [u8; 6],
    /// 0: the entry is free; 4 or 6: family of `addr`.
    pub family: u8,
    /// Or of [`vtep`]'s bits.
    pub flags: u8,
    /// Interface that leads there; 0: none that a program may use.
    pub ifindex: u32,
    /// On-link neighbour that leads there.
    pub next_hop: NextHop,
    /// Largest inner IP packet in bytes that the way there takes.
    pub mtu: u16,
    /// TTL or hop limit of packets to it, where the network's device has none of its own.
    pub ttl: u8,
    /// Zero.
    pub reserved: u8,
    /// A program's note: [`moment`] of when the host stack last took a packet in from it.
    pub heard: u32,
    /// A program's note: [`SWITCH_GENERATION`] at that time.
    pub generation: u32,
}

/// A time in nanoseconds as [`Vtep::heard`] has it: in units of 2^27, about an eighth of a second, and never 0.
#[inline(always)]
pub const fn moment(now: u64) -> u32 {
    (now >> 26) as u32 | 1
}

/// How long the host stack's word about a VTEP counts, as [`moment`]s differ: about a second.
pub const HEARSAY: u32 = 16;

/// Bits of [`Vtep::flags`].
pub mod vtep {
    /// An IPsec policy may apply to packets to it.
    pub const IPSEC_OUT: u8 = 1 << 0;
    /// An IPsec policy may apply to packets from it.
    pub const IPSEC_IN: u8 = 1 << 1;
    /// What leaves by the interface that leads there would skip what somebody else has put at its exit.
    pub const HOOKED_OUT: u8 = 1 << 2;
    /// The MTU of the way there is locked, so that packets may be fragmented (`ip_mtu_locked`).
    pub const NO_DF: u8 = 1 << 3;
    /// The host routes packets to its subnets without a tunnel, over the IP version of its address.
    pub const DIRECT: u8 = 1 << 4;
}

impl Vtep {
    /// The entry as the agent writes it, without programs' notes.
    pub const fn written(self) -> Self {
        Self { heard: 0, generation: 0, ..self }
    }

    /// Whether the host stack lets in what it sends.
    #[inline(always)]
    pub const fn is_heard(&self, now: u64, generation: u32) -> bool {
        let fresh = moment(now).wrapping_sub(self.heard) < HEARSAY;
        self.heard != 0 && fresh && self.generation == generation
    }

    /// Whether pods' packets of this IP version get to it without a tunnel. What the host stack has routed
    /// into the tunnel all the same goes through it.
    #[inline(always)]
    pub const fn is_direct(&self, inner: Family) -> bool {
        self.flags & vtep::DIRECT != 0 && self.family == inner.number()
    }

    /// Why no packet is encapsulated for it, if so.
    #[inline(always)]
    pub const fn refuses_encap(&self) -> Option<Reason> {
        if self.flags & (vtep::IPSEC_OUT | vtep::HOOKED_OUT) != 0 {
            Some(if self.flags & vtep::IPSEC_OUT != 0 { Reason::Ipsec } else { Reason::Hooked })
        } else if self.ifindex == 0 {
            Some(Reason::NoNextHop)
        } else {
            None
        }
    }
}

/// Key of STATIONS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacKey {
    /// Which network.
    pub network: NetworkId,
    /// MAC of the station.
    pub mac: [u8; 6],
    /// VLAN within the segment; 0: untagged.
    pub vlan: u16,
}

impl MacKey {
    /// The key of `mac` in `network`.
    #[inline(always)]
    pub const fn new(network: NetworkId, mac: [u8; 6]) -> Self {
        Self { network, mac, vlan: 0 }
    }

    /// The key of `mac` in `network`.
    #[inline(always)]
    pub const fn of(network: NetworkId, Mac(words): Mac) -> Self {
        // SAFETY: same size, no padding, valid for any bytes.
        Self::new(network, unsafe { core::mem::transmute::<[Be16; 3], [u8; 6]>(words) })
    }
}

/// Who has a MAC: in a routed network a remote VTEP, in a segment a station behind a remote VTEP or behind a
/// port of this node's bridge.
///
/// Where a station is, the kernel says, which learns from frames. So the kernel gets frames, too: one of each
/// station about once a second ([`CONFIRM`](crate::segment::CONFIRM)), and all that come from elsewhere.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Station {
    /// The VTEP that it is behind; [`LOCAL_VTEP`]: this node's.
    pub vtep: VtepId,
    /// The port that it is behind; 0: none of this node's.
    pub ifindex: u32,
    /// Largest IP packet that the port takes, in bytes.
    pub mtu: u16,
    /// Or of [`station`]'s bits.
    pub flags: u8,
    /// A program's note: a value of [`moved`].
    pub moved: u8,
    /// A program's note: the tick, its low bits, when [`confirmed`](Self::confirmed) was last compared.
    pub tick: u32,
    /// A program's note: when the kernel was last given a frame of it, `CLOCK_MONOTONIC` in nanoseconds.
    pub confirmed: u64,
    /// A program's note: [`tick_mark`] of when the port was last found to be there.
    pub found: u32,
    /// Zero.
    pub reserved: u32,
}

/// Bits of [`Station::flags`].
pub mod station {
    /// The port is one end of a veth whose other end takes frames right away.
    pub const PEER: u8 = 1 << 0;
    /// What its port would skip of somebody else's keeps frames to it with the kernel.
    pub const HOOKED_IN: u8 = 1 << 1;
    /// The same of frames from it.
    pub const HOOKED_OUT: u8 = 1 << 2;
}

/// Values of [`Station::moved`]: where frames of the station have come from since the agent wrote the entry.
pub mod moved {
    /// From where the entry says.
    pub const NOT: u8 = 0;
    /// From elsewhere.
    pub const AWAY: u8 = 1;
    /// From elsewhere, and then again from behind the VTEP that the entry says. The kernel's bridge is to see it.
    pub const BACK: u8 = 2;
}

impl Station {
    /// A remote VTEP itself.
    pub const fn vtep(vtep: VtepId) -> Self {
        Self { vtep, ifindex: 0, mtu: 0, flags: 0, moved: 0, tick: 0, confirmed: 0, found: 0, reserved: 0 }
    }

    /// The entry as the agent writes it, without programs' notes.
    pub const fn written(self) -> Self {
        Self { moved: 0, tick: 0, confirmed: 0, found: 0, ..self }
    }
}

/// A local pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Endpoint {
    /// Host side of its veth.
    pub ifindex: u32,
    /// MAC of the pod.
    pub mac: [u8; 6],
    /// MAC under which the pod sees the node: the bridge's, or that of the veth's host side.
    pub gateway_mac: [u8; 6],
    /// Bridge that the veth is a port of, 0 for a routed veth. Pods of one bridge may be switched.
    pub bridge: u32,
    /// MTU of the veth in bytes.
    pub mtu: u16,
    /// Or of [`endpoint`]'s bits.
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
    /// [`tick_mark`] of when a program last found the interface there; 0: it is not looked for.
    pub found: u32,
}

/// A tick of the kernel as [`Endpoint::found`] has it, two in one, and never 0.
#[inline(always)]
pub const fn tick_mark(tick: u64) -> u32 {
    tick as u32 | 1
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint {
    /// Somebody else's filter or program looks at what the pod sends: the host stack has to have it.
    pub const HOOKED_OUT: u8 = 1 << 0;
    /// Somebody else's queueing discipline, filter or program is on the way into the pod: the host stack
    /// delivers.
    pub const HOOKED_IN: u8 = 1 << 1;
    /// Another pod claims the address, too: the kernel decides who gets and may send what.
    pub const DISPUTED: u8 = 1 << 2;
}

/// What is known of an interface that programs are attached to.
///
/// Of the host side of a pod's veth [`flags`](Self::flags) say what is known of the pod, for the case that it
/// uses an address that is not known to be its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LinkEntry {
    /// Whose packets are behind it; [`NO_NETWORK`]: the interface is not known.
    pub network: NetworkId,
    /// Or of [`link`]'s bits.
    pub flags: u32,
}

/// Bits of [`LinkEntry::flags`].
pub mod link {
    /// The pod has just come up: its address may still be listed as that of the pod before it.
    pub const NEW: u32 = 1 << 0;
    /// It has an IPv4 address that nobody disputes.
    pub const OWNS4: u32 = 1 << 1;
    /// It has, or once had, an IPv4 address.
    pub const HAD4: u32 = 1 << 2;
    /// It has, or once had, more than one IPv4 address.
    pub const SEVERAL4: u32 = 1 << 3;
    /// As [`OWNS4`].
    pub const OWNS6: u32 = 1 << 4;
    /// As [`HAD4`].
    pub const HAD6: u32 = 1 << 5;
    /// As [`SEVERAL4`].
    pub const SEVERAL6: u32 = 1 << 6;
    /// It is the network's vxlan device.
    pub const DEVICE: u32 = 1 << 7;
}

impl LinkEntry {
    /// Whether the pod has no right to an address that another pod has. One whose own address was taken,
    /// or is not known yet, may have.
    #[inline(always)]
    pub const fn takes_anothers(self, family: Family) -> bool {
        let (owns, had) = match family {
            Family::V4 => (link::OWNS4, link::HAD4),
            Family::V6 => (link::OWNS6, link::HAD6),
        };
        self.flags & owns != 0 || self.flags & (had | link::NEW) == 0
    }

    /// Whether the pod has no right to an address of the node's subnets that nobody has. One with several
    /// addresses may have one more.
    #[inline(always)]
    pub const fn takes_nobodys(self, family: Family) -> bool {
        let (owns, several) = match family {
            Family::V4 => (link::OWNS4, link::SEVERAL4),
            Family::V6 => (link::OWNS6, link::SEVERAL6),
        };
        self.flags & (owns | several) == owns
    }
}

/// A CPU's copy of an entry that one of its programs has found in a hash, which takes longer to look in.
///
/// A program reads [`Node::tables`] before it looks in the hash, and the agent writes it after the hash. So a copy
/// under the number that NODE has is as new as that.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Cached<K, V> {
    /// [`Node::tables`] of when it was looked for; 0: free.
    pub tables: u32,
    /// Its key.
    pub key: K,
    /// What was found.
    pub value: V,
}

/// Of SUBNETS4 or ENDPOINTS4.
pub type Cached4<V> = Cached<Key4, V>;
/// Of SUBNETS6 or ENDPOINTS6.
pub type Cached6<V> = Cached<Key6, V>;

/// Entries of which a CPU has copies at most, of each kind.
pub const CACHED: u32 = 1 << CACHED_BITS;
const CACHED_BITS: u32 = 9;

/// Where the copy of an entry is whose address has these words.
#[inline(always)]
const fn place(words: u32) -> u32 {
    // Knuth's multiplier: addresses that differ in few bits get places of their own.
    words.wrapping_mul(0x9e37_79b1) >> (u32::BITS - CACHED_BITS)
}

impl Key4 {
    /// The place of its copy.
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        place(Be32::from_bytes(self.addr).0)
    }
}

impl Key6 {
    /// The place of its copy.
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        let [a, b, c, d] = self.addr.as_v6();
        place(a.0 ^ b.0 ^ c.0 ^ d.0)
    }
}

/// One cell of COUNTERS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets; a GSO or GRO aggregate counts once.
    pub packets: u64,
    /// Bytes from the Ethernet header on, before the program changed anything.
    pub bytes: u64,
}

/// A flow as the local pod sees it: of one transport connection, or of all between two addresses, see
/// [`FlowKey::pair`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FlowKey {
    /// The local pod.
    pub local: Addr,
    /// The other side.
    pub remote: Addr,
    /// The pod's port; of echoes, the identifier if the pod asks, else 0.
    pub local_port: Be16,
    /// The other side's port; of echoes, the identifier if the other side asks, else 0.
    pub remote_port: Be16,
    /// IP protocol number; 0: any, whatever the ports.
    pub protocol: u8,
    /// TOS or traffic class without congestion marks, if the protocol is any; else 0.
    pub dscp: u8,
    /// The low bits of its [`NetworkId`].
    pub network: u16,
}

impl FlowKey {
    /// The key of a flow in `network`.
    #[inline(always)]
    pub const fn new(
        network: NetworkId,
        (local, remote): (Addr, Addr),
        (local_port, remote_port): (Be16, Be16),
        protocol: u8,
    ) -> Self {
        Self { local, remote, local_port, remote_port, protocol, dscp: 0, network: network as u16 }
    }

    /// The key of all packets with this TOS or traffic class between two addresses.
    #[inline(always)]
    pub const fn pair(network: NetworkId, (local, remote): (Addr, Addr), dscp: u8) -> Self {
        let none = (Be16(0), Be16(0));
        Self { dscp, ..Self::new(network, (local, remote), none, 0) }
    }
}

/// What is known of one direction of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Direction {
    /// A value of [`seen`](crate::flow::seen).
    pub state: u8,
    /// TOS or traffic class, without congestion marks, of the last packet that was left to the stack.
    pub dscp: u8,
    /// 1: the stack has been given a FIN or RST, and every packet of the flow takes it until a SYN begins
    /// anew.
    pub ended: u8,
    /// Zero.
    pub reserved: u8,
    /// Flow hash of the last packet that was left to the stack.
    pub hash: u32,
    /// When the stack last passed a packet, as [`Flow::last`]; 0: never.
    pub checked: u64,
}

impl Direction {
    /// A direction that nothing is known of.
    pub const NEW: Self = Self { state: 0, dscp: 0, ended: 0, reserved: 0, hash: 0, checked: 0 };
}

/// What is known of a flow. Times are `CLOCK_MONOTONIC` in nanoseconds, a few milliseconds coarse.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Flow {
    /// [`SWITCH_GENERATION`] when it was first seen.
    pub generation: u32,
    /// The kernel's tick, its low bits, when a packet last bypassed the stack.
    pub tick: u32,
    /// First packet that a program saw.
    pub since: u64,
    /// Last packet that a program saw.
    pub last: u64,
    /// Packets from the pod.
    pub egress: Direction,
    /// Packets to the pod.
    pub ingress: Direction,
    /// Packets that bypassed the stack.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

#[cfg(feature = "user")]
mod pod {
    //! Every type is `repr(C)`, `Copy`, without padding, and valid for any bytes.
    use super::*;

    // SAFETY: see the module's first line; `layout` below checks the absence of padding.
    unsafe impl aya::Pod for Addr {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Node {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Watch {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Network {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Key4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Key6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for VniKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Vtep {}
    // SAFETY: as above.
    unsafe impl aya::Pod for MacKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Station {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for LinkEntry {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Counter {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
}

/// No type has padding: the sizes are the sums of the fields.
const _: () = {
    assert!(size_of::<LocalVtep>() == 16 + 6 + 2 + 4 + 4 + 4 + 2 + 2 + 1 + 1 + 2 + 4);
    assert!(size_of::<Watch>() == 8 + 4 + 4);
    assert!(size_of::<Node>() == 4 + 4 + 2 + 2 + 4 * 2 + 4);
    assert!(size_of::<Cached4<Endpoint>>() == 4 + size_of::<Key4>() + size_of::<Endpoint>());
    assert!(size_of::<Cached6<Endpoint>>() == 4 + size_of::<Key6>() + size_of::<Endpoint>());
    assert!(size_of::<Network>() == 4 + 4 + 2 + 1 + 1 + 4 + 2 * 48 + 4 + 32);
    assert!(size_of::<Key4>() == 4 + 4);
    assert!(size_of::<Key6>() == 4 + 16);
    assert!(size_of::<VniKey>() == 4 + 2 + 2);
    assert!(size_of::<Vtep>() == 16 + 6 + 1 + 1 + 4 + 20 + 2 + 1 + 1 + 4 + 4);
    assert!(size_of::<MacKey>() == 4 + 6 + 2);
    assert!(size_of::<Station>() == 4 + 4 + 2 + 1 + 1 + 4 + 8 + 4 + 4);
    assert!(size_of::<Endpoint>() == 4 + 6 + 6 + 4 + 2 + 1 + 1 + 4);
    assert!(size_of::<LinkEntry>() == 8);
    assert!(size_of::<FlowKey>() == 2 * 16 + 2 * 2 + 1 + 3);
    assert!(size_of::<Direction>() == 4 + 4 + 8);
    assert!(size_of::<Flow>() == 4 + 4 + 2 * 8 + 2 * 16 + 2 * 8);
};
