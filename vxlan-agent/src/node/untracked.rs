//! Leaving conntrack out of the tunnel's outer packets.
//!
//! Each connection between pods has an outer UDP source port of its own, so to conntrack it is a new
//! connection between the nodes, too, whose first packet is compared with all rules of NAT. Nothing
//! is gained by that: the packets inside are tracked where they are routed.

use nix::libc;

use super::table::Chain;
use crate::kernel::nft::Attributes;

/// Offset of the destination port in a UDP header.
const DESTINATION_PORT: u32 = 2;

/// What arrives for UDP port `port`, and what this node sends there.
pub(super) fn chains(port: u16) -> [Chain; 2] {
    let chain = |name, hook, rule| Chain {
        name,
        kind: "filter",
        hook,
        priority: libc::NF_IP_PRI_RAW,
        rules: vec![(rule, to_port(port).untracked())],
    };
    [
        chain("prerouting", libc::NF_INET_PRE_ROUTING, "out of the tunnel"),
        chain("output", libc::NF_INET_LOCAL_OUT, "into the tunnel"),
    ]
}

fn to_port(port: u16) -> Attributes {
    Attributes::default()
        .load_meta(libc::NFT_META_L4PROTO)
        .is(&[libc::IPPROTO_UDP as u8])
        .load_transport_header(DESTINATION_PORT, 2)
        .is(&port.to_be_bytes())
}
