//! Who may send through the tunnel, for what reaches the vxlan device past the programs: over another
//! interface, to another of the node's addresses, reassembled, with options, or without a fast path.
//!
//! The chain sees every packet for the tunnel's port once it is whole, and before the device does. A
//! VNI of somebody else's on the same port passes. What passes here is what `decap::accept` lets pass:
//! a known VTEP, with an inner source that is one of its subnets' or its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;

use super::table::Chain;
use crate::kernel::nft::{Attributes, Batch, CREATE, nfta};
use crate::net::Vni;

/// Offsets from the outer UDP header on (RFC 7348 §5).
const DESTINATION_PORT: u32 = 2;
const VNI: u32 = 12;
const INNER_TYPE: u32 = 28;
const INNER_TAG: u32 = 30;
const INNER_IP: u32 = 30;
/// Length of a tag, and its EtherTypes.
const TAG: u32 = 4;
const VLAN: [u8; 2] = [0x81, 0x00];
const SERVICE_VLAN: [u8; 2] = [0x88, 0xa8];
/// Elements per message: what a message nests has to stay below 64 KiB.
const AT_ONCE: usize = 400;
/// `NFT_SET_CONCAT`.
const CONCAT: u32 = 0x80;
/// `NFT_REG32_00`, where a key of several fields begins; the register numbered 1 is the same place.
const FIRST: u32 = libc::NFT_REG32_00 as u32;

/// Who may send what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Guard {
    /// The tunnel's UDP port.
    pub port: u16,
    /// The network's VNI.
    pub vni: Vni,
    /// VTEPs of other nodes, with each of the networks that they may send from.
    pub sources: BTreeSet<(IpAddr, IpNetwork)>,
    /// This node's pod subnets.
    pub pods: Vec<IpNetwork>,
}

/// What an IP version is like as outer and as inner one.
#[derive(Clone, Copy)]
struct Version {
    number: u8,
    /// Name of the set of VTEPs.
    vteps: &'static str,
    /// Data type of an address among those of `nft`, which it shows elements by.
    kind: u32,
    length: u32,
    /// Offset of the source in the header.
    source: u32,
    ether_type: [u8; 2],
}

const V4: Version = Version {
    number: libc::NFPROTO_IPV4 as u8,
    vteps: "vteps4",
    kind: 7,
    length: 4,
    source: 12,
    ether_type: [0x08, 0x00],
};
const V6: Version = Version {
    number: libc::NFPROTO_IPV6 as u8,
    vteps: "vteps6",
    kind: 8,
    length: 16,
    source: 8,
    ether_type: [0x86, 0xdd],
};

/// Outer and inner version, and the name of the set of what may be sent so.
const PAIRS: [(Version, Version, &str); 4] =
    [(V4, V4, "sources44"), (V4, V6, "sources46"), (V6, V4, "sources64"), (V6, V6, "sources66")];

const fn is(version: Version, ipv4: bool) -> bool {
    (version.number == V4.number) == ipv4
}

impl Guard {
    /// The chains.
    pub(super) fn chains(&self) -> [Chain; 2] {
        let pods = self.pods.iter().map(|subnet| ("drop pods' tunnels", self.pods_tunnels(*subnet)));
        let forward = Chain {
            name: "forward",
            kind: "filter",
            hook: libc::NF_INET_FORWARD,
            priority: libc::NF_IP_PRI_RAW,
            rules: pods.collect(),
        };
        [self.input(), forward]
    }

    fn input(&self) -> Chain {
        let known = PAIRS.map(|pair| ("known senders", self.known(pair)));
        let strangers = [V4, V6].map(|outer| ("drop strangers", self.strangers(outer)));
        let foreign = |tag| PAIRS.map(|pair| ("drop foreign sources", self.foreign(pair, tag)));
        let tagged = [VLAN, SERVICE_VLAN].map(|kind| ("drop two tags", self.doubly_tagged(kind)));
        Chain {
            name: "guard",
            kind: "filter",
            hook: libc::NF_INET_LOCAL_IN,
            priority: libc::NF_IP_PRI_RAW,
            rules: self
                .others()
                .into_iter()
                .chain(known)
                .chain(strangers)
                .chain(foreign(0))
                .chain(foreign(TAG))
                .chain(tagged)
                .collect(),
        }
    }

    fn to_port(&self) -> Attributes {
        Attributes::default()
            .load_meta(libc::NFT_META_L4PROTO)
            .is(&[libc::IPPROTO_UDP as u8])
            .load_transport_header(DESTINATION_PORT, 2)
            .is(&self.port.to_be_bytes())
    }

    fn to_tunnel(&self) -> Attributes {
        let vni = self.vni.get().to_be_bytes();
        self.to_port().load_transport_header(VNI, 3).is(&vni[1..])
    }

    /// What a pod of `subnet` sends to the tunnel's port of another node: with this node's address, which
    /// masquerading gives it, it would pass for the overlay's there.
    fn pods_tunnels(&self, subnet: IpNetwork) -> Attributes {
        let version = if subnet.is_ipv4() { V4 } else { V6 };
        let destination = version.source + version.length;
        self.to_port()
            .load_meta(libc::NFT_META_NFPROTO)
            .is(&[version.number])
            .load_network_header(version.source, version.length)
            .mask(&octets(subnet.mask()))
            .is(&octets(subnet.network()))
            .load_network_header(destination, version.length)
            .is_in(version.vteps)
            .count()
            .drop()
    }

    fn strangers(&self, outer: Version) -> Attributes {
        self.to_tunnel()
            .load_meta(libc::NFT_META_NFPROTO)
            .is(&[outer.number])
            .load_network_header(outer.source, outer.length)
            .is_not_in(outer.vteps)
            .count()
            .drop()
    }

    /// What is none of ours passes first, so that it meets no more rules than need be.
    fn others(&self) -> [(&'static str, Attributes); 2] {
        let udp = Attributes::default().load_meta(libc::NFT_META_L4PROTO).is_not(&[libc::IPPROTO_UDP as u8]);
        let port = Attributes::default().load_transport_header(DESTINATION_PORT, 2);
        let port = port.is_not(&self.port.to_be_bytes());
        [("not UDP", udp.accept()), ("other ports", port.accept())]
    }

    /// Nearly all that comes through the tunnel.
    fn known(&self, (outer, inner, set): (Version, Version, &str)) -> Attributes {
        self.sources_of((outer, inner), 0).is_in(set).accept()
    }

    /// An inner source that is not the VTEP's, `tag` bytes further back than usual.
    fn foreign(&self, (outer, inner, set): (Version, Version, &str), tag: u32) -> Attributes {
        self.sources_of((outer, inner), tag).is_not_in(set).count().drop()
    }

    /// Loads outer and inner source of a packet for the tunnel.
    fn sources_of(&self, (outer, inner): (Version, Version), tag: u32) -> Attributes {
        let tagged = if tag == 0 { self.to_tunnel() } else { self.priority_tagged() };
        tagged
            .load_meta(libc::NFT_META_NFPROTO)
            .is(&[outer.number])
            .load_transport_header(INNER_TYPE + tag, 2)
            .is(&inner.ether_type)
            .load_network_header_into(FIRST, outer.source, outer.length)
            .load_transport_header_into(FIRST + outer.length / 4, INNER_IP + tag + inner.source, inner.length)
    }

    /// A tag of no VLAN, which the kernel takes off before it looks at the packet behind it.
    fn priority_tagged(&self) -> Attributes {
        self.to_tunnel()
            .load_transport_header(INNER_TYPE, 2)
            .is(&VLAN)
            .load_transport_header(INNER_TAG, 2)
            .mask(&[0x0f, 0xff])
            .is(&[0, 0])
    }

    /// A second tag behind such a one: no peer sends that, and a source could hide behind any number.
    fn doubly_tagged(&self, ether_type: [u8; 2]) -> Attributes {
        self.priority_tagged().load_transport_header(INNER_TYPE + TAG, 2).is(&ether_type).count().drop()
    }

    /// The sets that the rules name; their ids begin with `id`.
    pub(super) fn add_sets(&self, batch: &mut Batch, table: &str, id: u32) {
        for (id, outer) in (id..).zip([V4, V6]) {
            let vteps: BTreeSet<IpAddr> = self.sources.iter().map(|(vtep, _)| *vtep).collect();
            let vteps = vteps.into_iter().filter(|vtep| is(outer, vtep.is_ipv4()));
            let elements = vteps.map(|vtep| element(&octets(vtep), None)).collect::<Vec<_>>();
            let set = set(table, outer.vteps, id)
                .number(nfta::SET_KEY_TYPE, outer.kind)
                .number(nfta::SET_KEY_LEN, outer.length);
            add_set(batch, table, outer.vteps, set, &elements);
        }
        for (id, (outer, inner, name)) in (id + 2..).zip(PAIRS) {
            let sources = self.sources.iter();
            let sources = sources.filter(|(v, s)| is(outer, v.is_ipv4()) && is(inner, s.is_ipv4()));
            let elements: Vec<_> = sources.map(|(vtep, source)| range(*vtep, *source)).collect();
            let field = |length: u32| Attributes::default().number(nfta::SET_FIELD_LEN, length);
            let fields = Attributes::default()
                .nest(nfta::LIST_ELEM, &field(outer.length))
                .nest(nfta::LIST_ELEM, &field(inner.length));
            let set = set(table, name, id)
                .number(nfta::SET_FLAGS, libc::NFT_SET_INTERVAL as u32 | CONCAT)
                .number(nfta::SET_KEY_TYPE, outer.kind << 6 | inner.kind)
                .number(nfta::SET_KEY_LEN, outer.length + inner.length)
                .nest(nfta::SET_DESC, &Attributes::default().nest(nfta::SET_DESC_CONCAT, &fields));
            add_set(batch, table, name, set, &elements);
        }
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// The VTEP with every address of `source`.
fn range(vtep: IpAddr, source: IpNetwork) -> Attributes {
    let key = |ip: IpAddr| [octets(vtep), octets(ip)].concat();
    element(&key(source.network()), Some(&key(source.broadcast())))
}

fn element(key: &[u8], last: Option<&[u8]>) -> Attributes {
    let value = |bytes: &[u8]| Attributes::default().bytes(nfta::DATA_VALUE, bytes);
    let element = Attributes::default().nest(nfta::SET_ELEM_KEY, &value(key));
    match last {
        Some(last) => element.nest(nfta::SET_ELEM_KEY_END, &value(last)),
        None => element,
    }
}

fn set(table: &str, name: &str, id: u32) -> Attributes {
    Attributes::default().string(nfta::SET_TABLE, table).string(nfta::SET_NAME, name).number(nfta::SET_ID, id)
}

fn add_set(batch: &mut Batch, table: &str, name: &str, set: Attributes, elements: &[Attributes]) {
    batch.push(libc::NFT_MSG_NEWSET, CREATE, set);
    for some in elements.chunks(AT_ONCE) {
        let list = some.iter().fold(Attributes::default(), |list, e| list.nest(nfta::LIST_ELEM, e));
        let elements = Attributes::default()
            .string(nfta::SET_ELEM_LIST_TABLE, table)
            .string(nfta::SET_ELEM_LIST_SET, name)
            .nest(nfta::SET_ELEM_LIST_ELEMENTS, &list);
        batch.push(libc::NFT_MSG_NEWSETELEM, CREATE, elements);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(sources: &[(&str, &str)]) -> Guard {
        let parsed = |(vtep, source): &(&str, &str)| {
            (vtep.parse().expect("an address"), source.parse().expect("a network"))
        };
        let vni = Vni::try_from(1).expect("in range");
        let pods = vec!["10.1.0.0/24".parse().expect("a network")];
        Guard { port: 8472, vni, sources: sources.iter().map(parsed).collect(), pods }
    }

    #[test]
    fn the_rules_are_the_same_whoever_may_send() {
        let names = |guard: &Guard| {
            let chains = guard.chains();
            chains.iter().flat_map(|chain| &chain.rules).map(|(name, _)| *name).collect::<Vec<_>>()
        };
        let some = guard(&[("192.0.2.2", "10.2.0.0/24"), ("2001:db8::2", "fd00:2::/64")]);
        assert_eq!(names(&some), names(&guard(&[])));
        assert_eq!(names(&some).len(), 2 + 4 + 2 + 2 * 4 + 2 + 1);
    }

    #[test]
    fn a_range_goes_from_the_first_to_the_last_address_of_a_network() {
        let of = |vtep: &str, source: &str| {
            let (vtep, source) = (vtep.parse().expect("an address"), source.parse().expect("a network"));
            range(vtep, source)
        };
        let expected = element(&[192, 0, 2, 2, 10, 2, 0, 0], Some(&[192, 0, 2, 2, 10, 2, 0, 255]));
        assert_eq!(of("192.0.2.2", "10.2.0.0/24").as_bytes(), expected.as_bytes());
        let single = element(&[192, 0, 2, 2, 192, 0, 2, 2], Some(&[192, 0, 2, 2, 192, 0, 2, 2]));
        assert_eq!(of("192.0.2.2", "192.0.2.2/32").as_bytes(), single.as_bytes());
    }
}
