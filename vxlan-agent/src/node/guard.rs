//! Who may send through the tunnel, for what reaches the vxlan device past the programs: over another
//! interface, to another of the node's addresses, reassembled, with options, or without a fast path.
//!
//! The chain sees every packet for the tunnel's port before the device does. A VNI of somebody else's on
//! the same port passes. Of ours passes what is known to be right: for an address of this node's VTEP,
//! from the VTEP of another node, with an inner source that is one of its subnets' or its own
//! (`decap::accept`). In a bridged network any station may be behind any node, so nothing is asked of the inner
//! source. What cannot be read is dropped.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;

use super::packet::{DESTINATION_PORT, V4, V6, Version};
use super::table::Chain;
use crate::kernel::nft::Attributes;
use crate::kernel::nft::set::{Element, Set};
use crate::net::Vni;

/// Offsets from the outer UDP header on (RFC 7348 §5).
const VNI: u32 = 12;
const INNER_TYPE: u32 = 28;
const INNER_TAG: u32 = 30;
const INNER_IP: u32 = 30;
/// Length of a tag, the bits of it that number a VLAN, and the EtherTypes that the kernel takes it by.
const TAG: u32 = 4;
const VLAN_ID: [u8; 2] = [0x0f, 0xff];
const TAGGED: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];
/// The IPv6 fragment header, and offset and bits of the fragment's offset in it (RFC 8200 §4.5).
const FRAGMENT: u8 = libc::IPPROTO_FRAGMENT as u8;
const FRAGMENT_OFFSET: u32 = 2;
const OFFSET: [u8; 2] = [0xff, 0xf8];
/// `NFT_REG32_00`, where a key of several fields begins; the register numbered 1 is the same place.
const FIRST: u32 = libc::NFT_REG32_00 as u32;

/// A rule and its name.
type Rule = (&'static str, Attributes);

/// Who may send what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The tunnel's UDP port.
    pub port: u16,
    /// The network's VNI.
    pub vni: Vni,
    /// Addresses that other nodes know this one by. Over an IP version without one, any of the node's will do.
    pub own: BTreeSet<IpAddr>,
    /// VTEPs of other nodes, with each of the networks that they may send from.
    pub sources: BTreeSet<(IpAddr, IpNetwork)>,
    /// Whether they may send any frame: those networks are not looked at.
    pub bridged: bool,
    /// This node's pod subnets.
    pub pods: Vec<IpNetwork>,
}

/// Outer and inner version, and the name of the set of what may be sent so.
type Pair = (Version, Version, &'static str);

const PAIRS: [Pair; 4] =
    [(V4, V4, "sources44"), (V4, V6, "sources46"), (V6, V4, "sources64"), (V6, V6, "sources66")];

/// Names of the sets of VTEPs, and of this node's addresses.
const fn vteps(outer: Version) -> &'static str {
    if outer.is_ipv4() { "vteps4" } else { "vteps6" }
}

const fn own(outer: Version) -> &'static str {
    if outer.is_ipv4() { "own4" } else { "own6" }
}

impl Guard {
    /// The chains.
    pub(super) fn chains(&self) -> [Chain; 2] {
        let chain =
            |name, hook, rules| Chain { name, kind: "filter", hook, priority: libc::NF_IP_PRI_RAW, rules };
        let pods = self.pods.iter().map(|subnet| ("drop pods' tunnels", self.pods_tunnels(subnet)));
        [
            chain("guard", libc::NF_INET_LOCAL_IN, self.input()),
            chain("forward", libc::NF_INET_FORWARD, pods.collect()),
        ]
    }

    /// A rule that cannot read what it asks for does not apply. So what the later rules can read behind the
    /// VNI is of this network.
    fn input(&self) -> Vec<Rule> {
        let elsewhere = [V4, V6].into_iter().filter(|outer| self.own_over(*outer).next().is_some());
        let mut rules = Vec::from(self.others());
        rules.extend(elsewhere.map(|outer| ("drop other destinations", self.elsewhere(outer))));
        if self.bridged {
            rules.extend([V4, V6].map(|outer| ("drop strangers", self.strangers(outer))));
            rules.push(("known senders", self.this_network().accept()));
        } else {
            rules.extend(self.inner_sources());
        }
        rules.push(("drop foreign sources", Attributes::default().for_port(self.port).count().drop()));
        rules.push(("drop short fragments", is_fragment().is(&[0, 0]).count().drop()));
        rules
    }

    fn inner_sources(&self) -> Vec<Rule> {
        let mut rules = Vec::from(PAIRS.map(|pair| ("known senders", known(pair, None))));
        rules.extend([V4, V6].map(|outer| ("drop strangers", self.strangers(outer))));
        rules.extend(
            TAGGED.into_iter().flat_map(|tag| PAIRS.map(|pair| ("known senders", known(pair, Some(tag))))),
        );
        rules.extend([None, Some(TAGGED[0]), Some(TAGGED[1])].map(|tag| ("no IP", no_ip(tag))));
        rules.extend(TAGGED.map(|tag| ("VLANs", in_vlan(tag))));
        rules
    }

    /// Goes on with what is long enough to have our VNI, and has it.
    fn this_network(&self) -> Attributes {
        let vni = Attributes::default().for_port(self.port).load_transport_header(VNI, 3);
        vni.is(&self.vni.get().to_be_bytes()[1..])
    }

    /// What is none of ours passes first, so that it meets no more rules than need be.
    fn others(&self) -> [Rule; 4] {
        let udp = Attributes::default().load_meta(libc::NFT_META_L4PROTO).is_not(&[libc::IPPROTO_UDP as u8]);
        let port = Attributes::default().load_transport_header(DESTINATION_PORT, 2);
        let vni = Attributes::default().load_transport_header(VNI, 3);
        [
            ("not UDP", udp.accept()),
            ("other ports", port.is_not(&self.port.to_be_bytes()).accept()),
            // Linux reassembles IPv6 behind this hook unless conntrack has done it before. Nothing comes
            // of these without the first, which has to pass.
            ("later fragments", is_fragment().is_not(&[0, 0]).accept()),
            ("other VNIs", vni.is_not(&self.vni.get().to_be_bytes()[1..]).accept()),
        ]
    }

    /// What a pod of `subnet` sends to the tunnel's port of another node: with this node's address, which
    /// masquerading gives it, it would pass for the overlay's there.
    fn pods_tunnels(&self, subnet: &IpNetwork) -> Attributes {
        let version = Version::of(subnet);
        Attributes::default()
            .for_port(self.port)
            .over(version)
            .load_source(version)
            .within(subnet)
            .load_destination(version)
            .is_in(vteps(version))
            .count()
            .drop()
    }

    /// Peers send to the VTEP's address; nobody has to send to all, or to another of the node's.
    fn elsewhere(&self, outer: Version) -> Attributes {
        let to = Attributes::default().for_port(self.port).over(outer).load_destination(outer);
        to.is_not_in(own(outer)).count().drop()
    }

    fn strangers(&self, outer: Version) -> Attributes {
        let from = Attributes::default().for_port(self.port).over(outer).load_source(outer);
        from.is_not_in(vteps(outer)).count().drop()
    }

    fn own_over(&self, outer: Version) -> impl Iterator<Item = IpAddr> {
        self.own.iter().copied().filter(move |ip| ip.is_ipv4() == outer.is_ipv4())
    }

    /// The sets that the rules name.
    pub(super) fn sets(&self) -> Vec<Set> {
        let mut sets = vec![];
        for outer in [V4, V6] {
            let known = self.sources.iter().map(|(vtep, _)| *vtep);
            let known = known.filter(|vtep| vtep.is_ipv4() == outer.is_ipv4());
            let set = |name, elements| Set { name, fields: vec![outer.field], elements };
            sets.push(set(vteps(outer), known.map(Element::address).collect()));
            sets.push(set(own(outer), self.own_over(outer).map(Element::address).collect()));
        }
        for (outer, inner, name) in PAIRS.into_iter().filter(|_| !self.bridged) {
            let sources = self.sources.iter();
            let sources = sources.filter(|(vtep, source)| {
                vtep.is_ipv4() == outer.is_ipv4() && source.is_ipv4() == inner.is_ipv4()
            });
            let elements = sources.map(|(vtep, source)| Element::pair(*vtep, *source)).collect();
            sets.push(Set { name, fields: vec![outer.field, inner.field], elements });
        }
        sets
    }
}

/// Loads the offset of an IPv6 fragment; in no packet that is whole.
fn is_fragment() -> Attributes {
    Attributes::default().over(V6).load_extension_header(FRAGMENT, FRAGMENT_OFFSET, 2).mask(&OFFSET)
}

/// Nearly all that comes through the tunnel, without a tag.
fn known((outer, inner, set): Pair, tag: Option<[u8; 2]>) -> Attributes {
    let (tagged, length) = behind(tag);
    tagged
        .over(outer)
        .load_transport_header(INNER_TYPE + length, 2)
        .is(&inner.ether_type)
        .load_network_header_into(FIRST, outer.source, outer.field.length())
        .load_transport_header_into(
            FIRST + outer.field.length() / 4,
            INNER_IP + length + inner.source,
            inner.field.length(),
        )
        .is_in(set)
        .accept()
}

/// What has no source that could be another's is the kernel's to judge. A tag behind a tag of no VLAN the
/// kernel takes off, too; no peer sends that.
fn no_ip(tag: Option<[u8; 2]>) -> Attributes {
    let (tagged, length) = behind(tag);
    let kind = tagged.load_transport_header(INNER_TYPE + length, 2);
    kind.is_not(&V4.ether_type).is_not(&V6.ether_type).is_not(&TAGGED[0]).is_not(&TAGGED[1]).accept()
}

/// The stack takes it only where somebody has made a device for that VLAN.
fn in_vlan(tag: [u8; 2]) -> Attributes {
    tagged(tag).is_not(&[0, 0]).accept()
}

/// Goes on with what has such a tag of no VLAN, which the kernel takes off before it looks at the packet
/// behind it; and how much further back that is.
fn behind(tag: Option<[u8; 2]>) -> (Attributes, u32) {
    tag.map_or_else(|| (Attributes::default(), 0), |tag| (tagged(tag).is(&[0, 0]), TAG))
}

/// Loads the number of the VLAN.
fn tagged(tag: [u8; 2]) -> Attributes {
    let kind = Attributes::default().load_transport_header(INNER_TYPE, 2).is(&tag);
    kind.load_transport_header(INNER_TAG, 2).mask(&VLAN_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(own: &[&str], sources: &[(&str, &str)]) -> Guard {
        let parsed = |(vtep, source): &(&str, &str)| {
            (vtep.parse().expect("an address"), source.parse().expect("a network"))
        };
        let own = own.iter().map(|ip| ip.parse().expect("an address")).collect();
        let vni = Vni::try_from(1).expect("in range");
        let pods = vec!["10.1.0.0/24".parse().expect("a network")];
        Guard { port: 8472, vni, own, sources: sources.iter().map(parsed).collect(), bridged: false, pods }
    }

    #[test]
    fn the_rules_are_the_same_whoever_may_send() {
        let some = guard(&["192.0.2.1"], &[("192.0.2.2", "10.2.0.0/24"), ("2001:db8::2", "fd00:2::/64")]);
        let rules = |guard: &Guard| guard.chains().map(|chain| chain.rules);
        assert_eq!(rules(&some), rules(&guard(&["192.0.2.1"], &[])));
        assert_ne!(rules(&some), rules(&guard(&[], &[])), "any destination");
    }

    #[test]
    fn in_a_bridged_network_nobody_asks_who_is_inside() {
        let routed = guard(&["192.0.2.1"], &[("192.0.2.2", "192.0.2.2/32")]);
        let bridged = Guard { bridged: true, ..routed.clone() };
        let names = |guard: &Guard| guard.input().into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        let count = |rules: Vec<&str>, name| rules.into_iter().filter(|rule| *rule == name).count();
        assert_eq!([&routed, &bridged].map(|guard| count(names(guard), "drop strangers")), [2, 2]);
        assert_eq!([&routed, &bridged].map(|guard| count(names(guard), "known senders")), [12, 1]);
        assert_eq!(count(names(&bridged), "no IP"), 0);
        assert!(bridged.sets().iter().all(|set| !set.name.starts_with("sources")));
    }

    #[test]
    fn each_source_is_in_the_set_of_its_versions() {
        let guard = guard(&["192.0.2.1"], &[("192.0.2.2", "10.2.0.0/24"), ("192.0.2.2", "fd00:2::/64")]);
        let sets = guard.sets();
        let held = sets.iter().filter(|set| !set.elements.is_empty()).map(|set| set.name);
        assert_eq!(held.collect::<Vec<_>>(), ["vteps4", "own4", "sources44", "sources46"]);
    }
}
