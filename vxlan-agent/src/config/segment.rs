//! What a bridged network has and a routed one has not.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::values;
use crate::net::full_length;

/// An Ethernet segment across the nodes: a bridge on each, whose ports may be anything that speaks
/// Ethernet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Name of the bridge.
    pub bridge: String,
    /// Addresses of this host on the segment, with its prefix length.
    pub addresses: Vec<IpNetwork>,
    /// How frames reach all nodes.
    pub flood: Flood,
    /// Whether the vxlan device learns from frames where stations are.
    pub learning: bool,
    /// Whether questions for known addresses (ARP, neighbour discovery) are answered on the spot.
    pub suppress: bool,
}

/// How frames that go to everybody, or to nobody knows whom, reach the other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Flood {
    /// A copy for each node.
    #[default]
    Copies,
    /// By way of a multicast group of the underlay.
    Group(IpAddr),
}

impl Flood {
    /// The multicast group, where there is one.
    pub fn group(self) -> Option<IpAddr> {
        match self {
            Self::Copies => None,
            Self::Group(group) => Some(group),
        }
    }
}

impl TryFrom<String> for Flood {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "copies" {
            return Ok(Self::Copies);
        }
        let text = text.escape_debug().to_string();
        let unknown = || format!("'{text}' is neither \"copies\" nor the address of a multicast group");
        let group: IpAddr = text.parse().map_err(|_| unknown())?;
        if !group.is_multicast() {
            return Err(format!("{group} is not a multicast group: give one such as 239.1.1.1 or ff05::100"));
        }
        if is_reserved(group) {
            return Err(format!("group {group} is reserved: take one such as 239.1.1.1 or ff05::100"));
        }
        Ok(Self::Group(group))
    }
}

impl From<Flood> for String {
    fn from(flood: Flood) -> Self {
        match flood {
            Flood::Copies => "copies".to_owned(),
            Flood::Group(group) => group.to_string(),
        }
    }
}

/// Whether every host listens to `group`, or none: 224.0.0.0/24 is for routing protocols (RFC 5771
/// §4), as are the well-known IPv6 groups with a scope of the link (RFC 4291 §2.7.1); a smaller scope
/// never leaves the host.
fn is_reserved(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group.octets()[..3] == [224, 0, 0],
        IpAddr::V6(group) => {
            let [first, middle @ .., last] = group.segments();
            let well_known = first == 0xff02 && middle == [0; 6] && last <= 0xff;
            first & 0xf < 2 || well_known
        }
    }
}

/// Addresses of this host: one string, or a list of strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Addresses(pub(super) Vec<IpNetwork>);

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AddressesVisitor;
        impl<'de> Visitor<'de> for AddressesVisitor {
            type Value = Addresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address with its prefix length, such as \"10.0.0.1/24\", or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Addresses, E> {
                let HostAddress(address) = text.parse().map_err(E::custom)?;
                Ok(Addresses(vec![address]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Addresses, A::Error> {
                let (mut addresses, mut taken) = (vec![], HashSet::new());
                while let Some(HostAddress(address)) = list.next_element()? {
                    if !taken.insert(address.ip()) {
                        return Err(de::Error::custom(format!("address {} is given twice", address.ip())));
                    }
                    addresses.push(address);
                }
                Ok(Addresses(addresses))
            }
        }
        deserializer.deserialize_any(AddressesVisitor)
    }
}

/// An address that a host may have, with the prefix length of its segment.
struct HostAddress(IpNetwork);

impl<'de> Deserialize<'de> for HostAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        values::text(deserializer)
    }
}

impl FromStr for HostAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown = text.escape_debug();
        let refuse =
            |why: &str| Err(format!("'{shown}' is not an address of this host on the segment: {why}"));
        let Ok(address) = text.parse::<IpNetwork>() else {
            return refuse("give an address and its prefix length, such as 10.0.0.1/24");
        };
        if !text.contains('/') {
            return refuse("its prefix length is missing, as in 10.0.0.1/24");
        }
        if address.prefix() == 0 {
            return refuse("no segment holds all addresses");
        }
        if !is_unicast(address.ip()) {
            return refuse("it is not unicast");
        }
        // Point-to-point links and single addresses have neither (RFC 3021, RFC 6164).
        let spare = full_length(address.ip()) - address.prefix();
        if spare > 1 && address.ip() == address.network() {
            return refuse("it is that of the segment itself");
        }
        if spare > 1 && address.is_ipv4() && address.ip() == address.broadcast() {
            return refuse("it is that of all hosts on the segment");
        }
        Ok(Self(address))
    }
}

fn is_unicast(address: IpAddr) -> bool {
    let other = match address {
        IpAddr::V4(a) => a.is_broadcast() || a.octets()[0] == 0,
        IpAddr::V6(a) => a.to_ipv4_mapped().is_some(),
    };
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || other)
}
