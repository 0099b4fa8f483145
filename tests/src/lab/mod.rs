//! A cluster of nodes and pods in network namespaces of this machine.
//!
//! ```no_run
//! use vxlan_tests::lab::{LabSpec, Overlay, traffic};
//!
//! let lab = LabSpec::pair(Overlay::agent(), Overlay::KernelVxlan).build()?;
//! let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
//! let moved = traffic::tcp_bulk(client, server, server.ip4.into(), 10 << 20)?;
//! println!("{:.1} Gb/s", moved.gigabits_per_second());
//! # anyhow::Ok(())
//! ```
//!
//! [`SegmentLab`] is the same for bridged segments: a bridge per tenant on every node, and hosts in one
//! subnet.
//!
//! Every name begins with `vx<pid>`: namespaces, the pin directory in `/sys/fs/bpf` and the run
//! directory in `/run/vxlan-lab`. All of it goes when the [`Lab`] is dropped, when the process
//! panics or is told to end, and, where nothing of that could run, when the next lab is built.

pub mod addr;
pub mod agent;
mod agent_files;
pub mod cleanup;
mod cmd;
mod cni;
mod counters;
pub mod etcd;
mod flanneld;
mod frr;
mod ifupdown2;
mod kernel;
pub mod kubernetes;
pub mod machine;
mod netns;
mod networkd;
mod program;
pub mod segment;
mod server;
mod site;
mod spec;
mod state;
#[cfg(test)]
mod tests;
mod topology;
pub mod traffic;
mod underlay;
mod usage;

use std::path::PathBuf;

use anyhow::{Result, anyhow};

pub use addr::Family;
pub use agent::{Agent, AgentOptions, Beside, NETWORK, XDP, agent_binary, xdp};
pub use agent_files::remove_pins;
pub use cmd::{run, wait_until};
pub use cni::Cni;
pub use counters::{Count, Counters};
pub use etcd::Etcd;
pub use flanneld::{FLANNELD, Flanneld};
pub use frr::{Daemon, Frr, Speaker};
pub use ifupdown2::{IFUPDOWN2, Ifupdown2};
pub use kubernetes::Kubernetes;
pub use netns::Netns;
pub use networkd::Networkd;
pub use program::Dropper;
pub use segment::{SegmentLab, SegmentSpec};
use site::Site;
pub use spec::{Attach, EtcdSpec, LabSpec, Master, NodeSpec, Overlay, Vlan};
pub use state::{StateFile, StateNode};
pub use usage::map_bytes;

pub use topology::{DEVICE, Node, PORT, Pod, UNDERLAY, VNI, VRF, VRF_TABLE, WIRE};

/// A running lab; dropping it removes everything.
pub struct Lab {
    spec: LabSpec,
    nodes: Vec<Node>,
    _fabric: Option<Netns>,
    kubernetes: Option<Kubernetes>,
    etcd: Option<Etcd>,
    state: StateFile,
    /// Last, because it takes away what the others stand on.
    site: Site,
}

impl Lab {
    /// Node `n`, counted from 1.
    ///
    /// # Panics
    /// There is no such node.
    pub fn node(&self, n: u8) -> &Node {
        &self.nodes[usize::from(n) - 1]
    }

    /// As [`Lab::node`], to restart its agent.
    ///
    /// # Panics
    /// There is no such node.
    pub fn node_mut(&mut self, n: u8) -> &mut Node {
        &mut self.nodes[usize::from(n) - 1]
    }

    /// Pod `p` of node `n`, both counted from 1.
    ///
    /// # Panics
    /// There is no such pod.
    pub fn pod(&self, n: u8, p: u8) -> &Pod {
        &self.node(n).pods[usize::from(p) - 1]
    }

    /// What was asked for.
    pub fn spec(&self) -> &LabSpec {
        &self.spec
    }

    /// Gives node `n` an agent that does not run yet.
    ///
    /// # Errors
    /// Its configuration cannot be written.
    pub fn add_agent(&mut self, n: u8, options: &AgentOptions) -> Result<()> {
        let agent = Agent::new(self, &self.spec, n, options)?;
        self.node_mut(n).agent = Some(agent);
        Ok(())
    }

    /// Makes the vxlan device of node `n` as on a node without an agent, with all that belongs to it, for a cluster of
    /// the first `count` nodes.
    ///
    /// # Errors
    /// Something of it is there already.
    pub fn make_device(&self, n: u8, count: u8) -> Result<()> {
        kernel::set_up_vxlan(self.node(n), &self.spec, n, count)
    }

    /// All nodes in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The agent of node `n`.
    ///
    /// # Errors
    /// The node has none.
    pub fn agent(&self, n: u8) -> Result<&Agent> {
        self.node(n).agent.as_ref().ok_or_else(|| anyhow!("node {n} runs no agent"))
    }

    /// The agents of all nodes that run one, in order.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.nodes.iter().filter_map(|node| node.agent.as_ref())
    }

    /// As [`Lab::agent`], to stop and start it.
    ///
    /// # Errors
    /// The node has none.
    pub fn agent_mut(&mut self, n: u8) -> Result<&mut Agent> {
        self.node_mut(n).agent.as_mut().ok_or_else(|| anyhow!("node {n} runs no agent"))
    }

    /// Adds an empty namespace, which goes with the lab.
    ///
    /// # Errors
    /// There is one of that name.
    pub fn add_namespace(&self, name: &str) -> Result<Netns> {
        self.site.add_namespaces(&[name.to_owned()])?;
        self.site.namespace(name)
    }

    /// What all names of this lab begin with: `vx<pid>`, or `vx<pid>_<k>` for further labs of the
    /// same process.
    pub fn prefix(&self) -> &str {
        self.site.prefix()
    }

    /// Where configuration, state and logs lie.
    pub fn run_dir(&self) -> PathBuf {
        self.site.run_dir()
    }

    /// The state that all agents share, as written last.
    pub fn state(&self) -> &StateFile {
        &self.state
    }

    /// Path of the state file.
    pub fn state_path(&self) -> PathBuf {
        self.site.state_path()
    }

    /// Replaces the state file in one step; the agents reload it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_state(&mut self, state: StateFile) -> Result<()> {
        state.write(&self.state_path())?;
        self.state = state;
        Ok(())
    }

    /// Leaves the lab up when this process ends, until `vxlan-lab down`.
    ///
    /// # Errors
    /// The mark that says so cannot be written.
    pub fn keep(mut self) -> Result<()> {
        self.site.keep()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.site.is_kept() {
            return;
        }
        if std::thread::panicking() {
            self.agents().for_each(Agent::print_log);
        }
        self.nodes.iter_mut().filter_map(|node| node.agent.as_mut()).for_each(Agent::reap);
    }
}
