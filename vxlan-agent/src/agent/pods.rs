//! What pods need of their node besides the overlay, put in place once that stands.

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use super::Agent;
use crate::cluster::Node;
use crate::net::Mtu;
use crate::node::{self, Facts, Masquerade};

/// Stands for the masquerade rules in the list of what failed.
const MASQUERADE: &str = "masquerade";

impl Agent {
    /// Masquerades, then writes the files: a pod that starts because of them finds all the rest.
    /// `look`: whether somebody may have taken the rules away.
    pub(super) fn set_up_for_pods(&mut self, look: bool, wanted: &mut BTreeSet<String>) {
        self.masquerade(look, wanted);
        // A pod has one interface for all IP versions.
        if let Some(mtu) = self.underlays.iter().map(|underlay| underlay.inner_mtu).min() {
            self.write_files(mtu, wanted);
        }
    }

    fn masquerade(&mut self, look: bool, wanted: &mut BTreeSet<String>) {
        let networks = &self.config.pods.networks;
        let desired = self.config.pods.masquerade.then(|| Masquerade {
            network: self.config.network.name.clone(),
            pods: networks.iter().map(|pods| (*pods, self.device_to(pods).to_owned())).collect(),
        });
        wanted.insert(MASQUERADE.to_owned());
        let now = Instant::now();
        let known = self.masquerade.as_ref() == Some(&desired);
        // Where nothing is wanted, an earlier agent's rules are looked for once.
        if known && (!look || desired.is_none()) || !self.retries.is_due(MASQUERADE, now) {
            return;
        }
        let done = match &desired {
            Some(rules) => rules.install(),
            None => node::remove_masquerade(&self.config.network.name),
        };
        match done {
            Ok(changed) => {
                if changed {
                    tracing::info!(on = desired.is_some(), "masquerade rules replaced");
                }
                self.masquerade = Some(desired);
                self.retries.held(MASQUERADE);
            }
            Err(error) => {
                self.masquerade = None;
                self.retries.failed(MASQUERADE.to_owned(), &error, now);
            }
        }
    }

    /// The vxlan device that leads to `pods` of other nodes.
    fn device_to(&self, pods: &IpNetwork) -> &str {
        let same_version = |own: &&Node| own.subnets.iter().any(|s| s.is_ipv4() == pods.is_ipv4());
        let own = self.cluster.owns().find(same_version).unwrap_or(&self.cluster.own);
        self.config.device_over(own.vtep)
    }

    fn write_files(&mut self, mtu: Mtu, wanted: &mut BTreeSet<String>) {
        let (config, subnets) = (&self.config.pods, self.cluster.own_subnets());
        let facts = Facts { config, networks: &config.networks, subnets: &subnets, mtu };
        for (path, content) in node::files(&facts) {
            let (key, now) = (format!("write {}", path.display()), Instant::now());
            wanted.insert(key.clone());
            if !self.retries.is_due(&key, now) {
                continue;
            }
            match node::write_if_other(&path, &content) {
                Ok(changed) => {
                    if changed {
                        tracing::info!(path = %path.display(), "written");
                    }
                    self.retries.held(&key);
                    self.files.insert(path, content);
                }
                Err(error) => self.retries.failed(key, &error, now),
            }
        }
    }
}
