//! Bridged segments.

use vxlan_tests::lab::{Overlay, SegmentSpec};

use super::{findings_of, ids, look_for_of};

#[test]
fn a_healthy_segment_gives_no_finding_and_its_faults_are_found() {
    let mut lab = SegmentSpec::pair(Overlay::verified(), Overlay::verified()).build().expect("a lab");
    let mut complaints = vec![];
    let mut look = |lab: &vxlan_tests::lab::segment::SegmentLab, name: &str, expected: &[&str]| {
        let agent = lab.agent(1).expect("an agent");
        complaints.extend(look_for_of(agent, &[], name, expected).1);
    };
    let sh = |lab: &vxlan_tests::lab::segment::SegmentLab, line: &str| {
        lab.node(1).sh(line).expect("a command that does it");
    };
    look(&lab, "a healthy segment", &[]);
    sh(&lab, "sysctl -w net.bridge.bridge-nf-call-iptables=1");
    look(&lab, "netfilter on bridges", &["br-netfilter", "left"]);
    sh(&lab, "sysctl -w net.bridge.bridge-nf-call-iptables=0");
    look(&lab, "no netfilter on bridges", &[]);

    lab.node_mut(1).agent.as_mut().expect("an agent").stop().expect("stopped");
    let stopped = "agent-not-running";
    look(&lab, "the agent is stopped", &[stopped]);
    let vtep = lab.node(2).underlay;
    for (name, line, expected) in [
        (
            "a flood entry is missing",
            format!("bridge fdb del 00:00:00:00:00:00 dev vx-red dst {vtep} self"),
            "fdb-missing",
        ),
        (
            "a flood entry is left over",
            "bridge fdb append 00:00:00:00:00:00 dev vx-red dst 192.0.2.99 self permanent".to_owned(),
            "fdb-stale",
        ),
        ("the device is down", "ip link set vx-red down".to_owned(), "device-down"),
        ("the device is no port of the bridge", "ip link set vx-red nomaster".to_owned(), "device-otherwise"),
    ] {
        sh(&lab, &line);
        look(&lab, name, &[expected, stopped]);
        let found = findings_of(lab.agent(1).expect("an agent"), &[]);
        assert!(ids(&found).contains(stopped));
        for finding in found.as_array().into_iter().flatten() {
            let command = finding["mend"].as_str().expect("a command");
            if !command.starts_with("systemctl") {
                sh(&lab, command);
            }
        }
    }
    lab.node_mut(1).agent.as_mut().expect("an agent").start().expect("started");
    look(&lab, "the agent has mended it", &[]);
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}
