//! What rules for packets between pods are made of, as far as an API server has it.

use serde_json::{Value, json};

use super::NAMESPACE;

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in the API")]
pub enum Rule {
    NetworkPolicy,
    Service,
    EndpointSlice,
}

impl Rule {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::NetworkPolicy, Self::Service, Self::EndpointSlice];

    /// Group, and how a list of them is called.
    pub(super) const fn names(self) -> [&'static str; 2] {
        match self {
            Self::NetworkPolicy => ["networking.k8s.io", "networkpolicies"],
            Self::Service => ["", "services"],
            Self::EndpointSlice => ["discovery.k8s.io", "endpointslices"],
        }
    }

    /// Versions of the API that may have it. Servers before 1.21 have EndpointSlices in the second.
    pub(super) const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::NetworkPolicy | Self::Service => &["v1"],
            Self::EndpointSlice => &["v1", "v1beta1"],
        }
    }

    fn root(self, version: &str) -> String {
        let [group, _] = self.names();
        if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
    }

    /// Where objects are made.
    pub(super) fn path(self, version: &str) -> String {
        format!("{}/namespaces/{NAMESPACE}/{}", self.root(version), self.names()[1])
    }

    /// The kind that a path of the API's version 1 lists or makes.
    pub(super) fn of(path: &str) -> Option<Self> {
        let lists = |rule: &Self| path == format!("{}/{}", rule.root("v1"), rule.names()[1]);
        Self::ALL.into_iter().find(|rule| lists(rule) || path == rule.path("v1"))
    }

    /// The least that a server takes.
    pub(super) fn object(self, version: &str, name: &str) -> Value {
        let [group, _] = self.names();
        let api = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let mut object =
            json!({ "kind": format!("{self:?}"), "apiVersion": api, "metadata": { "name": name } });
        match self {
            Self::NetworkPolicy => object["spec"] = json!({ "podSelector": {} }),
            Self::Service => object["spec"] = json!({ "ports": [{ "port": 80 }] }),
            Self::EndpointSlice => {
                object["addressType"] = json!("IPv4");
                object["endpoints"] = json!([]);
            }
        }
        object
    }
}
