//! Sets that rules look packets up in.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use nix::libc;

use super::{Attributes, Batch, CREATE, INET, Reader, attributes, nfta};

/// Elements per message: what a message nests has to stay below 64 KiB.
const AT_ONCE: usize = 400;

/// What a key consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// A VNI, in the host's byte order.
    Vni,
    /// A UDP port.
    Port,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
}

impl Field {
    /// In bytes.
    pub const fn length(self) -> u32 {
        match self {
            Self::Port => 2,
            Self::Vni | Self::Ipv4 => 4,
            Self::Ipv6 => 16,
        }
    }

    /// In bytes, as one of several fields.
    pub const fn padded(self) -> u32 {
        self.length().next_multiple_of(4)
    }

    /// `mark`, `inet_service`, `ipv4_addr` and `ipv6_addr` among the data types of `nft`, which shows
    /// elements by them. It has none of its own for a VNI.
    const fn kind(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Port => 13,
            Self::Vni => 19,
        }
    }
}

/// A key that a set holds, field by field, each padded to four bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Element(Vec<u8>);

impl Element {
    /// With an address.
    #[must_use]
    pub fn address(mut self, ip: IpAddr) -> Self {
        self.0.extend(octets(ip));
        self
    }

    /// With a UDP port.
    #[must_use]
    pub fn port(mut self, port: u16) -> Self {
        self.0.extend(port.to_be_bytes());
        self.0.extend([0; 2]);
        self
    }

    /// With a VNI.
    #[must_use]
    pub fn vni(mut self, vni: u32) -> Self {
        self.0.extend(vni.to_ne_bytes());
        self
    }

    /// Whether it begins with all of `other`.
    pub fn begins_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// As an element of a set whose keys are so long, in bytes.
    fn attributes(&self, length: usize) -> Attributes {
        let value = Attributes::default().bytes(nfta::DATA_VALUE, &self.0[..self.0.len().min(length)]);
        Attributes::default().nest(nfta::SET_ELEM_KEY, &value)
    }

    /// As the kernel describes it.
    fn read(attributes: &[u8]) -> Option<Self> {
        let nested = attributes::find(attributes, nfta::SET_ELEM_KEY)?;
        let mut key = attributes::find(nested, nfta::DATA_VALUE)?.to_vec();
        key.resize(key.len().next_multiple_of(4), 0);
        Some(Self(key))
    }
}

/// The address in network byte order.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// A set as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What its keys consist of.
    pub fields: Vec<Field>,
    /// What it holds.
    pub elements: BTreeSet<Element>,
}

impl Set {
    /// Of its keys, in bytes.
    fn key_length(&self) -> u32 {
        match self.fields.as_slice() {
            [only] => only.length(),
            several => several.iter().map(|field| field.padded()).sum(),
        }
    }
}

impl Batch {
    /// Adds the set `name` to `table`, with what it holds; `id` tells it from others of the batch.
    pub fn add_set(&mut self, table: &str, name: &str, set: &Set, id: u32) {
        let attributes = Attributes::default()
            .string(nfta::SET_TABLE, table)
            .string(nfta::SET_NAME, name)
            .number(nfta::SET_ID, id)
            .number(nfta::SET_KEY_TYPE, set.fields.iter().fold(0, |kind, field| kind << 6 | field.kind()))
            .number(nfta::SET_KEY_LEN, set.key_length());
        self.push(libc::NFT_MSG_NEWSET, CREATE, attributes);
        self.change_elements(libc::NFT_MSG_NEWSETELEM, (table, name, set), &set.elements);
    }

    /// Turns what the set holds from `before` into what it should.
    pub fn update_set(&mut self, table: &str, name: &str, set: &Set, before: &BTreeSet<Element>) {
        let at = (table, name, set);
        self.change_elements(libc::NFT_MSG_DELSETELEM, at, before.difference(&set.elements));
        self.change_elements(libc::NFT_MSG_NEWSETELEM, at, set.elements.difference(before));
    }

    fn change_elements<'a>(
        &mut self,
        kind: i32,
        (table, name, set): (&str, &str, &Set),
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let flags = if kind == libc::NFT_MSG_NEWSETELEM { CREATE } else { 0 };
        let length = set.key_length() as usize;
        let elements: Vec<&Element> = elements.into_iter().collect();
        for some in elements.chunks(AT_ONCE) {
            let nested = |list: Attributes, e: &&Element| list.nest(nfta::LIST_ELEM, &e.attributes(length));
            let list = some.iter().fold(Attributes::default(), nested);
            let attributes = named(table, name).nest(nfta::SET_ELEM_LIST_ELEMENTS, &list);
            self.push(kind, flags, attributes);
        }
    }
}

fn named(table: &str, set: &str) -> Attributes {
    Attributes::default().string(nfta::SET_ELEM_LIST_TABLE, table).string(nfta::SET_ELEM_LIST_SET, set)
}

/// Names of the sets of `table`; none where there is no such table.
///
/// # Errors
/// The kernel does not say.
pub fn names(reader: &mut Reader, table: &str) -> io::Result<Vec<String>> {
    let mut names = vec![];
    let asked = Attributes::default().string(nfta::SET_TABLE, table);
    let dumped = reader.dump(libc::NFT_MSG_GETSET, INET, asked, |_, attributes| {
        let find = |wanted| attributes::find_string(attributes, wanted);
        if find(nfta::SET_TABLE).as_deref() == Some(table) {
            names.extend(find(nfta::SET_NAME));
        }
    });
    match dumped {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(vec![]),
        dumped => dumped.map(|()| names),
    }
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

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn fields_of_a_key_are_padded_to_four_bytes() {
        let key = Element::default().vni(0x0100).port(4789).address(ip("192.0.2.2"));
        assert_eq!(key.0[..4], 0x0100u32.to_ne_bytes());
        assert_eq!(key.0[4..], [0x12, 0xb5, 0, 0, 192, 0, 2, 2]);
        let set = |fields: &[Field]| Set { fields: fields.to_vec(), elements: BTreeSet::new() };
        assert_eq!(set(&[Field::Vni, Field::Port, Field::Ipv4]).key_length(), 12);
        assert_eq!(set(&[Field::Port]).key_length(), 2);
    }

    #[test]
    fn elements_are_read_as_they_were_written() {
        let network = Element::default().vni(7).port(4789);
        let address = network.clone().address(ip("2001:db8::2"));
        assert!(address.begins_with(&network) && !network.begins_with(&address));
        for (element, length) in [(address, 24), (Element::default().port(4789), 2)] {
            assert_eq!(Element::read(element.attributes(length).as_bytes()), Some(element));
        }
        assert_eq!(Element::read(&[]), None);
    }
}
