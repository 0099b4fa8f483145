//! What this node has to do to have a subnet of its own, and keep it: pure.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use vxlan_ebpf_common::maps::Family;

use super::layout::{Attributes, Entries, Entry, Subnets};
use super::range::Network;
use crate::cluster::{Viewer, derive_mac};
use crate::local::Local;
use crate::net::family;
use crate::source::kubernetes::annotations::{BackendData, VXLAN};

/// How long a lease lasts without being renewed, as flannel has it.
pub(super) const TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// This node, as far as a claim depends on it.
#[derive(Clone, Debug)]
pub(super) struct Claimant<'a> {
    /// Name and VNI.
    pub viewer: &'a Viewer,
    /// Underlay addresses that others send to, instead of those that the machine has.
    pub public: &'a [IpAddr],
    /// The machine.
    pub local: &'a Local,
    /// What it had before, from this run or an earlier one.
    pub previous: Option<Subnets>,
    /// What it wrote last, and where: its own even when its address is another one by now.
    pub written: Option<&'a (String, Attributes)>,
    /// The lease that is known to live.
    pub lease: Option<Lease>,
}

/// A lease that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    /// Its number.
    pub id: i64,
    /// When to renew it.
    pub renew: Instant,
}

impl Lease {
    /// A lease that ends after `ttl` unless it is renewed; that is done `margin` before, and for one
    /// that is shorter than that, at half of its time.
    pub(super) fn new(id: i64, ttl: Duration, margin: Duration, now: Instant) -> Self {
        Self { id, renew: now + ttl.checked_sub(margin).filter(|left| !left.is_zero()).unwrap_or(ttl / 2) }
    }
}

/// What to do next. All but the last two are transactions: they fail, and change nothing, if
/// somebody else was faster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Make this key, which nobody has.
    Create(Subnets, Attributes),
    /// Write the key again.
    Write(OwnKey),
    /// Give the key up, and why.
    Remove(OwnKey, &'static str),
    /// Renew the key's lease.
    Renew(OwnKey),
    /// Nothing: the key says what it should, and stays.
    Stand(OwnKey),
}

/// This node's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnKey {
    /// Its last part.
    pub name: String,
    /// The subnets in it.
    pub subnets: Subnets,
    /// What it should say.
    pub attributes: Attributes,
    /// Revision that changed it last.
    pub seen: i64,
    /// The lease that it ends with; 0 for none, because an operator has made it to stay.
    pub lease: i64,
}

impl Claimant<'_> {
    /// What to do, given all that is in etcd.
    ///
    /// # Errors
    /// One sentence: why this node cannot have a subnet.
    pub(super) fn step(
        &self,
        network: &Network,
        entries: &Entries,
        now: Instant,
        random: u64,
    ) -> Result<Step, String> {
        let own = self.own(network, entries);
        let attributes = self.attributes(network, own.map(|(_, entry)| entry))?;
        let Some((key, entry)) = own else {
            let taken: Vec<Subnets> = entries.values().map(|entry| entry.subnets).collect();
            return Ok(Step::Create(self.choose(network, &taken, random)?, attributes));
        };
        let (lease, seen, subnets) = (entry.lease, entry.changed, entry.subnets);
        let own = OwnKey { name: key.clone(), subnets, attributes, seen, lease };
        if !network.fits(&subnets) {
            return Ok(Step::Remove(own, "it is not one of the network's subnets"));
        }
        let older = |other: &Entry| other.created < entry.created && other.subnets.overlap(&subnets);
        if entries.values().any(older) {
            return Ok(Step::Remove(own, "somebody else had a part of it before"));
        }
        let is_alive = |known: Lease| known.id == lease && now < known.renew;
        if lease != 0 && !self.lease.is_some_and(is_alive) {
            return Ok(Step::Renew(own));
        }
        let holds = entry.attributes.as_ref() == Ok(&own.attributes);
        Ok(if holds { Step::Stand(own) } else { Step::Write(own) })
    }

    /// This node's key: what it has written, then what has its address, and of those one that fits
    /// before one that does not.
    fn own<'e>(&self, network: &Network, entries: &'e Entries) -> Option<(&'e String, &'e Entry)> {
        let written = self.written.and_then(|(key, attributes)| {
            let found = entries.get_key_value(key)?;
            (found.1.attributes.as_ref() == Ok(attributes)).then_some(found)
        });
        let addresses = self.addresses(Family::V4);
        let has_own_address = |(_, entry): &(&String, &Entry)| {
            let public_ip = entry.attributes.as_ref().ok().and_then(|attributes| attributes.public_ip);
            public_ip.is_some_and(|ip| addresses.contains(&ip.into()))
        };
        let rank = |(_, entry): &(&String, &Entry)| {
            (!network.fits(&entry.subnets), self.previous != Some(entry.subnets), entry.created)
        };
        written.or_else(|| entries.iter().filter(has_own_address).min_by_key(rank))
    }

    fn choose(&self, network: &Network, taken: &[Subnets], random: u64) -> Result<Subnets, String> {
        let free = |previous: &Subnets| network.fits(previous) && !taken.iter().any(|t| t.overlap(previous));
        match self.previous.filter(free) {
            Some(previous) => Ok(previous),
            None => network.choose(taken, random),
        }
    }

    /// Addresses that others may know this node by, the likeliest first.
    fn addresses(&self, wanted: Family) -> Vec<IpAddr> {
        let public: Vec<IpAddr> = self.public.iter().copied().filter(|ip| family(*ip) == wanted).collect();
        if public.is_empty() { self.local.side(wanted).addresses.clone() } else { public }
    }

    /// What the key should say. Address and MAC are those that the others know, as long as they are
    /// true; neither changes with a restart.
    fn attributes(&self, network: &Network, own: Option<&Entry>) -> Result<Attributes, String> {
        let known = own.and_then(|entry| entry.attributes.as_ref().ok());
        let address = |wanted, known: Option<IpAddr>| {
            let addresses = self.addresses(wanted);
            let chosen = known.filter(|ip| addresses.contains(ip)).or_else(|| addresses.first().copied());
            chosen.ok_or_else(|| {
                let version = if wanted == Family::V4 { "IPv4" } else { "IPv6" };
                let interface = self.local.interface.as_deref().unwrap_or("no interface");
                format!("{interface} has no {version} address, which the network in etcd runs over")
            })
        };
        let data = |family, known: Option<BackendData>, name: &str| {
            let vni = self.viewer.vni;
            let known = known.filter(|data| data.vni.is_none_or(|other| other == vni)).map(|data| data.mac);
            let known = known.filter(|mac| mac.is_station()).or(self.local.side(family).mac);
            Some(BackendData { vni: Some(vni), mac: known.unwrap_or_else(|| derive_mac(name, vni)) })
        };
        let name = &self.viewer.node;
        let mut attributes = Attributes { backend: VXLAN.to_owned(), ..Attributes::default() };
        if let IpAddr::V4(ip) = address(Family::V4, known.and_then(|k| k.public_ip).map(IpAddr::from))? {
            attributes.public_ip = Some(ip);
            attributes.v4 = data(Family::V4, known.and_then(|k| k.v4), name);
        }
        if !network.is_dual() {
            return Ok(attributes);
        }
        if let IpAddr::V6(ip) = address(Family::V6, known.and_then(|k| k.public_ipv6).map(IpAddr::from))? {
            attributes.public_ipv6 = Some(ip);
            attributes.v6 = data(Family::V6, known.and_then(|k| k.v6), &format!("{name}/6"));
        }
        Ok(attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::tests::{attributes, entry};
    use super::super::range::tests::network;
    use super::*;
    use crate::local::LocalSide;
    use crate::net::{Mac, Vni};

    fn local(n: u8) -> Local {
        let side = LocalSide { addresses: vec![[192, 0, 2, n].into()], mac: None };
        Local { interface: Some("eth0".into()), v4: side, v6: LocalSide::default() }
    }

    struct World {
        viewer: Viewer,
        local: Local,
        entries: Entries,
        previous: Option<Subnets>,
        written: Option<(String, Attributes)>,
        lease: Option<Lease>,
        network: Network,
        now: Instant,
    }

    impl World {
        /// Node 1 among `entries`.
        fn of(entries: impl IntoIterator<Item = (String, Entry)>) -> Self {
            let viewer = Viewer {
                node: "n1".into(),
                network: "pods".into(),
                l2: false,
                vni: Vni::try_from(1).expect("in range"),
            };
            let (network, now) = (network("").expect("valid"), Instant::now());
            let (entries, local) = (entries.into_iter().collect(), local(1));
            Self { viewer, local, entries, previous: None, written: None, lease: None, network, now }
        }

        fn try_step(&self) -> Result<Step, String> {
            let claimant = Claimant {
                viewer: &self.viewer,
                public: &[],
                local: &self.local,
                previous: self.previous,
                written: self.written.as_ref(),
                lease: self.lease,
            };
            claimant.step(&self.network, &self.entries, self.now, 0)
        }

        fn step(&self) -> Step {
            self.try_step().expect("possible")
        }

        /// With the own lease, number 101, alive.
        fn alive(mut self) -> Self {
            self.lease = Some(Lease { id: 101, renew: self.now + Duration::from_secs(1) });
            self
        }
    }

    #[test]
    fn a_new_node_makes_a_key_that_overlaps_no_other() {
        let mut world = World::of([entry("10.244.1.0-24", 2), entry("10.244.2.0-24", 3)]);
        world.local.v4.mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        let Step::Create(subnets, attributes) = world.step() else { panic!("{:?}", world.step()) };
        assert_eq!(subnets.to_string(), "10.244.3.0-24");
        assert_eq!(attributes.public_ip, Some([192, 0, 2, 1].into()));
        assert_eq!(attributes.v4.map(|data| data.mac), world.local.v4.mac, "the device keeps its MAC");
    }

    #[test]
    fn a_node_that_comes_back_takes_what_it_had_before_if_that_is_free_and_fits() {
        let created = |taken: &str, previous: &str| {
            let mut world = World::of([entry(taken, 2)]);
            world.previous = previous.parse().ok();
            match world.step() {
                Step::Create(subnets, _) => subnets.to_string(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(created("10.244.9.0-24", "10.244.7.0-24"), "10.244.7.0-24");
        assert_eq!(created("10.244.7.128-25", "10.244.7.0-24"), "10.244.1.0-24", "taken in part");
        assert_eq!(created("10.244.9.0-24", "10.99.7.0-24"), "10.244.1.0-24", "of another network");
    }

    #[test]
    fn the_key_with_the_own_address_is_renewed_and_then_stands() {
        let world = World::of([entry("10.244.5.0-24", 1), entry("10.244.6.0-24", 2)]);
        assert!(matches!(world.step(), Step::Renew(own) if own.lease == 101));
        let mut world = world.alive();
        assert!(matches!(world.step(), Step::Stand(own) if own.attributes == attributes(1)), "its MAC stays");
        world.now += Duration::from_secs(1);
        assert!(matches!(world.step(), Step::Renew(own) if own.lease == 101), "when it is time");
    }

    #[test]
    fn a_key_without_a_lease_stays_without() {
        let (key, mut reserved) = entry("10.244.5.0-24", 1);
        reserved.lease = 0;
        reserved.attributes = Ok(Attributes { public_ip: attributes(1).public_ip, ..Attributes::default() });
        let mut world = World::of([(key.clone(), reserved)]);
        let Step::Write(own) = world.step() else { panic!("{:?}", world.step()) };
        assert_eq!((own.lease, own.seen), (0, 51));
        world.entries.get_mut(&key).expect("there").attributes = Ok(own.attributes.clone());
        assert_eq!(world.step(), Step::Stand(own));
    }

    #[test]
    fn a_key_that_somebody_has_changed_is_written_again() {
        let mut world = World::of([entry("10.244.5.0-24", 1)]).alive();
        let own = world.entries.get_mut("10.244.5.0-24").expect("there");
        own.attributes = Ok(Attributes { backend: "host-gw".into(), v4: None, ..attributes(1) });
        assert!(matches!(world.step(), Step::Write(own) if (own.lease, own.seen) == (101, 51)));
    }

    #[test]
    fn a_key_that_is_gone_or_another_s_is_no_longer_ours() {
        let mut world = World::of([entry("10.244.5.0-24", 1)]).alive();
        world.written = Some(("10.244.5.0-24".into(), attributes(1)));
        world.previous = "10.244.5.0-24".parse().ok();
        let (_, gone) = world.entries.pop_first().expect("there");
        assert!(
            matches!(world.step(), Step::Create(subnets, _) if subnets == gone.subnets),
            "the same again"
        );
        world.entries.extend([entry("10.244.5.0-24", 9)]);
        assert!(matches!(world.step(), Step::Create(subnets, _) if subnets != gone.subnets), "another one");
    }

    #[test]
    fn a_node_whose_address_changes_keeps_its_key() {
        let mut world = World::of([entry("10.244.5.0-24", 1)]).alive();
        world.written = Some(("10.244.5.0-24".into(), attributes(1)));
        world.local = local(71);
        let Step::Write(own) = world.step() else { panic!("{:?}", world.step()) };
        assert_eq!(own.name, "10.244.5.0-24");
        assert_eq!(own.attributes.public_ip, Some([192, 0, 2, 71].into()));
        assert_eq!(own.attributes.v4, attributes(1).v4, "and its MAC");
    }

    #[test]
    fn of_two_keys_that_overlap_the_older_one_stays() {
        let (key, mut own) = entry("10.244.5.0-24", 1);
        own.created = 9;
        let world = World::of([(key.clone(), own), entry("10.244.4.0-23", 2)]).alive();
        assert!(matches!(world.step(), Step::Remove(own, _) if own.name == key));
        let world = World::of([entry("10.244.5.0-24", 1), entry("10.244.4.0-23", 2)]).alive();
        assert!(matches!(world.step(), Step::Stand(..)));
    }

    #[test]
    fn a_key_that_the_network_has_outgrown_is_given_up_for_one_that_fits() {
        let world = World::of([entry("10.99.5.0-24", 1)]).alive();
        assert!(matches!(world.step(), Step::Remove(own, _) if own.name == "10.99.5.0-24"));
        let (key, fits) = entry("10.244.5.0-24", 1);
        let world = World::of([entry("10.99.5.0-24", 1), (key.clone(), fits)]).alive();
        assert!(matches!(world.step(), Step::Stand(own) if own.name == key));
    }

    #[test]
    fn a_node_without_an_address_says_so() {
        let mut world = World::of([]);
        world.local.v4.addresses.clear();
        assert!(world.try_step().expect_err("no address").contains("eth0 has no IPv4 address"));
        let mut world = World::of([]);
        world.network = network(r#","EnableIPv6":true,"IPv6Network":"fd00:244::/48""#).expect("valid");
        assert!(world.try_step().expect_err("no address").contains("eth0 has no IPv6 address"));
    }

    #[test]
    fn a_lease_is_renewed_a_margin_before_its_end() {
        let (hour, now) = (Duration::from_secs(3600), Instant::now());
        assert_eq!(Lease::new(1, TTL, hour, now).renew, now + 23 * hour);
        assert_eq!(Lease::new(1, hour, hour, now).renew, now + hour / 2);
        assert_eq!(Lease::new(1, hour / 2, hour, now).renew, now + hour / 4);
    }
}
