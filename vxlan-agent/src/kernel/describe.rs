//! The kernel's tables as text, for people: all that there is, in the words of the messages.

use std::fmt::Write as _;
use std::io;

use nix::libc;
use rtnetlink::packet_core::{NLM_F_DUMP, NetlinkPayload};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::nft::{self, Attributes, Reader, attributes, nfta};
use super::{Netlink, message, raw, traffic};

/// How deep attributes are looked into.
const DEEPEST: usize = 8;

impl Netlink {
    /// Links, addresses, routes, rules, neighbours and forwarding entries, each by its name.
    pub async fn describe(&self) -> Vec<(&'static str, io::Result<String>)> {
        let [links, addresses, routes4, routes6, ..] = message::dumps();
        let parts = [
            ("links", links),
            ("addresses", addresses),
            ("routes4", routes4),
            ("routes6", routes6),
            ("rules", message::rules()),
            ("neighbours4", message::neighbours(AddressFamily::Inet)),
            ("neighbours6", message::neighbours(AddressFamily::Inet6)),
            ("fdb", message::neighbours(AddressFamily::Bridge)),
        ];
        let mut described = vec![];
        for (name, request) in parts {
            let answers = self.request((request, NLM_F_DUMP)).await;
            let line = |payload| match payload {
                NetlinkPayload::InnerMessage(message) => format!("{message:?}\n"),
                _ => String::new(),
            };
            let text = answers.map(|all| all.into_iter().map(|answer| line(answer.payload)).collect());
            described.push((name, text));
        }
        described
    }
}

/// Queueing disciplines, and filters where there may be some.
///
/// # Errors
/// The kernel does not say.
pub async fn disciplines() -> io::Result<String> {
    let Some(socket) = raw::open(NETLINK_ROUTE)? else { return Ok(String::new()) };
    let (mut out, mut hooks) = (String::new(), vec![]);
    raw::ask(&socket, traffic::GET_QDISC, raw::DUMP, &[0; traffic::HEADER], |_, content| {
        let Some(message) = traffic::Message::read(content) else { return };
        let _ = writeln!(out, "qdisc {message:?}");
        if ["ingress", "clsact"].contains(&message.kind.as_str()) {
            hooks.push(message.ifindex);
        }
    })
    .await?;
    for ifindex in hooks {
        for parent in [traffic::ENTRY, traffic::EXIT] {
            let mut body = [0; traffic::HEADER];
            body[4..8].copy_from_slice(&ifindex.0.to_ne_bytes());
            body[12..16].copy_from_slice(&parent.to_ne_bytes());
            let asked = raw::ask(&socket, traffic::GET_FILTER, raw::DUMP, &body, |_, content| {
                if let Some(message) = traffic::Message::read(content) {
                    let _ = writeln!(out, "filter {message:?}");
                }
            });
            // An interface, or one of its edges, may be gone meanwhile.
            if let Err(error) = asked.await {
                let _ = writeln!(out, "filters of interface {}: {error}", ifindex.0);
            }
        }
    }
    Ok(out)
}

/// Chains, sets and rules of the nf_tables tables called so, attribute by attribute as `linux/netfilter/nf_tables.h`
/// numbers them.
///
/// # Errors
/// The kernel does not say.
pub fn describe_tables(tables: &[String]) -> io::Result<String> {
    let mut out = String::new();
    let parts = [
        ("chain", libc::NFT_MSG_GETCHAIN, nfta::CHAIN_TABLE),
        ("set", libc::NFT_MSG_GETSET, nfta::SET_TABLE),
        ("rule", libc::NFT_MSG_GETRULE, nfta::RULE_TABLE),
    ];
    for (what, request, table) in parts {
        Reader::open()?.dump(request, nft::INET, Attributes::default(), |_, content| {
            if attributes::find_string(content, table).is_some_and(|name| tables.contains(&name)) {
                let _ = writeln!(out, "{what}");
                list(&mut out, content, 1);
            }
        })?;
    }
    Ok(out)
}

/// Attributes below each other, nested ones deeper.
fn list(out: &mut String, content: &[u8], depth: usize) {
    for (kind, value) in attributes::list(content) {
        let indent = "  ".repeat(depth);
        if depth < DEEPEST && is_list(value) {
            let _ = writeln!(out, "{indent}{kind}:");
            list(out, value, depth + 1);
        } else {
            let _ = writeln!(out, "{indent}{kind}: {}", value_text(value));
        }
    }
}

/// Whether a value is made of whole attributes and nothing else.
fn is_list(value: &[u8]) -> bool {
    let lengths = attributes::list(value).map(|(_, inner)| (inner.len() + 4).next_multiple_of(4));
    let kinds = attributes::list(value).all(|(kind, _)| (1..64).contains(&kind));
    !value.is_empty() && kinds && lengths.sum::<usize>() == value.len()
}

fn value_text(value: &[u8]) -> String {
    let text =
        value.strip_suffix(&[0]).filter(|text| !text.is_empty() && text.iter().all(u8::is_ascii_graphic));
    match text {
        Some(text) => String::from_utf8_lossy(text).into_owned(),
        None => value.iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_told_with_those_that_are_inside() {
        let inner = Attributes::default().number(7, 0xabcd);
        let all = Attributes::default().string(1, "table").nest(4, &inner).bytes(5, &[1]);
        let mut out = String::new();
        list(&mut out, all.as_bytes(), 0);
        assert_eq!(out, "1: table\n4:\n  7: 0000abcd\n5: 01\n");
    }
}
