//! Carries out kernel changes and reads tables over rtnetlink.

use std::io;
use std::net::IpAddr;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, new_connection};

use super::diff::KernelChange;
use super::events::Touched;
use super::message::{self, Asked, Request};
use super::observed::vxlan_of;
use super::segment::has_others_ports;
use super::state::{Device, Headroom, OwnBridge, Route, Segment};
use super::tables::{Link, NextHop, Tables};
use super::{decode, next_hops, rules, sysctl};
use crate::net::{IfIndex, Mac};
use crate::ownership;

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Clone)]
pub struct Netlink {
    handle: Handle,
}

/// The vxlan device that changes are meant for.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name of the network, which what is made is marked with.
    pub network: String,
    /// Its name.
    pub name: String,
    /// Its alias.
    pub alias: String,
    /// Its index, where known.
    pub index: Option<IfIndex>,
}

impl Netlink {
    /// Opens a socket.
    pub fn open() -> anyhow::Result<Self> {
        let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Reads everything anew.
    pub async fn dump(&self) -> anyhow::Result<Tables> {
        self.dump_into(Tables::default()).await
    }

    /// As [`Netlink::dump`], with [`Tables::paths`].
    pub async fn dump_wide(&self) -> anyhow::Result<Tables> {
        self.dump_into(Tables { wide: true, ..Tables::default() }).await
    }

    async fn dump_into(&self, mut tables: Tables) -> anyhow::Result<Tables> {
        let mut touched = Touched::default();
        for dump in message::dumps() {
            let answers =
                self.request((dump, NLM_F_DUMP)).await.context("cannot read the kernel's tables")?;
            answers.iter().for_each(|answer| tables.notice(answer, &mut touched));
        }
        if tables.wide {
            tables.next_hops = next_hops::objects().await.context("cannot read next hop objects")?;
        }
        // A kernel without policy routing has no rules, and says so with an error.
        for answer in self.request((message::rules(), NLM_F_DUMP)).await.unwrap_or_default() {
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRule(rule)) = &answer.payload {
                tables.rules.push(rules::rule(rule));
            }
        }
        Ok(tables)
    }

    /// The next hop of what the vxlan device sends to `vtep`; `None` where there is none or the kernel
    /// chooses among several.
    pub async fn next_hop(&self, vtep: IpAddr, asked: &Asked) -> Option<NextHop> {
        let entry = self.route(message::query_route_entry(vtep, asked)).await?;
        if !decode::has_one_way(&entry) {
            return None;
        }
        let route = self.route(message::query_route(vtep, asked)).await?;
        decode::next_hop(&route, vtep)
    }

    /// The interface that leads to `ip`; of several the one that the kernel chooses.
    pub async fn interface_to(&self, ip: IpAddr) -> Option<IfIndex> {
        let route = self.route(message::query_any_route(ip)).await?;
        decode::next_hop(&route, ip).map(|hop| hop.ifindex)
    }

    async fn route(&self, query: Request) -> Option<RouteMessage> {
        let answers = self.request(query).await.ok()?;
        answers.into_iter().find_map(|answer| match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Some(route),
            _ => None,
        })
    }

    /// Index of the interface called `name`.
    pub async fn index_of(&self, name: &str) -> anyhow::Result<IfIndex> {
        Ok(self.link_named(name).await?.index)
    }

    async fn link_named(&self, name: &str) -> anyhow::Result<Link> {
        let link = self.link(message::link_named(name)).await;
        let link = link.with_context(|| format!("there is no interface {name}"))?;
        link.ok_or_else(|| anyhow!("there is no interface {name}"))
    }

    async fn link(&self, query: Request) -> io::Result<Option<Link>> {
        let answers = self.request(query).await?;
        let link = answers.iter().find_map(|answer| match &answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => decode::link(link),
            _ => None,
        });
        Ok(link)
    }

    /// Carries out `change` on the vxlan device that `target` names.
    pub async fn apply(&self, change: &KernelChange, target: &mut Target) -> anyhow::Result<()> {
        self.carry_out(change, target).await.with_context(|| format!("cannot {change}"))
    }

    async fn carry_out(&self, change: &KernelChange, target: &mut Target) -> anyhow::Result<()> {
        use KernelChange::*;
        match change {
            DeleteDevice(name) => {
                target.index = None;
                return self.delete_named(name).await;
            }
            CreateDevice(device) => {
                target.index = None;
                self.ack(message::create_device(device)).await.map_err(explain_create)?;
                return self.set_device(device, target).await;
            }
            SetDevice(device) => return self.set_device(device, target).await,
            AddHeadroom(bridge, headroom) => {
                return self.add_headroom(&target.network, *bridge, headroom).await;
            }
            SetHeadroom(bridge, headroom) => {
                let index = self.index_of(&ownership::headroom_name(*bridge)).await?;
                return Ok(self.ack(message::set_mtu(index, headroom.mtu.0)).await?);
            }
            RemoveHeadroom(bridge) => return self.delete_named(&ownership::headroom_name(*bridge)).await,
            CreateBridge(name, own) => {
                self.ack(message::create_bridge(name, own)).await.map_err(explain_bridge)?;
                return self.set_bridge(&target.network, name, own).await;
            }
            SetBridge(name, own) => return self.set_bridge(&target.network, name, own).await,
            RemoveBridge(name) => return self.remove_bridge(name, target.index).await,
            AddBridgeAddress(bridge, address) => {
                let index = self.index_of(bridge).await?;
                return Ok(self.ack(message::add_network_address(index, *address)).await?);
            }
            RemoveBridgeAddress(bridge, address) => {
                let index = self.index_of(bridge).await?;
                return Ok(absent_is_fine(self.ack(message::remove_network_address(index, *address)).await)?);
            }
            PutAnswer(bridge, ip, mac) => {
                let index = self.index_of(bridge).await?;
                return Ok(self.ack(message::put_marked_neighbour(index, *ip, *mac)).await?);
            }
            RemoveAnswer(bridge, ip) => {
                let index = self.index_of(bridge).await?;
                return Ok(absent_is_fine(self.ack(message::remove_neighbour(index, *ip)).await)?);
            }
            RemoveDirectRoute(to, route) => {
                let removed = self.ack(message::remove_direct_route(*to, route)).await;
                return Ok(absent_is_fine(removed)?);
            }
            RemoveRoute(to, Route { via, past: Some(oif), .. }) => {
                let removed = self.ack(message::remove_past_route(*oif, *to, *via)).await;
                return Ok(absent_is_fine(removed)?);
            }
            _ => {}
        }
        let device = match target.index {
            Some(index) => index,
            None => *target.index.insert(self.index_of(&target.name).await?),
        };
        let request = match change {
            AddAddress(ip) => message::add_address(device, *ip),
            RemoveAddress(ip) => message::remove_address(device, *ip),
            PutNeighbour(ip, mac) => message::put_neighbour(device, *ip, *mac),
            RemoveNeighbour(ip) => message::remove_neighbour(device, *ip),
            PutFdb(mac, vtep) => message::put_fdb(device, *mac, *vtep),
            RemoveFdb(mac) => message::remove_fdb(device, *mac),
            AddRoute(to, route) => message::add_route(device, *to, route),
            ReplaceRoute(to, route) => return Ok(self.replace_route(device, *to, route).await?),
            RemoveRoute(to, _) => message::remove_route(device, *to),
            AddFlood(vtep) => message::add_flood(device, *vtep),
            RemoveFlood(vtep) => message::remove_flood(device, *vtep),
            PutStation(mac, vtep) => return Ok(self.put_station(device, *mac, *vtep).await?),
            RemoveStation(mac) => return Ok(self.remove_station(device, *mac).await?),
            _ => return Ok(()),
        };
        let result = self.ack(request).await;
        Ok(if is_removal(change) { absent_is_fine(result) } else { result }?)
    }

    /// IPv6 refuses a gateway that another interface leads to, as it does while a route past the
    /// tunnel has the whole subnet. So the gateway gets a route of its own for that moment.
    async fn replace_route(&self, device: IfIndex, to: IpNetwork, route: &Route) -> io::Result<()> {
        let replaced = self.ack(message::replace_route(device, to, route)).await;
        let Err(refused) = &replaced else { return Ok(()) };
        if to.is_ipv4() || route.past.is_some() || refused.raw_os_error() != Some(nix::libc::EINVAL) {
            return replaced;
        }
        let gateway = IpNetwork::from(route.via);
        self.ack(message::put_link_route(device, gateway)).await?;
        let replaced = self.ack(message::replace_route(device, to, route)).await;
        absent_is_fine(self.ack(message::remove_route(device, gateway)).await)?;
        replaced
    }

    /// Takes our alias off the interface called `name`.
    pub async fn unmark(&self, name: &str) -> anyhow::Result<()> {
        let index = self.index_of(name).await?;
        let unmarked = self.ack(message::set_alias(index, "")).await;
        unmarked.with_context(|| format!("cannot take the alias off {name}"))
    }

    /// Alias first: from then on the device is recognised as ours whatever happens. What the overlay
    /// can do without never keeps the device from coming up.
    async fn set_device(&self, device: &Device, target: &Target) -> anyhow::Result<()> {
        let link = self.link_named(&device.name).await?;
        let index = link.index;
        self.ack(message::set_alias(index, &target.alias)).await?;
        // Setting even the same MAC drops all neighbours.
        if link.mac != device.mac {
            self.ack(message::set_mac(index, device.mac)).await?;
        }
        self.ack(message::set_mtu(index, device.mtu.0)).await?;
        if vxlan_of(&link).is_some_and(|vxlan| vxlan.headers(device.local.is_ipv6()) != device.headers) {
            self.ack(message::set_headers(index, &device.headers)).await?;
        }
        match &device.segment {
            Some(segment) => self.set_segment(&link, segment).await?,
            None => self.leave_bridge_of_ours(&link, &target.network).await?,
        }
        // Before it is up, because then the kernel has made its address already.
        let without_addresses = self.stop_made_up_addresses(index).await;
        self.ack(message::set_up(index)).await.map_err(explain_up)?;
        Ok(without_addresses?)
    }

    /// Makes the device the bridge's port.
    async fn set_segment(&self, link: &Link, segment: &Segment) -> anyhow::Result<()> {
        let Some(name) = &segment.bridge else { return Ok(()) };
        let bridge = self.index_of(name).await?;
        if link.master != Some(bridge) {
            self.ack(message::set_master(link.index, Some(bridge))).await?;
        }
        Ok(self.ack(message::set_suppress(link.index, segment.suppress)).await?)
    }

    /// Whatever else a routed network's device is a port of, an operator made it that.
    async fn leave_bridge_of_ours(&self, link: &Link, network: &str) -> io::Result<()> {
        let Some(master) = link.master else { return Ok(()) };
        let master = self.link(message::link_at(master)).await?;
        let alias = ownership::bridge_alias(network);
        match master.filter(|master| master.alias.as_ref() == Some(&alias)) {
            Some(_) => self.ack(message::set_master(link.index, None)).await,
            None => Ok(()),
        }
    }

    /// Alias first, as with the device.
    async fn set_bridge(&self, network: &str, name: &str, own: &OwnBridge) -> anyhow::Result<()> {
        let link = self.link_named(name).await?;
        self.ack(message::set_alias(link.index, &ownership::bridge_alias(network))).await?;
        if link.mac != own.mac {
            self.ack(message::set_mac(link.index, own.mac)).await?;
        }
        self.ack(message::set_mtu(link.index, own.mtu.0)).await?;
        // Whoever is on the segment could give this host another default route.
        let deaf = sysctl::ignore_advertisements(name);
        self.ack(message::set_up(link.index)).await?;
        deaf
    }

    /// Asks first whether somebody has made an interface its port.
    async fn remove_bridge(&self, name: &str, device: Option<IfIndex>) -> anyhow::Result<()> {
        let Ok(bridge) = self.index_of(name).await else { return Ok(()) };
        let mut tables = Tables::default();
        for link in self.request((message::links(), NLM_F_DUMP)).await? {
            tables.notice(&link, &mut Touched::default());
        }
        if has_others_ports(&tables, bridge, device) {
            tracing::info!(bridge = name, "the bridge stays: it has ports of others");
            return Ok(());
        }
        Ok(absent_is_fine(self.ack(message::delete_link(bridge)).await)?)
    }

    async fn put_station(&self, device: IfIndex, mac: Mac, vtep: IpAddr) -> io::Result<()> {
        for request in message::put_station(device, mac, vtep) {
            self.ack(request).await?;
        }
        Ok(())
    }

    async fn remove_station(&self, device: IfIndex, mac: Mac) -> io::Result<()> {
        for request in message::remove_station(device, mac) {
            match self.ack(request).await {
                // It is no bridge's port any more.
                Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {}
                result => absent_is_fine(result)?,
            }
        }
        Ok(())
    }

    /// A device whose MTU is below 1280 has no IPv6, and nothing to stop; should the MTU grow, the
    /// device shows as not ready, and this comes again.
    async fn stop_made_up_addresses(&self, index: IfIndex) -> io::Result<()> {
        if !sysctl::has_ipv6() {
            return Ok(());
        }
        match self.ack(message::set_no_made_up_addresses(index)).await {
            Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EAFNOSUPPORT as i32) => {
                tracing::debug!(interface = index.0, "the device has no IPv6");
                Ok(())
            }
            result => result,
        }
    }

    async fn add_headroom(&self, network: &str, bridge: IfIndex, headroom: &Headroom) -> anyhow::Result<()> {
        self.ack(message::create_headroom(bridge, headroom)).await?;
        let index = self.index_of(&ownership::headroom_name(bridge)).await?;
        Ok(self.ack(message::set_alias(index, &ownership::headroom_alias(network))).await?)
    }

    async fn delete_named(&self, name: &str) -> anyhow::Result<()> {
        match self.index_of(name).await {
            Ok(index) => Ok(absent_is_fine(self.ack(message::delete_link(index)).await)?),
            Err(_) => Ok(()),
        }
    }

    async fn ack(&self, request: Request) -> io::Result<()> {
        self.request(request).await.map(drop)
    }

    /// Sends a request and collects the answers; an error answer is an error.
    pub(super) async fn request(
        &self,
        (inner, flags): Request,
    ) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        let mut request = NetlinkMessage::from(inner);
        // Set requests never have both of these bits: there they mean replace and exclusive.
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        request.header.flags = NLM_F_REQUEST | flags | if dump { 0 } else { NLM_F_ACK };
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(io::Error::other)?;
        let mut collected = Vec::new();
        while let Some(answer) = answers.next().await {
            match &answer.payload {
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => collected.push(answer),
            }
        }
        Ok(collected)
    }
}

fn is_removal(change: &KernelChange) -> bool {
    use KernelChange::{RemoveAddress, RemoveFdb, RemoveFlood, RemoveNeighbour, RemoveRoute};
    matches!(change, RemoveAddress(_) | RemoveFdb(_) | RemoveFlood(_) | RemoveNeighbour(_) | RemoveRoute(..))
}

/// What is gone already need not be removed.
fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    use nix::errno::Errno;
    let absent = [Errno::ENOENT, Errno::ESRCH, Errno::EADDRNOTAVAIL, Errno::ENODEV].map(|e| Some(e as i32));
    match result {
        Err(error) if absent.contains(&error.raw_os_error()) => Ok(()),
        result => result,
    }
}

fn explain_create(error: io::Error) -> anyhow::Error {
    match error.raw_os_error().map(nix::errno::Errno::from_raw) {
        Some(nix::errno::Errno::EOPNOTSUPP) => {
            anyhow!("this kernel has no vxlan driver: load the module 'vxlan'")
        }
        Some(nix::errno::Errno::EEXIST) => {
            anyhow!("another vxlan device has this name, or this VNI on this UDP port: choose others")
        }
        _ => error.into(),
    }
}

fn explain_bridge(error: io::Error) -> anyhow::Error {
    match error.raw_os_error().map(nix::errno::Errno::from_raw) {
        Some(nix::errno::Errno::EOPNOTSUPP) => {
            anyhow!("this kernel has no bridges: load the module 'bridge'")
        }
        Some(nix::errno::Errno::EEXIST) => anyhow!("there is an interface of this name: choose another"),
        _ => error.into(),
    }
}

fn explain_up(error: io::Error) -> anyhow::Error {
    match error.raw_os_error().map(nix::errno::Errno::from_raw) {
        Some(nix::errno::Errno::EADDRINUSE) => {
            anyhow!("another program has its UDP port: choose another port")
        }
        _ => error.into(),
    }
}
