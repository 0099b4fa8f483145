//! Desired and observed content of the datapath, and the difference as an ordered list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{Addr, Config, Endpoint, MacKey, Vtep, VtepId};

/// A program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attachment {
    /// Which program.
    pub hook: Hook,
    /// Which interface.
    pub ifindex: u32,
}

/// What the maps hold and where programs are attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatapathState {
    /// The network's parameters.
    pub config: Config,
    /// Inner prefix → VTEP; the node's own subnets lead to `LOCAL_VTEP`.
    pub routes: BTreeMap<IpNetwork, VtepId>,
    /// Remote VTEPS, without `LOCAL_VTEP`.
    pub vteps: BTreeMap<VtepId, Vtep>,
    /// Underlay address → VTEP.
    pub vtep_ids: BTreeMap<Addr, VtepId>,
    /// VTEP MAC → VTEP.
    pub macs: BTreeMap<MacKey, VtepId>,
    /// Local pods by address.
    pub endpoints: BTreeMap<IpAddr, Endpoint>,
    /// Programs on interfaces.
    pub attachments: BTreeSet<Attachment>,
}

/// One step from an observed to a desired [`DatapathState`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write CONFIG.
    SetConfig(Config),
    /// Write an entry of VTEPS.
    PutVtep(VtepId, Vtep),
    /// Clear an entry of VTEPS.
    DeleteVtep(VtepId),
    /// Write an entry of VTEP_IDS.
    PutVtepId(Addr, VtepId),
    /// Delete an entry of VTEP_IDS.
    DeleteVtepId(Addr),
    /// Write an entry of MACS.
    PutMac(MacKey, VtepId),
    /// Delete an entry of MACS.
    DeleteMac(MacKey),
    /// Write an entry of ROUTES4 or ROUTES6.
    PutRoute(IpNetwork, VtepId),
    /// Delete an entry of ROUTES4 or ROUTES6.
    DeleteRoute(IpNetwork),
    /// Write an entry of ENDPOINTS4 or ENDPOINTS6.
    PutEndpoint(IpAddr, Endpoint),
    /// Delete an entry of ENDPOINTS4 or ENDPOINTS6.
    DeleteEndpoint(IpAddr),
    /// Attach a program.
    Attach(Attachment),
    /// Detach a program.
    Detach(Attachment),
}
