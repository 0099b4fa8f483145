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

    /// Group, version, and how a list of them is called.
    pub(super) const fn names(self) -> [&'static str; 3] {
        match self {
            Self::NetworkPolicy => ["networking.k8s.io", "v1", "networkpolicies"],
            Self::Service => ["", "v1", "services"],
            Self::EndpointSlice => ["discovery.k8s.io", "v1", "endpointslices"],
        }
    }

    fn root(self) -> String {
        let [group, version, _] = self.names();
        if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
    }

    /// Where objects are made.
    pub(super) fn path(self) -> String {
        format!("{}/namespaces/{NAMESPACE}/{}", self.root(), self.names()[2])
    }

    /// The kind that a path lists or makes.
    pub(super) fn of(path: &str) -> Option<Self> {
        let lists = |rule: &Self| path == format!("{}/{}", rule.root(), rule.names()[2]);
        Self::ALL.into_iter().find(|rule| lists(rule) || path == rule.path())
    }

    /// The least that a server takes.
    pub(super) fn object(self, name: &str) -> Value {
        let [group, version, _] = self.names();
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
