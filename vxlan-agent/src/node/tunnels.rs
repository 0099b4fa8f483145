//! The nf_tables table of an agent: who may send through the tunnels of its networks, and leaving conntrack out
//! of their outer packets. One table serves them all, so a packet meets as many rules with thousands of
//! networks as with one.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::guard::{self, Guard, PORTS, Sets, is_mixed};
use super::table::{Chain, Change, comments, errno, explain, is_unsupported, replace};
use super::untracked;
use crate::kernel::nft::set::{self, Element, Set};
use crate::kernel::nft::{self, Batch, Reader};
use crate::net::Vni;

/// What the table should do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelTable {
    /// Its name.
    pub name: String,
    /// Who may send in networks where somebody asks.
    pub guards: Vec<Arc<Guard>>,
    /// Networks of which is not known who may send: what there is for them stays.
    pub unknown: BTreeSet<(Vni, u16)>,
    /// UDP ports whose packets conntrack shall not follow.
    pub untracked: BTreeSet<u16>,
}

/// A table as it is in the kernel.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    comments: Vec<String>,
    sets: Sets,
}

impl TunnelTable {
    /// Whether it does anything.
    pub fn is_needed(&self) -> bool {
        !(self.guards.is_empty() && self.unknown.is_empty() && self.untracked.is_empty())
    }

    /// Puts the table in place if it is not there already as it should be. A table that is there is
    /// replaced in one step if its rules are others, and completed if only its sets are. `known`: what is in
    /// the kernel; read anew if it is not known, and then what is known.
    pub fn install(&self, known: &mut Option<Installed>) -> anyhow::Result<Change> {
        let found = match known.take() {
            Some(found) => found,
            None => read(&self.name).map_err(|e| explain(&e))?,
        };
        let sets = self.sets(&found.sets);
        let chains = chains(&sets);
        let comments = comments(&chains);
        // Sets that cannot be completed are made anew.
        let same = found.comments == comments && found.sets.keys().eq(sets.keys());
        let change = match same.then(|| self.complete(&found.sets, &sets).ok()).flatten() {
            Some(true) => Change::Elements,
            Some(false) => Change::Nothing,
            None => {
                replace(&self.name, &sets, &chains).commit().map_err(|e| explain(&e))?;
                Change::Table
            }
        };
        *known = Some(Installed { comments, sets });
        Ok(change)
    }

    /// Why this kernel cannot guard the tunnels' ports; `None` if it can. Nothing changes.
    pub fn no_guard(&self) -> Option<String> {
        let guard = Guard { sources: BTreeSet::new(), ..Guard::clone(self.guards.first()?) };
        let sets = guard::sets(std::iter::once(&guard));
        let checked = replace(&self.name, &sets, &chains(&sets)).check();
        let error = checked.err().filter(|error| is_unsupported(errno(error)))?;
        Some(format!("this kernel's nf_tables lacks what it takes: {error}"))
    }

    /// Changes what the sets hold; whether there was anything to change.
    fn complete(&self, found: &Sets, sets: &Sets) -> io::Result<bool> {
        let mut batch = Batch::default();
        for ((name, set), (_, before)) in sets.iter().zip(found) {
            batch.update_set(&self.name, name, set, &before.elements);
        }
        if batch.is_empty() {
            return Ok(false);
        }
        batch.commit().map(|()| true)
    }

    /// The sets as they should be, where there are those that were `found`.
    fn sets(&self, found: &Sets) -> Sets {
        let mut sets = match self.guards.is_empty() && self.unknown.is_empty() {
            true => Sets::new(),
            false => guard::sets(self.guards.iter().map(Arc::as_ref)),
        };
        if !sets.is_empty() {
            // The rules stay when the last subnet of a length goes.
            guard::keep_lengths(&mut sets, found);
        }
        self.keep_unknown(&mut sets, found);
        sets.extend(untracked::set(&self.untracked));
        sets
    }

    /// Adds what was `found` of networks that are not known. What does not say of which it is may be theirs.
    fn keep_unknown(&self, sets: &mut Sets, found: &Sets) {
        if self.unknown.is_empty() {
            return;
        }
        let keys: Vec<Element> = self.unknown.iter().map(|(vni, port)| guard::network(*vni, *port)).collect();
        let ports: Vec<Element> =
            self.unknown.iter().map(|(_, port)| Element::default().port(*port)).collect();
        for (name, set) in found {
            let Some(fields) = guard::fields(name) else { continue };
            let is_kept = |element: &&Element| match name.as_str() {
                PORTS => ports.contains(element),
                _ => is_mixed(name) || keys.iter().any(|key| element.begins_with(key)),
            };
            let kept: BTreeSet<Element> = set.elements.iter().filter(is_kept).cloned().collect();
            if !kept.is_empty() {
                let empty = || Set { fields, elements: BTreeSet::new() };
                sets.entry(name.clone()).or_insert_with(empty).elements.extend(kept);
            }
        }
    }
}

fn chains(sets: &Sets) -> Vec<Chain> {
    let guard = sets.contains_key(PORTS).then(|| guard::chains(sets));
    guard.into_iter().flatten().chain(untracked::chains(sets)).collect()
}

/// The table that is called so, as it is in the kernel.
fn read(table: &str) -> io::Result<Installed> {
    let comments = nft::comments(table)?;
    let mut reader = Reader::open()?;
    let mut sets = Sets::new();
    for name in set::names(&mut reader, table)? {
        let elements = set::elements(&mut reader, table, &name)?;
        let fields = guard::fields(&name).unwrap_or_default();
        sets.insert(name, Set { fields, elements });
    }
    Ok(Installed { comments, sets })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(vni: u32, subnet: &str) -> Arc<Guard> {
        let source = (std::net::IpAddr::from([192, 0, 2, 2]), subnet.parse().expect("a network"));
        Arc::new(Guard {
            port: 8472,
            vni: Vni::try_from(vni).expect("in range"),
            own: [std::net::IpAddr::from([192, 0, 2, 1])].into(),
            sources: [source].into(),
            bridged: false,
            pods: vec![],
        })
    }

    fn table(guards: &[Arc<Guard>], unknown: &[u32], untracked: &[u16]) -> TunnelTable {
        let unknown = unknown.iter().map(|vni| (Vni::try_from(*vni).expect("in range"), 8472));
        TunnelTable {
            name: "t".into(),
            guards: guards.to_vec(),
            unknown: unknown.collect(),
            untracked: untracked.iter().copied().collect(),
        }
    }

    fn names(table: &TunnelTable) -> Vec<&'static str> {
        chains(&table.sets(&Sets::new())).iter().map(|chain| chain.name).collect()
    }

    #[test]
    fn there_is_a_chain_only_for_what_is_asked_for() {
        assert!(!table(&[], &[], &[]).is_needed() && names(&table(&[], &[], &[])).is_empty());
        assert_eq!(names(&table(&[], &[], &[8472])), ["prerouting", "output"]);
        assert_eq!(names(&table(&[guard(1, "10.2.0.0/24")], &[], &[])), ["guard", "forward"]);
    }

    #[test]
    fn what_there_is_for_a_network_that_is_not_known_stays() {
        let [one, two] = [guard(1, "10.2.0.0/24"), guard(2, "10.3.0.0/25")];
        let both = table(&[one.clone(), two.clone()], &[], &[]).sets(&Sets::new());
        let held = table(std::slice::from_ref(&one), &[2], &[]).sets(&both);
        assert_eq!(held, both);
        assert_eq!(comments(&chains(&held)), comments(&chains(&both)));
        let gone = table(std::slice::from_ref(&one), &[], &[]).sets(&both);
        assert_eq!(comments(&chains(&gone)), comments(&chains(&both)), "the same rules");
        let held =
            |sets: Sets| sets.into_iter().filter(|(_, set)| !set.elements.is_empty()).collect::<Sets>();
        assert_eq!(held(gone), held(table(&[one], &[], &[]).sets(&Sets::new())));
    }
}
