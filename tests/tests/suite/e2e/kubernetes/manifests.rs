//! What `deploy/` has, applied to a real API server as the documentation says.

use std::path::PathBuf;

use vxlan_tests::lab::{Kubernetes, Lab, LabSpec, Overlay};

use super::build;

const NAMESPACE: &str = "vxlan-agent";
/// What is applied one after the other, in the place of what was before, and taken away together.
const SEQUENCES: [&[&str]; 6] = [
    &["accelerate", "accelerate-detach"],
    &["base", "detach"],
    &["base", "release"],
    &["flannel-cni"],
    &["migrate"],
    &["privileged"],
];

fn variant(name: &str) -> String {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name).display().to_string()
}

/// A cluster without agents, if its API server is a real one and there is a kubectl to speak to it.
fn real() -> Option<Lab> {
    if std::env::var_os("KUBE_APISERVER").is_none() {
        eprintln!("SKIPPED: the stub knows nothing but nodes, and KUBE_APISERVER names no real API server");
        return None;
    }
    let lab = build(&LabSpec::of(vec![Overlay::None; 3]).kubernetes());
    if let Err(error) = lab.kubernetes().kubectl(&["version"]) {
        eprintln!("SKIPPED: there is no kubectl that works: {error:#}");
        return None;
    }
    Some(lab)
}

/// Whether a pod of the DaemonSet may do this.
fn may(kubernetes: &Kubernetes, what: &[&str]) -> bool {
    let who = format!("--as=system:serviceaccount:{NAMESPACE}:vxlan-agent");
    // Its exit status is the answer.
    kubernetes.kubectl(&[&["auth", "can-i", &who], what].concat()).is_ok()
}

#[test]
fn an_api_server_takes_what_is_to_be_deployed() {
    let Some(lab) = real() else { return };
    let kubernetes = lab.kubernetes();
    for sequence in SEQUENCES {
        for name in sequence {
            let applied = kubernetes.kubectl(&["apply", "-k", &variant(name)]).expect(name);
            assert!(applied.contains("daemonset.apps/vxlan-agent"), "{name}: {applied}");
            let follows = may(kubernetes, &["watch", "nodes"]);
            assert_eq!(follows, !name.starts_with("accelerate"), "{name} may follow the nodes: {follows}");
            assert!(!may(kubernetes, &["get", "secrets", "--all-namespaces"]), "{name} may read secrets");
            let image = "jsonpath={.spec.template.spec.containers[0].image}";
            let daemonset = ["-n", NAMESPACE, "get", "daemonset", "vxlan-agent", "-o", image];
            assert!(kubernetes.kubectl(&daemonset).expect(name).contains("vxlan-agent"), "{name}");
        }
        // All of it but the namespace, whose end somebody else would have to see to.
        let last = sequence.last().expect("one");
        let rendered = kubernetes.kubectl(&["kustomize", &variant(last)]).expect(last);
        let objects: Vec<&str> =
            rendered.split("\n---\n").filter(|o| !o.contains("kind: Namespace")).collect();
        let file = lab.run_dir().join("objects.yaml");
        std::fs::write(&file, objects.join("\n---\n")).expect("a file");
        kubernetes
            .kubectl(&["delete", "--wait=false", "-f", &file.display().to_string()])
            .expect("taken away");
    }
}
