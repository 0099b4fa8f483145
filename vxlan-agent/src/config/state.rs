//! The section `[state]`: where cluster state comes from.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::etcd::{EtcdConfig, EtcdKeys};
use super::values::{DeviceName, is_device_name};
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
    /// Keys in etcd, as flannel writes them.
    Etcd(EtcdConfig),
    /// The kernel's tables: somebody else manages the device.
    Device,
}

/// What the node finds out about itself, in flannel's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'c> {
    /// Name of the vxlan device over IPv6; the network's `device` is the one over IPv4.
    pub device6: &'c str,
    /// Which interface leads to the other nodes, in order of preference; that of the default route
    /// if this is empty.
    pub interfaces: &'c [Choice],
}

impl StateConfig {
    /// What the node finds out about itself; `None` where the state says it.
    pub fn place(&self) -> Option<Place<'_>> {
        match self {
            Self::File(_) | Self::Device => None,
            Self::Kubernetes(KubernetesConfig { device6, interfaces, .. })
            | Self::Etcd(EtcdConfig { device6, interfaces, .. }) => Some(Place { device6, interfaces }),
        }
    }

    /// As [`Place::interfaces`], to be changed.
    pub fn interfaces_mut(&mut self) -> Option<&mut Vec<Choice>> {
        match self {
            Self::File(_) | Self::Device => None,
            Self::Kubernetes(KubernetesConfig { interfaces, .. })
            | Self::Etcd(EtcdConfig { interfaces, .. }) => Some(interfaces),
        }
    }
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
    if is_device_name(&name) { name } else { format!("fl.{vni}") }
}

/// Flannel's name for the device over IPv6, cut likewise.
pub(super) fn flannel_device6(vni: Vni) -> String {
    let name = format!("flannel-v6.{vni}");
    if is_device_name(&name) { name } else { format!("fl-v6.{vni}") }
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StateSection {
    source: Spanned<SourceKind>,
    path: Option<Spanned<PathBuf>>,
    kubeconfig: Option<Spanned<PathBuf>>,
    annotation_prefix: Option<Spanned<String>>,
    device6: Option<Spanned<DeviceName>>,
    ipv4: Option<Spanned<bool>>,
    ipv6: Option<Spanned<bool>>,
    public_ip: Option<Spanned<IpAddr>>,
    public_ipv6: Option<Spanned<IpAddr>>,
    set_condition: Option<Spanned<bool>>,
    endpoints: Option<Spanned<Vec<String>>>,
    prefix: Option<Spanned<String>>,
    ca_file: Option<Spanned<PathBuf>>,
    cert_file: Option<Spanned<PathBuf>>,
    key_file: Option<Spanned<PathBuf>>,
    username: Option<Spanned<String>>,
    password: Option<Spanned<String>>,
    renew_margin: Option<Spanned<u32>>,
    subnet_file: Option<Spanned<PathBuf>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum SourceKind {
    File,
    Kubernetes,
    Etcd,
}

impl SourceKind {
    const fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Kubernetes => "kubernetes",
            Self::Etcd => "etcd",
        }
    }
}

impl StateSection {
    /// Whether the node stands in flannel's place.
    pub(super) fn is_like_flannel(&self) -> bool {
        *self.source.get_ref() != SourceKind::File
    }

    /// Checks the section, for the network with `vni`; a relative path counts from `base`.
    pub(super) fn check(
        self,
        text: &Text,
        base: &Path,
        vni: Vni,
        underlay: Option<&str>,
    ) -> Result<StateConfig, Refused> {
        self.refuse_foreign(text)?;
        match (*self.source.get_ref(), self.path) {
            (SourceKind::Kubernetes, path) => {
                let section = Self { path, ..self };
                section.check_kubernetes(text, base, vni, underlay).map(StateConfig::Kubernetes)
            }
            (SourceKind::Etcd, path) => {
                let section = Self { path, ..self };
                section.check_etcd(text, base, vni, underlay).map(StateConfig::Etcd)
            }
            (SourceKind::File, Some(path)) => Ok(StateConfig::File(base.join(path.into_inner()))),
            (SourceKind::File, None) => {
                Err(text.refuse(Some(self.source.span()), "source = \"file\" needs a 'path'"))
            }
        }
    }

    /// Keys of one source mean nothing to another.
    fn refuse_foreign(&self, text: &Text) -> Result<(), Refused> {
        use SourceKind::{Etcd, File, Kubernetes};
        fn span<T>(value: &Option<Spanned<T>>) -> Option<Range<usize>> {
            value.as_ref().map(Spanned::span)
        }
        let keys: [(&str, _, &[SourceKind]); 18] = [
            ("path", span(&self.path), &[File]),
            ("kubeconfig", span(&self.kubeconfig), &[Kubernetes]),
            ("annotation_prefix", span(&self.annotation_prefix), &[Kubernetes]),
            ("device6", span(&self.device6), &[Kubernetes, Etcd]),
            ("ipv4", span(&self.ipv4), &[Kubernetes]),
            ("ipv6", span(&self.ipv6), &[Kubernetes]),
            ("public_ip", span(&self.public_ip), &[Kubernetes, Etcd]),
            ("public_ipv6", span(&self.public_ipv6), &[Kubernetes, Etcd]),
            ("set_condition", span(&self.set_condition), &[Kubernetes]),
            ("endpoints", span(&self.endpoints), &[Etcd]),
            ("prefix", span(&self.prefix), &[Etcd]),
            ("ca_file", span(&self.ca_file), &[Etcd]),
            ("cert_file", span(&self.cert_file), &[Etcd]),
            ("key_file", span(&self.key_file), &[Etcd]),
            ("username", span(&self.username), &[Etcd]),
            ("password", span(&self.password), &[Etcd]),
            ("renew_margin", span(&self.renew_margin), &[Etcd]),
            ("subnet_file", span(&self.subnet_file), &[Etcd]),
        ];
        let source = *self.source.get_ref();
        let foreign = keys.into_iter().find(|(_, span, of)| span.is_some() && !of.contains(&source));
        let Some((key, span, of)) = foreign else { return Ok(()) };
        let of: Vec<String> = of.iter().map(|kind| format!("source = \"{}\"", kind.word())).collect();
        Err(text.refuse(span, format!("'{key}' is for {}", of.join(" and "))))
    }

    fn check_etcd(
        self,
        text: &Text,
        base: &Path,
        vni: Vni,
        underlay: Option<&str>,
    ) -> Result<EtcdConfig, Refused> {
        let keys = EtcdKeys {
            endpoints: self.endpoints,
            prefix: self.prefix,
            ca_file: self.ca_file,
            cert_file: self.cert_file,
            key_file: self.key_file,
            username: self.username,
            password: self.password,
            renew_margin: self.renew_margin,
            subnet_file: self.subnet_file,
        };
        let mut config = keys.check(text, base, vni, self.source.span())?;
        if let Some(device) = self.device6 {
            config.device6 = device.into_inner().0;
        }
        config.public = check_public(text, self.public_ip, self.public_ipv6)?;
        config.interfaces.extend(underlay.map(|name| Choice::Name(name.to_owned())));
        Ok(config)
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
            config.device6 = device.into_inner().0;
        }
        config.public = check_public(text, self.public_ip, self.public_ipv6)?;
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

fn check_public(
    text: &Text,
    v4: Option<Spanned<IpAddr>>,
    v6: Option<Spanned<IpAddr>>,
) -> Result<Vec<IpAddr>, Refused> {
    let mut public = vec![];
    for (ip, is_v4) in [(v4, true), (v6, false)] {
        let Some(ip) = ip else { continue };
        if ip.get_ref().is_ipv4() != is_v4 {
            let reason = format!("{} is of the other IP version", ip.get_ref());
            return Err(text.refuse(Some(ip.span()), reason));
        }
        public.push(ip.into_inner());
    }
    Ok(public)
}
