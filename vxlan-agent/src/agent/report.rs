//! What goes into the status file.

use std::net::IpAddr;

use anyhow::Context as _;
use vxlan_ebpf_common::Hook;

use super::Agent;
use crate::cluster::Node;
use crate::kernel::Foreign;
use crate::plan;
use crate::status::{HookedStatus, NetworkStatus, NodeStatus, Status};
use crate::underlay::Underlay;

impl Agent {
    /// Writes down how things are.
    pub(super) fn write_status(&mut self) -> anyhow::Result<()> {
        let networks = vec![self.network_status()?];
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.started,
            kernel: self.kernel.clone(),
            features: self.features,
            node: self.config.node.name.clone(),
            networks,
        };
        self.status.write(&status)
    }

    fn network_status(&mut self) -> anyhow::Result<NetworkStatus> {
        let (mut attach, mut pods_attached, mut endpoints) = (None, 0, 0);
        if let Some(datapath) = &mut self.datapath {
            attach = Some(if datapath.features().tcx { "tcx" } else { "clsact" }.to_owned());
            let state = datapath.observe().context("cannot observe the fast path")?;
            pods_attached = state.attachments.iter().filter(|a| a.hook == Hook::PodEgress).count();
            endpoints = state.endpoints.len();
        }
        let (network, underlay) = (&self.config.network, self.underlays.first());
        let address = |vtep: IpAddr| {
            let over = |u: &&Underlay| u.address.is_ipv4() == vtep.is_ipv4();
            self.underlays.iter().find(over).map(|u| u.address)
        };
        let ipsec = |vtep: IpAddr| {
            address(vtep).is_some_and(|own| plan::ipsec(&self.policies, own, vtep, network.port) != 0)
        };
        let hooked = |foreign: &Foreign| HookedStatus {
            interface: self.interface_name(foreign.ifindex),
            what: foreign.to_string(),
        };
        let node = |node: &Node| NodeStatus {
            ipsec: ipsec(node.vtep),
            name: node.name.clone(),
            vtep: node.vtep,
            mac: node.mac,
            subnets: node.subnets.clone(),
        };
        Ok(NetworkStatus {
            name: network.name.clone(),
            vni: network.vni,
            port: network.port,
            mode: network.fastpath,
            attach,
            xdp: self.xdp.as_ref().map(|placed| match placed {
                Ok(place) => format!("native on {}", place.name),
                Err(reason) => format!("no: {reason}"),
            }),
            guard: self.guarded(),
            device: self.config.device_over(self.cluster.own.vtep).to_owned(),
            mac: self.cluster.own.mac,
            mtu: underlay.map(|u| u.inner_mtu),
            underlay: underlay.map(|u| u.name.clone()),
            address: underlay.map(|u| u.address),
            subnets: self.cluster.own_subnets(),
            meters: self.ruleset.meters.iter().map(ToString::to_string).collect(),
            nodes: self.cluster.remotes.values().map(node).collect(),
            hooked: self.hooked.iter().map(hooked).collect(),
            pods_attached,
            endpoints,
            files: self.files.clone(),
            reload_error: self.reload_error.clone(),
            plan_error: self.plan_error.clone(),
            retrying: self.retries.status(),
        })
    }
}
