//! systemd-networkd as the owner of a bridged device.

use vxlan_tests::lab::Networkd;
use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::segment::SegmentLab;

use super::beside::{assert_an_owner_is_followed, without_device};
use super::{RED, assert_all_reach_each_other};
use crate::e2e::accelerate::dump::{assert_same, dump};

/// The device of node 1, which floods to nodes `peers`.
fn files(lab: &SegmentLab, peers: &[u8]) -> [(&'static str, String); 3] {
    let (tenant, mtu) = (lab.tenant(RED), lab.spec().host_mtu());
    let (device, bridge, vni, port) = (tenant.device(), tenant.bridge(), tenant.vni, tenant.port);
    let made = format!(
        "[NetDev]\nName={device}\nKind=vxlan\nMTUBytes={mtu}\n\
         [VXLAN]\nVNI={vni}\nLocal={}\nDestinationPort={port}\nMacLearning=yes\nIndependent=yes\n",
        underlay4(1)
    );
    let flood =
        |peer: &u8| format!("[BridgeFDB]\nMACAddress=00:00:00:00:00:00\nDestination={}\n", underlay4(*peer));
    let peers: String = peers.iter().map(flood).collect();
    let managed =
        format!("[Match]\nName={device}\n[Network]\nBridge={bridge}\nLinkLocalAddressing=no\n{peers}");
    let bridge = format!("[NetDev]\nName={bridge}\nKind=bridge\n");
    [("10-bridge.netdev", bridge), ("20-vxlan.netdev", made), ("30-vxlan.network", managed)]
}

#[test]
fn a_device_that_networkd_makes_and_changes_is_accelerated() {
    let mut lab = without_device();
    let dir = lab.run_dir().join("networkd");
    let mut networkd = Networkd::start(lab.node(1), dir, &files(&lab, &[2])).expect("networkd");
    assert_an_owner_is_followed(&lab, |peers| networkd.restart(&files(&lab, peers)).expect("networkd"));
    drop(networkd);
    let before = dump(lab.node(1));
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_same(&before, &dump(lab.node(1)), "after detach");
    assert_all_reach_each_other(&lab, RED);
}
