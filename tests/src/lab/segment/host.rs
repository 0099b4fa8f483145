//! Hosts of a segment: a namespace with one interface, `eth0`, at a bridge.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Result, ensure};
use aya::programs::{SchedClassifier, TcAttachType};

use super::{Card, SegmentNode, SegmentSpec, TenantSpec, build};
use crate::lab::site::Site;
use crate::lab::traffic::{Cable, frames, inject};
use crate::lab::{Family, Netns, addr, wait_until};

/// A host; dereferences to its namespace. Its interface is `eth0`.
pub struct Host {
    /// `red-1-1`, …: tenant, and the node and number that it was made with.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// The node that it is at.
    pub node: u8,
    /// IPv4 address.
    pub ip4: Ipv4Addr,
    /// IPv6 address.
    pub ip6: Ipv6Addr,
    /// MAC of `eth0`.
    pub mac: [u8; 6],
    /// Its port at the bridge: name of an interface of its node.
    pub port: String,
    bridge: String,
    cable: Option<Cable>,
    ns: Netns,
}

/// How a host tells that it has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// An ARP request for its own address.
    GratuitousArp,
    /// A RARP request, as a virtual machine monitor sends it for the machine.
    Rarp,
}

impl Host {
    /// Both addresses.
    pub fn ips(&self) -> [IpAddr; 2] {
        [self.ip4.into(), self.ip6.into()]
    }

    /// The address of one family.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.ip4.into(),
            Family::V6 => self.ip6.into(),
        }
    }

    /// Its card's cable, if that is a tap.
    pub fn cable(&self) -> Option<&Cable> {
        self.cable.as_ref()
    }

    /// Broadcasts where it is.
    ///
    /// # Errors
    /// Its interface does not take the frame.
    pub fn announce(&self, how: Announcement) -> Result<()> {
        let frame = match how {
            Announcement::GratuitousArp => frames::gratuitous_arp(self.mac, self.ip4),
            Announcement::Rarp => frames::rarp(self.mac),
        };
        inject(self, "eth0", &frame)
    }

    /// Takes its port from one node to another.
    pub(super) fn move_between(&self, old: &SegmentNode, new: &SegmentNode) -> Result<()> {
        ensure!(self.cable.is_none(), "{} has a tap: only veths move", self.name);
        ensure!(old.name != new.name, "{} is at {} already", self.name, new.name);
        let port = &self.port;
        old.ip(&format!("link set {port} netns {}\n", new.namespace()))?;
        // Unlike a cable, the interface takes along the programs of the agent at its old node until that misses it.
        wait_until("the old node lets go of the port", Duration::from_secs(5), || {
            programs_at(new, port) == 0
        })?;
        new.ip(&format!("link set {port} master {} up\n", self.bridge))?;
        self.wait_up(new)
    }

    /// Waits until its link to `node` is up at both ends: what it sends before is lost. And until it listens to who asks
    /// for its IPv6 address, which the kernel leaves to a worker (`addrconf_dad_work`, v6.18).
    pub(super) fn wait_up(&self, node: &SegmentNode) -> Result<()> {
        // A tap has no state of its own.
        let is_up = |shown: String| shown.contains(" state UP ") || self.cable.is_some();
        let group = solicited(self.ip6).to_string();
        let listens = |shown: String| shown.split_whitespace().any(|word| word == group);
        let forwards = || node.sh(&format!("ip -d -o link show dev {}", self.port));
        wait_until(&format!("the link of {} is up", self.name), Duration::from_secs(5), || {
            self.sh("ip -o link show dev eth0").is_ok_and(is_up)
                && forwards().is_ok_and(|shown| shown.contains("bridge_slave state forwarding"))
                && self.sh("ip -6 maddr show dev eth0").is_ok_and(listens)
        })
    }
}

/// The group that neighbours of `ip` ask for it (RFC 4291, 2.7.1).
fn solicited(ip: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = ip.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | (high & 0xff), low)
}

/// How many TCX programs look at what comes in by an interface.
fn programs_at(ns: &Netns, interface: &str) -> usize {
    ns.run(|| {
        let index = nix::net::if_::if_nametoindex(interface).unwrap_or_default();
        SchedClassifier::query_tcx(index, TcAttachType::Ingress).map_or(0, |(_, programs)| programs.len())
    })
}

impl Deref for Host {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

/// Makes host `h` of a tenant on node `n`.
pub(super) fn make(
    site: &Site,
    spec: &SegmentSpec,
    node: &SegmentNode,
    n: u8,
    tenant: &TenantSpec,
    h: u8,
) -> Result<Host> {
    let name = build::host_name(n, &tenant.name, h);
    let (ip4, ip6, mac) = (addr::segment4(n, h), addr::segment6(n, h), addr::station_mac(n, h));
    let (ns, port, bridge) = (site.namespace(&name)?, name.clone(), tenant.bridge());
    let (mtu, text) = (spec.host_mtu(), addr::mac_text(mac));
    let cable = match spec.card {
        Card::Veth => {
            node.ip(&format!(
                "link add {port} mtu {mtu} type veth peer name eth0 address {text} mtu {mtu} netns {}\n",
                ns.namespace()
            ))?;
            None
        }
        Card::Tap => {
            let cable = Cable::plug((node, &port), (&ns, "eth0"))?;
            node.ip(&format!("link set {port} mtu {mtu}\n"))?;
            ns.ip(&format!("link set eth0 address {text} mtu {mtu}\n"))?;
            Some(cable)
        }
    };
    node.ip(&format!("link set {port} master {bridge} up\n"))?;
    ns.ip(&format!("addr add {ip4}/16 dev eth0\naddr add {ip6}/64 dev eth0 nodad\nlink set eth0 up\n"))?;
    Ok(Host { name, tenant: tenant.name.clone(), node: n, ip4, ip6, mac, port, bridge, cable, ns })
}
