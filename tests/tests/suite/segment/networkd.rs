//! systemd-networkd as the owner of a bridged device.

use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::UdpStream;
use vxlan_tests::lab::{AgentOptions, Networkd, SegmentSpec, wait_until};

use super::beside::takes_the_short_cut;
use super::fast::SOON;
use super::{RED, assert_all_reach_each_other, build, kernel};
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
    let mut lab = build(&SegmentSpec::of(vec![kernel(); 3]));
    lab.node(1).ip(&format!("link del {}\n", lab.tenant(RED).device())).expect("gone");
    lab.add_agent(1, &AgentOptions::beside("verified", "")).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("started");
    let start = |peers| Networkd::start(lab.node(1), lab.run_dir().join("networkd"), &files(&lab, peers));
    let mut networkd = start(&[2]).expect("networkd");
    let (one, two, three) = (lab.host(1, RED, 1), lab.host(2, RED, 1), lab.host(3, RED, 1));
    let wait_fast = |to| {
        wait_until("frames take the short cut", SOON, || takes_the_short_cut(&lab, one, to))
            .inspect_err(|_| {
                let agent = lab.agent(1).expect("an agent");
                eprintln!("{}", agent.cli(&["status"]).unwrap_or_default());
                agent.print_log();
            })
            .expect("in time");
    };
    wait_fast(two);
    let before = dump(lab.node(1));
    let stream = UdpStream::start(one, two, two.ip4.into(), 1000, 100).expect("a stream");
    networkd.restart(&files(&lab, &[2])).expect("networkd");
    wait_fast(two);
    assert_same(&before, &dump(lab.node(1)), "after a restart of networkd");
    networkd.restart(&files(&lab, &[2, 3])).expect("networkd");
    wait_fast(three);
    wait_fast(two);
    let report = stream.stop().expect("a report");
    assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    drop(networkd);
    let before = dump(lab.node(1));
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_same(&before, &dump(lab.node(1)), "after detach");
    assert_all_reach_each_other(&lab, RED);
}
