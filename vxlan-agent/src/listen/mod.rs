//! What happens to packets now: for `monitor` and `capture`.
//!
//! A [`Listener`](crate::datapath::Listener) hears from the programs. [`which`] is what an operator asks for, [`run`]
//! waits for it, [`headers`] and [`fate`] put a packet and what becomes of it into words, [`flows`] tells of flows
//! whose packets are seen, and [`mod@file`] writes packets as pcapng.

pub(crate) mod fate;
pub(crate) mod file;
pub(crate) mod flows;
pub(crate) mod headers;
pub(crate) mod run;
pub(crate) mod which;
