//! One round: observe, plan, diff, apply. Kernel first, fast path second.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use ipnetwork::IpNetwork;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use vxlan_ebpf_common::maps::{Addr, NO_BYPASS, NextHop, PARTIAL};

use super::Agent;
use super::describe::describe;
use crate::cluster::{ClusterState, Node};
use crate::config::{Attach, Fastpath, StateConfig, Xdp};
use crate::datapath::{self, Change, Datapath, DatapathState, Options, Sizes};
use crate::kernel::{self, Foreign, KernelChange, KernelState, Target, sysctl};
use crate::net::Mac;
use crate::plan::{Desired, Input, Side};
use crate::xdp::{self, Declined};

/// Stand for what is no kernel or datapath change in the list of what failed.
const LOAD: &str = "load the fast path";
const FORWARD: &str = "switch on forwarding";

impl Agent {
    /// Brings kernel and fast path one step closer; whether anything was changed.
    pub(super) async fn round(&mut self) -> anyhow::Result<bool> {
        let look = std::mem::take(&mut self.stale);
        if look {
            self.tables = self.netlink.dump().await.inspect_err(|_| self.stale = true)?;
        }
        let (observed, sides) = self.look(&self.cluster)?;
        self.find_ways(&sides).await;
        let mut wanted = BTreeSet::new();
        self.forward(&sides, &mut wanted);
        self.tolerate_gaps();
        self.load(&mut wanted);
        self.place_xdp(&sides);
        let foreign = self.foreign(&sides).await;
        let mut desired = self.plan(&sides, &foreign)?;
        self.mention_hooked(std::mem::take(&mut desired.hooked));
        self.recent.note(&desired.datapath.veths, &desired.claims, Instant::now());
        self.underlays = sides.iter().map(|side| side.underlay.clone()).collect();
        self.devices = self.found_devices(&sides);
        self.set_table(look, &mut wanted);
        let (mut changed, mut refused) = (false, BTreeSet::new());
        for ((observed, desired), side) in observed.iter().zip(&desired.kernel).zip(&sides) {
            changed |= self.apply_kernel(observed, desired, side, &mut wanted, &mut refused).await;
        }
        changed |= self.leave_unused_devices(&mut wanted).await;
        leave_to_kernel(&mut desired.datapath, &self.cluster, &refused);
        changed |= self.apply_datapath(desired.datapath, &mut wanted)?;
        // The devices were there before this round.
        if sides.iter().all(|side| side.device.is_some()) {
            self.set_up_for_pods(&mut wanted);
        }
        self.retries.keep_only(&wanted);
        Ok(changed)
    }

    /// Whether `cluster` can be planned for on this machine; one sentence otherwise.
    pub(super) fn check(&self, cluster: &ClusterState) -> Result<(), String> {
        let (_, sides) = self.look(cluster).map_err(|e| e.to_string())?;
        // What a cluster gives its nodes, its nodes cannot change.
        match self.config.state {
            StateConfig::File(_) => self.check_on_link(cluster, &sides).map_err(|e| e.to_string()),
            _ => Ok(()),
        }
    }

    /// Removes devices of ours over an IP version that the network does not run over any more.
    async fn leave_unused_devices(&mut self, wanted: &mut BTreeSet<String>) -> bool {
        let used: BTreeSet<String> =
            self.cluster.owns().map(|own| self.config.device_over(own.vtep).to_owned()).collect();
        let mut changed = false;
        let unused = self.config.devices().into_iter().filter(|(name, _)| !used.contains(*name));
        let unused: Vec<_> = unused.map(|(name, alias)| (name.to_owned(), alias)).collect();
        for (name, alias) in unused {
            let Ok((mut observed, index)) = self.observe_device(&name, &alias, Mac::default(), None) else {
                continue;
            };
            observed.headroom.clear();
            let target = Target { name, alias, index };
            let nothing = KernelState::default();
            changed |= self.apply_changes(&observed, &nothing, target, wanted, &mut BTreeSet::new()).await;
        }
        changed
    }

    /// Lets the kernel route between pods and tunnel; where it may not be told to, an operator has
    /// to, and the rest goes on.
    fn forward(&mut self, sides: &[Side], wanted: &mut BTreeSet<String>) {
        wanted.insert(FORWARD.to_owned());
        let now = Instant::now();
        if !self.retries.is_due(FORWARD, now) {
            return;
        }
        let subnets = self.cluster.own_subnets();
        let v4 = if subnets.iter().any(|s| s.is_ipv4()) { sysctl::forward_ipv4() } else { Ok(()) };
        let inner_v6 = subnets.iter().any(|s| s.is_ipv6());
        let mut underlays = sides.iter().map(|side| &side.underlay).filter(|_| inner_v6);
        let v6 = underlays.try_for_each(|underlay| sysctl::forward_ipv6(&underlay.name));
        match v4.and(v6) {
            Ok(()) => self.retries.held(FORWARD),
            Err(error) => self.retries.failed(FORWARD.to_owned(), &error, now),
        }
    }

    /// Lets conntrack take back what has bypassed it. Where that is not allowed, TCP does not bypass.
    fn tolerate_gaps(&mut self) {
        if self.config.network.fastpath != Fastpath::Verified {
            return;
        }
        let told = sysctl::tolerate_gaps();
        let before = std::mem::replace(&mut self.takes_back, sysctl::takes_back());
        match told {
            Err(error) if before != self.takes_back || self.datapath.is_none() => {
                tracing::warn!("TCP connections do not bypass the host stack: {error:#}");
            }
            _ => {}
        }
    }

    /// Loads the programs, or adopts those that are pinned. Without them the kernel does all the
    /// work. With the fast path off, there is something to do only if an earlier agent left pins.
    fn load(&mut self, wanted: &mut BTreeSet<String>) {
        if self.datapath.as_ref().is_some_and(|datapath| !datapath.is_pinned()) {
            tracing::warn!("somebody has removed pins: the fast path is loaded anew");
            self.datapath = None;
        }
        let sizes = self.sizes();
        if self.datapath.as_ref().is_some_and(|datapath| !sizes.fit(datapath.sizes())) {
            self.datapath = None;
        }
        let dir = self.config.pins();
        let off = self.config.network.fastpath == Fastpath::Off;
        if self.datapath.is_some() || off && !dir.is_dir() {
            return;
        }
        wanted.insert(LOAD.to_owned());
        let now = Instant::now();
        if !self.retries.is_due(LOAD, now) {
            return;
        }
        let node = &self.config.node;
        let options = Options {
            dir,
            clsact: node.attach == Attach::Clsact,
            xdp: !off && node.xdp != Xdp::Off,
            flows: self.config.network.flows,
            sizes,
        };
        match self.open(&options) {
            Ok(mut datapath) => {
                if let Err(error) = datapath.logger().and_then(listen) {
                    tracing::warn!("{error:#}");
                }
                tracing::info!(tcx = datapath.features().tcx, "fast path loaded");
                self.datapath = Some(datapath);
                self.retries.held(LOAD);
            }
            Err(error) => self.retries.failed(LOAD.to_owned(), &error, now),
        }
    }

    /// What the cluster needs of the maps.
    fn sizes(&self) -> Sizes {
        let nodes = || self.cluster.owns().chain(self.cluster.remotes.values());
        let prefixes = |v4: bool| nodes().flat_map(|n| &n.subnets).filter(|s| s.is_ipv4() == v4).count();
        Sizes::of(nodes().count(), prefixes(true).max(prefixes(false)))
    }

    /// Opens the datapath and keeps an eye on its pins.
    fn open(&mut self, options: &Options) -> anyhow::Result<Datapath> {
        let datapath = Datapath::open(options)?;
        self.pins.follow(&datapath.directories())?;
        // What was removed before the watch was set up.
        anyhow::ensure!(datapath.is_pinned(), "pins are removed as they are made");
        Ok(datapath)
    }

    /// Decides about XDP; says so when it decides otherwise than before. With an underlay for each IP
    /// version it goes to the first.
    fn place_xdp(&mut self, sides: &[Side]) {
        let (Some(datapath), Some(side)) = (self.datapath.as_ref().filter(|_| self.is_fast()), sides.first())
        else {
            return;
        };
        let (mode, tables) = (self.config.node.xdp, &self.tables);
        let placed = xdp::place(mode, side.underlay.ifindex, tables, xdp::driver);
        let placed = placed.and_then(|place| match datapath.no_xdp() {
            Some(reason) => Err(Declined::NotLoaded(reason.to_owned())),
            None => Ok(place),
        });
        if self.xdp.as_ref() != Some(&placed) {
            match &placed {
                Ok(place) => tracing::info!(interface = place.name, "XDP takes packets out of the tunnel"),
                Err(Declined::Off) => {}
                Err(reason) => tracing::info!(%reason, "no XDP, TC takes packets out of the tunnel"),
            }
            self.xdp = Some(placed);
        }
    }

    fn is_fast(&self) -> bool {
        self.config.network.fastpath != Fastpath::Off
    }

    fn plan(&mut self, sides: &[Side], foreign: &[Foreign]) -> anyhow::Result<Desired> {
        let nothing = DatapathState::default();
        let previous = match &mut self.datapath {
            Some(datapath) => datapath.observe().context("cannot observe the fast path")?,
            None => &nothing,
        };
        let patience = self.recent.patience(Instant::now());
        let input = Input {
            config: &self.config,
            cluster: &self.cluster,
            tables: &self.tables,
            sides,
            next_hops: &self.next_hops,
            policies: &self.policies,
            foreign,
            source_ports: sysctl::source_ports(),
            xdp: self.xdp.as_ref().and_then(|placed| placed.as_ref().ok()),
            secret: self.secret,
            takes_back: self.takes_back,
            ruleset: &self.ruleset,
            patience: &patience,
            previous,
        };
        Ok(input.plan())
    }

    async fn apply_kernel(
        &mut self,
        observed: &KernelState,
        desired: &KernelState,
        side: &Side,
        wanted: &mut BTreeSet<String>,
        refused: &mut BTreeSet<IpNetwork>,
    ) -> bool {
        let (name, alias) = self.device_over(side.underlay.address);
        let target = Target { name: name.to_owned(), alias, index: side.device };
        self.apply_changes(observed, desired, target, wanted, refused).await
    }

    async fn apply_changes(
        &mut self,
        observed: &KernelState,
        desired: &KernelState,
        mut target: Target,
        wanted: &mut BTreeSet<String>,
        refused: &mut BTreeSet<IpNetwork>,
    ) -> bool {
        let changes = kernel::diff(observed, desired);
        let mut broken = BTreeSet::new();
        let mut changed = false;
        for change in &changes {
            let (key, now) = (change.to_string(), Instant::now());
            wanted.insert(key.clone());
            if !self.retries.is_due(&key, now) || lacks_base(change, desired, &broken) {
                broken.extend(base(change));
                refused.extend(missing_route(change).filter(|_| !broken.contains(&Base::Device)));
                continue;
            }
            match self.netlink.apply(change, &mut target).await {
                Ok(()) => {
                    tracing::debug!(%change, "done");
                    self.retries.held(&key);
                    changed = true;
                }
                Err(error) => {
                    broken.extend(base(change));
                    refused.extend(missing_route(change));
                    self.retries.failed(key, &error, now);
                    self.stale = true;
                }
            }
        }
        // Our own notifications are still on their way: a dump shows what we did at once.
        self.stale |= changed;
        changed
    }

    fn apply_datapath(
        &mut self,
        mut desired: DatapathState,
        wanted: &mut BTreeSet<String>,
    ) -> anyhow::Result<bool> {
        let Some(datapath) = &mut self.datapath else { return Ok(false) };
        let observed = datapath.observe().context("cannot observe the fast path")?;
        let (mut keys, mut due, now) = (Vec::new(), Vec::new(), Instant::now());
        let mut changes = datapath::diff(observed, &desired);
        if self.retries.any()
            && changes.iter().any(|c| c.is_about_a_node() && self.retries.has_failed(&describe(c)))
        {
            desired.config.flags |= PARTIAL;
            changes = datapath::diff(observed, &desired);
        }
        let limited = |state: &DatapathState| state.config.flags & NO_BYPASS != 0;
        if limited(observed) && !limited(&desired) {
            // Meanwhile connections have ended, and others have begun, that nobody looked at.
            datapath.flush_flows().context("cannot forget flows")?;
        }
        for change in changes {
            let key = describe(&change);
            wanted.insert(key.clone());
            if self.retries.is_due(&key, now) {
                keys.push(key);
                due.push(change);
            }
        }
        let (mut changed, mut partial, mut keys) = (false, false, keys.into_iter());
        for entries in due.chunk_by(Change::is_alike) {
            // What cannot be done together is tried, and if need be refused, one by one.
            let done = datapath.apply_together(entries);
            for (change, key) in entries.iter().zip(&mut keys) {
                match if done { Ok(()) } else { datapath.apply(change) } {
                    Ok(()) => {
                        tracing::debug!(change = key, together = done, "done");
                        self.retries.held(&key);
                        changed = true;
                    }
                    Err(error) => {
                        let error = error.context(format!("cannot {key}"));
                        partial |= change.is_about_a_node();
                        self.retries.failed(key, &error, Instant::now());
                    }
                }
            }
        }
        if partial {
            // Who is missing in the tables is no stranger.
            desired.config.flags |= PARTIAL;
            datapath.apply(&Change::SetConfig(desired.config)).context("cannot write CONFIG")?;
        }
        Ok(changed)
    }
}

/// What routes rest on, as far as a failed change leaves it missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Base {
    Device,
    Neighbour(IpAddr),
    Fdb(Mac),
}

fn base(change: &KernelChange) -> Option<Base> {
    match change {
        KernelChange::DeleteDevice(_) | KernelChange::CreateDevice(_) => Some(Base::Device),
        KernelChange::PutNeighbour(ip, _) => Some(Base::Neighbour(*ip)),
        KernelChange::PutFdb(mac, _) => Some(Base::Fdb(*mac)),
        _ => None,
    }
}

/// Whether what `change` rests on is among what is `broken`: a route without its neighbour would
/// swallow packets that today go another way.
fn lacks_base(change: &KernelChange, desired: &KernelState, broken: &BTreeSet<Base>) -> bool {
    let device = broken.contains(&Base::Device);
    let headroom = matches!(
        change,
        KernelChange::AddHeadroom(..) | KernelChange::SetHeadroom(..) | KernelChange::RemoveHeadroom(_)
    );
    match change {
        KernelChange::AddRoute(_, route) | KernelChange::ReplaceRoute(_, route) => {
            let fdb = desired.neighbours.get(&route.via).is_some_and(|mac| broken.contains(&Base::Fdb(*mac)));
            device || fdb || broken.contains(&Base::Neighbour(route.via))
        }
        _ => device && !headroom,
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
    for vtep in nodes.map(|node| Addr::from(node.vtep)) {
        if let Some(vtep) = state.vtep_ids.get(&vtep).and_then(|id| state.vteps.get_mut(id)) {
            (vtep.ifindex, vtep.next_hop) = (0, NextHop::default());
        }
    }
}

/// Passes on what the programs have to say.
fn listen(logger: EbpfLogger<&'static dyn log::Log>) -> anyhow::Result<()> {
    // SAFETY: the logger owns the descriptor of its map; flushing neither closes nor replaces it.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.context("cannot listen to the programs")?;
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
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
        let add = KernelChange::AddRoute(to, Route { via: ip, src: None });
        assert!(!lacks_base(&add, &desired, &BTreeSet::new()));
        for broken in [Base::Device, Base::Neighbour(ip), Base::Fdb(mac)] {
            assert!(lacks_base(&add, &desired, &[broken].into()));
        }
        assert!(!lacks_base(&KernelChange::RemoveRoute(to), &desired, &[Base::Neighbour(ip)].into()));
        assert!(!lacks_base(&KernelChange::RemoveHeadroom(IfIndex(3)), &desired, &[Base::Device].into()));
    }

    #[test]
    fn a_node_that_the_kernel_refused_a_route_to_is_the_kernels() {
        use crate::cluster::{Candidate, Viewer};
        use vxlan_ebpf_common::maps::Vtep;
        let node = |name: &str, n: u8| Candidate {
            name: name.into(),
            vtep: IpAddr::from([192, 0, 2, n]),
            mac: None,
            stations: vec![],
            subnets: vec![format!("10.{n}.0.0/24").parse().expect("subnet")],
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
        state.vtep_ids = [(2, 1), (3, 2)].map(|(n, id)| (IpAddr::from([192, 0, 2, n]).into(), id)).into();
        leave_to_kernel(&mut state, &cluster, &["10.2.0.0/24".parse().expect("subnet")].into());
        assert_eq!([state.vteps[&1].ifindex, state.vteps[&2].ifindex], [0, 7]);
    }
}
