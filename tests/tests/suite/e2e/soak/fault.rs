//! What an agent has to live with, and loses nothing.

use std::io::{BufRead as _, BufReader};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use vxlan_tests::lab::addr::inner4;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{Lab, StateFile, StateNode, agent, wait_until};

use super::super::upgrade;
use super::{NODES, SOON, Soak, snapshot};

/// Longer than a second agent waits for the first one to end.
const REFUSED_WITHIN: Duration = Duration::from_secs(15);
/// Pods that start at once.
const BURST: u8 = 3;

/// What happens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    /// The agent is killed and started again.
    Kill,
    /// It is killed again while it starts.
    KillAtStart,
    /// It is stopped, and started when traffic has gone through without it.
    Stop,
    /// It is restarted.
    Restart,
    /// All agents are restarted at once.
    RestartAll,
    /// All bypasses are closed.
    Flush,
    /// The fast path is switched off, and on again.
    Switch,
    /// The source says that rules have changed.
    Policy,
    /// A state file that makes no sense, or is none.
    BadState(Bad),
    /// Hundreds of nodes come and go.
    Storm,
    /// The same, and the agent is dead meanwhile.
    StormWhileDead,
    /// Pods start and stop, and use addresses of those before.
    Pods,
    /// Another agent of the same configuration is started.
    SecondAgent,
    /// Somebody looks at events and is killed at it.
    Listener,
    /// The agent of the release before takes the place of this one, and gives it back.
    Before,
}

/// What is wrong with a state file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bad {
    Syntax,
    CutOff,
    Binary,
    Overlap,
    HostBits,
    TwoOfAnAddress,
    Directory,
    Fifo,
    Gone,
}

impl Fault {
    pub(super) const ALL: [Self; 23] = [
        Self::Kill,
        Self::KillAtStart,
        Self::Stop,
        Self::Restart,
        Self::RestartAll,
        Self::Flush,
        Self::Switch,
        Self::Policy,
        Self::BadState(Bad::Syntax),
        Self::BadState(Bad::CutOff),
        Self::BadState(Bad::Binary),
        Self::BadState(Bad::Overlap),
        Self::BadState(Bad::HostBits),
        Self::BadState(Bad::TwoOfAnAddress),
        Self::BadState(Bad::Directory),
        Self::BadState(Bad::Fifo),
        Self::BadState(Bad::Gone),
        Self::Storm,
        Self::StormWhileDead,
        Self::Pods,
        Self::SecondAgent,
        Self::Listener,
        Self::Before,
    ];
}

impl Soak {
    /// Makes a fault happen, and waits until it is over.
    pub(super) fn meet(&mut self, fault: Fault) -> Result<()> {
        let n = self.random.node();
        println!("{fault:?} at node {n}");
        match fault {
            Fault::Kill => {
                self.agent(n)?.kill9()?;
                self.traffic.settle()?;
                self.agent(n)?.start()
            }
            Fault::KillAtStart => {
                self.agent(n)?.kill9()?;
                self.agent(n)?.spawn()?;
                // Any moment of its start, not synchronisation.
                std::thread::sleep(Duration::from_millis(self.random.below(300) as u64));
                self.agent(n)?.kill9()?;
                self.agent(n)?.start()
            }
            Fault::Stop => {
                self.agent(n)?.stop()?;
                self.traffic.settle()?;
                self.agent(n)?.start()
            }
            Fault::Restart => self.agent(n)?.restart(),
            Fault::RestartAll => {
                (1..=NODES).try_for_each(|n| self.agent(n)?.stop())?;
                (1..=NODES).try_for_each(|n| self.agent(n)?.spawn())?;
                (1..=NODES).try_for_each(|n| self.agent(n)?.wait_ready())
            }
            Fault::Flush => (1..=NODES).try_for_each(|n| self.command(n, &["flows", "flush"])),
            Fault::Switch => {
                self.command(n, &["fastpath", "off"])?;
                self.traffic.settle()?;
                self.command(n, &["fastpath", "on"])
            }
            Fault::Policy => {
                let policy = Some(self.random.below(1_000_000) as u32);
                self.lab.write_state(StateFile { policy, ..self.lab.state().clone() })
            }
            Fault::BadState(bad) => self.refuse(bad),
            Fault::Storm => self.storm(None),
            Fault::StormWhileDead => self.storm(Some(n)),
            Fault::Pods => burst_of_pods(&self.lab, n),
            Fault::SecondAgent => refuse_second_agent(&self.lab, n),
            Fault::Listener => kill_listener(&self.lab, n),
            Fault::Before => self.go_back(n),
        }
    }

    fn command(&mut self, n: u8, words: &[&str]) -> Result<()> {
        self.agent(n)?.cli(words).map(drop)
    }

    /// The agent of the release before takes over at node `n` if there is one, and hands over again.
    fn go_back(&mut self, n: u8) -> Result<()> {
        let Some(before) = upgrade::before() else { return Ok(()) };
        for program in [Some(before), None] {
            self.agent(n)?.replace(program)?;
            self.traffic.settle()?;
        }
        Ok(())
    }

    /// All agents refuse a state file, which changes nothing, and take a right one again.
    fn refuse(&mut self, bad: Bad) -> Result<()> {
        let path = self.lab.state_path();
        put_bad_state(&self.lab, bad)?;
        for n in 1..=NODES {
            wait_until(&format!("node {n} refuses the state"), SOON, || refuses(&self.lab, n))?;
            ensure!(snapshot(&self.lab, n) == self.healthy[usize::from(n) - 1], "it has changed node {n}");
        }
        if path.is_dir() {
            std::fs::remove_dir(&path)?;
        }
        self.lab.write_state(self.lab.state().clone())?;
        let taken = |n| wait_until("the state is taken", SOON, || !refuses(&self.lab, n));
        (1..=NODES).try_for_each(taken)
    }

    /// Other nodes come and go in bursts; those that are there stay. The agent of one node may be dead.
    fn storm(&mut self, dead: Option<u8>) -> Result<()> {
        if let Some(n) = dead {
            self.agent(n)?.kill9()?;
        }
        let whole = self.lab.state().clone();
        let mut more = 0;
        for _ in 0..5 {
            more = 50 + self.random.below(250) as u16;
            let mut nodes: Vec<_> = (0..more).map(another).chain(whole.nodes.clone()).collect();
            self.random.shuffle(&mut nodes);
            self.lab.write_state(StateFile { nodes, ..whole })?;
            // Between no and a few of those get to be a state of the agents'.
            std::thread::sleep(Duration::from_millis(self.random.below(100) as u64));
        }
        for n in (1..=NODES).filter(|n| Some(*n) != dead) {
            let all = usize::from(more) + usize::from(NODES) - 1;
            let known = || routes(&self.lab, n) == all;
            wait_until(&format!("node {n} has {all} routes"), SOON * 2, known)?;
        }
        self.lab.write_state(whole)?;
        if let Some(n) = dead {
            self.agent(n)?.start()?;
        }
        (1..=NODES).try_for_each(|n| self.wait_healed(n))
    }
}

/// Whether the agent of node `n` says that the state file is wrong.
fn refuses(lab: &Lab, n: u8) -> bool {
    let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).unwrap_or_default();
    status["networks"][0]["reload_error"].is_string()
}

fn put_bad_state(lab: &Lab, bad: Bad) -> Result<()> {
    let path = lab.state_path();
    let right = lab.state().to_toml();
    let text = match bad {
        Bad::Syntax => "[[node]\n".into(),
        Bad::CutOff => right.trim_end_matches(['\n', ']', '"']).into(),
        Bad::Binary => vec![0xff; 1_000],
        Bad::Overlap => right.replace("10.244.2.0/24", "10.244.1.0/24").into_bytes(),
        Bad::HostBits => right.replace("10.244.2.0/24", "10.244.2.7/24").into_bytes(),
        Bad::TwoOfAnAddress => right.replace("192.0.2.2", "192.0.2.1").into_bytes(),
        Bad::Directory | Bad::Fifo | Bad::Gone => {
            std::fs::remove_file(&path)?;
            return match bad {
                Bad::Directory => Ok(std::fs::create_dir(&path)?),
                Bad::Fifo => Ok(nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR)?),
                _ => Ok(()),
            };
        }
    };
    Ok(std::fs::write(path, text)?)
}

/// A node that does not exist.
fn another(number: u16) -> StateNode {
    let [high, low] = number.to_be_bytes();
    StateNode {
        name: format!("more-{number}"),
        vtep: IpAddr::from([198, 18, high, low]),
        mac: None,
        subnets: vec![format!("10.{}.{low}.0/24", 100 + high), format!("fd00:99:{number:x}::/64")],
        stations: vec![],
    }
}

/// How many routes node `n` has through the tunnel.
fn routes(lab: &Lab, n: u8) -> usize {
    let routes = lab.node(n).sh(&format!("ip route show dev {}", vxlan_tests::lab::DEVICE));
    routes.unwrap_or_default().lines().count()
}

/// Pods of node `n` start, talk to the pods that are there, and stop; twice, with the same addresses.
fn burst_of_pods(lab: &Lab, n: u8) -> Result<()> {
    let pods: Vec<_> =
        (0..BURST).map(|p| lab.add_namespace(&format!("n{n}burst{p}"))).collect::<Result<_>>()?;
    for round in 0..2 {
        for (p, pod) in (0..).zip(&pods) {
            let host = 100 + (p + round) % BURST;
            lab.node(n).ip(&format!(
                "link add burst{p} mtu 1450 type veth peer name eth0 mtu 1450 netns {}\n\
                 link set burst{p} master cni0 up\n",
                pod.namespace()
            ))?;
            pod.ip(&format!(
                "addr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
                inner4(n, host),
                inner4(n, 1)
            ))?;
        }
        for (pod, m) in pods.iter().flat_map(|pod| (1..=NODES).map(move |m| (pod, m))) {
            let report = ping(pod, lab.pod(m, 1).ip4, Ping { count: 3, ..Ping::default() })?;
            ensure!(report.all_answered(), "a new pod of node {n} to node {m}: {:?}", report.errors);
        }
        let stop: String = (0..BURST).map(|p| format!("link del burst{p}\n")).collect();
        lab.node(n).ip(&stop)?;
    }
    pods.into_iter().try_for_each(|pod| {
        Command::new("ip").args(["netns", "del", pod.namespace()]).status()?;
        Ok(())
    })
}

/// Somebody at node `n` is told of packets, and killed before saying that nobody listens any more.
fn kill_listener(lab: &Lab, n: u8) -> Result<()> {
    let (program, config) = (agent::agent_binary()?, lab.agent(n)?.config());
    let mut listener = lab.node(n).run(|| {
        let mut command = Command::new(program);
        command.args(["monitor", "--json", "--seconds", "10", "--config"]).arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
    })?;
    let told = listener.stdout.take().context("no pipe").and_then(|out| {
        let mut first = String::new();
        BufReader::new(out).read_line(&mut first)?;
        Ok(first)
    });
    listener.kill()?;
    listener.wait()?;
    ensure!(!told?.is_empty(), "the listener at node {n} is told of nothing");
    Ok(())
}

/// An agent with the configuration of node `n`'s does not run beside it.
fn refuse_second_agent(lab: &Lab, n: u8) -> Result<()> {
    let program = agent::agent_binary()?;
    let config = lab.agent(n)?.config();
    let mut second = lab.node(n).run(|| {
        let mut command = Command::new(program);
        command.args(["run".as_ref(), "--config".as_ref(), config.as_os_str()]);
        command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()
    })?;
    let mut status = None;
    let ended = wait_until("the second agent ends", REFUSED_WITHIN, || {
        status = second.try_wait().ok().flatten();
        status.is_some()
    });
    if ended.is_err() {
        second.kill()?;
    }
    let said = String::from_utf8_lossy(&second.wait_with_output()?.stderr).into_owned();
    ended.with_context(|| said.clone())?;
    if status.is_some_and(|status| status.success()) || !said.contains("running already") {
        bail!("the second agent is not refused: {status:?}, {said}");
    }
    Ok(())
}
