//! What pods need of their node besides the overlay, put in place once that stands.

use std::collections::BTreeSet;
use std::path::Path;

use tokio::time::Instant;

use super::machine::Machine;
use super::network::Network;
use crate::net::Mtu;
use crate::node::{self, Facts};

impl Network {
    /// The files, after all the rest: a pod starts because of them.
    pub(super) fn set_up_for_pods(&mut self, machine: &mut Machine, wanted: &mut BTreeSet<String>) {
        // A pod has one interface for all IP versions.
        if let Some(mtu) = self.underlays.iter().map(|underlay| underlay.inner_mtu).min() {
            self.write_files(machine, mtu, wanted);
        }
    }

    fn write_files(&mut self, machine: &mut Machine, mtu: Mtu, wanted: &mut BTreeSet<String>) {
        let (config, subnets) = (&self.config.pods, self.cluster.own_subnets());
        let facts = Facts { config, networks: &config.networks, subnets: &subnets, mtu };
        let files = node::files(&facts);
        self.files.retain(|path, content| {
            let stays = files.iter().any(|(wanted, _)| wanted == path) || machine.files.contains(path);
            stays || !remove_file(path, content)
        });
        for (path, content) in files {
            let (key, now) = (format!("write {}", path.display()), Instant::now());
            wanted.insert(key.clone());
            if !machine.retries.is_due(&key, now) {
                continue;
            }
            match node::write_if_other(&path, &content) {
                Ok(changed) => {
                    if changed {
                        tracing::info!(path = %path.display(), "written");
                    }
                    machine.retries.held(&key);
                    self.files.insert(path, content);
                }
                Err(error) => machine.retries.failed(key, &error, now),
            }
        }
    }
}

/// Removes a file that is still as we wrote it; whether nothing more is to be done about it.
pub(super) fn remove_file(path: &Path, content: &str) -> bool {
    match node::remove_if_same(path, content) {
        Ok(removed) => {
            if removed {
                tracing::info!(path = %path.display(), "removed");
            }
            true
        }
        Err(error) => {
            tracing::warn!("{error:#}");
            false
        }
    }
}
