//! A container runtime as far as CNI goes: runs the plugins of a configuration that an agent wrote.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Netns;

/// Where Debian's `containernetworking-plugins` has them.
const PLUGINS: &str = "/usr/lib/cni";

/// The plugins of one node's configuration.
pub struct Cni<'a> {
    node: &'a Netns,
    list: Value,
}

impl<'a> Cni<'a> {
    /// Reads the configuration at `path`. Reservations go below `state`: the nodes of a lab share
    /// one file system.
    ///
    /// # Errors
    /// There is none, or it is no list of plugins.
    pub fn open(node: &'a Netns, path: &Path, state: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut list: Value = serde_json::from_str(&text)?;
        ensure!(list["plugins"].is_array(), "no list of plugins: {list}");
        list["plugins"][0]["ipam"]["dataDir"] = json!(state);
        Ok(Self { node, list })
    }

    /// Makes a namespace and connects it; the result is what the last plugin said.
    ///
    /// # Errors
    /// A plugin refuses.
    pub fn add(&self, namespace: &str) -> Result<(Netns, Value)> {
        self.node.sh(&format!("ip netns add {namespace}"))?;
        let pod = Netns::open(namespace)?;
        let mut result = Value::Null;
        for plugin in self.plugins() {
            let said = self.call("ADD", namespace, plugin, &result)?;
            result = serde_json::from_str(&said).with_context(|| format!("no result: {said}"))?;
        }
        Ok((pod, result))
    }

    /// Has every plugin check that the pod is connected as `result` says.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, namespace: &str, result: &Value) -> Result<()> {
        self.plugins().try_for_each(|plugin| self.call("CHECK", namespace, plugin, result).map(drop))
    }

    /// Disconnects the pod, in reverse order; its namespace stays.
    ///
    /// # Errors
    /// A plugin refuses.
    pub fn delete(&self, namespace: &str, result: &Value) -> Result<()> {
        let plugins: Vec<&Value> = self.plugins().collect();
        plugins.into_iter().rev().try_for_each(|plugin| self.call("DEL", namespace, plugin, result).map(drop))
    }

    fn plugins(&self) -> impl Iterator<Item = &Value> {
        self.list["plugins"].as_array().into_iter().flatten()
    }

    /// As a runtime calls a plugin: the network's name and version, and what came before, go into
    /// the plugin's own configuration.
    fn call(&self, command: &str, namespace: &str, plugin: &Value, before: &Value) -> Result<String> {
        let kind = plugin["type"].as_str().context("a plugin without a type")?;
        let mut input = plugin.clone();
        input["name"] = self.list["name"].clone();
        input["cniVersion"] = self.list["cniVersion"].clone();
        if !before.is_null() {
            input["prevResult"] = before.clone();
        }
        let program = PathBuf::from(PLUGINS).join(kind);
        let arguments = [
            format!("CNI_COMMAND={command}"),
            format!("CNI_CONTAINERID={namespace}"),
            format!("CNI_NETNS=/run/netns/{namespace}"),
            "CNI_IFNAME=eth0".to_owned(),
            format!("CNI_PATH={PLUGINS}"),
            program.display().to_string(),
        ];
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.node.feed("env", &arguments, &input.to_string()).with_context(|| format!("{command} of {kind}"))
    }
}
