//! Laying out nodes, bridges and hosts.

use std::fmt::Write as _;
use std::ops::Deref as _;

use anyhow::{Result, bail, ensure};

use super::{SegmentLab, SegmentNode, SegmentSpec, agent, host, kernel};
use crate::lab::site::Site;
use crate::lab::underlay::{self, FABRIC, link_nodes};
use crate::lab::{Agent, Netns, Overlay, StateFile, StateNode, UNDERLAY, addr, topology};

/// Longest name of a tenant: `<name>-<node>-<host>` is an interface's, which has at most 15 bytes.
const LONGEST_NAME: usize = 8;

/// Settings of a bridge that snoops, in hundredths of seconds: a bridge floods until its querier has waited
/// for answers, 10 s unless told otherwise.
const SNOOPING: &str = "mcast_snooping 1 mcast_query_response_interval 50 mcast_startup_query_interval 50 \
                        mcast_query_interval 300";

/// Builds what `spec` says. See [`SegmentSpec::build`].
pub(super) fn build(spec: &SegmentSpec) -> Result<SegmentLab> {
    ensure!((1..=99).contains(&spec.nodes.len()), "a lab has 1 to 99 nodes");
    ensure!(spec.hosts <= 99, "a node has at most 99 hosts of a tenant");
    for tenant in &spec.tenants {
        ensure!((1..=LONGEST_NAME).contains(&tenant.name.len()), "a tenant's name has 1 to 8 letters");
    }
    // From here on, dropping the lab removes what has been made.
    let mut lab = SegmentLab {
        site: Site::claim()?,
        spec: spec.clone(),
        hosts: Vec::new(),
        nodes: Vec::new(),
        _fabric: None,
        state: state(spec),
    };
    lab.site.add_namespaces(&namespaces(spec))?;
    if has_fabric(spec) {
        lab._fabric = Some(lab.site.namespace(FABRIC)?);
    }
    link_nodes(&lab.site, spec.nodes.len(), UNDERLAY, spec.mtu)?;
    for n in numbers(spec) {
        let node = make_node(&lab.site, spec, n)?;
        lab.nodes.push(node);
    }
    lab.state.write(&lab.site.state_path())?;
    let nodes: Vec<&Netns> = lab.nodes.iter().map(|node| node.deref()).collect();
    underlay::settle(&nodes, None)?;
    start_overlays(&mut lab)?;
    for n in numbers(spec) {
        for (tenant, h) in places(spec) {
            let host = host::make(&lab.site, spec, lab.node(n), n, tenant, h)?;
            lab.hosts.push(host);
        }
    }
    lab.hosts.iter().try_for_each(|host| host.wait_up(lab.node(host.node)))?;
    Ok(lab)
}

/// Name of host `h` of a tenant on node `n`, of its namespace, and of its port at the bridge.
pub(super) fn host_name(n: u8, tenant: &str, h: u8) -> String {
    format!("{tenant}-{n}-{h}")
}

/// All nodes of a lab. A node is a VTEP and has no subnets.
pub(super) fn state(spec: &SegmentSpec) -> StateFile {
    let nodes = numbers(spec).map(|n| StateNode {
        name: format!("n{n}"),
        vtep: addr::underlay(spec.underlay, n),
        mac: None,
        subnets: vec![],
        stations: vec![],
    });
    StateFile { policy: None, nodes: nodes.collect() }
}

/// Whether the underlay's links meet at a bridge. Two nodes are linked directly.
fn has_fabric(spec: &SegmentSpec) -> bool {
    spec.nodes.len() != 2
}

/// The nodes' numbers.
fn numbers(spec: &SegmentSpec) -> std::ops::RangeInclusive<u8> {
    1..=spec.nodes.len() as u8
}

/// Tenant and number of every host of a node.
fn places(spec: &SegmentSpec) -> impl Iterator<Item = (&super::TenantSpec, u8)> {
    spec.tenants.iter().flat_map(|tenant| (1..=spec.hosts).map(move |h| (tenant, h)))
}

/// The names of all namespaces.
fn namespaces(spec: &SegmentSpec) -> Vec<String> {
    let mut names = Vec::new();
    if has_fabric(spec) {
        names.push(FABRIC.to_owned());
    }
    for n in numbers(spec) {
        names.push(format!("n{n}"));
        names.extend(places(spec).map(|(tenant, h)| host_name(n, &tenant.name, h)));
    }
    names
}

/// The node's underlay, and a bridge per tenant. The bridges exist before an agent does, as a virtual
/// machine manager makes them, unless agents are to make them.
fn make_node(site: &Site, spec: &SegmentSpec, n: u8) -> Result<SegmentNode> {
    let ns = site.namespace(&format!("n{n}"))?;
    topology::set_bridge_netfilter(&ns, false)?;
    let mut batch = underlay::addresses(n, UNDERLAY);
    let multicast = if spec.snooping { SNOOPING } else { "mcast_snooping 0" };
    let agents = spec.agents_make_bridges && matches!(spec.nodes[usize::from(n) - 1], Overlay::Agent(_));
    for tenant in spec.tenants.iter().filter(|_| !agents) {
        let (bridge, mtu) = (tenant.bridge(), spec.host_mtu());
        let _ = writeln!(batch, "link add {bridge} mtu {mtu} type bridge {multicast}");
        if spec.snooping {
            // The querier takes the intervals that it finds when it is switched on.
            let _ = writeln!(batch, "link set {bridge} type bridge mcast_querier 1");
        }
        let _ = writeln!(batch, "link set {bridge} up");
    }
    ns.ip(&batch)?;
    Ok(SegmentNode { name: format!("n{n}"), underlay: addr::underlay(spec.underlay, n), agent: None, ns })
}

/// Starts all agents, then waits for each: they get ready side by side.
fn start_overlays(lab: &mut SegmentLab) -> Result<()> {
    let overlays = lab.spec.nodes.clone();
    for (n, overlay) in (1u8..).zip(&overlays) {
        match overlay {
            // Its bridges are whole segments.
            Overlay::None if overlays.len() == 1 => {}
            Overlay::None => bail!("node {n} has no overlay to carry segments with"),
            Overlay::KernelVxlan => kernel::set_up(lab, n)?,
            Overlay::Agent(options) => {
                if options.beside.is_some() {
                    kernel::set_up(lab, n)?;
                }
                let agent = agent::new(lab, n, options)?;
                lab.node_mut(n).agent = Some(agent);
                lab.agent_mut(n)?.spawn()?;
            }
        }
    }
    lab.agents().try_for_each(Agent::wait_ready)
}
