//! Thousands of networks on one node of a lab.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::bench::control_plane::{cpu_seconds, peak_mebibytes};
use crate::bench::course::Course as _;
use crate::bench::cpu::Pair;
use crate::bench::measure::rr;
use crate::lab::{Agent, Lab, LabSpec, Overlay, PORT, VNI, map_bytes, wait_until};

const START_WITHIN: Duration = Duration::from_secs(300);
/// How long an agent that does nothing is watched.
const IDLE: Duration = Duration::from_secs(5);
/// Measurements of request and response, and how long each takes.
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(400);

/// What a start took.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Start {
    /// Seconds from the start of the process until all networks ran.
    pub seconds: f64,
    /// CPU seconds of the agent.
    pub cpu_seconds: f64,
    /// The most memory that the agent had, in MiB.
    pub mebibytes: f64,
}

/// A lab whose node 1 has many networks, and one like it without.
pub struct Many {
    lab: Lab,
    alone: Lab,
    count: u32,
}

impl Many {
    /// Builds it, with `count` networks to come. Their other node is the lab's, which knows nothing of them.
    ///
    /// # Errors
    /// A lab cannot be built.
    pub fn build(count: u32) -> Result<Self> {
        let pair = || LabSpec::pair(Overlay::verified(), Overlay::verified()).unfiltered().build();
        let (mut lab, alone) = (pair()?, pair()?);
        lab.agent_mut(1)?.stop()?;
        let [routed, bridged] = ["many-l3.toml", "many-l2.toml"].map(|name| lab.run_dir().join(name));
        std::fs::write(&routed, nodes_of_routed(&lab, count))?;
        std::fs::write(&bridged, nodes_of_bridged(&lab))?;
        let mut snippet = String::new();
        for n in 1..count {
            let (kind, state) = if n % 2 == 0 { ("l2", &bridged) } else { ("l3", &routed) };
            let _ = write!(
                snippet,
                "[[network]]\nname = \"m{n}\"\nkind = \"{kind}\"\nvni = {}\nport = {PORT}\ndevice = \"vm{n}\"\n\
                 [network.state]\nsource = \"file\"\npath = {state:?}\n",
                VNI + n
            );
        }
        lab.agent(1)?.add_snippet("many", &snippet)?;
        Ok(Self { lab, alone, count })
    }

    /// The lab with many networks.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    fn agent(&self) -> Result<&Agent> {
        self.lab.agent(1)
    }

    fn pid(&self) -> Result<u32> {
        self.agent()?.pid().context("the agent does not run")
    }

    /// Starts the agent, after it has been ended if it runs.
    ///
    /// # Errors
    /// Not all networks run in time.
    pub fn start(&mut self) -> Result<Start> {
        if self.agent()?.pid().is_some() {
            self.lab.agent_mut(1)?.stop()?;
        }
        let running = |agent: &Agent| agent.log().matches("INFO running").count();
        let before = running(self.agent()?);
        let started = Instant::now();
        self.lab.agent_mut(1)?.spawn()?;
        let (agent, count) = (self.agent()?, self.count as usize);
        wait_until("all networks run", START_WITHIN, || running(agent) - before >= count)
            .inspect_err(|_| eprintln!("{} of {count} networks run", running(agent) - before))?;
        let (seconds, pid) = (started.elapsed().as_secs_f64(), self.pid()?);
        Ok(Start { seconds, cpu_seconds: cpu_seconds(pid)?, mebibytes: peak_mebibytes(pid)? })
    }

    /// The share of a CPU that the agent takes if nothing happens.
    ///
    /// # Errors
    /// It does not run.
    pub fn idle(&self) -> Result<f64> {
        let pid = self.pid()?;
        // What the start has left to do is no part of it.
        std::thread::sleep(IDLE);
        let before = cpu_seconds(pid)?;
        std::thread::sleep(IDLE);
        Ok((cpu_seconds(pid)? - before) / IDLE.as_secs_f64())
    }

    /// What the maps take, in MiB.
    ///
    /// # Errors
    /// They are not pinned.
    pub fn map_mebibytes(&self) -> Result<f64> {
        Ok(map_bytes(&self.agent()?.pins()?)? as f64 / f64::from(1 << 20))
    }

    /// Request and response between pods of the network that both labs have: many networks ÷ one, by the fast path
    /// and by the kernel's way.
    ///
    /// # Errors
    /// Nothing is answered.
    pub(super) fn packets(&self, cpus: Pair) -> Result<[f64; 2]> {
        let fast = self.ratio(cpus)?;
        for lab in [&self.lab, &self.alone] {
            for n in [1, 2] {
                lab.agent(n)?.cli(&["fastpath", "off"])?;
            }
        }
        Ok([fast, self.ratio(cpus)?])
    }

    fn ratio(&self, cpus: Pair) -> Result<f64> {
        let mut times = [vec![], vec![]];
        for _ in 0..ROUNDS {
            for (lab, times) in [&self.alone, &self.lab].into_iter().zip(&mut times) {
                let [client, server] = lab.ends();
                times.push(rr::udp(client, server, cpus, ROUND)?);
            }
        }
        let [one, many] = times.map(|mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        });
        Ok(many / one)
    }
}

/// Each routed network has a subnet on either node.
fn nodes_of_routed(lab: &Lab, count: u32) -> String {
    let mut text = String::new();
    for n in (1..count).filter(|n| n % 2 == 1) {
        for (node, place) in lab.state().nodes.iter().zip(n - 1..) {
            let _ = writeln!(
                text,
                "[[node]]\nname = {:?}\nvtep = \"{}\"\nnetworks = [\"m{n}\"]\nsubnets = [\"10.{}.{}.0/24\"]",
                node.name,
                node.vtep,
                100 + (place >> 8),
                place & 0xff
            );
        }
    }
    text
}

fn nodes_of_bridged(lab: &Lab) -> String {
    let mut text = String::new();
    for node in &lab.state().nodes {
        let _ = writeln!(text, "[[node]]\nname = {:?}\nvtep = \"{}\"", node.name, node.vtep);
    }
    text
}
