//! Bridged networks: what they look at, plan and remember otherwise than routed ones.

use std::collections::BTreeSet;

use super::network::Network;
use crate::cluster::{ClusterState, Node};
use crate::config::{Segment, SourceCheck};
use crate::kernel::{self, ForeignSegment, KernelState, Sought, Tables};
use crate::net::IfIndex;
use crate::plan;

impl Network {
    /// Whether frames are bridged, and not packets routed.
    pub(super) fn is_bridged(&self) -> bool {
        let bridge = self.mirror.as_ref().ok().and_then(|mirror| mirror.bridge.as_ref());
        self.config.network.segment().is_some() || bridge.is_some()
    }

    /// What there is of the network's device and bridge; and the device's index.
    pub(super) fn observe_segment(
        &self,
        segment: &Segment,
        cluster: &ClusterState,
        own: &Node,
        tables: &Tables,
    ) -> Result<(KernelState, Option<IfIndex>), ForeignSegment> {
        let (name, alias) = self.device_over(own.vtep);
        let (network, held) = (&self.config.network.name, self.devices.get(name).copied());
        let sought = Sought { network, alias: &alias, name, mac: own.mac, adopt: None, held };
        let bridge = plan::sought_bridge(segment, own, self.bridge);
        let (mut state, device) = kernel::observed_segment(tables, &sought, &bridge)?;
        // Where strangers are only counted, they would be learnt again and again.
        if let (Some(device), SourceCheck::Drop) = (device, self.config.network.source_check) {
            let nodes: BTreeSet<_> = cluster.remotes.values().map(|node| node.vtep).collect();
            state.orphans = kernel::orphans(tables, device, &nodes);
        }
        Ok((state, device))
    }

    /// Remembers why frames are left to the kernel, and says what is new.
    pub(super) fn note_left(&mut self, left: Vec<String>) {
        let what =
            if self.is_accelerated() { "left to the kernel" } else { "the kernel carries these frames" };
        for reason in left.iter().filter(|reason| !self.left.contains(reason)) {
            tracing::info!(network = self.name(), "{what}: {reason}");
        }
        for reason in self.left.iter().filter(|reason| !left.contains(reason)) {
            tracing::info!(network = self.name(), "no longer: {reason}");
        }
        self.left = left;
    }

    /// Remembers the bridge, if it is ours, and says what is new about it.
    pub(super) fn note_segment(&mut self, segment: &Segment, seen: &KernelState, tables: &Tables) {
        let is_ours = seen.bridge.as_ref().is_some_and(|bridge| bridge.own.is_some());
        let link = tables.link_named(&segment.bridge).filter(|_| is_ours);
        self.bridge = link.map(|link| link.index);
        let Some(mtu) = self.underlays.first().map(|underlay| underlay.inner_mtu) else { return };
        let cautions = plan::cautions(segment, tables, is_ours, mtu);
        for caution in cautions.iter().filter(|caution| !self.cautions.contains(caution)) {
            tracing::warn!(network = self.name(), "{caution}");
        }
        self.cautions = cautions;
    }
}
