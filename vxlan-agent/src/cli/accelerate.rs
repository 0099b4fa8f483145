//! `accelerate`: a configuration without a file.

use std::path::Path;

use anyhow::Context as _;

use crate::config::{Config, Fastpath, NodeConfig};
use crate::status::{self, ACCELERATE};
use crate::text::Text;

/// The section `[node]` of the file at `path`; without one, a node that nobody has said anything of.
fn node(path: Option<&Path>) -> anyhow::Result<NodeConfig> {
    Ok(match path {
        Some(path) => NodeConfig::read(path)?,
        None => NodeConfig::parse(&Text::new("the node", ""))?,
    })
}

/// What accelerates `devices`, on the node that the file at `path` describes.
pub(super) fn configuration(
    path: Option<&Path>,
    devices: &[String],
    fastpath: Fastpath,
) -> anyhow::Result<Config> {
    Config::accelerate(node(path)?, devices, fastpath).map_err(anyhow::Error::msg)
}

/// What an agent that was started so accelerates, or did last: it says so in its status, and nowhere else.
pub(super) fn running(path: Option<&Path>) -> Option<Config> {
    let read = || {
        let node = node(path)?;
        let status = status::read(&node.run_dir)?.context("no agent has run")?;
        let networks = &status.networks;
        anyhow::ensure!(!networks.is_empty() && networks.iter().all(|network| network.kind == ACCELERATE));
        let mode = networks.first().map_or(Fastpath::default(), |network| network.mode);
        let devices: Vec<String> = networks.iter().map(|network| network.configured.clone()).collect();
        Config::accelerate(node, &devices, mode).map_err(anyhow::Error::msg)
    };
    read().ok()
}
