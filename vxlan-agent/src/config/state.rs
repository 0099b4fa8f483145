//! The section `[state]`: where cluster state comes from.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use crate::local::Choice;
use crate::net::Vni;
use crate::source::kubernetes::annotations::Names;
use crate::text::{Refused, Text};

/// Where cluster state comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateConfig {
    /// A file, the same on every node.
    File(PathBuf),
    /// The nodes of a Kubernetes cluster.
    Kubernetes(KubernetesConfig),
}

/// How to take part in a Kubernetes cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// How to reach the API server; `None` in a pod with a service account.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace and name of the pod that this is, where only its node's name will do as the name
    /// of this node.
    pub pod: Option<(String, String)>,
    /// Names of the nodes' annotations.
    pub names: Names,
    /// Name of the vxlan device over IPv6; the network's `device` is the one over IPv4.
    pub device6: String,
    /// Whether the network runs over IPv4, as far as the node has a subnet and an address.
    pub ipv4: bool,
    /// As `ipv4`.
    pub ipv6: bool,
    /// Underlay addresses that others send to, instead of those that the node finds.
    pub public: Vec<IpAddr>,
    /// Which interface leads to the other nodes, in order of preference; that of the default route
    /// if this is empty.
    pub interfaces: Vec<Choice>,
    /// Whether to set the node's condition `NetworkUnavailable` to false.
    pub set_condition: bool,
}

impl KubernetesConfig {
    /// What flannel does by default in network `vni`.
    pub fn new(vni: Vni) -> Self {
        Self {
            kubeconfig: None,
            pod: None,
            names: Names::default(),
            device6: flannel_device6(vni),
            ipv4: true,
            ipv6: true,
            public: vec![],
            interfaces: vec![],
            set_condition: true,
        }
    }
}

/// Flannel's name for the device over IPv4, cut where a VNI makes it longer than the kernel takes.
pub(super) fn flannel_device(vni: Vni) -> String {
    let name = format!("flannel.{vni}");
    if super::is_device_name(&name) { name } else { format!("fl.{vni}") }
}

/// Flannel's name for the device over IPv6, cut likewise.
fn flannel_device6(vni: Vni) -> String {
    let name = format!("flannel-v6.{vni}");
    if super::is_device_name(&name) { name } else { format!("fl-v6.{vni}") }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StateSection {
    source: Spanned<SourceKind>,
    path: Option<Spanned<PathBuf>>,
    kubeconfig: Option<Spanned<PathBuf>>,
    annotation_prefix: Option<Spanned<String>>,
    device6: Option<Spanned<String>>,
    ipv4: Option<Spanned<bool>>,
    ipv6: Option<Spanned<bool>>,
    public_ip: Option<Spanned<IpAddr>>,
    public_ipv6: Option<Spanned<IpAddr>>,
    set_condition: Option<Spanned<bool>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SourceKind {
    File,
    Kubernetes,
}

impl StateSection {
    pub(super) fn is_kubernetes(&self) -> bool {
        *self.source.get_ref() == SourceKind::Kubernetes
    }

    /// Checks the section; a relative path counts from `base`.
    pub(super) fn check(
        self,
        text: &Text,
        base: &Path,
        vni: Vni,
        underlay: Option<&str>,
    ) -> Result<StateConfig, Refused> {
        let kubernetes = self.is_kubernetes();
        let spans = [
            ("path", self.path.as_ref().map(Spanned::span), false),
            ("kubeconfig", self.kubeconfig.as_ref().map(Spanned::span), true),
            ("annotation_prefix", self.annotation_prefix.as_ref().map(Spanned::span), true),
            ("device6", self.device6.as_ref().map(Spanned::span), true),
            ("ipv4", self.ipv4.as_ref().map(Spanned::span), true),
            ("ipv6", self.ipv6.as_ref().map(Spanned::span), true),
            ("public_ip", self.public_ip.as_ref().map(Spanned::span), true),
            ("public_ipv6", self.public_ipv6.as_ref().map(Spanned::span), true),
            ("set_condition", self.set_condition.as_ref().map(Spanned::span), true),
        ];
        let foreign = spans.into_iter().find(|(_, span, of)| span.is_some() && *of != kubernetes);
        if let Some((key, span, of)) = foreign {
            let source = if of { "kubernetes" } else { "file" };
            return Err(text.refuse(span, format!("'{key}' is for source = \"{source}\"")));
        }
        if kubernetes {
            return self.check_kubernetes(text, base, vni, underlay).map(StateConfig::Kubernetes);
        }
        match self.path {
            Some(path) => Ok(StateConfig::File(base.join(path.into_inner()))),
            None => Err(text.refuse(Some(self.source.span()), "source = \"file\" needs a 'path'")),
        }
    }

    fn check_kubernetes(
        self,
        text: &Text,
        base: &Path,
        vni: Vni,
        underlay: Option<&str>,
    ) -> Result<KubernetesConfig, Refused> {
        let mut config = KubernetesConfig::new(vni);
        config.kubeconfig = self.kubeconfig.map(|path| base.join(path.into_inner()));
        if let Some(prefix) = self.annotation_prefix {
            let refuse = |reason| text.refuse(Some(prefix.span()), reason);
            config.names = Names::new(prefix.get_ref()).map_err(refuse)?;
        }
        if let Some(device) = self.device6 {
            config.device6 = super::device_name(text, &device)?;
        }
        for (ip, v4) in [(self.public_ip, true), (self.public_ipv6, false)] {
            let Some(ip) = ip else { continue };
            if ip.get_ref().is_ipv4() != v4 {
                let reason = format!("{} is of the other IP version", ip.get_ref());
                return Err(text.refuse(Some(ip.span()), reason));
            }
            config.public.push(ip.into_inner());
        }
        let yes = |flag: Option<Spanned<bool>>| flag.is_none_or(Spanned::into_inner);
        config.set_condition = yes(self.set_condition);
        (config.ipv4, config.ipv6) = (yes(self.ipv4), yes(self.ipv6));
        if !(config.ipv4 || config.ipv6) {
            return Err(text.refuse(Some(self.source.span()), "both 'ipv4' and 'ipv6' are switched off"));
        }
        config.interfaces.extend(underlay.map(|name| Choice::Name(name.to_owned())));
        Ok(config)
    }
}
