//! flanneld itself as the owner, where one is named to test with.

use vxlan_tests::lab::traffic::UdpStream;
use vxlan_tests::lab::{
    AgentOptions, DEVICE, EtcdSpec, FLANNELD, Flanneld, Lab, LabSpec, Overlay, UNDERLAY, etcd, wait_until,
};

use super::dump::{assert_same, dump};
use super::{SOON, answers4, is_fast4, wait_fast4};
use crate::e2e::{build, programs_on};

/// Three nodes without a device; none of them is in etcd.
fn cluster() -> Lab {
    let lab = build(&LabSpec::of(vec![Overlay::KernelVxlan; 3]).etcd(EtcdSpec::Open));
    for node in lab.nodes() {
        let devices = node.sh("ip -o link show type vxlan").expect("devices");
        let names = devices.lines().filter_map(|line| line.split(": ").nth(1));
        let gone: String = names.map(|name| format!("link del {name}\n")).collect();
        node.ip(&gone).expect("gone");
    }
    Flanneld::begin(lab.etcd()).expect("a network");
    lab
}

fn start(lab: &Lab, n: u8) -> Flanneld {
    let dir = lab.run_dir().join(format!("flanneld-{n}"));
    Flanneld::start(lab.node(n), n, dir, lab.etcd()).expect("flanneld")
}

#[test]
fn the_device_of_a_flanneld_is_accelerated_and_left_as_it_is() {
    if !Flanneld::is_there() {
        eprintln!("SKIPPED: {FLANNELD} names no flanneld to test with");
        return;
    }
    for mode in ["direct", "verified"] {
        let mut lab = cluster();
        let mut one = start(&lab, 1);
        let _two = start(&lab, 2);
        wait_until("the kernel alone delivers", SOON, || answers4(&lab, 2)).expect("in time");
        let before = dump(lab.node(1));
        lab.add_agent(1, &AgentOptions::beside(mode, DEVICE)).expect("an agent");
        lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
        wait_fast4(&lab, 2);
        assert_same(&before, &dump(lab.node(1)), "while it runs");
        let (from, to) = (lab.pod(1, 1), lab.pod(2, 1));
        let stream = UdpStream::start(from, to, to.ip4.into(), 1000, 100).expect("a stream");
        // The owner starts anew, and keeps what is there.
        one.restart().expect("flanneld");
        wait_fast4(&lab, 2);
        assert_same(&before, &dump(lab.node(1)), "after a restart of flanneld");
        // A node comes.
        let three = start(&lab, 3);
        wait_fast4(&lab, 3);
        wait_fast4(&lab, 2);
        let report = stream.stop().expect("a report");
        assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
        // And it goes.
        drop(three);
        let key = etcd::key_of_ipv4(3);
        lab.etcd().delete(&key).expect("its lease");
        wait_until("nobody is led there", SOON, || !answers4(&lab, 3)).expect("in time");
        wait_fast4(&lab, 2);
        assert_same(&before, &dump(lab.node(1)), "after a node has come and gone");
        lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("killed");
        assert!(is_fast4(&lab, 2), "after SIGKILL");
        lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
        for interface in [DEVICE, UNDERLAY, &lab.pod(1, 1).host_veth] {
            assert_eq!(programs_on(lab.node(1), interface), 0, "{interface}");
        }
        assert_same(&before, &dump(lab.node(1)), "after detach");
        assert!(answers4(&lab, 2), "the owner's overlay is gone");
    }
}
