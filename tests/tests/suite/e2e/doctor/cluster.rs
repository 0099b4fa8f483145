//! What Kubernetes and etcd say of nodes.

use serde_json::json;
use vxlan_tests::lab::etcd::{attributes, key};
use vxlan_tests::lab::{EtcdSpec, LabSpec, Overlay};

use super::super::build;
use super::await_findings;

#[test]
fn what_nodes_objects_lack_is_found() {
    let lab = build(
        &LabSpec::of(vec![Overlay::agent(), Overlay::KernelVxlan, Overlay::KernelVxlan])
            .kubernetes()
            .bridge_netfilter(true),
    );
    await_findings(&lab, &[], "a healthy node", &[]);
    lab.kubernetes().annotate("n2", &json!({ "public-ip": "192.0.2.1" })).expect("annotated");
    let found = await_findings(&lab, &[], "a node has another's address", &["node-left-out"]);
    assert!(found[0]["evidence"].as_str().is_some_and(|text| text.contains("192.0.2.1")), "{found:#}");
    lab.kubernetes().annotate("n2", &json!({ "public-ip": "192.0.2.2" })).expect("annotated");
    await_findings(&lab, &[], "it has its own again", &[]);
    lab.kubernetes().delete("n1").expect("deleted");
    let found = await_findings(&lab, &[], "the node's object is gone", &["node-trouble"]);
    assert!(found[0]["evidence"].as_str().is_some_and(|text| text.contains("no node 'n1'")), "{found:#}");
}

#[test]
fn keys_in_etcd_that_contradict_each_other_are_found() {
    let lab = build(
        &LabSpec::of(vec![Overlay::agent(), Overlay::KernelVxlan, Overlay::KernelVxlan]).etcd(EtcdSpec::Open),
    );
    await_findings(&lab, &[], "a healthy node", &[]);
    let mut thief = attributes(50);
    thief["BackendData"]["VtepMAC"] = attributes(2)["BackendData"]["VtepMAC"].clone();
    lab.etcd().put(&key(50), &thief, 1000).expect("a key");
    await_findings(&lab, &[], "two nodes have one MAC", &["node-left-out"]);
    lab.etcd().delete(&key(50)).expect("deleted");
    await_findings(&lab, &[], "the key is gone", &[]);
}
