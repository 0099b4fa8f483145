//! What goes into the status file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{Kind, NetworkId};

use super::Agent;
use super::machine::Machine;
use super::network::Network;
use super::pending::Pending;
use crate::cluster::Node;
use crate::datapath::DatapathState;
use crate::kernel::Foreign;
use crate::net::{IfIndex, Mac};
use crate::plan;
use crate::status::{BridgeStatus, EveryStatus, HookedStatus, NetworkStatus, NodeStatus, Status};
use crate::underlay::Underlay;

impl Agent {
    /// Writes down how things are.
    pub(super) fn write_status(&mut self) -> anyhow::Result<()> {
        let counts = self.machine.datapath.as_ref().map(|datapath| counts(datapath.state()));
        let running: BTreeMap<_, _> = self.networks.iter().map(|network| (network.name(), network)).collect();
        let pending: BTreeMap<_, _> = self.pending.iter().map(|pending| (pending.name(), pending)).collect();
        let networks = self.config.networks.iter().filter_map(|view| {
            let name = view.network.name.as_str();
            let pending = pending.get(name).copied();
            let running = running.get(name).map(|network| network.status(&self.machine, counts.as_ref()));
            let mut status = running.or_else(|| Some(pending?.status()))?;
            status.pending = pending.map(Pending::reason);
            Some(status)
        });
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            kernel: self.kernel.clone(),
            features: self.features,
            node: self.networks.first().map_or(&self.node.name, |network| &network.config.node.name).clone(),
            networks: networks.collect(),
            every: self
                .config
                .all
                .as_ref()
                .map(|all| EveryStatus { mode: all.fastpath, left: self.every.left.clone() }),
            config_error: self.config_error.clone(),
            error: self.error.clone(),
            retrying: self.machine.retries.status(),
            rights: self.rights.clone(),
            errors: vec![],
        };
        self.tell_probes();
        self.tell_metrics(counts.as_ref());
        self.status.write(status)
    }
}

impl Pending {
    /// What is known of it without a cluster.
    fn status(&self) -> NetworkStatus {
        let network = &self.view.network;
        NetworkStatus {
            name: network.name.clone(),
            kind: network.kind.word().to_owned(),
            vni: Some(network.vni),
            port: Some(network.port),
            mode: network.fastpath,
            left: vec![],
            attach: None,
            xdp: None,
            guard: "not yet".into(),
            device: network.device.clone(),
            configured: network.device.clone(),
            mac: Mac::default(),
            mtu: None,
            underlay: None,
            address: None,
            underlay_mtu: None,
            bridge: network.segment().map(|segment| BridgeStatus {
                name: segment.bridge.clone(),
                ours: false,
                cautions: vec![],
            }),
            subnets: vec![],
            own: vec![],
            nodes: vec![],
            hooked: vec![],
            pods_attached: 0,
            endpoints: 0,
            meters: vec![],
            judge: None,
            handover: None,
            files: BTreeMap::new(),
            reload_error: None,
            trouble: None,
            left_out: Default::default(),
            plan_error: None,
            pending: None,
        }
    }
}

impl Network {
    fn status(&self, machine: &Machine, counts: Option<&Counts>) -> NetworkStatus {
        let tcx = machine.datapath.as_ref().map(|datapath| datapath.features().tcx);
        let attach = tcx.map(|tcx| if tcx { "tcx" } else { "clsact" }.to_owned());
        let count = self.id.zip(counts).and_then(|(id, counts)| counts.get(&id));
        let (pods_attached, endpoints) = count.copied().unwrap_or_default();
        let (network, underlay) = (&self.config.network, self.underlays.first());
        let address = |vtep: IpAddr| {
            let over = |u: &&Underlay| u.address.is_ipv4() == vtep.is_ipv4();
            self.underlays.iter().find(over).map(|u| u.address)
        };
        let ipsec = |vtep: IpAddr| {
            address(vtep).is_some_and(|own| plan::ipsec(&machine.policies, own, vtep, network.port) != 0)
        };
        let hooked = |foreign: &Foreign| HookedStatus {
            interface: machine.interface_name(foreign.ifindex),
            what: foreign.to_string(),
        };
        let node = |node: &Node| NodeStatus {
            ipsec: ipsec(node.vtep),
            direct: self.direct.contains(&node.vtep),
            name: node.name.clone(),
            vtep: node.vtep,
            mac: node.mac,
            subnets: node.subnets.clone(),
        };
        let is_known = !self.is_accelerated() || self.mirror.is_ok();
        let meters = machine.ruleset.meters.iter().filter(|_| !self.is_bridged());
        NetworkStatus {
            name: network.name.clone(),
            kind: network.kind.word().to_owned(),
            vni: is_known.then_some(network.vni),
            port: is_known.then_some(network.port),
            mode: network.fastpath,
            left: self.left.clone(),
            attach,
            xdp: machine.xdp.as_ref().filter(|_| !self.is_accelerated()).map(|placed| match placed {
                Ok(place) => format!("native on {}", place.name),
                Err(reason) => format!("no: {reason}"),
            }),
            guard: self.guarded(machine),
            device: self.device_name(&machine.tables.links).to_owned(),
            configured: network.device.clone(),
            mac: self.cluster.own.mac,
            mtu: underlay.map(|u| u.inner_mtu),
            underlay: underlay.map(|u| u.name.clone()),
            address: underlay.map(|u| u.address),
            underlay_mtu: underlay.and_then(|u| machine.tables.links.get(&u.ifindex)).map(|link| link.mtu),
            bridge: self.bridge_name().map(|name| BridgeStatus {
                name: name.to_owned(),
                ours: self.bridge.is_some(),
                cautions: self.cautions.clone(),
            }),
            subnets: self.cluster.own_subnets(),
            meters: meters.map(ToString::to_string).collect(),
            judge: machine.judge().filter(|_| !self.is_bridged()),
            handover: machine.tells_tunnels_apart().filter(|_| !self.is_bridged()),
            own: self.cluster.owns().filter(|_| is_known).map(node).collect(),
            nodes: self.cluster.remotes.values().map(node).collect(),
            hooked: self.hooked.iter().map(hooked).collect(),
            pods_attached,
            endpoints,
            files: self.files.clone(),
            reload_error: self.reload_error.clone(),
            trouble: self.cluster.trouble.clone(),
            left_out: self.cluster.left_out.clone(),
            plan_error: self.plan_error.clone(),
            pending: None,
        }
    }
}

/// How many pods or ports of each network have a program, and how many addresses or stations are known.
pub(super) type Counts = BTreeMap<NetworkId, (usize, usize)>;

fn counts(state: &DatapathState) -> Counts {
    let mut counts = Counts::new();
    let attached =
        state.attachments.iter().filter(|at| matches!(at.hook, Hook::PodEgress | Hook::PortIngress));
    for link in attached.filter_map(|at| state.links.get(&IfIndex(at.ifindex))) {
        counts.entry(link.network).or_default().0 += 1;
    }
    let is_bridged = |id| state.networks.get(&id).is_some_and(|network| network.kind == Kind::L2 as u8);
    let stations = state.stations.keys().map(|key| key.network).filter(|id| is_bridged(*id));
    let endpoints = state.endpoints.keys().map(|(id, _)| *id).filter(|id| !is_bridged(*id));
    stations.chain(endpoints).for_each(|id| counts.entry(id).or_default().1 += 1);
    counts
}
