//! Changes of what rules for packets between pods are made of: flows meet the host stack again.

use std::sync::atomic::Ordering::Relaxed;

use vxlan_tests::lab::kubernetes::Rule;
use vxlan_tests::lab::{Lab, LabSpec, Overlay};

use super::super::verified::policy::{assert_cut, deny, running};
use super::super::verified::{FILTER, exchange, nft};
use super::{agent, build, count, off, soon, stub};

fn verified() -> Lab {
    let ours = || Overlay::verified();
    let lab = build(&LabSpec::of(vec![ours(), ours(), off()]).kubernetes());
    [1, 2].into_iter().for_each(|n| nft(&lab, n, FILTER));
    lab
}

/// How many flows the agent of node `n` knows that have been seen since the last flush.
fn flows(lab: &Lab, n: u8) -> usize {
    let listed = lab.agent(n).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
    listed.as_array().expect("a list").len()
}

#[test]
fn a_change_of_what_rules_are_made_of_closes_bypasses() {
    for rule in Rule::ALL {
        let lab = verified();
        let (mut near, mut far, _) = running(&lab);
        for n in [1, 2] {
            assert!(flows(&lab, n) > 0);
        }
        lab.kubernetes().make(rule, "new").expect("made");
        soon(&lab, &format!("flows are closed by {rule:?}"), || flows(&lab, 1) == 0 && flows(&lab, 2) == 0);
        exchange(&mut near, &mut far, 1);
        exchange(&mut far, &mut near, 2);
    }
}

#[test]
fn a_rule_that_somebody_makes_later_of_a_policy_is_met_too() {
    let lab = verified();
    let (mut near, mut far, port) = running(&lab);
    lab.kubernetes().make(Rule::NetworkPolicy, "new").expect("made");
    soon(&lab, "flows are closed", || flows(&lab, 2) == 0);
    for round in 0..5 {
        exchange(&mut near, &mut far, round);
        exchange(&mut far, &mut near, round);
    }
    assert!(flows(&lab, 2) > 0, "open again");
    deny(&lab, port);
    soon(&lab, "flows are closed once more", || flows(&lab, 2) == 0);
    assert_cut(&mut near, &mut far);
}

#[test]
fn changes_that_may_have_been_missed_count() {
    let mut lab = verified();
    let _running = running(&lab);
    if stub(&lab).is_none() {
        return;
    }
    lab.kubernetes_mut().stop();
    soon(&lab, "the agent notices", || count(&agent(&lab).log(), "cannot follow the Kubernetes API") == 1);
    assert!(flows(&lab, 1) > 0, "an outage is no change");
    lab.kubernetes().stub().expect("the stub").rules(Rule::Service).compact();
    lab.kubernetes_mut().resume().expect("it comes back");
    soon(&lab, "flows are closed", || flows(&lab, 1) == 0);
}

#[test]
fn without_the_right_to_see_rules_an_agent_says_so_once_and_goes_on() {
    let mut lab = verified();
    let Some(server) = stub(&lab) else { return };
    server.faults().forbid_rules.store(true, Relaxed);
    lab.agent_mut(1).and_then(|agent| agent.restart()).expect("a restart");
    for kind in ["NetworkPolicies", "Services", "EndpointSlices"] {
        let words = format!("cannot follow {kind}");
        soon(&lab, &words, || agent(&lab).log().contains(&words));
        assert_eq!(count(&agent(&lab).log(), &words), 1);
    }
    let _running = running(&lab);
    lab.kubernetes().make(Rule::NetworkPolicy, "new").expect("made");
    soon(&lab, "node 2 closes its flows", || flows(&lab, 2) == 0);
    assert!(flows(&lab, 1) > 0, "node 1 does not know");
}

#[test]
fn a_server_that_does_not_know_yet_who_may_see_rules_is_asked_again() {
    let mut lab = verified();
    let _running = running(&lab);
    let Some(server) = stub(&lab) else { return };
    server.faults().forbid_rules.store(true, Relaxed);
    let before = server.asked("watch rules");
    lab.kubernetes_mut().stop();
    lab.kubernetes_mut().resume().expect("it comes back");
    let server = stub(&lab).expect("still the stub");
    // Two agents with three kinds each, whose watches have ended.
    soon(&lab, "the server refuses everything", || server.asked("watch rules") >= before + 6);
    assert!(flows(&lab, 1) > 0 && flows(&lab, 2) > 0, "being refused is no change");
    server.faults().forbid_rules.store(false, Relaxed);
    lab.kubernetes().make(Rule::NetworkPolicy, "new").expect("made");
    soon(&lab, "flows are closed", || flows(&lab, 1) == 0 && flows(&lab, 2) == 0);
}
