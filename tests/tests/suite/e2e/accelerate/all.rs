//! All devices of a node, as they come and go.

use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{AgentOptions, Beside, DEVICE, Lab, UNDERLAY, wait_until};

use super::{SOON, accelerated, kernels, wait_fast};
use crate::e2e::{assert_answered, build, programs_on};

/// Names of the networks on node 1, each with its device.
fn networks(lab: &Lab) -> Vec<(String, String)> {
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let networks = status["networks"].as_array().expect("a list").iter();
    networks.map(|network| (text(&network["name"]), text(&network["device"]))).collect()
}

#[track_caller]
fn wait_for(lab: &Lab, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(name, device)| ((*name).into(), (*device).into())).collect();
    wait_until("the networks are those of the devices", SOON, || networks(lab) == expected)
        .inspect_err(|_| eprintln!("{:?}", networks(lab)))
        .expect("in time");
}

/// What `status` says of devices that have no network.
fn without(lab: &Lab) -> String {
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    status["every"]["left"].to_string()
}

/// What the network called `name` leaves to the kernel.
fn left_of(lab: &Lab, name: &str) -> String {
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    let networks = status["networks"].as_array().expect("a list").iter();
    networks.filter(|network| network["name"] == name).map(|network| network["left"].to_string()).collect()
}

#[test]
fn every_device_has_a_network_that_comes_and_goes_with_it() {
    let mut lab = build(&kernels());
    let beside = Some(Beside::CommandLine(vec!["--all"]));
    let options = AgentOptions { fastpath: "direct".into(), beside, ..AgentOptions::default() };
    lab.add_agent(1, &options).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    wait_fast(&lab, 1, 2);
    wait_for(&lab, &[("flannel-1", DEVICE)]);
    let node = lab.node(1);
    let add = |name: &str, port: u16, more: &str| {
        format!("link add {name} type vxlan id 71 dstport {port} {more}\nlink set {name} up\n")
    };
    // One of another agent's, and one that no short cut can do.
    let local = format!("local {} dev {UNDERLAY}", underlay4(1));
    node.ip(
        "link add other type vxlan id 70 dstport 4789\nlink set other alias \"vxlan-agent network other\"\n",
    )
    .expect("a device");
    node.ip(&format!("link set other up\n{}", add("odd", 4790, "gbp"))).expect("a device");
    node.ip(&add("v2", 4789, &local)).expect("a device");
    wait_for(&lab, &[("flannel-1", DEVICE), ("v2", "v2")]);
    let says = || without(&lab).contains("odd does more") && !without(&lab).contains("other");
    wait_until("it says what it leaves", SOON, says).expect("in time");
    assert_eq!(programs_on(node, "v2"), 1);
    // Both have the same pods.
    node.sh("bridge fdb add 02:00:00:00:00:07 dev v2 self permanent dst 192.0.2.7").expect("a VTEP");
    node.ip("neigh add 10.250.0.0 lladdr 02:00:00:00:00:07 dev v2 nud permanent\n").expect("a neighbour");
    node.ip("route add 10.250.0.0/24 via 10.250.0.0 dev v2 onlink\n").expect("a route");
    let tells = || left_of(&lab, "v2").contains("the short cut of network 'flannel-1'");
    wait_until("it says that they are another network's", SOON, tells).expect("in time");
    assert!(!left_of(&lab, "flannel-1").contains("short cut of network"));
    node.ip("link set v2 down\nlink set v2 name w2\nlink set w2 up\n").expect("renamed");
    wait_for(&lab, &[("flannel-1", DEVICE), ("v2", "w2")]);
    node.ip("link del w2\n").expect("gone");
    wait_for(&lab, &[("flannel-1", DEVICE)]);
    // Made anew in one go.
    node.ip(&format!("link del {DEVICE}\n")).expect("gone");
    lab.make_device(1, 2).expect("a device");
    wait_fast(&lab, 1, 2);
    // Commands know what there is, whether or not the agent lives.
    let agent = lab.agent(1).expect("an agent");
    assert!(
        agent.cli(&["dump", "routes", "--network", "flannel-1"]).expect("routes").contains("10.244.2.0/24")
    );
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    let agent = lab.agent(1).expect("an agent");
    agent.cli(&["fastpath", "off"]).expect("switched");
    agent.cli(&["detach"]).expect("detached");
    assert_eq!(programs_on(lab.node(1), DEVICE), 0);
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping::default());
}

#[test]
fn all_devices_are_a_configuration_that_may_change() {
    let lab = accelerated();
    let local = underlay4(1);
    lab.node(1)
        .ip(&format!("link add v2 type vxlan id 72 dstport 4789 local {local}\nlink set v2 up\n"))
        .expect("a device");
    let agent = lab.agent(1).expect("an agent");
    let one = format!("device = \"{DEVICE}\"");
    agent.reconfigure(&one, "devices = \"all\"").expect("configured");
    wait_for(&lab, &[("flannel-1", DEVICE), ("v2", "v2")]);
    wait_fast(&lab, 1, 2);
    assert!(agent.cli(&["dump", "vteps"]).expect("VTEPs").contains("192.0.2.2"));
    agent.reconfigure("devices = \"all\"", &one).expect("configured");
    wait_for(&lab, &[("flannel-1", DEVICE)]);
    assert_eq!(programs_on(lab.node(1), "v2"), 0);
    wait_fast(&lab, 1, 2);
}
