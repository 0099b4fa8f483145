//! `check`: what is wrong with files, and what an agent would change.

use std::fs;
use std::process::Command;

use serde_json::Value;
use vxlan_tests::lab::agent::agent_binary;
use vxlan_tests::lab::{DEVICE, Lab};

use crate::e2e::{build, pair, warm_up};

/// How `check --json` on node 1 ends, and what it prints.
fn check(lab: &Lab, args: &[&str]) -> (Option<i32>, Value) {
    let config = lab.agent(1).expect("an agent").config().to_owned();
    let output = lab.node(1).run(|| {
        let mut command = Command::new(agent_binary().expect("an agent"));
        command.args(["check", "--json"]).args(args).arg("--config").arg(&config);
        command.output().expect("it runs")
    });
    let printed = serde_json::from_slice(&output.stdout);
    (output.status.code(), printed.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr))))
}

/// What `check --dry-run` on node 1 says that an agent would change, line by line.
fn planned(lab: &Lab) -> Vec<String> {
    let (code, report) = check(lab, &["--dry-run"]);
    assert_eq!((code, &report["valid"]), (Some(0), &Value::Bool(true)), "{report:#}");
    let differences = report["plan"]["changes"].as_array().expect("a list");
    let lines = differences.iter().flat_map(|difference| difference["lines"].as_array().expect("lines"));
    lines.map(|line| line.as_str().expect("a line").to_owned()).collect()
}

#[test]
fn a_dry_run_lists_what_is_missing_and_changes_nothing() {
    let mut lab = build(&pair());
    warm_up(&lab);
    assert_eq!(planned(&lab), [""; 0], "an agent runs, and has nothing to do");
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    lab.node(1).sh("ip route del 10.244.2.0/24").expect("damage");
    let missing = planned(&lab);
    assert!(missing.iter().any(|line| line.starts_with("+ route 10.244.2.0/24")), "{missing:?}");
    assert_eq!(missing.len(), 1, "{missing:?}");
    let routes = lab.node(1).sh(&format!("ip route show dev {DEVICE}")).expect("routes");
    assert!(!routes.contains("10.244.2.0/24"), "{routes}");
}

#[test]
fn all_mistakes_are_told_and_the_agent_goes_on() {
    let lab = build(&pair());
    assert_eq!(check(&lab, &[]).0, Some(0));
    let config = lab.agent(1).expect("an agent").config().with_file_name("new.toml");
    let state = config.with_file_name("new-state.toml");
    let right = format!(
        "[node]\nname = \"n1\"\n[[network]]\nname = \"pods\"\nvni = 1\n\
         [network.state]\nsource = \"file\"\npath = \"{}\"\n",
        state.display()
    );
    let node = |name: &str| format!("[[node]]\nname = \"{name}\"\nvtep = \"192.0.2.1\"\n");
    fs::write(&state, node("n1") + &node("n2")).expect("written");
    let wrong =
        right.replace("name = \"n1\"", "name = \"n1\"\nunderlay_ = 1").replace("vni", "flow = 7\nvni");
    for (text, words) in [(wrong, ["underlay_", "`flow`"]), (right, ["'n1' and 'n2'", "192.0.2.1"])] {
        fs::write(&config, text).expect("written");
        let (code, report) = check(&lab, &[&config.display().to_string()]);
        assert_eq!((code, &report["valid"]), (Some(3), &Value::Bool(false)), "{report:#}");
        let problems = report["problems"].to_string();
        assert!(words.iter().all(|word| problems.contains(word)), "{words:?}: {report:#}");
    }
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    assert_eq!(status["networks"][0]["reload_error"], Value::Null);
}
