//! Faults and sabotage at random, one after the other, under traffic without a pause.
//!
//! A fault is what an agent has to live with: nothing may be lost. Sabotage takes parts of the overlay
//! away: it has to be healed soon, and from then on nothing may be lost. The modes, the ways of attaching
//! and the IP versions are mixed. `VXLAN_SOAK_SEED` chooses other places and another order,
//! `VXLAN_SOAK_SECONDS` goes on for that long at least; by default everything happens once.

mod fault;
mod sabotage;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use vxlan_agent::datapath::Pins;
use vxlan_tests::lab::{Agent, AgentOptions, DEVICE, Lab, LabSpec, Overlay, UNDERLAY, wait_until};

use self::fault::Fault;
use self::sabotage::Sabotage;
use self::traffic::{Total, Traffic};
use super::{build, counters, programs_on};

/// A sabotage is healed, and the fast path is taken again.
const SOON: Duration = Duration::from_secs(5);
/// Nodes of the lab.
const NODES: u8 = 3;

/// Pseudo-random numbers: SplitMix64.
struct Random(u64);

impl Random {
    /// One below `bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn node(&mut self) -> u8 {
        self.below(NODES.into()) as u8 + 1
    }

    fn shuffle<T>(&mut self, list: &mut [T]) {
        (1..list.len()).for_each(|at| list.swap(at, self.below(at + 1)));
    }
}

/// What happens next, and to which node.
#[derive(Clone, Copy, Debug)]
enum Event {
    Fault(Fault),
    Sabotage(Sabotage),
}

/// A lab under traffic.
struct Soak {
    lab: Lab,
    random: Random,
    traffic: Traffic,
    /// What the nodes are like when all is well.
    healthy: Vec<String>,
}

impl Soak {
    fn begin(seed: u64) -> Self {
        let filters = AgentOptions { node: "attach = \"clsact\"".into(), ..AgentOptions::verified() };
        let lab = build(&LabSpec::of(vec![Overlay::verified(), Overlay::agent(), Overlay::Agent(filters)]));
        let traffic = Traffic::start(&lab).expect("traffic");
        // An address that a pod has not used yet is the kernel's: it is found by the first packets.
        traffic.settle().expect("traffic that arrives");
        let healthy = (1..=NODES).map(|n| snapshot(&lab, n)).collect();
        Self { lab, random: Random(seed), traffic, healthy }
    }

    /// Every event once, in a random order.
    fn deck(&mut self) -> Vec<Event> {
        let faults = Fault::ALL.into_iter().map(Event::Fault);
        let mut deck: Vec<_> = faults.chain(Sabotage::ALL.into_iter().map(Event::Sabotage)).collect();
        self.random.shuffle(&mut deck);
        deck
    }

    fn play(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Fault(fault) => self.meet(fault)?,
            Event::Sabotage(sabotage) => {
                self.suffer(sabotage)?;
                self.traffic.forgive();
            }
        }
        self.traffic.settle()?;
        (1..=NODES).try_for_each(|n| self.is_well(n))
    }

    /// Node `n` is as it should be, its pod is short-cut, and nothing was dropped.
    fn is_well(&self, n: u8) -> Result<()> {
        let before = counters(&self.lab, n);
        let fast = || (&counters(&self.lab, n) - &before).packets("pod_egress", "encapsulated") > 20;
        wait_until(&format!("node {n} takes the fast path"), SOON, fast)?;
        self.wait_healed(n)?;
        for reason in ["unknown_vtep", "foreign_source", "pod_spoofed", "pod_tunnels", "write_failed"] {
            let now = counters(&self.lab, n);
            ensure!(now.total(reason) == 0, "node {n} drops packets ({reason}):\n{now}");
        }
        Ok(())
    }

    /// Waits until node `n` is what it was in the beginning.
    fn wait_healed(&self, n: u8) -> Result<()> {
        let healthy = &self.healthy[usize::from(n) - 1];
        wait_until(&format!("node {n} is as it was"), SOON, || snapshot(&self.lab, n) == *healthy)
            .with_context(|| format!("before:\n{healthy}\nnow:\n{}", snapshot(&self.lab, n)))
    }

    fn agent(&mut self, n: u8) -> Result<&mut Agent> {
        self.lab.agent_mut(n)
    }
}

/// What is there of node `n`'s overlay: entries of the kernel, pins, programs.
fn snapshot(lab: &Lab, n: u8) -> String {
    let node = lab.node(n);
    let questions = [
        format!("ip route show dev {DEVICE}"),
        format!("ip -6 route show dev {DEVICE}"),
        format!("ip neigh show dev {DEVICE} nud permanent"),
        format!("bridge fdb show dev {DEVICE}"),
        format!("ip addr show dev {DEVICE}"),
        format!("ip link show dev {DEVICE}"),
        // And the ports for head-room.
        "ip -br link show type vxlan".into(),
        // The kernel notices a carrier that is back within a second.
        format!("ip addr show dev {UNDERLAY}"),
        "nft list tables".into(),
    ];
    let answers = questions.iter().map(|question| node.sh(question).unwrap_or_default());
    let mut lines: Vec<_> =
        answers.flat_map(|answer| answer.lines().map(without_index).collect::<Vec<_>>()).collect();
    // The kernel's own routes and addresses come and go of themselves.
    lines.retain(|line| !line.contains("proto kernel") && !line.contains("scope link"));
    lines.extend(pins(lab, n));
    for interface in [UNDERLAY, DEVICE, &lab.pod(n, 1).host_veth] {
        // There may be no such interface at the moment.
        let there = node.sh(&format!("ip link show {interface}")).is_ok();
        let programs = if there { programs_on(node, interface) } else { 0 };
        lines.push(format!("{programs} programs on {interface}"));
    }
    lines.sort();
    lines.join("\n")
}

/// `5: flannel.1: …` without the number of the interface and that of an XDP program, which new ones have anew.
fn without_index(line: &str) -> String {
    let line = line.trim();
    let numbered = line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
    let words = numbered.map_or(line, |(_, rest)| rest).split(' ');
    words.map(|word| if word.starts_with("xdp/id:") { "xdp" } else { word }).collect::<Vec<_>>().join(" ")
}

/// How much the maps of node `n` hold, and the names of the pins, those of links without the interface's
/// number.
fn pins(lab: &Lab, n: u8) -> Vec<String> {
    let Ok(pins) = lab.agent(n).and_then(Agent::pins) else { return Vec::new() };
    let Ok(state) = Pins::open(&pins).and_then(|pins| pins.state()) else { return Vec::new() };
    let held = format!("{} VTEPs, {} routes in maps", state.vteps.len(), state.routes.len());
    let dirs = [pins.clone(), pins.join("programs"), pins.join("links")];
    let entries = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().filter_map(Result::ok);
    let name = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let names = entries.map(name).map(|name| name.split('-').next().unwrap_or_default().to_owned());
    names.chain([held]).collect()
}

/// A number from the environment.
fn asked(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number in the environment"))
}

#[test]
fn faults_lose_nothing_and_sabotage_is_healed_soon() {
    let seed = asked("VXLAN_SOAK_SEED").unwrap_or(1);
    let end = Instant::now() + Duration::from_secs(asked("VXLAN_SOAK_SECONDS").unwrap_or(0));
    let mut soak = Soak::begin(seed);
    let mut events = 0;
    while events == 0 || Instant::now() < end {
        for event in soak.deck() {
            let started = Instant::now();
            let outcome = soak.play(event);
            println!("{:5.1} s {event:?}", started.elapsed().as_secs_f32());
            outcome.with_context(|| format!("seed {seed}, event {events}: {event:?}")).expect("all is well");
            events += 1;
        }
    }
    let Total { datagrams, connections } = soak.traffic.stop();
    println!("seed {seed}: {events} events, {datagrams} datagrams, {connections} connections");
}
