//! Faults are made for real, one after the other, and the doctor finds each, and nothing else. Where one command mends
//! a fault, it is the doctor's own that does.

mod cluster;
mod host;
mod peer;
mod running;
mod segment;
mod stopped;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;
use vxlan_tests::lab::{Agent, Lab, wait_until};

/// What the kernel and an agent take to notice something.
const SOON: Duration = Duration::from_secs(6);

/// A fault at node 1.
struct Fault {
    name: &'static str,
    make: fn(&Lab),
    /// What the doctor says, and nothing else: the fault, and what follows from it.
    found: &'static [&'static str],
    mended: Mended,
}

/// What takes a fault away.
#[derive(Clone, Copy)]
enum Mended {
    /// The commands that the doctor names.
    AsNamed,
    /// Those, and this afterwards, because they leave something behind.
    AsNamedAnd(fn(&Lab)),
    /// This: there is no one command, or it is not for a test.
    By(fn(&Lab)),
}

/// What the doctor of node 1 finds.
fn findings(lab: &Lab, args: &[&str]) -> Value {
    findings_of(lab.agent(1).expect("an agent"), args)
}

/// What the doctor of an agent's node finds.
fn findings_of(agent: &Agent, args: &[&str]) -> Value {
    let args: Vec<&str> = ["doctor"].iter().chain(args).copied().collect();
    let (well, report) = agent.judged(&[], &args).expect("a report");
    let found = report["findings"].as_array().expect("findings");
    assert_eq!(well, found.is_empty(), "the exit status says otherwise: {report:#}");
    assert!(report["checks"].as_u64().is_some_and(|count| count > 30), "{report:#}");
    for finding in found {
        for field in ["id", "severity", "what", "mend"] {
            assert!(finding[field].as_str().is_some_and(|text| !text.is_empty()), "no {field}: {finding:#}");
        }
    }
    report["findings"].clone()
}

fn ids(findings: &Value) -> BTreeSet<&str> {
    findings.as_array().into_iter().flatten().filter_map(|finding| finding["id"].as_str()).collect()
}

/// Waits until the doctor finds what is expected, and returns it.
#[track_caller]
fn await_findings(lab: &Lab, args: &[&str], name: &str, expected: &[&str]) -> Value {
    let (found, complaint) = look_for(lab, args, name, expected);
    complaint.map_or(found, |complaint| panic!("{complaint}"))
}

/// What the doctor finds in the end, and what is wrong with that.
fn look_for(lab: &Lab, args: &[&str], name: &str, expected: &[&str]) -> (Value, Option<String>) {
    look_for_of(lab.agent(1).expect("an agent"), args, name, expected)
}

fn look_for_of(agent: &Agent, args: &[&str], name: &str, expected: &[&str]) -> (Value, Option<String>) {
    let expected: BTreeSet<&str> = expected.iter().copied().collect();
    let mut last = Value::Null;
    let found = wait_until(name, SOON, || {
        last = findings_of(agent, args);
        ids(&last) == expected
    });
    let complaint = found.err().map(|error| format!("{error:#}: expected {expected:?}, there is {last:#}"));
    (last, complaint)
}

/// Makes one fault after the other; `always`: what is found without any. All that is wrong is told at the end.
fn make_and_find(lab: &Lab, faults: &[Fault], always: &[&str]) {
    await_findings(lab, &[], "nothing is wrong yet", always);
    let mut complaints = vec![];
    for fault in faults {
        (fault.make)(lab);
        let expected: Vec<&str> = fault.found.iter().chain(always).copied().collect();
        let (found, complaint) = look_for(lab, &[], fault.name, &expected);
        complaints.extend(complaint);
        match fault.mended {
            Mended::AsNamed | Mended::AsNamedAnd(_) => complaints.extend(mend(lab, &found, always)),
            Mended::By(undo) => undo(lab),
        }
        complaints.extend(look_for(lab, &[], &format!("{}, mended", fault.name), always).1);
        if let Mended::AsNamedAnd(undo) = fault.mended {
            undo(lab);
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}

/// Runs the commands that the findings name; what is wrong with them.
fn mend(lab: &Lab, findings: &Value, always: &[&str]) -> Vec<String> {
    let mut complaints = vec![];
    for finding in findings.as_array().into_iter().flatten() {
        let command = finding["mend"].as_str().expect("a command");
        if finding["id"].as_str().is_some_and(|id| always.contains(&id)) {
            continue;
        }
        let done = match command.strip_prefix("vxlan-agent ") {
            Some(words) => {
                let words: Vec<&str> = words.split(' ').collect();
                lab.agent(1).and_then(|agent| agent.cli(&words))
            }
            None => lab.node(1).cmd("sh", &["-c", command]),
        };
        complaints.extend(done.err().map(|error| format!("the command that mends {finding:#}: {error:#}")));
    }
    complaints
}
