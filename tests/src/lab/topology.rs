//! Laying out namespaces, links, addresses and pods.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::addr::{inner4, inner6, pod_host};
use super::site::Site;
use super::underlay::{FABRIC, link_nodes, until_reached};
use super::{
    Agent, Attach, Etcd, EtcdSpec, Family, Kubernetes, Lab, LabSpec, Master, Netns, NodeSpec, Overlay,
    StateFile, Vlan, wait_until,
};
use super::{addr, etcd, kernel, kubernetes, underlay};

/// The underlay interface of every node.
pub const UNDERLAY: &str = "underlay0";
/// The interface below it where the underlay is a VLAN, a bridge or a bond.
pub const WIRE: &str = "wire0";
/// The VRF that the underlay is in, if it is in one.
pub const VRF: &str = "vrf0";
/// The VRF's routing table.
pub const VRF_TABLE: u32 = 10;
/// The vxlan device of every node that has one.
pub const DEVICE: &str = "flannel.1";
/// The network's VNI.
pub const VNI: u32 = 1;
/// A chain that sees everything and decides nothing, as other people's do most of the time.
const FILTER: &str =
    "table inet filter {\n chain forward {\n  type filter hook forward priority filter;\n }\n}\n";
/// The network's UDP port.
pub const PORT: u16 = 8472;

/// A node; dereferences to its namespace.
pub struct Node {
    /// `n1`, `n2`, …
    pub name: String,
    /// Its underlay address, of the family that the tunnel uses.
    pub underlay: IpAddr,
    /// Address of its vxlan device; source of packets from the host to pods.
    pub vtep4: Ipv4Addr,
    /// As `vtep4`.
    pub vtep6: Ipv6Addr,
    /// Its pods in order.
    pub pods: Vec<Pod>,
    /// Its agent, if it runs one.
    pub agent: Option<Agent>,
    ns: Netns,
}

/// A pod; dereferences to its namespace. Its interface is `eth0`.
pub struct Pod {
    /// `n1p1`, …
    pub name: String,
    /// IPv4 address.
    pub ip4: Ipv4Addr,
    /// IPv6 address.
    pub ip6: Ipv6Addr,
    /// Name of the node's side of its veth.
    pub host_veth: String,
    ns: Netns,
}

impl Pod {
    /// Both addresses.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ip4.into(), self.ip6.into()]
    }

    /// The address of one family.
    pub fn ip(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ip4.into(),
            Family::V6 => self.ip6.into(),
        }
    }
}

impl Deref for Node {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

impl Deref for Pod {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

/// Builds what `spec` says. See [`LabSpec::build`].
pub(super) fn build(spec: &LabSpec) -> Result<Lab> {
    ensure!((2..=99).contains(&spec.nodes.len()), "a lab has 2 to 99 nodes");
    let has_store = spec.kubernetes || spec.etcd.is_some();
    ensure!(!has_store || spec.nodes.len() > 2, "a lab with Kubernetes or etcd has 3 nodes or more");
    // From here on, dropping the lab removes what has been made.
    let mut lab = Lab {
        site: Site::claim()?,
        spec: spec.clone(),
        nodes: Vec::new(),
        _fabric: None,
        kubernetes: None,
        etcd: None,
        state: StateFile::of(spec),
    };
    lab.site.add_namespaces(&namespaces(spec))?;
    if spec.nodes.len() > 2 {
        lab._fabric = Some(lab.site.namespace(FABRIC)?);
    }
    link_nodes(&lab.site, spec.nodes.len(), interface(spec), spec.mtu)?;
    if spec.kubernetes {
        lab.kubernetes = Some(start_kubernetes(&lab, lab.site.namespace(FABRIC)?)?);
    }
    if let Some(how) = spec.etcd {
        let fabric = lab.site.namespace(FABRIC)?;
        fabric.ip(&format!("addr add {}/24 dev br0\n", etcd::ADDRESS))?;
        lab.etcd = Some(Etcd::start(fabric, &lab.run_dir(), how == EtcdSpec::Secured)?);
    }
    for (n, node) in (1u8..).zip(&spec.nodes) {
        let node = make_node(&lab.site, n, node, spec)?;
        lab.nodes.push(node);
    }
    lab.state.write(&lab.state_path())?;
    introduce_pods(&lab)?;
    let nodes: Vec<&Netns> = lab.nodes.iter().map(Deref::deref).collect();
    underlay::settle(&nodes, (spec.master == Some(Master::Vrf)).then_some(VRF))?;
    start_overlays(&mut lab, spec)?;
    Ok(lab)
}

/// The names of all namespaces.
fn namespaces(spec: &LabSpec) -> Vec<String> {
    let mut names = Vec::new();
    if spec.nodes.len() > 2 {
        names.push(FABRIC.to_owned());
    }
    for (n, node) in (1u8..).zip(&spec.nodes) {
        names.push(format!("n{n}"));
        names.extend((1..=node.pods).map(|p| format!("n{n}p{p}")));
    }
    names
}

/// What is at the node's end of the underlay's link.
const fn interface(spec: &LabSpec) -> &'static str {
    match (spec.vlan, spec.master) {
        (Some(_), _) => WIRE,
        (None, Some(master)) if master.is_underlay() => WIRE,
        _ => UNDERLAY,
    }
}

/// Makes the master of a node's underlay. In a VRF before there are addresses: an interface that enters
/// one loses them.
fn make_master(ns: &Netns, master: Master) -> Result<()> {
    let below = format!("link set {WIRE} master {UNDERLAY}\nlink set {WIRE} up\n");
    ns.ip(&match master {
        Master::Bridge => format!("link add {UNDERLAY} type bridge mcast_snooping 0\n{below}"),
        Master::Bond => format!("link add {UNDERLAY} type bond mode active-backup miimon 20\n{below}"),
        Master::Vrf => format!(
            "link add {VRF} type vrf table {VRF_TABLE}\nlink set {VRF} up\nlink set {UNDERLAY} master {VRF}\n"
        ),
    })
}

fn make_node(site: &Site, n: u8, node: &NodeSpec, spec: &LabSpec) -> Result<Node> {
    let ns = site.namespace(&format!("n{n}"))?;
    ns.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
    set_bridge_netfilter(&ns, spec.bridge_netfilter)?;
    if spec.filtered {
        ns.feed("nft", &["-f", "-"], FILTER)?;
    }
    if let Some(vlan) = spec.vlan {
        if vlan == Vlan::Inline {
            ns.sh(&format!("ethtool -K {WIRE} txvlan off rxvlan off"))?;
        }
        ns.ip(&format!("link set {WIRE} up\nlink add link {WIRE} name {UNDERLAY} type vlan id 100\n"))?;
    }
    if let Some(master) = spec.master {
        make_master(&ns, master)?;
    }
    let mut batch = underlay::addresses(n, UNDERLAY);
    let mtu = spec.pod_mtu_for(&node.overlay);
    if node.attach == Attach::Bridge {
        let _ = write!(
            batch,
            "link add cni0 mtu {mtu} type bridge mcast_snooping 0\n\
             addr add {}/24 dev cni0\naddr add {}/64 dev cni0 nodad\nlink set cni0 up\n",
            inner4(n, 1),
            inner6(n, 1),
        );
    }
    ns.ip(&batch)?;
    if spec.gro {
        ns.sh(&format!("ethtool -K {} gro on", interface(spec)))?;
    }
    let pods = (1..=node.pods).map(|p| make_pod(site, &ns, n, p, node.attach, mtu));
    Ok(Node {
        name: format!("n{n}"),
        underlay: addr::underlay(spec.underlay, n),
        vtep4: inner4(n, 0),
        vtep6: inner6(n, 0),
        pods: pods.collect::<Result<_>>()?,
        agent: None,
        ns,
    })
}

/// Where br_netfilter is not loaded there is nothing to switch off.
pub(super) fn set_bridge_netfilter(node: &Netns, on: bool) -> Result<()> {
    let value = if on { "1" } else { "0" };
    for name in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        if on || Path::new("/proc/sys/net").join(name).exists() {
            node.sysctl(&[(name, value)])?;
        }
    }
    Ok(())
}

fn make_pod(site: &Site, node: &Netns, n: u8, p: u8, attach: Attach, mtu: u32) -> Result<Pod> {
    let (name, host_veth) = (format!("n{n}p{p}"), format!("veth{p}"));
    let ns = site.namespace(&name)?;
    let (ip4, ip6) = (inner4(n, pod_host(p)), inner6(n, pod_host(p)));
    let (gw4, gw6) = (inner4(n, 1), inner6(n, 1));
    let pair = format!(
        "link add {host_veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n",
        ns.namespace()
    );
    let (outside, inside) = match attach {
        Attach::Bridge => (
            format!("link set {host_veth} master cni0 up\n"),
            format!(
                "addr add {ip4}/24 dev eth0\naddr add {ip6}/64 dev eth0 nodad\n\
                 link set eth0 up\n"
            ),
        ),
        Attach::Ptp => (
            format!(
                "addr add {gw4}/32 dev {host_veth}\naddr add {gw6}/128 dev {host_veth} nodad\n\
                 link set {host_veth} up\n\
                 route add {ip4}/32 dev {host_veth}\nroute add {ip6}/128 dev {host_veth}\n"
            ),
            format!(
                "addr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\n\
                 link set eth0 up\n\
                 route add {gw4} dev eth0 scope link\nroute add {gw6} dev eth0\n"
            ),
        ),
    };
    node.ip(&format!("{pair}{outside}"))?;
    ns.ip(&format!("{inside}route add default via {gw4} dev eth0\nroute add default via {gw6} dev eth0\n"))?;
    Ok(Pod { name, ip4, ip6, host_veth, ns })
}

/// Lets every pod talk to its gateway, so that its node knows its addresses and MAC.
fn introduce_pods(lab: &Lab) -> Result<()> {
    for (n, node) in (1u8..).zip(&lab.nodes) {
        for pod in &node.pods {
            for gateway in [IpAddr::from(inner4(n, 1)), inner6(n, 1).into()] {
                until_reached(pod, &pod.name, gateway, None)?;
            }
        }
    }
    Ok(())
}

/// The API listens on the bridge that links the nodes.
fn start_kubernetes(lab: &Lab, fabric: Netns) -> Result<Kubernetes> {
    let (host, _) = kubernetes::ADDRESS.split_once(':').unwrap_or_default();
    fabric.ip(&format!("addr add {host}/24 dev br0\n"))?;
    let kubernetes = Kubernetes::start(fabric, &lab.run_dir())?;
    (1..=u8::try_from(lab.spec.nodes.len())?).try_for_each(|n| kubernetes.register(n))?;
    Ok(kubernetes)
}

/// Starts all agents, then waits for each: they get ready side by side.
fn start_overlays(lab: &mut Lab, spec: &LabSpec) -> Result<()> {
    let count = u8::try_from(spec.nodes.len())?;
    for (n, node) in (1u8..).zip(&spec.nodes) {
        let ns = lab.node(n).deref();
        match &node.overlay {
            Overlay::None => kernel::route_plainly(ns, n, count)?,
            Overlay::KernelVxlan if spec.kubernetes => kubernetes::flannel::set_up(lab, n)?,
            Overlay::KernelVxlan if spec.etcd.is_some() => etcd::set_up(lab, n)?,
            Overlay::KernelVxlan => kernel::set_up_vxlan(ns, spec, n, count)?,
            Overlay::Agent(options) => {
                if options.beside.is_some() {
                    kernel::set_up_vxlan(ns, spec, n, count)?;
                }
                let agent = Agent::new(lab, spec, n, options)?;
                lab.node_mut(n).agent = Some(agent);
                lab.agent_mut(n)?.spawn()?;
            }
        }
    }
    lab.agents().try_for_each(Agent::wait_ready)?;
    if spec.kubernetes || spec.etcd.is_some() {
        follow_as_flannel(lab)?;
    }
    if spec.etcd.is_some() {
        let others = spec.nodes.len() - 1;
        let knows_all = |agent: &Agent| {
            let status = agent.json(&["status"]).unwrap_or_default();
            status["networks"][0]["nodes"].as_array().is_some_and(|nodes| nodes.len() >= others)
        };
        let all_known = || lab.agents().all(knows_all);
        wait_until("every agent knows all nodes", Duration::from_secs(10), all_known)?;
    }
    Ok(())
}

/// Lets flannel's nodes know the others, once those have written who they are.
fn follow_as_flannel(lab: &Lab) -> Result<()> {
    let written = |n| match &lab.kubernetes {
        Some(kubernetes) => kubernetes.annotation(&format!("n{n}"), "backend-v6-data"),
        None => lab.etcd().key_of(n).map(Some),
    };
    for (n, node) in (1u8..).zip(&lab.spec.nodes) {
        if let Overlay::Agent(_) = node.overlay {
            let what = format!("node {n} has written who it is");
            wait_until(&what, Duration::from_secs(10), || written(n).is_ok_and(|data| data.is_some()))?;
        }
    }
    for (n, node) in (1u8..).zip(&lab.spec.nodes) {
        if let Overlay::KernelVxlan = node.overlay {
            match lab.kubernetes {
                Some(_) => kubernetes::flannel::follow(lab, n)?,
                None => etcd::follow(lab, n)?,
            }
        }
    }
    Ok(())
}
