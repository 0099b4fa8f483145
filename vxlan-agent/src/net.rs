//! Checked newtypes for the numbers of the field: a VNI is not an interface index.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use vxlan_ebpf_common::maps::Family;

/// A VXLAN network identifier: 24 bits, not zero (RFC 7348 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The number, in the host's byte order.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vni {
    type Error = String;

    fn try_from(value: u32) -> Result<Self, String> {
        if (1..1 << 24).contains(&value) {
            return Ok(Self(value));
        }
        Err(format!("VNI {value} is out of range: a VNI lies between 1 and 16777215"))
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Index of a network interface in this process's network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IfIndex(pub u32);

impl fmt::Display for IfIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Largest IP packet that an interface takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mtu(pub u32);

/// Whether `ip` means something on one link only.
pub const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

impl Mtu {
    /// What is left inside the tunnel when the underlay has this MTU: 50 bytes less over IPv4
    /// (20 IP + 8 UDP + 8 VXLAN + 14 Ethernet), 70 less over IPv6.
    pub const fn inside(self, underlay: Family) -> Self {
        Self(self.0.saturating_sub(overhead(underlay)))
    }

    /// As the maps keep it; interfaces with a larger MTU (loopback) count as 65535.
    pub fn saturating_u16(self) -> u16 {
        u16::try_from(self.0).unwrap_or(u16::MAX)
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Bytes between the underlay's IP packet and the inner IP packet.
pub const fn overhead(underlay: Family) -> u32 {
    match underlay {
        Family::V4 => 50,
        Family::V6 => 70,
    }
}

/// Family of an address.
pub const fn family(address: IpAddr) -> Family {
    match address {
        IpAddr::V4(_) => Family::V4,
        IpAddr::V6(_) => Family::V6,
    }
}

/// Prefix length of a single address.
pub const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// Whether `prefix` names exactly one address.
pub fn is_host(prefix: &IpNetwork) -> bool {
    prefix.prefix() == full_length(prefix.ip())
}

/// Whether there is an address in both.
pub fn overlap(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// Name of an interface, or its index where it has none (any more, or in this namespace).
pub fn interface_name(ifindex: u32) -> String {
    let name = nix::net::if_::if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("#{ifindex}"))
}

/// An Ethernet address in transmission order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// From a netlink attribute; `None` unless it has six bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Whether a single station can have this address: neither a group address nor all zero.
    pub fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("'{text}' is not a MAC address such as 02:00:00:00:00:01");
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let hex = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            let part = parts.next().filter(hex).ok_or_else(malformed)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| malformed())?;
        }
        if parts.next().is_some() {
            return Err(malformed());
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_has_24_bits_and_is_not_zero() {
        assert!(Vni::try_from(1).is_ok());
        assert!(Vni::try_from(16_777_215).is_ok());
        assert!(Vni::try_from(0).is_err());
        assert!(Vni::try_from(16_777_216).is_err());
    }

    #[test]
    fn a_mac_is_read_as_it_is_written() {
        let mac: Mac = "02:Ab:00:00:00:ff".parse().expect("well formed");
        assert_eq!(mac.to_string(), "02:ab:00:00:00:ff");
        for bad in [
            "",
            "02:ab:00:00:00",
            "02:ab:00:00:00:ff:00",
            "2:ab:0:0:0:ff",
            "02-ab-00-00-00-ff",
            "+2:ab:00:00:00:ff",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_tunnel_costs_50_bytes_over_ipv4_and_70_over_ipv6() {
        assert_eq!(Mtu(1500).inside(Family::V4), Mtu(1450));
        assert_eq!(Mtu(1500).inside(Family::V6), Mtu(1430));
    }
}
