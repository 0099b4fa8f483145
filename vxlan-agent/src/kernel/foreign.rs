//! What somebody else has put on interfaces, where the fast path would pass it by.

use std::fmt;

use crate::net::IfIndex;

/// An edge of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// What comes in by it, from the wire or from the other end of a veth.
    Entry,
    /// What goes out by it.
    Exit,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A queueing discipline.
    Qdisc,
    /// A filter of a queueing discipline.
    Filter,
    /// A BPF program (TCX).
    Program,
    /// A chain of nf_tables (family `netdev`, or `inet` at the hook `ingress`).
    Chain,
}

/// Something of somebody else's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Foreign {
    /// The interface.
    pub ifindex: IfIndex,
    /// Which edge of it.
    pub edge: Edge,
    /// What it is.
    pub what: What,
    /// What it is called.
    pub name: String,
    /// Whether a packet meets it only after our programs, if at all.
    pub behind: bool,
}

impl fmt::Display for Foreign {
    /// Without the interface: "filter u32 at the entry".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.what {
            What::Qdisc => "qdisc",
            What::Filter => "filter",
            What::Program => "program",
            What::Chain => "nftables chain",
        };
        let edge = match self.edge {
            Edge::Entry => "entry",
            Edge::Exit => "exit",
        };
        write!(f, "{what} {} at the {edge}", self.name)
    }
}
