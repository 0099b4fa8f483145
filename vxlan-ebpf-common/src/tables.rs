//! The seam between the engine and the maps.

use core::ops::DerefMut;

use crate::counters::{Hook, Reason};
use crate::headers::Be32;
use crate::maps::{
    Addr, Endpoint, Flow, FlowKey, LinkEntry, MacKey, Network, NetworkId, Node, Station, VniKey, Vtep, VtepId,
};

/// Look-ups and counters of a node.
pub trait Tables {
    /// NODE.
    fn node(&self) -> Option<&Node>;
    /// NETWORKS, unless SWITCH has the network's fast path off. An entry that is free has
    /// [`Mode::Off`](crate::maps::Mode::Off).
    fn network(&self, id: NetworkId) -> Option<&Network>;
    /// VNIS.
    fn network_of(&self, key: &VniKey) -> Option<NetworkId>;
    /// LINKS; nothing is known of one that is not there.
    fn link(&self, ifindex: u32) -> LinkEntry;
    /// Longest match in ROUTES4, by way of SUBNETS4.
    fn route4(&self, network: &Network, destination: Be32) -> Option<VtepId>;
    /// Longest match in ROUTES6, by way of SUBNETS6.
    fn route6(&self, network: &Network, destination: [Be32; 4]) -> Option<VtepId>;
    /// VTEPS.
    fn vtep(&self, id: VtepId) -> Option<&Vtep>;
    /// Notes in an entry of VTEPS when the host stack took a packet in from it, and the generation.
    fn note_heard(&self, vtep: &Vtep, moment: u32, generation: u32);
    /// VTEP_IDS.
    fn vtep_id(&self, network: NetworkId, address: &Addr) -> Option<VtepId>;
    /// STATIONS.
    fn station(&self, key: &MacKey) -> Option<&Station>;
    /// Notes in an entry of STATIONS whether its station is elsewhere now: a value of
    /// [`moved`](crate::maps::moved).
    fn note_moved(&self, station: &Station, moved: u8);
    /// Notes in an entry of STATIONS when the kernel was given a frame of it.
    fn note_confirmed(&self, station: &Station, now: u64);
    /// Notes in an entry of STATIONS that its port was found.
    fn note_port_found(&self, station: &Station, tick: u32);
    /// Notes in an entry of STATIONS the tick in which that was looked at.
    fn note_tick(&self, station: &Station, tick: u32);
    /// ENDPOINTS4.
    fn endpoint4(&self, network: NetworkId, address: Be32) -> Option<&Endpoint>;
    /// ENDPOINTS6.
    fn endpoint6(&self, network: NetworkId, address: [Be32; 4]) -> Option<&Endpoint>;
    /// Notes in an entry of ENDPOINTS that its interface was found.
    fn note_found(&self, endpoint: &Endpoint, tick: u32);
    /// FLOWS, to be changed in place. One at a time.
    fn flow(&self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow>>;
    /// Inserts into FLOWS. A full table forgets old entries; one that cannot take it does not.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow);
    /// The network's generation in SWITCH.
    fn generation(&self, network: NetworkId) -> u32;
    /// `CLOCK_MONOTONIC`, coarse, in nanoseconds.
    fn now(&self) -> u64;
    /// The kernel's tick: while it is the same, so is [`now`](Self::now).
    fn tick(&self) -> u64;
    /// Whether an agent looks out for packet filters: [`Watch`](crate::maps::Watch).
    fn is_watched(&self) -> bool;
    /// Adds a packet of `bytes` to a cell of COUNTERS.
    fn count(&self, network: NetworkId, hook: Hook, reason: Reason, bytes: u32);
}
