//! The kernel's part of the way, as far as it can be asked.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::entries;
use super::report::Fact;
use crate::kernel::{Netlink, Remote, Routed, Routing, Tables};
use crate::net::{IfIndex, Mac};

/// Netlink, and what it showed.
pub(super) struct Host {
    /// All tables.
    pub(super) tables: Tables,
    netlink: Netlink,
}

impl Host {
    pub(super) async fn read(netlink: Netlink) -> Result<Self> {
        Ok(Self { tables: netlink.dump().await?, netlink })
    }

    /// Where the kernel routes a packet, and what it was asked and said.
    pub(super) async fn routing(&self, packet: &Routed) -> Result<(Routing, Fact)> {
        let answer = self.netlink.routing(packet).await;
        let answer =
            answer.with_context(|| format!("cannot ask the kernel for the route to {}", packet.to))?;
        let mut key = format!("to {}", packet.to);
        key.extend(packet.from.map(|from| format!(" from {from}")));
        key.extend(packet.arrived_by.map(|index| format!(" arriving by {}", entries::interface(index.0))));
        let value = match answer {
            Routing::Local => "to this host".to_owned(),
            Routing::Nowhere(why) => why.to_owned(),
            Routing::Out { ifindex, via, mtu, .. } => {
                let via = via.map_or_else(|| "on-link".to_owned(), |via| format!("via {via}"));
                let mtu = mtu.map_or_else(String::new, |mtu| format!(", MTU {mtu}"));
                format!("{via} by {}{mtu}", entries::interface(ifindex.0))
            }
        };
        Ok((answer, Fact { table: "route", key, value }))
    }

    /// The MAC of a neighbour, if the kernel knows it.
    pub(super) fn neighbour(&self, ifindex: IfIndex, ip: IpAddr) -> (Option<Mac>, Fact) {
        let found = self.tables.neighbours.get(&(ifindex, ip));
        let value = match found {
            Some(entry) if entry.permanent => format!("{}, permanent", entry.mac),
            Some(entry) => entry.mac.to_string(),
            None => "not known: the kernel asks for it when there is a packet".to_owned(),
        };
        let key = format!("{ip} at {}", entries::interface(ifindex.0));
        (found.map(|entry| entry.mac), Fact { table: "neighbour", key, value })
    }

    /// Where a vxlan device sends frames to a MAC.
    pub(super) fn remote(&self, device: IfIndex, mac: Mac) -> (Option<&Remote>, Fact) {
        let found = self.tables.remotes.get(&(device, mac));
        let value = match found {
            Some(Remote { vtep: Some(vtep), .. }) => format!("VTEP {vtep}"),
            Some(_) => "a next hop object".to_owned(),
            None => "no entry".to_owned(),
        };
        let key = format!("{mac} at {}", entries::interface(device.0));
        (found, Fact { table: "FDB", key, value })
    }

    /// The port that a bridge sends frames to a MAC out of.
    pub(super) fn port(&self, bridge: IfIndex, mac: Mac) -> (Option<IfIndex>, Fact) {
        let found = self.tables.fdb_of(bridge).find(|(known, _, _)| *known == mac);
        let port = found.map(|(_, _, entry)| entry.port);
        let value = match found {
            Some((_, _, entry)) if entry.permanent => "the bridge itself".to_owned(),
            Some((_, _, entry)) => format!("port {}", entries::interface(entry.port.0)),
            None => "no entry".to_owned(),
        };
        let local = found.is_some_and(|(_, _, entry)| entry.permanent);
        let key = format!("{mac} at {}", entries::interface(bridge.0));
        (port.filter(|_| !local), Fact { table: "bridge", key, value })
    }

    /// The MAC of an interface.
    pub(super) fn mac(&self, ifindex: IfIndex) -> Mac {
        self.tables.links.get(&ifindex).map_or(Mac([0; 6]), |link| link.mac)
    }

    /// The MTU of an interface.
    pub(super) fn mtu(&self, ifindex: IfIndex) -> Option<u32> {
        self.tables.links.get(&ifindex).map(|link| link.mtu.0)
    }

    /// The interface called `name`.
    pub(super) fn named(&self, name: &str) -> Option<IfIndex> {
        self.tables.links.values().find(|link| link.name == name).map(|link| link.index)
    }

    /// The bridge that an interface is a port of.
    pub(super) fn bridge_of(&self, ifindex: IfIndex) -> Option<IfIndex> {
        let master = self.tables.links.get(&ifindex)?.master?;
        self.tables.bridges.contains_key(&master).then_some(master)
    }

    /// Whether this host has an address.
    pub(super) fn has(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.tables.addresses.iter().any(|address| address.ip == ip)
    }

    /// Whether hosts at a bridge reach `ip` without a router: it is in a subnet of the bridge's.
    pub(super) fn is_on_link(&self, bridge: IfIndex, ip: IpAddr) -> bool {
        let mut subnets = self
            .tables
            .addresses_of(bridge)
            .filter_map(|address| ipnetwork::IpNetwork::new(address.ip, address.prefix).ok());
        subnets.any(|subnet| subnet.contains(ip))
    }
}
