//! Rules of the host and what happens to flows and agents meanwhile, with the kernel alone as referee.
//!
//! Flows open under one set of rules; then the rules change or stay, something happens to the bypasses,
//! and old and new flows of all kinds are tried. What the kernel alone lets pass has to pass, and nothing
//! else. Rules that limit are not among them.

mod datagrams;
mod rules;
mod traffic;

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use vxlan_agent::datapath::Pins;
use vxlan_ebpf_common::maps::FlowKey;
use vxlan_tests::lab::addr::{inner4, inner6};
use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{Agent, AgentOptions, Family, Lab, LabSpec, Netns, Overlay, StateFile, wait_until};

use self::rules::{POLICIES, Policy, table};
use self::traffic::{Ends, Limits, Outcome, REFUSED, Session};
use super::super::{assert_answered, assert_nothing_dropped, assert_took, build, counters, warm_up};
use super::nft;

const SOON: Duration = Duration::from_secs(5);
/// Datagrams of a flood: more than a small table of flows holds.
const FLOOD: u16 = 6_000;

/// What happens while flows are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Nothing,
    /// Bypasses are closed.
    Flush,
    /// Other flows take the places of these in the table.
    Evict,
    /// The agents are restarted.
    Restart,
    /// The agents are killed, and are not there when rules change.
    Dead,
    /// The fast path is switched off and on.
    Switch,
    /// The source tells that rules have changed.
    Told,
}

impl Event {
    /// With the rules as they are.
    const ALONE: [Self; 5] = [Self::Nothing, Self::Flush, Self::Evict, Self::Dead, Self::Switch];
    /// After the rules have changed.
    const AFTER_CHANGE: [Self; 4] = [Self::Told, Self::Restart, Self::Dead, Self::Switch];
}

/// A lab, and its cases so far.
struct Arena {
    lab: Lab,
    ends: [Ends; 2],
    cases: u16,
}

impl Arena {
    fn build(overlay: &Overlay) -> Self {
        let lab = build(&LabSpec::pair(overlay.clone(), overlay.clone()).pods(2));
        warm_up(&lab);
        for n in [1, 2] {
            let anybody = [("ipv4/ping_group_range", "0 2147483647")];
            lab.pod(n, 1).sysctl(&anybody).expect("sockets for echoes");
        }
        let ends = [Family::V4, Family::V6].map(|family| Ends::new(&lab, family));
        Self { lab, ends, cases: 0 }
    }

    fn load(&self, chains: &str) {
        [1, 2].into_iter().for_each(|n| nft(&self.lab, n, &table(chains)));
    }

    /// Plays one case: what becomes of everything.
    fn play(&mut self, policy: &Policy, changes: bool, event: Event, limits: &Limits<'_>) -> Outcome {
        self.cases += 1;
        self.load(policy.before);
        let sessions = self.ends.each_ref().map(|ends| ends.open(self.cases));
        if event == Event::Dead {
            self.agents(Agent::kill9);
        }
        if changes {
            self.load(policy.after);
        }
        self.happen(event);
        let outcome = std::thread::scope(|scope| {
            let attempt = |(ends, session): (&'_ Ends, _)| ends.attempt(session, limits);
            let [first, second] = sessions;
            let [v4, v6] = &self.ends;
            let other = scope.spawn(move || attempt((v6, second)));
            let mut outcome = attempt((v4, first));
            outcome.extend(other.join().expect("attempts"));
            outcome
        });
        if event == Event::Dead {
            self.start();
        }
        outcome
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Nothing | Event::Dead => {}
            Event::Flush => self.agents(|agent| agent.cli(&["flows", "flush"]).map(drop)),
            Event::Evict => self.evict(),
            Event::Restart => {
                self.agents(Agent::stop);
                self.start();
            }
            Event::Switch => {
                self.agents(|agent| agent.cli(&["fastpath", "off"]).map(drop));
                self.agents(|agent| agent.cli(&["fastpath", "on"]).map(drop));
            }
            Event::Told => {
                let said = |lab: &Lab, n| {
                    lab.agent(n).expect("an agent").log().matches("rules have changed").count()
                };
                let before = [1, 2].map(|n| said(&self.lab, n));
                let policy = Some(self.cases.into());
                let state = StateFile { policy, ..self.lab.state().clone() };
                self.lab.write_state(state).expect("a state file");
                let heard =
                    || [1, 2].map(|n| said(&self.lab, n)).iter().zip(&before).all(|(now, then)| now > then);
                wait_until("the bypasses are closed", SOON, heard).expect("agents that hear");
            }
        }
    }

    /// Starts the agents side by side. They are ready when they know all pods, so those say something.
    fn start(&mut self) {
        self.agents(Agent::spawn);
        for (n, p) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let gateways = [IpAddr::from(inner4(n, 1)), inner6(n, 1).into()];
            for gateway in gateways {
                assert_answered(self.lab.pod(n, p), gateway, Ping::default());
            }
        }
        self.agents(|agent| agent.wait_ready());
    }

    fn agents(&mut self, work: impl Fn(&mut Agent) -> anyhow::Result<()>) {
        for n in [1, 2] {
            self.lab.agent_mut(n).and_then(&work).expect("an agent that obeys");
        }
    }

    /// Has other pods fill the tables of both nodes until the flows of this case are not there any more.
    fn evict(&self) {
        let (lab, ports) = (&self.lab, Session::ports(self.cases));
        let known = |n| {
            let flows = lab.agent(n).and_then(Agent::pins).and_then(|pins| Ok(Pins::open(&pins)?.flows()));
            let ours =
                |key: &FlowKey| ports.iter().any(|port| [key.local_port, key.remote_port].contains(port));
            flows.expect("flows").iter().any(|(key, _)| ours(key))
        };
        let gone = || {
            flood(lab.pod(1, 2), lab.pod(2, 2).ip4.into());
            flood(lab.pod(2, 2), lab.pod(1, 2).ip4.into());
            ![1, 2].into_iter().any(known)
        };
        wait_until("other flows have taken their places", SOON * 4, gone).expect("evictions");
    }
}

/// A flow to each of many ports. What is never looked up again is the first that a table of the kind LRU loses,
/// so each is of several packets.
fn flood(from: &Netns, to: IpAddr) {
    from.run(|| {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
        for port in (10_000..10_000 + FLOOD).flat_map(|port| [port; 3]) {
            // Some are answered with errors.
            let _ = socket.send_to(b"one of many", (to, port));
        }
    });
}

/// What was not as the referee had it, a line each. Without an agent, what bypasses is not told of a change
/// until it is looked at again.
fn differences(what: &str, expected: &Outcome, got: &Outcome, untold: bool) -> Vec<String> {
    let late = |name: &str| {
        untold && ["old connection", "old flow", "old identifier"].iter().any(|old| name.contains(old))
    };
    let differ = expected.iter().filter(|(name, result)| got.get(*name) != Some(result) && !late(name));
    differ
        .map(|(name, result)| format!("{what}: {name}: kernel {result}, ours {:?}", got.get(name)))
        .collect()
}

#[test]
fn what_passes_rules_is_what_the_kernel_alone_lets_pass_whatever_happens_to_bypasses() {
    let mut referee = Arena::build(&Overlay::KernelVxlan);
    let options = AgentOptions { network: "flows = 4096".into(), ..AgentOptions::verified() };
    let mut ours = Arena::build(&Overlay::Agent(options));
    let before = counters(&ours.lab, 1);
    let mut wrong = Vec::new();
    for policy in &POLICIES {
        for (changes, events) in [(false, &Event::ALONE[..]), (true, &Event::AFTER_CHANGE[..])] {
            let expected = referee.play(policy, changes, Event::Nothing, &Limits::Referee);
            let refused = expected.values().filter(|result| *result == REFUSED).count();
            assert!((refused > 0 || !changes) && refused < expected.len(), "{}: {expected:#?}", policy.name);
            for event in events {
                let started = Instant::now();
                let what = format!("{}, changed {changes}, {event:?}", policy.name);
                let got = ours.play(policy, changes, *event, &Limits::Expected(&expected));
                println!("{:4.1} s {what}", started.elapsed().as_secs_f32());
                wrong.extend(differences(&what, &expected, &got, changes && *event == Event::Dead));
            }
        }
    }
    let counted = &counters(&ours.lab, 1) - &before;
    assert!(wrong.is_empty(), "{} differences:\n{}\n{counted}", wrong.len(), wrong.join("\n"));
    // Of each case some packets of each flow.
    assert_took(&counted, "pod_egress", "encapsulated", 20 * u64::from(ours.cases));
    assert_nothing_dropped(&counted);
}
