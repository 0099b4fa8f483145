//! What a lab should look like.

use anyhow::Result;

use super::{AgentOptions, Family, Lab, topology};

/// How the packets of a node's pods get to other nodes.
#[derive(Clone, Debug)]
pub enum Overlay {
    /// No overlay: the underlay has routes to the pod subnets.
    None,
    /// A kernel vxlan device, set up by `ip` and `bridge` as flannel does it.
    KernelVxlan,
    /// Our agent.
    Agent(AgentOptions),
}

impl Overlay {
    /// Our agent with the fast path in mode `direct`.
    pub fn agent() -> Self {
        Self::Agent(AgentOptions::default())
    }

    /// Our agent with the fast path in mode `verified`, which it is in unless told otherwise.
    pub fn verified() -> Self {
        Self::Agent(AgentOptions::verified())
    }
}

/// How pods are attached to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// To the bridge `cni0`, as CNI's `bridge` plugin does.
    Bridge,
    /// By a host route to the veth, as CNI's `ptp` plugin does.
    Ptp,
}

/// An underlay in VLAN 100, by where the tag of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vlan {
    /// Next to it, where a device with VLAN offload leaves it.
    Offloaded,
    /// In it.
    Inline,
}

/// A device that the underlay interface is made of, or put under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Master {
    /// The underlay interface is a bridge.
    Bridge,
    /// The underlay interface is a bond, of which one port is active.
    Bond,
    /// The underlay interface is in a VRF.
    Vrf,
}

impl Master {
    /// Whether the underlay interface is this device itself, above the link.
    pub(super) const fn is_underlay(self) -> bool {
        !matches!(self, Self::Vrf)
    }
}

/// How etcd is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdSpec {
    /// By anybody.
    Open,
    /// With TLS, certificates on both sides, name and password.
    Secured,
}

/// One node.
#[derive(Clone, Debug)]
pub struct NodeSpec {
    /// How it reaches the others' pods.
    pub overlay: Overlay,
    /// How many pods it has.
    pub pods: u8,
    /// How they are attached.
    pub attach: Attach,
}

/// A lab to be built.
#[derive(Clone, Debug)]
pub struct LabSpec {
    /// The nodes; two are linked directly, more by a bridge.
    pub nodes: Vec<NodeSpec>,
    /// Family of the tunnel's outer addresses. Nodes have underlay addresses of both.
    pub underlay: Family,
    /// MTU of the underlay in bytes.
    pub mtu: u32,
    /// MTU of the pods; by default what fits into the tunnel (1500 − 50), or the underlay's where
    /// there is none.
    pub pod_mtu: Option<u32>,
    /// Whether GRO is switched on at the underlay interfaces (it is off on a veth).
    pub gro: bool,
    /// Lays the underlay in this VLAN.
    pub vlan: Option<Vlan>,
    /// Gives the underlay's link this master.
    pub master: Option<Master>,
    /// Leaves the VTEP MACs of agent nodes out of the state file. Kernel nodes would not know them.
    pub derive_macs: bool,
    /// Whether agents take the cluster from a Kubernetes API, and kernel nodes are flannel's there:
    /// IPv4 pods over IPv4, IPv6 pods over IPv6.
    pub kubernetes: bool,
    /// Whether nodes are keys in etcd, and how that is reached.
    pub etcd: Option<EtcdSpec>,
    /// Whether packets on the pods' bridge pass netfilter (`bridge-nf-call-iptables`), as
    /// Kubernetes asks for. The kernel's default depends on whether br_netfilter is loaded.
    pub bridge_netfilter: bool,
    /// Whether every node has a packet filter that decides nothing. Without any, mode `verified` asks the stack
    /// about pairs of addresses, and not about connections.
    pub filtered: bool,
}

impl LabSpec {
    /// Two nodes with one pod each, on a bridge, over IPv4 with an MTU of 1500.
    pub fn pair(first: Overlay, second: Overlay) -> Self {
        Self::of(vec![first, second])
    }

    /// A node with one pod for each of `overlays`, otherwise as [`LabSpec::pair`].
    pub fn of(overlays: Vec<Overlay>) -> Self {
        let node = |overlay| NodeSpec { overlay, pods: 1, attach: Attach::Bridge };
        Self {
            nodes: overlays.into_iter().map(node).collect(),
            underlay: Family::V4,
            mtu: 1500,
            pod_mtu: None,
            gro: false,
            vlan: None,
            master: None,
            derive_macs: false,
            kubernetes: false,
            etcd: None,
            bridge_netfilter: false,
            filtered: true,
        }
    }

    /// With `count` pods on every node.
    #[must_use]
    pub fn pods(mut self, count: u8) -> Self {
        self.nodes.iter_mut().for_each(|node| node.pods = count);
        self
    }

    /// With all pods attached in this way.
    #[must_use]
    pub fn attach(mut self, attach: Attach) -> Self {
        self.nodes.iter_mut().for_each(|node| node.attach = attach);
        self
    }

    /// With outer addresses of `family`.
    #[must_use]
    pub fn underlay(mut self, family: Family) -> Self {
        self.underlay = family;
        self
    }

    /// With an underlay of this MTU.
    #[must_use]
    pub fn mtu(mut self, bytes: u32) -> Self {
        self.mtu = bytes;
        self
    }

    /// With pods of this MTU, whether it fits into the tunnel or not.
    #[must_use]
    pub fn pod_mtu(mut self, bytes: u32) -> Self {
        self.pod_mtu = Some(bytes);
        self
    }

    /// With GRO at the underlay interfaces.
    #[must_use]
    pub fn gro(mut self) -> Self {
        self.gro = true;
        self
    }

    /// With an underlay in a VLAN.
    #[must_use]
    pub fn vlan(mut self, vlan: Vlan) -> Self {
        self.vlan = Some(vlan);
        self
    }

    /// With a master for the underlay's link.
    #[must_use]
    pub fn master(mut self, master: Master) -> Self {
        self.master = Some(master);
        self
    }

    /// With VTEP MACs that the agents derive themselves.
    #[must_use]
    pub fn derive_macs(mut self) -> Self {
        self.derive_macs = true;
        self
    }

    /// In a Kubernetes cluster. Pods have what fits into the tunnel over IPv6.
    #[must_use]
    pub fn kubernetes(mut self) -> Self {
        self.kubernetes = true;
        self.pod_mtu = Some(self.mtu - Family::V6.overhead());
        self
    }

    /// With the nodes in etcd. Pods have what fits into the tunnel over IPv6.
    #[must_use]
    pub fn etcd(mut self, etcd: EtcdSpec) -> Self {
        self.etcd = Some(etcd);
        self.pod_mtu = Some(self.mtu - Family::V6.overhead());
        self
    }

    /// With netfilter on the pods' bridges.
    #[must_use]
    pub fn bridge_netfilter(mut self, on: bool) -> Self {
        self.bridge_netfilter = on;
        self
    }

    /// Without a packet filter on the nodes.
    #[must_use]
    pub fn unfiltered(mut self) -> Self {
        self.filtered = false;
        self
    }

    /// Builds the lab and waits until every node is ready.
    ///
    /// # Errors
    /// Not root, a tool or the agent is missing, or an agent does not get ready: the error and
    /// standard error say why. What was built so far is removed.
    pub fn build(&self) -> Result<Lab> {
        topology::build(self)
    }

    /// MTU of the pods of a node with `overlay`.
    pub(super) fn pod_mtu_for(&self, overlay: &Overlay) -> u32 {
        let fits = match overlay {
            Overlay::None => self.mtu,
            Overlay::KernelVxlan | Overlay::Agent(_) => self.mtu - self.underlay.overhead(),
        };
        self.pod_mtu.unwrap_or(fits)
    }
}
