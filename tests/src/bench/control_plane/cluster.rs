//! An agent in a cluster of five thousand nodes: how it starts, and how it follows changes.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use vxlan_agent::datapath::Pins;
use vxlan_agent::status::{self, Status};
use vxlan_ebpf_common::maps::{MacKey, Station, names};

use super::nodes::{self, NODES};
use super::storm::{self, CHANGES, Storm};
use super::usage::{cpu_seconds, peak_mebibytes};
use crate::lab::kubernetes::Stub;
use crate::lab::{Agent, Lab, LabSpec, Overlay, wait_until};

/// The lab's other nodes: two, over two IP versions.
const OTHERS: usize = 4;
/// The own subnets are in the table of routes, too.
const OWN_SUBNETS: usize = 2;
const START_WITHIN: Duration = Duration::from_secs(60);

/// What an agent finds when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Found {
    /// No device, no maps, no programs.
    Nothing,
    /// All that the one before has left.
    Everything,
}

/// How the API server gives all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listing {
    /// One by one, as the beginning of a watch.
    Streamed,
    /// In pages: servers that have no streaming lists.
    Paged,
}

/// What a start took.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// CPU seconds of the agent.
    pub cpu_seconds: f64,
    /// Seconds from the start of the process until kernel and fast path had all nodes.
    pub seconds: f64,
    /// The most memory that the agent had, in MiB.
    pub mebibytes: f64,
}

/// A lab whose API server knows of five thousand further nodes.
pub struct Cluster {
    lab: Lab,
    /// MACs that each of those has had so far.
    versions: u32,
}

impl Cluster {
    /// Builds it: node 1 is ours, nodes 2 and 3 are flannel's, of the others there is nothing
    /// but what the API server says.
    ///
    /// # Errors
    /// The lab cannot be built, or the agent does not follow.
    pub fn build() -> Result<Self> {
        let ours = Overlay::verified();
        let spec = LabSpec::of(vec![ours, Overlay::KernelVxlan, Overlay::KernelVxlan]);
        let lab = spec.kubernetes().build()?;
        let begun = SystemTime::now();
        lab.kubernetes().create_all((0..NODES).map(nodes::node))?;
        let cluster = Self { lab, versions: 1 };
        cluster.wait_complete(begun)?;
        Ok(cluster)
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The stub of an API server; `None` where a real one runs.
    pub fn stub(&self) -> Option<&Stub> {
        self.lab.kubernetes().stub()
    }

    /// Ends the agent and starts it again. A real API server lists as it can, whatever `listing`.
    ///
    /// # Errors
    /// It does not get ready.
    pub fn start(&mut self, found: Found, listing: Listing) -> Result<Start> {
        if let Some(stub) = self.stub() {
            let refuse = if listing == Listing::Streamed { 0 } else { 422 };
            stub.faults().refuse_streaming.store(refuse, Ordering::Relaxed);
        }
        match found {
            Found::Everything => self.lab.agent_mut(1)?.stop()?,
            Found::Nothing => {
                self.agent()?.cli(&["detach"])?;
                self.lab.agent_mut(1)?.stop()?;
            }
        }
        let (begun, started) = (SystemTime::now(), Instant::now());
        self.lab.agent_mut(1)?.spawn()?;
        self.wait_complete(begun)?;
        let (seconds, pid) = (started.elapsed().as_secs_f64(), self.pid()?);
        Ok(Start { cpu_seconds: cpu_seconds(pid)?, seconds, mebibytes: peak_mebibytes(pid)? })
    }

    /// Gives a thousand nodes a second another MAC and watches when the fast path
    /// knows it. Nobody waits for it: an agent that is too slow falls further behind.
    ///
    /// # Errors
    /// There is no stub, or changes are not followed at all.
    pub fn storm(&mut self) -> Result<Storm> {
        let first = self.versions;
        self.versions += CHANGES.div_ceil(NODES);
        let stub = self.stub().context("only the stub takes that many changes")?;
        let (pid, macs) = (self.pid()?, self.macs()?);
        let cpu = cpu_seconds(pid)?;
        let network = Pins::open(&self.agent()?.pins()?)?.network(crate::lab::agent::NETWORK)?;
        let known = |n, version| macs.get(&MacKey::new(network, nodes::mac(n, version)), 0).is_ok();
        let blown = storm::blow(stub, first, known).inspect_err(|_| self.print_log())?;
        Ok(Storm::of(&blown, cpu_seconds(pid)? - cpu, peak_mebibytes(pid)?))
    }

    fn agent(&self) -> Result<&Agent> {
        self.lab.agent(1)
    }

    fn pid(&self) -> Result<u32> {
        self.agent()?.pid().context("the agent does not run")
    }

    fn macs(&self) -> Result<HashMap<MapData, MacKey, Station>> {
        let map = MapData::from_pin(self.agent()?.pins()?.join(names::STATIONS))?;
        Ok(Map::from_map_data(map)?.try_into()?)
    }

    /// Waits until the agent has written down, after `begun`, that nothing is left to do, and looks
    /// whether that is so. Reading the agent's file costs less than asking its command line, on a
    /// machine whose CPUs it needs itself.
    fn wait_complete(&self, begun: SystemTime) -> Result<()> {
        let file = self.status_dir().join("status.json");
        let written = || fs::metadata(&file).and_then(|file| file.modified()).is_ok_and(|at| at >= begun);
        let complete = || written() && status::read(&self.status_dir()).is_ok_and(|s| self.says_complete(s));
        wait_until("the agent has all nodes", START_WITHIN, complete).inspect_err(|_| self.print_log())?;
        let state = Pins::open(&self.agent()?.pins()?)?.state()?;
        let nodes = NODES as usize + OTHERS;
        ensure!(state.routes.len() == nodes + OWN_SUBNETS, "{} routes", state.routes.len());
        ensure!((state.vteps.len(), state.stations.len()) == (nodes, nodes), "not all VTEPs are there");
        Ok(())
    }

    fn status_dir(&self) -> PathBuf {
        self.lab.run_dir().join("n1")
    }

    fn says_complete(&self, status: Option<Status>) -> bool {
        let Some(status) = status.filter(|status| Some(status.pid) == self.pid().ok()) else { return false };
        status.networks.first().is_some_and(|network| {
            // Not the pod's addresses: a pod that has said nothing for minutes is not known.
            network.nodes.len() == NODES as usize + OTHERS
                && status.retrying.is_empty()
                && network.plan_error.is_none()
                && network.pods_attached == 1
        })
    }

    fn print_log(&self) {
        self.agent().iter().for_each(|agent| agent.print_log());
    }
}
