//! Which packet a trace is about.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Serialize;
use vxlan_ebpf_common::headers::protocol;

use crate::net::Mac;

/// Who sends or receives: in a routed network an address, in a bridged one a MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum End {
    /// An address.
    Ip(IpAddr),
    /// A station.
    Mac(Mac),
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ip = text.parse().map(Self::Ip);
        ip.or_else(|_| text.parse().map(Self::Mac))
            .map_err(|_: String| format!("'{text}' is neither an IP address nor a MAC"))
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Mac(mac) => mac.fmt(f),
        }
    }
}

/// What the IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A TCP segment.
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An echo request.
    Icmp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self, v6: bool) -> u8 {
        match self {
            Self::Tcp => protocol::TCP,
            Self::Udp => protocol::UDP,
            Self::Icmp if v6 => protocol::ICMPV6,
            Self::Icmp => protocol::ICMP,
        }
    }

    /// Length of its header.
    pub const fn header(self) -> u16 {
        match self {
            Self::Tcp => 20,
            Self::Udp | Self::Icmp => 8,
        }
    }
}

/// TCP flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Flags {
    /// SYN.
    pub syn: bool,
    /// ACK.
    pub ack: bool,
    /// FIN.
    pub fin: bool,
    /// RST.
    pub rst: bool,
}

impl FromStr for Flags {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut flags = Self::default();
        for word in text.split(',') {
            match word {
                "syn" => flags.syn = true,
                "ack" => flags.ack = true,
                "fin" => flags.fin = true,
                "rst" => flags.rst = true,
                other => return Err(format!("'{other}' is none of syn, ack, fin and rst")),
            }
        }
        Ok(flags)
    }
}

/// A packet, and where it comes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Question {
    /// Who sends it.
    pub source: End,
    /// Who is to receive it.
    pub destination: End,
    /// What it carries.
    pub protocol: Protocol,
    /// Source port, or the identifier of an echo request.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP flags.
    pub flags: Flags,
    /// Length of the IP packet in bytes.
    pub length: u16,
    /// TTL or hop limit with which its sender sends it.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Whether routers may fragment it (IPv4).
    pub may_fragment: bool,
    /// The interface that it comes in by, if not that where its source is known to be.
    pub interface: Option<String>,
    /// The VTEP that it comes from, if not that of its source.
    pub vtep: Option<IpAddr>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_addresses_or_macs() {
        assert_eq!("10.1.2.3".parse(), Ok(End::Ip(IpAddr::from([10, 1, 2, 3]))));
        assert_eq!("02:00:00:00:00:01".parse(), Ok(End::Mac(Mac([2, 0, 0, 0, 0, 1]))));
        assert!("fd00::1".parse::<End>().is_ok());
        assert!("pod-1".parse::<End>().is_err());
    }

    #[test]
    fn flags_are_words() {
        let flags = Flags { syn: true, ack: true, ..Flags::default() };
        assert_eq!("syn,ack".parse(), Ok(flags));
        assert!("psh".parse::<Flags>().is_err());
    }
}
