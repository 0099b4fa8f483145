//! Networks whose device somebody else manages.

use std::ops::Range;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::network::{NetworkSection, span};
use super::state::StateConfig;
use super::values::{Flows, is_device_name};
use super::{
    Config, DEFAULT_PORT, Fastpath, Guard, Kind, NetworkConfig, NodeConfig, PodsConfig, SourceCheck, View,
};
use crate::kernel::WantedHeaders;
use crate::net::Vni;
use crate::text::{Refused, Text};

/// The name of a network after its device: what names may not have becomes a hyphen.
pub(crate) fn name_after(device: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    device.chars().map(plain).collect()
}

/// The network of the device `device`, with all else as it usually is.
fn network(name: String, device: &str) -> Result<NetworkConfig, String> {
    Ok(NetworkConfig {
        name,
        kind: Kind::Accelerate,
        // Those of the device, once it has been seen.
        vni: Vni::try_from(1)?,
        port: DEFAULT_PORT,
        mtu: None,
        device: device.to_owned(),
        fastpath: Fastpath::default(),
        // No stricter than the owner.
        source_check: SourceCheck::Count,
        flows: Flows::default().0,
        malformed: Guard::default(),
        other_vni: Guard::default(),
        notrack: false,
        direct_routing: false,
        headers: WantedHeaders::default(),
    })
}

impl Config {
    /// The configuration that accelerates `devices` on `node`, and does nothing else.
    ///
    /// # Errors
    /// One sentence: what is wrong with a device's name.
    pub fn accelerate(node: NodeConfig, devices: &[String], fastpath: Fastpath) -> Result<Self, String> {
        let node = Arc::new(node);
        let mut networks: Vec<View> = vec![];
        for device in devices {
            if !is_device_name(device) {
                return Err(format!("'{}' is not an interface name", device.escape_debug()));
            }
            let name = name_after(device);
            if networks.iter().any(|view| view.network.name == name) {
                return Err(format!(
                    "{device} is given twice, or another device's name differs in signs only"
                ));
            }
            let network = NetworkConfig { fastpath, ..network(name, device)? };
            networks.push(View::beside(&node, network));
        }
        Ok(Self { node, networks, all: None })
    }

    /// The configuration that accelerates all devices that somebody else manages, and does nothing else.
    ///
    /// # Errors
    /// There is no reason for one.
    pub fn accelerate_all(node: NodeConfig, fastpath: Fastpath) -> Result<Self, String> {
        let all = NetworkConfig { fastpath, ..network(String::new(), "")? };
        Ok(Self { node: Arc::new(node), networks: vec![], all: Some(all) })
    }
}

impl View {
    /// What `network` sees, whose device somebody else manages.
    pub fn beside(node: &Arc<NodeConfig>, network: NetworkConfig) -> Self {
        let (node, state) = (Arc::clone(node), StateConfig::Device);
        Self { node, network, pods: PodsConfig::default(), state }
    }
}

/// Which devices, if not a single one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum Devices {
    /// All that somebody else manages.
    All,
}

impl TryFrom<String> for Devices {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        if word == "all" {
            return Ok(Self::All);
        }
        let word = word.escape_debug();
        Err(format!("'{word}' is not \"all\": a single device is named by 'device'"))
    }
}

/// Takes the section of all devices that somebody else manages, of which there is one.
pub(super) fn take_all(
    text: &Text,
    section: &Spanned<NetworkSection>,
    all: &mut Option<NetworkConfig>,
) -> Result<(), Refused> {
    let checked = section.get_ref().check_all(text, section.span())?;
    if all.replace(checked).is_some() {
        return Err(text.refuse(Some(section.span()), "there are two sections with devices = \"all\""));
    }
    Ok(())
}

impl NetworkSection {
    /// Checks the section of a network whose device somebody else manages.
    pub(super) fn check_accelerated(&self, text: &Text, all: Range<usize>) -> Result<NetworkConfig, Refused> {
        let Some(device) = &self.device else {
            return Err(text.refuse(
                Some(all),
                "kind = \"accelerate\" needs a 'device', such as \"flannel.1\", or devices = \"all\"",
            ));
        };
        self.refuse_owners_keys(text, &all, &device.get_ref().0)?;
        let network = network(self.name(), &device.get_ref().0);
        let network = network.map_err(|reason| text.refuse(Some(device.span()), reason))?;
        Ok(self.strict(network))
    }

    /// Checks the section of all such devices: what it says is said of each.
    fn check_all(&self, text: &Text, all: Range<usize>) -> Result<NetworkConfig, Refused> {
        let at = span(&self.devices);
        if !self.is_accelerated() {
            let reason = "'devices' is for kind = \"accelerate\": the device of another network is its own";
            return Err(text.refuse(at, reason));
        }
        let single = [
            ("device", span(&self.device), "'device' and 'devices' exclude each other: give one of them"),
            (
                "name",
                span(&self.name),
                "'name' is for one network: each of all devices has one that is named after it",
            ),
        ];
        if let Some((_, at, reason)) = single.into_iter().find(|(_, at, _)| at.is_some()) {
            return Err(text.refuse(at, reason));
        }
        self.refuse_owners_keys(text, &all, "them")?;
        let network = network(String::new(), "").map_err(|reason| text.refuse(at, reason))?;
        Ok(self.strict(network))
    }

    /// Refuses what the kernel says, and not a configuration; `devices`: of what.
    fn refuse_owners_keys(&self, text: &Text, all: &Range<usize>, devices: &str) -> Result<(), Refused> {
        let owners = [("vni", span(&self.vni)), ("port", span(&self.port)), ("mtu", span(&self.mtu))];
        let ours = [
            ("notrack", span(&self.notrack)),
            ("direct_routing", span(&self.direct_routing)),
            ("state", self.state.as_ref().map(|_| all.clone())),
        ];
        let at = |is_given: bool| is_given.then(|| all.clone());
        let headers =
            [("ttl", at(self.ttl.is_some())), ("tos", at(self.tos.is_some())), ("df", at(self.df.is_some()))];
        let keys = owners.into_iter().chain(ours).chain(headers).chain(self.segment_keys());
        let Some((key, span)) = keys.into_iter().find(|(_, span)| span.is_some()) else { return Ok(()) };
        let reason = format!(
            "'{key}' is not for kind = \"accelerate\": somebody else manages {devices}, and what it is like is read from the kernel",
        );
        Err(text.refuse(span, reason))
    }

    /// `network` with what the section says of the fast path.
    fn strict(&self, network: NetworkConfig) -> NetworkConfig {
        let Self { fastpath, flows: Flows(flows), malformed, other_vni, .. } = *self;
        let source_check = self.source_check.unwrap_or(SourceCheck::Count);
        let headers = WantedHeaders { checksum: self.checksum, ..WantedHeaders::default() };
        NetworkConfig { fastpath, source_check, flows, malformed, other_vni, headers, ..network }
    }

    /// Whether somebody else manages the device.
    pub(super) fn is_accelerated(&self) -> bool {
        self.kind == super::network::Word::Accelerate
    }
}
