//! A cluster of nodes that carry bridged segments: one broadcast domain per tenant, across all nodes.
//!
//! ```no_run
//! use vxlan_tests::lab::{Overlay, SegmentSpec, traffic};
//!
//! let lab = SegmentSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan).build()?;
//! let (one, other) = (lab.host(1, "red", 1), lab.host(2, "red", 1));
//! assert!(traffic::ping(one, other.ip4, traffic::Ping::default())?.all_answered());
//! # anyhow::Ok(())
//! ```
//!
//! Names, and how all of it is removed, are those of the [lab](super).

mod agent;
mod build;
mod host;
mod kernel;
mod seen;
mod spec;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::ops::Deref;
use std::path::PathBuf;

use anyhow::{Result, anyhow};

use super::site::Site;
use super::{Agent, AgentOptions, Netns, Overlay, StateFile, addr};

pub use host::{Announcement, Host};
pub use spec::{Card, SegmentSpec, TenantSpec};

/// A node that carries segments; dereferences to its namespace.
pub struct SegmentNode {
    /// `n1`, `n2`, …
    pub name: String,
    /// Its underlay address, of the family that the tunnel uses.
    pub underlay: IpAddr,
    /// Its agent, if it runs one.
    pub agent: Option<Agent>,
    ns: Netns,
}

impl Deref for SegmentNode {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

/// A running lab of bridged segments; dropping it removes everything.
pub struct SegmentLab {
    spec: SegmentSpec,
    hosts: Vec<Host>,
    nodes: Vec<SegmentNode>,
    _fabric: Option<Netns>,
    state: StateFile,
    /// Last, because it takes away what the others stand on.
    site: Site,
}

impl SegmentLab {
    /// What was asked for.
    pub fn spec(&self) -> &SegmentSpec {
        &self.spec
    }

    /// Node `n`, counted from 1.
    ///
    /// # Panics
    /// There is no such node.
    pub fn node(&self, n: u8) -> &SegmentNode {
        &self.nodes[usize::from(n) - 1]
    }

    /// As [`SegmentLab::node`], to restart its agent.
    ///
    /// # Panics
    /// There is no such node.
    pub fn node_mut(&mut self, n: u8) -> &mut SegmentNode {
        &mut self.nodes[usize::from(n) - 1]
    }

    /// All nodes in order.
    pub fn nodes(&self) -> &[SegmentNode] {
        &self.nodes
    }

    /// Host `h` of a tenant that was made on node `n`, both counted from 1. It keeps these numbers when it
    /// moves.
    ///
    /// # Panics
    /// There is no such host.
    pub fn host(&self, n: u8, tenant: &str, h: u8) -> &Host {
        &self.hosts[self.index_of(n, tenant, h)]
    }

    /// All hosts of a tenant, by node.
    pub fn hosts(&self, tenant: &str) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(move |host| host.tenant == tenant)
    }

    /// The tenant `name`.
    ///
    /// # Panics
    /// There is no such tenant.
    pub fn tenant(&self, name: &str) -> &TenantSpec {
        let mut tenants = self.spec.tenants.iter();
        tenants.find(|tenant| tenant.name == name).unwrap_or_else(|| panic!("no tenant {name}"))
    }

    /// The agent of node `n`.
    ///
    /// # Errors
    /// The node has none.
    pub fn agent(&self, n: u8) -> Result<&Agent> {
        self.node(n).agent.as_ref().ok_or_else(|| anyhow!("node {n} runs no agent"))
    }

    /// Gives node `n` an agent that does not run yet.
    ///
    /// # Errors
    /// Its configuration cannot be written.
    pub fn add_agent(&mut self, n: u8, options: &AgentOptions) -> Result<()> {
        let agent = agent::new(self, n, options)?;
        self.node_mut(n).agent = Some(agent);
        Ok(())
    }

    /// The agents of all nodes that run one, in order.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        self.nodes.iter().filter_map(|node| node.agent.as_ref())
    }

    /// As [`SegmentLab::agent`], to stop and start it.
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

    /// What all names of this lab begin with; see [`Lab::prefix`](super::Lab::prefix).
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
        state.write(&self.site.state_path())?;
        self.state = state;
        Ok(())
    }

    /// Leaves the lab up when this process ends, until `vxlan-lab down`. Taps end with the process.
    ///
    /// # Errors
    /// The mark that says so cannot be written.
    pub fn keep(mut self) -> Result<()> {
        self.site.keep()
    }

    /// Takes node `n` out of the cluster: the others flood to it no more and forget the MACs behind it. The
    /// node itself goes on as before.
    ///
    /// # Errors
    /// The state cannot be written, or a kernel node has no such entries.
    pub fn remove_node(&mut self, n: u8) -> Result<()> {
        self.write_state(self.state.without(&format!("n{n}")))?;
        self.kernel_nodes_but(n, |lab, node| kernel::forget_node(lab, node, n))?;
        // Nor does it tell anybody any more where its hosts are.
        self.if_kernel_node(n, |lab, other| kernel::forget_node(lab, n, other))
    }

    /// Takes node `n` into the cluster again.
    ///
    /// # Errors
    /// The state cannot be written, or a kernel node has the entries.
    pub fn restore_node(&mut self, n: u8) -> Result<()> {
        let left = &self.state.nodes;
        let mut all = build::state(&self.spec);
        all.nodes.retain(|node| node.name == format!("n{n}") || left.contains(node));
        self.write_state(all)?;
        self.if_kernel_node(n, |lab, other| kernel::learn_node(lab, n, other))?;
        self.kernel_nodes_but(n, |lab, node| kernel::learn_node(lab, node, n))
    }

    /// Moves host `h` that was made on node `n` to the bridge of node `to`, with all that it has. Its link
    /// is down for a moment, as when a cable is put into another socket. It says nothing by this.
    ///
    /// # Errors
    /// Its card is a tap, or node `to` is where it is.
    pub fn move_host(&mut self, n: u8, tenant: &str, h: u8, to: u8) -> Result<()> {
        let index = self.index_of(n, tenant, h);
        let (old, new) = (self.hosts[index].node, to);
        self.hosts[index]
            .move_between(&self.nodes[usize::from(old) - 1], &self.nodes[usize::from(new) - 1])?;
        self.hosts[index].node = to;
        Ok(())
    }

    /// Makes a tap on node `n` for a virtual machine, as a port of a tenant's bridge.
    ///
    /// # Errors
    /// The node has an interface of that name.
    pub fn add_tap(&self, n: u8, tenant: &str, name: &str) -> Result<()> {
        let (bridge, mtu) = (self.tenant(tenant).bridge(), self.spec.host_mtu());
        self.node(n).ip(&format!(
            "tuntap add {name} mode tap vnet_hdr\nlink set {name} mtu {mtu} master {bridge} up\n"
        ))
    }

    fn index_of(&self, n: u8, tenant: &str, h: u8) -> usize {
        let name = build::host_name(n, tenant, h);
        let found = self.hosts.iter().position(|host| host.name == name);
        found.unwrap_or_else(|| panic!("no host {h} of {tenant} was made on node {n}"))
    }

    /// Does `work` for the numbers of all kernel nodes but `n`.
    fn kernel_nodes_but(&self, n: u8, work: impl Fn(&Self, u8) -> Result<()>) -> Result<()> {
        let kernel = (1u8..).zip(&self.spec.nodes).filter(|(_, overlay)| !manages(overlay));
        kernel
            .map(|(number, _)| number)
            .filter(|number| *number != n)
            .try_for_each(|number| work(self, number))
    }

    /// Does `work` for every node but `n`, if `n` is one whose entries nobody writes but the lab.
    fn if_kernel_node(&self, n: u8, work: impl Fn(&Self, u8) -> Result<()>) -> Result<()> {
        if manages(&self.spec.nodes[usize::from(n) - 1]) {
            return Ok(());
        }
        let all = 1..=self.spec.nodes.len() as u8;
        all.filter(|other| *other != n).try_for_each(|other| work(self, other))
    }

    /// Underlay addresses of all nodes but `own`, in order.
    fn others(&self, own: u8) -> impl Iterator<Item = IpAddr> {
        let count = self.spec.nodes.len() as u8;
        let family = self.spec.underlay;
        (1..=count).filter(move |n| *n != own).map(move |n| addr::underlay(family, n))
    }
}

/// Whether an agent writes a node's entries.
fn manages(overlay: &Overlay) -> bool {
    matches!(overlay, Overlay::Agent(options) if options.beside.is_none())
}

impl Drop for SegmentLab {
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
