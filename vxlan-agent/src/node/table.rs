//! The nf_tables table of a network: who may send through the tunnel, masquerading, and leaving conntrack
//! out of the tunnel's outer packets. It is put in place as a whole or not at all; what only changes who is
//! in the cluster changes elements of its sets.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::ops::RangeFrom;

use anyhow::anyhow;
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use nix::libc;

use super::{Guard, masquerade, untracked};
use crate::kernel::nft::expression::Ports;
use crate::kernel::nft::set::{self, Set};
use crate::kernel::nft::{self, Attributes, Batch, CREATE, Reader, nfta};
use crate::ownership;

/// What the table should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name of the network, which the table is named after.
    pub network: String,
    /// Networks of all pods of the cluster, at most one of each IP version, and the name of the
    /// vxlan device that leads to them. Empty: nothing is masqueraded.
    pub masquerade: Vec<(IpNetwork, String)>,
    /// What becomes of the ports of what is masqueraded.
    pub ports: Ports,
    /// The UDP port whose packets conntrack shall not follow.
    pub untracked: Option<u16>,
    /// Who may send through the tunnel; `None`: nobody asks.
    pub guard: Option<Guard>,
}

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

/// A chain at a hook, and its rules with a name each.
#[derive(Hash)]
pub(super) struct Chain {
    pub(super) name: &'static str,
    pub(super) kind: &'static str,
    /// `NF_INET_…`.
    pub(super) hook: i32,
    /// `NF_IP_PRI_…`.
    pub(super) priority: i32,
    pub(super) rules: Vec<(&'static str, Attributes)>,
}

impl Table {
    /// Whether it does anything.
    pub const fn is_needed(&self) -> bool {
        !self.masquerade.is_empty() || self.untracked.is_some() || self.guard.is_some()
    }

    /// Puts the table in place if it is not there already as it should be. A table that is there is
    /// replaced in one step if its rules are others, and completed if only its sets are.
    pub fn install(&self) -> anyhow::Result<Change> {
        let table = ownership::nft_table(&self.network);
        let chains = self.chains();
        let is_there = nft::comments(&table).map_err(|e| explain(&e))? == comments(&chains);
        // Sets that cannot be completed are made anew.
        if let Some(changed) = is_there.then(|| self.complete(&table).ok()).flatten() {
            return Ok(if changed { Change::Elements } else { Change::Nothing });
        }
        self.replace(&table, &chains).commit().map_err(|e| explain(&e))?;
        Ok(Change::Table)
    }

    /// Why this kernel cannot guard the tunnel's port; `None` if it can. Nothing changes.
    pub fn no_guard(&self) -> Option<String> {
        let guard = Guard { sources: BTreeSet::new(), ..self.guard.clone()? };
        let alone = Self { masquerade: vec![], untracked: None, guard: Some(guard), ..self.clone() };
        let checked = alone.replace(&ownership::nft_table(&self.network), &alone.chains()).check();
        let error = checked.err().filter(|error| is_unsupported(errno(error)))?;
        Some(format!("this kernel's nf_tables lacks what it takes, as before Linux 5.6: {error}"))
    }

    /// Changes what the sets hold; whether there was anything to change.
    fn complete(&self, table: &str) -> io::Result<bool> {
        let (mut batch, mut reader) = (Batch::default(), Reader::open()?);
        for set in self.sets() {
            batch.update_set(table, &set, &set::elements(&mut reader, table, set.name)?);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        batch.commit().map(|()| true)
    }

    fn replace(&self, table: &str, chains: &[Chain]) -> Batch {
        let mut batch = Batch::default();
        self.replace_in(&mut batch, &mut (1..), table, chains);
        batch
    }

    /// Adds to `batch` what replaces the table; `ids` are for its sets, and for no others in the batch.
    fn replace_in(&self, batch: &mut Batch, ids: &mut RangeFrom<u32>, table: &str, chains: &[Chain]) {
        delete(batch, table);
        batch.push(libc::NFT_MSG_NEWTABLE, CREATE, Attributes::default().string(nfta::TABLE_NAME, table));
        for (set, id) in self.sets().iter().zip(ids) {
            batch.add_set(table, set, id);
        }
        let mark = mark(chains);
        chains.iter().for_each(|chain| add(batch, table, chain, mark));
    }

    fn sets(&self) -> Vec<Set> {
        self.guard.as_ref().map(Guard::sets).unwrap_or_default()
    }

    fn chains(&self) -> Vec<Chain> {
        let masquerade =
            (!self.masquerade.is_empty()).then(|| masquerade::chain(&self.masquerade, self.ports));
        let untracked = self.untracked.iter().flat_map(|port| untracked::chains(*port));
        let guard = self.guard.iter().flat_map(Guard::chains);
        guard.chain(masquerade).chain(untracked).collect()
    }
}

/// Replaces those of `tables` that are not there as they should be, many in a transaction: the kernel takes
/// some tens of milliseconds for each transaction, whatever is in it.
pub fn install_together(tables: &[Table]) -> anyhow::Result<()> {
    /// So few fit into the socket's buffer.
    const TOGETHER: usize = 32;
    let mut missing = vec![];
    for table in tables {
        let (name, chains) = (ownership::nft_table(&table.network), table.chains());
        if nft::comments(&name).map_err(|e| explain(&e))? != comments(&chains) {
            missing.push((table, name, chains));
        }
    }
    for some in missing.chunks(TOGETHER) {
        let (mut batch, mut ids) = (Batch::default(), 1..);
        some.iter().for_each(|(table, name, chains)| table.replace_in(&mut batch, &mut ids, name, chains));
        batch.commit().map_err(|e| explain(&e))?;
    }
    Ok(())
}

/// All rules' comments. They carry a mark of everything that the rules do.
fn comments(chains: &[Chain]) -> Vec<String> {
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

/// Removes tables of networks that no agent is for, as far as one can see: every rule is marked as ours, and
/// `is_served` knows the network neither from a configuration nor by a device. Names the networks.
pub fn remove_unused(is_served: impl Fn(&str) -> bool) -> anyhow::Result<Vec<String>> {
    let mut removed = vec![];
    for table in nft::tables().map_err(|e| explain(&e))? {
        let Some(network) = ownership::network_of_nft_table(&table) else { continue };
        if is_served(network) {
            continue;
        }
        let comments = nft::comments(&table).map_err(|e| explain(&e))?;
        if !comments.is_empty() && comments.iter().all(|comment| is_ours(comment)) && remove(network)? {
            removed.push(network.to_owned());
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
fn is_unsupported(errno: Errno) -> bool {
    [Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT, Errno::EPROTONOSUPPORT, Errno::ENOENT, Errno::EINVAL]
        .contains(&errno)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn explain(error: &io::Error) -> anyhow::Error {
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

    fn table(pods: &[(&str, &str)], untracked: Option<u16>) -> Table {
        let pods = pods.iter().map(|(pods, device)| (pods.parse().expect("a network"), (*device).to_owned()));
        Table {
            network: "pods".into(),
            masquerade: pods.collect(),
            ports: Ports::Random,
            untracked,
            guard: None,
        }
    }

    fn comments(table: &Table) -> Vec<String> {
        super::comments(&table.chains())
    }

    #[test]
    fn the_mark_in_the_comments_tells_one_table_from_another() {
        let base = comments(&table(&[("10.244.0.0/16", "vxlan1")], None));
        assert_eq!(base.len(), 2, "one family, two rules");
        assert_eq!(base, comments(&table(&[("10.244.0.0/16", "vxlan1")], None)));
        for other in [
            table(&[("10.245.0.0/16", "vxlan1")], None),
            table(&[("10.244.0.0/16", "vxlan2")], None),
            table(&[("10.244.0.0/16", "vxlan1")], Some(8472)),
        ] {
            assert_ne!(base[0], comments(&other)[0]);
        }
    }

    #[test]
    fn our_comments_are_told_from_others() {
        let table = table(&[("10.244.0.0/16", "vxlan1")], Some(8472));
        assert!(comments(&table).iter().all(|comment| is_ours(comment)));
        for other in ["", "pods to elsewhere", "by hand, 2026", "x, 00112233445566zz"] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn there_is_a_chain_only_for_what_is_asked_for() {
        let names = |table: &Table| table.chains().iter().map(|chain| chain.name).collect::<Vec<_>>();
        assert_eq!(names(&table(&[], Some(8472))), ["prerouting", "output"]);
        assert_eq!(names(&table(&[("10.244.0.0/16", "vxlan1")], None)), ["postrouting"]);
        assert_ne!(comments(&table(&[], Some(8472))), comments(&table(&[], Some(4789))));
    }
}
