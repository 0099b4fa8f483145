//! What this node writes about itself: pure.

use serde_json::{Value, json};

use super::Settings;
use super::annotations::Published;
use super::node::NodeObject;

const CONDITION: &str = "NetworkUnavailable";
const REASON: &str = "FlannelIsUp";

/// The strategic merge patch of `nodes/status` that makes `own` say what it should; `None` if it
/// does already. `now` is a time in RFC 3339.
///
/// The condition's reason is flannel's, because tools look for it.
pub(super) fn patch(
    own: &NodeObject,
    published: &Published,
    settings: &Settings,
    now: &str,
) -> Option<Value> {
    let annotations = settings.names.changes(published, &own.metadata.annotations);
    let mut patch = json!({});
    if !annotations.is_empty() {
        patch["metadata"] = json!({ "annotations": annotations });
    }
    if settings.set_condition && !is_available(own) {
        patch["status"] = json!({ "conditions": [{
            "type": CONDITION,
            "status": "False",
            "reason": REASON,
            "message": "Flannel is running on this node",
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        }] });
    }
    (patch != json!({})).then_some(patch)
}

fn is_available(own: &NodeObject) -> bool {
    let mut conditions = own.status.conditions.iter().filter(|c| c.kind == CONDITION);
    conditions.any(|c| c.status == "False" && c.reason == REASON)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Viewer;
    use crate::net::{Mac, Vni};
    use crate::source::kubernetes::annotations::DEFAULT_PREFIX;
    use crate::source::kubernetes::node::Condition;
    use crate::source::kubernetes::node::tests::flannel_node;

    fn of(own: &NodeObject) -> Option<Value> {
        let published = Published {
            vni: Vni::try_from(1).expect("in range"),
            vteps: vec![([192, 0, 2, 1].into(), Mac([0x0e, 0x11, 0, 0, 0, 1]))],
        };
        let viewer = Viewer { node: "n1".into(), network: "pods".into(), l2: false, vni: published.vni };
        patch(own, &published, &Settings::new(viewer), "2026-01-01T00:00:00Z")
    }

    fn up() -> Condition {
        Condition { kind: CONDITION.into(), status: "False".into(), reason: REASON.into() }
    }

    #[test]
    fn only_what_differs_is_written() {
        let mut node = flannel_node(1);
        node.status.conditions.push(up());
        assert_eq!(of(&node), None);
        let name = format!("{DEFAULT_PREFIX}/public-ip");
        node.metadata.annotations.insert(name.clone(), "192.0.2.9".into());
        assert_eq!(of(&node), Some(json!({ "metadata": { "annotations": { name: "192.0.2.1" } } })));
    }

    #[test]
    fn the_condition_is_written_until_it_holds() {
        let mut node = flannel_node(1);
        let written = of(&node).expect("a patch");
        assert_eq!(written["status"]["conditions"][0]["status"], "False");
        assert!(written.get("metadata").is_none());
        node.status.conditions.push(Condition { status: "True".into(), ..up() });
        assert!(of(&node).is_some());
    }

    #[test]
    fn a_new_node_writes_everything_at_once() {
        let mut node = flannel_node(1);
        node.metadata.annotations.clear();
        let written = of(&node).expect("a patch");
        assert_eq!(
            written["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-data"],
            r#"{"VNI":1,"VtepMAC":"0e:11:00:00:00:01"}"#
        );
        assert!(written.get("status").is_some());
    }
}
