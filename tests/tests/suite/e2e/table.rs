//! The table of flows: bounded, sized by configuration, forgotten when rules change.

use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, UdpStream, tcp_concurrent};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay, StateFile, wait_until};

use super::{assert_answered, assert_nothing_dropped, assert_took, build, counted, warm_up};

fn verified(flows: u32) -> Lab {
    let options = AgentOptions { network: format!("flows = {flows}"), ..AgentOptions::verified() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options.clone()), Overlay::Agent(options)));
    warm_up(&lab);
    lab
}

#[test]
fn a_table_that_is_too_small_makes_flows_slower_and_loses_none() {
    let lab = verified(256);
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let [one, two] = counted(&lab, || {
        for ip in server.ips() {
            tcp_concurrent(client, server, ip, 600, 20_000).expect("600 connections at once");
        }
    });
    for node in [&one, &two] {
        assert_took(node, "pod_egress", "unverified", 600);
        assert_nothing_dropped(node);
    }
    let flows = lab.agent(1).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
    assert!(flows.as_array().expect("a list").len() <= 256);
}

#[test]
fn a_table_of_another_size_takes_over_without_a_packet_lost() {
    let mut lab = verified(4096);
    let stream = UdpStream::start(lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 1).ip4.into(), 2_000, 100);
    let stream = stream.expect("a stream");
    for n in [1, 2] {
        let agent = lab.agent_mut(n).expect("an agent");
        agent.reconfigure("flows = 4096", "flows = 512").expect("a configuration");
        agent.restart().expect("a restart");
        assert!(agent.log().contains("FLOWS gets another size"), "{}", agent.log());
    }
    let [one, _] = counted(&lab, || std::thread::sleep(Duration::from_millis(300)));
    assert_took(&one, "pod_egress", "encapsulated", 300);
    let report = stream.stop().expect("a report");
    assert_eq!(report.sent - report.received, 0, "{report:?}");
}

#[test]
fn a_source_that_says_that_rules_have_changed_closes_all_bypasses() {
    let mut lab = verified(4096);
    let stream = UdpStream::start(lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 1).ip4.into(), 1_000, 100);
    let stream = stream.expect("a stream");
    let state = lab.state().clone();
    let flushes = |lab: &Lab| lab.agent(1).expect("an agent").log().matches("rules have changed").count();
    for policy in [1, 2] {
        let before = flushes(&lab);
        lab.write_state(StateFile { policy: Some(policy), ..state.clone() }).expect("a state file");
        wait_until("the bypasses are closed", Duration::from_secs(5), || flushes(&lab) == before + 1)
            .expect("a flush");
    }
    // The same number again is no change.
    let again = state.without("nobody");
    lab.write_state(StateFile { policy: Some(2), ..again }).expect("a state file");
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
    assert_eq!(flushes(&lab), 2);
    drop(stream.stop());
}
