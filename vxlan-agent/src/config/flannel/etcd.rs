//! Flannel's flags for etcd, which it uses unless it is told to use Kubernetes.

use super::super::EtcdConfig;
use super::super::etcd::{check_endpoints, pair};
use super::{Flags, interfaces, public};
use crate::net::Vni;

/// Where flannel looks for etcd.
const ENDPOINTS: &str = "http://127.0.0.1:4001,http://127.0.0.1:2379";

/// What the flags say. VNI, port and names of devices follow from what is in etcd; `vni` stands in
/// for it until then.
pub(super) fn config(flags: &Flags, vni: Vni) -> Result<EtcdConfig, String> {
    let endpoints = flags.last("etcd-endpoints").unwrap_or(ENDPOINTS).split(',');
    let endpoints: Vec<String> = endpoints.map(|url| url.trim().to_owned()).collect();
    check_endpoints(&endpoints).map_err(|reason| format!("--etcd-endpoints: {reason}"))?;
    let mut config = EtcdConfig {
        public: public(flags)?,
        interfaces: interfaces(flags)?,
        follows: true,
        ..EtcdConfig::new(vni, endpoints)
    };
    let text = |name| flags.last(name).map(str::to_owned);
    if let Some(prefix) = flags.last("etcd-prefix") {
        config.set_prefix(prefix).map_err(|reason| format!("--etcd-prefix: {reason}"))?;
    }
    if let Some(margin) = flags.last("subnet-lease-renew-margin") {
        let minutes = margin.parse().map_err(|_| format!("'{margin}' is no number"));
        let set = minutes.and_then(|minutes| config.set_margin(minutes));
        set.map_err(|reason| format!("--subnet-lease-renew-margin: {reason}"))?;
    }
    config.access.ca_file = text("etcd-cafile").map(Into::into);
    let identity = pair(text("etcd-certfile"), text("etcd-keyfile"))
        .map_err(|()| "--etcd-certfile and --etcd-keyfile go together".to_owned())?;
    config.access.identity = identity.map(|(certificate, key)| (certificate.into(), key.into()));
    config.access.user = pair(text("etcd-username"), text("etcd-password"))
        .map_err(|()| "--etcd-username and --etcd-password go together".to_owned())?;
    if let Some(file) = flags.last("subnet-file") {
        config.subnet_file = file.into();
    }
    Ok(config)
}
