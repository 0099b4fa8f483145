use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vxlan_tests::lab::traffic::Talk;
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, NETWORK, Netns, Overlay, agent_binary, wait_until};

use super::super::{build, warm_up};

const SOON: Duration = Duration::from_secs(10);

/// A terminal of 80 columns and 24 rows with a shell on node 1, which goes when this is dropped.
struct Terminal<'l> {
    node: &'l Netns,
    socket: String,
}

impl<'l> Terminal<'l> {
    fn new(node: &'l Netns) -> Self {
        let socket = format!("vxlan-{}", std::process::id());
        let terminal = Self { node, socket };
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        terminal
    }

    #[track_caller]
    fn tmux(&self, words: &[&str]) -> String {
        let output = self.node.run(|| {
            let mut command = Command::new("tmux");
            command.args(["-L", &self.socket]).args(words).env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
            command.output().expect("tmux: is the package installed?")
        });
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn type_in(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until all `words` are on one line of the screen.
    #[track_caller]
    fn shows(&self, words: &[&str]) {
        let there = || self.screen().lines().any(|line| words.iter().all(|word| line.contains(word)));
        wait_until(&format!("{words:?} are shown"), SOON, there)
            .inspect_err(|_| eprintln!("{}", self.screen()))
            .expect("in time");
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let kill = || Command::new("tmux").args(["-L", &self.socket, "kill-server"]).output();
        let _ = self.node.run(kill);
    }
}

#[test]
fn top_shows_live_what_goes_on_and_gives_the_terminal_back() {
    let lab = build(&LabSpec::pair(Overlay::Agent(AgentOptions::verified()), Overlay::agent()));
    warm_up(&lab);
    let terminal = Terminal::new(lab.node(1));
    let agent = lab.agent(1).expect("an agent");
    let pid = lab.run_dir().join("top.pid");
    let top = format!(
        "sh -c 'echo $$ > {}; exec {} top --interval 0.3 --config {}'; stty -a | grep -o ' icanon'; echo ended with $?",
        pid.display(),
        agent_binary().expect("an agent").display(),
        agent.config().display()
    );
    terminal.type_in(&top);
    terminal.press("Enter");
    terminal.shows(&["vxlan-agent top", "n1", "agent runs"]);
    let talk = Talk::start(lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 1).ip4.into()).expect("a connection");
    wait_until("nearly all is fast", SOON, || fast_share(&terminal.screen()) > 90.0)
        .inspect_err(|_| eprintln!("{}", terminal.screen()))
        .expect("a share");
    terminal.press("2");
    terminal.shows(&["n2", "192.0.2.2", NETWORK]);
    terminal.press("3");
    terminal.shows(&["10.244.1.", "10.244.2.", "bypass"]);
    terminal.press("4");
    terminal.shows(&["pod_egress", "encapsulated", "fast"]);
    terminal.type_in("/unverified");
    terminal.press("Enter");
    terminal.shows(&["filter: unverified"]);
    assert!(!terminal.screen().contains("encapsulated"), "{}", terminal.screen());
    terminal.press("p");
    terminal.shows(&["PAUSED"]);
    terminal.press("?");
    terminal.shows(&["sort by the column"]);
    terminal.press("?");
    talk.stop().expect("a connection that held");
    terminal.press("q");
    terminal.shows(&["icanon"]);
    terminal.shows(&["ended with 0"]);
    assert!(!terminal.screen().contains("PAUSED"), "{}", terminal.screen());

    // Ended by a signal, the terminal is as it was, too.
    terminal.tmux(&["send-keys", "-R", "clear", "Enter"]);
    terminal.type_in(&top);
    terminal.press("Enter");
    terminal.shows(&["agent runs"]);
    let pid = std::fs::read_to_string(&pid).expect("a process").trim().parse().expect("a number");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("a signal");
    terminal.shows(&["icanon"]);
    terminal.shows(&["ended with 0"]);
    assert_json(&lab);
}

/// How many of hundred packets out of node 1 the view of networks says are fast.
fn fast_share(screen: &str) -> f64 {
    let is_out = |words: &Vec<&str>| words.first() == Some(&NETWORK) && words.get(1) == Some(&"out");
    let line = screen.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(is_out);
    line.and_then(|words| words.get(7)?.parse().ok()).unwrap_or(0.0)
}

/// Without a terminal the same comes as JSON.
#[track_caller]
fn assert_json(lab: &Lab) {
    let agent = lab.agent(1).expect("an agent");
    let rates: Value = agent.json(&["top", "--count", "1", "--interval", "0.2"]).expect("rates");
    assert_eq!(rates["node"], "n1");
    let networks = rates["networks"].as_array().expect("networks");
    assert_eq!(networks.len(), 2, "{rates}");
    assert_eq!(networks[0]["network"], NETWORK);
    let refused = agent.cli(&["top"]).expect_err("no terminal").to_string();
    assert!(refused.contains("top needs a terminal"), "{refused}");
}
