//! What happened to a packet: one list for programs, counters, metrics and CLI.

use crate::maps::NetworkId;

/// Where a program is attached.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hook {
    /// TC ingress on the host side of a pod's veth.
    PodEgress = 0,
    /// TC egress on the vxlan device, and on ports of a segment's bridge, where it looks only.
    TunnelEgress = 1,
    /// TC ingress on the underlay interface.
    UnderlayIngress = 2,
    /// TC ingress on the vxlan device.
    TunnelIngress = 3,
    /// TC egress on the host side of a pod's veth; looks only.
    PodIngress = 4,
    /// TC ingress on the underlay interface, for what XDP has taken out of its tunnel.
    StrippedIngress = 5,
    /// XDP on the underlay interface.
    UnderlayXdp = 6,
    /// TC ingress on a port of a segment's bridge.
    PortIngress = 7,
}

impl Hook {
    /// All hooks, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::PodEgress,
        Self::TunnelEgress,
        Self::UnderlayIngress,
        Self::TunnelIngress,
        Self::PodIngress,
        Self::StrippedIngress,
        Self::UnderlayXdp,
        Self::PortIngress,
    ];

    /// The hook's name; also the name of its program.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PodEgress => "pod_egress",
            Self::TunnelEgress => "tunnel_egress",
            Self::UnderlayIngress => "underlay_ingress",
            Self::TunnelIngress => "tunnel_ingress",
            Self::PodIngress => "pod_ingress",
            Self::StrippedIngress => "stripped_ingress",
            Self::UnderlayXdp => "underlay_xdp",
            Self::PortIngress => "port_ingress",
        }
    }
}

/// What becomes of a packet with a given [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// Took the fast path.
    Forwarded,
    /// Left to the kernel: untouched, or taken out of its tunnel and no more.
    Kernel,
    /// Not a proper packet: left to the kernel, dropped where the configuration says so.
    Malformed,
    /// Dropped for a violation; left to the kernel where the configuration tolerates it.
    Violation,
    /// Dropped.
    Dropped,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $number:literal, $label:literal, $disposition:ident;)+) => {
        /// Why a packet went the way it did.
        ///
        /// A number is for good: counters outlive the agent that pinned them, and the next one reads them.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason { $($(#[doc = $doc])+ $name = $number,)+ }

        impl Reason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The name in metrics and CLI.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }

            /// What becomes of the packet.
            #[inline(always)]
            pub const fn disposition(self) -> Disposition {
                match self { $(Self::$name => Disposition::$disposition),+ }
            }

            /// One sentence for people.
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// Encapsulated and sent out of the underlay.
    Encapsulated = 0, "encapsulated", Forwarded;
    /// Decapsulated; by XDP for TC to deliver, else handed to the pod.
    Decapsulated = 1, "decapsulated", Forwarded;
    /// Decapsulated before, by XDP or by the kernel's device, and handed to the pod.
    Delivered = 2, "delivered", Forwarded;
    /// Routed from pod to pod on this node.
    Routed = 3, "routed", Forwarded;
    /// Switched from pod to pod on one bridge of this node.
    Switched = 4, "switched", Forwarded;

    /// The fast path is switched off.
    SwitchedOff = 5, "switched_off", Kernel;
    /// Not VXLAN to this node; not counted.
    NotVxlan = 6, "not_vxlan", Kernel;
    /// Neither IPv4 nor IPv6, or tagged.
    NotIp = 7, "not_ip", Kernel;
    /// The destination is not in the overlay.
    NoRoute = 8, "no_route", Kernel;
    /// The destination is on this node, but no pod that we know.
    NoEndpoint = 9, "no_endpoint", Kernel;
    /// The Ethernet destination is neither the node nor a pod of the same bridge.
    NotForNode = 10, "not_for_node", Kernel;
    /// The source is no address of the pod that we know (yet).
    UnknownSource = 11, "unknown_source", Kernel;
    /// TTL or hop limit would reach zero: the kernel answers.
    TtlExpired = 12, "ttl_expired", Kernel;
    /// IPv4 options, or an IPv6 extension header.
    Options = 13, "options", Kernel;
    /// A fragment, inner or outer.
    Fragment = 14, "fragment", Kernel;
    /// Larger than the MTU: the kernel answers or fragments.
    TooBig = 15, "too_big", Kernel;
    /// A GSO or GRO aggregate that only the kernel's device can take apart.
    Aggregate = 16, "aggregate", Kernel;
    /// Shorter than its headers.
    Truncated = 17, "truncated", Malformed;
    /// Length fields contradict each other or say more than there is.
    BadLength = 18, "bad_length", Malformed;
    /// There is more than the length fields say, which a link may add.
    Padded = 19, "padded", Kernel;
    /// IPv4 header checksum is wrong.
    BadChecksum = 20, "bad_checksum", Malformed;
    /// VXLAN for a VNI that is nobody's here.
    OtherVni = 21, "other_vni", Kernel;
    /// VXLAN with reserved bits set or without a VNI.
    ReservedBits = 22, "reserved_bits", Malformed;
    /// The inner Ethernet destination is not our VTEP, or the source is.
    OtherMac = 23, "other_mac", Kernel;
    /// Headers lie where a program cannot read them.
    Scattered = 24, "scattered", Kernel;
    /// The kernel could not make or remove room in this packet.
    NoRoom = 25, "no_room", Kernel;
    /// The outer UDP checksum is one that only the kernel can compute or judge.
    NeedsChecksum = 26, "needs_checksum", Kernel;
    /// The overlay route leads to a VTEP that is not programmed.
    NoVtep = 27, "no_vtep", Kernel;
    /// An inner ECN mark contradicts the outer one (RFC 6040 §4.2).
    BadEcn = 28, "bad_ecn", Kernel;

    /// The flow has not been seen to pass the host stack unchanged (yet, or once more).
    Unverified = 29, "unverified", Kernel;
    /// The host stack has passed it to a pod, or out of a segment's port.
    Passed = 30, "passed", Kernel;

    /// The outer source is not a VTEP of this network.
    UnknownVtep = 31, "unknown_vtep", Violation;
    /// The inner source does not belong to the VTEP that sent it.
    ForeignSource = 32, "foreign_source", Violation;
    /// A pod sent from an address that is not its own.
    PodSpoofed = 33, "pod_spoofed", Violation;

    /// A write into room that had been made failed.
    WriteFailed = 34, "write_failed", Dropped;

    /// The underlay leads to the VTEP in no way, or in one that only the kernel can follow.
    NoNextHop = 35, "no_next_hop", Kernel;
    /// An IPsec policy may apply to the tunnel's packets.
    Ipsec = 36, "ipsec", Kernel;
    /// A queueing discipline, filter or program of somebody else's would be skipped.
    Hooked = 37, "hooked", Kernel;
    /// The vxlan device is told to complete checksums itself, or to do more than programs do.
    Offload = 38, "offload", Kernel;
    /// More than one pod claims the address.
    Disputed = 39, "disputed", Kernel;
    /// A rule of the host counts or limits what passes its stack.
    Limited = 40, "limited", Kernel;
    /// The host stack has marked the packet, and its routing rules look at marks.
    Marked = 41, "marked", Kernel;
    /// A pod sent a tunnel's packet to a node.
    PodTunnels = 42, "pod_tunnels", Violation;

    /// A segment's frame for all stations or for several.
    Flooded = 43, "flooded", Kernel;
    /// A station of a segment is not known: the kernel's bridge learns, and floods.
    UnknownStation = 44, "unknown_station", Kernel;
    /// A station's frame came from elsewhere than its last: the kernel's bridge decides where it is now.
    Moved = 45, "moved", Kernel;
    /// About once a second the kernel's bridge is given a frame of each station, so that it knows them.
    Unconfirmed = 46, "unconfirmed", Kernel;
    /// Both stations are behind the same port.
    SamePort = 47, "same_port", Kernel;

    /// Decapsulated, and handed to the host stack where the vxlan device would hand it over.
    HandedOver = 48, "handed_over", Kernel;

    /// The node is on the same link: the host routes packets to its pods without a tunnel.
    DirectRoute = 49, "direct_route", Kernel;
}

/// Cells of COUNTERS per hook.
pub const REASONS_PER_HOOK: u32 = 64;

/// Cells of COUNTERS per network.
pub const CELLS_PER_NETWORK: u32 = REASONS_PER_HOOK * 8;

const _: () = assert!(Reason::ALL.len() <= REASONS_PER_HOOK as usize);

/// The cell of COUNTERS for packets of `network`, for a reason at a hook.
#[inline(always)]
pub const fn index(network: NetworkId, hook: Hook, reason: Reason) -> u32 {
    network * CELLS_PER_NETWORK + hook as u32 * REASONS_PER_HOOK + reason as u32
}
