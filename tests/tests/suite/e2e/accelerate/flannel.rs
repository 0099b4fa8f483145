//! The life of an agent beside a device like flannel's.

use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, ping, tcp_bulk, udp_echo};
use vxlan_tests::lab::{AgentOptions, Attach, Beside, DEVICE, Family, Lab, LabSpec, UNDERLAY, wait_until};

use super::dump::{assert_same, dump};
use super::{SOON, is_fast, kernels, pinged, short_cuts, wait_fast};
use crate::e2e::{assert_answered, build, counters, programs_on};

/// Nodes `which` accelerate the device that is there.
fn accelerate(lab: &mut Lab, which: &[u8], options: &AgentOptions) {
    for n in which {
        lab.add_agent(*n, options).expect("an agent");
        lab.agent_mut(*n).and_then(|agent| agent.start()).expect("started");
    }
}

/// The device's owner never learns of the agent, whatever becomes of that.
fn lives_and_dies(spec: &LabSpec, which: &[u8], options: &AgentOptions) {
    let mut lab = build(spec);
    let ip = lab.pod(2, 1).ip4;
    assert_answered(lab.pod(1, 1), ip, Ping::default());
    let before = [1, 2].map(|n| dump(lab.node(n)));
    let check = |lab: &Lab, when: &str| {
        for n in [1, 2] {
            assert_same(&before[usize::from(n) - 1], &dump(lab.node(n)), when);
        }
    };
    accelerate(&mut lab, which, options);
    which.iter().for_each(|n| wait_fast(&lab, *n, 3 - *n));
    check(&lab, "while it runs");
    for n in which {
        lab.agent_mut(*n).and_then(|agent| agent.kill9()).expect("killed");
    }
    which.iter().for_each(|n| assert!(is_fast(&lab, *n, 3 - *n), "after SIGKILL"));
    check(&lab, "after SIGKILL");
    for n in which {
        lab.agent_mut(*n).and_then(|agent| agent.start()).expect("started");
        assert!(is_fast(&lab, *n, 3 - *n), "after a restart");
        lab.agent_mut(*n).and_then(|agent| agent.stop()).expect("stopped");
        lab.agent(*n).and_then(|agent| agent.cli(&["detach"])).expect("detached");
        for interface in [DEVICE, UNDERLAY, &lab.pod(*n, 1).host_veth] {
            assert_eq!(programs_on(lab.node(*n), interface), 0, "{interface}");
        }
    }
    check(&lab, "after detach");
    for ip in lab.pod(2, 1).ips() {
        assert_answered(lab.pod(1, 1), ip, Ping { count: 5, ..Ping::default() });
    }
}

#[test]
fn a_device_is_accelerated_on_one_node_and_left_as_it_is() {
    for mode in ["verified", "direct"] {
        lives_and_dies(&kernels(), &[1], &AgentOptions::beside(mode, DEVICE));
    }
}

#[test]
fn a_device_is_accelerated_on_both_nodes_over_either_ip_version() {
    for underlay in [Family::V4, Family::V6] {
        lives_and_dies(&kernels().underlay(underlay), &[1, 2], &AgentOptions::beside("direct", DEVICE));
    }
}

#[test]
fn with_filters_instead_of_tcx_it_is_the_same() {
    let options =
        AgentOptions { node: "attach = \"clsact\"".into(), ..AgentOptions::beside("direct", DEVICE) };
    let mut lab = build(&kernels());
    accelerate(&mut lab, &[1], &options);
    wait_fast(&lab, 1, 2);
}

#[test]
fn a_device_is_accelerated_from_the_command_line() {
    let beside = Some(Beside::CommandLine(vec![DEVICE]));
    let options = AgentOptions { beside, ..AgentOptions::default() };
    lives_and_dies(&kernels().attach(Attach::Ptp), &[1], &options);
}

#[test]
fn streams_arrive_whole() {
    let mut lab = build(&kernels());
    // An aggregate, whose segments would each need a checksum, is the device's.
    let network = "checksum = false".to_owned();
    accelerate(&mut lab, &[1, 2], &AgentOptions { network, ..AgentOptions::beside("direct", DEVICE) });
    [1, 2].iter().for_each(|n| wait_fast(&lab, *n, 3 - *n));
    let (from, to) = (lab.pod(1, 1), lab.pod(2, 1));
    for ip in to.ips() {
        let before = counters(&lab, 1);
        tcp_bulk(from, to, ip, 32 << 20).expect("a transfer");
        let report = udp_echo(from, to, ip, [1, 64, 1000, 1300, 3000, 9000]).expect("UDP");
        assert!(report.all_intact(), "{report:?}");
        let sent = (&counters(&lab, 1) - &before).get("pod_egress", "encapsulated");
        assert!(sent.bytes > 30 << 20, "{sent:?}");
    }
}

#[test]
fn what_the_kernel_would_deliver_is_delivered_unless_more_is_asked_for() {
    let mut lab = build(&kernels());
    accelerate(&mut lab, &[2], &AgentOptions::beside("direct", DEVICE));
    wait_fast(&lab, 2, 1);
    // An address of a pod that comes out of the tunnel and is answered past it.
    let (pod, other) = ("10.99.0.1", lab.pod(2, 1).ip4);
    let (one, two) = (lab.node(1), lab.node(2));
    lab.pod(1, 1).sh(&format!("ip addr add {pod}/32 dev eth0")).expect("an address");
    lab.pod(1, 1).sh(&format!("ip route add {other} via 10.244.1.1 dev eth0 src {pod}")).expect("a source");
    one.ip(&format!("route add {pod}/32 dev cni0\n")).expect("a route");
    two.ip(&format!("route add {pod}/32 via 192.0.2.1 dev {UNDERLAY}\n")).expect("a route");
    let answered = || {
        let once = Ping { timeout: Duration::from_millis(200), ..Ping::default() };
        ping(lab.pod(1, 1), other, once).expect("a socket").all_answered()
    };
    wait_until("it is known where the address is", SOON, answered).expect("in time");
    let before = counters(&lab, 2);
    assert_answered(lab.pod(1, 1), other, Ping { count: 5, ..Ping::default() });
    let during = &counters(&lab, 2) - &before;
    assert_eq!(during.packets("underlay_ingress", "foreign_source"), 5, "{during}");
    let agent = lab.agent(2).expect("an agent");
    agent.reconfigure("fastpath =", "source_check = \"drop\"\nfastpath =").expect("configured");
    wait_until("more is asked for", SOON, || !answered()).expect("in time");
    let own = lab.pod(1, 1).ip4;
    assert_answered(lab.pod(2, 1), own, Ping::default());
}

#[test]
fn a_mode_that_is_off_attaches_nothing() {
    let mut lab = build(&kernels());
    accelerate(&mut lab, &[1], &AgentOptions::beside("off", DEVICE));
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping::default());
    assert_eq!(programs_on(lab.node(1), DEVICE), 0);
}

#[test]
fn the_status_says_what_is_accelerated() {
    let mut lab = build(&kernels());
    accelerate(&mut lab, &[1], &AgentOptions::beside("direct", DEVICE));
    let agent = lab.agent(1).expect("an agent");
    let text = agent.cli(&["status"]).expect("a status");
    assert!(text.contains("somebody else's: accelerated") && text.contains("10.244.2.0/24"), "{text}");
    let network = &agent.json(&["status"]).expect("a status")["networks"][0];
    assert_eq!((network["kind"].as_str(), network["name"].as_str()), (Some("accelerate"), Some("flannel-1")));
    assert_eq!((network["vni"].as_u64(), network["port"].as_u64()), (Some(1), Some(8472)));
    let counters = pinged(&lab, 1, 2, 1).expect("answers");
    assert!(short_cuts(&counters).0 > 0, "{counters}");
}
