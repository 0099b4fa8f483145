//! What the networks of a node share: the kernel's tables, the ways to other nodes, the fast path.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context as _;
use aya_log::EbpfLogger;
use futures_util::stream::{self, StreamExt as _};
use ipnetwork::IpNetwork;
use nix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use vxlan_ebpf_common::maps::{BY_ADDRESS, NO_BYPASS, NetworkId, PARTIAL};

use super::PAUSE;
use super::describe::describe;
use super::pins::PinWatch;
use super::retries::Retries;
use super::tunnels::Tunnels;
use crate::config::Xdp;
use crate::datapath::{self, Change, Datapath, DatapathState, FIRST_PRIORITY, Options, Tcx};
use crate::kernel::ruleset::{DeviceHook, Ruleset};
use crate::kernel::{
    self, Asked, Edge, Foreign, Kind, Link, Netlink, Ours, Policy, Tables, Touched, Way, What, filters,
    sysctl,
};
use crate::net::{IfIndex, Mtu, is_link_local};
use crate::plan::{BridgeFilters, HopLimits, Ways};
use crate::xdp::{self, Declined, Place};

/// Stands for what is no change in the list of what failed.
const LOAD: &str = "load the fast path";
/// For how long programs rely on an agent that looks out for packet filters every second.
const WATCH: Duration = Duration::from_secs(3);
/// Questions to the kernel that are on their way at the same time.
const AT_ONCE: usize = 64;

/// What the networks of a node share.
pub(super) struct Machine {
    pub(super) netlink: Netlink,
    /// Names of the configured networks.
    pub(super) configured: BTreeSet<String>,
    /// Files for pods that the configuration asks for.
    pub(super) files: BTreeSet<PathBuf>,
    pub(super) tables: Tables,
    /// Whether all routes are read, for the sake of devices that somebody else manages.
    pub(super) wide: bool,
    /// The tables may lack something: dump them before the next round.
    pub(super) stale: bool,
    /// Ways to VTEPs, as asked for.
    pub(super) ways: Ways,
    /// Path MTUs that the kernel has learnt.
    learnt: BTreeMap<IpAddr, Mtu>,
    pub(super) policies: Vec<Policy>,
    /// Queueing disciplines and filters of others; `None`: to be read anew.
    pub(super) traffic: Option<Vec<Foreign>>,
    tcx: Tcx,
    /// What of others the fast path would pass by.
    pub(super) hooked: Vec<Foreign>,
    /// What packet filters do that the fast path would skip.
    pub(super) ruleset: Arc<Ruleset>,
    /// A packet filter of which no notice is given, and whether there is a BPF program that is one.
    unannounced: filters::Unannounced,
    has_program: bool,
    pub(super) datapath: Option<Datapath>,
    /// Tells when pins of it are removed.
    pins: PinWatch,
    /// Where XDP is wanted, or why not; nothing before the programs are loaded.
    pub(super) xdp: Option<Result<Place, Declined>>,
    /// For the mark that XDP leaves with packets.
    pub(super) secret: u32,
    /// Whether conntrack takes TCP connections back that have bypassed it.
    pub(super) takes_back: bool,
    /// What may filter frames on bridges.
    pub(super) filters: BridgeFilters,
    /// Tables of nf_tables.
    pub(super) tunnels: Tunnels,
    pub(super) retries: Retries,
}

/// A random number that is not zero.
fn secret() -> anyhow::Result<u32> {
    Ok(getrandom::u32().context("the kernel has no random number")?.max(1))
}

impl Machine {
    pub(super) fn new(netlink: Netlink, pins: PinWatch, tcx: Tcx) -> anyhow::Result<Self> {
        Ok(Self {
            netlink,
            configured: BTreeSet::new(),
            files: BTreeSet::new(),
            tables: Tables::default(),
            wide: false,
            stale: true,
            ways: Ways::new(),
            learnt: BTreeMap::new(),
            policies: vec![],
            traffic: None,
            tcx,
            hooked: vec![],
            ruleset: Arc::default(),
            datapath: None,
            pins,
            xdp: None,
            secret: secret()?,
            unannounced: filters::Unannounced {
                between_pods: Some("filters that have not been looked for yet".into()),
                of_tunnels: None,
            },
            has_program: false,
            takes_back: false,
            filters: BridgeFilters::default(),
            tunnels: Tunnels::default(),
            retries: Retries::default(),
        })
    }

    /// Looks round for the first time.
    pub(super) async fn begin(&mut self) -> anyhow::Result<()> {
        self.tables = self.dump().await?;
        self.read_policies().await;
        self.stale = false;
        self.tunnels.begin();
        Ok(())
    }

    /// The kernel's tables, as far as they are wanted.
    pub(super) async fn dump(&self) -> anyhow::Result<Tables> {
        if self.wide { self.netlink.dump_wide().await } else { self.netlink.dump().await }
    }

    /// Looks round where no round does.
    pub(super) async fn look_again(&mut self) {
        if !self.stale {
            return;
        }
        match self.dump().await {
            Ok(tables) => (self.tables, self.stale) = (tables, false),
            Err(error) => tracing::warn!("{error:#}"),
        }
    }

    /// Has everything read anew before the next round.
    pub(super) async fn read_anew(&mut self) {
        self.stale = true;
        self.ways.clear();
        self.traffic = None;
        self.read_policies().await;
    }

    /// When to act without being told.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let stale = self.stale.then(|| Instant::now() + PAUSE);
        self.retries.next_due().into_iter().chain(stale).min()
    }

    /// Whether conntrack takes connections back otherwise than the programs were told.
    pub(super) fn settings_changed(&self) -> bool {
        sysctl::takes_back() != self.takes_back
    }

    /// Reads the IPsec policies. While they cannot be read, any packet may need one.
    pub(super) async fn read_policies(&mut self) {
        self.policies = kernel::policies().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot read IPsec policies: the kernel's device carries everything");
            [Way::In, Way::Out].into_iter().flat_map(Policy::everything).collect()
        });
    }

    /// Destinations whose path MTU the kernel has learnt, or forgotten, since last asked.
    pub(super) async fn learnt_anew(&mut self) -> Vec<IpNetwork> {
        let Ok(now) = kernel::learnt_mtus().await.inspect_err(|error| {
            tracing::debug!(%error, "cannot read what the kernel has learnt of paths");
        }) else {
            return vec![];
        };
        let before = std::mem::replace(&mut self.learnt, now);
        let all = before.keys().chain(self.learnt.keys());
        all.filter(|to| before.get(to) != self.learnt.get(to)).map(|to| IpNetwork::from(*to)).collect()
    }

    /// Forgets ways to VTEPs that may be others now; whether there were any.
    pub(super) fn forget_ways(&mut self, touched: &Touched) -> bool {
        let count = |ways: &Ways| ways.values().map(BTreeMap::len).sum::<usize>();
        let before = count(&self.ways);
        let all = touched.lost || touched.routing || touched.links.iter().any(|link| self.leads_on(*link));
        let stays = |vtep: &IpAddr| !(all || touched.destinations.iter().any(|to| to.contains(*vtep)));
        self.ways.values_mut().for_each(|ways| ways.retain(|vtep, _| stays(vtep)));
        count(&self.ways) != before
    }

    /// Whether routes may lead out of `link`: not out of a pod's, of which there are many.
    fn leads_on(&self, link: IfIndex) -> bool {
        let routed = self.tables.addresses_of(link).any(|address| !is_link_local(address.ip));
        let mut ways = self.ways.values().flat_map(BTreeMap::values).flatten();
        routed
            || ways.any(|hop| hop.ifindex == link)
            || self.tables.routes.iter().any(|route| route.legs.contains(&link))
    }

    /// Asks for ways to VTEPs that are not known yet, and forgets those that nobody wants.
    pub(super) async fn find_ways(&mut self, wanted: &BTreeMap<Asked, BTreeSet<IpAddr>>) {
        self.mention_rules();
        self.ways.retain(|asked, ways| {
            let wanted = wanted.get(asked);
            ways.retain(|vtep, _| wanted.is_some_and(|wanted| wanted.contains(vtep)));
            wanted.is_some()
        });
        self.ask_ways(wanted).await;
    }

    /// Asks for ways to VTEPs that are not known yet.
    pub(super) async fn ask_ways(&mut self, wanted: &BTreeMap<Asked, BTreeSet<IpAddr>>) {
        let (netlink, known) = (&self.netlink, &self.ways);
        let is_known = |asked: &Asked, vtep: &IpAddr| known.get(asked).is_some_and(|w| w.contains_key(vtep));
        let all = wanted.iter().flat_map(|(asked, vteps)| vteps.iter().map(move |vtep| (asked, *vtep)));
        let unknown: Vec<_> = all.filter(|(asked, vtep)| !is_known(asked, vtep)).collect();
        let ask = |(asked, vtep): (&Asked, IpAddr)| {
            let asked = *asked;
            async move {
                let hop = netlink.next_hop(vtep, &asked).await;
                (asked, vtep, hop)
            }
        };
        let found: Vec<_> = stream::iter(unknown).map(ask).buffer_unordered(AT_ONCE).collect().await;
        for (asked, vtep, hop) in found {
            self.ways.entry(asked).or_default().insert(vtep, hop);
        }
    }

    /// Says once that no question to the kernel covers what its routing rules look at.
    fn mention_rules(&self) {
        static SAID: Once = Once::new();
        let families = [false, true].into_iter().filter(|v6| self.tables.rules_look_deeper(*v6));
        if families.count() != 0 {
            SAID.call_once(|| {
                tracing::warn!(
                    "a routing rule looks at source ports or users: the kernel's device carries everything \
                     over that IP version"
                );
            });
        }
    }

    /// What somebody else has put on interfaces that packets of overlays pass; `own` are devices and
    /// underlays.
    pub(super) async fn foreign(&mut self, own: impl Iterator<Item = IfIndex>) -> Vec<Foreign> {
        let tcx = self.datapath.as_ref().is_none_or(|datapath| datapath.features().tcx);
        if self.traffic.is_none() {
            let ours = Ours { is_called: datapath::is_called, priority: (!tcx).then_some(FIRST_PRIORITY) };
            match kernel::traffic(&ours).await {
                Ok(traffic) => self.traffic = Some(traffic),
                Err(error) => tracing::warn!(%error, "cannot read queueing disciplines and filters"),
            }
        }
        let is_passed =
            |link: &&Link| link.kind == Kind::Veth && link.peer_elsewhere || link.kind == Kind::Bridge;
        let mut passed: BTreeSet<_> = self.tables.links.values().filter(is_passed).map(|l| l.index).collect();
        passed.extend(own);
        passed.extend(self.xdp.iter().flatten().map(|place| place.ifindex));
        let programs = self.tcx.read(&passed, tcx);
        self.traffic.iter().flatten().cloned().chain(programs).chain(self.device_chains()).collect()
    }

    /// Chains of nf_tables at interfaces.
    fn device_chains(&self) -> impl Iterator<Item = Foreign> {
        self.ruleset.device_chains.iter().flat_map(|chain| {
            let on = self.tables.links.values().filter(|link| chain.is_on(&link.name));
            on.map(|link| Foreign {
                ifindex: link.index,
                edge: match chain.hook {
                    DeviceHook::Ingress => Edge::Entry,
                    DeviceHook::Egress => Edge::Exit,
                },
                what: What::Chain,
                name: chain.chain.clone(),
                behind: true,
            })
        })
    }

    /// Says what of others has come and gone because of which packets are left to the kernel.
    pub(super) fn mention_hooked(&mut self, now: Vec<Foreign>) {
        for foreign in now.iter().filter(|foreign| !self.hooked.contains(foreign)) {
            let interface = self.interface_name(foreign.ifindex);
            tracing::info!(interface, "{foreign}: the kernel carries what has to pass it");
        }
        for foreign in self.hooked.iter().filter(|foreign| !now.contains(foreign)) {
            tracing::info!(interface = self.interface_name(foreign.ifindex), "{foreign}: gone");
        }
        self.hooked = now;
    }

    /// The name of an interface, or its number where it is gone.
    pub(super) fn interface_name(&self, ifindex: IfIndex) -> String {
        self.tables.links.get(&ifindex).map_or_else(|| ifindex.to_string(), |link| link.name.clone())
    }

    /// Takes in what packet filters do; whether that is new. `verified`: whether somebody minds.
    pub(super) fn take_rules(&mut self, rules: Option<Arc<Ruleset>>, verified: bool) -> bool {
        let Some(rules) = rules.filter(|rules| *rules != self.ruleset) else { return false };
        if rules.meters != self.ruleset.meters && verified {
            match rules.meters.first() {
                Some(meter) => tracing::warn!(
                    rules = rules.meters.len(),
                    "no flow bypasses the host stack, because rules have to see every packet: {meter}"
                ),
                None => {
                    tracing::info!("no rule has to see every packet any more: flows bypass the host stack")
                }
            }
        }
        self.ruleset = rules;
        true
    }

    /// What looks at more of a packet between pods than its addresses and DSCP, or may change it: the first that
    /// is known. Without any, one packet says what becomes of all between the same two.
    pub(super) fn judge(&self) -> Option<String> {
        let rules = &self.ruleset;
        let chain =
            rules.chains.iter().chain(&rules.bridge_chains).next().map(|chain| format!("chain {chain}"));
        let others: [(bool, &str); 4] = [
            (rules.unsettled, "rules that are being read"),
            (self.has_program, "a BPF program at a hook of netfilter"),
            (!self.policies.is_empty(), "IPsec policies"),
            (self.tables.rules_look_past_addresses(), "routing rules about ports or protocols"),
        ];
        let other = others.into_iter().find(|(is_there, _)| *is_there).map(|(_, name)| name.to_owned());
        chain.or_else(|| self.unannounced.between_pods.clone()).or(other)
    }

    /// What may tell one of the tunnel's packets from another of the same VTEP in front of the tunnel's port, the first
    /// that is known. Without any, one packet says what becomes of all.
    pub(super) fn tells_tunnels_apart(&self) -> Option<String> {
        let rule = self.ruleset.tunnel_meters.first().map(ToString::to_string);
        rule.or_else(|| self.unannounced.of_tunnels.clone())
            .or_else(|| self.has_program.then(|| "a BPF program at a hook of netfilter".to_owned()))
    }

    /// Looks for packet filters of which no notice is given, with `programs` for BPF programs, too, which takes
    /// longer; whether there is news.
    pub(super) fn look_for_filters(&mut self, programs: bool) -> bool {
        let has_program = if programs { filters::has_netfilter_program() } else { self.has_program };
        let before = std::mem::replace(&mut self.unannounced, filters::unannounced());
        let had_program = std::mem::replace(&mut self.has_program, has_program);
        before != self.unannounced || had_program != self.has_program
    }

    /// Has the programs know for another moment that somebody looks out for filters. When nobody does any more, they
    /// go back to asking about connections.
    ///
    /// Not while the maps say that there are no filters and there are.
    pub(super) fn keep_watch(&mut self) {
        let judged = self.judge().is_some();
        let Some(datapath) = &mut self.datapath else { return };
        let mut networks = datapath.state().networks.values();
        if judged && networks.any(|network| network.flags & BY_ADDRESS != 0) {
            return self.doubt();
        }
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock");
        let until = now.and_then(|now| {
            let until = Duration::from(now) + WATCH;
            datapath.watch(u64::try_from(until.as_nanos()).unwrap_or(u64::MAX))
        });
        if let Err(error) = until {
            tracing::warn!("flows are verified by connections: {error:#}");
        }
    }

    /// Has the programs ask about connections until the watch is kept again.
    pub(super) fn doubt(&mut self) {
        if let Some(Err(error)) = self.datapath.as_mut().map(|datapath| datapath.watch(0)) {
            tracing::warn!("{error:#}");
        }
    }

    /// TTLs and hop limits of ways to VTEPs that have none of their own.
    pub(super) fn hop_limits(&self) -> HopLimits {
        let hops = self.ways.values().flatten().filter_map(|(vtep, hop)| Some((vtep, hop.as_ref()?)));
        let interfaces: BTreeSet<_> =
            hops.filter(|(vtep, _)| vtep.is_ipv6()).map(|(_, hop)| hop.ifindex).collect();
        let v6 = interfaces.into_iter().map(|at| (at, sysctl::hop_limit(&self.interface_name(at)))).collect();
        HopLimits { v4: sysctl::default_ttl(), v6 }
    }

    /// Lets conntrack take back what has bypassed it. Where that is not allowed, TCP does not bypass.
    pub(super) fn tolerate_gaps(&mut self) {
        let told = sysctl::tolerate_gaps();
        let before = std::mem::replace(&mut self.takes_back, sysctl::takes_back());
        match told {
            Err(error) if before != self.takes_back || self.datapath.is_none() => {
                tracing::warn!("TCP connections do not bypass the host stack: {error:#}");
            }
            _ => {}
        }
    }

    /// As [`Machine::tolerate_gaps`], where somebody else's settings are nobody's to change.
    pub(super) fn look_at_gaps(&mut self) {
        self.takes_back = sysctl::takes_back();
    }

    /// Loads the programs, or adopts those that are pinned. Without them the kernel does all the
    /// work. With every fast path off, there is something to do only if an earlier agent left pins.
    pub(super) fn load(&mut self, options: &Options, off: bool, wanted: &mut BTreeSet<String>) {
        if self.datapath.as_ref().is_some_and(|datapath| !datapath.is_pinned()) {
            tracing::warn!("somebody has removed pins: the fast path is loaded anew");
            self.datapath = None;
        }
        if self.datapath.as_ref().is_some_and(|datapath| !options.sizes.fit(datapath.sizes())) {
            self.datapath = None;
        }
        if self.datapath.is_some() || off && !options.dir.is_dir() {
            return;
        }
        wanted.insert(LOAD.to_owned());
        let now = Instant::now();
        if !self.retries.is_due(LOAD, now) {
            return;
        }
        match self.open(options) {
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

    /// Opens the datapath and keeps an eye on its pins.
    fn open(&mut self, options: &Options) -> anyhow::Result<Datapath> {
        let datapath = Datapath::open(options)?;
        self.pins.follow(&datapath.directories())?;
        // What was removed before the watch was set up.
        anyhow::ensure!(datapath.is_pinned(), "pins are removed as they are made");
        Ok(datapath)
    }

    /// Decides about XDP on `underlay`; says so when it decides otherwise than before.
    pub(super) fn place_xdp(&mut self, mode: Xdp, underlay: IfIndex) {
        let Some(datapath) = &self.datapath else { return };
        let placed = xdp::place(mode, underlay, &self.tables, xdp::driver);
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

    /// Where XDP goes, if anywhere.
    pub(super) fn xdp_place(&self) -> Option<&Place> {
        self.xdp.as_ref().and_then(|placed| placed.as_ref().ok())
    }

    /// What is in the maps and on the interfaces; nothing before the programs are loaded.
    pub(super) fn observe(&mut self) -> anyhow::Result<Option<&DatapathState>> {
        let observed = self.datapath.as_mut().map(Datapath::observe).transpose();
        observed.context("cannot observe the fast path")
    }

    /// Has programs leave packets to the kernel before it routes them to nodes without a tunnel. What fails
    /// here is done with the rest, and told then.
    pub(super) fn run_ahead_of_routes(&mut self, desired: &DatapathState) {
        let Some(datapath) = &mut self.datapath else { return };
        for change in datapath::ahead_of_routes(datapath.state(), desired) {
            if let Err(error) = datapath.apply(&change) {
                tracing::debug!("{}: {error:#}", describe(&change));
            }
        }
    }

    /// Brings the fast path closer to what is desired; whether anything was changed.
    pub(super) fn apply_datapath(
        &mut self,
        mut desired: DatapathState,
        wanted: &mut BTreeSet<String>,
    ) -> anyhow::Result<bool> {
        let Some(datapath) = &mut self.datapath else { return Ok(false) };
        let observed = datapath.state();
        let (mut keys, mut due, now) = (Vec::new(), Vec::new(), Instant::now());
        let mut changes = datapath::diff(observed, &desired);
        if self.retries.any()
            && changes.iter().any(|c| c.is_about_a_node() && self.retries.has_failed(&describe(c)))
        {
            desired.networks.values_mut().for_each(|network| network.flags |= PARTIAL);
            changes = datapath::diff(observed, &desired);
        }
        let flags =
            |state: &DatapathState, id: NetworkId| state.networks.get(&id).map_or(0, |network| network.flags);
        let forgets = |id: &&NetworkId| {
            let (before, after) = (flags(observed, **id), flags(&desired, **id));
            before & !after & NO_BYPASS != 0 || (before ^ after) & BY_ADDRESS != 0
        };
        let forgotten: Vec<_> = desired.networks.keys().filter(forgets).copied().collect();
        for id in forgotten {
            // Meanwhile connections have ended, and others have begun, that nobody looked at.
            datapath.flush_flows(id).context("cannot forget flows")?;
        }
        if changes.is_empty() {
            datapath.settle()?;
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
            for (id, network) in &mut desired.networks {
                network.flags |= PARTIAL;
                datapath.apply(&Change::PutNetwork(*id, *network)).context("cannot write NETWORKS")?;
            }
        }
        Ok(changed)
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
