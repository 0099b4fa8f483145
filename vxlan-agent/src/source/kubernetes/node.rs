//! Nodes as the API server sends them, and what becomes of them here: pure.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use vxlan_ebpf_common::maps::Family;

use super::annotations::{Annotations, Names, VXLAN};
use crate::net::{Mac, Vni, family};

/// A Node, as far as it matters here. Everything else in it, which is most of it, is skipped while
/// it is read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(in crate::source) struct NodeObject {
    /// Name, annotations and version.
    pub metadata: Metadata,
    /// What the cluster assigned.
    #[serde(default)]
    pub spec: Spec,
    /// What is said of it.
    #[serde(default)]
    pub status: Status,
}

/// Name, annotations and version.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as in the API")]
pub(in crate::source) struct Metadata {
    pub name: String,
    pub resource_version: String,
    /// RFC 3339 in UTC, so that later is greater.
    pub creation_timestamp: String,
    pub annotations: Annotations,
}

/// What the cluster assigned.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(in crate::source) struct Spec {
    /// The first of `podCIDRs`, which old servers do not have.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    /// Pod subnets: at most one for each IP version.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
}

/// What is said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "as in the API")]
pub(in crate::source) struct Status {
    pub addresses: Vec<NodeAddress>,
    pub conditions: Vec<Condition>,
}

/// An address that the kubelet reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "as in the API")]
pub(in crate::source) struct NodeAddress {
    #[serde(rename = "type")]
    pub kind: String,
    pub address: String,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "as in the API")]
pub(in crate::source) struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
}

impl NodeObject {
    /// The pod subnet of one IP version.
    ///
    /// # Errors
    /// One sentence: what is there is no subnet.
    pub(super) fn subnet(&self, wanted: Family) -> Result<Option<IpNetwork>, String> {
        let Spec { pod_cidr, pod_cidrs } = &self.spec;
        let all = if pod_cidrs.is_empty() { std::slice::from_ref(pod_cidr) } else { pod_cidrs };
        for text in all.iter().filter(|text| !text.is_empty()) {
            let subnet: IpNetwork = text.parse().map_err(|_| format!("podCIDR {text:?} is no subnet"))?;
            if family(subnet.ip()) == wanted {
                return Ok(IpNetwork::new(subnet.network(), subnet.prefix()).ok());
            }
        }
        Ok(None)
    }

    /// The address that the kubelet calls the node's own.
    pub(super) fn internal_ip(&self, wanted: Family) -> Option<IpAddr> {
        let internal = self.status.addresses.iter().filter(|a| a.kind == "InternalIP");
        internal.filter_map(|a| a.address.parse().ok()).find(|ip| family(*ip) == wanted)
    }
}

/// A VTEP of a node: one for each IP version that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::source) struct Side {
    /// Underlay address that others send to.
    pub vtep: IpAddr,
    /// MAC of the vxlan device.
    pub mac: Mac,
    /// Pod subnet of the same IP version.
    pub subnet: IpNetwork,
}

/// What is kept of another node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::source) struct Peer {
    /// When it was created: of two that claim the same, the later one is meant,
    pub created: String,
    /// unless only the other's kubelet reports the address that it is to be reached at.
    pub is_credible: bool,
    /// Over IPv4.
    pub v4: Option<Side>,
    /// Over IPv6.
    pub v6: Option<Side>,
    /// Why it takes no part, or less than it could.
    pub trouble: Option<String>,
}

impl Peer {
    /// What `object` says. A node without annotations is not up yet, or none of ours: no trouble.
    pub(super) fn read(object: &NodeObject, names: &Names, vni: Vni) -> Self {
        let annotations = &object.metadata.annotations;
        let mut peer = Self { created: object.metadata.creation_timestamp.clone(), ..Self::default() };
        if !names.is_managed(annotations) {
            return peer;
        }
        match names.backend_type(annotations) {
            Some(VXLAN) => {}
            other => {
                peer.trouble = Some(format!("runs the backend '{}', not vxlan", other.unwrap_or_default()));
                return peer;
            }
        }
        for family in [Family::V4, Family::V6] {
            match side(object, names, vni, family) {
                Ok(found) => *peer.side_mut(family) = found,
                Err(trouble) => peer.trouble = Some(trouble),
            }
        }
        let reported = |side: &Side| object.internal_ip(family(side.vtep)) == Some(side.vtep);
        peer.is_credible = [&peer.v4, &peer.v6].into_iter().flatten().any(reported);
        peer
    }

    /// Over this IP version.
    pub(super) const fn side(&self, family: Family) -> Option<&Side> {
        match family {
            Family::V4 => self.v4.as_ref(),
            Family::V6 => self.v6.as_ref(),
        }
    }

    fn side_mut(&mut self, family: Family) -> &mut Option<Side> {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

fn side(object: &NodeObject, names: &Names, vni: Vni, family: Family) -> Result<Option<Side>, String> {
    let annotations = &object.metadata.annotations;
    let Some(data) = names.backend_data(annotations, family)? else { return Ok(None) };
    let Some(vtep) = names.public_ip(annotations, family)? else { return Ok(None) };
    let Some(subnet) = object.subnet(family)? else { return Ok(None) };
    if let Some(other) = data.vni.filter(|other| *other != vni) {
        return Err(format!("has VNI {other}, this network's is {vni}"));
    }
    Ok(Some(Side { vtep, mac: data.mac, subnet }))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::source::kubernetes::annotations::DEFAULT_PREFIX;

    /// A node as the API server shows one on which flannel runs.
    pub(in crate::source::kubernetes) fn flannel_node(n: u8) -> NodeObject {
        let json = serde_json::json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {
                "name": format!("n{n}"), "uid": "x", "resourceVersion": "12",
                "creationTimestamp": format!("2026-01-01T00:00:{n:02}Z"),
                "labels": { "kubernetes.io/os": "linux" },
                "annotations": {
                    "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"0e:11:00:00:00:{n:02x}"}}"#),
                    "flannel.alpha.coreos.com/backend-type": "vxlan",
                    "flannel.alpha.coreos.com/backend-v6-data": format!(r#"{{"VNI":1,"VtepMAC":"0e:16:00:00:00:{n:02x}"}}"#),
                    "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                    "flannel.alpha.coreos.com/public-ip": format!("192.0.2.{n}"),
                    "flannel.alpha.coreos.com/public-ipv6": format!("2001:db8::{n}"),
                    "node.alpha.kubernetes.io/ttl": "0",
                },
                "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            },
            "spec": {
                "podCIDR": format!("10.244.{n}.0/24"),
                "podCIDRs": [format!("10.244.{n}.0/24"), format!("fd00:244:{n}::/64")],
                "taints": [],
            },
            "status": {
                "capacity": { "cpu": "2" },
                "conditions": [{ "type": "Ready", "status": "True", "reason": "KubeletReady" }],
                "addresses": [
                    { "type": "Hostname", "address": format!("n{n}") },
                    { "type": "InternalIP", "address": format!("192.0.2.{n}") },
                    { "type": "InternalIP", "address": format!("2001:db8::{n}") },
                ],
                "images": [{ "names": ["a"], "sizeBytes": 1 }],
            },
        });
        serde_json::from_value(json).expect("a node")
    }

    fn annotate(node: &mut NodeObject, name: &str, value: &str) {
        node.metadata.annotations.insert(format!("{DEFAULT_PREFIX}/{name}"), value.to_owned());
    }

    fn read(node: &NodeObject) -> Peer {
        Peer::read(node, &Names::new(DEFAULT_PREFIX).expect("valid"), Vni::try_from(1).expect("in range"))
    }

    #[test]
    fn a_node_of_flannel_is_a_peer_over_both_ip_versions() {
        let peer = read(&flannel_node(2));
        let side = |vtep: &str, mac: &str, subnet: &str| {
            let mac = mac.parse().expect("MAC");
            Some(Side { vtep: vtep.parse().expect("IP"), mac, subnet: subnet.parse().expect("subnet") })
        };
        assert_eq!(peer.v4, side("192.0.2.2", "0e:11:00:00:00:02", "10.244.2.0/24"));
        assert_eq!(peer.v6, side("2001:db8::2", "0e:16:00:00:00:02", "fd00:244:2::/64"));
        assert_eq!(peer.trouble, None);
    }

    #[test]
    fn a_node_without_annotations_or_subnet_takes_no_part_and_is_no_trouble() {
        let mut bare = flannel_node(2);
        bare.metadata.annotations.clear();
        assert_eq!(
            read(&bare),
            Peer { created: bare.metadata.creation_timestamp.clone(), ..Peer::default() }
        );
        let mut young = flannel_node(2);
        young.spec = Spec::default();
        assert_eq!(read(&young).v4, None);
        assert_eq!(read(&young).trouble, None);
    }

    #[test]
    fn an_old_server_has_only_one_subnet() {
        let mut old = flannel_node(2);
        old.spec.pod_cidrs.clear();
        assert!(read(&old).v4.is_some() && read(&old).v6.is_none());
    }

    #[test]
    fn what_cannot_be_used_is_said_and_the_rest_is_used() {
        for (name, value, word) in [
            ("backend-type", "host-gw", "'host-gw'"),
            ("backend-data", r#"{"VNI":2,"VtepMAC":"0e:11:00:00:00:02"}"#, "VNI 2"),
            ("backend-data", "{}", "no VtepMAC"),
            ("public-ip", "nowhere", "public-ip"),
        ] {
            let mut node = flannel_node(2);
            annotate(&mut node, name, value);
            let peer = read(&node);
            assert!(peer.trouble.as_ref().is_some_and(|t| t.contains(word)), "{peer:?}");
            assert_eq!(peer.v4, None);
            assert_eq!(peer.v6.is_some(), name != "backend-type");
        }
    }

    #[test]
    fn host_bits_of_a_pod_subnet_are_dropped() {
        let mut node = flannel_node(2);
        node.spec.pod_cidrs = vec!["10.244.2.1/24".into()];
        assert_eq!(read(&node).v4.map(|side| side.subnet.to_string()).as_deref(), Some("10.244.2.0/24"));
        node.spec.pod_cidrs = vec!["10.244.2.0/33".into()];
        assert!(read(&node).trouble.is_some_and(|t| t.contains("10.244.2.0/33")));
    }
}
