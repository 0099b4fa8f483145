//! nf_tables over netlink, as far as a table of our own needs it.
//!
//! A change is one [`Batch`], which the kernel takes on as a whole or not at all: nobody sees half
//! of it. Written out here because no crate fits: the pure ones are under the GPL or hardly begun,
//! and the others call a C library or the program `nft`.

pub mod attributes;
pub mod chains;
pub mod expression;
pub mod set;
mod socket;

use std::io;

use nix::libc;

pub use attributes::Attributes;
use socket::Socket;

/// `NFPROTO_UNSPEC`: in a request for a dump, tables of all families.
pub const ANY: u8 = 0;
/// `NFPROTO_INET`: tables that see IPv4 and IPv6.
pub const INET: u8 = 1;
/// Flags of requests that create.
pub const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_APPEND) as u16;

/// Numbers of attributes, from `linux/netfilter/nf_tables.h`.
#[allow(missing_docs, reason = "named as there")]
pub mod nfta {
    pub const GEN_ID: u16 = 1;
    pub const TABLE_NAME: u16 = 1;
    pub const TABLE_FLAGS: u16 = 2;
    pub const CHAIN_TABLE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const CHAIN_HOOK: u16 = 4;
    pub const CHAIN_POLICY: u16 = 5;
    pub const CHAIN_TYPE: u16 = 7;
    pub const HOOK_HOOKNUM: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    pub const HOOK_DEV: u16 = 3;
    pub const HOOK_DEVS: u16 = 4;
    pub const DEVICE_NAME: u16 = 1;
    pub const DEVICE_PREFIX: u16 = 2;
    pub const RULE_TABLE: u16 = 1;
    pub const RULE_CHAIN: u16 = 2;
    pub const RULE_HANDLE: u16 = 3;
    pub const RULE_EXPRESSIONS: u16 = 4;
    pub const RULE_USERDATA: u16 = 7;
    pub const SET_TABLE: u16 = 1;
    pub const SET_NAME: u16 = 2;
    pub const SET_FLAGS: u16 = 3;
    pub const SET_KEY_TYPE: u16 = 4;
    pub const SET_KEY_LEN: u16 = 5;
    pub const SET_DESC: u16 = 9;
    pub const SET_ID: u16 = 10;
    pub const SET_OBJ_TYPE: u16 = 15;
    pub const SET_EXPR: u16 = 17;
    pub const SET_EXPRESSIONS: u16 = 18;
    pub const SET_DESC_CONCAT: u16 = 2;
    pub const SET_FIELD_LEN: u16 = 1;
    pub const SET_ELEM_LIST_TABLE: u16 = 1;
    pub const SET_ELEM_LIST_SET: u16 = 2;
    pub const SET_ELEM_LIST_ELEMENTS: u16 = 3;
    pub const SET_ELEM_KEY: u16 = 1;
    pub const SET_ELEM_DATA: u16 = 2;
    pub const SET_ELEM_FLAGS: u16 = 3;
    pub const SET_ELEM_KEY_END: u16 = 10;
    pub const LIST_ELEM: u16 = 1;
    pub const DATA_VALUE: u16 = 1;
    pub const RANGE_OP: u16 = 2;
    pub const RANGE_FROM: u16 = 3;
    pub const RANGE_TO: u16 = 4;
    pub const BITWISE_MASK: u16 = 4;
    pub const EXPR_NAME: u16 = 1;
    pub const EXPR_DATA: u16 = 2;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
    pub const IMMEDIATE_DREG: u16 = 1;
    pub const IMMEDIATE_DATA: u16 = 2;
    pub const LOOKUP_SET: u16 = 1;
    pub const LOOKUP_DREG: u16 = 3;
    pub const DYNSET_EXPR: u16 = 7;
    pub const DYNSET_EXPRESSIONS: u16 = 10;
    pub const OBJREF_IMM_TYPE: u16 = 1;
    pub const OBJREF_SET_NAME: u16 = 4;
    pub const CMP_OP: u16 = 2;
    pub const CMP_DATA: u16 = 3;
    pub const CT_KEY: u16 = 2;
    pub const CT_SREG: u16 = 4;
    pub const META_KEY: u16 = 2;
    pub const META_SREG: u16 = 3;
    pub const PAYLOAD_BASE: u16 = 2;
    pub const PAYLOAD_OFFSET: u16 = 3;
    pub const PAYLOAD_LEN: u16 = 4;
    pub const PAYLOAD_SREG: u16 = 5;
    pub const EXTHDR_SREG: u16 = 7;
    pub const MATCH_NAME: u16 = 1;
    pub const MATCH_REV: u16 = 2;
    pub const MATCH_INFO: u16 = 3;
    pub const TARGET_NAME: u16 = 1;
}

/// Type of the comment in a rule's user data, as `nft` writes and shows it.
const UDATA_COMMENT: u8 = 0;

/// Changes that take effect together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    messages: Vec<Message>,
}

#[derive(Clone, Debug)]
struct Message {
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: Attributes,
}

impl Batch {
    /// Adds a request of type `kind` (`NFT_MSG_…`).
    pub fn push(&mut self, kind: i32, flags: u16, attributes: Attributes) {
        self.messages.push(Message::nftables(kind, flags, attributes));
    }

    /// Has the kernel carry it out.
    ///
    /// # Errors
    /// The kernel's first objection; nothing has changed then.
    pub fn commit(self) -> io::Result<()> {
        self.send(true)
    }

    /// Asks the kernel whether it would carry it out; nothing changes.
    ///
    /// # Errors
    /// The kernel's first objection.
    pub fn check(self) -> io::Result<()> {
        // A batch without an end is undone (`nfnetlink_rcv_batch`, v6.18), as `nft --check` knows.
        self.send(false)
    }

    fn send(mut self, whole: bool) -> io::Result<()> {
        // The last one's answer says that all went well; the others speak up only if not.
        if let Some(last) = self.messages.last_mut() {
            last.flags |= libc::NLM_F_ACK as u16;
        }
        let last = self.messages.len();
        let begin = Message::control(libc::NFNL_MSG_BATCH_BEGIN);
        let end = whole.then(|| Message::control(libc::NFNL_MSG_BATCH_END));
        let all = std::iter::once(&begin).chain(&self.messages).chain(&end);
        let bytes: Vec<u8> = (0u32..).zip(all).flat_map(|(number, m)| m.to_bytes(number)).collect();
        let socket = Socket::open()?;
        socket.send(&bytes)?;
        socket.await_acknowledgement(u32::try_from(last).unwrap_or(u32::MAX))
    }

    /// Whether it changes nothing.
    pub const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

/// Reads what is there, object by object.
pub struct Reader {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Reader {
    /// In the network namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel has no nf_tables, or allows no netlink socket.
    pub fn open() -> io::Result<Self> {
        Ok(Self { socket: Socket::open()?, buffer: vec![0; socket::ANSWER] })
    }

    /// Hands family and attributes of everything that a request of type `kind` (`NFT_MSG_GET…`) asks for
    /// to `each`.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn dump(
        &mut self,
        kind: i32,
        family: u8,
        attributes: Attributes,
        each: impl FnMut(u8, &[u8]),
    ) -> io::Result<()> {
        let request = Message::nftables(kind, libc::NLM_F_DUMP as u16, attributes);
        self.socket.send(&Message { family, ..request }.to_bytes(1))?;
        self.socket.collect(&mut self.buffer, each)
    }

    /// The number of the rules' generation: another after every change of anything here.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn generation(&mut self) -> io::Result<u32> {
        let request = Message::nftables(libc::NFT_MSG_GETGEN, libc::NLM_F_ACK as u16, Attributes::default());
        self.socket.send(&request.to_bytes(1))?;
        let mut generation = None;
        self.socket.collect(&mut self.buffer, |_, attributes| {
            generation = attributes::find_number(attributes, nfta::GEN_ID).or(generation);
        })?;
        generation.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))
    }
}

/// Names of all tables that see IPv4 and IPv6.
///
/// # Errors
/// The kernel does not say.
pub fn tables() -> io::Result<Vec<String>> {
    let mut tables = vec![];
    Reader::open()?.dump(libc::NFT_MSG_GETTABLE, INET, Attributes::default(), |_, attributes| {
        tables.extend(attributes::find_string(attributes, nfta::TABLE_NAME));
    })?;
    Ok(tables)
}

/// The comments of all rules of the table `table`, in order; empty where there is no such table.
///
/// # Errors
/// The kernel does not say.
pub fn comments(table: &str) -> io::Result<Vec<String>> {
    let asked = Attributes::default().string(nfta::RULE_TABLE, table);
    let mut comments = vec![];
    Reader::open()?.dump(libc::NFT_MSG_GETRULE, INET, asked, |_, attributes| {
        let find = |wanted| attributes::find(attributes, wanted);
        // Kernels before 5.16 dump all tables' rules if the one asked for does not exist.
        if find(nfta::RULE_TABLE).is_some_and(|name| name.strip_suffix(b"\0") == Some(table.as_bytes())) {
            comments.push(find(nfta::RULE_USERDATA).and_then(comment).unwrap_or_default());
        }
    })?;
    Ok(comments)
}

/// A rule's user data with a comment of at most 127 bytes.
pub fn user_data(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(127)];
    let length = u8::try_from(text.len() + 1).unwrap_or(u8::MAX);
    [&[UDATA_COMMENT, length], text, &[0]].concat()
}

fn comment(user_data: &[u8]) -> Option<String> {
    let (&[kind, length], rest) = user_data.split_first_chunk()?;
    let text = rest.get(..usize::from(length))?.strip_suffix(b"\0")?;
    (kind == UDATA_COMMENT).then(|| String::from_utf8_lossy(text).into_owned())
}

impl Message {
    fn nftables(kind: i32, flags: u16, attributes: Attributes) -> Self {
        let kind = (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16;
        Self { kind, flags, family: INET, resource: 0, attributes }
    }

    fn control(kind: i32) -> Self {
        let resource = libc::NFNL_SUBSYS_NFTABLES as u16;
        Self { kind: kind as u16, flags: 0, family: 0, resource, attributes: Attributes::default() }
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn to_bytes(&self, number: u32) -> Vec<u8> {
        let content = self.attributes.as_bytes();
        let flags = self.flags | libc::NLM_F_REQUEST as u16;
        let mut bytes = Vec::with_capacity(20 + content.len());
        bytes.extend(u32::try_from(20 + content.len()).unwrap_or(u32::MAX).to_ne_bytes());
        bytes.extend(self.kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(number.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend([self.family, libc::NFNETLINK_V0 as u8]);
        bytes.extend(self.resource.to_be_bytes());
        bytes.extend(content);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_are_read_as_they_were_written() {
        assert_eq!(comment(&user_data("pods to elsewhere")).as_deref(), Some("pods to elsewhere"));
        assert_eq!(comment(&user_data(&"x".repeat(500))).map(|c| c.len()), Some(127));
        for broken in [&[][..], &[0], &[0, 9, b'x'], &[1, 2, b'x', 0], &[0, 1, b'x']] {
            assert_eq!(comment(broken), None, "{broken:?}");
        }
    }
}
