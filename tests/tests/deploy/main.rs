//! What `deploy/` asks of a cluster or a host fits together, and fits the agent.

mod beside;
mod links;
mod monitoring;
mod plain_hosts;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use serde_json::{Value, json};
use vxlan_agent::config::{Cni, Config, View};
use vxlan_agent::text::Text;

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// All documents of a file.
fn documents(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let documents = serde_yaml_ng::Deserializer::from_str(&text).map(Value::deserialize);
    documents.map(|document| document.unwrap_or_else(|error| panic!("{}: {error}", path.display()))).collect()
}

/// The one document of the base that is of `kind`.
fn of_kind(kind: &str) -> Value {
    let files = ["namespace", "rbac", "daemonset"].map(|name| format!("base/{name}.yaml"));
    let all = files.iter().flat_map(|file| documents(&deploy().join(file)));
    let mut found = all.filter(|document| document["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "a second {kind}");
    one
}

fn pod() -> Value {
    of_kind("DaemonSet")["spec"]["template"]["spec"].clone()
}

fn agent() -> Value {
    pod()["containers"][0].clone()
}

/// The configuration of a variant, as the agent reads it.
fn configuration(variant: &str) -> View {
    let text = fs::read_to_string(deploy().join(variant).join("config.toml")).expect("a configuration");
    let text = Text::new("config.toml", &text);
    let config =
        Config::parse(&text, Path::new("/"), &|| Some("node".into())).expect("a valid configuration");
    config.networks.into_iter().next().expect("a network")
}

fn base_configuration() -> View {
    configuration("base")
}

/// The operations of the one patch of a variant.
fn patch(variant: &str) -> Vec<Value> {
    let overlay = documents(&deploy().join(variant).join("kustomization.yaml"));
    let patch = overlay[0]["patches"][0]["patch"].as_str().expect("a patch");
    serde_yaml_ng::from_str(patch).expect("operations")
}

#[test]
fn every_file_of_the_base_is_among_its_resources() {
    let list = documents(&deploy().join("base/kustomization.yaml"));
    let lists = [&list[0]["resources"], &list[0]["configMapGenerator"][0]["files"]];
    let listed: BTreeSet<String> = lists
        .iter()
        .flat_map(|list| list.as_array().expect("a list"))
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    let files = fs::read_dir(deploy().join("base")).expect("a directory");
    let files = files.map(|file| file.expect("a file").file_name().into_string().expect("a name"));
    assert_eq!(listed, files.filter(|name| name != "kustomization.yaml").collect());
}

#[test]
fn another_configuration_is_another_pod() {
    let list = documents(&deploy().join("base/kustomization.yaml"));
    let volumes = pod()["volumes"].clone();
    let mut configs = volumes.as_array().expect("volumes").iter().map(|volume| &volume["configMap"]["name"]);
    // By this name kustomize finds what to replace with the name that ends with a hash.
    assert!(configs.any(|name| *name == list[0]["configMapGenerator"][0]["name"]));
    assert_eq!(list[0]["generatorOptions"], Value::Null);
}

#[test]
fn nodes_come_from_the_cluster_and_devices_have_flannels_names() {
    let config = base_configuration();
    let names: Vec<_> = config.devices().into_iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, ["flannel.1", "flannel-v6.1"]);
    assert_eq!(config.adopts(), Some(config.network.vni), "what flannel left behind is taken over");
}

#[test]
fn the_agent_may_do_what_it_does_and_no_more() {
    let rules = json!([
        { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"] },
        { "apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": ["list", "watch"] },
        { "apiGroups": [""], "resources": ["services"], "verbs": ["list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
    ]);
    assert_eq!(of_kind("ClusterRole")["rules"], rules);
    let binding = of_kind("ClusterRoleBinding");
    assert_eq!(binding["roleRef"]["name"], of_kind("ClusterRole")["metadata"]["name"]);
    let account = of_kind("ServiceAccount")["metadata"]["name"].clone();
    assert_eq!(binding["subjects"][0]["name"], account);
    assert_eq!(binding["subjects"][0]["namespace"], of_kind("Namespace")["metadata"]["name"]);
    assert_eq!(pod()["serviceAccountName"], account);
}

#[test]
fn the_agent_has_three_capabilities_and_nothing_else() {
    let context = agent()["securityContext"].clone();
    assert_eq!(context["capabilities"], json!({ "drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"] }));
    assert_eq!((&context["allowPrivilegeEscalation"], &context["privileged"]), (&json!(false), &Value::Null));
    let overlay = documents(&deploy().join("privileged/kustomization.yaml"));
    let patch = overlay[0]["patches"][0]["patch"].as_str().expect("a patch");
    assert!(
        patch.contains("/spec/template/spec/containers/0/securityContext")
            && patch.contains("privileged: true")
    );
}

#[test]
fn the_probes_ask_where_the_agent_answers() {
    let address = base_configuration().node.healthz.expect("health checks");
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let asked = &agent()[probe]["httpGet"];
        assert_eq!(asked["host"], address.ip().to_string(), "{probe}");
        assert_eq!((&asked["port"], &asked["path"]), (&json!(address.port()), &json!(path)), "{probe}");
    }
}

#[test]
fn every_path_that_the_agent_writes_to_is_the_hosts() {
    let config = base_configuration();
    let (pod, agent) = (pod(), agent());
    let mounts = agent["volumeMounts"].as_array().expect("mounts");
    let volumes = pod["volumes"].as_array().expect("volumes");
    let host_path = |path: &Path| {
        let mount = mounts.iter().find(|m| path.starts_with(m["mountPath"].as_str().expect("a path")))?;
        assert_eq!(mount["readOnly"], Value::Null, "{mount}");
        let below = path.strip_prefix(mount["mountPath"].as_str()?).ok()?;
        let volume = volumes.iter().find(|volume| volume["name"] == mount["name"])?;
        Some(Path::new(volume["hostPath"]["path"].as_str()?).join(below))
    };
    let subnet_file = config.pods.subnet_file.clone().expect("a subnet file");
    for path in [&config.node.pin_dir, &config.node.run_dir, &config.pods.cni_file, &subnet_file] {
        assert_eq!(host_path(path).as_ref(), Some(path), "the same path on the host");
    }
    let settings = host_path(Path::new("/host/proc/sys/net/ipv4/ip_forward"));
    assert_eq!(settings.as_deref(), Some(Path::new("/proc/sys/net/ipv4/ip_forward")));
}

#[test]
fn the_variant_for_flannels_plugin_differs_in_nothing_else() {
    let generator = |variant: &str| {
        let list = documents(&deploy().join(variant).join("kustomization.yaml"));
        list[0]["configMapGenerator"][0].clone()
    };
    let (base, overlay) = (generator("base"), generator("flannel-cni"));
    assert_eq!((&overlay["name"], &overlay["files"]), (&base["name"], &base["files"]));
    assert_eq!(overlay["behavior"], "replace");
    assert_eq!(overlay["namespace"], of_kind("Namespace")["metadata"]["name"]);
    let mut variant = configuration("flannel-cni");
    assert_eq!(std::mem::replace(&mut variant.pods.cni, Cni::Bridge), Cni::Flannel);
    assert_eq!(variant, base_configuration());
}

#[test]
fn a_pod_that_releases_or_detaches_a_node_is_the_agents_with_another_command() {
    let set = of_kind("DaemonSet");
    for (variant, command) in [("release", "vxlan-agent release &&"), ("detach", "vxlan-agent detach &&")] {
        let patch = patch(variant);
        for operation in &patch {
            let path = operation["path"].as_str().expect("a path");
            let there = set.pointer(path).is_some();
            assert_eq!(there, operation["op"] == "remove", "{operation}");
            let parent = path.rsplit_once('/').expect("a path").0;
            assert!(set.pointer(parent).is_some(), "{operation}");
        }
        assert!(Value::from(patch).to_string().contains(command), "{variant}");
    }
}

#[test]
fn agents_and_pods_that_release_nodes_are_side_by_side() {
    // Two sets in one namespace must not claim each other's pods.
    let overlay = documents(&deploy().join("release/kustomization.yaml"));
    let (label, set) = (&overlay[0]["labels"][0], of_kind("DaemonSet"));
    assert_ne!(label["pairs"]["app.kubernetes.io/name"], set["metadata"]["labels"]["app.kubernetes.io/name"]);
    assert_eq!(label["includeSelectors"], true);
}

#[test]
fn flannel_keeps_off_nodes_that_are_ours_and_those_that_are_being_released() {
    let docs = fs::read_to_string(deploy().join("../docs/kubernetes.md")).expect("the documentation");
    assert!(of_kind("DaemonSet").pointer("/spec/template/spec/nodeSelector").is_some());
    let label = |variant: &str| {
        let patch = patch(variant);
        assert_eq!(patch[0]["path"], "/spec/template/spec/nodeSelector/overlay", "{variant}");
        patch[0]["value"].clone()
    };
    let labels = json!(["migrate", "release"].map(label));
    assert!(docs.contains(&format!(r#""key":"overlay","operator":"NotIn","values":{labels}"#)), "{labels}");
}

#[test]
fn an_update_takes_one_node_after_the_other_and_the_agent_comes_first() {
    let set = of_kind("DaemonSet");
    assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"], 1);
    let pod = pod();
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["hostNetwork"], true);
    assert_eq!(pod["nodeSelector"]["kubernetes.io/os"], "linux");
    // Also on nodes that are not ready for want of a network.
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
    let name = agent()["env"][0].clone();
    assert_eq!(
        (&name["name"], &name["valueFrom"]["fieldRef"]["fieldPath"]),
        (&json!("NODE_NAME"), &json!("spec.nodeName"))
    );
}
