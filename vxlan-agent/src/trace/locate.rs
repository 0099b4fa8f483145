//! Where a packet comes in: who is SRC?

use std::net::IpAddr;

use anyhow::Result;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{
    Endpoint, Kind, LOCAL_VTEP, LocalVtep, Network, NetworkId, Station, Vtep, VtepId,
};

use super::frame::{self, Outer};
use super::host::Host;
use super::question::{End, Question};
use super::{Unanswerable, entries};
use crate::datapath::{Attachment, DatapathState};
use crate::kernel::{Routed, Routing};
use crate::net::{IfIndex, Mac};

/// Where a packet begins its way through this node.
#[derive(Debug)]
pub(super) enum Start {
    /// A pod sends it; it comes out of the host side of its veth.
    Pod { ifindex: IfIndex, bytes: Vec<u8> },
    /// This host sends it.
    Host,
    /// It arrives on the underlay, in its tunnel.
    Underlay { ifindex: IfIndex, bytes: Vec<u8> },
    /// A station behind this port sends it.
    Port { ifindex: IfIndex, bytes: Vec<u8> },
}

/// Where `question`'s packet comes in.
pub(super) async fn start(
    host: &Host,
    state: &DatapathState,
    networks: &[NetworkId],
    question: &Question,
) -> Result<Start> {
    let place = Place { host, state, networks, question };
    match (question.source, question.destination) {
        (End::Mac(from), End::Mac(to)) => place.station(from, to),
        _ => {
            let (from, to) = frame::addresses(question)?;
            place.address(from, to).await
        }
    }
}

/// A network, and who in it has the subnet of `ip`.
pub(super) fn owner<'s>(
    state: &'s DatapathState,
    networks: &[NetworkId],
    ip: IpAddr,
) -> Option<(&'s Network, VtepId)> {
    let holding =
        state.routes.iter().filter(|((id, prefix), _)| networks.contains(id) && prefix.contains(ip));
    let ((network, _), id) = holding.max_by_key(|((_, prefix), _)| prefix.prefix())?;
    Some((state.networks.get(network)?, *id))
}

struct Place<'a> {
    host: &'a Host,
    state: &'a DatapathState,
    networks: &'a [NetworkId],
    question: &'a Question,
}

fn unanswerable<T>(text: String) -> Result<T> {
    Err(Unanswerable(text).into())
}

impl Place<'_> {
    async fn address(&self, from: IpAddr, to: IpAddr) -> Result<Start> {
        if let Some(name) = &self.question.interface {
            return self.at_interface(name, from, to).await;
        }
        let pod = self.state.endpoints.iter().find(|((id, ip), _)| self.networks.contains(id) && *ip == from);
        if let Some((_, endpoint)) = pod {
            return self.pod(IfIndex(endpoint.ifindex), Some(endpoint), to);
        }
        if self.host.has(from) {
            return Ok(Start::Host);
        }
        match owner(self.state, self.networks, from) {
            Some((network, LOCAL_VTEP)) => self.unknown_pod(network, from, to).await,
            Some((network, id)) => self.remote(network, id, None),
            None => unanswerable(format!(
                "{from} is no pod, no address of this node and in no other node's subnet: \
                 say with --in by which interface the packet comes in"
            )),
        }
    }

    async fn at_interface(&self, name: &str, from: IpAddr, to: IpAddr) -> Result<Start> {
        let Some(ifindex) = self.host.named(name) else {
            return unanswerable(format!("there is no interface {name}"));
        };
        let is_underlay = |end: &LocalVtep| end.ifindex == ifindex.0;
        let underlay =
            self.networks().find(|network| is_underlay(&network.local4) || is_underlay(&network.local6));
        if let Some(network) = underlay {
            let sender = match self.question.vtep {
                Some(vtep) => self.vtep_at(network.id, vtep),
                None => {
                    owner(self.state, self.networks, from).map(|(_, id)| id).filter(|id| *id != LOCAL_VTEP)
                }
            };
            return match (sender, self.question.vtep) {
                (Some(id), _) => self.remote(network, id, self.question.vtep),
                (None, Some(stranger)) => self.arriving(network, None, stranger),
                (None, None) => unanswerable(format!("no node has {from}: say with --vtep which one sends")),
            };
        }
        let attached = |hook| self.state.attachments.contains(&Attachment { hook, ifindex: ifindex.0 });
        let endpoint = self.state.endpoints.values().find(|endpoint| endpoint.ifindex == ifindex.0);
        if endpoint.is_some() || attached(Hook::PodEgress) {
            return self.pod(ifindex, endpoint, to);
        }
        unanswerable(format!("{name} is neither the host side of a pod's veth nor the underlay of a network"))
    }

    fn networks(&self) -> impl Iterator<Item = &Network> {
        self.state.networks.values().filter(|network| self.networks.contains(&network.id))
    }

    fn vtep_at(&self, network: NetworkId, address: IpAddr) -> Option<u32> {
        let mut ids = self.state.vtep_ids.iter();
        ids.find(|(key, _)| key.network == network && IpAddr::from(key.addr) == address).map(|(_, id)| *id)
    }

    /// A pod at this veth. Whom it addresses its frame to is its own affair; that is what the subnet of its bridge
    /// and its gateway make likely.
    fn pod(&self, ifindex: IfIndex, endpoint: Option<&Endpoint>, to: IpAddr) -> Result<Start> {
        let bridge = self.host.bridge_of(ifindex);
        let gateway = bridge.map_or_else(|| self.host.mac(ifindex), |bridge| self.host.mac(bridge));
        let (mac, gateway) = match endpoint {
            Some(endpoint) => (Mac(endpoint.mac), Mac(endpoint.gateway_mac)),
            None => (self.mac_behind(ifindex)?, gateway),
        };
        let neighbour = bridge.filter(|bridge| self.host.is_on_link(*bridge, to) && !self.host.has(to));
        let neighbour = neighbour.and_then(|bridge| self.host.tables.neighbours.get(&(bridge, to)));
        let receiver = neighbour.map_or(gateway, |neighbour| neighbour.mac);
        let bytes = frame::build(self.question, (mac, receiver), 0)?;
        Ok(Start::Pod { ifindex, bytes })
    }

    /// The MAC behind a veth whose pod the programs do not know.
    fn mac_behind(&self, ifindex: IfIndex) -> Result<Mac> {
        let fdb = self.host.tables.fdb.iter();
        let mut learnt = fdb.filter(|(_, entry)| entry.port == ifindex && !entry.permanent);
        let known = learnt.next().map(|((_, mac, _), _)| *mac);
        let neighbours = self.host.tables.neighbours.iter();
        let routed =
            || neighbours.clone().find(|((index, _), _)| *index == ifindex).map(|(_, entry)| entry.mac);
        match known.or_else(routed) {
            Some(mac) => Ok(mac),
            None => unanswerable(format!(
                "no MAC is known behind {}: the pod has said nothing yet",
                entries::interface(ifindex.0)
            )),
        }
    }

    /// An address of this node's subnets that the programs do not know: the kernel may.
    async fn unknown_pod(&self, network: &Network, from: IpAddr, to: IpAddr) -> Result<Start> {
        let asked = Routed { from: None, to: from, arrived_by: None, protocol: 0, ports: None, tos: 0 };
        let nobody = || {
            let name = network.name().unwrap_or("?");
            format!("{from} is in this node's subnet of network {name}, but no pod that it knows")
        };
        let (Routing::Out { ifindex, .. }, _) = self.host.routing(&asked).await? else {
            return unanswerable(nobody());
        };
        let (mac, _) = self.host.neighbour(ifindex, from);
        let port = mac.and_then(|mac| self.host.port(ifindex, mac).0);
        match (mac, port.or(Some(ifindex))) {
            (Some(_), Some(port)) => self.pod(port, None, to),
            _ => unanswerable(nobody()),
        }
    }

    /// A packet of a pod of another node, from that or, if it is given, from another VTEP.
    fn remote(&self, network: &Network, id: u32, vtep: Option<IpAddr>) -> Result<Start> {
        let Some(sender) = self.state.vteps.get(&id) else {
            return unanswerable(format!("VTEP {id}, which has that subnet, is not programmed"));
        };
        self.arriving(network, Some(sender), vtep.unwrap_or_else(|| sender.addr.into()))
    }

    fn arriving(&self, network: &Network, sender: Option<&Vtep>, vtep: IpAddr) -> Result<Start> {
        let local = local(network, vtep)?;
        let inner_mac = sender.map_or(Mac([2, 0, 0, 0, 0, 1]), |sender| Mac(sender.mac));
        let inner = frame::build(self.question, (inner_mac, Mac(local.mac)), 1)?;
        let (ifindex, bytes) = self.outer(network, &local, sender, vtep, &inner)?;
        Ok(Start::Underlay { ifindex, bytes })
    }

    fn outer(
        &self,
        network: &Network,
        local: &LocalVtep,
        sender: Option<&Vtep>,
        vtep: IpAddr,
        inner: &[u8],
    ) -> Result<(IfIndex, Vec<u8>)> {
        let ifindex = IfIndex(local.ifindex);
        let hop = sender.and_then(|sender| entries::next_hop(&sender.next_hop)).unwrap_or(vtep);
        let from = self.host.tables.neighbours.get(&(ifindex, hop));
        // Nobody looks at it.
        let from = from.map_or(Mac([2, 0, 0, 0, 0, 2]), |neighbour| neighbour.mac);
        let macs = (from, self.host.mac(ifindex));
        let outer =
            Outer { macs, ends: (vtep, local.addr.into()), port: network.port().get(), vni: network.vni };
        Ok((ifindex, outer.around(inner)?))
    }

    /// A station of a bridged network.
    fn station(&self, from: Mac, to: Mac) -> Result<Start> {
        let macs = (from, to);
        if let Some(name) = &self.question.interface {
            let Some(ifindex) = self.host.named(name) else {
                return unanswerable(format!("there is no interface {name}"));
            };
            let bytes = frame::build(self.question, macs, 0)?;
            return Ok(Start::Port { ifindex, bytes });
        }
        let segments = self.networks().filter(|network| network.kind == Kind::L2 as u8);
        for network in segments {
            let known = self.state.stations.iter();
            let station = known
                .filter(|(key, _)| key.network == network.id && key.mac == from.0 && key.vlan == 0)
                .map(|(_, station)| station)
                .next();
            match station {
                Some(Station { ifindex, .. }) if *ifindex != 0 => {
                    let bytes = frame::build(self.question, macs, 0)?;
                    return Ok(Start::Port { ifindex: IfIndex(*ifindex), bytes });
                }
                Some(station) => {
                    let Some(sender) = self.state.vteps.get(&station.vtep) else { continue };
                    let vtep = self.question.vtep.unwrap_or_else(|| sender.addr.into());
                    let local = local(network, vtep)?;
                    let inner = frame::build(self.question, macs, 0)?;
                    let (ifindex, bytes) = self.outer(network, &local, Some(sender), vtep, &inner)?;
                    return Ok(Start::Underlay { ifindex, bytes });
                }
                None => {}
            }
        }
        unanswerable(format!(
            "no station {from} is known in a bridged network: say with --in behind which port it is"
        ))
    }
}

/// This node's end for packets of the VTEP `vtep`.
fn local(network: &Network, vtep: IpAddr) -> Result<LocalVtep> {
    let local = if vtep.is_ipv4() { network.local4 } else { network.local6 };
    if local.ifindex == 0 {
        return unanswerable(format!("this node has no end of the tunnel towards {vtep}"));
    }
    Ok(local)
}
