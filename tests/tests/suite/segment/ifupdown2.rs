//! ifupdown2 as the owner of a bridged device.

use std::fmt::Write as _;

use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::{IFUPDOWN2, Ifupdown2};

use super::beside::{assert_an_owner_is_followed, without_device};
use super::{RED, assert_all_reach_each_other};

/// The device of node 1, which floods to nodes `peers`. The bridge is the lab's: those that ifupdown2 makes want a
/// kernel that filters VLANs.
fn interfaces(lab: &SegmentLab, peers: &[u8]) -> String {
    let tenant = lab.tenant(RED);
    let (device, bridge) = (tenant.device(), tenant.bridge());
    let mut text = format!(
        "auto {device}\niface {device}\n vxlan-id {}\n vxlan-port {}\n vxlan-local-tunnelip {}\n mtu {}\n \
         post-up ip link set {device} master {bridge}\n",
        tenant.vni,
        tenant.port,
        underlay4(1),
        lab.spec().host_mtu(),
    );
    peers.iter().for_each(|peer| _ = writeln!(text, " vxlan-remoteip {}", underlay4(*peer)));
    text
}

#[test]
fn a_device_that_ifupdown2_makes_and_changes_is_accelerated() {
    if !Ifupdown2::is_there() {
        eprintln!(
            "SKIPPED: {IFUPDOWN2} names no unpacked package to test with, or there is no Python for it"
        );
        return;
    }
    let mut lab = without_device();
    let owner = Ifupdown2::open(lab.node(1), lab.run_dir().join("ifupdown2")).expect("ifupdown2");
    let tell = |peers: &[u8]| owner.reload(&interfaces(&lab, peers)).expect("taken");
    tell(&[2]);
    assert_an_owner_is_followed(&lab, tell);
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("killed");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_all_reach_each_other(&lab, RED);
}
