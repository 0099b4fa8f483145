//! The seam between the engine and the maps.

use core::ops::DerefMut;

use crate::counters::{Hook, Reason};
use crate::headers::Be32;
use crate::maps::{Addr, Config, Endpoint, Flow, FlowKey, MacKey, Veth, Vtep, VtepId};

/// Look-ups and counters of one network.
pub trait Tables {
    /// CONFIG, unless SWITCH has the fast path off.
    fn config(&self) -> Option<&Config>;
    /// [`Config::mark`], whether the fast path is off or not.
    fn mark(&self) -> u32;
    /// Longest match in ROUTES4.
    fn route4(&self, destination: Be32) -> Option<VtepId>;
    /// Longest match in ROUTES6.
    fn route6(&self, destination: [Be32; 4]) -> Option<VtepId>;
    /// VTEPS.
    fn vtep(&self, id: VtepId) -> Option<&Vtep>;
    /// VTEP_IDS.
    fn vtep_id(&self, address: &Addr) -> Option<VtepId>;
    /// MACS.
    fn mac(&self, key: &MacKey) -> Option<VtepId>;
    /// ENDPOINTS4.
    fn endpoint4(&self, address: Be32) -> Option<&Endpoint>;
    /// ENDPOINTS6.
    fn endpoint6(&self, address: [Be32; 4]) -> Option<&Endpoint>;
    /// Notes in an entry of ENDPOINTS that its interface was found.
    fn note_found(&self, endpoint: &Endpoint, tick: u32);
    /// VETHS; nothing is known of one that is not there.
    fn veth(&self, ifindex: u32) -> Veth;
    /// FLOWS, to be changed in place. One at a time.
    fn flow(&self, key: &FlowKey) -> Option<impl DerefMut<Target = Flow>>;
    /// Inserts into FLOWS. A full table forgets old entries; one that cannot take it does not.
    fn insert_flow(&self, key: &FlowKey, flow: &Flow);
    /// The generation in SWITCH.
    fn generation(&self) -> u32;
    /// `CLOCK_MONOTONIC`, coarse, in nanoseconds.
    fn now(&self) -> u64;
    /// The kernel's tick: while it is the same, so is [`now`](Self::now).
    fn tick(&self) -> u64;
    /// Adds a packet of `bytes` to a cell of COUNTERS.
    fn count(&self, hook: Hook, reason: Reason, bytes: u32);
}
