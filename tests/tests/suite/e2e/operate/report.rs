use std::fs;
use std::process::Command;
use std::time::Duration;

use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay, agent_binary, wait_until};

use super::super::{build, warm_up};
use super::{SECRET, break_configuration};

/// What every report has in it, and a word of each.
const PARTS: [(&str, &str); 13] = [
    ("README", "Secrets are left out"),
    ("versions.txt", "map layout"),
    ("status.txt", "agent      "),
    ("status.json", "\"networks\""),
    ("features.txt", "Linux"),
    ("sysctl.txt", "net/ipv4/ip_forward"),
    ("configuration/config.toml", "vni = "),
    ("maps/routes.txt", "10.244.2.0/24"),
    ("maps/counters.json", "pod_egress"),
    ("kernel/links.txt", "cni0"),
    ("kernel/routes4.txt", "192"),
    ("kernel/fdb.txt", "Neighbour"),
    ("pins.txt", "NODE"),
];

#[test]
fn a_report_has_everything_but_secrets_even_with_a_refused_configuration_and_without_an_agent() {
    let mut lab = build(&LabSpec::pair(Overlay::Agent(AgentOptions::default()), Overlay::agent()));
    warm_up(&lab);
    assert_complete(&lab);
    let before = break_configuration(lab.agent(1).expect("an agent"));
    let refused = || {
        let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
        !status["config_error"].is_null()
    };
    wait_until("the configuration is refused", Duration::from_secs(10), refused).expect("a refusal");
    let text = assert_complete(&lab);
    assert!(text.contains("<left out>"), "{text}");
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    assert_complete(&lab);
    // Of a node where nothing runs there is less to say, and it is said.
    fs::write(lab.agent(1).expect("an agent").config(), before).expect("written");
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("a detach");
    let (_, all) = unpack(&lab);
    assert!(all.contains("not collected: nothing is pinned"), "{all}");
}

/// Checks that everything is in a report, and returns all of it.
#[track_caller]
fn assert_complete(lab: &Lab) -> String {
    let (dir, all) = unpack(lab);
    for (name, word) in PARTS {
        let path = dir.path().join("vxlan-agent-report").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(text.contains(word), "{word} is not in {name}:\n{text}");
    }
    let state = lab.state_path().file_name().expect("a name").to_owned();
    let state = fs::read_to_string(dir.path().join("vxlan-agent-report/cluster").join(state));
    assert!(state.expect("the cluster's state").contains("[[node]]"));
    all
}

/// Unpacks a report of node 1 with the distribution's tar; with all of its texts together.
#[track_caller]
fn unpack(lab: &Lab) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("report.tar.gz");
    let agent = lab.agent(1).expect("an agent");
    let output = lab.node(1).run(|| {
        let mut command = Command::new(agent_binary().expect("an agent"));
        command.args(["report", "-o"]).arg(&file).arg("--config").arg(agent.config()).output().expect("run")
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let unpacked = Command::new("tar").arg("xzf").arg(&file).arg("-C").arg(dir.path()).status().expect("tar");
    assert!(unpacked.success());
    fs::remove_file(&file).expect("unpacked");
    let all = Command::new("grep").args(["-r", "", "."]).current_dir(dir.path()).output().expect("grep");
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    assert!(!all.contains(SECRET), "the secret is in it:\n{all}");
    (dir, all)
}
