//! The node agent of a VXLAN overlay: a complete kernel overlay, and the BPF fast path that
//! short-cuts it.
//!
//! ```text
//! source → ClusterState ┐
//! netlink → Tables      ├ plan → Desired{kernel, datapath} → diff(observed) → changes → apply
//! pins → DatapathState  ┘
//! ```
//!
//! [`plan`], both `diff`s and [`pods`] are pure; [`kernel::Netlink`] and [`datapath`] carry out what
//! they decide; [`agent`] is the loop around them. Kernel first, fast path second: the fast path is
//! only ever speed.

pub mod agent;
mod archive;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod datapath;
pub mod doctor;
mod init;
pub mod kernel;
mod listen;
pub mod local;
pub mod mirror;
pub mod net;
pub mod node;
#[doc(hidden)]
pub mod oracle;
pub mod ownership;
pub mod plan;
pub mod pods;
pub mod preflight;
pub mod probe;
mod report;
pub mod rights;
pub mod source;
pub mod status;
mod terminal;
pub mod text;
mod top;
pub mod trace;
pub mod underlay;
pub mod xdp;
