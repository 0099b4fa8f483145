//! The sections `[[network]]`.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::DEFAULT_PORT;
use super::segment::{Addresses, Flood, Segment};
use super::state::{StateSection, flannel_device};
use super::values::{self, DeviceName, Flows, NetworkName, Port, is_device_name};
use crate::kernel::{self, DontFragment, Field, WantedHeaders};
use crate::net::{Mtu, Vni};
use crate::text::{Refused, Text};

/// One overlay network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// Whether packets are routed to other nodes, or frames bridged.
    pub kind: Kind,
    /// Its VNI.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// MTU of the vxlan device; `None`: what the underlay leaves.
    pub mtu: Option<Mtu>,
    /// Name of the vxlan device.
    pub device: String,
    /// How much of the fast path runs.
    pub fastpath: Fastpath,
    /// What becomes of packets that fail a source check.
    pub source_check: SourceCheck,
    /// How many flows are kept in verification or verified.
    pub flows: u32,
    /// What becomes of malformed packets from the underlay.
    pub malformed: Guard,
    /// What becomes of packets from the underlay for another VNI.
    pub other_vni: Guard,
    /// Whether conntrack is left out of the tunnel's outer packets.
    pub notrack: bool,
    /// How the vxlan device makes outer headers.
    pub headers: WantedHeaders,
}

impl NetworkConfig {
    /// What a bridged network has besides; `None` if this one is routed.
    pub fn segment(&self) -> Option<&Segment> {
        match &self.kind {
            Kind::L3 => None,
            Kind::L2(segment) => Some(segment),
        }
    }
}

/// Whether packets are routed to other nodes, or frames bridged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every node has subnets, and packets to them are routed to it.
    L3,
    /// All nodes are one Ethernet segment.
    L2(Segment),
}

/// How much of the fast path runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fastpath {
    /// Nothing is attached.
    Off,
    /// Stateless bypass of the host stack: for hosts without NAT or packet filter between pods.
    Direct,
    /// Bypass of the host stack for flows that it has been seen to pass unchanged.
    #[default]
    Verified,
}

/// What becomes of packets that fail a source check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceCheck {
    /// Counted and dropped.
    #[default]
    Drop,
    /// Counted and left to the kernel.
    Count,
}

/// What becomes of packets from the underlay that this network has no use for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guard {
    /// Counted and left to the kernel, which may have a use for them.
    #[default]
    Kernel,
    /// Counted and dropped.
    Drop,
}

/// As it is written. A key that is passed on as it is read is of its final type; one that depends on
/// others, or that another network may claim, too, knows its place.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NetworkSection {
    pub(super) name: Spanned<NetworkName>,
    #[serde(default)]
    kind: Word,
    pub(super) vni: Spanned<Vni>,
    pub(super) port: Option<Spanned<Port>>,
    #[serde(default, deserialize_with = "values::mtu")]
    mtu: Option<Mtu>,
    pub(super) device: Option<Spanned<DeviceName>>,
    #[serde(default)]
    fastpath: Fastpath,
    #[serde(default)]
    source_check: SourceCheck,
    #[serde(default)]
    flows: Flows,
    #[serde(default)]
    malformed: Guard,
    #[serde(default)]
    other_vni: Guard,
    #[serde(default)]
    notrack: bool,
    #[serde(default, deserialize_with = "kernel::ttl")]
    ttl: Option<Field>,
    #[serde(default, deserialize_with = "kernel::tos")]
    tos: Option<Field>,
    df: Option<DontFragment>,
    checksum: Option<bool>,
    pub(super) state: Option<StateSection>,
    // From here on, for bridged networks alone.
    pub(super) bridge: Option<Spanned<DeviceName>>,
    address: Option<Spanned<Addresses>>,
    flood: Option<Spanned<Flood>>,
    learning: Option<Spanned<bool>>,
    suppress: Option<Spanned<bool>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    #[default]
    L3,
    L2,
}

impl NetworkSection {
    /// The name.
    pub(super) fn name(&self) -> &str {
        &self.name.get_ref().0
    }

    /// Checks the section of `text`; `like_flannel`: its nodes are side by side with flannel's.
    pub(super) fn check(&self, text: &Text, like_flannel: bool) -> Result<NetworkConfig, Refused> {
        let vni = *self.vni.get_ref();
        let device = match &self.device {
            Some(device) => device.get_ref().0.clone(),
            None if like_flannel => flannel_device(vni),
            None => format!("vxlan{vni}"),
        };
        let kind = match self.kind {
            Word::L3 => self.refuse_segment(text).map(|()| Kind::L3)?,
            Word::L2 => Kind::L2(self.segment(text)?),
        };
        let Self { mtu, fastpath, source_check, flows: Flows(flows), malformed, other_vni, notrack, .. } =
            *self;
        let Self { ttl, tos, df, checksum, .. } = *self;
        Ok(NetworkConfig {
            name: self.name().to_owned(),
            kind,
            vni,
            port: self.port.as_ref().map_or(DEFAULT_PORT, |port| port.get_ref().0),
            mtu,
            device,
            fastpath,
            source_check,
            flows,
            malformed,
            other_vni,
            notrack,
            headers: WantedHeaders { ttl, tos, df, checksum },
        })
    }

    fn segment(&self, text: &Text) -> Result<Segment, Refused> {
        let yes = |flag: &Option<Spanned<bool>>, usual| flag.as_ref().map_or(usual, |flag| *flag.get_ref());
        Ok(Segment {
            bridge: self.bridge(text)?,
            addresses: self.address.as_ref().map(|list| list.get_ref().0.clone()).unwrap_or_default(),
            flood: self.flood.as_ref().map(|flood| *flood.get_ref()).unwrap_or_default(),
            learning: yes(&self.learning, true),
            suppress: yes(&self.suppress, false),
        })
    }

    fn bridge(&self, text: &Text) -> Result<String, Refused> {
        if let Some(bridge) = &self.bridge {
            return Ok(bridge.get_ref().0.clone());
        }
        let name = format!("br-{}", self.name());
        if is_device_name(&name) {
            return Ok(name);
        }
        // Cut without a word, two names might become one.
        let cut: String = name.chars().take(15).collect();
        let reason =
            format!("'{name}' is too long for a bridge's name: give one, such as bridge = \"{cut}\"");
        Err(text.refuse(Some(self.name.span()), reason))
    }

    /// A routed network has no use for what a segment has.
    fn refuse_segment(&self, text: &Text) -> Result<(), Refused> {
        fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
            value.as_ref().map(Spanned::span)
        }
        let keys = [
            ("bridge", span(&self.bridge)),
            ("address", span(&self.address)),
            ("flood", span(&self.flood)),
            ("learning", span(&self.learning)),
            ("suppress", span(&self.suppress)),
        ];
        let Some((key, span)) = keys.into_iter().find(|(_, span)| span.is_some()) else { return Ok(()) };
        let reason = format!("'{key}' is for kind = \"l2\", and network '{}' is routed", self.name());
        Err(text.refuse(span, reason))
    }
}
