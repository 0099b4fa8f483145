//! Probes: does a node answer through the tunnel, how soon, and how large may packets be?
//!
//! A probe is an ICMP echo from this node's overlay address to the other node's, which a kernel answers whoever set
//! the tunnel up. Sent plainly, the programs encapsulate it ([`Way::Fast`]); with a header that they leave to the
//! kernel at all times it takes the kernel's way ([`Way::Kernel`]): over IPv4 the option Record Route, which comes
//! back in the answer, so that this goes the kernel's way, too; over IPv6 hop-by-hop options, which do not come
//! back. Counters say which way it was: `encapsulated` and `options` at `tunnel_egress`.
//!
//! [`Prober`] is a socket and whoever waits for answers; [`mod@sweep`] probes many nodes at once.

mod message;
mod mtu;
mod prober;
mod socket;
mod sweep;

use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use mtu::path_mtu;
pub use prober::Prober;
pub use sweep::{Overlay, PathReport, Row, Target, sweep};

/// The way that a probe takes out of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// Encapsulated by a program, where the fast path is on.
    Fast,
    /// Encapsulated by the kernel's device.
    Kernel,
}

impl Way {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Fast, Self::Kernel];

    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Kernel => "kernel",
        }
    }
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered so long after it was sent.
    Answered(Duration),
    /// Nothing came back.
    Silent,
    /// It is too large for this node or for the path.
    TooBig,
    /// Somebody says that it cannot be delivered, or this node cannot send it.
    Refused(String),
}

impl Outcome {
    /// The round trip, if there was one.
    pub const fn round_trip(&self) -> Option<Duration> {
        match self {
            Self::Answered(after) => Some(*after),
            _ => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(after) => write!(f, "answered after {:.2} ms", after.as_secs_f64() * 1e3),
            Self::Silent => f.write_str("no answer"),
            Self::TooBig => f.write_str("too big for the path"),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}
