//! An agent of the release before, whose maps have another layout, gives way to this one, and back.

use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use vxlan_agent::ownership::node_pin_dir;
use vxlan_tests::lab::agent::NETWORK;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay, UNDERLAY, wait_until, xdp};

use super::change::under_traffic;
use super::{build, counted, tcx_programs_on, warm_up};

/// Where the agent of the release before is, if it has been built.
const BEFORE: &str = "VXLAN_AGENT_BEFORE";

/// That agent; says so where it is not.
pub(super) fn before() -> Option<PathBuf> {
    let before = std::env::var_os(BEFORE).map(PathBuf::from);
    if before.is_none() {
        // Past the test harness, which keeps what passing tests print to itself.
        let why = format!("SKIPPED: ${BEFORE} is not set; `cargo xtask agent-before` builds that agent");
        writeln!(std::io::stderr(), "{why}").expect("standard error");
    }
    before
}

fn replace(lab: &mut Lab, n: u8, program: Option<PathBuf>) {
    lab.agent_mut(n).and_then(|agent| agent.replace(program)).expect("another agent");
}

/// Names of nf_tables tables of node 1.
fn tables(lab: &Lab) -> String {
    lab.node(1).sh("nft list tables").expect("tables")
}

/// Waits until the agent of node 1 has removed what `layout` pinned, and its programs are all there are.
fn wait_alone(lab: &Lab, layout: &str) {
    let pins = node_pin_dir(lab.agent(1).expect("an agent").pin_dir());
    let versions = pins.parent().and_then(|own| own.parent()).expect("a directory of versions");
    let other = versions.join(layout).join(NETWORK);
    wait_until("what the other agent attached is gone", Duration::from_secs(10), || {
        !other.exists() && tcx_programs_on(lab.node(1), UNDERLAY) == if xdp().is_some() { 2 } else { 1 }
    })
    .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
    .expect("in time");
}

fn assert_fast(lab: &Lab) {
    wait_until("the fast path carries packets", Duration::from_secs(10), || {
        let [one, _] = counted(lab, || {
            let report = ping(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 10, ..Ping::default() });
            assert!(report.expect("a socket").all_answered());
        });
        one.packets("pod_egress", "encapsulated") >= 5
    })
    .expect("in time");
}

fn replaced_under_traffic(options: AgentOptions) {
    let Some(before) = before() else { return };
    let overlay = || Overlay::Agent(AgentOptions { program: Some(before.clone()), ..options.clone() });
    let mut lab = build(&LabSpec::pair(overlay(), overlay()).unfiltered());
    warm_up(&lab);
    under_traffic(&mut lab, |lab| {
        for _ in 0..2 {
            replace(lab, 1, None);
            wait_alone(lab, "v7");
            replace(lab, 1, Some(before.clone()));
            wait_alone(lab, "v8");
            // Both call it the same.
            let table = lab.agent(1).expect("an agent").nft_table();
            assert_eq!(tables(lab).trim(), format!("table inet {table}"));
        }
        replace(lab, 1, None);
        replace(lab, 2, None);
    });
    wait_alone(&lab, "v7");
    assert_fast(&lab);
    let agent = lab.agent(1).expect("an agent");
    let own = node_pin_dir(agent.pin_dir());
    assert_eq!(agent.pins().expect("pins"), own);
    assert!(own.with_file_name(NETWORK).join("NODE").exists(), "the network's name leads to the maps");
}

#[test]
fn an_older_agent_is_replaced_under_traffic_and_comes_back() {
    replaced_under_traffic(AgentOptions::default());
}

#[test]
fn an_older_agent_is_replaced_under_verified_traffic_and_comes_back() {
    replaced_under_traffic(AgentOptions::verified());
}
