//! `doctor`: finds faults, and names them with evidence and the command that mends them.
//!
//! [`Facts`] are read once; every check is a function over them. A new check is a function in the file of its
//! area, and a line in that file's `CHECKS`.

mod agent;
mod facts;
mod fastpath;
mod filters;
mod host;
mod machine;
mod owners;
mod peer;
mod routing;
mod rules;
mod tables;
#[cfg(test)]
mod tests;
mod underlay;

use std::collections::BTreeMap;

use serde::Serialize;

pub use facts::{Asked, Facts};
pub use peer::probe;

/// How many findings of one kind are told one by one in a network; of the others, how many they are.
const MOST_ALIKE: usize = 5;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets are lost.
    Error,
    /// Packets may be lost, now or at the next change.
    Warning,
    /// Packets arrive, and more slowly than they could.
    Notice,
}

impl Severity {
    /// As it is written.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
        }
    }
}

/// A fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its name, the same for all faults of the kind, and for good.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// The network that it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What is wrong: one sentence.
    pub what: String,
    /// Where that is seen.
    pub evidence: String,
    /// The command that mends it, or what else does.
    pub mend: String,
}

impl Finding {
    fn new(id: &'static str, severity: Severity, what: impl Into<String>) -> Self {
        let (what, evidence, mend) = (what.into(), String::new(), String::new());
        Self { id, severity, network: None, what, evidence, mend }
    }

    fn error(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Severity::Error, what)
    }

    fn warning(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Severity::Warning, what)
    }

    fn notice(id: &'static str, what: impl Into<String>) -> Self {
        Self::new(id, Severity::Notice, what)
    }

    #[must_use]
    fn of(self, network: &str) -> Self {
        Self { network: Some(network.to_owned()), ..self }
    }

    #[must_use]
    fn seen(self, evidence: impl Into<String>) -> Self {
        Self { evidence: evidence.into(), ..self }
    }

    #[must_use]
    fn mend(self, mend: impl Into<String>) -> Self {
        Self { mend: mend.into(), ..self }
    }
}

/// A check: what it finds in the facts.
type Check = fn(&Facts) -> Vec<Finding>;

/// All areas, in the order in which one looks for a fault: what everything rests on comes first.
const AREAS: [&[Check]; 8] = [
    machine::CHECKS,
    agent::CHECKS,
    tables::CHECKS,
    routing::CHECKS,
    filters::CHECKS,
    underlay::CHECKS,
    owners::CHECKS,
    fastpath::CHECKS,
];

/// How many checks there are.
pub fn checks() -> usize {
    AREAS.iter().map(|area| area.len()).sum()
}

/// What is wrong, the worst first.
pub fn examine(facts: &Facts) -> Vec<Finding> {
    in_order(AREAS.iter().flat_map(|area| area.iter()).flat_map(|check| check(facts)).collect())
}

/// The worst first; of many alike a few, and how many more there are.
pub fn in_order(all: Vec<Finding>) -> Vec<Finding> {
    let key = |finding: &Finding| (finding.id, finding.network.clone());
    let mut counts = BTreeMap::<_, usize>::new();
    all.iter().for_each(|finding| *counts.entry(key(finding)).or_default() += 1);
    let mut told = BTreeMap::<_, usize>::new();
    let mut some: Vec<_> = all
        .into_iter()
        .filter_map(|mut finding| {
            let (count, told) = (counts.get(&key(&finding))?, told.entry(key(&finding)).or_default());
            *told += 1;
            if *told == MOST_ALIKE && *count > MOST_ALIKE {
                finding.evidence += &format!("; and {} more of the kind", count - MOST_ALIKE);
            }
            (*told <= MOST_ALIKE).then_some(finding)
        })
        .collect();
    some.sort_by_key(|finding| finding.severity);
    some
}
