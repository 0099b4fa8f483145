//! Flannel's subnet file, which its CNI plugin and others read.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use super::{Facts, of_version};

/// Its content: a variable per line, IPv4 before IPv6. A family without a network and a subnet has
/// no lines.
pub(super) fn content(facts: &Facts<'_>) -> String {
    let mut text = String::new();
    for (v4, version) in [(true, ""), (false, "IPV6_")] {
        let both = of_version(facts.networks, v4).zip(of_version(facts.subnets, v4));
        if let Some((network, subnet)) = both {
            let (gateway, length) = (gateway(subnet), subnet.prefix());
            let _ = writeln!(text, "FLANNEL_{version}NETWORK={network}");
            let _ = writeln!(text, "FLANNEL_{version}SUBNET={gateway}/{length}");
        }
    }
    let masquerade = facts.config.masquerade;
    let _ = writeln!(text, "FLANNEL_MTU={}\nFLANNEL_IPMASQ={masquerade}", facts.mtu);
    text
}

/// The address after the first, which is the bridge's.
fn gateway(subnet: IpNetwork) -> IpAddr {
    match subnet {
        IpNetwork::V4(net) => Ipv4Addr::from_bits(net.network().to_bits() | 1).into(),
        IpNetwork::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() | 1).into(),
    }
}
