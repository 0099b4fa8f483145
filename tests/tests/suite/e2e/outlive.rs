//! What stays and what goes.

use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, tcp_bulk};
use vxlan_tests::lab::{AgentOptions, DEVICE, Family, Lab, LabSpec, Overlay, UNDERLAY, wait_until, xdp};

use super::{
    assert_answered, assert_decapsulated, assert_took, build, counted, filters_on, pair, programs_on,
    tcx_programs_on, warm_up,
};

#[test]
fn detach_removes_everything_that_is_ours_and_nothing_else() {
    let mut lab = build(&pair());
    warm_up(&lab);
    let node = lab.node(1);
    node.ip("link add foreign type vxlan id 77 dstport 4790 local 192.0.2.1\nlink set foreign up\nroute add 198.51.100.0/24 dev foreign\n").expect("a foreign device");
    let pins = lab.agent(1).and_then(|agent| agent.pins()).expect("pins");
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");

    let node = lab.node(1);
    let links = node.sh("ip -d link show").expect("links");
    assert!(!links.contains(DEVICE), "{links}");
    assert!(links.contains("foreign"), "{links}");
    assert_eq!(links.matches("vxlan id").count(), 1, "only the foreign device is left: {links}");
    let routes = node.sh("ip route").expect("routes");
    assert!(routes.contains("198.51.100.0/24"), "{routes}");
    assert!(!routes.contains("10.244.2.0/24"), "{routes}");
    assert!(!pins.exists(), "{} is still there", pins.display());
    for interface in [UNDERLAY, &lab.pod(1, 1).host_veth] {
        assert_eq!(programs_on(node, interface), 0, "on {interface}");
    }
    // And back again.
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    warm_up(&lab);
    let [one, _] = counted(&lab, || {
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 10, ..Ping::default() })
    });
    assert_took(&one, "pod_egress", "encapsulated", 10);
}

#[test]
fn what_somebody_else_removes_is_repaired() {
    let lab = build(&pair());
    warm_up(&lab);
    let node = lab.node(1);
    for damage in [
        "ip route del 10.244.2.0/24".to_owned(),
        format!("ip neigh del 10.244.2.0 dev {DEVICE}"),
        format!("bridge fdb del {} dev {DEVICE}", vxlan_tests::lab::addr::vtep_mac(2)),
        format!("ip link set {DEVICE} mtu 1300"),
        format!("ip link del {DEVICE}"),
    ] {
        node.sh(&damage).expect("damage");
        let repaired = || {
            let routes = node.sh("ip route").unwrap_or_default();
            let neighbours = node.sh(&format!("ip neigh show dev {DEVICE}")).unwrap_or_default();
            let fdb = node.sh(&format!("bridge fdb show dev {DEVICE}")).unwrap_or_default();
            let link = node.sh(&format!("ip link show {DEVICE}")).unwrap_or_default();
            routes.contains("10.244.2.0/24")
                && neighbours.contains("10.244.2.0 ")
                && fdb.contains("192.0.2.2")
                && link.contains("mtu 1450")
        };
        wait_until(&format!("`{damage}` is repaired"), Duration::from_secs(5), repaired)
            .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
            .expect("a repair");
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
    }
    // The programs are on the new device, too.
    let attached = || {
        let [one, _] = counted(&lab, || {
            assert_answered(lab.node(1), lab.pod(2, 1).ip4, Ping { count: 5, ..Ping::default() })
        });
        one.packets("tunnel_egress", "encapsulated") >= 5
    };
    wait_until("the programs are on the new device", Duration::from_secs(5), attached)
        .expect("an attachment");
}

#[test]
fn clsact_filters_do_what_tcx_links_do() {
    let options = || AgentOptions { node: "attach = \"clsact\"".into(), ..AgentOptions::default() };
    let mut lab = build(&LabSpec::pair(Overlay::Agent(options()), Overlay::Agent(options())));
    warm_up(&lab);
    let fast = |lab: &Lab| {
        for ip in lab.pod(2, 1).ips() {
            let nodes = counted(lab, || {
                assert_answered(lab.pod(1, 1), ip, Ping { count: 10, ..Ping::default() });
                tcp_bulk(lab.pod(1, 1), lab.pod(2, 1), ip, 16 << 20).expect("a transfer");
            });
            for node in &nodes {
                assert_took(node, "pod_egress", "encapsulated", 10);
                assert_decapsulated(node, Family::V4, ip, 10);
            }
        }
    };
    fast(&lab);
    let filters = |lab: &Lab| filters_on(lab.node(1), UNDERLAY);
    // XDP has no place among filters.
    let ours = if xdp().is_some() { 2 } else { 1 };
    assert_eq!((tcx_programs_on(lab.node(1), UNDERLAY), filters(&lab)), (0, ours), "clsact, not TCX");
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
    fast(&lab);
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    fast(&lab);
    assert_eq!(filters(&lab), ours, "a filter is replaced, not doubled");
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");
    assert_eq!(filters(&lab), 0, "detached");
}

#[test]
fn a_device_that_is_not_ours_is_refused() {
    let mut lab = build(&pair());
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");
    lab.node(1)
        .ip(&format!("link add {DEVICE} type vxlan id 1 dstport 8472 local 192.0.2.1\n"))
        .expect("a device");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
    let agent = lab.agent(1).expect("an agent");
    let refused = || agent.log().contains(DEVICE) && agent.log().contains("not ours");
    wait_until("the device is refused", Duration::from_secs(5), refused)
        .inspect_err(|_| agent.print_log())
        .expect("a refusal");
    let link = lab.node(1).sh(&format!("ip -d link show {DEVICE}")).expect("a device");
    assert!(link.contains("vxlan id 1") && !link.contains("alias"), "{link}");
}

#[test]
fn a_new_pod_is_attached_as_soon_as_its_veth_appears() {
    let lab = build(&pair());
    warm_up(&lab);
    let node = lab.node(1);
    node.ip("link add late type veth peer name latepeer\nlink set late master cni0\nlink set late up\n")
        .expect("a veth");
    node.sh(&format!("ip link set latepeer netns {} name eth1", lab.pod(1, 1).namespace())).expect("a peer");
    // Up, as a CNI plugin leaves it: that is when the node hears of it.
    lab.pod(1, 1).sh("ip link set eth1 up").expect("up");
    let started = std::time::Instant::now();
    let attached = || programs_on(node, "late") == 1;
    wait_until("the new pod's veth has its program", Duration::from_secs(5), attached)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("an attachment");
    eprintln!("attached after at most {:?}", started.elapsed());
}
