//! What every kernel can do: those that are too old for the fast path, too.

use std::fs;
use std::time::Duration;

use vxlan_agent::datapath::KernelFeatures;
use vxlan_agent::preflight;
use vxlan_tests::lab::traffic::{Ping, tcp_bulk, udp_echo};
use vxlan_tests::lab::{AgentOptions, Family, Lab, LabSpec, Overlay, UNDERLAY, wait_until};

use super::{assert_answered, build, programs_on};

fn without_fastpath() -> LabSpec {
    let options = || AgentOptions { fastpath: "off".into(), ..AgentOptions::default() };
    LabSpec::pair(Overlay::Agent(options()), Overlay::Agent(options()))
}

#[test]
fn without_the_fast_path_the_kernel_does_all_the_work() {
    for underlay in [Family::V4, Family::V6] {
        let lab = build(&without_fastpath().underlay(underlay));
        let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
        for ip in server.ips() {
            assert_answered(client, ip, Ping { count: 20, ..Ping::default() });
            assert_answered(lab.node(1), ip, Ping { count: 5, ..Ping::default() });
            tcp_bulk(client, server, ip, 16 << 20).expect("a transfer");
            let report = udp_echo(client, server, ip, [1, 64, 1400, 3000, 9000]).expect("UDP");
            assert!(report.all_intact(), "{report:?}");
        }
        let agent = lab.agent(1).expect("an agent");
        assert_eq!(agent.json(&["status"]).expect("a status")["fastpath"]["pinned"], false);
        assert_eq!(programs_on(lab.node(1), UNDERLAY), 0);
    }
}

#[test]
fn an_agent_starts_where_the_kernel_is_new_enough_and_says_so_in_one_sentence_where_not() {
    let mut lab = build(&without_fastpath());
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    let config = lab.agent(1).expect("an agent").config().to_owned();
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, text.replace("\"off\"", "\"verified\"")).expect("a configuration");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
    let said = || log_of(&lab);
    match preflight::check_kernel() {
        Ok(()) => wait_until("the fast path is loaded", Duration::from_secs(20), || {
            said().contains("fast path loaded") && tells_what_is_missing(&lab)
        }),
        Err(refusal) => {
            let refusal = format!("vxlan-agent: {refusal}\n");
            wait_until("the agent refuses", Duration::from_secs(20), || said().ends_with(&refusal))
        }
    }
    .unwrap_or_else(|error| panic!("{error:#}; it said:\n{}", said()));
    // Either way the overlay is there, as it was.
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 5, ..Ping::default() });
}

/// Whether the agent's status has a line for everything that this kernel lacks, and no other.
fn tells_what_is_missing(lab: &Lab) -> bool {
    let status = lab.agent(1).and_then(|agent| agent.cli(&["status"])).unwrap_or_default();
    let told: Vec<&str> = status.lines().filter(|line| line.starts_with("without ")).collect();
    let missing = KernelFeatures::probe().missing();
    told.len() == missing.len() && missing.iter().zip(told).all(|((name, _), line)| line.contains(name))
}

fn log_of(lab: &Lab) -> String {
    lab.agent(1).expect("an agent").log()
}
