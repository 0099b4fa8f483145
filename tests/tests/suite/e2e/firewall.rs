//! What the node's own rules say about the tunnel's packets, with the kernel as referee.

use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, UdpStream, ping};
use vxlan_tests::lab::{Lab, LabSpec, Overlay, PORT, wait_until};

use super::{build, counters, underlay_hook, warm_up};

/// Drops at `hook` of node `n` what is for the tunnel's port.
fn forbid(lab: &Lab, n: u8, hook: &str) {
    let rule = format!(
        "table inet firewall {{\nchain tunnel {{\ntype filter hook {hook} priority 0;\nudp dport {PORT} drop\n}}\n}}\n"
    );
    lab.node(n).feed("nft", &["-f", "-"], &rule).expect("a rule");
}

fn allow(lab: &Lab, n: u8) {
    lab.node(n).sh("nft delete table inet firewall").expect("rules");
}

/// Whether pod 1 of node 1 gets all answers from node 2, in a flow of its own.
fn answered(lab: &Lab) -> bool {
    let echoes = Ping { count: 3, until_lost: true, ..Ping::default() };
    ping(lab.pod(1, 1), lab.pod(2, 1).ip4, echoes).expect("a socket").all_answered()
}

#[test]
fn the_short_cut_skips_a_rule_at_the_tunnels_exit_and_in_direct_one_at_its_entry() {
    for (overlay, passes_output, passes_input) in [
        (Overlay::KernelVxlan, false, false),
        (Overlay::agent(), true, true),
        (Overlay::verified(), true, false),
    ] {
        let lab = build(&LabSpec::pair(overlay.clone(), overlay.clone()));
        warm_up(&lab);
        for (n, hook, passes) in [(1, "output", passes_output), (2, "input", passes_input)] {
            forbid(&lab, n, hook);
            // What the programs know of the stack, they know for a second.
            wait_until("the rule counts or does not", Duration::from_secs(5), || answered(&lab) == passes)
                .unwrap_or_else(|error| panic!("{hook}, {overlay:?}: {error:#}"));
            if let Ok(agent) = lab.agent(n) {
                agent.cli(&["fastpath", "off"]).expect("switched off");
                assert!(!answered(&lab), "{hook}, {overlay:?}: without the fast path");
                agent.cli(&["fastpath", "on"]).expect("switched on");
            }
            allow(&lab, n);
            assert!(answered(&lab), "{hook}, {overlay:?}: without the rule");
        }
    }
}

#[test]
fn in_verified_an_open_flow_meets_a_new_rule_at_the_tunnels_entry_when_it_is_looked_at_again() {
    let lab = build(&LabSpec::pair(Overlay::verified(), Overlay::verified()));
    warm_up(&lab);
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let stream = UdpStream::start(client, server, server.ip4.into(), 200, 100).expect("a stream");
    let passed = || {
        let before = counters(&lab, 2);
        std::thread::sleep(Duration::from_millis(300));
        (&counters(&lab, 2) - &before).packets(underlay_hook(), "decapsulated")
    };
    wait_until("the flow is open", Duration::from_secs(5), || passed() > 20).expect("a short cut");
    forbid(&lab, 2, "input");
    wait_until("the flow meets the rule", Duration::from_secs(5), || passed() == 0).expect("a closed flow");
    allow(&lab, 2);
    wait_until("the flow is open again", Duration::from_secs(5), || passed() > 20).expect("a short cut");
    stream.stop().expect("a stream that ends");
}
