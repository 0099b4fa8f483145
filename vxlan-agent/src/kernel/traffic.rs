//! Traffic control of others: queueing disciplines and filters on interfaces.
//!
//! Read from the messages themselves, because the library drops a whole message of which it does not
//! understand a part. Layouts are those of `linux/rtnetlink.h` and `linux/pkt_sched.h`.

use std::io;

use rtnetlink::sys::TokioSocket;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::foreign::{Edge, Foreign, What};
use super::nft::attributes;
use super::raw;
use crate::net::IfIndex;

/// `RTM_NEWQDISC`, `_GETQDISC`, `_NEWTFILTER` and `_GETTFILTER`.
const NEW_QDISC: u16 = 36;
pub(super) const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
pub(super) const GET_FILTER: u16 = 46;
/// `struct tcmsg`.
pub(super) const HEADER: usize = 20;
/// `TCA_KIND`, `TCA_OPTIONS`, `TCA_INGRESS_BLOCK`, `TCA_EGRESS_BLOCK`, and `TCA_BPF_NAME` among options.
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const ENTRY_BLOCK: u16 = 13;
const EXIT_BLOCK: u16 = 14;
const BPF_NAME: u16 = 7;
/// `TC_H_ROOT`.
const ROOT: u32 = u32::MAX;
/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`; the first is the `ingress` discipline's, too.
pub(super) const ENTRY: u32 = 0xffff_fff2;
pub(super) const EXIT: u32 = 0xffff_fff3;

/// The filters of ours: the name that a program has, and the priorities that it may have.
#[derive(Clone, Copy)]
pub struct Ours {
    /// Whether a program of ours is called so.
    pub is_called: fn(&str) -> bool,
    /// The lowest priority, from which on filters are behind ours; `None` where ours are no filters,
    /// and all are.
    pub priority: Option<u16>,
}

/// Queueing disciplines and filters of somebody else, on all interfaces of this network namespace.
pub async fn traffic(ours: &Ours) -> io::Result<Vec<Foreign>> {
    let Some(socket) = raw::open(NETLINK_ROUTE)? else { return Ok(vec![]) };
    let (mut found, mut hooks) = (vec![], vec![]);
    let all = raw::ask(&socket, GET_QDISC, raw::DUMP, &[0; HEADER], |kind, content| {
        let Some(message) = Message::read(content).filter(|_| kind == NEW_QDISC) else { return };
        match message.kind.as_str() {
            "ingress" => hooks.push((message.ifindex, Edge::Entry)),
            "clsact" => hooks.extend([Edge::Entry, Edge::Exit].map(|edge| (message.ifindex, edge))),
            _ => found.extend(message.discipline()),
        }
        found.extend(message.shared_blocks());
    });
    match all.await {
        // A kernel without traffic control.
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => return Ok(vec![]),
        all => all?,
    }
    for (ifindex, edge) in hooks {
        filters(&socket, ifindex, edge, ours, &mut found).await?;
    }
    Ok(found)
}

async fn filters(
    socket: &TokioSocket,
    ifindex: IfIndex,
    edge: Edge,
    ours: &Ours,
    found: &mut Vec<Foreign>,
) -> io::Result<()> {
    let mut body = [0; HEADER];
    body[4..8].copy_from_slice(&ifindex.0.to_ne_bytes());
    let parent = match edge {
        Edge::Entry => ENTRY,
        Edge::Exit => EXIT,
    };
    body[12..16].copy_from_slice(&parent.to_ne_bytes());
    let all = raw::ask(socket, GET_FILTER, raw::DUMP, &body, |kind, content| {
        let message = Message::read(content).filter(|_| kind == NEW_FILTER);
        found.extend(message.and_then(|message| message.filter(edge, ours)));
    });
    match all.await {
        // The interface is gone meanwhile.
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
        all => all,
    }
}

/// A message about a queueing discipline or a filter, as far as it matters here.
#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) ifindex: IfIndex,
    handle: u32,
    parent: u32,
    /// Of a filter, its priority in the upper half.
    info: u32,
    pub(super) kind: String,
    program: Option<String>,
    blocks: [bool; 2],
}

impl Message {
    pub(super) fn read(content: &[u8]) -> Option<Self> {
        let header = content.first_chunk::<HEADER>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let mut message = Self {
            ifindex: IfIndex(word(4)),
            handle: word(8),
            parent: word(12),
            info: word(16),
            ..Self::default()
        };
        for (kind, value) in attributes::list(&content[HEADER..]) {
            match kind {
                KIND => message.kind = attributes::string(value),
                ENTRY_BLOCK => message.blocks[0] = true,
                EXIT_BLOCK => message.blocks[1] = true,
                OPTIONS if message.kind == "bpf" => {
                    let name = attributes::list(value).find(|(kind, _)| *kind == BPF_NAME);
                    message.program = name.map(|(_, value)| attributes::string(value));
                }
                _ => {}
            }
        }
        Some(message)
    }

    /// A queueing discipline that somebody has put at the exit. What the kernel puts there by itself
    /// has no handle.
    fn discipline(&self) -> Option<Foreign> {
        let somebodys = self.parent == ROOT && self.handle != 0 && self.kind != "noqueue";
        somebodys.then(|| Foreign {
            ifindex: self.ifindex,
            edge: Edge::Exit,
            what: What::Qdisc,
            name: self.kind.clone(),
            behind: true,
        })
    }

    /// Blocks of filters that interfaces share; what is in them is not asked.
    fn shared_blocks(&self) -> impl Iterator<Item = Foreign> {
        let edges = [Edge::Entry, Edge::Exit].into_iter().zip(self.blocks).filter(|(_, shared)| *shared);
        edges.map(|(edge, _)| Foreign {
            ifindex: self.ifindex,
            edge,
            what: What::Filter,
            name: "in a shared block".to_owned(),
            behind: true,
        })
    }

    /// A filter that is not ours.
    fn filter(self, edge: Edge, ours: &Ours) -> Option<Foreign> {
        // A priority has an entry of its own, without a handle, in front of its filters.
        let own = self.program.as_deref().is_some_and(|name| (ours.is_called)(name));
        if self.handle == 0 || own {
            return None;
        }
        let priority = (self.info >> 16) as u16;
        Some(Foreign {
            ifindex: self.ifindex,
            edge,
            what: What::Filter,
            name: self.program.unwrap_or(self.kind),
            behind: ours.priority.is_none_or(|own| priority >= own),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = 4 + value.len();
        let mut bytes: Vec<u8> =
            (length as u16).to_ne_bytes().into_iter().chain(kind.to_ne_bytes()).collect();
        bytes.extend(value);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    fn message(handle: u32, parent: u32, info: u32, attributes: &[(u16, Vec<u8>)]) -> Message {
        let mut bytes: Vec<u8> =
            [0, 7, handle, parent, info].into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.extend(attributes.iter().flat_map(|(kind, value)| attribute(*kind, value)));
        Message::read(&bytes).expect("a message")
    }

    fn kind(name: &str) -> (u16, Vec<u8>) {
        (KIND, [name.as_bytes(), &[0]].concat())
    }

    #[test]
    fn a_discipline_with_a_handle_at_the_root_is_somebodys() {
        let found = |handle, parent, name| message(handle, parent, 0, &[kind(name)]).discipline();
        assert_eq!(
            found(0x8001_0000, ROOT, "tbf").map(|f| (f.edge, f.name)),
            Some((Edge::Exit, "tbf".into()))
        );
        assert_eq!(found(0, ROOT, "fq_codel"), None, "the kernel's default");
        assert_eq!(found(0x8001_0000, 0x8000_0001, "fq"), None, "below another one");
        assert_eq!(found(0x8001_0000, ROOT, "noqueue"), None);
    }

    #[test]
    fn a_filter_is_ours_by_the_name_of_its_program() {
        let ours = |priority| Ours { is_called: |name| name == "pod_egress", priority };
        let bpf = |name: &str, priority: u32| {
            let options = (OPTIONS, attribute(BPF_NAME, &[name.as_bytes(), &[0]].concat()));
            message(1, ENTRY, priority << 16, &[kind("bpf"), options])
        };
        assert_eq!(bpf("pod_egress", 0x4000).filter(Edge::Entry, &ours(Some(0x3fff))), None);
        let other = bpf("cil_from_container", 1).filter(Edge::Entry, &ours(Some(0x3fff))).expect("foreign");
        assert_eq!((other.name.as_str(), other.behind), ("cil_from_container", false));
        assert!(bpf("x", 0x3fff).filter(Edge::Entry, &ours(Some(0x3fff))).is_some_and(|f| f.behind));
        assert!(bpf("x", 1).filter(Edge::Entry, &ours(None)).is_some_and(|f| f.behind), "links come first");
        let header = message(0, ENTRY, 0, &[kind("u32")]);
        assert_eq!(header.filter(Edge::Entry, &ours(None)), None);
    }

    #[test]
    fn a_shared_block_counts_whatever_is_in_it() {
        let shared = message(0xffff_0000, ENTRY, 0, &[kind("clsact"), (ENTRY_BLOCK, vec![1, 0, 0, 0])]);
        assert_eq!(shared.shared_blocks().map(|f| f.edge).collect::<Vec<_>>(), [Edge::Entry]);
    }
}
