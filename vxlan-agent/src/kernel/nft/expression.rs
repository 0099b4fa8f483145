//! Expressions: what a rule is made of. All of them use one register.

use nix::libc;

use super::{Attributes, nfta};

/// `NFT_REG_1`, of 16 bytes.
const REGISTER: u32 = libc::NFT_REG_1 as u32;

fn expression(list: Attributes, name: &str, data: &Attributes) -> Attributes {
    let expression = Attributes::default().string(nfta::EXPR_NAME, name).nest(nfta::EXPR_DATA, data);
    list.nest(nfta::LIST_ELEM, &expression)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(nfta::DATA_VALUE, bytes)
}

/// What becomes of a masqueraded packet's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ports {
    /// Any, at random.
    Random,
    /// The same if it is free, else the next that is.
    Kept,
}

impl Attributes {
    /// Loads a property of the packet, `NFT_META_…`.
    #[must_use]
    pub fn load_meta(self, key: i32) -> Self {
        let data = Attributes::default().number(1, REGISTER).number(2, key as u32);
        expression(self, "meta", &data)
    }

    /// Loads `length` bytes at `offset` of the network header.
    #[must_use]
    pub fn load_network_header(self, offset: u32, length: u32) -> Self {
        self.load_header(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length)
    }

    /// Loads `length` bytes at `offset` of the transport header.
    #[must_use]
    pub fn load_transport_header(self, offset: u32, length: u32) -> Self {
        self.load_header(libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset, length)
    }

    /// Loads `length` bytes at `offset` of the first IPv6 extension header of type `kind`. Kernels before
    /// 5.17 look for it in IPv4 packets, too.
    #[must_use]
    pub fn load_extension_header(self, kind: u8, offset: u32, length: u32) -> Self {
        let data =
            Attributes::default().number(1, REGISTER).bytes(2, &[kind]).number(3, offset).number(4, length);
        expression(self, "exthdr", &data)
    }

    fn load_header(self, base: i32, offset: u32, length: u32) -> Self {
        self.load_header_into(REGISTER, base, offset, length)
    }

    /// As [`load_network_header`](Self::load_network_header), for a key of several fields: into the
    /// register `NFT_REG32_…`.
    #[must_use]
    pub fn load_network_header_into(self, register: u32, offset: u32, length: u32) -> Self {
        self.load_header_into(register, libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length)
    }

    /// As [`load_transport_header`](Self::load_transport_header), into the register `NFT_REG32_…`.
    #[must_use]
    pub fn load_transport_header_into(self, register: u32, offset: u32, length: u32) -> Self {
        self.load_header_into(register, libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset, length)
    }

    fn load_header_into(self, register: u32, base: i32, offset: u32, length: u32) -> Self {
        let data = Attributes::default()
            .number(1, register)
            .number(2, base as u32)
            .number(3, offset)
            .number(4, length);
        expression(self, "payload", &data)
    }

    /// Leaves of what was loaded only the bits of `mask`.
    #[must_use]
    pub fn mask(self, mask: &[u8]) -> Self {
        self.mask_in(REGISTER, mask)
    }

    /// As [`mask`](Self::mask), of what is in the register `NFT_REG32_…` and those behind it.
    #[must_use]
    pub fn mask_in(self, register: u32, mask: &[u8]) -> Self {
        let length = u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let data = Attributes::default()
            .number(1, register)
            .number(2, register)
            .number(3, length)
            .nest(4, &value(mask))
            .nest(5, &value(&vec![0; mask.len()]));
        expression(self, "bitwise", &data)
    }

    /// Turns four bytes in the register `NFT_REG32_…` from network to host byte order.
    #[must_use]
    pub fn to_host(self, register: u32) -> Self {
        let data = Attributes::default()
            .number(1, register)
            .number(2, register)
            .number(3, libc::NFT_BYTEORDER_NTOH as u32)
            .number(4, 4)
            .number(5, 4);
        expression(self, "byteorder", &data)
    }

    /// Goes on only if what was loaded is `bytes`.
    #[must_use]
    pub fn is(self, bytes: &[u8]) -> Self {
        self.compare(libc::NFT_CMP_EQ, bytes)
    }

    /// Goes on only if what was loaded is something else than `bytes`.
    #[must_use]
    pub fn is_not(self, bytes: &[u8]) -> Self {
        self.compare(libc::NFT_CMP_NEQ, bytes)
    }

    fn compare(self, operator: i32, bytes: &[u8]) -> Self {
        let data =
            Attributes::default().number(1, REGISTER).number(2, operator as u32).nest(3, &value(bytes));
        expression(self, "cmp", &data)
    }

    /// Goes on only if what was loaded is in `set`.
    #[must_use]
    pub fn is_in(self, set: &str) -> Self {
        self.is_in_from(REGISTER, set)
    }

    /// As [`is_in`](Self::is_in), with a key that begins in the register `NFT_REG32_…`.
    #[must_use]
    pub fn is_in_from(self, register: u32, set: &str) -> Self {
        let data = Attributes::default().string(1, set).number(2, register);
        expression(self, "lookup", &data)
    }

    /// Goes on only if what was loaded is not in `set`.
    #[must_use]
    pub fn is_not_in(self, set: &str) -> Self {
        self.is_not_in_from(REGISTER, set)
    }

    /// As [`is_not_in`](Self::is_not_in), with a key that begins in the register `NFT_REG32_…`.
    #[must_use]
    pub fn is_not_in_from(self, register: u32, set: &str) -> Self {
        let inverted = libc::NFT_LOOKUP_F_INV as u32;
        let data = Attributes::default().string(1, set).number(2, register).number(5, inverted);
        expression(self, "lookup", &data)
    }

    /// Counts the packet.
    #[must_use]
    pub fn count(self) -> Self {
        expression(self, "counter", &Attributes::default())
    }

    /// Drops the packet.
    #[must_use]
    pub fn drop(self) -> Self {
        self.verdict(libc::NF_DROP)
    }

    /// Lets the packet pass this chain.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(libc::NF_ACCEPT)
    }

    fn verdict(self, code: i32) -> Self {
        let code = Attributes::default().number(1, code as u32);
        let data = Attributes::default()
            .number(1, libc::NFT_REG_VERDICT as u32)
            .nest(2, &Attributes::default().nest(2, &code));
        expression(self, "immediate", &data)
    }

    /// Keeps conntrack from following the packet.
    #[must_use]
    pub fn untracked(self) -> Self {
        expression(self, "notrack", &Attributes::default())
    }

    /// Gives the packet an address of the interface that it leaves by, and a random port.
    #[must_use]
    pub fn masquerade(self, ports: Ports) -> Self {
        let data = match ports {
            // NF_NAT_RANGE_PROTO_RANDOM_FULLY: ports counted up collide when two CPUs count.
            Ports::Random => Attributes::default().number(1, 1 << 4),
            Ports::Kept => Attributes::default(),
        };
        expression(self, "masq", &data)
    }
}
