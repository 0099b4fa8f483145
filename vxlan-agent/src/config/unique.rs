//! What no two networks of a node can share.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;

use toml::Spanned;

use super::network::NetworkSection;
use super::{StateConfig, View};
use crate::net::Vni;
use crate::text::{Refused, Text};

/// What the networks so far have claimed.
#[derive(Default)]
pub(super) struct Claims<'t> {
    names: HashMap<String, Owner<'t>>,
    ids: HashMap<(Vni, u16), Owner<'t>>,
    /// Devices and bridges, which share one name space.
    links: HashMap<String, (&'static str, Owner<'t>)>,
    /// Where this node is announced to the others.
    announcements: HashMap<String, Owner<'t>>,
}

/// A network, and where it claims something.
struct Owner<'t> {
    text: &'t Text,
    network: String,
    span: Range<usize>,
}

impl Owner<'_> {
    /// The network's name, and the place of the claim.
    fn describe(&self) -> String {
        format!("'{}' ({})", self.network, self.text.place(&self.span))
    }

    fn refuse(&self, reason: String) -> Refused {
        self.text.refuse(Some(self.span.clone()), reason)
    }
}

impl<'t> Claims<'t> {
    /// Claims what `view` needs, which is what `section` of `text` says.
    pub(super) fn take(
        &mut self,
        text: &'t Text,
        section: &'t Spanned<NetworkSection>,
        view: &View,
    ) -> Result<(), Refused> {
        let keys = section.get_ref();
        let owner = |span| Owner { text, network: keys.name(), span };
        let (name_span, whole) = (keys.name_span(section.span()), section.span());
        let network = &view.network;
        claim(&mut self.names, network.name.clone(), owner(name_span), |other| {
            format!("there are two networks '{}': the other one is at {}", network.name, other)
        })?;
        let span_of = |key: Option<Range<usize>>| key.unwrap_or_else(|| whole.clone());
        // Those of a device that somebody else manages are not known yet.
        if !network.is_accelerated() {
            let at = span_of(keys.vni.as_ref().map(Spanned::span));
            claim(&mut self.ids, (network.vni, network.port), owner(at), |other| {
                let (name, vni, port) = (&network.name, network.vni, network.port);
                format!("network '{name}' has VNI {vni} and port {port}, as network {other} has")
            })?;
        }
        let at = span_of(keys.device.as_ref().map(Spanned::span));
        self.take_link("device", &network.device, owner(at))?;
        if let Some(place) = view.state.place() {
            self.take_link("device over IPv6", place.device6, owner(section.span()))?;
        }
        if let Some(segment) = network.segment() {
            let at = span_of(keys.bridge.as_ref().map(Spanned::span));
            self.take_link("bridge", &segment.bridge, owner(at))?;
        }
        let Some(announcement) = announcement(&view.state) else { return Ok(()) };
        claim(&mut self.announcements, announcement.clone(), owner(section.span()), |other| {
            format!(
                "network '{}' announces this node in {announcement}, as network {other} does",
                network.name
            )
        })
    }

    fn take_link(&mut self, what: &'static str, name: &str, owner: Owner<'t>) -> Result<(), Refused> {
        match self.links.entry(name.to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert((what, owner));
                Ok(())
            }
            Entry::Occupied(entry) => {
                let (other_what, other) = entry.get();
                let other = other.describe();
                let network = &owner.network;
                Err(owner.refuse(format!(
                    "interface '{name}' is the {what} of network '{network}' and the {other_what} of network {other}"
                )))
            }
        }
    }
}

/// Claims `key` for `owner`; `reason` is given the network that has it already, and its place.
fn claim<'t, K: std::hash::Hash + Eq>(
    claims: &mut HashMap<K, Owner<'t>>,
    key: K,
    owner: Owner<'t>,
    reason: impl FnOnce(String) -> String,
) -> Result<(), Refused> {
    match claims.entry(key) {
        Entry::Vacant(entry) => {
            entry.insert(owner);
            Ok(())
        }
        Entry::Occupied(entry) => Err(owner.refuse(reason(entry.get().describe()))),
    }
}

/// Where a node that is described by `state` announces itself: two networks there would overwrite
/// each other.
fn announcement(state: &StateConfig) -> Option<String> {
    match state {
        StateConfig::File(_) | StateConfig::Device => None,
        StateConfig::Kubernetes(kubernetes) => {
            let by = kubernetes.kubeconfig.as_ref().map(|path| format!(" by way of {}", path.display()));
            Some(format!(
                "the Kubernetes annotations {}…{}",
                kubernetes.names.prefix(),
                by.unwrap_or_default()
            ))
        }
        StateConfig::Etcd(etcd) => {
            let mut endpoints: Vec<&str> = etcd.access.endpoints.iter().map(String::as_str).collect();
            endpoints.sort_unstable();
            Some(format!("the etcd keys {} at {}", etcd.access.prefix, endpoints.join(" ")))
        }
    }
}
