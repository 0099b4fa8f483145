//! What a command is about: the configuration, or where that is refused, what runs all the same.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vxlan_ebpf_common::maps::NetworkId;

use super::accelerate;
use crate::config::flannel::{Flannel, NET_CONF, ThisMachine};
use crate::config::{Config, DEFAULT_PATH, NodeConfig, View};
use crate::datapath::Pins;
use crate::ownership::{DEFAULT_PIN_DIR, default_run_dir};
use crate::status::{self, ACCELERATE, NetworkStatus, Status};
use crate::text::Text;

/// The configuration that a command is about.
pub(super) fn configuration(given: Option<&Path>) -> anyhow::Result<Config> {
    let ours = Path::new(DEFAULT_PATH);
    if given.is_none() && !ours.exists() {
        if let Some(config) = accelerate::running(None) {
            return Ok(config);
        }
        let kubernetes = Path::new(NET_CONF).exists().then(|| "--kube-subnet-mgr".to_owned());
        // In flannel's place without Kubernetes there is no file: that an agent has run has to do.
        if kubernetes.is_some() || default_run_dir(Path::new(DEFAULT_PIN_DIR)).is_dir() {
            return Ok(Flannel::translate(kubernetes, &ThisMachine)
                .map_err(anyhow::Error::msg)?
                .config
                .into());
        }
    }
    let path = given.unwrap_or(ours);
    Config::read(path).or_else(|refused| accelerate::running(Some(path)).ok_or_else(|| refused.into()))
}

/// The file that [`configuration`] comes from, if it is one of ours.
pub(super) fn file(given: Option<&Path>) -> Option<PathBuf> {
    let ours = Path::new(DEFAULT_PATH);
    given.or_else(|| ours.exists().then_some(ours)).map(Path::to_owned)
}

/// As [`configuration`]. The agent goes on where that is refused, and so do commands: they are about what its status
/// and its pins know, and there is a reason why.
fn configured_or_running(given: Option<&Path>) -> anyhow::Result<(Config, Option<String>)> {
    let refused = match configuration(given) {
        Ok(config) => return Ok((config, None)),
        Err(refused) => refused,
    };
    let node = file(given).and_then(|path| NodeConfig::salvage(&path).ok());
    match node.and_then(as_it_runs) {
        Some(config) => Ok((config, Some(format!("{refused:#}")))),
        None => Err(refused),
    }
}

/// What a command about the whole node is about; if that is not the configuration, standard error says why.
pub(super) fn whole(given: Option<&Path>) -> anyhow::Result<Config> {
    let (config, refused) = configured_or_running(given)?;
    warn(refused.as_deref());
    Ok(config)
}

fn warn(refused: Option<&str>) {
    if let Some(reason) = refused {
        let _ = writeln!(
            std::io::stderr(),
            "vxlan-agent: warning: the configuration is refused, so this is about what runs: {reason}"
        );
    }
}

/// The networks that an agent has written down as running; `None` if none ever ran on this node.
fn as_it_runs(node: NodeConfig) -> Option<Config> {
    let status: Option<Status> = status::read(&node.run_dir).ok().flatten();
    if status.is_none() && !node.pins().is_dir() {
        return None;
    }
    let node = Arc::new(node);
    let networks = status.iter().flat_map(|status| &status.networks);
    let networks = networks.filter_map(|network| view(&node, network)).collect();
    Some(Config { node, networks, all: None })
}

/// As much of a network's configuration as finds it again on this node.
fn view(node: &Arc<NodeConfig>, network: &NetworkStatus) -> Option<View> {
    let NetworkStatus { name, kind, device, configured, .. } = network;
    let mut section = format!("[[network]]\nname = {name:?}\nkind = {kind:?}\n");
    if kind == ACCELERATE {
        section += &format!("device = {configured:?}\n");
    } else {
        let (vni, port) = (network.vni?, network.port?);
        section += &format!("vni = {vni}\nport = {port}\ndevice = {device:?}\n");
        section += &network.bridge.iter().map(|b| format!("bridge = {:?}\n", b.name)).collect::<String>();
        // Where its state came from, nobody asks; with Kubernetes' there may be a device for IPv6, too.
        section += match network.bridge {
            Some(_) => "[network.state]\nsource = \"file\"\npath = \"none\"\n",
            None => "[network.state]\nsource = \"kubernetes\"\n",
        };
    }
    let text = Text::new(status::file(&node.run_dir), section);
    let config = Config::parse(&text, Path::new("/"), &|| Some(node.name.clone())).ok()?;
    let view = config.networks.into_iter().next()?;
    Some(View { node: Arc::clone(node), ..view })
}

/// What a command looks at: the configuration, and which of its networks.
pub(super) struct Subject {
    pub(super) config: Config,
    /// Whether these are all.
    pub(super) all: bool,
    /// Why it is not the configuration, but what runs.
    pub(super) refused: Option<String>,
    names: Vec<String>,
}

impl Subject {
    /// What is configured, or where that is refused, what runs; of several networks the one called `name`, if that
    /// is given.
    pub(super) fn find(given: Option<&Path>, name: Option<&str>) -> anyhow::Result<Self> {
        let (config, refused) = configured_or_running(given)?;
        let mut config = accelerate::with_all(config);
        let mut names: Vec<String> = config.networks.iter().map(|view| view.network.name.clone()).collect();
        if names.is_empty() {
            let pinned = Pins::open(&config.node.pins()).and_then(|pins| pins.networks());
            names = pinned.unwrap_or_default();
        }
        let Some(name) = name else { return Ok(Self { config, all: true, refused, names }) };
        if !names.iter().any(|known| known == name) {
            let place = if refused.is_some() { "in what runs" } else { "in the configuration" };
            anyhow::bail!("there is no network '{name}' {place}: it has {}", names.join(", "));
        }
        config.networks.retain(|view| view.network.name == name);
        Ok(Self { config, all: false, refused, names: vec![name.to_owned()] })
    }

    /// Says on standard error if this is not the configuration.
    pub(super) fn warned(self) -> Self {
        warn(self.refused.as_deref());
        self
    }

    pub(super) fn pins(&self) -> anyhow::Result<Pins> {
        Pins::open(&self.config.node.pins())
    }

    /// Its networks and their numbers in the maps. Of all of them, those that do not run yet are left out.
    ///
    /// # Errors
    /// The maps know none of them.
    pub(super) fn numbered(&self, pins: &Pins) -> anyhow::Result<Vec<(&str, NetworkId)>> {
        let (mut found, mut unknown) = (vec![], None);
        for name in self.networks() {
            match pins.network(name) {
                Ok(id) => found.push((name, id)),
                Err(error) => unknown = unknown.or(Some(error)),
            }
        }
        unknown.filter(|_| found.is_empty()).map_or(Ok(found), Err)
    }

    pub(super) fn networks(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::{network, status};
    use crate::status::{BridgeStatus, StatusFile};

    fn node(dir: &Path) -> NodeConfig {
        NodeConfig { run_dir: dir.to_owned(), pin_dir: "/sys/fs/bpf/none".into(), ..NodeConfig::default() }
    }

    #[test]
    fn where_the_configuration_is_refused_a_network_is_found_by_what_the_agent_wrote_down() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(as_it_runs(node(dir.path())), None, "nothing ever ran");
        let bridge = BridgeStatus { name: "br-blue".into(), ours: true, cautions: vec![] };
        let blue = NetworkStatus { kind: "l2".into(), bridge: Some(bridge), ..network("blue") };
        let beside = NetworkStatus { kind: "accelerate".into(), vni: None, port: None, ..network("beside") };
        let written = Status { networks: vec![network("pods"), blue, beside], ..status() };
        StatusFile::new(dir.path()).write(written).expect("written");
        let config = as_it_runs(node(dir.path())).expect("what runs");
        let kinds: Vec<_> = config.networks.iter().map(|view| view.network.kind.word()).collect();
        assert_eq!(kinds, ["l3", "l2", "accelerate"]);
        let devices: Vec<_> = config.networks.iter().flat_map(View::devices).collect();
        assert_eq!(devices[0].0, "vx-pods");
        assert_eq!(config.networks[1].network.segment().map(|s| s.bridge.as_str()), Some("br-blue"));
    }
}
