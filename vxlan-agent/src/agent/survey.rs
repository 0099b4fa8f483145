//! How a network should be, for somebody who is not the agent: the same plan, compared with the same tables.

use std::collections::BTreeSet;

use anyhow::Context as _;
use ipnetwork::IpNetwork;

use super::accelerate::nobody;
use super::collide::{self, Claim};
pub(crate) use super::feed::viewer;
use super::network::{Network, Seen};
use crate::cluster::{ClusterState, Node};
use crate::config::{StateConfig, View};
use crate::datapath::DatapathState;
use crate::kernel::ruleset::Ruleset;
use crate::kernel::{self, KernelChange, KernelState, Netlink, Sought, Tables};
use crate::net::Mac;
use crate::ownership;
use crate::plan::{self, BridgeFilters, HopLimits, Input, SegmentInput, Side, Ways};
use crate::pods::Patience;
use crate::source::parse_state;
use crate::status::{NetworkStatus, NodeStatus};
use crate::text::Text;

/// What an agent would find and do.
pub(crate) struct Survey {
    /// The nodes: where somebody else manages the device, those that it leads to.
    pub(crate) cluster: ClusterState,
    /// Where the network runs.
    pub(crate) sides: Vec<Side>,
    /// What it would change, device by device.
    pub(crate) changes: Vec<Changes>,
    /// Subnets of nodes on the same link that packets get to without a tunnel.
    pub(crate) direct: BTreeSet<IpNetwork>,
}

/// What an agent would change on a device.
pub(crate) struct Changes {
    /// Its name.
    pub(crate) device: String,
    /// What there is.
    pub(crate) observed: KernelState,
    /// In the order in which it would be done.
    pub(crate) changes: Vec<KernelChange>,
}

impl Changes {
    fn between(device: String, observed: KernelState, wanted: KernelState) -> Self {
        let (observed, wanted) = (without_headroom(observed), without_headroom(wanted));
        let changes = kernel::diff(&observed, &wanted);
        Self { device, observed, changes }
    }
}

/// What would be removed of a network that is not configured any more.
pub(crate) fn leftovers(network: &str, tables: &Tables) -> Vec<Changes> {
    let of = |alias: &String| {
        let sought = Sought { network, alias, name: "", mac: Mac::default(), adopt: None, held: None };
        let observed = kernel::observed(tables, &sought).ok()?.0;
        let device = observed.device.as_ref()?.name.clone();
        Some(Changes::between(device, observed, KernelState::default()))
    };
    ownership::device_aliases(network).iter().filter_map(of).collect()
}

/// Whether a network can run on this machine.
///
/// # Errors
/// Why it cannot: one sentence.
pub(crate) fn refusal(view: &View, cluster: &ClusterState, tables: &Tables) -> Result<(), String> {
    Network::without_source(view.clone(), cluster.clone()).check(cluster, tables)
}

/// The cluster as the source has it now, if it is a file; as the agent knew it last otherwise.
///
/// # Errors
/// One sentence: the file is refused, or no agent has ever known a cluster.
pub(crate) fn cluster(view: &View, status: Option<&NetworkStatus>) -> Result<ClusterState, String> {
    if let StateConfig::File(path) = &view.state {
        let text = Text::read(path).map_err(|refused| refused.to_string())?;
        return parse_state(&text, &viewer(view)).map_err(|refused| refused.to_string());
    }
    if view.network.is_accelerated() {
        return Ok(nobody(&view.node.name));
    }
    let known = status.and_then(remembered);
    known.ok_or_else(|| {
        format!("network {} has no cluster yet: no agent has seen its source", view.network.name)
    })
}

/// The cluster that an agent has written down.
pub(crate) fn remembered(status: &NetworkStatus) -> Option<ClusterState> {
    let mut owns = status.own.iter().map(node);
    let (own, own6) = (owns.next()?, owns.next());
    let remotes = status.nodes.iter().map(|n| (n.name.clone(), node(n))).collect();
    Some(ClusterState { own, own6, remotes, policy: None, trouble: None, left_out: Default::default() })
}

fn node(status: &NodeStatus) -> Node {
    let NodeStatus { name, vtep, mac, subnets, .. } = status.clone();
    Node { name, vtep, mac, subnets, stations: vec![] }
}

/// Why some of these networks cannot run beside the others, a sentence for each.
pub(crate) fn collisions(networks: Vec<(View, ClusterState)>) -> Vec<String> {
    let networks: Vec<_> =
        networks.into_iter().map(|(view, cluster)| Network::without_source(view, cluster)).collect();
    let claims: Vec<_> = networks.iter().map(Claim::of).collect();
    collide::collisions(&claims).into_iter().flatten().collect()
}

/// Ways to VTEPs, as far as routes depend on them.
pub(crate) async fn ways(view: &View, cluster: &ClusterState, tables: &Tables, netlink: &Netlink) -> Ways {
    let mut ways = Ways::new();
    if !view.network.direct_routing {
        return ways;
    }
    let network = Network::without_source(view.clone(), cluster.clone());
    let sides = network.look(cluster, tables).map(|(_, sides)| sides).unwrap_or_default();
    let policies = kernel::policies().await.unwrap_or_default();
    for side in sides {
        let (own, port) = (side.underlay.address, view.network.port);
        for node in cluster.remotes.values() {
            // The tunnel that IPsec protects stays.
            if node.vtep.is_ipv4() == own.is_ipv4() && plan::ipsec(&policies, own, node.vtep, port) == 0 {
                let hop = netlink.next_hop(node.vtep, &side.asked).await;
                ways.entry(side.asked).or_default().insert(node.vtep, hop);
            }
        }
    }
    ways
}

/// What an agent would find and do about a network that it manages, knowing `previous` of the fast path.
///
/// # Errors
/// Why it could not: its sentence.
pub(crate) fn survey(
    view: &View,
    cluster: &ClusterState,
    tables: &Tables,
    ways: &Ways,
    previous: &DatapathState,
) -> anyhow::Result<Survey> {
    let mut network = Network::without_source(view.clone(), cluster.clone());
    if network.is_accelerated() {
        network.reflect(tables, &Ways::new());
        let reason = network.mirror.as_ref().err().cloned();
        let Seen { sides, .. } = network.look_beside(tables);
        return match reason {
            Some(reason) => Err(anyhow::Error::msg(reason)),
            None => Ok(Survey { cluster: network.cluster, sides, changes: vec![], direct: BTreeSet::new() }),
        };
    }
    let (states, sides) = network.look(cluster, tables)?;
    let wanted = wanted(view, cluster, tables, (&sides, ways), previous)?;
    let routes = wanted.iter().flat_map(|state| &state.routes);
    let direct = routes.filter(|(_, route)| route.past.is_some()).map(|(to, _)| *to).collect();
    let names = cluster.owns().map(|own| view.device_over(own.vtep).to_owned());
    let changes = names.zip(states.into_iter().zip(wanted));
    let changes = changes.map(|(device, (state, wanted))| Changes::between(device, state, wanted));
    Ok(Survey { changes: changes.collect(), cluster: cluster.clone(), sides, direct })
}

/// It only makes packets faster, and bridges of pods have it once their pods are known.
fn without_headroom(state: KernelState) -> KernelState {
    KernelState { headroom: Default::default(), headroom_elsewhere: Default::default(), ..state }
}

fn wanted(
    view: &View,
    cluster: &ClusterState,
    tables: &Tables,
    (sides, ways): (&[Side], &Ways),
    previous: &DatapathState,
) -> anyhow::Result<Vec<KernelState>> {
    let (ruleset, patience) = (Ruleset::default(), Patience::default());
    let hop_limits = HopLimits { v4: 0, v6: Default::default() };
    let input = Input {
        id: previous.number(&view.network.name).unwrap_or_default(),
        vtep_ids: &Default::default(),
        config: view,
        cluster,
        tables,
        sides,
        ways,
        policies: &[],
        foreign: &[],
        source_ports: (0, 0),
        hop_limits: &hop_limits,
        xdp: None,
        takes_back: true,
        ruleset: &ruleset,
        by_address: false,
        hands_over: false,
        patience: &patience,
        previous,
    };
    let Some(segment) = view.network.segment() else { return Ok(input.plan().kernel) };
    let side = sides.first().context("the network runs over no underlay")?;
    let filters = BridgeFilters::default();
    Ok(SegmentInput { input: &input, segment, side, filters, held: None }.plan().kernel)
}
