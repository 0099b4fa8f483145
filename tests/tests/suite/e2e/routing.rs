//! The tunnel follows the node's routing, IPsec policies and the vxlan device's features, or leaves
//! packets to the kernel, which does.

use std::time::Duration;

use etherparse::icmpv4::DestUnreachableHeader;
use etherparse::{Icmpv4Type, PacketBuilder};

use vxlan_tests::lab::addr::{inner4, underlay4};
use vxlan_tests::lab::traffic::{Ping, inject, mac_of};
use vxlan_tests::lab::{Counters, DEVICE, Lab, PORT, UNDERLAY, VNI, wait_until};

use super::{assert_answered, assert_took, build, counted, pair, warm_up};

/// Well above what a change takes, and below the next resync.
const FOLLOWED: Duration = Duration::from_secs(5);

/// Echoes of `payload` bytes from node 1 to node 2, and what node 1 counted.
fn echoes(lab: &Lab, payload: usize) -> Counters {
    let options = Ping { count: 10, payload, ..Ping::default() };
    let [one, _] = counted(lab, || assert_answered(lab.pod(1, 1), inner4(2, 2), options));
    one
}

/// The only VTEP in node 1's maps.
fn vtep(lab: &Lab) -> serde_json::Value {
    let vteps = lab.agent(1).and_then(|agent| agent.json(&["dump", "vteps"])).expect("VTEPs");
    vteps[0].clone()
}

/// Waits until what node 1 knows of its only VTEP is no longer `before`.
fn wait_for_change(lab: &Lab, before: &serde_json::Value) {
    wait_until("the agent follows", FOLLOWED, || vtep(lab) != *before)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("a change");
}

/// Waits until node `n` says that IPsec policies are about its first peer, or that none are.
pub(super) fn wait_for_ipsec(lab: &Lab, n: u8, wanted: bool) {
    let ipsec = || {
        let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).expect("a status");
        status["networks"][0]["nodes"][0]["ipsec"] == wanted
    };
    wait_until("the agent follows", FOLLOWED, ipsec).expect("the policies");
}

fn second_link(lab: &Lab) {
    let peer = lab.node(2).namespace();
    lab.node(1)
        .ip(&format!(
            "link add eth9 type veth peer name eth9 netns {peer}\naddr add 198.51.100.1/24 dev eth9\n\
             link set eth9 up\n"
        ))
        .expect("a veth");
    lab.node(2).ip("addr add 198.51.100.2/24 dev eth9\nlink set eth9 up\n").expect("its end");
}

/// Packets that left node 1 by `interface`.
fn sent(lab: &Lab, interface: &str) -> u64 {
    let shown = lab.node(1).sh(&format!("ip -s -j link show dev {interface}")).expect("statistics");
    let links: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
    links[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
}

#[test]
fn a_route_and_a_rule_lead_the_tunnel_through_another_interface() {
    let lab = build(&pair());
    warm_up(&lab);
    second_link(&lab);
    let to = underlay4(2);
    for (add, remove) in [
        (format!("route add {to}/32 dev eth9\n"), format!("route del {to}/32 dev eth9\n")),
        (
            format!("route add {to}/32 dev eth9 table 100\nrule add to {to} lookup 100\n"),
            format!("rule del to {to} lookup 100\nroute del {to}/32 dev eth9 table 100\n"),
        ),
    ] {
        let (direct, before) = (vtep(&lab), sent(&lab, "eth9"));
        lab.node(1).ip(&add).expect("a route");
        wait_for_change(&lab, &direct);
        assert_took(&echoes(&lab, 100), "pod_egress", "encapsulated", 10);
        assert!(sent(&lab, "eth9") >= before + 10, "not as routed");
        let around = vtep(&lab);
        lab.node(1).ip(&remove).expect("no route");
        wait_for_change(&lab, &around);
        let before = sent(&lab, "eth9");
        assert_took(&echoes(&lab, 100), "pod_egress", "encapsulated", 10);
        assert!(sent(&lab, "eth9") < before + 10, "still round about");
    }
}

#[test]
fn several_next_hops_are_the_kernels() {
    let lab = build(&pair());
    warm_up(&lab);
    second_link(&lab);
    let before = vtep(&lab);
    let to = underlay4(2);
    let route = format!("route add {to}/32 nexthop dev eth9 nexthop dev {UNDERLAY}\n");
    lab.node(1).ip(&route).expect("a route");
    wait_for_change(&lab, &before);
    let one = echoes(&lab, 100);
    assert_took(&one, "pod_egress", "no_next_hop", 10);
    assert_eq!(one.total("encapsulated"), 0, "{one}");
}

#[test]
fn what_is_larger_than_the_routes_mtu_is_the_kernels() {
    let lab = build(&pair());
    warm_up(&lab);
    let route = format!("route add {}/32 dev {UNDERLAY} mtu 1400\n", underlay4(2));
    lab.node(1).ip(&route).expect("a route");
    let large = || {
        let one = echoes(&lab, 1400);
        one.packets("pod_egress", "too_big") >= 10
    };
    wait_until("the agent follows", FOLLOWED, large).expect("the route's MTU");
    assert_took(&echoes(&lab, 1300), "pod_egress", "encapsulated", 10);
}

/// What a router on the way tells node 1 that has no room for what it sends node 2: the first bytes of a
/// tunnel's packet come with it.
fn too_big(lab: &Lab, mtu: u16) -> Vec<u8> {
    let [_, a, b, c] = VNI.to_be_bytes();
    let mut refused = Vec::new();
    PacketBuilder::ipv4(underlay4(1).octets(), underlay4(2).octets(), 64)
        .udp(40_000, PORT)
        .write(&mut refused, &[8, 0, 0, 0, a, b, c, 0])
        .expect("a packet");
    let unreachable = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: mtu };
    let mac = |n| mac_of(lab.node(n), UNDERLAY).expect("a MAC");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(2), mac(1))
        .ipv4(underlay4(2).octets(), underlay4(1).octets(), 64)
        .icmpv4(Icmpv4Type::DestinationUnreachable(unreachable))
        .write(&mut frame, &refused)
        .expect("a packet");
    frame
}

#[test]
fn what_is_larger_than_the_path_takes_is_the_kernels_once_it_has_learnt_that() {
    let lab = build(&pair());
    warm_up(&lab);
    assert_took(&echoes(&lab, 1350), "pod_egress", "encapsulated", 10);
    inject(lab.node(2), UNDERLAY, &too_big(&lab, 1300)).expect("sent");
    let knows =
        || lab.node(1).sh(&format!("ip route get {}", underlay4(2))).is_ok_and(|r| r.contains("mtu 1300"));
    wait_until("the kernel learns", FOLLOWED, knows).expect("the path's MTU");
    let large = || echoes(&lab, 1350).packets("pod_egress", "too_big") >= 10;
    wait_until("the agent follows", FOLLOWED, large).expect("the path's MTU");
    assert_took(&echoes(&lab, 1200), "pod_egress", "encapsulated", 10);
}

#[test]
fn where_an_ipsec_policy_may_apply_nothing_is_encapsulated() {
    let lab = build(&pair());
    warm_up(&lab);
    let (from, to) = (underlay4(1), underlay4(2));
    let policy = |verb: &str, rest: &str| {
        lab.node(1)
            .ip(&format!("xfrm policy {verb} src {from} dst {to} dir out {rest}\n"))
            .expect("a policy");
    };
    policy("add", &format!("tmpl src {from} dst {to} proto esp mode transport"));
    wait_for_ipsec(&lab, 1, true);
    let options = Ping { count: 3, timeout: Duration::from_millis(200), ..Ping::default() };
    let [one, _] = counted(&lab, || {
        let report = vxlan_tests::lab::traffic::ping(lab.pod(1, 1), inner4(2, 2), options);
        assert!(report.expect("a socket").rtts.is_empty(), "something left in clear");
    });
    assert_took(&one, "pod_egress", "ipsec", 3);
    policy("delete", "");
    wait_for_ipsec(&lab, 1, false);
    assert_took(&echoes(&lab, 100), "pod_egress", "encapsulated", 10);
}

#[test]
fn a_device_whose_offloads_are_off_completes_packets_itself() {
    let lab = build(&pair());
    warm_up(&lab);
    let follows = |switch: &str, hook_reason: &str| {
        lab.node(1).sh(&format!("ethtool -K {DEVICE} tx-checksum-ip-generic {switch}")).expect("a feature");
        let took = || echoes(&lab, 100).packets("pod_egress", hook_reason) >= 10;
        wait_until("the agent follows", FOLLOWED, took).expect("the device's features");
    };
    follows("off", "offload");
    follows("on", "encapsulated");
}
