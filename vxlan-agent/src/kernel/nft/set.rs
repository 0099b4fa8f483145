//! Sets of addresses that rules look packets up in.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;

use super::{Attributes, Batch, CREATE, INET, Reader, attributes, nfta};

/// Elements per message: what a message nests has to stay below 64 KiB.
const AT_ONCE: usize = 400;
/// `NFT_SET_CONCAT` (Linux 5.6).
const CONCAT: u32 = 0x80;

/// What a key consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
}

impl Field {
    /// In bytes.
    pub const fn length(self) -> u32 {
        match self {
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
        }
    }

    /// `ipv4_addr` and `ipv6_addr` among the data types of `nft`, which shows elements by them.
    const fn kind(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
        }
    }
}

/// What a set holds: a key, or all keys from one to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element {
    first: Vec<u8>,
    last: Option<Vec<u8>>,
}

impl Element {
    /// An address.
    pub fn address(ip: IpAddr) -> Self {
        Self { first: octets(ip), last: None }
    }

    /// An address with every address of `network`.
    pub fn pair(ip: IpAddr, network: IpNetwork) -> Self {
        let key = |other: IpAddr| [octets(ip), octets(other)].concat();
        Self { first: key(network.network()), last: Some(key(network.broadcast())) }
    }

    fn attributes(&self) -> Attributes {
        let value = |bytes: &[u8]| Attributes::default().bytes(nfta::DATA_VALUE, bytes);
        let element = Attributes::default().nest(nfta::SET_ELEM_KEY, &value(&self.first));
        match &self.last {
            Some(last) => element.nest(nfta::SET_ELEM_KEY_END, &value(last)),
            None => element,
        }
    }

    /// As the kernel describes it.
    fn read(attributes: &[u8]) -> Option<Self> {
        let value = |key| {
            let nested = attributes::find(attributes, key)?;
            attributes::find(nested, nfta::DATA_VALUE).map(<[u8]>::to_vec)
        };
        Some(Self { first: value(nfta::SET_ELEM_KEY)?, last: value(nfta::SET_ELEM_KEY_END) })
    }
}

/// The address in network byte order.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// A set as it should be. One field: addresses; several: pairs with ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// What its keys consist of.
    pub fields: Vec<Field>,
    /// What it holds.
    pub elements: BTreeSet<Element>,
}

impl Batch {
    /// Adds `set` to `table`, with what it holds; `id` tells it from others of the batch.
    pub fn add_set(&mut self, table: &str, set: &Set, id: u32) {
        let length = set.fields.iter().map(|field| field.length()).sum();
        let attributes = Attributes::default()
            .string(nfta::SET_TABLE, table)
            .string(nfta::SET_NAME, set.name)
            .number(nfta::SET_ID, id)
            .number(nfta::SET_KEY_TYPE, set.fields.iter().fold(0, |kind, field| kind << 6 | field.kind()))
            .number(nfta::SET_KEY_LEN, length);
        let attributes = if set.fields.len() > 1 { with_ranges(attributes, &set.fields) } else { attributes };
        self.push(libc::NFT_MSG_NEWSET, CREATE, attributes);
        self.change_elements(libc::NFT_MSG_NEWSETELEM, table, set.name, &set.elements);
    }

    /// Turns what the set holds from `before` into what it should.
    pub fn update_set(&mut self, table: &str, set: &Set, before: &BTreeSet<Element>) {
        self.change_elements(libc::NFT_MSG_DELSETELEM, table, set.name, before.difference(&set.elements));
        self.change_elements(libc::NFT_MSG_NEWSETELEM, table, set.name, set.elements.difference(before));
    }

    fn change_elements<'a>(
        &mut self,
        kind: i32,
        table: &str,
        name: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let flags = if kind == libc::NFT_MSG_NEWSETELEM { CREATE } else { 0 };
        let elements: Vec<&Element> = elements.into_iter().collect();
        for some in elements.chunks(AT_ONCE) {
            let nested = |list: Attributes, e: &&Element| list.nest(nfta::LIST_ELEM, &e.attributes());
            let list = some.iter().fold(Attributes::default(), nested);
            let attributes = named(table, name).nest(nfta::SET_ELEM_LIST_ELEMENTS, &list);
            self.push(kind, flags, attributes);
        }
    }
}

fn with_ranges(set: Attributes, fields: &[Field]) -> Attributes {
    let field = |list: Attributes, field: &Field| {
        let length = Attributes::default().number(nfta::SET_FIELD_LEN, field.length());
        list.nest(nfta::LIST_ELEM, &length)
    };
    let fields = fields.iter().fold(Attributes::default(), field);
    set.number(nfta::SET_FLAGS, libc::NFT_SET_INTERVAL as u32 | CONCAT)
        .nest(nfta::SET_DESC, &Attributes::default().nest(nfta::SET_DESC_CONCAT, &fields))
}

fn named(table: &str, set: &str) -> Attributes {
    Attributes::default().string(nfta::SET_ELEM_LIST_TABLE, table).string(nfta::SET_ELEM_LIST_SET, set)
}

/// What the set `name` of `table` holds.
///
/// # Errors
/// There is none, or the kernel does not say.
pub fn elements(reader: &mut Reader, table: &str, name: &str) -> io::Result<BTreeSet<Element>> {
    let mut found = BTreeSet::new();
    reader.dump(libc::NFT_MSG_GETSETELEM, INET, named(table, name), |_, attributes| {
        let elements = attributes::find(attributes, nfta::SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
        found.extend(attributes::list(elements).filter_map(|(_, element)| Element::read(element)));
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(ip: &str, network: &str) -> Element {
        Element::pair(ip.parse().expect("an address"), network.parse().expect("a network"))
    }

    #[test]
    fn a_pair_goes_from_the_first_to_the_last_address_of_a_network() {
        let range = pair("192.0.2.2", "10.2.0.0/24");
        assert_eq!(range.first, [192, 0, 2, 2, 10, 2, 0, 0]);
        assert_eq!(range.last.as_deref(), Some(&[192, 0, 2, 2, 10, 2, 0, 255][..]));
        let single = pair("192.0.2.2", "192.0.2.2/32");
        assert_eq!(single.last, Some(single.first));
    }

    #[test]
    fn elements_are_read_as_they_were_written() {
        let address = Element::address("2001:db8::2".parse().expect("an address"));
        for element in [pair("192.0.2.2", "fd00::/64"), address] {
            assert_eq!(Element::read(element.attributes().as_bytes()), Some(element));
        }
        assert_eq!(Element::read(&[]), None);
    }
}
