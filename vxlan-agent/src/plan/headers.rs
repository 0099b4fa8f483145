//! How the fast path makes outer headers: as the network's device does.

use vxlan_ebpf_common::maps::{LocalVtep, local};

use super::{Input, Side, flag};
use crate::cluster::Node;
use crate::kernel::{DontFragment, Field, NextHop, Vxlan};

impl Input<'_> {
    /// What the device on `side` is known to be like, once it exists.
    fn device(&self, side: &Side) -> Option<&Vxlan> {
        self.tables.vxlan(side.device?)
    }

    /// Whether the device on `side` does more than programs can: they leave encapsulation to it.
    pub(super) fn is_odd(&self, side: &Side) -> bool {
        self.device(side).is_some_and(|device| !device.plain)
    }

    /// Sentences for an operator about such devices.
    pub(super) fn odd_devices(&self) -> Vec<String> {
        let odd = self
            .sides
            .iter()
            .filter(|side| self.is_fast() && self.is_odd(side))
            .filter_map(|side| side.device);
        let names = odd.filter_map(|device| Some(&self.tables.links.get(&device)?.name));
        let why = "writes more than a VNI (group policy, other protocols, metadata, remote checksums)";
        names.map(|name| format!("device {name} {why}")).collect()
    }

    /// The values that the device on `side` writes.
    pub(super) fn profile(&self, side: &Side) -> LocalVtep {
        let fixed = |field| match field {
            Field::Fixed(value) => value,
            Field::Inherit => 0,
        };
        let device = self.device(side);
        let own = device.map(|device| device.source_ports).filter(|(min, max)| min < max);
        let (port_min, port_max) = own.unwrap_or(self.source_ports);
        LocalVtep {
            port_min,
            port_max,
            ttl: fixed(side.headers.ttl),
            tos: fixed(side.headers.tos),
            label: device.map_or(0, |device| device.label),
            ..LocalVtep::default()
        }
    }

    /// Those of [`local`]'s bits that say how the device on `side` makes headers.
    ///
    /// Of our own networks, checksums over IPv4 come only if the configuration asks for them: a device that an agent of
    /// before has made writes them, and its fast path did not. Receivers take both (RFC 7348 section 5). Beside a device
    /// of somebody else's they come if that writes them.
    pub(super) fn header_flags(&self, side: &Side) -> u32 {
        let v6 = side.underlay.address.is_ipv6();
        let as_device = v6 || self.config.network.is_accelerated();
        let wanted = self.config.network.headers.checksum;
        let checksum = wanted.unwrap_or(as_device && side.headers.checksum);
        let accepts = self.device(side).is_some_and(|device| device.accepts_no_checksum6);
        let label = self.device(side).is_some_and(|device| device.label_inherit);
        flag(side.headers.ttl == Field::Inherit, local::TTL_INSIDE)
            | flag(side.headers.tos == Field::Inherit, local::TOS_INSIDE)
            | flag(side.headers.df == DontFragment::Set, local::DF)
            | flag(side.headers.df == DontFragment::Inherit, local::DF_INSIDE)
            | flag(checksum, local::CHECKSUM)
            | flag(accepts, local::ACCEPTS_NO_CHECKSUM)
            | flag(label, local::LABEL_INSIDE)
    }

    /// TTL or hop limit of packets to `node` where the device has none.
    pub(super) fn hop_limit(&self, node: &Node, hop: Option<&NextHop>) -> u8 {
        let v6 = hop.and_then(|hop| self.hop_limits.v6.get(&hop.ifindex)).filter(|_| node.vtep.is_ipv6());
        hop.and_then(|hop| hop.hop_limit).or(v6.copied()).unwrap_or(self.hop_limits.v4)
    }
}
