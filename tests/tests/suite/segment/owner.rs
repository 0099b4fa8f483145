//! Whose bridges and devices are, and what becomes of them when somebody deletes them.

use std::time::Duration;

use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::wait_until;

use super::{BLUE, RED, agents_with, assert_all_reach_each_other, assert_answered, build, two_tenants};

const SOON: Duration = Duration::from_secs(5);

/// What `ip` says of an interface of node 1; nothing if there is none.
fn shown(lab: &SegmentLab, interface: &str) -> String {
    lab.node(1).sh(&format!("ip -d -o link show dev {interface}")).unwrap_or_default()
}

/// The number of an interface of node 1: one that is made anew gets another.
fn index(lab: &SegmentLab, interface: &str) -> String {
    shown(lab, interface).split(':').next().unwrap_or_default().to_owned()
}

/// Waits until the tenant's device of node 1 is a port of its bridge again, and floods.
#[track_caller]
fn wait_for_port(lab: &SegmentLab, tenant: &str) {
    let (device, master) = (format!("vx-{tenant}"), format!(" master br-{tenant} "));
    let there = || {
        let shown = shown(lab, &device);
        let fdb = lab.node(1).sh(&format!("bridge fdb show dev {device}")).unwrap_or_default();
        fdb.contains("00:00:00:00:00:00 dst")
            && shown.contains(&master)
            && shown.contains(",UP")
            && shown.contains("alias vxlan-agent network")
    };
    wait_until("the device is a port of its bridge", SOON, there)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
}

#[test]
fn an_operators_bridge_is_used_and_stays() {
    let mut lab = build(&agents_with("address = \"10.66.99.{n}/16\""));
    assert_all_reach_each_other(&lab, RED);
    let before = shown(&lab, "br-red");
    assert!(!before.contains("alias"), "{before}");
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    let network = &status["networks"][0];
    assert_eq!(network["bridge"]["ours"], false);
    let caution = network["bridge"]["cautions"][0].as_str().unwrap_or_default();
    assert!(caution.contains("br-red is not ours"), "{status}");
    assert!(!lab.node(1).sh("ip -o addr show dev br-red").expect("a bridge").contains("10.66.99.1"));
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_eq!(shown(&lab, "vx-red"), "");
    let after = shown(&lab, "br-red");
    assert!(after.contains(" UP ") || after.contains(",UP"), "{after}");
    assert!(shown(&lab, "red-1-1").contains(" master br-red "), "its ports stay");
    assert!(!lab.node(1).sh("nft list tables").expect("tables").contains("vxlan-agent"));
}

#[test]
fn a_bridge_that_the_agent_makes_goes_with_the_network_unless_it_is_used() {
    let mut lab = build(&agents_with("").agents_make_bridges().hosts(1).tenants(two_tenants(4789)));
    for tenant in [RED, BLUE] {
        assert_all_reach_each_other(&lab, tenant);
        let heeds = lab.node(1).sh(&format!("cat /proc/sys/net/ipv6/conf/br-{tenant}/accept_ra"));
        assert_eq!(heeds.expect("a setting").trim(), "0", "a tenant's router is not the host's");
        assert!(shown(&lab, &format!("br-{tenant}")).contains("alias vxlan-agent bridge"));
    }
    lab.node(1).ip("link set blue-1-1 nomaster\n").expect("taken out");
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    wait_for_port(&lab, RED);
    assert_answered(lab.host(1, RED, 1), lab.host(2, RED, 1).ip4, Ping::default());
    let removed = lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_eq!((shown(&lab, "vx-red"), shown(&lab, "br-blue")), (String::new(), String::new()), "{removed}");
    assert!(shown(&lab, "red-1-1").contains(" master br-red "), "it needs the bridge");
}

#[test]
fn bridge_and_device_come_back_when_somebody_deletes_them() {
    let lab = build(&agents_with("address = \"10.66.99.{n}/16\"").agents_make_bridges());
    let (host, other) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
    for _ in 0..2 {
        assert_all_reach_each_other(&lab, RED);
        assert_answered(other, std::net::Ipv4Addr::new(10, 66, 99, 1), Ping::default());
        lab.node(1).ip("link del vx-red\n").expect("deleted");
        wait_for_port(&lab, RED);
        assert_answered(host, other.ip4, Ping::default());

        lab.node(1).ip("link del br-red\n").expect("deleted");
        wait_for_port(&lab, RED);
        let address =
            || lab.node(1).sh("ip -o addr show dev br-red").is_ok_and(|s| s.contains("10.66.99.1/16"));
        wait_until("the host has its address again", SOON, address).expect("in time");
        // The port is its operator's.
        lab.node(1).ip("link set red-1-1 master br-red\n").expect("a port");
        assert_answered(host, other.ip4, Ping::default());

        lab.node(1).ip("link set vx-red nomaster\nlink set br-red down\n").expect("set");
        wait_for_port(&lab, RED);
        let up = || shown(&lab, "br-red").contains(",UP");
        wait_until("the bridge is up", SOON, up).expect("in time");
        lab.node(1).ip("link set br-red alias \"\"\n").expect("set");
        let marked = || shown(&lab, "br-red").contains("alias vxlan-agent bridge red");
        wait_until("the bridge has its alias again", SOON, marked).expect("in time");
    }
}

#[test]
fn a_network_goes_on_while_its_agent_is_away() {
    let mut lab = build(&agents_with("").agents_make_bridges());
    assert_all_reach_each_other(&lab, RED);
    let before = ["br-red", "vx-red"].map(|name| index(&lab, name));
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("killed");
    assert_all_reach_each_other(&lab, RED);
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    assert_all_reach_each_other(&lab, RED);
    assert_eq!(["br-red", "vx-red"].map(|name| index(&lab, name)), before, "nothing was made anew");
}

#[test]
fn ports_that_are_too_large_for_the_segment_are_named() {
    let lab = build(&agents_with(""));
    lab.node(1)
        .ip("link add big type veth peer name gib\nlink set big mtu 9000 master br-red\n")
        .expect("a port");
    let cautioned = || {
        let status = lab.agent(1).and_then(|agent| agent.json(&["status"]));
        status.is_ok_and(|status| {
            status["networks"][0]["bridge"]["cautions"].to_string().contains("big has MTU 9000")
        })
    };
    wait_until("the port is named", SOON, cautioned).expect("in time");
    let text = lab.agent(1).and_then(|agent| agent.cli(&["status"])).expect("a status");
    assert!(text.contains("fast path  direct, "), "{text}");
    assert!(text.contains("caution    big has MTU 9000"), "{text}");
}

#[test]
fn an_agent_follows_a_segment_that_is_configured_otherwise() {
    let mut lab = build(&agents_with("").agents_make_bridges());
    assert_all_reach_each_other(&lab, RED);
    let reconfigure = |lab: &mut SegmentLab, from: &str, to: &str| {
        let agent = lab.agent_mut(1).expect("an agent");
        agent.reconfigure(from, to).expect("configured");
        agent.restart().expect("restarted");
    };
    reconfigure(&mut lab, "kind = \"l2\"\n", "kind = \"l2\"\nlearning = false\n");
    assert!(shown(&lab, "vx-red").contains(" nolearning"));
    assert_all_reach_each_other(&lab, RED);
    reconfigure(&mut lab, "bridge = \"br-red\"", "bridge = \"lan0\"");
    assert!(shown(&lab, "vx-red").contains(" master lan0 "));
    assert!(shown(&lab, "br-red").contains("alias"), "it has a port of somebody else's");
    lab.node(1).ip("link set red-1-1 master lan0\n").expect("a port");
    assert_all_reach_each_other(&lab, RED);
    let old_is_gone = || shown(&lab, "br-red").is_empty();
    wait_until("the bridge that nobody uses is gone", SOON, old_is_gone)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
}
