//! What the rules look at in a packet, of either IP version.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;

use crate::kernel::nft::Attributes;
use crate::kernel::nft::set::{Field, octets};

/// `NFT_REG32_00`, where a key of several fields begins.
pub(super) const FIRST: u32 = libc::NFT_REG32_00 as u32;
/// Offset of the destination port in a UDP header.
pub(super) const DESTINATION_PORT: u32 = 2;

/// What differs between the IP versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// `NFPROTO_…`.
    pub(super) number: u8,
    /// An address in a set.
    pub(super) field: Field,
    /// Offset of the source in the header.
    pub(super) source: u32,
    pub(super) ether_type: [u8; 2],
}

pub(super) const V4: Version =
    Version { number: libc::NFPROTO_IPV4 as u8, field: Field::Ipv4, source: 12, ether_type: [0x08, 0x00] };
pub(super) const V6: Version =
    Version { number: libc::NFPROTO_IPV6 as u8, field: Field::Ipv6, source: 8, ether_type: [0x86, 0xdd] };

impl Version {
    pub(super) fn of(network: &IpNetwork) -> Self {
        if network.is_ipv4() { V4 } else { V6 }
    }

    pub(super) fn of_address(ip: IpAddr) -> Self {
        if ip.is_ipv4() { V4 } else { V6 }
    }

    /// The mask of a prefix of so many bits.
    pub(super) fn mask(self, length: u8) -> Vec<u8> {
        let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or_default();
        match self.is_ipv4() {
            true => mask.to_be_bytes()[..4].to_vec(),
            false => mask.to_be_bytes().to_vec(),
        }
    }

    pub(super) const fn is_ipv4(self) -> bool {
        self.number == V4.number
    }

    /// Offset of the destination in the header.
    pub(super) const fn destination(self) -> u32 {
        self.source + self.field.length()
    }
}

impl Attributes {
    /// Loads the destination port of what is UDP.
    #[must_use]
    pub(super) fn load_udp_port(self) -> Self {
        self.load_meta(libc::NFT_META_L4PROTO)
            .is(&[libc::IPPROTO_UDP as u8])
            .load_transport_header(DESTINATION_PORT, 2)
    }

    /// Goes on only with packets of `version`.
    #[must_use]
    pub(super) fn over(self, version: Version) -> Self {
        self.load_meta(libc::NFT_META_NFPROTO).is(&[version.number])
    }

    /// Loads the source of a packet of `version`.
    #[must_use]
    pub(super) fn load_source(self, version: Version) -> Self {
        self.load_network_header(version.source, version.field.length())
    }

    /// Loads the destination of a packet of `version`.
    #[must_use]
    pub(super) fn load_destination(self, version: Version) -> Self {
        self.load_network_header(version.destination(), version.field.length())
    }

    /// Loads the address of a packet of `version` at `offset` of its header, into the register `NFT_REG32_…`.
    #[must_use]
    pub(super) fn load_address_into(self, register: u32, version: Version, offset: u32) -> Self {
        self.load_network_header_into(register, offset, version.field.length())
    }

    /// Goes on only if the address that was loaded is in `network`.
    #[must_use]
    pub(super) fn within(self, network: &IpNetwork) -> Self {
        self.mask(&octets(network.mask())).is(&octets(network.network()))
    }

    /// Goes on only if the address that was loaded is not in `network`.
    #[must_use]
    pub(super) fn outside(self, network: &IpNetwork) -> Self {
        self.mask(&octets(network.mask())).is_not(&octets(network.network()))
    }
}
