//! Networks that are not configured any more, until nothing of them is left.
//!
//! What the maps hold of them vanishes with the first round, but for their names: an agent that ends half-way
//! leaves them to the next one, which finds them there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::time::Instant;

use super::Agent;
use super::machine::Machine;
use super::network::{Network, remove_device};
use super::pods::remove_file;
use crate::datapath::Pins;
use crate::net::IfIndex;
use crate::node::{self, Guard};
use crate::{ownership, status};

/// Stands for the nf_tables table in the list of what failed.
const TABLE: &str = "remove the nf_tables table";

/// A network that is not configured any more.
pub(super) struct Leaving {
    name: String,
    /// Its devices, by the aliases that they should carry.
    devices: BTreeMap<String, (String, IfIndex)>,
    /// Files for pods, as they were last written.
    files: BTreeMap<PathBuf, String>,
    /// Who may send until the devices are gone.
    guard: Option<Arc<Guard>>,
}

impl From<Network> for Leaving {
    fn from(network: Network) -> Self {
        let found = network.config.devices().into_iter();
        let devices =
            found.filter_map(|(name, alias)| Some((alias, (name.to_owned(), *network.devices.get(name)?))));
        let (name, devices) = (network.name().to_owned(), devices.collect());
        Self { name, devices, files: network.files, guard: network.guard.flatten() }
    }
}

impl Leaving {
    /// One of which nothing is known but the name.
    pub(super) fn named(name: &str) -> Self {
        Self { name: name.to_owned(), devices: BTreeMap::new(), files: BTreeMap::new(), guard: None }
    }

    pub(super) fn guard(&self) -> Option<&Arc<Guard>> {
        self.guard.as_ref()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Removes what is left; whether anything was changed, and whether nothing is left now.
    async fn leave(&self, machine: &mut Machine, wanted: &mut BTreeSet<String>) -> (bool, bool) {
        let (mut changed, mut gone) = (false, true);
        for (at, alias) in ownership::device_aliases(&self.name).into_iter().enumerate() {
            let (name, held) = match self.devices.get(&alias) {
                Some((name, index)) => (name.as_str(), Some(*index)),
                None => ("", None),
            };
            let removed = remove_device(machine, &self.name, (name, alias, held), at == 0, wanted).await;
            changed |= removed.any();
            gone &= removed.all();
        }
        let done = gone && self.remove_table(machine, wanted);
        if done {
            let ours = self.files.iter().filter(|(path, _)| !machine.files.contains(*path));
            ours.for_each(|(path, content)| _ = remove_file(path, content));
        }
        (changed, done)
    }

    fn remove_table(&self, machine: &mut Machine, wanted: &mut BTreeSet<String>) -> bool {
        let (key, now) = (format!("{}: {TABLE}", self.name), Instant::now());
        wanted.insert(key.clone());
        if !machine.retries.is_due(&key, now) {
            return false;
        }
        if !machine.tunnels.named.contains(&self.name) {
            return true;
        }
        match node::remove_table(&ownership::nft_table(&self.name)) {
            Ok(_) => {
                machine.tunnels.named.remove(&self.name);
                machine.retries.held(&key);
            }
            Err(error) => {
                machine.retries.failed(key, &error, now);
                return false;
            }
        }
        true
    }
}

impl Agent {
    /// Finds networks that an earlier agent ran with these pins, and that are not configured any more.
    pub(super) fn find_leftovers(&mut self) {
        let names = Pins::open(&self.node.pins()).and_then(|pins| pins.networks()).unwrap_or_default();
        let last = status::read(&self.node.run_dir).ok().flatten();
        for name in names.iter().filter(|name| !self.machine.configured.contains(*name)) {
            tracing::info!(network = name, "not configured any more: removed");
            let networks = last.iter().flat_map(|status| &status.networks);
            let files = networks.filter(|network| network.name == *name).map(|network| network.files.clone());
            let files = files.flatten().collect();
            self.leaving.push(Leaving { files, ..Leaving::named(name) });
        }
    }

    /// Removes what is left of networks that are not configured any more; whether anything was changed.
    pub(super) async fn leave(&mut self, wanted: &mut BTreeSet<String>) -> bool {
        let mut changed = false;
        for leaving in std::mem::take(&mut self.leaving) {
            let (removed, done) = leaving.leave(&mut self.machine, wanted).await;
            changed |= removed || done;
            if done {
                tracing::info!(network = leaving.name(), "nothing is left of the network");
            } else {
                self.leaving.push(leaving);
            }
        }
        changed
    }
}
