//! The short cut beside a device of somebody else's that is the port of a bridge.

use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::segment::{Host, TenantSpec};
use vxlan_tests::lab::traffic::{Ping, UdpStream, ping};
use vxlan_tests::lab::{AgentOptions, SegmentSpec, UNDERLAY, wait_until};

use super::fast::{SOON, taken_out};
use super::{RED, SegmentLab, assert_all_reach_each_other, build, kernel, two_tenants};
use crate::e2e::accelerate::dump::{assert_same, dump};

/// Devices of one owner on a node.
const MANY: u32 = 24;

/// Whether frames between hosts take the short cut at the node of the first one, both ways: a kernel node on a veth
/// leaves outer checksums to the device, which then takes the frame out of the tunnel.
pub(super) fn takes_the_short_cut(lab: &SegmentLab, from: &Host, to: &Host) -> bool {
    let agent = lab.agent(from.node).expect("an agent");
    let Ok(before) = agent.counters_of(&from.tenant) else { return false };
    let answered =
        ping(from, to.ip4, Ping { count: 10, ..Ping::default() }).expect("a socket").all_answered();
    // An agent that is starting has none for a moment.
    let Ok(now) = agent.counters_of(&from.tenant) else { return false };
    let during = &now - &before;
    let arrived = during.packets("tunnel_ingress", "delivered") + taken_out(&during).packets;
    answered && during.packets("port_ingress", "encapsulated") >= 8 && arrived >= 8
}

#[track_caller]
fn wait_fast(lab: &SegmentLab) {
    for tenant in &lab.spec().tenants {
        wait_fast_between(lab, lab.host(1, &tenant.name, 1), lab.host(2, &tenant.name, 1));
    }
}

/// Waits until frames between hosts take the short cut at the node of the first one.
#[track_caller]
fn wait_fast_between(lab: &SegmentLab, from: &Host, to: &Host) {
    wait_until("frames take the short cut", SOON, || takes_the_short_cut(lab, from, to))
        .inspect_err(|_| {
            let agent = lab.agent(from.node).expect("an agent");
            eprintln!("{}", agent.cli(&["status"]).unwrap_or_default());
            agent.print_log();
            eprintln!("{}", agent.counters().expect("counters"));
        })
        .expect("in time");
}

/// Three nodes, of which the first has an agent, and no device until its owner makes one.
pub(super) fn without_device() -> SegmentLab {
    let mut lab = build(&SegmentSpec::of(vec![kernel(); 3]));
    lab.node(1).ip(&format!("link del {}\n", lab.tenant(RED).device())).expect("gone");
    lab.add_agent(1, &AgentOptions::beside("verified", "")).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("started");
    lab
}

/// Asserts that the device of node 1, which floods to node 2, is accelerated and stays so under traffic while `tell` tells
/// its owner the same again, which changes nothing, and then that node 3 is there, too.
pub(super) fn assert_an_owner_is_followed(lab: &SegmentLab, mut tell: impl FnMut(&[u8])) {
    let (one, two, three) = (lab.host(1, RED, 1), lab.host(2, RED, 1), lab.host(3, RED, 1));
    wait_fast_between(lab, one, two);
    let before = dump(lab.node(1));
    let stream = UdpStream::start(one, two, two.ip4.into(), 1000, 100).expect("a stream");
    tell(&[2]);
    wait_fast_between(lab, one, two);
    assert_same(&before, &dump(lab.node(1)), "after its owner was told the same again");
    tell(&[2, 3]);
    wait_fast_between(lab, one, three);
    wait_fast_between(lab, one, two);
    let report = stream.stop().expect("a report");
    assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
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
fn many_devices_of_an_owner_are_accelerated_and_come_and_go_one_by_one() {
    let tenants = (0..MANY).map(|n| TenantSpec::new(&format!("t{n}"), 5_000 + n));
    let mut lab = build(&SegmentSpec::pair(kernel(), kernel()).tenants(tenants));
    let before = dump(lab.node(1));
    lab.add_agent(1, &AgentOptions::beside("verified", "")).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    wait_fast(&lab);
    assert_same(&before, &dump(lab.node(1)), "while it runs");
    // One of them is made anew, with nobody in it; the others do not notice.
    let gone = "t3";
    let (from, to) = (lab.host(1, "t4", 1), lab.host(2, "t4", 1));
    let stream = UdpStream::start(from, to, to.ip4.into(), 1000, 100).expect("a stream");
    remake(&lab, 1, gone, "");
    let once = Ping { timeout: std::time::Duration::from_millis(100), ..Ping::default() };
    let reaches = || {
        ping(lab.host(1, gone, 1), lab.host(2, gone, 1).ip4, once).is_ok_and(|report| report.all_answered())
    };
    assert!(!reaches(), "nobody is in it");
    let device = lab.tenant(gone).device();
    let flood = format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {}", underlay4(2));
    lab.node(1).sh(&flood).expect("an entry");
    wait_until("the kernel reaches it", SOON, reaches).expect("in time");
    wait_fast(&lab);
    let report = stream.stop().expect("a report");
    assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
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

/// Makes a tenant's device of node `n` anew, with further `words` for `ip link add`, and without entries.
pub(super) fn remake(lab: &SegmentLab, n: u8, tenant: &str, words: &str) {
    let (tenant, node) = (lab.tenant(tenant), lab.node(n));
    let (device, bridge, mtu) = (tenant.device(), tenant.bridge(), lab.spec().host_mtu());
    let (vni, port, local) = (tenant.vni, tenant.port, node.underlay);
    node.ip(&format!(
        "link del {device}\n\
         link add {device} mtu {mtu} type vxlan id {vni} local {local} dstport {port} {words}\n\
         link set {device} master {bridge} up\n"
    ))
    .expect("a device");
}

/// Accelerates the device of node 1, whose owner gives every node's device these words and enters nothing.
fn owner_enters_nothing(nodes: u8, words: impl Fn(u8) -> String) {
    let mut lab = build(&SegmentSpec::of(vec![kernel(); usize::from(nodes)]));
    // The last node comes later.
    (1..nodes).for_each(|n| remake(&lab, n, RED, &words(n)));
    lab.add_agent(1, &AgentOptions::beside("verified", "")).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
    remake(&lab, nodes, RED, &words(nodes));
    let fast = || (2..=nodes).all(|n| takes_the_short_cut(&lab, lab.host(1, RED, 1), lab.host(n, RED, 1)));
    wait_until("frames take the short cut", SOON, fast)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
    // Made anew by its owner.
    remake(&lab, 1, RED, &words(1));
    wait_until("frames take the short cut again", SOON, fast).expect("in time");
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    let now = dump(lab.node(1));
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_same(&now, &dump(lab.node(1)), "after detach");
    assert_all_reach_each_other(&lab, RED);
}

#[test]
fn a_device_with_a_remote_is_accelerated() {
    owner_enters_nothing(2, |n| format!("remote {}", underlay4(3 - n)));
}

#[test]
fn a_device_with_a_multicast_group_is_accelerated() {
    owner_enters_nothing(3, |_| format!("group 239.1.1.1 dev {UNDERLAY}"));
}
