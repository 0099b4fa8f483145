//! ifupdown2 as the owner of a bridged device.

use std::fmt::Write as _;

use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::UdpStream;
use vxlan_tests::lab::{AgentOptions, IFUPDOWN2, Ifupdown2, SegmentSpec, wait_until};

use super::beside::takes_the_short_cut;
use super::fast::SOON;
use super::{RED, assert_all_reach_each_other, build, kernel};
use crate::e2e::accelerate::dump::{assert_same, dump};

/// The device of node 1, which floods to nodes `peers`. The bridge is there already: ifupdown2 has its kernels filter VLANs.
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
    let mut lab = build(&SegmentSpec::of(vec![kernel(); 3]));
    lab.node(1).ip(&format!("link del {}\n", lab.tenant(RED).device())).expect("gone");
    lab.add_agent(1, &AgentOptions::beside("verified", "")).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("started");
    let owner = Ifupdown2::open(lab.node(1), lab.run_dir().join("ifupdown2")).expect("ifupdown2");
    owner.reload(&interfaces(&lab, &[2])).expect("a device");
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
    owner.reload(&interfaces(&lab, &[2])).expect("nothing new");
    wait_fast(two);
    assert_same(&before, &dump(lab.node(1)), "after nothing new");
    owner.reload(&interfaces(&lab, &[2, 3])).expect("a further node");
    wait_fast(three);
    wait_fast(two);
    let report = stream.stop().expect("a report");
    assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("killed");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_all_reach_each_other(&lab, RED);
}
