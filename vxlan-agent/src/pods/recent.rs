//! What has happened lately, and may not be over yet.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::time::Instant;
use vxlan_ebpf_common::maps::{LinkEntry, link};

use super::Claim;
use crate::net::IfIndex;

/// How long a pod has just come up, and how long it has to be calm for a dispute to be over. The kernel takes
/// no other answer for an address within a second (`locktime`, arp(7)), and asks for one that it has
/// doubts about again within eight (`delay_first_probe_time`, `ucast_solicit`).
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// What has been so for long enough.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Host sides of veths whose pods have not just come up.
    pub grown: BTreeSet<IfIndex>,
    /// Disputed addresses of which the kernel has said the same since.
    pub calm: BTreeSet<IpAddr>,
}

/// What is so, and since when.
#[derive(Debug, Default)]
pub struct Recent {
    veths: BTreeMap<IfIndex, Instant>,
    claims: BTreeMap<IpAddr, (Claim, Instant)>,
    asked: Option<Instant>,
}

impl Recent {
    /// Takes in what a search has found.
    pub fn note(
        &mut self,
        veths: &BTreeMap<IfIndex, LinkEntry>,
        claims: &BTreeMap<IpAddr, Claim>,
        now: Instant,
    ) {
        let is_new = |index: &IfIndex| veths.get(index).is_some_and(|entry| entry.flags & link::NEW != 0);
        self.veths.retain(|index, _| is_new(index));
        for index in veths.keys().filter(|index| is_new(index)) {
            self.veths.entry(*index).or_insert(now);
        }
        self.claims.retain(|ip, (claim, _)| claims.get(ip) == Some(claim));
        for (ip, claim) in claims {
            self.claims.entry(*ip).or_insert((*claim, now));
        }
    }

    /// What has been so for long enough.
    pub fn patience(&mut self, now: Instant) -> Patience {
        self.asked = Some(now);
        let long = |since: Instant| now >= since + LONG_ENOUGH;
        let grown = self.veths.iter().filter(|(_, since)| long(**since)).map(|(index, _)| *index);
        let calm = self.claims.iter().filter(|(_, (_, since))| long(*since)).map(|(ip, _)| *ip);
        Patience { grown: grown.collect(), calm: calm.collect() }
    }

    /// When to ask again because something will have been so for long enough.
    pub fn next_due(&self) -> Option<Instant> {
        let since = self.veths.values().copied().chain(self.claims.values().map(|(_, since)| *since));
        since.map(|since| since + LONG_ENOUGH).filter(|due| self.asked.is_none_or(|asked| asked < *due)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Mac;

    #[test]
    fn patience_comes_with_time_and_a_new_claim_takes_it() {
        let (ip, start) = (IpAddr::from([10, 1, 0, 2]), Instant::now());
        let mut recent = Recent::default();
        let veths = BTreeMap::from([
            (IfIndex(10), LinkEntry { network: 1, flags: link::NEW }),
            (IfIndex(11), LinkEntry::default()),
        ]);
        let claim = |port: u32| BTreeMap::from([(ip, Claim { mac: Mac([2; 6]), port: Some(IfIndex(port)) })]);
        recent.note(&veths, &claim(10), start);
        assert_eq!(recent.patience(start), Patience::default());
        let due = start + LONG_ENOUGH;
        assert_eq!(recent.next_due(), Some(due));
        assert_eq!(recent.patience(due), Patience { grown: [IfIndex(10)].into(), calm: [ip].into() });
        assert_eq!(recent.next_due(), None);
        recent.note(&BTreeMap::new(), &claim(11), due);
        assert_eq!(recent.patience(due), Patience::default());
        recent.note(&BTreeMap::new(), &BTreeMap::new(), due);
        assert_eq!(recent.next_due(), None);
    }
}
