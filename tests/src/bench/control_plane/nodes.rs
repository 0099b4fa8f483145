//! The other nodes of a large cluster, in the API's words.

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::usage::cpu_seconds_of;
use crate::lab::kubernetes::PREFIX;

/// How many there are.
pub const NODES: u32 = 5_000;

/// MAC of the VTEP of node `n`, its `version`th: no two are the same below 2 048 versions.
pub(super) fn mac(n: u32, version: u32) -> [u8; 6] {
    let [_, x, y, z] = (n + version * 8_192).to_be_bytes();
    [0x0e, 0x12, 0x00, x, y, z]
}

/// What flannel says of that VTEP.
fn backend_data(n: u32, version: u32) -> String {
    let [a, b, c, x, y, z] = mac(n, version);
    format!(r#"{{"VNI":1,"VtepMAC":"{a:02x}:{b:02x}:{c:02x}:{x:02x}:{y:02x}:{z:02x}"}}"#)
}

/// Name of node `n`.
pub(super) fn name(n: u32) -> String {
    format!("s{n}")
}

/// A patch that gives node `n` the `version`th MAC.
pub(super) fn change(n: u32, version: u32) -> Value {
    json!({ "metadata": { "annotations": { format!("{PREFIX}backend-data"): backend_data(n, version) } } })
}

/// Node `n` with as much in it as a real one has: some 12 KB.
pub(super) fn node(n: u32) -> Value {
    let [_, _, a, b] = n.to_be_bytes();
    let cidr = format!("10.{}.{b}.0/24", a + 1);
    let underlay = format!("198.18.{a}.{b}");
    let conditions = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"].map(condition);
    json!({
        "kind": "Node", "apiVersion": "v1",
        "metadata": {
            "name": name(n),
            "labels": (0..15).map(|i| (format!("example.com/label-{i}"), json!("value"))).collect::<Map<_, _>>(),
            "annotations": {
                format!("{PREFIX}kube-subnet-manager"): "true",
                format!("{PREFIX}backend-type"): "vxlan",
                format!("{PREFIX}backend-data"): backend_data(n, 0),
                format!("{PREFIX}public-ip"): underlay,
                "node.alpha.kubernetes.io/ttl": "0",
            },
            "managedFields": [managed_fields()],
        },
        "spec": { "podCIDR": cidr, "podCIDRs": [cidr] },
        "status": {
            "capacity": { "cpu": "64", "memory": "263906816Ki", "pods": "110" },
            "conditions": conditions,
            "addresses": [{ "type": "InternalIP", "address": underlay }],
            "images": (0..40).map(image).collect::<Vec<_>>(),
        },
    })
}

/// CPU seconds that this program, built as it is, takes to read all nodes as JSON: a yardstick for the agent, because
/// processors differ.
///
/// # Errors
/// This thread's CPU clock cannot be read.
pub fn reading_seconds() -> Result<f64> {
    let text = serde_json::to_string(&node(1))?;
    cpu_seconds_of(|| {
        for _ in 0..NODES {
            serde_json::from_str::<Value>(&text)?;
        }
        Ok(())
    })
}

fn managed_fields() -> Value {
    let fields: Map<_, _> =
        (0..60).map(|i| (format!("f:field-{i}"), json!({ "f:x": {}, "f:y": {} }))).collect();
    json!({
        "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    })
}

fn condition(kind: &str) -> Value {
    json!({
        "type": kind, "status": "False", "reason": "KubeletHasSufficient", "message": "kubelet is fine",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn image(i: u32) -> Value {
    let name = format!("registry.example/library/image-{i}");
    json!({ "names": [format!("{name}@sha256:{i:064x}"), format!("{name}:v1.{i}")], "sizeBytes": 123_456_789 })
}
