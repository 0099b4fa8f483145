//! The guard's rules. There are as many of them for one network as for thousands.

use nix::libc;

use super::sets::{BRIDGED, NETWORKS, PORTS, Sets, known, lengths, nodes, own, pods, sources, vteps};
use crate::kernel::nft::Attributes;
use crate::kernel::nft::set::Field;
use crate::node::packet::{DESTINATION_PORT, FIRST, V4, V6, Version};
use crate::node::table::{Chain, Rule};

/// Offsets from the outer UDP header on (RFC 7348 §5): of a reserved byte and the VNI, and what is inside.
const BEFORE_VNI: u32 = 11;
const VNI: [u8; 4] = [0, 0xff, 0xff, 0xff];
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
/// The registers behind a network's key.
const BEHIND_NETWORK: u32 = FIRST + (Field::Vni.padded() + Field::Port.padded()) / 4;

/// Outer and inner version, and the prefix length of sources.
type Kind = (Version, Version, u8);

/// The chains, where there are these `sets`.
pub(crate) fn chains(sets: &Sets) -> [Chain; 2] {
    let chain =
        |name, hook, rules| Chain { name, kind: "filter", hook, priority: libc::NF_IP_PRI_RAW, rules };
    [
        chain("guard", libc::NF_INET_LOCAL_IN, input(sets)),
        chain("forward", libc::NF_INET_FORWARD, forward(sets)),
    ]
}

/// A rule that cannot read what it asks for does not apply. So what the later rules can read behind the
/// VNI is of a network of ours.
fn input(sets: &Sets) -> Vec<Rule> {
    let kinds = [(V4, V4), (V4, V6), (V6, V4), (V6, V6)].into_iter().flat_map(|(outer, inner)| {
        lengths(sets, sources(outer, inner)).into_iter().map(move |length| (outer, inner, length))
    });
    let kinds: Vec<Kind> = kinds.collect();
    let known = |tag| kinds.iter().map(move |kind| ("known senders", known_sender(*kind, tag)));
    let [not_udp, other_ports, later_fragments, other_vnis] = others();
    let mut rules = vec![not_udp, other_ports];
    rules.extend(kinds.iter().map(|kind| ("usual", usual(*kind))));
    rules.extend([later_fragments, other_vnis]);
    rules.extend([V4, V6].map(|outer| ("drop other destinations", elsewhere(outer))));
    rules.extend([V4, V6].map(|outer| ("drop strangers", stranger(outer))));
    rules.push(("known bridges", network().is_in_from(FIRST, BRIDGED).accept()));
    rules.extend(known(None));
    rules.extend(TAGGED.into_iter().flat_map(|tag| known(Some(tag))));
    rules.extend([None, Some(TAGGED[0]), Some(TAGGED[1])].map(|tag| ("no IP", no_ip(tag))));
    rules.extend(TAGGED.map(|tag| ("VLANs", in_vlan(tag))));
    rules.push(("drop foreign sources", port().is_in(PORTS).count().drop()));
    rules.push(("drop short fragments", is_fragment().is(&[0, 0]).count().drop()));
    rules
}

/// What is none of ours passes first, so that it meets no more rules than need be.
fn others() -> [Rule; 4] {
    let udp = Attributes::default().load_meta(libc::NFT_META_L4PROTO).is_not(&[libc::IPPROTO_UDP as u8]);
    let port = Attributes::default().load_transport_header(DESTINATION_PORT, 2);
    [
        ("not UDP", udp.accept()),
        ("other ports", port.is_not_in(PORTS).accept()),
        // Linux reassembles IPv6 behind this hook unless conntrack has done it before. Nothing comes
        // of these without the first, which has to pass.
        ("later fragments", is_fragment().is_not(&[0, 0]).accept()),
        ("other VNIs", network().is_not_in_from(FIRST, NETWORKS).accept()),
    ]
}

/// What a pod sends to the tunnel's port of another node: with this node's address, which
/// masquerading gives it, it would pass for the overlay's there. Whichever networks the two are of.
fn forward(sets: &Sets) -> Vec<Rule> {
    let rule = |version: Version, length: u8| {
        let to_node = port()
            .is_in(PORTS)
            .over(version)
            .load_transport_header_into(FIRST, DESTINATION_PORT, 2)
            .load_address_into(FIRST + 1, version, version.destination())
            .is_in_from(FIRST, nodes(version));
        let set = format!("{}{length}", pods(version));
        let from_pod = to_node.load_source(version).mask(&version.mask(length)).is_in(&set);
        ("drop pods' tunnels", from_pod.count().drop())
    };
    let of = |version| lengths(sets, pods(version)).into_iter().map(move |length| rule(version, length));
    of(V4).chain(of(V6)).collect()
}

fn port() -> Attributes {
    Attributes::default().load_udp_port()
}

/// Loads what a network's keys begin with.
fn network() -> Attributes {
    network_behind(Attributes::default())
}

fn network_behind(rule: Attributes) -> Attributes {
    rule.load_transport_header_into(FIRST, BEFORE_VNI, 4)
        .mask_in(FIRST, &VNI)
        .to_host(FIRST)
        .load_transport_header_into(FIRST + 1, DESTINATION_PORT, 2)
}

/// Peers send to the VTEP's address; nobody has to send to all, or to another of the node's.
fn elsewhere(outer: Version) -> Attributes {
    let known = network_behind(Attributes::default().over(outer)).is_in_from(FIRST, known(outer));
    let to = known.load_address_into(BEHIND_NETWORK, outer, outer.destination());
    to.is_not_in_from(FIRST, own(outer)).count().drop()
}

fn stranger(outer: Version) -> Attributes {
    let from = network_behind(Attributes::default().over(outer));
    let from = from.load_address_into(BEHIND_NETWORK, outer, outer.source);
    from.is_not_in_from(FIRST, vteps(outer)).count().drop()
}

/// Loads the offset of an IPv6 fragment; in no packet that is whole.
fn is_fragment() -> Attributes {
    Attributes::default().over(V6).load_extension_header(FRAGMENT, FRAGMENT_OFFSET, 2).mask(&OFFSET)
}

/// Nearly all that comes through the tunnel, so that it meets few rules: from a known sender, without a tag, for
/// an address that is known to be this node's. What the later rules ask each on its own holds of it, too.
fn usual((outer, inner, length): Kind) -> Attributes {
    let kind = Attributes::default().over(outer).load_transport_header(INNER_TYPE, 2).is(&inner.ether_type);
    let to = network_behind(kind).load_address_into(BEHIND_NETWORK, outer, outer.destination());
    from_sender(to.is_in_from(FIRST, own(outer)), (outer, inner, length), 0).accept()
}

/// From a known sender, with such a tag or none.
fn known_sender((outer, inner, length): Kind, tag: Option<[u8; 2]>) -> Attributes {
    let (tagged, further) = behind(tag);
    let kind = tagged.over(outer).load_transport_header(INNER_TYPE + further, 2).is(&inner.ether_type);
    from_sender(network_behind(kind), (outer, inner, length), further).accept()
}

/// Goes on only with what has a source inside, `further` bytes back than usual, that its VTEP may use. The network
/// has been loaded.
fn from_sender(rule: Attributes, (outer, inner, length): Kind, further: u32) -> Attributes {
    let inner_source = BEHIND_NETWORK + outer.field.padded() / 4;
    rule.load_address_into(BEHIND_NETWORK, outer, outer.source)
        .load_transport_header_into(inner_source, INNER_IP + further + inner.source, inner.field.length())
        .mask_in(inner_source, &inner.mask(length))
        .is_in_from(FIRST, &format!("{}{length}", sources(outer, inner)))
}

/// What has no source that could be another's is the kernel's to judge. A tag behind a tag of no VLAN the
/// kernel takes off, too; no peer sends that.
fn no_ip(tag: Option<[u8; 2]>) -> Attributes {
    let (tagged, further) = behind(tag);
    let kind = tagged.load_transport_header(INNER_TYPE + further, 2);
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
