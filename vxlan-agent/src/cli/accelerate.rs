//! `accelerate`: a configuration without a file.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;

use crate::config::{Config, Fastpath, NetworkConfig, NodeConfig, View};
use crate::status::{self, ACCELERATE};
use crate::text::Text;

/// The section `[node]` of the file at `path`; without one, a node that nobody has said anything of.
fn node(path: Option<&Path>) -> anyhow::Result<NodeConfig> {
    Ok(match path {
        Some(path) => NodeConfig::read(path)?,
        None => NodeConfig::parse(&Text::new("the node", ""))?,
    })
}

/// What accelerates `devices`, or all, on the node that the file at `path` describes.
pub(super) fn configuration(
    path: Option<&Path>,
    devices: Option<&[String]>,
    fastpath: Fastpath,
) -> anyhow::Result<Config> {
    let node = node(path)?;
    let config = match devices {
        Some(devices) => Config::accelerate(node, devices, fastpath),
        None => Config::accelerate_all(node, fastpath),
    };
    config.map_err(anyhow::Error::msg)
}

/// What an agent that was started so accelerates, or did last: it says so in its status, and nowhere else.
pub(super) fn running(path: Option<&Path>) -> Option<Config> {
    let read = || {
        let node = node(path)?;
        let status = status::read(&node.run_dir)?.context("no agent has run")?;
        let networks = &status.networks;
        anyhow::ensure!(networks.iter().all(|network| network.kind == ACCELERATE));
        if let Some(every) = &status.every {
            return Config::accelerate_all(node, every.mode).map_err(anyhow::Error::msg);
        }
        anyhow::ensure!(!networks.is_empty());
        let mode = networks.first().map_or(Fastpath::default(), |network| network.mode);
        let devices: Vec<String> = networks.iter().map(|network| network.configured.clone()).collect();
        Config::accelerate(node, &devices, mode).map_err(anyhow::Error::msg)
    };
    read().ok()
}

/// `config` with the networks of all devices, if it wants them: which there are, or were last, the agent's status says.
pub(super) fn with_all(mut config: Config) -> Config {
    let Some(like) = &config.all else { return config };
    let status = status::read(&config.node.run_dir).ok().flatten();
    let known: BTreeSet<String> = config.networks.iter().map(|view| view.network.name.clone()).collect();
    for network in status.into_iter().flat_map(|status| status.networks) {
        if network.kind != ACCELERATE || known.contains(&network.name) {
            continue;
        }
        let (name, device) = (network.name, network.configured);
        let network = NetworkConfig { name, device, ..like.clone() };
        config.networks.push(View::beside(&config.node, network));
    }
    config
}
