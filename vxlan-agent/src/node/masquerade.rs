//! Masquerading, in an nf_tables table of our own.
//!
//! - From a pod to anything but pods and multicast: the node's address, because nobody outside
//!   knows the way to a pod.
//! - From elsewhere through the tunnel to a pod: the tunnel's address, so that the answer comes
//!   back the same way. That is a node's process that uses another of the node's addresses, or a
//!   client outside whose connection to a service this node passes on.
//!
//! Between pods, never.

use ipnetwork::IpNetwork;
use nix::libc;

use super::table::Chain;
use crate::kernel::nft::expression::Ports;
use crate::kernel::nft::{Attributes, Batch, CREATE, nfta};

/// `ipv4_addr` and `ipv6_addr` among the data types of `nft`, which it shows elements by.
const KEY_TYPES: [u32; 2] = [7, 8];
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// What differs between the IP versions.
struct Version {
    number: u8,
    set: &'static str,
    source: u32,
    destination: u32,
    length: u32,
}

const V4: Version =
    Version { number: libc::NFPROTO_IPV4 as u8, set: "pods4", source: 12, destination: 16, length: 4 };
const V6: Version =
    Version { number: libc::NFPROTO_IPV6 as u8, set: "pods6", source: 8, destination: 24, length: 16 };

/// The rules for `pods`: networks of pods, and the name of the vxlan device that leads to them.
pub(super) fn chain(pods: &[(IpNetwork, String)], ports: Ports) -> Chain {
    let rules = pods.iter().flat_map(|(network, device)| {
        let version = version(*network);
        [
            ("pods to elsewhere", pods_to_elsewhere(version).masquerade(ports)),
            ("elsewhere to pods", elsewhere_to_pods(version, device).masquerade(ports)),
        ]
    });
    Chain {
        name: "postrouting",
        kind: "nat",
        hook: libc::NF_INET_POST_ROUTING,
        priority: libc::NF_IP_PRI_NAT_SRC,
        rules: rules.collect(),
    }
}

/// The sets of pods that the rules name.
pub(super) fn add_sets(batch: &mut Batch, table: &str, pods: &[(IpNetwork, String)]) {
    for (id, (network, _)) in (1..).zip(pods) {
        add_set(batch, table, *network, version(*network), id);
    }
}

fn version(network: IpNetwork) -> &'static Version {
    if network.is_ipv4() { &V4 } else { &V6 }
}

fn add_set(batch: &mut Batch, table: &str, network: IpNetwork, version: &Version, id: u32) {
    let [type4, type6] = KEY_TYPES;
    let set = Attributes::default()
        .string(nfta::SET_TABLE, table)
        .string(nfta::SET_NAME, version.set)
        .number(nfta::SET_FLAGS, (libc::NFT_SET_CONSTANT | libc::NFT_SET_INTERVAL) as u32)
        .number(nfta::SET_KEY_TYPE, if network.is_ipv4() { type4 } else { type6 })
        .number(nfta::SET_KEY_LEN, version.length)
        .number(nfta::SET_ID, id);
    batch.push(libc::NFT_MSG_NEWSET, CREATE, set);
    let (first, after) = interval(network);
    let element = |address: &[u8], flags: u32| {
        let key = Attributes::default().bytes(nfta::DATA_VALUE, address);
        let element = Attributes::default().nest(nfta::SET_ELEM_KEY, &key);
        if flags == 0 { element } else { element.number(nfta::SET_ELEM_FLAGS, flags) }
    };
    let mut list = Attributes::default().nest(nfta::LIST_ELEM, &element(&first, 0));
    if let Some(after) = after {
        list = list.nest(nfta::LIST_ELEM, &element(&after, INTERVAL_END));
    }
    let elements = Attributes::default()
        .string(nfta::SET_ELEM_LIST_TABLE, table)
        .string(nfta::SET_ELEM_LIST_SET, version.set)
        .nest(nfta::SET_ELEM_LIST_ELEMENTS, &list);
    batch.push(libc::NFT_MSG_NEWSETELEM, CREATE, elements);
}

/// First address of `network` and the one after its last, unless that is the last of all.
fn interval(network: IpNetwork) -> (Vec<u8>, Option<Vec<u8>>) {
    match network {
        IpNetwork::V4(n) => {
            let after = n.broadcast().to_bits().checked_add(1);
            (n.network().octets().into(), after.map(|a| a.to_be_bytes().into()))
        }
        IpNetwork::V6(n) => {
            let after = n.broadcast().to_bits().checked_add(1);
            (n.network().octets().into(), after.map(|a| a.to_be_bytes().into()))
        }
    }
}

fn of_this(version: &Version) -> Attributes {
    Attributes::default().load_meta(libc::NFT_META_NFPROTO).is(&[version.number])
}

fn pods_to_elsewhere(version: &Version) -> Attributes {
    let Version { set, source, destination, length, .. } = *version;
    let rule = of_this(version)
        .load_network_header(source, length)
        .is_in(set)
        .load_network_header(destination, length)
        .is_not_in(set);
    // 224.0.0.0/4 and ff00::/8.
    match version.number == V4.number {
        true => rule.load_network_header(destination, length).mask(&[0xf0, 0, 0, 0]).is_not(&[0xe0, 0, 0, 0]),
        false => rule.load_network_header(destination, 1).is_not(&[0xff]),
    }
}

fn elsewhere_to_pods(version: &Version, device: &str) -> Attributes {
    let Version { set, source, destination, length, .. } = *version;
    let mut name = [0; libc::IFNAMSIZ];
    name.iter_mut().zip(device.bytes()).for_each(|(to, from)| *to = from);
    of_this(version)
        .load_network_header(source, length)
        .is_not_in(set)
        .load_network_header(destination, length)
        .is_in(set)
        .load_meta(libc::NFT_META_OIFNAME)
        .is(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_ends_after_the_last_address() {
        let of = |text: &str| interval(text.parse().expect("a network"));
        assert_eq!(of("10.244.0.0/16"), (vec![10, 244, 0, 0], Some(vec![10, 245, 0, 0])));
        assert_eq!(of("128.0.0.0/1"), (vec![128, 0, 0, 0], None));
        let (first, after) = of("fd00:244::/48");
        assert_eq!(first[..6], [0xfd, 0, 0x02, 0x44, 0, 0]);
        assert_eq!(after.map(|a| a[..6].to_vec()), Some(vec![0xfd, 0, 0x02, 0x44, 0, 1]));
    }
}
