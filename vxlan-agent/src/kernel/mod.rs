//! The kernel's side of a network: the vxlan device and what flannel would put on it.
//!
//! [`Tables`] is what netlink shows, [`KernelState`] what of it is ours, [`diff()`] the way from one
//! state to another, [`Netlink`] reads the first and carries out the last.

mod bell;
mod decode;
mod diff;
mod direct;
mod events;
mod foreign;
mod learnt;
mod message;
mod netlink;
pub mod nft;
mod observed;
pub mod offload;
mod raw;
pub mod ruleset;
mod state;
pub mod sysctl;
mod tables;
mod traffic;
mod xfrm;

pub use diff::{KernelChange, diff};
pub use direct::DirectSearch;
pub use events::{Events, Touched};
pub use foreign::{Edge, Foreign, What};
pub use learnt::learnt_mtus;
pub use message::Asked;
pub use netlink::{Netlink, Target};
pub use observed::{ForeignDevice, Sought, observed};
pub use state::{Device, DirectRoute, Headroom, KernelState, Route};
pub use tables::{Address, FdbEntry, Kind, Link, Neighbour, NextHop, RouteEntry, Rule, Tables, Vxlan};
pub use traffic::{Ours, traffic};
pub use xfrm::{Policy, Way, policies};
