//! Rules that have to see every packet, because they count or limit packets.

use std::fmt;

/// Rules of one kind in a chain that have to see every packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Meter {
    /// What does so: an expression of nf_tables or a match of iptables.
    pub what: String,
    /// Family, table and chain, as `nft list chain` takes them.
    pub chain: String,
}

impl Meter {
    /// `what` in a chain.
    pub(super) fn new(what: String, family: &str, table: &str, chain: &str) -> Self {
        Self { what, chain: format!("{family} {table} {chain}") }
    }

    /// Stands for rules that nobody knows.
    pub(super) fn unreadable() -> Self {
        Self { what: "rules that cannot be read".into(), chain: "any".into() }
    }
}

impl fmt::Display for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in chain {}", self.what, self.chain)
    }
}
