//! What fuzzing found goes through the same oracles again: corpora and fixtures of `fuzz/`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use vxlan_ebpf_common::{Disposition, Reason, oracle};

/// All inputs that are kept for `target`, with their paths.
fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let directories = ["corpus", "fixtures"].map(|kind| fuzz.join(kind).join(target));
    let mut inputs = Vec::new();
    // A target without fixtures has no directory for them.
    for entries in directories.iter().filter_map(|dir| fs::read_dir(dir).ok()) {
        for entry in entries {
            let path = entry.expect("a directory entry").path();
            let input = fs::read(&path).expect("a readable file");
            inputs.push((path, input));
        }
    }
    assert!(!inputs.is_empty(), "{target} has no corpus");
    inputs
}

/// Sends every input of `target` through `oracle`; a failure names the file.
fn replay<T>(target: &str, oracle: impl Fn(&[u8]) -> T) -> Vec<T> {
    let outcomes = inputs(target).into_iter().map(|(path, input)| {
        let blame = Blame(path);
        let outcome = oracle(&input);
        std::mem::forget(blame);
        outcome
    });
    outcomes.collect()
}

/// Names a file if it is dropped, which only a panic does.
struct Blame(PathBuf);

impl Drop for Blame {
    fn drop(&mut self) {
        eprintln!("the input was {}", self.0.display());
    }
}

/// Replays a target of the packet engine; the inputs must between them reach `forwarded` and at
/// least `others` of the other reasons, lest they have lost their meaning.
fn replay_packets(target: &str, oracle: fn(&[u8]) -> Vec<Reason>, forwarded: &[Reason], others: usize) {
    let reasons: BTreeSet<Reason> = replay(target, oracle).into_iter().flatten().collect();
    let (fast, slow): (BTreeSet<Reason>, BTreeSet<Reason>) =
        reasons.into_iter().partition(|reason| reason.disposition() == Disposition::Forwarded);
    assert_eq!(fast, forwarded.iter().copied().collect());
    assert!(slow.len() >= others, "only {slow:?}");
}

#[test]
fn what_goes_into_the_tunnel_keeps_its_promises() {
    replay_packets("encap", oracle::encap, &[Reason::Encapsulated, Reason::Routed, Reason::Switched], 16);
}

#[test]
fn what_comes_out_of_the_tunnel_keeps_its_promises() {
    replay_packets("decap", oracle::decap, &[Reason::Decapsulated, Reason::Delivered], 16);
}

#[test]
fn what_one_node_encapsulates_the_other_decapsulates() {
    let forwarded = [Reason::Encapsulated, Reason::Decapsulated, Reason::Routed, Reason::Switched];
    replay_packets("roundtrip", oracle::roundtrip, &forwarded, 10);
}

#[test]
fn what_bypasses_the_host_stack_has_been_passed_by_it() {
    let forwarded =
        [Reason::Encapsulated, Reason::Decapsulated, Reason::Delivered, Reason::Routed, Reason::Switched];
    replay_packets("flow", oracle::flow, &forwarded, 2);
}

/// Replays a target that reads files: some must be accepted and some refused.
fn replay_files(target: &str, oracle: fn(&[u8]) -> bool) {
    let accepted = replay(target, oracle);
    assert!(accepted.contains(&true) && accepted.contains(&false), "all alike");
}

#[test]
fn configurations_are_accepted_for_good_or_refused_in_one_line() {
    replay_files("config", vxlan_agent::oracle::config);
}

#[test]
fn state_files_are_accepted_for_good_or_refused_in_one_line() {
    replay_files("state", vxlan_agent::oracle::state);
}
