//! XDP next to VLANs, to programs of others, and where it does not pay.

use std::path::PathBuf;
use std::time::Duration;

use aya::programs::{Xdp, XdpMode};
use aya_obj::programs::XdpAttachType;
use vxlan_tests::lab::addr::{inner4, underlay4};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject, tcp_bulk};
use vxlan_tests::lab::{AgentOptions, Family, Lab, LabSpec, Netns, Overlay, PORT, UNDERLAY, VNI, Vlan, WIRE};

use super::guard::forged;
use super::{
    assert_answered, assert_decapsulated_at, assert_nothing_dropped, assert_took, build, counted, pair,
    warm_up,
};

/// An agent with this `xdp` setting.
fn agent(xdp: &str) -> Overlay {
    Overlay::Agent(AgentOptions { node: format!("xdp = \"{xdp}\""), ..AgentOptions::default() })
}

/// What `status` says about XDP on node `n`.
fn status(lab: &Lab, n: u8) -> String {
    let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).expect("a status");
    status["networks"][0]["xdp"].as_str().expect("a sentence").to_owned()
}

/// The id of the XDP program on an interface of `ns`.
fn program_on(ns: &Netns, interface: &str) -> Option<u32> {
    let listed = ns.sh(&format!("ip -details -json link show dev {interface}")).expect("an interface");
    let listed: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    Some(listed[0]["xdp"]["prog"]["id"].as_u64()? as u32)
}

/// Traffic both ways, which `hook` of node 2 must have taken out of the tunnel.
fn arrives(lab: &Lab, hook: &str) {
    for ip in lab.pod(2, 1).ips() {
        let nodes = counted(lab, || {
            assert_answered(lab.pod(1, 1), ip, Ping { count: 10, ..Ping::default() });
            tcp_bulk(lab.pod(1, 1), lab.pod(2, 1), ip, 8 << 20).expect("a transfer");
        });
        assert_decapsulated_at(hook, &nodes[1], Family::V4, ip, 10);
        nodes.iter().for_each(assert_nothing_dropped);
    }
}

#[test]
fn a_tag_of_another_vlan_is_not_looked_behind() {
    let lab = build(&LabSpec::pair(agent("native"), agent("native")));
    warm_up(&lab);
    let mut frame = forged(&lab, underlay4(2), inner4(2, 9), VNI);
    frame.splice(12..12, [0x81, 0, 0, 100]);
    let capture = Capture::start(lab.node(1), UNDERLAY).expect("a capture");
    let [one, _] = counted(&lab, || {
        inject(lab.node(2), UNDERLAY, &frame).expect("sent");
        // The stack has taken the tag off the bytes, but not off the packet.
        let whole = |frame: &Frame| frame.udp_ports().is_some_and(|(_, to)| to == PORT);
        let seen = capture.next(Duration::from_secs(2), whole).expect("a capture");
        assert!(seen.is_some(), "not left alone");
    });
    assert_eq!(one.total("decapsulated"), 0, "{one}");
}

#[test]
fn somebody_who_captures_on_the_underlay_does_not_change_the_way_of_packets() {
    let lab = build(&LabSpec::pair(agent("native"), agent("native")));
    warm_up(&lab);
    let _capture = Capture::start(lab.node(2), UNDERLAY).expect("a capture");
    let [_, two] = counted(&lab, || arrives(&lab, "underlay_xdp"));
    let (stripped, delivered) =
        (two.get("underlay_xdp", "decapsulated"), two.get("stripped_ingress", "delivered"));
    assert_eq!(stripped.packets, delivered.packets, "{two}");
}

/// Whether this kernel has VLAN interfaces.
fn has_vlans() -> bool {
    build(&pair()).node(1).has_vlans(UNDERLAY)
}

#[test]
fn an_underlay_in_a_vlan_is_decapsulated_on_the_interface_below() {
    if !has_vlans() {
        return;
    }
    for vlan in [Vlan::Offloaded, Vlan::Inline] {
        for gro in [false, true] {
            let lab = build(&LabSpec { gro, ..LabSpec::pair(agent("native"), agent("native")).vlan(vlan) });
            warm_up(&lab);
            assert_eq!(status(&lab, 2), format!("native on {WIRE}"));
            arrives(&lab, "underlay_xdp");
        }
    }
}

#[test]
fn an_underlay_in_a_vlan_is_decapsulated_by_tc() {
    if !has_vlans() {
        return;
    }
    let lab = build(&LabSpec::pair(agent("off"), agent("off")).vlan(Vlan::Inline));
    warm_up(&lab);
    arrives(&lab, "underlay_ingress");
    assert_eq!(program_on(lab.node(2), WIRE), None);
}

#[test]
fn by_itself_xdp_stays_away_from_a_veth_and_says_so_once() {
    let lab = build(&LabSpec::pair(agent("auto"), agent("auto")));
    warm_up(&lab);
    assert_eq!(program_on(lab.node(2), UNDERLAY), None);
    let reason = status(&lab, 2);
    assert!(reason.contains("underlay0 is virtual"), "{reason}");
    arrives(&lab, "underlay_ingress");
    let log = lab.agent(2).expect("an agent").log();
    assert_eq!(log.matches("no XDP").count(), 1, "{log}");
}

#[test]
fn a_program_of_somebody_else_stays_and_tc_does_the_work() {
    let mut lab = build(&LabSpec::pair(agent("native"), agent("native")));
    warm_up(&lab);
    let pin: PathBuf =
        lab.agent(2).and_then(|agent| agent.pins()).expect("pins").join("programs/underlay_xdp");
    let mut foreign = Xdp::from_pin(pin, XdpAttachType::Interface).expect("a pinned program");
    // It goes on with maps of its own, in which it is switched off.
    lab.agent(2).and_then(|agent| agent.cli(&["fastpath", "off"])).expect("switched off");
    lab.agent_mut(2).and_then(|agent| agent.stop()).expect("an end");
    lab.agent(2).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_eq!(program_on(lab.node(2), UNDERLAY), None);
    let link = lab.node(2).run(|| {
        let index = nix::net::if_::if_nametoindex(UNDERLAY).expect("an interface");
        let id = foreign.attach(index, XdpMode::Driver).expect("attached");
        foreign.take_link(id).expect("a link")
    });
    let theirs = program_on(lab.node(2), UNDERLAY).expect("a program");
    lab.agent_mut(2).and_then(|agent| agent.spawn()).expect("a start");
    let said =
        || lab.agent(2).expect("an agent").log().contains("an XDP program of somebody else, which stays");
    vxlan_tests::lab::wait_until("the agent says why", Duration::from_secs(10), said).expect("a clear error");
    warm_up(&lab);
    arrives(&lab, "underlay_ingress");
    assert_eq!(program_on(lab.node(2), UNDERLAY), Some(theirs));
    drop(link);
    let back = || program_on(lab.node(2), UNDERLAY).is_some();
    vxlan_tests::lab::wait_until("ours is back", Duration::from_secs(40), back).expect("tried again");
}

#[test]
fn the_program_goes_with_its_agents_detach_and_comes_back_after_a_restart() {
    let mut lab = build(&LabSpec::pair(agent("native"), agent("native")));
    warm_up(&lab);
    let before = program_on(lab.node(2), UNDERLAY).expect("a program");
    lab.agent_mut(2).and_then(|agent| agent.restart()).expect("a restart");
    let after = program_on(lab.node(2), UNDERLAY).expect("a program");
    assert_ne!(before, after, "the new agent's program has taken its place");
    arrives(&lab, "underlay_xdp");
    // Switched off, what is before the stack is left alone, too.
    lab.agent(2).and_then(|agent| agent.cli(&["fastpath", "off"])).expect("switched off");
    let [_, two] = counted(&lab, || {
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 5, ..Ping::default() });
    });
    assert_took(&two, "underlay_xdp", "switched_off", 5);
}
