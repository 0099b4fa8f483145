//! CNI configurations.
//!
//! Network name, bridge and address ranges are those that flannel's plugin makes up, so that pods
//! stay where they are when one configuration takes the place of the other.

use serde_json::{Value, json};

use super::Facts;

/// Name of the network; `host-local` keeps its reservations under it.
const NAME: &str = "cbr0";

/// For `bridge`, `host-local` and `portmap`.
pub(super) fn for_bridge(facts: &Facts<'_>) -> String {
    let ranges: Vec<Value> = facts.subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
    let bridge = json!({
        "type": "bridge",
        "bridge": "cni0",
        "mtu": facts.mtu.0,
        "isGateway": true,
        "isDefaultGateway": true,
        "hairpinMode": true,
        // The agent does it, or nobody.
        "ipMasq": false,
        "ipam": { "type": "host-local", "ranges": ranges },
    });
    conflist("1.0.0", bridge)
}

/// For flannel's plugin, as flannel has it.
pub(super) fn for_flannel() -> String {
    let delegate = json!({ "hairpinMode": true, "isDefaultGateway": true });
    conflist("0.3.1", json!({ "type": "flannel", "delegate": delegate }))
}

fn conflist(version: &str, first: Value) -> String {
    let portmap = json!({ "type": "portmap", "capabilities": { "portMappings": true } });
    let list = json!({ "name": NAME, "cniVersion": version, "plugins": [first, portmap] });
    format!("{list:#}\n")
}
