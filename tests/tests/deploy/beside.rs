//! The variant beside another network: agents that ask nobody and write next to nothing.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{configuration, deploy, documents, of_kind, patch};

/// The base's DaemonSet as the first patch of `variant` makes it.
fn patched(variant: &str) -> Value {
    let mut set = of_kind("DaemonSet");
    for operation in patch(variant) {
        let (parent, key) =
            operation["path"].as_str().and_then(|path| path.rsplit_once('/')).expect("a path");
        let parent = set.pointer_mut(parent).unwrap_or_else(|| panic!("{operation}"));
        match (parent, operation["op"].as_str()) {
            (Value::Array(list), Some("remove")) => _ = list.remove(key.parse().expect("an index")),
            (Value::Object(fields), Some("remove")) => assert!(fields.remove(key).is_some(), "{operation}"),
            (Value::Object(fields), Some("add")) => _ = fields.insert(key.into(), operation["value"].clone()),
            _ => panic!("{operation}"),
        }
    }
    set
}

/// What a list of objects has as `name`.
fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().filter_map(|item| item["name"].as_str()).collect()
}

#[test]
fn beside_another_network_agents_may_ask_the_api_server_nothing() {
    let overlay = documents(&deploy().join("accelerate/kustomization.yaml"));
    let patches = overlay[0]["patches"].as_array().expect("patches");
    let gone = patches
        .iter()
        .filter(|patch| patch["patch"].as_str().is_some_and(|p| p.starts_with("$patch: delete")));
    let gone: BTreeSet<_> = gone.filter_map(|patch| patch["target"]["kind"].as_str()).collect();
    let rights = documents(&deploy().join("base/rbac.yaml"));
    let rights = rights.iter().filter_map(|document| document["kind"].as_str());
    assert_eq!(gone, rights.filter(|kind| *kind != "ServiceAccount").collect());
    assert_eq!(patched("accelerate")["spec"]["template"]["spec"]["automountServiceAccountToken"], false);
}

#[test]
fn beside_another_network_nothing_of_the_hosts_is_mounted_but_pins_and_state() {
    let pod = &patched("accelerate")["spec"]["template"]["spec"];
    let mounts = &pod["containers"][0]["volumeMounts"];
    assert_eq!(names(&pod["volumes"]), ["config", "bpffs", "run"]);
    assert_eq!(names(mounts), names(&pod["volumes"]));
    let config = configuration("accelerate");
    assert!(config.network.is_accelerated() && config.pods.subnet_file.is_none());
    for path in [&config.node.pin_dir, &config.node.run_dir] {
        let mounts = mounts.as_array().expect("mounts").iter();
        let mut writable = mounts.filter(|mount| mount["readOnly"] != true);
        let is_below = |mount: &Value| mount["mountPath"].as_str().is_some_and(|at| path.starts_with(at));
        assert!(writable.any(is_below), "{}", path.display());
    }
    let probe = &pod["containers"][0]["readinessProbe"]["httpGet"];
    assert_eq!(config.node.healthz.map(|address| json!(address.port())), Some(probe["port"].clone()));
}

#[test]
fn taking_it_off_is_the_same_as_for_agents_with_an_overlay_of_their_own() {
    let overlay = documents(&deploy().join("accelerate-detach/kustomization.yaml"));
    assert_eq!(overlay[0]["resources"], json!(["../accelerate"]));
    assert_eq!(patch("accelerate-detach"), patch("detach"));
}

#[test]
fn the_documentation_names_every_variant() {
    let docs = std::fs::read_to_string(deploy().join("../docs/accelerate.md")).expect("documentation");
    for variant in ["accelerate", "accelerate-detach"] {
        assert!(docs.contains(&format!("kubectl apply -k deploy/{variant}")), "{variant}");
    }
}
