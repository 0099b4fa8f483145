//! nf_tables tables of our own: their chains and sets, how they are put in place, and how they go. A table is
//! put in place as a whole or not at all; what only changes who is in the cluster changes elements of its sets.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::io;

use anyhow::anyhow;
use nix::errno::Errno;
use nix::libc;

use super::guard::Sets;
use crate::kernel::nft::{self, Attributes, Batch, CREATE, nfta};
use crate::ownership;

/// What had to be done to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// Its sets lacked something, or held too much.
    Elements,
    /// It was made anew.
    Table,
}

/// A rule and its name.
pub(super) type Rule = (&'static str, Attributes);

/// A chain at a hook, and its rules with a name each.
#[derive(Hash)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    /// `NF_INET_…`.
    pub(super) hook: i32,
    /// `NF_IP_PRI_…`.
    pub(super) priority: i32,
    pub(super) rules: Vec<Rule>,
}

/// What makes a table of these `sets` and `chains`, in place of what is called so.
pub(super) fn replace(table: &str, sets: &Sets, chains: &[Chain]) -> Batch {
    let mut batch = Batch::default();
    delete(&mut batch, table);
    batch.push(libc::NFT_MSG_NEWTABLE, CREATE, Attributes::default().string(nfta::TABLE_NAME, table));
    for ((name, set), id) in sets.iter().zip(1..) {
        batch.add_set(table, name, set, id);
    }
    let mark = mark(chains);
    chains.iter().for_each(|chain| add(&mut batch, table, chain, mark));
    batch
}

/// All rules' comments. They carry a mark of everything that the rules do.
pub(super) fn comments(chains: &[Chain]) -> Vec<String> {
    let mark = mark(chains);
    chains.iter().flat_map(|chain| &chain.rules).map(|(name, _)| comment(name, mark)).collect()
}

fn mark(chains: &[Chain]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (chains, env!("CARGO_PKG_VERSION")).hash(&mut hasher);
    hasher.finish()
}

fn comment(name: &str, mark: u64) -> String {
    format!("{name}, {mark:016x}")
}

fn add(batch: &mut Batch, table: &str, chain: &Chain, mark: u64) {
    let hook = Attributes::default()
        .number(nfta::HOOK_HOOKNUM, chain.hook as u32)
        .number(nfta::HOOK_PRIORITY, chain.priority as u32);
    let attributes = Attributes::default()
        .string(nfta::CHAIN_TABLE, table)
        .string(nfta::CHAIN_NAME, chain.name)
        .nest(nfta::CHAIN_HOOK, &hook)
        .string(nfta::CHAIN_TYPE, chain.kind);
    batch.push(libc::NFT_MSG_NEWCHAIN, CREATE, attributes);
    for (name, expressions) in &chain.rules {
        let rule = Attributes::default()
            .string(nfta::RULE_TABLE, table)
            .string(nfta::RULE_CHAIN, chain.name)
            .nest(nfta::RULE_EXPRESSIONS, expressions)
            .bytes(nfta::RULE_USERDATA, &nft::user_data(&comment(name, mark)));
        batch.push(libc::NFT_MSG_NEWRULE, CREATE, rule);
    }
}

/// Removes the table that is called so; whether there was one.
pub fn remove(table: &str) -> anyhow::Result<bool> {
    let mut batch = Batch::default();
    let named = Attributes::default().string(nfta::TABLE_NAME, table);
    batch.push(libc::NFT_MSG_DELTABLE, 0, named);
    match batch.commit() {
        Ok(()) => Ok(true),
        // No such table, or a kernel that has no tables at all.
        Err(error) if [Errno::ENOENT, Errno::EOPNOTSUPP].contains(&errno(&error)) => Ok(false),
        Err(error) => Err(explain(&error)),
    }
}

/// Networks that tables are named after.
pub fn named() -> anyhow::Result<Vec<String>> {
    let tables = nft::tables().map_err(|e| explain(&e))?;
    Ok(tables.iter().filter_map(|table| Some(ownership::network_of_nft_table(table)?.to_owned())).collect())
}

/// Removes tables of networks that no agent is for, as far as one can see: every rule is marked as ours, and
/// `is_served` knows the network neither from a configuration nor by a device. Names the networks.
pub fn remove_unused(is_served: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
    let mut removed = vec![];
    for network in named()?.into_iter().filter(|network| !is_served(network)) {
        let table = ownership::nft_table(&network);
        let comments = nft::comments(&table).map_err(|e| explain(&e))?;
        if !comments.is_empty() && comments.iter().all(|comment| is_ours(comment)) && remove(&table)? {
            removed.push(network);
        }
    }
    Ok(removed)
}

/// Whether a rule's comment is as [`comment`] makes them.
fn is_ours(comment: &str) -> bool {
    let mark = comment.rsplit_once(", ").map_or("", |(_, mark)| mark);
    mark.len() == 16 && mark.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Creates it first, so that there is one to delete.
fn delete(batch: &mut Batch, table: &str) {
    let named = || Attributes::default().string(nfta::TABLE_NAME, table);
    batch.push(libc::NFT_MSG_NEWTABLE, CREATE, named());
    batch.push(libc::NFT_MSG_DELTABLE, 0, named());
}

/// What nf_tables says of expressions, chains, and kinds of sets that it does not know.
pub(super) fn is_unsupported(errno: Errno) -> bool {
    [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT, Errno::ENOENT, Errno::EINVAL]
        .contains(&errno)
}

pub(super) fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

pub(super) fn explain(error: &io::Error) -> anyhow::Error {
    match errno(error) {
        Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT | Errno::EPROTONOSUPPORT => anyhow!(
            "this kernel has no nf_tables: load the module 'nf_tables', or ask for neither masquerade in [pods] nor notrack"
        ),
        Errno::ENOENT => anyhow!(
            "this kernel's nf_tables lacks a part: load the modules 'nft_chain_nat' and 'nft_masq', or do without masquerade in [pods]; 'nft_ct', or do without notrack"
        ),
        _ => anyhow!("nf_tables refused the table: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_comments_are_told_from_others() {
        let chain = Chain {
            name: "c",
            kind: "filter",
            hook: 0,
            priority: 0,
            rules: vec![("other ports", Attributes::default())],
        };
        assert!(comments(&[chain]).iter().all(|comment| is_ours(comment)));
        for other in ["", "pods to elsewhere", "by hand, 2026", "x, 00112233445566zz"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
