//! Masquerading, in an nf_tables table of our own.
//!
//! - From a pod to anything but pods and multicast: the node's address, because nobody outside
//!   knows the way to a pod.
//! - From elsewhere through the tunnel to a pod: the tunnel's address, so that the answer comes
//!   back the same way. That is a node's process that uses another of the node's addresses, or a
//!   client outside whose connection to a service this node passes on.
//!
//! Between pods, never.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::io;

use anyhow::anyhow;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::libc;

use crate::kernel::nft::{self, Attributes, Batch, CREATE, nfta};
use crate::ownership;

const CHAIN: &str = "postrouting";
/// `ipv4_addr` and `ipv6_addr` among the data types of `nft`, which it shows elements by.
const KEY_TYPES: [u32; 2] = [7, 8];
/// `NFT_SET_ELEM_INTERVAL_END`.
const INTERVAL_END: u32 = 1;

/// What should be masqueraded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Masquerade {
    /// Name of the network, which the table is named after.
    pub network: String,
    /// Networks of all pods of the cluster, at most one of each IP version, and the name of the
    /// vxlan device that leads to them.
    pub pods: Vec<(IpNetwork, String)>,
}

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

impl Masquerade {
    /// Puts the table in place if it is not there already as it should be; whether it was not. A
    /// table that is there is replaced in one step.
    pub fn install(&self) -> anyhow::Result<bool> {
        let table = ownership::nft_table(&self.network);
        let rules = self.rules();
        let wanted: Vec<&str> = rules.iter().map(|(comment, _)| comment.as_str()).collect();
        if nft::comments(&table).map_err(|e| explain(&e))? == wanted {
            return Ok(false);
        }
        let mut batch = Batch::default();
        delete_table(&mut batch, &table);
        let named = Attributes::default().string(nfta::TABLE_NAME, &table);
        batch.push(libc::NFT_MSG_NEWTABLE, CREATE, named);
        add_chain(&mut batch, &table);
        for (id, (network, _, version)) in (1..).zip(self.networks()) {
            add_set(&mut batch, &table, network, version, id);
        }
        for (comment, expressions) in &rules {
            let rule = Attributes::default()
                .string(nfta::RULE_TABLE, &table)
                .string(nfta::RULE_CHAIN, CHAIN)
                .nest(nfta::RULE_EXPRESSIONS, expressions)
                .bytes(nfta::RULE_USERDATA, &nft::user_data(comment));
            batch.push(libc::NFT_MSG_NEWRULE, CREATE, rule);
        }
        batch.commit().map_err(|e| explain(&e))?;
        Ok(true)
    }

    fn networks(&self) -> impl Iterator<Item = (IpNetwork, &str, &'static Version)> {
        let version = |network: &IpNetwork| if network.is_ipv4() { &V4 } else { &V6 };
        self.pods.iter().map(move |(network, device)| (*network, device.as_str(), version(network)))
    }

    /// Rules with their comments, which carry a mark of everything that the table depends on.
    fn rules(&self) -> Vec<(String, Attributes)> {
        let mut hasher = DefaultHasher::new();
        (self, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
        let mark = hasher.finish();
        let rules = self.networks().flat_map(|(_, device, version)| {
            [
                (format!("pods to elsewhere, {mark:016x}"), pods_to_elsewhere(version)),
                (format!("elsewhere to pods, {mark:016x}"), elsewhere_to_pods(version, device)),
            ]
        });
        rules.collect()
    }
}

/// Removes the table of `network`; whether there was one.
pub fn remove(network: &str) -> anyhow::Result<bool> {
    let mut batch = Batch::default();
    let table = Attributes::default().string(nfta::TABLE_NAME, &ownership::nft_table(network));
    batch.push(libc::NFT_MSG_DELTABLE, 0, table);
    match batch.commit() {
        Ok(()) => Ok(true),
        // No such table, or a kernel that has no tables at all.
        Err(error) if [Errno::ENOENT, Errno::EOPNOTSUPP].contains(&errno(&error)) => Ok(false),
        Err(error) => Err(explain(&error)),
    }
}

/// Creates it first, so that there is one to delete.
fn delete_table(batch: &mut Batch, table: &str) {
    let named = || Attributes::default().string(nfta::TABLE_NAME, table);
    batch.push(libc::NFT_MSG_NEWTABLE, CREATE, named());
    batch.push(libc::NFT_MSG_DELTABLE, 0, named());
}

fn add_chain(batch: &mut Batch, table: &str) {
    let hook = Attributes::default()
        .number(nfta::HOOK_HOOKNUM, libc::NF_INET_POST_ROUTING as u32)
        .number(nfta::HOOK_PRIORITY, libc::NF_IP_PRI_NAT_SRC as u32);
    let chain = Attributes::default()
        .string(nfta::CHAIN_TABLE, table)
        .string(nfta::CHAIN_NAME, CHAIN)
        .nest(nfta::CHAIN_HOOK, &hook)
        .string(nfta::CHAIN_TYPE, "nat");
    batch.push(libc::NFT_MSG_NEWCHAIN, CREATE, chain);
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
    let rule = match version.number == V4.number {
        true => rule.load_network_header(destination, length).mask(&[0xf0, 0, 0, 0]).is_not(&[0xe0, 0, 0, 0]),
        false => rule.load_network_header(destination, 1).is_not(&[0xff]),
    };
    rule.masquerade()
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
        .masquerade()
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn explain(error: &io::Error) -> anyhow::Error {
    match errno(error) {
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => anyhow!(
            "this kernel has no nf_tables: load the module 'nf_tables', or set masquerade = false in [pods]"
        ),
        Errno::ENOENT => anyhow!(
            "this kernel's nf_tables cannot masquerade: load the modules 'nft_chain_nat' and 'nft_masq', or set masquerade = false in [pods]"
        ),
        _ => anyhow!("nf_tables refused the masquerade rules: {error}"),
    }
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

    #[test]
    fn the_mark_in_the_comments_tells_one_rule_set_from_another() {
        let rules = |pods: &str, device: &str| {
            let pods = vec![(pods.parse().expect("a network"), device.into())];
            Masquerade { network: "pods".into(), pods }.rules()
        };
        let base = rules("10.244.0.0/16", "vxlan1");
        assert_eq!(base.len(), 2, "one family, two rules");
        assert_eq!(base, rules("10.244.0.0/16", "vxlan1"));
        assert_ne!(base[0].0, rules("10.245.0.0/16", "vxlan1")[0].0);
        assert_ne!(base[0].0, rules("10.244.0.0/16", "vxlan2")[0].0);
    }
}
