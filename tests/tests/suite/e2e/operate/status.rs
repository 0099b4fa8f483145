use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, NETWORK, Overlay, agent_binary, wait_until};

use super::super::{assert_answered, build, counted, warm_up};
use super::break_configuration;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn status_says_in_its_first_line_whether_it_is_well_and_why_not() {
    let mut lab = build(&LabSpec::pair(Overlay::Agent(AgentOptions::default()), Overlay::agent()));
    warm_up(&lab);
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 50, ..Ping::default() });
    let text = status(&lab);
    assert!(text.starts_with("healthy    everything runs as it is configured\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours in a pipe: {text}");
    assert_line(&text, &["peers", "1 nodes, 1 VTEPs", "1 next hops answer"]);
    assert_line(&text, &["attached", "pod_egress"]);
    assert_line(&text, &["share", "% of ", " packets out"]);
    assert_line(&text, &["underlay", "MTU 1500"]);
    let json = json(&lab);
    assert_eq!(json["health"]["grade"], "healthy");
    assert!(json["fastpath_of"][NETWORK]["tunnel"]["out"]["fast"].as_u64() >= Some(40), "{json}");
    assert_eq!(json["fastpath"]["peers"]["reachable"], 1);

    // What is refused is said, what becomes well again is remembered.
    let agent = lab.agent(1).expect("an agent");
    agent.cli(&["fastpath", "off"]).expect("off");
    let text = status(&lab);
    assert!(text.starts_with("attention  the fast path of network pods is switched off"), "{text}");
    agent.cli(&["fastpath", "on"]).expect("on");
    let state = lab.state().clone();
    fs::write(lab.state_path(), "[[node]]\nname = \"n1\"\n").expect("a broken state");
    wait_until("the state is refused", SOON, || status(&lab).contains("has refused the newest"))
        .expect("a refusal");
    assert_line(&status(&lab), &["errors", "for ", " s: pods: ", "missing field"]);
    lab.write_state(state).expect("the state of before");
    let over = || status(&lab).lines().any(|line| line.starts_with("errors") && line.contains("until "));
    wait_until("it is over", SOON, over).expect("an end");
    assert!(status(&lab).starts_with("healthy"), "{}", status(&lab));
}

#[test]
fn commands_go_on_about_what_runs_while_the_configuration_is_refused() {
    let mut lab = build(&LabSpec::pair(Overlay::Agent(AgentOptions::default()), Overlay::agent()));
    warm_up(&lab);
    let agent = lab.agent(1).expect("an agent");
    break_configuration(agent);
    wait_until("the agent has seen it", SOON, || !json(&lab)["config_error"].is_null()).expect("a refusal");
    for words in [&["dump", "routes"][..], &["dump", "counters"], &["flows", "list"], &["flows", "flush"]] {
        let (out, said) = run(&lab, words);
        assert!(
            said.contains("the configuration is refused, so this is about what runs"),
            "{words:?}: {said}"
        );
        assert!(!out.is_empty(), "{words:?}");
    }
    let kernels = |lab: &Lab| {
        let ping = Ping { count: 20, ..Ping::default() };
        let [one, _] = counted(lab, || assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, ping));
        one.packets("pod_egress", "switched_off")
    };
    let (out, _) = run(&lab, &["fastpath", "off", "--network", NETWORK]);
    assert!(out.contains("is off"), "{out}");
    assert!(kernels(&lab) >= 20, "off is off");
    run(&lab, &["fastpath", "on"]);
    assert_eq!(kernels(&lab), 0, "on is on");
    assert!(status(&lab).starts_with("attention  the configuration is refused"), "{}", status(&lab));

    // Without an agent, too, and to the end.
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    assert!(status(&lab).starts_with("attention"), "{}", status(&lab));
    let (out, _) = run(&lab, &["detach"]);
    assert!(out.contains("remove programs and maps"), "{out}");
    let links = lab.node(1).sh("ip -d link show type vxlan").expect("links");
    assert!(!links.contains("alias vxlan-agent"), "{links}");
}

#[test]
fn status_is_shown_again_and_again_until_it_is_ended() {
    let lab = build(&LabSpec::pair(Overlay::Agent(AgentOptions::default()), Overlay::agent()));
    let agent = lab.agent(1).expect("an agent");
    let mut child = lab.node(1).run(|| {
        Command::new(agent_binary().expect("an agent"))
            .args(["status", "--watch", "0.2", "--config"])
            .arg(agent.config())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child")
    });
    let mut out = child.stdout.take().expect("output");
    let (mut text, mut part) = (String::new(), [0; 4096]);
    while text.matches("\nagent      running").count() < 3 {
        let length = out.read(&mut part).expect("output");
        assert!(length > 0, "it ended: {text}");
        text += &String::from_utf8_lossy(&part[..length]);
    }
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), Signal::SIGINT).expect("a signal");
    assert!(child.wait().expect("an end").success());
    assert!(!text.contains('\u{1b}'), "blocks, no screen: {text}");
}

fn status(lab: &Lab) -> String {
    lab.agent(1).and_then(|agent| agent.cli(&["status"])).expect("a status")
}

fn json(lab: &Lab) -> Value {
    lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status")
}

/// Runs a command of the agent of node 1 and returns what it printed and what it said besides.
#[track_caller]
fn run(lab: &Lab, words: &[&str]) -> (String, String) {
    let agent = lab.agent(1).expect("an agent");
    let output = lab.node(1).run(|| {
        let mut command = Command::new(agent_binary().expect("an agent"));
        command.args(words).arg("--config").arg(agent.config()).output().expect("run")
    });
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(output.status.success(), "{words:?}: {err}");
    (out, err)
}

#[track_caller]
fn assert_line(text: &str, words: &[&str]) {
    let is_there = text.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(is_there, "{words:?} are on no line of\n{text}");
}
