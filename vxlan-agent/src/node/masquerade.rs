//! Masquerading, in an nf_tables table of our own.
//!
//! - From a pod to anything but pods and multicast: the node's address, because nobody outside
//!   knows the way to a pod.
//! - From elsewhere through the tunnel to a pod: the tunnel's address, so that the answer comes
//!   back the same way. That is a node's process that uses another of the node's addresses, or a
//!   client outside whose connection to a service this node passes on.
//!
//! Between pods, never.

use ipnetwork::IpNetwork;
use nix::libc;

use super::packet::Version;
use super::table::Chain;
use crate::kernel::nft::Attributes;
use crate::kernel::nft::expression::Ports;

/// The rules for `pods`: networks of pods, and the name of the vxlan device that leads to them.
pub(super) fn chain(pods: &[(IpNetwork, String)], ports: Ports) -> Chain {
    let rules = pods.iter().flat_map(|(network, device)| {
        [
            ("pods to elsewhere", pods_to_elsewhere(network).masquerade(ports)),
            ("elsewhere to pods", elsewhere_to_pods(network, device).masquerade(ports)),
        ]
    });
    Chain {
        name: "postrouting",
        kind: "nat",
        hook: libc::NF_INET_POST_ROUTING,
        priority: libc::NF_IP_PRI_NAT_SRC,
        rules: rules.collect(),
    }
}

fn pods_to_elsewhere(pods: &IpNetwork) -> Attributes {
    let version = Version::of(pods);
    let rule = Attributes::default()
        .over(version)
        .load_source(version)
        .within(pods)
        .load_destination(version)
        .outside(pods);
    // 224.0.0.0/4 and ff00::/8.
    match version.is_ipv4() {
        true => rule.load_destination(version).mask(&[0xf0, 0, 0, 0]).is_not(&[0xe0, 0, 0, 0]),
        false => rule.load_network_header(version.destination(), 1).is_not(&[0xff]),
    }
}

fn elsewhere_to_pods(pods: &IpNetwork, device: &str) -> Attributes {
    let version = Version::of(pods);
    let mut name = [0; libc::IFNAMSIZ];
    name.iter_mut().zip(device.bytes()).for_each(|(to, from)| *to = from);
    Attributes::default()
        .over(version)
        .load_source(version)
        .outside(pods)
        .load_destination(version)
        .within(pods)
        .load_meta(libc::NFT_META_OIFNAME)
        .is(&name)
}
