//! Where packets are routed: to VTEPs, to pods of this node, and elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::carve::without;
use super::device::Device;
use super::lookup::{Lookup, Met};
use crate::kernel::{Kind, Leads, Link, Odd, Path, Tables};
use crate::net::{IfIndex, Mac, is_host, is_link_local};

/// What the routing tables say.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Prefixes by the MAC of the VTEP that they lead to.
    pub(super) to_vteps: BTreeMap<Mac, Vec<IpNetwork>>,
    /// Prefixes of pods of this node.
    pub(super) local: Vec<IpNetwork>,
    /// Prefixes inside of those that lead elsewhere.
    pub(super) holes: BTreeSet<IpNetwork>,
    /// Why routes through the device are left to the kernel, a sentence each.
    pub(super) left: Vec<String>,
}

/// Looks through the routes.
struct Search<'a> {
    tables: &'a Tables,
    device: &'a Device,
    vteps: &'a BTreeMap<Mac, IpAddr>,
    found: Routes,
    /// VTEPs that routes lead to, and their MACs.
    macs: BTreeMap<IpAddr, Mac>,
    /// What leads neither to a VTEP nor to a pod.
    elsewhere: Vec<IpNetwork>,
    /// All prefixes of one IP version that packets meet.
    routed: BTreeSet<IpNetwork>,
}

impl Routes {
    /// Finds where packets are routed, if the MACs in `vteps` are those of VTEPs.
    pub(super) fn find(tables: &Tables, device: &Device, vteps: &BTreeMap<Mac, IpAddr>) -> Self {
        let (found, macs, elsewhere, routed) = (Self::default(), BTreeMap::new(), vec![], BTreeSet::new());
        let mut search = Search { tables, device, vteps, found, macs, elsewhere, routed };
        for v6 in [false, true] {
            search.look(v6);
        }
        search.carve();
        search.elsewhere.extend(tables.addresses.iter().map(|address| IpNetwork::from(address.ip)));
        search.finish()
    }
}

impl Search<'_> {
    /// Takes in the routes of one IP version.
    fn look(&mut self, v6: bool) {
        let lookup = Lookup::new(self.tables, v6);
        self.routed = lookup.routes.iter().map(|met| met.path.to).collect();
        self.name_tables(&lookup, v6);
        for Met { path, certain } in lookup.routes {
            if !certain {
                self.elsewhere.push(path.to);
            } else if self.is_through(&path) {
                self.take(&path);
            } else if is_to_pods(self.tables, self.device, &path) {
                self.found.local.push(path.to);
            } else {
                self.elsewhere.push(path.to);
            }
        }
    }

    /// Says what rules keep from the short cut, if any route leads through the device.
    fn name_tables(&mut self, lookup: &Lookup<'_>, v6: bool) {
        let of_version = self.tables.paths.iter().filter(|path| path.to.is_ipv6() == v6);
        let through = of_version.filter(|path| self.is_through(&self.tables.resolved(path)));
        let tables: BTreeSet<u32> = through.map(|path| path.table).collect();
        if tables.is_empty() {
            return;
        }
        self.found.left.extend(lookup.left.iter().cloned());
        let version = if v6 { "IPv6" } else { "IPv4" };
        for table in tables.difference(&lookup.tables) {
            self.leave(format!(
                "{version}: the routes in table {table}, which rules lead to by marks, or not at all"
            ));
        }
    }

    fn is_through(&self, path: &Path) -> bool {
        path.legs.contains(&self.device.index)
    }

    /// Takes in a route through the device.
    fn take(&mut self, path: &Path) {
        let to = path.to;
        let own = is_host(&to) && self.tables.addresses_of(self.device.index).any(|a| a.ip == to.ip());
        if own || is_link_local(to.ip()) || to.ip().is_multicast() {
            return;
        }
        let done = match path.leads {
            Leads::Oddly(odd) => Err(odd.to_string()),
            Leads::Plainly { .. } if self.is_one_of_several(path) => Err(Odd::Several.to_string()),
            Leads::Plainly { .. } if to.prefix() == 0 => Err("it is the default route".to_owned()),
            Leads::Plainly { via: Some(gateway) } => self.lead(to, gateway),
            Leads::Plainly { via: None } => {
                self.take_neighbours(to);
                self.elsewhere.push(to);
                return;
            }
        };
        if let Err(reason) = done {
            self.leave(format!("the route to {to}: {reason}"));
            self.elsewhere.push(to);
        }
    }

    /// IPv4 keeps routes of one metric side by side, and takes the first.
    fn is_one_of_several(&self, path: &Path) -> bool {
        let same = |other: &&Path| (other.to, other.priority) == (path.to, path.priority);
        let from = Path::first(path.table, path.to);
        self.tables.paths.range(from..).take_while(|other| other.to == path.to).filter(same).count() > 1
    }

    /// Leads `to` to the VTEP that the neighbour `gateway` is behind.
    fn lead(&mut self, to: IpNetwork, gateway: IpAddr) -> Result<(), String> {
        let neighbour = self.tables.neighbours.get(&(self.device.index, gateway));
        let Some(neighbour) = neighbour else {
            return Err(format!("{} has no neighbour {gateway}", self.device.name));
        };
        if !neighbour.lasting {
            return Err(format!("the neighbour {gateway} has been learnt, and the kernel has to ask for it"));
        }
        let mac = neighbour.mac;
        let Some(vtep) = self.vteps.get(&mac) else {
            return Err(format!("{mac} has no lasting forwarding entry with one plain VTEP"));
        };
        match self.macs.insert(*vtep, mac) {
            Some(other) if other != mac => {
                self.macs.insert(*vtep, other);
                return Err(format!("the VTEP {vtep} has another MAC besides, {other}"));
            }
            _ => {}
        }
        self.found.to_vteps.entry(mac).or_default().push(to);
        Ok(())
    }

    /// Leads to each lasting neighbour on the link `to`.
    fn take_neighbours(&mut self, to: IpNetwork) {
        let all = self.tables.neighbours.range((self.device.index, IpAddr::from([0; 4]))..);
        let on_link = all
            .take_while(|((device, _), _)| *device == self.device.index)
            .filter(|((_, ip), neighbour)| neighbour.lasting && to.contains(*ip))
            .map(|((_, ip), _)| *ip)
            .collect::<Vec<_>>();
        for ip in on_link {
            let nearest = covering(ip.into(), |prefix| self.routed.contains(prefix)).last();
            if nearest == Some(to)
                && let Err(reason) = self.lead(ip.into(), ip)
            {
                self.leave(format!("the neighbour {ip}: {reason}"));
            }
        }
        self.leave(format!(
            "the route to {to}: but for lasting neighbours, the kernel has to ask who is there"
        ));
    }

    fn leave(&mut self, reason: String) {
        self.found.left.push(reason);
    }

    /// Takes out of the pods' prefixes what leads elsewhere, or to VTEPs: what arrives for that is the kernel's.
    fn carve(&mut self) {
        let to_vteps = self.found.to_vteps.values().flatten();
        let others: Vec<IpNetwork> = self.elsewhere.iter().chain(to_vteps).copied().collect();
        let local = std::mem::take(&mut self.found.local);
        self.found.local = local.into_iter().flat_map(|prefix| without(prefix, &others)).collect();
    }

    /// Of what leads elsewhere, that counts which lies inside of what does not.
    fn finish(self) -> Routes {
        let Self { mut found, elsewhere, .. } = self;
        let taken: BTreeSet<IpNetwork> = found.to_vteps.values().flatten().copied().collect();
        // Of the addresses of hosts with many devices, most are not even of a length that could matter.
        let lengths: BTreeSet<(bool, u8)> = taken.iter().map(|to| (to.is_ipv6(), to.prefix())).collect();
        let inside = |to: &IpNetwork| {
            let mut shorter = lengths.range((to.is_ipv6(), 0)..(to.is_ipv6(), to.prefix()));
            shorter.any(|(_, length)| shortened(*to, *length).is_some_and(|prefix| taken.contains(&prefix)))
                && !taken.contains(to)
        };
        found.holes = elsewhere.into_iter().filter(inside).collect();
        found
    }
}

/// Prefixes that cover `to`, itself among them, and are wanted: the longest comes last.
pub(super) fn covering(
    to: IpNetwork,
    wanted: impl Fn(&IpNetwork) -> bool,
) -> impl Iterator<Item = IpNetwork> {
    (0..=to.prefix()).filter_map(move |length| shortened(to, length)).filter(move |prefix| wanted(prefix))
}

/// The prefix of this length that covers `to`.
fn shortened(to: IpNetwork, length: u8) -> Option<IpNetwork> {
    let prefix = IpNetwork::new(to.ip(), length).ok()?;
    IpNetwork::new(prefix.network(), length).ok()
}

/// Whether a route leads to pods of this node: to a bridge that has some, or to the only one behind a veth.
fn is_to_pods(tables: &Tables, device: &Device, path: &Path) -> bool {
    let (Leads::Plainly { via: None }, [leg]) = (&path.leads, path.legs.as_slice()) else { return false };
    let Some(link) = tables.links.get(leg) else { return false };
    let unusual = is_link_local(path.to.ip()) || path.to.ip().is_multicast() || path.to.prefix() == 0;
    let to_pods = match link.kind {
        Kind::Bridge => tables.ports_of(*leg).any(|port| is_pods(port, device.underlay.ifindex)),
        _ => link.master.is_none() && is_host(&path.to) && is_pods(link, device.underlay.ifindex),
    };
    to_pods && !unusual
}

fn is_pods(link: &Link, underlay: IfIndex) -> bool {
    link.kind == Kind::Veth && link.peer_elsewhere && link.index != underlay
}
