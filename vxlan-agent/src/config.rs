//! The agent's own configuration: a TOML file per node, most of it optional, and snippets next to it
//! with further networks.

mod accelerate;
mod etcd;
mod examine;
pub mod flannel;
mod network;
mod node;
mod pods;
mod segment;
mod snippets;
mod state;
mod unique;
mod values;

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use crate::net::Vni;
use crate::ownership;
use crate::text::{Refused, Text};

pub use etcd::EtcdConfig;
pub use examine::Examination;
pub use network::{Fastpath, Guard, Kind, NetworkConfig, SourceCheck};
pub(crate) use node::hostname;
pub use node::{Attach, NodeConfig, Xdp};
pub use pods::{Cni, DEFAULT_CNI_FILE, DEFAULT_SUBNET_FILE, PodsConfig};
pub use segment::{Flood, Segment};
pub use snippets::SNIPPETS;
pub use state::{KubernetesConfig, StateConfig};
pub(crate) use values::NetworkName;

pub(crate) use accelerate::name_after;
use network::NetworkSection;
use state::StateSection;
use unique::Claims;

/// Flannel's UDP port, so that a cluster can have nodes of both; the kernel's historical default.
/// IANA's number for VXLAN, 4789, is a matter of one line in the configuration.
pub const DEFAULT_PORT: u16 = 8472;

/// How many flows a table may hold: the kernel keeps some of its places back for every CPU, and an
/// entry takes about 250 bytes.
pub const FLOWS: RangeInclusive<u32> = 256..=16_777_216;

/// Where the configuration lies unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/vxlan-agent/config.toml";

/// A checked configuration: this node and all networks that it takes part in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: Arc<NodeConfig>,
    /// The networks, in the order of the files; at least one, unless there is `all`.
    pub networks: Vec<View>,
    /// What networks are like of devices that somebody else manages and that no other section names: each has one.
    /// It has neither name nor device.
    pub all: Option<NetworkConfig>,
}

/// What one network sees of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// This node, the same for all networks.
    pub node: Arc<NodeConfig>,
    /// The network.
    pub network: NetworkConfig,
    /// What pods need of this node besides the overlay. Pods are in the first routed network.
    pub pods: PodsConfig,
    /// Where the network's cluster state comes from.
    pub state: StateConfig,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSections {
    #[serde(default)]
    node: NodeConfig,
    #[serde(default)]
    network: Vec<Spanned<NetworkSection>>,
    pods: Option<Spanned<PodsConfig>>,
    state: Option<StateSection>,
}

impl From<View> for Config {
    fn from(view: View) -> Self {
        Self { node: Arc::clone(&view.node), networks: vec![view], all: None }
    }
}

impl Config {
    /// Reads and checks the file at `path`, and the snippets in [`SNIPPETS`] next to it.
    pub fn read(path: &Path) -> Result<Self, Refused> {
        let base = path.parent().unwrap_or(Path::new("."));
        let text = Text::read(path)?;
        Self::assemble(&text, &snippets::read(base)?, base, &hostname)
    }

    /// Checks `text`; a relative state path counts from `base`, `hostname` names a nameless node.
    pub fn parse(text: &Text, base: &Path, hostname: &dyn Fn() -> Option<String>) -> Result<Self, Refused> {
        Self::assemble(text, &[], base, hostname)
    }

    /// As [`Config::parse`], with further networks out of `snippets`, whose relative paths count
    /// from `base`, too.
    pub fn assemble(
        text: &Text,
        snippets: &[Text],
        base: &Path,
        hostname: &dyn Fn() -> Option<String>,
    ) -> Result<Self, Refused> {
        let FileSections { node, network, pods, state } = text.parse()?;
        let node = Arc::new(node.complete(text, hostname)?);
        let common = state.as_ref().map(|state| (text, state));
        let mut files = vec![(text, network)];
        for snippet in snippets {
            files.push((snippet, snippets::parse(snippet)?));
        }
        let mut assembly = Assembly::new(base, &node, common);
        for (file, section) in files.iter().flat_map(|(file, list)| list.iter().map(|one| (*file, one))) {
            assembly.take(file, section)?;
        }
        let Assembly { mut networks, all, .. } = assembly;
        if networks.is_empty() && all.is_none() {
            return Err(text.refuse(None, no_network()));
        }
        give_pods(text, pods, &mut networks)?;
        Ok(Self { node, networks, all })
    }

    /// Whether any network has a fast path, also of those that have yet to come.
    pub fn is_fast(&self) -> bool {
        let networks = self.networks.iter().map(|view| &view.network).chain(&self.all);
        networks.into_iter().any(|network| network.fastpath != Fastpath::Off)
    }

    /// Whether devices are accelerated that somebody else manages.
    pub fn has_accelerated(&self) -> bool {
        self.all.is_some() || self.networks.iter().any(|view| view.network.is_accelerated())
    }
}

fn no_network() -> String {
    format!("there is no [[network]]: give one with a name and a vni, here or in {SNIPPETS}")
}

/// A configuration that is being put together, one network after the other.
struct Assembly<'t> {
    base: &'t Path,
    node: &'t Arc<NodeConfig>,
    /// The state of networks that have none of their own.
    common: Option<(&'t Text, &'t StateSection)>,
    networks: Vec<View>,
    claims: Claims<'t>,
    all: Option<NetworkConfig>,
}

impl<'t> Assembly<'t> {
    fn new(base: &'t Path, node: &'t Arc<NodeConfig>, common: Option<(&'t Text, &'t StateSection)>) -> Self {
        Self { base, node, common, networks: vec![], claims: Claims::default(), all: None }
    }

    /// Takes in the network that `section` of `file` describes.
    fn take(&mut self, file: &'t Text, section: &'t Spanned<NetworkSection>) -> Result<(), Refused> {
        if section.get_ref().devices.is_some() {
            return accelerate::take_all(file, section, &mut self.all);
        }
        let view = View::new(file, section, self.common, self.base, self.node)?;
        self.claims.take(file, section, &view)?;
        self.networks.push(view);
        Ok(())
    }
}

/// Pods are in the first routed network.
fn give_pods(text: &Text, pods: Option<Spanned<PodsConfig>>, networks: &mut [View]) -> Result<(), Refused> {
    let Some(pods) = pods else { return Ok(()) };
    let span = pods.span();
    let pods = pods.into_inner().complete(text)?;
    let Some(routed) = networks.iter_mut().find(|view| view.network.kind == Kind::L3) else {
        let reason = "[pods] is for a network of kind \"l3\", and there is none";
        return Err(text.refuse(Some(span), reason));
    };
    routed.pods = pods;
    Ok(())
}

impl View {
    /// Checks `section` of `text`; `common` is the state of networks that have none of their own.
    fn new(
        text: &Text,
        spanned: &Spanned<NetworkSection>,
        common: Option<(&Text, &StateSection)>,
        base: &Path,
        node: &Arc<NodeConfig>,
    ) -> Result<Self, Refused> {
        let (section, span) = (spanned.get_ref(), spanned.span());
        let refuse = |reason| Err(text.refuse(Some(section.name_span(span.clone())), reason));
        if section.is_accelerated() {
            let network = section.check(text, span, false)?;
            return Ok(Self::beside(node, network));
        }
        let Some((home, state)) = section.state.as_ref().map(|own| (text, own)).or(common) else {
            return refuse(format!(
                "network '{0}' has no state: give it a [network.state], or give a [state] to all networks",
                section.name()
            ));
        };
        let network = section.check(text, span.clone(), state.is_like_flannel())?;
        if network.segment().is_some() && state.is_like_flannel() {
            return refuse(format!(
                "network '{}' is of kind \"l2\", and its nodes can only come from a file: give it a [network.state] with source = \"file\" and a path",
                network.name
            ));
        }
        let state = state.clone().check(home, base, network.vni, node.underlay.as_deref())?;
        Ok(Self { node: Arc::clone(node), network, pods: PodsConfig::default(), state })
    }

    /// Name of the vxlan device whose underlay address is `vtep`.
    pub fn device_over(&self, vtep: IpAddr) -> &str {
        match self.state.place() {
            Some(place) if vtep.is_ipv6() => place.device6,
            _ => &self.network.device,
        }
    }

    /// What a device without alias must be to be taken over: flannel's, in its place.
    pub fn adopts(&self) -> Option<Vni> {
        self.state.place().map(|_| self.network.vni)
    }

    /// Names and aliases of all vxlan devices of ours that the configuration may lead to.
    pub fn devices(&self) -> Vec<(&str, String)> {
        let network = &self.network;
        if network.is_accelerated() {
            return vec![];
        }
        let first = (network.device.as_str(), ownership::device_alias(&network.name));
        match self.state.place() {
            Some(place) => vec![first, (place.device6, ownership::device6_alias(&network.name))],
            None => vec![first],
        }
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
pub(crate) use reference::documented;
#[cfg(test)]
mod tests;
