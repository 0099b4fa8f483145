//! Networks whose device somebody else manages.

use std::ops::Range;
use std::sync::Arc;

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
pub(super) fn name_after(device: &str) -> String {
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
            let (node, state) = (Arc::clone(&node), StateConfig::Device);
            networks.push(View { node, network, pods: PodsConfig::default(), state });
        }
        Ok(Self { node, networks })
    }
}

impl NetworkSection {
    /// Checks the section of a network whose device somebody else manages.
    pub(super) fn check_accelerated(&self, text: &Text, all: Range<usize>) -> Result<NetworkConfig, Refused> {
        let Some(device) = &self.device else {
            return Err(
                text.refuse(Some(all), "kind = \"accelerate\" needs a 'device', such as \"flannel.1\"")
            );
        };
        let owners = [("vni", span(&self.vni)), ("port", span(&self.port)), ("mtu", span(&self.mtu))];
        let ours = [("notrack", span(&self.notrack)), ("state", self.state.as_ref().map(|_| all.clone()))];
        let at = |is_given: bool| is_given.then(|| all.clone());
        let headers = [
            ("ttl", at(self.ttl.is_some())),
            ("tos", at(self.tos.is_some())),
            ("df", at(self.df.is_some())),
            ("checksum", at(self.checksum.is_some())),
        ];
        let keys = owners.into_iter().chain(ours).chain(headers).chain(self.segment_keys());
        if let Some((key, span)) = keys.into_iter().find(|(_, span)| span.is_some()) {
            let reason = format!(
                "'{key}' is not for kind = \"accelerate\": somebody else manages {}, and what it is like is read from the kernel",
                device.get_ref().0
            );
            return Err(text.refuse(span, reason));
        }
        let Self { fastpath, flows: Flows(flows), malformed, other_vni, .. } = *self;
        let network = network(self.name(), &device.get_ref().0);
        let network = network.map_err(|reason| text.refuse(Some(device.span()), reason))?;
        let source_check = self.source_check.unwrap_or(SourceCheck::Count);
        Ok(NetworkConfig { fastpath, source_check, flows, malformed, other_vni, ..network })
    }

    /// Whether somebody else manages the device.
    pub(super) fn is_accelerated(&self) -> bool {
        self.kind == super::network::Word::Accelerate
    }
}
