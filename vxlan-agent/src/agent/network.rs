//! One network of the node: its cluster, its devices, what it wants of the fast path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use ipnetwork::IpNetwork;
use tokio::time::Instant;
use vxlan_ebpf_common::maps::{Addr, Key6, NetworkId, NextHop, VtepId};

use super::feed::Feed;
use super::machine::Machine;
use crate::cluster::{ClusterState, Node};
use crate::config::{Fastpath, StateConfig, View};
use crate::datapath::DatapathState;
use crate::kernel::{self, Foreign, KernelChange, KernelState, Sought, Tables, Target, sysctl};
use crate::mirror::Mirror;
use crate::net::{IfIndex, Mac};
use crate::node::{Guard, Masquerade};
use crate::ownership;
use crate::plan::{BridgeFilters, Desired, HopLimits, Input, SegmentInput, Side};
use crate::pods::Recent;
use crate::underlay::Underlay;

/// Stands for what is no change in the list of what failed.
const FORWARD: &str = "switch on forwarding";

/// One network of the node.
pub(super) struct Network {
    pub(super) config: View,
    /// `None` while another one begins, see [`Pending`](super::pending::Pending).
    pub(super) feed: Option<Feed>,
    pub(super) cluster: ClusterState,
    /// Its number in the maps, once it has one.
    pub(super) id: Option<NetworkId>,
    /// Where it runs, once for each of [`ClusterState::owns`].
    pub(super) underlays: Vec<Underlay>,
    /// VTEPs of nodes on the same link whose pods packets get to without a tunnel.
    pub(super) direct: BTreeSet<IpAddr>,
    /// Its devices by name, as they were found last.
    pub(super) devices: BTreeMap<String, IfIndex>,
    /// The bridge of a bridged network, if it is ours, as it was found last.
    pub(super) bridge: Option<IfIndex>,
    /// Why frames of a bridged network are left to the kernel.
    pub(super) left: Vec<String>,
    /// What an operator should know of that bridge, ours or not.
    pub(super) cautions: Vec<String>,
    /// What of others its fast path would pass by.
    pub(super) hooked: Vec<Foreign>,
    /// What has happened to pods lately.
    pub(super) recent: Recent,
    /// Who may send, where strangers are dropped; `None`: not known yet.
    pub(super) guard: Option<Option<Arc<Guard>>>,
    /// Addresses that other nodes know this one by, or did.
    pub(super) known_by: BTreeSet<IpAddr>,
    /// What is known to be installed; `None`: nothing is known.
    pub(super) table: Option<Option<Masquerade>>,
    /// Files for pods, as they were last written.
    pub(super) files: BTreeMap<PathBuf, String>,
    /// When the cluster came from its source.
    pub(super) snapshot: SystemTime,
    /// Why the last state that the source sent was refused.
    pub(super) reload_error: Option<String>,
    /// Why nothing can be planned at the moment.
    pub(super) plan_error: Option<String>,
    /// What the device does, where somebody else manages it, or why that cannot be accelerated.
    pub(super) mirror: Result<Mirror, String>,
    /// That device, as it was found last.
    pub(super) followed: Option<IfIndex>,
    /// Whether nobody has been told yet that it runs.
    pub(super) is_new: bool,
}

/// What was seen of a network before a round.
pub(super) struct Seen {
    /// Outside BPF, once for each side.
    pub(super) kernel: Vec<KernelState>,
    pub(super) sides: Vec<Side>,
}

/// What all networks are planned with.
pub(super) struct Common<'a> {
    pub(super) machine: &'a Machine,
    pub(super) foreign: &'a [Foreign],
    pub(super) vtep_ids: &'a BTreeMap<Key6, VtepId>,
    pub(super) filters: BridgeFilters,
    /// First and last UDP source port.
    pub(super) source_ports: (u16, u16),
    pub(super) hop_limits: HopLimits,
    /// Whether the host stack judges packets between pods by nothing but their addresses and DSCP.
    pub(super) by_address: bool,
    /// Whether what the host stack makes of one of the tunnel's packets is what it makes of all of that VTEP.
    pub(super) hands_over: bool,
    pub(super) previous: &'a DatapathState,
}

impl Network {
    pub(super) fn new(config: View, feed: Feed, cluster: ClusterState) -> Self {
        Self { feed: Some(feed), ..Self::without_source(config, cluster) }
    }

    pub(super) fn without_source(config: View, cluster: ClusterState) -> Self {
        Self {
            config,
            feed: None,
            cluster,
            id: None,
            underlays: vec![],
            direct: BTreeSet::new(),
            devices: BTreeMap::new(),
            bridge: None,
            left: vec![],
            cautions: vec![],
            hooked: vec![],
            recent: Recent::default(),
            guard: None,
            known_by: BTreeSet::new(),
            table: None,
            files: BTreeMap::new(),
            snapshot: SystemTime::now(),
            reload_error: None,
            plan_error: None,
            mirror: Err("nobody has looked yet".to_owned()),
            followed: None,
            is_new: true,
        }
    }

    /// Goes on with the configuration, the source and the cluster of `other`.
    pub(super) fn go_on_as(&mut self, other: Self) {
        let Self { config, feed, cluster, snapshot, .. } = other;
        (self.config, self.feed, self.cluster, self.snapshot) = (config, feed, cluster, snapshot);
        (self.reload_error, self.plan_error, self.is_new) = (None, None, true);
    }

    pub(super) fn name(&self) -> &str {
        &self.config.network.name
    }

    pub(super) fn is_fast(&self) -> bool {
        self.config.network.fastpath != Fastpath::Off
    }

    /// Takes on a new cluster if it can be planned for; the one before stays in force otherwise. Whether
    /// there was one at all.
    pub(super) fn reload(&mut self, machine: &mut Machine) -> anyhow::Result<bool> {
        let Some(feed) = &mut self.feed else { return Ok(false) };
        let news = feed.news().with_context(|| format!("network {}", self.config.network.name))?;
        let Some(snapshot) = news else { return Ok(false) };
        let checked = snapshot.and_then(|cluster| self.check(&cluster, &machine.tables).map(|()| cluster));
        match checked {
            Ok(cluster) => {
                let rules_changed = cluster.policy.is_some() && cluster.policy != self.cluster.policy;
                self.cluster.policy = cluster.policy;
                if self.cluster != cluster {
                    let network = self.name();
                    tracing::info!(network, nodes = cluster.remote_nodes(), "cluster state reloaded");
                    self.cluster = cluster;
                }
                if rules_changed {
                    self.flush_flows(machine);
                }
                (self.reload_error, self.snapshot) = (None, SystemTime::now());
            }
            Err(reason) => {
                let network = self.name();
                tracing::error!(network, "cluster state refused, the one before stays in force: {reason}");
                self.reload_error = Some(reason);
            }
        }
        Ok(true)
    }

    /// Closes all bypasses, because rules for packets between pods may have changed.
    pub(super) fn flush_flows(&self, machine: &mut Machine) {
        let (Some(datapath), Some(id)) = (machine.datapath.as_mut(), self.id) else { return };
        match datapath.flush_flows(id) {
            // In a Kubernetes cluster they do so all the time.
            Ok(()) if matches!(self.config.state, StateConfig::Kubernetes(_)) => {
                tracing::debug!("rules may have changed: every flow meets the host stack again");
            }
            Ok(()) => tracing::info!("rules have changed: every flow meets the host stack again"),
            Err(error) => tracing::error!("flows go on bypassing rules that have changed: {error:#}"),
        }
    }

    /// Lets the kernel route between pods and tunnel; where it may not be told to, an operator has
    /// to, and the rest goes on. A bridged network does not route.
    pub(super) fn forward(&self, machine: &mut Machine, sides: &[Side], wanted: &mut BTreeSet<String>) {
        if self.is_bridged() || self.is_accelerated() {
            return;
        }
        let (key, now) = (self.key(FORWARD), Instant::now());
        wanted.insert(key.clone());
        if !machine.retries.is_due(&key, now) {
            return;
        }
        let subnets = self.cluster.own_subnets();
        let v4 = if subnets.iter().any(|s| s.is_ipv4()) { sysctl::forward_ipv4() } else { Ok(()) };
        let inner_v6 = subnets.iter().any(|s| s.is_ipv6());
        let mut underlays = sides.iter().map(|side| &side.underlay).filter(|_| inner_v6);
        let v6 = underlays.try_for_each(|underlay| sysctl::forward_ipv6(&underlay.name));
        match v4.and(v6).and_then(|()| self.take_either_way(machine, sides)) {
            Ok(()) => machine.retries.held(&key),
            Err(error) => machine.retries.failed(key, &error, now),
        }
    }

    /// Lets packets out of the tunnel in also where answers leave without one: a node on the same link may not
    /// know of it, or not yet.
    fn take_either_way(&self, machine: &Machine, sides: &[Side]) -> anyhow::Result<()> {
        let devices =
            sides.iter().filter(|_| self.config.network.direct_routing).filter_map(|side| side.device);
        let mut links = devices.filter_map(|device| machine.tables.links.get(&device));
        links.try_for_each(|link| sysctl::loosen_reverse_path(&link.name))
    }

    /// What `what` of this network is called in the list of what failed.
    pub(super) fn key(&self, what: &str) -> String {
        format!("{}: {what}", self.name())
    }

    /// What should be of the network whose number is `id`.
    pub(super) fn plan(&mut self, id: NetworkId, sides: &[Side], common: &Common<'_>) -> Option<Desired> {
        let patience = self.recent.patience(Instant::now());
        let Common { machine, foreign, vtep_ids, source_ports, by_address, hands_over, previous, .. } =
            *common;
        let input = Input {
            id,
            vtep_ids,
            config: &self.config,
            cluster: &self.cluster,
            tables: &machine.tables,
            sides,
            ways: &machine.ways,
            policies: &machine.policies,
            foreign,
            source_ports,
            hop_limits: &common.hop_limits,
            xdp: machine.xdp_place().filter(|_| !self.is_accelerated()),
            takes_back: machine.takes_back,
            ruleset: &machine.ruleset,
            by_address,
            hands_over,
            patience: &patience,
            previous,
        };
        match self.config.network.segment() {
            Some(segment) => {
                let (side, filters, held) = (sides.first()?, common.filters, self.bridge);
                Some(SegmentInput { input: &input, segment, side, filters, held }.plan())
            }
            None if self.is_accelerated() => Some(input.plan_beside(&self.mirror, common.filters)),
            None => Some(input.plan()),
        }
    }

    /// Remembers what a round has found.
    pub(super) fn note(&mut self, id: NetworkId, seen: &Seen, desired: &mut Desired, tables: &Tables) {
        let sides = &seen.sides;
        self.id = Some(id);
        self.note_left(std::mem::take(&mut desired.left));
        self.plan_error = None;
        self.hooked = std::mem::take(&mut desired.hooked);
        self.recent.note(&desired.datapath.links, &desired.claims, Instant::now());
        self.underlays = sides.iter().map(|side| side.underlay.clone()).collect();
        let routes = desired.kernel.iter().flat_map(|kernel| kernel.routes.values());
        self.direct = routes.filter(|route| route.past.is_some()).map(|route| route.via).collect();
        // None of somebody else's is ours to remove.
        self.devices = if self.is_accelerated() { BTreeMap::new() } else { self.found_devices(sides) };
        self.note_guard();
        if let (Some(segment), Some(kernel)) = (self.config.network.segment().cloned(), seen.kernel.first()) {
            self.note_segment(&segment, kernel, tables);
        }
    }

    /// Remembers why nothing can be planned, and says it if that is new.
    pub(super) fn cannot_plan(&mut self, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        if self.plan_error.as_ref() != Some(&reason) {
            tracing::error!(network = self.name(), "cannot reconcile, what is there stays: {reason}");
        }
        self.plan_error = Some(reason);
    }

    /// Brings the kernel closer to what is desired; whether anything was changed. Nodes that the kernel
    /// refused a route to are left to it in the fast path, too.
    pub(super) async fn apply_kernel(
        &self,
        machine: &mut Machine,
        seen: &Seen,
        desired: &mut Desired,
        wanted: &mut BTreeSet<String>,
    ) -> bool {
        if self.is_accelerated() {
            return false;
        }
        let (mut changed, mut refused) = (false, BTreeSet::new());
        for ((observed, desired), side) in seen.kernel.iter().zip(&desired.kernel).zip(&seen.sides) {
            let (name, alias) = self.device_over(side.underlay.address);
            let network = self.name().to_owned();
            let target = Target { network, name: name.to_owned(), alias, index: side.device };
            changed |= apply_changes(machine, (observed, desired), target, wanted, &mut refused).await.any();
        }
        changed |= self.leave_unused_devices(machine, wanted).await;
        leave_to_kernel(&mut desired.datapath, &self.cluster, &refused);
        changed
    }

    /// Removes devices of ours over an IP version that the network does not run over any more, whatever they
    /// were called.
    async fn leave_unused_devices(&self, machine: &mut Machine, wanted: &mut BTreeSet<String>) -> bool {
        let used: BTreeSet<String> = self.cluster.owns().map(|own| self.device_over(own.vtep).1).collect();
        let mut changed = false;
        for alias in ownership::device_aliases(self.name()) {
            if used.contains(&alias) {
                continue;
            }
            let names = self.config.devices();
            let name = names.iter().find(|(_, known)| *known == alias).map_or("", |(name, _)| name);
            let held = self.devices.get(name).copied();
            changed |= remove_device(machine, self.name(), (name, alias, held), false, wanted).await.any();
        }
        changed
    }
}

/// Removes the device that carries an alias of `network`, what is on it, and, with `headroom`, what gives
/// bridges head-room. A device that is called as ours and is not is left alone.
pub(super) async fn remove_device(
    machine: &mut Machine,
    network: &str,
    (name, alias, held): (&str, String, Option<IfIndex>),
    headroom: bool,
    wanted: &mut BTreeSet<String>,
) -> Applied {
    let sought = Sought { network, alias: &alias, name, mac: Mac::default(), adopt: None, held };
    let Ok((mut observed, index)) = kernel::observed(&machine.tables, &sought) else {
        return Applied::default();
    };
    if !headroom {
        observed.headroom.clear();
    }
    let name = observed.device.as_ref().map_or(name, |device| &device.name).to_owned();
    let target = Target { network: network.to_owned(), name, alias, index };
    let nothing = KernelState::default();
    apply_changes(machine, (&observed, &nothing), target, wanted, &mut BTreeSet::new()).await
}

/// How many changes were carried out.
#[derive(Clone, Copy, Default)]
pub(super) struct Applied {
    done: usize,
    of: usize,
}

impl Applied {
    /// Whether anything was changed.
    pub(super) const fn any(self) -> bool {
        self.done > 0
    }

    /// Whether nothing is left to be changed.
    pub(super) const fn all(self) -> bool {
        self.done == self.of
    }
}

/// Carries out what differs.
async fn apply_changes(
    machine: &mut Machine,
    (observed, desired): (&KernelState, &KernelState),
    mut target: Target,
    wanted: &mut BTreeSet<String>,
    refused: &mut BTreeSet<IpNetwork>,
) -> Applied {
    let changes = kernel::diff(observed, desired);
    let mut broken = BTreeSet::new();
    let mut applied = Applied { done: 0, of: changes.len() };
    // What failed on an interface that was about to go is not held against the one that takes its place.
    let mut anew = false;
    for change in &changes {
        let (key, now) = (format!("{}: {change}", target.network), Instant::now());
        wanted.insert(key.clone());
        if !(anew || machine.retries.is_due(&key, now)) || lacks_base(change, desired, &broken) {
            broken.extend(base(change));
            refused.extend(missing_route(change).filter(|_| !broken.contains(&Base::Device)));
            continue;
        }
        match machine.netlink.apply(change, &mut target).await {
            Ok(()) => {
                tracing::debug!(network = target.network, %change, "done");
                machine.retries.held(&key);
                anew |= matches!(change, KernelChange::CreateDevice(_) | KernelChange::CreateBridge(..));
                applied.done += 1;
            }
            Err(error) => {
                broken.extend(base(change));
                refused.extend(missing_route(change));
                machine.retries.failed(key, &error, now);
                machine.stale = true;
            }
        }
    }
    // Our own notifications are still on their way: a dump shows what we did at once.
    machine.stale |= applied.any();
    applied
}

/// What other changes rest on, as far as a failed change leaves it missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Base {
    Bridge,
    Device,
    Neighbour(IpAddr),
    Fdb(Mac),
}

fn base(change: &KernelChange) -> Option<Base> {
    match change {
        KernelChange::CreateBridge(..) => Some(Base::Bridge),
        KernelChange::DeleteDevice(_) | KernelChange::CreateDevice(_) => Some(Base::Device),
        KernelChange::PutNeighbour(ip, _) => Some(Base::Neighbour(*ip)),
        KernelChange::PutFdb(mac, _) => Some(Base::Fdb(*mac)),
        _ => None,
    }
}

/// Whether what `change` rests on is among what is `broken`: a route without its neighbour would
/// swallow packets that today go another way.
fn lacks_base(change: &KernelChange, desired: &KernelState, broken: &BTreeSet<Base>) -> bool {
    use KernelChange::*;
    let (device, bridge) = (broken.contains(&Base::Device), broken.contains(&Base::Bridge));
    match change {
        AddHeadroom(..) | SetHeadroom(..) | RemoveHeadroom(_) => false,
        CreateBridge(..) | SetBridge(..) | RemoveBridge(_) => false,
        AddBridgeAddress(..) | RemoveBridgeAddress(..) | PutAnswer(..) | RemoveAnswer(..) => bridge,
        // It is of no use where it is no port.
        CreateDevice(_) => device || bridge,
        AddRoute(_, route) | ReplaceRoute(_, route) | RemoveRoute(_, route) if route.past.is_some() => false,
        AddRoute(_, route) | ReplaceRoute(_, route) => {
            let fdb = desired.neighbours.get(&route.via).is_some_and(|mac| broken.contains(&Base::Fdb(*mac)));
            device || fdb || broken.contains(&Base::Neighbour(route.via))
        }
        _ => device,
    }
}

/// The subnet to which there is no route of ours unless `change` is carried out.
fn missing_route(change: &KernelChange) -> Option<IpNetwork> {
    match change {
        KernelChange::AddRoute(to, _) => Some(*to),
        _ => None,
    }
}

/// Leaves nodes to the kernel that it refused a route to: it has another, which is not ours. Their packets
/// are accepted as before.
fn leave_to_kernel(state: &mut DatapathState, cluster: &ClusterState, refused: &BTreeSet<IpNetwork>) {
    let lacks_route = |node: &&Node| node.subnets.iter().any(|subnet| refused.contains(subnet));
    let nodes = cluster.remotes.values().filter(|_| !refused.is_empty()).filter(lacks_route);
    let vteps: BTreeSet<Addr> = nodes.map(|node| Addr::from(node.vtep)).collect();
    let refused = state.vtep_ids.iter().filter(|(key, _)| vteps.contains(&key.addr)).map(|(_, id)| id);
    for id in refused {
        if let Some(vtep) = state.vteps.get_mut(id) {
            (vtep.ifindex, vtep.next_hop) = (0, NextHop::default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use crate::kernel::Route;
    use crate::net::IfIndex;

    #[test]
    fn a_route_waits_for_its_neighbour_and_forwarding_entry() {
        let (ip, mac) = (IpAddr::from([10, 2, 0, 0]), Mac([2, 0, 0, 0, 0, 2]));
        let desired = KernelState { neighbours: BTreeMap::from([(ip, mac)]), ..KernelState::default() };
        let to = "10.2.0.0/24".parse().expect("subnet");
        let route = Route { via: ip, past: None, src: None };
        let add = KernelChange::AddRoute(to, route.clone());
        assert!(!lacks_base(&add, &desired, &BTreeSet::new()));
        for broken in [Base::Device, Base::Neighbour(ip), Base::Fdb(mac)] {
            assert!(lacks_base(&add, &desired, &[broken].into()));
        }
        let remove = KernelChange::RemoveRoute(to, route.clone());
        assert!(!lacks_base(&remove, &desired, &[Base::Neighbour(ip)].into()));
        assert!(lacks_base(&remove, &desired, &[Base::Device].into()));
        let past = KernelChange::AddRoute(to, Route { past: Some(IfIndex(2)), ..route });
        assert!(!lacks_base(&past, &desired, &[Base::Device, Base::Neighbour(ip), Base::Fdb(mac)].into()));
        assert!(!lacks_base(&KernelChange::RemoveHeadroom(IfIndex(3)), &desired, &[Base::Device].into()));
    }

    #[test]
    fn addresses_of_a_bridge_wait_for_it_alone() {
        let add = KernelChange::AddBridgeAddress("br1".into(), "10.0.0.1/24".parse().expect("an address"));
        let desired = KernelState::default();
        assert!(lacks_base(&add, &desired, &[Base::Bridge].into()));
        assert!(!lacks_base(&add, &desired, &[Base::Device].into()));
        assert!(lacks_base(&KernelChange::AddFlood([192, 0, 2, 2].into()), &desired, &[Base::Device].into()));
    }

    #[test]
    fn a_node_that_the_kernel_refused_a_route_to_is_the_kernels() {
        use crate::cluster::{Candidate, Viewer};
        use vxlan_ebpf_common::maps::Vtep;
        let node = |name: &str, n: u8| Candidate {
            name: name.into(),
            vtep: IpAddr::from([192, 0, 2, n]),
            mac: None,
            subnets: vec![format!("10.{n}.0.0/24").parse().expect("subnet")],
            stations: vec![],
        };
        let viewer = Viewer {
            node: "a".into(),
            network: "pods".into(),
            l2: false,
            vni: 1.try_into().expect("in range"),
        };
        let cluster =
            ClusterState::new(vec![node("a", 1), node("b", 2), node("c", 3)], &viewer).expect("valid");
        let vtep = Vtep { ifindex: 7, ..Vtep::default() };
        let mut state = DatapathState { vteps: [(1, vtep), (2, vtep)].into(), ..DatapathState::default() };
        state.vtep_ids =
            [(2, 1), (3, 2)].map(|(n, id)| (Key6::new(1, IpAddr::from([192, 0, 2, n]).into()), id)).into();
        leave_to_kernel(&mut state, &cluster, &["10.2.0.0/24".parse().expect("subnet")].into());
        assert_eq!([state.vteps[&1].ifindex, state.vteps[&2].ifindex], [0, 7]);
    }
}
