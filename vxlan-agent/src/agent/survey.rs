//! How a network should be, for somebody who is not the agent: the same plan, compared with the same tables.

use anyhow::Context as _;

use super::accelerate::nobody;
use super::feed::viewer;
use super::network::{Network, Seen};
use crate::cluster::{ClusterState, Node};
use crate::config::{StateConfig, View};
use crate::datapath::DatapathState;
use crate::kernel::ruleset::Ruleset;
use crate::kernel::{self, KernelChange, KernelState, Tables};
use crate::plan::{BridgeFilters, HopLimits, Input, SegmentInput, Side, Ways};
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
    /// What it would change, and on which device.
    pub(crate) changes: Vec<(String, KernelChange)>,
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

/// What an agent would find and do about a network that it manages, knowing `previous` of the fast path.
///
/// # Errors
/// Why it could not: its sentence.
pub(crate) fn survey(
    view: &View,
    cluster: &ClusterState,
    tables: &Tables,
    previous: &DatapathState,
) -> anyhow::Result<Survey> {
    let mut network = Network::without_source(view.clone(), cluster.clone());
    if network.is_accelerated() {
        network.reflect(tables, &Ways::new());
        let reason = network.mirror.as_ref().err().cloned();
        let Seen { sides, .. } = network.look_beside(tables);
        return match reason {
            Some(reason) => Err(anyhow::Error::msg(reason)),
            None => Ok(Survey { cluster: network.cluster, sides, changes: vec![] }),
        };
    }
    let (states, sides) = network.look(cluster, tables)?;
    let wanted = wanted(view, cluster, tables, &sides, previous)?;
    let names = cluster.owns().map(|own| view.device_over(own.vtep).to_owned());
    let changes = names.zip(states.into_iter().zip(wanted)).flat_map(|(device, (state, wanted))| {
        let changes = kernel::diff(&without_headroom(state), &without_headroom(wanted));
        changes.into_iter().map(move |change| (device.clone(), change))
    });
    Ok(Survey { changes: changes.collect(), cluster: cluster.clone(), sides })
}

/// It only makes packets faster, and bridges of pods have it once their pods are known.
fn without_headroom(state: KernelState) -> KernelState {
    KernelState { headroom: Default::default(), headroom_elsewhere: Default::default(), ..state }
}

fn wanted(
    view: &View,
    cluster: &ClusterState,
    tables: &Tables,
    sides: &[Side],
    previous: &DatapathState,
) -> anyhow::Result<Vec<KernelState>> {
    let (ruleset, patience, ways) = (Ruleset::default(), Patience::default(), Ways::new());
    let hop_limits = HopLimits { v4: 0, v6: Default::default() };
    let input = Input {
        id: previous.number(&view.network.name).unwrap_or_default(),
        vtep_ids: &Default::default(),
        config: view,
        cluster,
        tables,
        sides,
        ways: &ways,
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
