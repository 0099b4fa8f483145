//! Netlink attributes: type, length, value, padded to four bytes.

use nix::libc;

/// A list of attributes under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Attributes(Vec<u8>);

const HEADER: usize = 4;

impl Attributes {
    /// With a value of bytes.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(HEADER + value.len()).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// With a number, in network byte order as nf_tables has all of them.
    #[must_use]
    pub fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// With a string, to which a zero byte is added.
    #[must_use]
    pub fn string(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// With attributes inside.
    #[must_use]
    pub fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | libc::NLA_F_NESTED as u16, &inner.0)
    }

    /// As they go into a message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The value of the first attribute of type `wanted` in a message's `attributes`.
pub fn find(attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    list(attributes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// A number, in network byte order as nf_tables has all of them.
pub fn find_number(attributes: &[u8], wanted: u16) -> Option<u32> {
    find(attributes, wanted)?.try_into().ok().map(u32::from_be_bytes)
}

/// A string, without the zero byte at its end.
pub fn find_string(attributes: &[u8], wanted: u16) -> Option<String> {
    find(attributes, wanted).map(string)
}

/// A value as a string, up to the first zero byte.
pub fn string(value: &[u8]) -> String {
    let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// Types and values of a message's `attributes`, as far as they are whole.
pub fn list(mut attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (header, _) = attributes.split_first_chunk::<HEADER>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & libc::NLA_TYPE_MASK as u16;
        let value = attributes.get(HEADER..length)?;
        attributes = attributes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_as_they_were_written() {
        let inner = Attributes::default().number(7, 1);
        let list = Attributes::default().string(1, "ab").bytes(2, b"xyzzy").nest(3, &inner);
        assert_eq!(find(list.as_bytes(), 1), Some(&b"ab\0"[..]));
        assert_eq!(find(list.as_bytes(), 2), Some(&b"xyzzy"[..]));
        assert_eq!(find(list.as_bytes(), 3).and_then(|n| find(n, 7)), Some(&[0, 0, 0, 1][..]));
        assert_eq!(find(list.as_bytes(), 4), None);
        assert_eq!(find_string(list.as_bytes(), 1).as_deref(), Some("ab"));
        assert_eq!(find(list.as_bytes(), 3).and_then(|n| find_number(n, 7)), Some(1));
        assert_eq!(find_number(list.as_bytes(), 2), None, "five bytes");
    }

    #[test]
    fn what_is_cut_off_is_not_found() {
        let list = Attributes::default().bytes(1, b"four").bytes(2, b"xyzzy");
        for length in 0..list.as_bytes().len() - 3 {
            assert_eq!(find(&list.as_bytes()[..length], 2), None, "{length} bytes");
        }
        assert_eq!(find(&[0; 64], 5), None, "a length of zero");
        assert_eq!(super::list(&[0; 64]).count(), 0);
    }

    #[test]
    fn a_list_ends_where_it_is_cut_off() {
        let two = [5, 0, 1, 0, 7, 0, 0, 0, 4, 0, 2, 0];
        assert_eq!(list(&two).collect::<Vec<_>>(), [(1, &[7][..]), (2, &[][..])]);
        assert_eq!(list(&two[..10]).count(), 1);
        assert_eq!(list(&[9, 0, 1, 0]).count(), 0);
    }
}
