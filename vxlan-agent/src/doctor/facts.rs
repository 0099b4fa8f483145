//! What checks look at, read once. Nothing here judges.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnetwork::IpNetwork;

use super::host::{counts, manager, memlock, sockets, udev_mac};
use crate::agent::survey::{self, Changes, Survey};
use crate::cluster::ClusterState;
use crate::config::{Config, Fastpath, NodeConfig, View};
use crate::datapath::{self, DatapathState, Pins};
use crate::kernel::nft::chains::{self, Chain};
use crate::kernel::{self, KernelChange, Netlink, NextHop, Policy, Tables, sysctl};
use crate::net::{IfIndex, Mtu, Vni};
use crate::plan::{Side, Ways};
use crate::preflight;
use crate::probe::Overlay;
use crate::report::source;
use crate::status::{self, Holder, NetworkStatus, Status};

/// Ways to so many VTEPs of a network are asked for: more would take longer than anybody waits.
const MOST_WAYS: usize = 256;
/// Settings of the host as a whole.
const SETTINGS: [&str; 11] = [
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/conf/all/rp_filter",
    "netfilter/nf_conntrack_count",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_tcp_be_liberal",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "ipv4/neigh/default/gc_thresh3",
    "ipv6/neigh/default/gc_thresh3",
    "ipv6/conf/all/disable_ipv6",
];
/// Settings of interfaces that the overlay uses.
const OF_INTERFACES: [&str; 3] =
    ["ipv4/conf/{}/rp_filter", "ipv4/conf/{}/forwarding", "ipv6/conf/{}/disable_ipv6"];

/// What is asked about.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The configuration, or why it is refused.
    pub config: Result<Config, String>,
    /// The section `[node]`, as far as it can be read; how it is where nobody says otherwise, if not.
    pub node: Arc<NodeConfig>,
    /// Only this network.
    pub network: Option<String>,
}

/// What checks look at.
#[derive(Debug)]
pub struct Facts {
    /// Seconds since 1970.
    pub(super) now: u64,
    pub(super) kernel: String,
    pub(super) node: Arc<NodeConfig>,
    /// Why the configuration is refused.
    pub(super) refused: Option<String>,
    /// Whether the configuration asks for a fast path, as far as it is known.
    pub(super) is_fast: bool,
    /// The agent that lives.
    pub(super) holder: Option<Holder>,
    /// What an agent wrote last, or why that cannot be read.
    pub(super) status: Result<Option<Status>, String>,
    /// Bytes that the agent may lock in memory; `None`: as many as it likes, or nobody knows.
    pub(super) memlock: Option<u64>,
    /// Why pins cannot lie where they are to.
    pub(super) no_bpffs: Option<String>,
    pub(super) fastpath: FastPath,
    pub(super) tables: Tables,
    /// Settings below `net/` that there are.
    pub(super) settings: BTreeMap<String, String>,
    pub(super) policies: Vec<Policy>,
    /// Path MTUs that the kernel has learnt.
    pub(super) learnt: BTreeMap<IpAddr, Mtu>,
    /// Chains of nf_tables with their rules.
    pub(super) chains: Vec<Chain>,
    /// Numbers of `/proc/net/snmp`: `Udp.InCsumErrors`.
    pub(super) counts: BTreeMap<String, u64>,
    /// What is bound to UDP ports, the kernel's own sockets among them: port and inode.
    pub(super) sockets: Vec<(u16, u64)>,
    /// Interfaces that a program manages, by its own word: interface, program, where it says so.
    pub(super) managed: Vec<(IfIndex, &'static str, String)>,
    /// Interfaces whose MAC udev makes: interface, the file that says so.
    pub(super) udev_macs: Vec<(IfIndex, String)>,
    pub(super) networks: Vec<NetworkFacts>,
    /// What could not be read, a sentence each.
    pub(super) unread: Vec<String>,
}

/// The fast path as it is pinned.
#[derive(Debug, Default)]
pub(super) struct FastPath {
    pub(super) is_pinned: bool,
    /// Why the pins cannot be read.
    pub(super) error: Option<String>,
    pub(super) state: DatapathState,
    /// Networks whose fast path is switched off.
    pub(super) switched_off: Vec<String>,
}

/// What is known of a network.
#[derive(Debug)]
pub(super) struct NetworkFacts {
    pub(super) name: String,
    /// `l3`, `l2` or `accelerate`.
    pub(super) kind: String,
    /// `file`, `kubernetes`, `etcd` or `device`; empty where nobody knows.
    pub(super) source: &'static str,
    pub(super) vni: Option<Vni>,
    pub(super) port: Option<u16>,
    pub(super) mode: Fastpath,
    /// The nodes, or why the cluster state is refused.
    pub(super) cluster: Result<ClusterState, String>,
    /// Where it runs, or why it cannot.
    pub(super) sides: Result<Vec<Side>, String>,
    /// What an agent would change, and on which device.
    pub(super) changes: Vec<(String, KernelChange)>,
    /// Subnets of nodes on the same link that packets get to without a tunnel.
    pub(super) direct: BTreeSet<IpNetwork>,
    /// How the underlay leads to VTEPs.
    pub(super) ways: BTreeMap<IpAddr, Option<NextHop>>,
    /// Which interface the kernel sends packets for other nodes' subnets out of.
    pub(super) leads: BTreeMap<IpNetwork, Option<IfIndex>>,
    /// What the agent wrote of it.
    pub(super) status: Option<NetworkStatus>,
}

impl Default for Facts {
    /// Of a machine about which nothing is known.
    fn default() -> Self {
        Self {
            now: 0,
            kernel: String::new(),
            node: Arc::default(),
            refused: None,
            is_fast: false,
            holder: None,
            status: Ok(None),
            memlock: None,
            no_bpffs: None,
            fastpath: FastPath::default(),
            tables: Tables::default(),
            settings: BTreeMap::new(),
            policies: vec![],
            learnt: BTreeMap::new(),
            chains: vec![],
            counts: BTreeMap::new(),
            sockets: vec![],
            managed: vec![],
            udev_macs: vec![],
            networks: vec![],
            unread: vec![],
        }
    }
}

impl Facts {
    /// Reads everything, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Netlink does not answer: nothing can be said then.
    pub async fn read(asked: &Asked) -> anyhow::Result<Self> {
        let netlink = Netlink::open()?;
        let node = &asked.node;
        let mut unread = vec![];
        let views: &[View] = asked.config.as_ref().map_or(&[], |config| &config.networks);
        let wide = views.iter().any(|view| view.network.is_accelerated());
        let mut tables = if wide { netlink.dump_wide().await? } else { netlink.dump().await? };
        tables.make_index();
        let status = status::read(&node.run_dir).map_err(|error| format!("{error:#}"));
        let fastpath = FastPath::read(&node.pins());
        let policies = kernel::policies().await.unwrap_or_else(|error| {
            unread.push(format!("IPsec policies: {error}"));
            vec![]
        });
        let mut facts = Self {
            now: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs()),
            kernel: preflight::kernel_release()?,
            refused: asked.config.as_ref().err().cloned(),
            is_fast: asked.config.as_ref().is_ok_and(Config::is_fast),
            holder: status::holder(&node.run_dir)?,
            no_bpffs: datapath::check_bpffs(&node.pin_dir).err().map(|error| format!("{error:#}")),
            node: Arc::clone(node),
            status,
            fastpath,
            tables,
            policies,
            learnt: kernel::learnt_mtus().await.unwrap_or_default(),
            chains: chains::read().unwrap_or_else(|error| {
                unread.push(format!("rules of nf_tables: {error}"));
                vec![]
            }),
            counts: counts(),
            sockets: sockets(),
            unread,
            ..Self::default()
        };
        facts.memlock = facts.holder.as_ref().and_then(|holder| memlock(holder.pid?));
        facts.read_networks(asked, &netlink).await;
        facts.read_interfaces();
        Ok(facts)
    }

    async fn read_networks(&mut self, asked: &Asked, netlink: &Netlink) {
        let written = match &self.status {
            Ok(Some(status)) => status.networks.clone(),
            _ => vec![],
        };
        let networks = match &asked.config {
            Ok(config) => {
                let mut networks = vec![];
                for view in &config.networks {
                    networks.push(self.configured(view, &written, netlink).await);
                }
                networks
            }
            Err(_) => written.into_iter().map(NetworkFacts::remembered).collect::<Vec<_>>(),
        };
        let is_asked_for =
            |network: &NetworkFacts| asked.network.as_ref().is_none_or(|name| *name == network.name);
        for mut network in networks.into_iter().filter(is_asked_for) {
            network.ask(netlink).await;
            self.networks.push(network);
        }
    }

    async fn configured(&self, view: &View, written: &[NetworkStatus], netlink: &Netlink) -> NetworkFacts {
        let status = written.iter().find(|status| status.name == view.network.name).cloned();
        let view = &completed(view, status.as_ref());
        let network = &view.network;
        let cluster = survey::cluster(view, status.as_ref());
        let (tables, previous) = (&self.tables, &self.fastpath.state);
        let ways = match &cluster {
            Ok(cluster) => survey::ways(view, cluster, tables, netlink).await,
            Err(_) => Ways::new(),
        };
        let surveyed = cluster.as_ref().map_err(Clone::clone).and_then(|cluster| {
            survey::survey(view, cluster, tables, &ways, previous).map_err(|error| format!("{error:#}"))
        });
        let (cluster, sides, changes, direct) = match surveyed {
            Ok(Survey { cluster, sides, changes, direct }) => {
                let of_device = |Changes { device, changes, .. }: Changes| {
                    changes.into_iter().map(move |change| (device.clone(), change))
                };
                (Ok(cluster), Ok(sides), changes.into_iter().flat_map(of_device).collect(), direct)
            }
            Err(reason) => (cluster, Err(reason), vec![], BTreeSet::new()),
        };
        let known = !network.is_accelerated();
        let seen = status.as_ref().and_then(|status| Some((status.vni?, status.port?)));
        NetworkFacts {
            name: network.name.clone(),
            kind: network.kind.word().to_owned(),
            source: source(&view.state),
            vni: if known { Some(network.vni) } else { seen.map(|(vni, _)| vni) },
            port: if known { Some(network.port) } else { seen.map(|(_, port)| port) },
            mode: network.fastpath,
            cluster,
            sides,
            changes,
            direct,
            ways: BTreeMap::new(),
            leads: BTreeMap::new(),
            status,
        }
    }

    /// Settings and managers of the interfaces that the overlay uses.
    fn read_interfaces(&mut self) {
        let used: Vec<IfIndex> = self.networks.iter().flat_map(NetworkFacts::interfaces).collect();
        let name = |index: &IfIndex| Some(self.tables.links.get(index)?.name.clone());
        let per_interface = used.iter().filter_map(name);
        let per_interface =
            per_interface.flat_map(|name| OF_INTERFACES.map(|setting| setting.replace("{}", &name)));
        let all = SETTINGS.map(str::to_owned).into_iter().chain(per_interface);
        self.settings = all.filter_map(|name| Some((name.clone(), sysctl::setting(&name)?))).collect();
        let devices: Vec<IfIndex> = self.networks.iter().flat_map(NetworkFacts::devices).collect();
        self.managed = devices.iter().filter_map(|device| manager(*device)).collect();
        self.udev_macs = devices.iter().filter_map(|device| Some((*device, udev_mac(*device)?))).collect();
    }

    /// What probes can be sent through, and what cannot be probed and why.
    pub fn overlays(&self) -> (Vec<Overlay>, Vec<String>) {
        let (mut overlays, mut left_out) = (vec![], vec![]);
        for network in &self.networks {
            let name = &network.name;
            match (&network.cluster, &network.sides) {
                (Err(reason), _) | (_, Err(reason)) => left_out.push(format!("{name}: {reason}")),
                _ if network.kind == "l2" => {
                    left_out.push(format!(
                        "{name}: nodes of a bridged network have no addresses that others know"
                    ));
                }
                (Ok(cluster), Ok(sides)) => {
                    let mtu = sides.iter().map(|side| side.underlay.inner_mtu.0).min().unwrap_or_default();
                    overlays.push(Overlay::new(name, cluster, mtu as usize));
                }
            }
        }
        (overlays, left_out)
    }

    /// The number that a setting is.
    pub(super) fn number(&self, setting: &str) -> Option<u64> {
        self.settings.get(setting)?.parse().ok()
    }

    /// The name of an interface, or its number where it is gone.
    pub(super) fn interface(&self, index: IfIndex) -> String {
        self.tables.links.get(&index).map_or_else(|| index.to_string(), |link| link.name.clone())
    }

    /// What the agent wrote last, if it is still so.
    pub(super) fn running(&self) -> Option<&Status> {
        self.holder.as_ref()?;
        self.status.as_ref().ok()?.as_ref()
    }

    /// The networks, with what the running agent says of each.
    pub(super) fn told(&self) -> impl Iterator<Item = (&NetworkFacts, &NetworkStatus)> {
        let running = self.holder.is_some();
        self.networks
            .iter()
            .filter_map(move |network| Some((network, network.status.as_ref().filter(|_| running)?)))
    }
}

/// `view` with what the network's parameters in etcd say of the tunnel, as far as the agent has written that down.
fn completed(view: &View, status: Option<&NetworkStatus>) -> View {
    let mut view = view.clone();
    view.network.direct_routing |= status.is_some_and(|status| status.nodes.iter().any(|node| node.direct));
    view
}

impl NetworkFacts {
    /// As the agent wrote it down, where the configuration is refused.
    fn remembered(status: NetworkStatus) -> Self {
        let cluster = survey::remembered(&status);
        Self {
            name: status.name.clone(),
            kind: status.kind.clone(),
            source: "",
            vni: status.vni,
            port: status.port,
            mode: status.mode,
            cluster: cluster.ok_or_else(|| "no agent has known its cluster".to_owned()),
            sides: Ok(vec![]),
            changes: vec![],
            direct: BTreeSet::new(),
            ways: BTreeMap::new(),
            leads: BTreeMap::new(),
            status: Some(status),
        }
    }

    async fn ask(&mut self, netlink: &Netlink) {
        let (Ok(cluster), Ok(sides)) = (&self.cluster, &self.sides) else { return };
        for side in sides {
            let over = |vtep: &IpAddr| vtep.is_ipv4() == side.underlay.address.is_ipv4();
            for vtep in cluster.remotes.values().map(|node| node.vtep).filter(over).take(MOST_WAYS) {
                self.ways.insert(vtep, netlink.next_hop(vtep, &side.asked).await);
            }
        }
        let subnets = cluster.remotes.values().flat_map(|node| &node.subnets);
        for subnet in subnets.take(2 * MOST_WAYS) {
            // Not the first address, which is the other node's own.
            let Some(pod) = subnet.iter().nth(2) else { continue };
            self.leads.insert(*subnet, netlink.interface_to(pod).await);
        }
    }

    /// The vxlan devices.
    pub(super) fn devices(&self) -> impl Iterator<Item = IfIndex> {
        self.sides().iter().filter_map(|side| side.device)
    }

    /// The vxlan devices and what they run over.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = IfIndex> {
        self.devices().chain(self.sides().iter().map(|side| side.underlay.ifindex))
    }

    pub(super) fn sides(&self) -> &[Side] {
        self.sides.as_deref().unwrap_or_default()
    }

    /// This node's pod subnets.
    pub(super) fn own_subnets(&self) -> Vec<IpNetwork> {
        self.cluster.as_ref().map(ClusterState::own_subnets).unwrap_or_default()
    }
}

impl FastPath {
    fn read(dir: &Path) -> Self {
        if !dir.is_dir() {
            return Self::default();
        }
        let read = || {
            let pins = Pins::open(dir)?;
            let state = pins.state()?;
            let mut switched_off = vec![];
            for (id, network) in &state.networks {
                if !pins.switched_on(*id)? {
                    switched_off.push(network.name().unwrap_or_default().to_owned());
                }
            }
            anyhow::Ok(Self { is_pinned: true, error: None, state, switched_off })
        };
        let unreadable =
            |error| Self { is_pinned: true, error: Some(format!("{error:#}")), ..Self::default() };
        read().unwrap_or_else(unreadable)
    }
}
