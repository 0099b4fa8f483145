//! The lab's addresses, from node and pod numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of an address, or of the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// What the tunnel adds to an inner packet, in bytes.
    pub const fn overhead(self) -> u32 {
        match self {
            Self::V4 => 50,
            Self::V6 => 70,
        }
    }
}

/// Underlay address of a node, `192.0.2.<node>`; the prefix length is 24.
pub const fn underlay4(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, node)
}

/// Underlay address of a node, `2001:db8::<node>`; the prefix length is 64.
pub const fn underlay6(node: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node as u16)
}

/// Underlay address of a node in `family`.
pub const fn underlay(family: Family, node: u8) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(underlay4(node)),
        Family::V6 => IpAddr::V6(underlay6(node)),
    }
}

/// Host `host` of a node's pod subnet `10.244.<node>.0/24`; 0 is the VTEP, 1 the gateway.
pub const fn inner4(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, host)
}

/// Host `host` of a node's pod subnet `fd00:244:<node>::/64`; 0 is the VTEP, 1 the gateway.
pub fn inner6(node: u8, host: u8) -> Ipv6Addr {
    // The number reads the same in both families: node 10 is 10.244.10.0/24 and fd00:244:10::/64.
    let node = u16::from_str_radix(&node.to_string(), 16).unwrap_or(0);
    Ipv6Addr::new(0xfd00, 0x244, node, 0, 0, 0, 0, u16::from(host))
}

/// Last byte of pod `pod`'s addresses.
pub const fn pod_host(pod: u8) -> u8 {
    pod + 1
}

/// MAC of a node's VTEP, as the state file and the kernel nodes have it.
pub fn vtep_mac(node: u8) -> String {
    format!("0e:11:00:00:00:{node:02x}")
}

/// Host `host` of node `node` on a bridged segment, `10.66.<node>.<host>`; the prefix length is 16. The
/// same in all tenants.
pub const fn segment4(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 66, node, host)
}

/// Host `host` of node `node` on a bridged segment, `fd00:66::<node>:<host>`; the prefix length is 64. The
/// same in all tenants.
pub const fn segment6(node: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x66, 0, 0, 0, 0, node as u16, host as u16)
}

/// MAC of host `host` of node `node` on a bridged segment. The same in all tenants.
pub const fn station_mac(node: u8, host: u8) -> [u8; 6] {
    [0x02, 0x66, 0, 0, node, host]
}

/// A MAC as text.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
