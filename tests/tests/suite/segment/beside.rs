//! The short cut beside a device of somebody else's that is the port of a bridge.

use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, SegmentSpec, UNDERLAY, wait_until};

use super::fast::SOON;
use super::{RED, SegmentLab, assert_all_reach_each_other, build, kernel, two_tenants};
use crate::e2e::accelerate::dump::{assert_same, dump};

/// Whether frames of a tenant between the nodes take the short cut at node 1, both ways: a kernel node on a veth leaves
/// outer checksums to the device, which then takes the frame out of the tunnel.
fn is_fast(lab: &SegmentLab, tenant: &str) -> bool {
    let (from, to) = (lab.host(1, tenant, 1), lab.host(2, tenant, 1));
    let agent = lab.agent(1).expect("an agent");
    let Ok(before) = agent.counters_of(tenant) else { return false };
    let answered =
        ping(from, to.ip4, Ping { count: 10, ..Ping::default() }).expect("a socket").all_answered();
    let during = &agent.counters_of(tenant).expect("counters") - &before;
    let arrived =
        during.packets("tunnel_ingress", "delivered") + during.packets("underlay_ingress", "decapsulated");
    answered && during.packets("port_ingress", "encapsulated") >= 8 && arrived >= 8
}

fn wait_fast(lab: &SegmentLab) {
    for tenant in &lab.spec().tenants {
        wait_until("frames take the short cut", SOON, || is_fast(lab, &tenant.name))
            .inspect_err(|_| {
                let agent = lab.agent(1).expect("an agent");
                eprintln!("{}", agent.cli(&["status"]).unwrap_or_default());
                eprintln!("{}", agent.counters().expect("counters"));
            })
            .expect("in time");
    }
}

#[test]
fn an_owners_bridge_is_accelerated_and_left_as_it_is() {
    for mode in ["verified", "direct"] {
        let mut lab = build(&SegmentSpec::pair(kernel(), kernel()).tenants(two_tenants(4789)));
        let tenants: Vec<String> = lab.spec().tenants.iter().map(|tenant| tenant.name.clone()).collect();
        tenants.iter().for_each(|tenant| assert_all_reach_each_other(&lab, tenant));
        let before = dump(lab.node(1));
        lab.add_agent(1, &AgentOptions::beside(mode, "")).expect("an agent");
        lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
        wait_fast(&lab);
        assert_same(&before, &dump(lab.node(1)), "while it runs");
        let status = lab.agent(1).and_then(|agent| agent.cli(&["status"])).expect("a status");
        let bridge = format!("bridge     {}, an operator's", lab.tenant(RED).bridge());
        assert!(status.contains("accelerated") && status.contains(&bridge), "{status}");
        lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("killed");
        wait_fast(&lab);
        lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
        wait_fast(&lab);
        lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
        lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
        assert_same(&before, &dump(lab.node(1)), "after detach");
        let shown = lab.node(1).sh(&format!("ip -d link show {UNDERLAY}")).expect("a link");
        assert!(!shown.contains("prog"), "{shown}");
        tenants.iter().for_each(|tenant| assert_all_reach_each_other(&lab, tenant));
    }
}

#[test]
fn a_device_that_enters_and_leaves_its_bridge_is_followed() {
    let mut lab = build(&SegmentSpec::pair(kernel(), kernel()));
    lab.add_agent(1, &AgentOptions::beside("direct", "")).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    assert_all_reach_each_other(&lab, RED);
    wait_fast(&lab);
    let (device, bridge) = (lab.tenant(RED).device(), lab.tenant(RED).bridge());
    lab.node(1).ip(&format!("link set {device} nomaster\n")).expect("out of the bridge");
    let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
    let reaches = || {
        let once = Ping { timeout: std::time::Duration::from_millis(100), ..Ping::default() };
        ping(from, to.ip4, once).is_ok_and(|report| report.all_answered())
    };
    wait_until("nothing gets there", SOON, || !reaches()).expect("in time");
    lab.node(1).ip(&format!("link set {device} master {bridge}\n")).expect("a port again");
    wait_until("it is reached", SOON, reaches).expect("in time");
    wait_fast(&lab);
}
