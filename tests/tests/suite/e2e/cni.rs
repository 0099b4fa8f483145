//! Pods made by the standard CNI plugins, from the configuration that the agent writes.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;
use vxlan_tests::lab::traffic::{Ping, ping, tcp_bulk};
use vxlan_tests::lab::{Attach, Cni, Family, Lab, LabSpec, Netns, wait_until, xdp};

use super::pods::with_pods;
use super::{
    assert_answered, assert_decapsulated, assert_nothing_dropped, assert_took, build, counted, programs_on,
};

/// What is asked for between a pod's veth appearing and its program being attached.
const ATTACHED_WITHIN: Duration = Duration::from_millis(50);
/// What no single pod may take, even on a machine that is busy with something else.
const ATTACHED_AT_LAST: Duration = Duration::from_millis(500);

struct CniPod {
    namespace: String,
    ns: Netns,
    result: Value,
    ips: Vec<IpAddr>,
}

/// Two nodes without pods, and without a bridge: the plugin makes it. Every node has a file of its
/// own for its configuration, so the labs' agents must not share one.
fn lab(fastpath: &str, directory: &std::path::Path) -> Lab {
    let node = |n: u8| {
        let file = directory.join(format!("n{n}/10-flannel.conflist"));
        with_pods(fastpath, &format!("cni = \"bridge\"\nmasquerade = true\ncni_file = {file:?}\n"))
    };
    build(&LabSpec::pair(node(1), node(2)).pods(0).attach(Attach::Ptp))
}

fn cni<'a>(lab: &'a Lab, directory: &std::path::Path, n: u8) -> Cni<'a> {
    let path = |name: &str| -> PathBuf { directory.join(format!("n{n}")).join(name) };
    Cni::open(lab.node(n), &path("10-flannel.conflist"), &path("reserved")).expect("a configuration")
}

fn add(lab: &Lab, cni: &Cni<'_>, n: u8, c: u8) -> CniPod {
    let namespace = format!("{}-n{n}c{c}", lab.prefix());
    let (ns, result) = cni.add(&namespace).expect("an ADD that succeeds");
    let addresses = result["ips"].as_array().expect("addresses").iter();
    let ip = |entry: &Value| {
        let text = entry["address"].as_str().expect("an address");
        text.split('/').next().and_then(|ip| ip.parse().ok()).expect("an address")
    };
    let ips = addresses.map(ip).collect();
    CniPod { namespace, ns, result, ips }
}

/// How many addresses the agent of node `n` knows as pods.
fn endpoints(lab: &Lab, n: u8) -> usize {
    let list = lab.agent(n).and_then(|agent| agent.json(&["dump", "endpoints"])).expect("endpoints");
    list.as_array().expect("a list").len()
}

#[test]
fn pods_of_the_standard_plugins_reach_each_other_on_the_fast_path() {
    for fastpath in ["direct", "verified"] {
        let directory = super::pods::new_directory();
        let lab = lab(fastpath, directory.path());
        let cnis = [cni(&lab, directory.path(), 1), cni(&lab, directory.path(), 2)];
        let pods = [add(&lab, &cnis[0], 1, 1), add(&lab, &cnis[1], 2, 1)];
        for (cni, pod) in cnis.iter().zip(&pods) {
            cni.check(&pod.namespace, &pod.result).expect("connected as the result says");
            assert_eq!(pod.ips.len(), 2, "an address of each IP version: {}", pod.result);
            // The gateway of the plugin's making is the address after the tunnel's.
            assert!(pod.result["ips"][0]["gateway"].as_str().is_some_and(|gw| gw.ends_with(".1")));
        }
        let [client, server] = &pods;
        for ip in &server.ips {
            let patient = Ping { count: 3, timeout: Duration::from_millis(300), ..Ping::default() };
            let reached = || ping(&client.ns, *ip, patient).is_ok_and(|report| report.all_answered());
            wait_until("the pods reach each other", Duration::from_secs(10), reached).expect("an answer");
        }
        for ip in &server.ips {
            let nodes = counted(&lab, || {
                assert_answered(&client.ns, *ip, Ping { count: 20, ..Ping::default() });
                tcp_bulk(&client.ns, &server.ns, *ip, 8 << 20).expect("a transfer");
            });
            for node in &nodes {
                assert_took(node, "pod_egress", "encapsulated", 15);
                assert_nothing_dropped(node);
            }
            assert_decapsulated(&nodes[1], Family::V4, *ip, 15);
        }
        for (n, (cni, pod)) in (1u8..).zip(cnis.iter().zip(&pods)) {
            cni.delete(&pod.namespace, &pod.result).expect("a DEL that succeeds");
            let gone = || endpoints(&lab, n) == 0;
            wait_until("the deleted pod is forgotten", Duration::from_secs(5), gone).expect("cleaned up");
            let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).expect("a status");
            let attachments = status["fastpath"]["attachments"].as_array().map(Vec::len);
            let ours = if xdp().is_some() { 5 } else { 3 };
            assert_eq!(attachments, Some(ours), "device twice and underlay: {status:#}");
        }
    }
}

#[test]
fn a_pods_program_is_attached_within_50_milliseconds_of_its_veth_appearing() {
    let directory = super::pods::new_directory();
    let lab = lab("direct", directory.path());
    let cni = cni(&lab, directory.path(), 1);
    let mut waits = vec![];
    for c in 1..=11 {
        let before = veths(lab.node(1));
        let (pod, wait) = std::thread::scope(|scope| {
            let watcher = scope.spawn(|| watch_for_program(lab.node(1), &before));
            (add(&lab, &cni, 1, c), watcher.join().expect("a watcher"))
        });
        waits.push(wait);
        cni.delete(&pod.namespace, &pod.result).expect("a DEL that succeeds");
    }
    waits.sort_unstable();
    eprintln!("from veth to program: {waits:?}");
    let (median, last) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    assert!(median <= ATTACHED_WITHIN && last <= ATTACHED_AT_LAST, "{waits:?}");
}

/// The time between a veth showing up that was not there `before` and its program.
fn watch_for_program(node: &Netns, before: &[String]) -> Duration {
    let patience = Instant::now() + Duration::from_secs(20);
    let mut appeared = None;
    while Instant::now() < patience {
        if appeared.is_none() {
            let new = veths(node).into_iter().find(|veth| !before.contains(veth));
            appeared = new.map(|veth| (veth, Instant::now()));
        }
        if let Some((veth, since)) = &appeared
            && programs_on(node, veth) > 0
        {
            return since.elapsed();
        }
    }
    panic!("no program on {appeared:?}");
}

fn veths(node: &Netns) -> Vec<String> {
    let names = node.run(|| {
        let interfaces = nix::net::if_::if_nameindex().expect("interfaces");
        interfaces.iter().map(|i| i.name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    });
    names.into_iter().filter(|name| name.starts_with("veth")).collect()
}
