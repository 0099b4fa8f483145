//! The sections `[[network]]`.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use toml::Spanned;

use super::DEFAULT_PORT;
use super::accelerate::{self, Devices};
use super::segment::{Addresses, Flood, Segment};
use super::state::{StateSection, flannel_device};
use super::values::{DeviceName, Flows, NetworkName, Port, WantedMtu, is_device_name};
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
    /// Its VNI. Where somebody else manages the device, this and the port are the device's, once it has been seen.
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
    /// Whether nodes on the same link are reached without a tunnel.
    pub direct_routing: bool,
    /// How the vxlan device makes outer headers.
    pub headers: WantedHeaders,
}

impl NetworkConfig {
    /// What a bridged network has besides; `None` if this one is routed.
    pub fn segment(&self) -> Option<&Segment> {
        match &self.kind {
            Kind::L3 | Kind::Accelerate => None,
            Kind::L2(segment) => Some(segment),
        }
    }

    /// Whether somebody else manages the device.
    pub fn is_accelerated(&self) -> bool {
        self.kind == Kind::Accelerate
    }
}

/// Whether packets are routed to other nodes, or frames bridged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every node has subnets, and packets to them are routed to it.
    L3,
    /// All nodes are one Ethernet segment.
    L2(Segment),
    /// Somebody else manages the device and what belongs to it: packets take a short cut beside it.
    Accelerate,
}

impl Kind {
    /// As it is written.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::L3 => "l3",
            Self::L2(_) => "l2",
            Self::Accelerate => "accelerate",
        }
    }
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

impl Fastpath {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Direct => "direct",
            Self::Verified => "verified",
        }
    }
}

/// What becomes of packets that fail a source check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceCheck {
    /// Counted and dropped.
    #[default]
    Drop,
    /// Counted and left to the kernel.
    #[serde(alias = "off")]
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
    pub(super) name: Option<Spanned<NetworkName>>,
    #[serde(default)]
    pub(super) kind: Word,
    pub(super) vni: Option<Spanned<Vni>>,
    pub(super) port: Option<Spanned<Port>>,
    pub(super) mtu: Option<Spanned<WantedMtu>>,
    pub(super) device: Option<Spanned<DeviceName>>,
    pub(super) devices: Option<Spanned<Devices>>,
    #[serde(default)]
    pub(super) fastpath: Fastpath,
    pub(super) source_check: Option<SourceCheck>,
    #[serde(default)]
    pub(super) flows: Flows,
    #[serde(default)]
    pub(super) malformed: Guard,
    #[serde(default)]
    pub(super) other_vni: Guard,
    pub(super) notrack: Option<Spanned<bool>>,
    pub(super) direct_routing: Option<Spanned<bool>>,
    #[serde(default, deserialize_with = "kernel::ttl")]
    pub(super) ttl: Option<Field>,
    #[serde(default, deserialize_with = "kernel::tos")]
    pub(super) tos: Option<Field>,
    pub(super) df: Option<DontFragment>,
    pub(super) checksum: Option<bool>,
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
pub(super) enum Word {
    #[default]
    L3,
    L2,
    Accelerate,
}

impl NetworkSection {
    /// The name; where somebody else manages the device, that of the device will do.
    pub(super) fn name(&self) -> String {
        match (&self.name, &self.device) {
            (Some(name), _) => name.get_ref().0.clone(),
            (None, Some(device)) => accelerate::name_after(&device.get_ref().0),
            (None, None) => String::new(),
        }
    }

    /// Where it is called so; the whole section has `span`.
    pub(super) fn name_span(&self, span: Range<usize>) -> Range<usize> {
        let device = || self.device.as_ref().map(Spanned::span);
        self.name.as_ref().map(Spanned::span).or_else(device).unwrap_or(span)
    }

    /// Checks the section of `text`; `like_flannel`: its nodes are side by side with flannel's.
    pub(super) fn check(
        &self,
        text: &Text,
        span: Range<usize>,
        like_flannel: bool,
    ) -> Result<NetworkConfig, Refused> {
        if self.kind == Word::Accelerate {
            return self.check_accelerated(text, span);
        }
        let missing = |key| text.refuse(Some(span.clone()), format!("missing field `{key}`"));
        let vni = *self.vni.as_ref().ok_or_else(|| missing("vni"))?.get_ref();
        self.name.as_ref().ok_or_else(|| missing("name"))?;
        let device = match &self.device {
            Some(device) => device.get_ref().0.clone(),
            None if like_flannel => flannel_device(vni),
            None => format!("vxlan{vni}"),
        };
        let kind = match self.kind {
            Word::L3 => self.refuse_segment(text).map(|()| Kind::L3)?,
            Word::L2 | Word::Accelerate => Kind::L2(self.segment(text)?),
        };
        let Self { fastpath, flows: Flows(flows), malformed, other_vni, .. } = *self;
        let Self { ttl, tos, df, checksum, .. } = *self;
        Ok(NetworkConfig {
            name: self.name(),
            kind,
            vni,
            port: self.port.as_ref().map_or(DEFAULT_PORT, |port| port.get_ref().0),
            mtu: self.mtu.as_ref().and_then(|mtu| mtu.get_ref().0),
            device,
            fastpath,
            source_check: self.source_check.unwrap_or_default(),
            flows,
            malformed,
            other_vni,
            notrack: self.notrack.as_ref().is_some_and(|notrack| *notrack.get_ref()),
            direct_routing: self.direct_routing.as_ref().is_some_and(|direct| *direct.get_ref()),
            headers: WantedHeaders { ttl, tos, df, checksum },
        })
    }

    fn segment(&self, text: &Text) -> Result<Segment, Refused> {
        if let Some(direct) = &self.direct_routing {
            let name = self.name();
            let reason = format!(
                "'direct_routing' is for kind = \"l3\": network '{name}' bridges frames, and a host without a tunnel routes packets"
            );
            return Err(text.refuse(Some(direct.span()), reason));
        }
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
        Err(text.refuse(self.name.as_ref().map(Spanned::span), reason))
    }

    /// Keys of a segment, and where they are given.
    pub(super) fn segment_keys(&self) -> [(&'static str, Option<Range<usize>>); 5] {
        [
            ("bridge", span(&self.bridge)),
            ("address", span(&self.address)),
            ("flood", span(&self.flood)),
            ("learning", span(&self.learning)),
            ("suppress", span(&self.suppress)),
        ]
    }

    /// A routed network has no use for what a segment has.
    fn refuse_segment(&self, text: &Text) -> Result<(), Refused> {
        let Some((key, span)) = self.segment_keys().into_iter().find(|(_, span)| span.is_some()) else {
            return Ok(());
        };
        let reason = format!("'{key}' is for kind = \"l2\", and network '{}' is routed", self.name());
        Err(text.refuse(span, reason))
    }
}

/// Where a key is given, if it is.
pub(super) fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
    value.as_ref().map(Spanned::span)
}
