//! The kernel's side of a network: the vxlan device and what flannel would put on it.
//!
//! [`Tables`] is what netlink shows, [`KernelState`] what of it is ours, [`diff()`] the way from one
//! state to another, [`Netlink`] reads the first and carries out the last.

mod ask;
mod bell;
mod bridge;
mod bypass;
mod decode;
mod describe;
mod diff;
mod direct;
mod events;
pub mod filters;
mod foreign;
mod headers;
mod index;
mod learnt;
mod message;
mod netlink;
mod next_hops;
pub mod nft;
mod observed;
pub mod offload;
mod paths;
mod raw;
mod reach;
mod rules;
pub mod ruleset;
mod segment;
mod state;
mod stations;
pub mod sysctl;
mod tables;
mod traffic;
mod xfrm;

pub use ask::{Routed, Routing};
pub use bridge::{Bridge, Port, PortState};
pub use bypass::{Feature, Reason, Scope, larger_ports, why_not};
pub use describe::{describe_tables, disciplines};
pub use diff::{KernelChange, diff};
pub use direct::DirectSearch;
pub use events::{Events, Touched};
pub use foreign::{Edge, Foreign, What};
pub use headers::{DontFragment, Field, Headers, WantedHeaders, tos, ttl};
pub use index::Index;
pub use learnt::learnt_mtus;
pub use message::Asked;
pub use netlink::{Netlink, Target};
pub use next_hops::Object;
pub use observed::{ForeignDevice, Sought, observed, past_routes};
pub use paths::{LOCAL, Leads, MAIN, Odd, Path};
pub use reach::Reach;
pub use rules::{Rule, Selects, Verdict};
pub use segment::{ForeignBridge, ForeignSegment, SoughtBridge, observed_segment, orphans, wanted_bridge};
pub use state::{BridgeSpec, Device, DirectRoute, Headroom, KernelState, OwnBridge, Route, Segment};
pub use stations::{Place, stations};
pub use tables::{
    Address, FdbEntry, Flood, Kind, Link, Neighbour, NextHop, Remote, RouteEntry, Tables, Vlan, Vxlan,
};
pub use traffic::{Ours, traffic};
pub use xfrm::{Policy, Way, policies};
