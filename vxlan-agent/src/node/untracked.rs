//! Leaving conntrack out of the tunnel's outer packets.
//!
//! Each connection between pods has an outer UDP source port of its own, so to conntrack it is a new
//! connection between the nodes, too, whose first packet is compared with all rules of NAT. Nothing
//! is gained by that: the packets inside are tracked where they are routed.

use nix::libc;

use super::table::Chain;
use crate::kernel::nft::Attributes;

/// What arrives for UDP port `port`, and what this node sends there.
pub(super) fn chains(port: u16) -> [Chain; 2] {
    let chain = |name, hook, rule| Chain {
        name,
        kind: "filter",
        hook,
        priority: libc::NF_IP_PRI_RAW,
        rules: vec![(rule, Attributes::default().for_port(port).untracked())],
    };
    [
        chain("prerouting", libc::NF_INET_PRE_ROUTING, "out of the tunnel"),
        chain("output", libc::NF_INET_LOCAL_OUT, "into the tunnel"),
    ]
}
