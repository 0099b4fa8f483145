//! The packet engine and the map types of the VXLAN overlay.
//!
//! The engine is `no_std` and generic over two seams: [`Packet`] (load and store headers, make and
//! remove room) and [`Tables`] (look-ups and counters). `vxlan-ebpf` implements them for the
//! kernel's packet contexts and maps; tests implement them for plain memory. So the code that runs
//! in the kernel is the code that is unit-tested, property-tested and interpreted.
//!
//! Contract: an entry point of [`hooks`] either returns a [`Forward`] and has rewritten the packet,
//! or returns a [`Reason`] and has left it untouched. The one exception is
//! [`Reason::WriteFailed`], which drops.

#![no_std]

pub mod checksum;
pub mod counters;
mod decap;
pub mod ecn;
mod encap;
pub mod flow;
pub mod headers;
pub mod hooks;
pub mod inner;
pub mod listen;
pub mod maps;
#[cfg(any(test, feature = "model"))]
pub mod model;
#[cfg(any(test, feature = "model"))]
pub mod oracle;
pub mod packet;
mod profile;
pub mod segment;
pub mod tables;
#[cfg(any(test, feature = "model"))]
pub mod testbed;
#[cfg(test)]
mod tests;
pub mod underlay;

pub use counters::{Disposition, Hook, Reason};
pub use hooks::{Forward, Verdict};
pub use packet::Packet;
pub use tables::Tables;
