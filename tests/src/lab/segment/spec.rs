//! What a lab of segments should look like.

use anyhow::Result;
use clap::ValueEnum;

use super::{SegmentLab, build};
use crate::lab::{Family, Overlay};

/// One tenant: a segment that all nodes carry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantSpec {
    /// At most eight letters; bridges and devices are named after it.
    pub name: String,
    /// VNI of its segment.
    pub vni: u32,
    /// UDP port of its tunnel.
    pub port: u16,
}

impl TenantSpec {
    /// A tenant on the port that RFC 7348 has for VXLAN.
    pub fn new(name: &str, vni: u32) -> Self {
        Self { name: name.to_owned(), vni, port: 4789 }
    }

    /// On another port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// The tenant's bridge on every node.
    pub fn bridge(&self) -> String {
        format!("br-{}", self.name)
    }

    /// The tenant's vxlan device on every node.
    pub fn device(&self) -> String {
        format!("vx-{}", self.name)
    }
}

/// How hosts are attached to their bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Card {
    /// By a veth: checksums and segments may be left to the device.
    Veth,
    /// By a tap without offloads, as simple virtual machines are.
    Tap,
}

/// A lab of segments to be built.
#[derive(Clone, Debug)]
pub struct SegmentSpec {
    /// How each node carries the segments; [`Overlay::None`] is for a node that is the only one.
    pub nodes: Vec<Overlay>,
    /// The tenants.
    pub tenants: Vec<TenantSpec>,
    /// Family of the tunnel's outer addresses. Nodes have underlay addresses of both.
    pub underlay: Family,
    /// MTU of the underlay in bytes. Hosts have what fits into the tunnel.
    pub mtu: u32,
    /// Hosts per node and tenant.
    pub hosts: u8,
    /// How they are attached.
    pub card: Card,
    /// Whether agents make the bridges of their nodes themselves.
    pub agents_make_bridges: bool,
    /// Whether the bridges snoop IGMP and MLD, with a querier on each.
    pub snooping: bool,
}

impl SegmentSpec {
    /// Two nodes with one tenant, `red`, and one host each, over IPv4 with an MTU of 1500.
    pub fn pair(first: Overlay, second: Overlay) -> Self {
        Self::of(vec![first, second])
    }

    /// One node whose bridges are all there is of the segments, with two hosts, otherwise as
    /// [`SegmentSpec::pair`].
    pub fn alone() -> Self {
        Self::of(vec![Overlay::None]).hosts(2)
    }

    /// A node for each of `nodes`, otherwise as [`SegmentSpec::pair`].
    pub fn of(nodes: Vec<Overlay>) -> Self {
        Self {
            nodes,
            tenants: vec![TenantSpec::new("red", 100)],
            underlay: Family::V4,
            mtu: 1500,
            hosts: 1,
            card: Card::Veth,
            agents_make_bridges: false,
            snooping: false,
        }
    }

    /// With these tenants.
    #[must_use]
    pub fn tenants(mut self, tenants: impl IntoIterator<Item = TenantSpec>) -> Self {
        self.tenants = tenants.into_iter().collect();
        self
    }

    /// With outer addresses of `family`.
    #[must_use]
    pub fn underlay(mut self, family: Family) -> Self {
        self.underlay = family;
        self
    }

    /// With an underlay of this MTU.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// With `count` hosts per node and tenant.
    #[must_use]
    pub fn hosts(mut self, count: u8) -> Self {
        self.hosts = count;
        self
    }

    /// With hosts attached in this way.
    #[must_use]
    pub fn card(mut self, card: Card) -> Self {
        self.card = card;
        self
    }

    /// With bridges that the nodes' agents make. They do as the kernel's bridges do by default.
    #[must_use]
    pub fn agents_make_bridges(mut self) -> Self {
        self.agents_make_bridges = true;
        self
    }

    /// With bridges that snoop.
    #[must_use]
    pub fn snooping(mut self) -> Self {
        self.snooping = true;
        self
    }

    /// MTU of the hosts in bytes.
    pub const fn host_mtu(&self) -> u32 {
        self.mtu - self.underlay.overhead()
    }

    /// Builds the lab and waits until every node is ready.
    ///
    /// # Errors
    /// As [`LabSpec::build`](crate::lab::LabSpec::build).
    pub fn build(&self) -> Result<SegmentLab> {
        build::build(self)
    }
}
