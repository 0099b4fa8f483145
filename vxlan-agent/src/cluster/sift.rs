//! Which of many candidates make a cluster, where some contradict each other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::{Candidate, ClusterState, Invalid, Node, Reason, Viewer, check_node, complete};
use crate::net::Mac;

/// Names of candidates that were left out, and why.
pub(super) type LeftOut = Vec<(String, Reason)>;

impl ClusterState {
    /// The cluster of those `candidates` that can be right together: of two that claim the same name,
    /// address, MAC or subnet, the first; and none whose subnet contains another's VTEP address. The first
    /// candidate is the viewer. Each candidate is looked at a bounded number of times.
    pub fn sift(candidates: Vec<Candidate>, viewer: &Viewer) -> Result<(Self, LeftOut), Invalid> {
        let mut sieve = Sieve::default();
        for (index, candidate) in candidates.iter().enumerate() {
            let node = complete(candidate.clone(), viewer);
            let checked = check_node(&node).and_then(|()| sieve.take(index, &node));
            if let Err(reason) = checked {
                sieve.leave_out(index, &candidate.name, reason)?;
            }
        }
        sieve.leave_out_owners_of_vteps(&candidates)?;
        let mut index = 0..;
        let mut candidates = candidates;
        candidates.retain(|_| index.next().is_none_or(|index| !sieve.refused.contains(&index)));
        Ok((Self::new(candidates, viewer)?, sieve.left_out))
    }
}

/// What those candidates claim that are taken.
#[derive(Default)]
struct Sieve {
    names: BTreeSet<String>,
    vteps: BTreeMap<IpAddr, (usize, String)>,
    macs: BTreeMap<Mac, String>,
    /// Disjoint, by first address, with their owners.
    subnets: BTreeMap<IpAddr, (IpNetwork, usize, String)>,
    owners: BTreeMap<usize, Vec<IpNetwork>>,
    refused: BTreeSet<usize>,
    left_out: LeftOut,
}

impl Sieve {
    fn take(&mut self, index: usize, node: &Node) -> Result<(), Reason> {
        let name = || node.name.clone();
        if self.names.contains(&node.name) {
            return Err(Reason::DuplicateName(name()));
        }
        if let Some((_, other)) = self.vteps.get(&node.vtep) {
            return Err(Reason::DuplicateVtep(other.clone(), name(), node.vtep));
        }
        if let Some(other) = self.macs.get(&node.mac) {
            return Err(Reason::DuplicateMac(other.clone(), name(), node.mac));
        }
        for (n, subnet) in node.subnets.iter().enumerate() {
            if let Some((other, owner)) = self.overlaps(subnet) {
                node.subnets.iter().take(n).for_each(|taken| drop(self.subnets.remove(&taken.network())));
                return Err(Reason::Overlap(name(), *subnet, owner, other));
            }
            self.subnets.insert(subnet.network(), (*subnet, index, name()));
        }
        self.names.insert(name());
        self.vteps.insert(node.vtep, (index, name()));
        self.macs.insert(node.mac, name());
        self.owners.insert(index, node.subnets.clone());
        Ok(())
    }

    /// Disjoint prefixes: only the one that begins before `subnet` can contain it, and only one that
    /// begins inside can be contained.
    fn overlaps(&self, subnet: &IpNetwork) -> Option<(IpNetwork, String)> {
        let before = self.subnets.range(..=subnet.network()).next_back();
        let inside = self.subnets.range(subnet.network()..).next();
        let overlap =
            |other: &IpNetwork| other.contains(subnet.network()) || subnet.contains(other.network());
        let found = before.into_iter().chain(inside).find(|(_, (other, ..))| overlap(other));
        found.map(|(_, (other, _, owner))| (*other, owner.clone()))
    }

    fn leave_out_owners_of_vteps(&mut self, candidates: &[Candidate]) -> Result<(), Invalid> {
        let by_index: BTreeMap<usize, IpAddr> =
            self.vteps.iter().map(|(vtep, (index, _))| (*index, *vtep)).collect();
        for (index, vtep) in by_index {
            let around = self.subnets.range(..=vtep).next_back();
            let around = around.filter(|(_, (subnet, ..))| subnet.contains(vtep));
            let Some((subnet, owner)) = around.map(|(_, (subnet, owner, _))| (*subnet, *owner)) else {
                continue;
            };
            if self.refused.contains(&index) {
                continue;
            }
            for lost in self.owners.remove(&owner).unwrap_or_default() {
                self.subnets.remove(&lost.network());
            }
            let (whose, inside) = (candidates[owner].name.clone(), candidates[index].name.clone());
            self.leave_out(owner, &whose, Reason::VtepInside(whose.clone(), subnet, inside, vtep))?;
        }
        Ok(())
    }

    /// The viewer cannot be left out.
    fn leave_out(&mut self, index: usize, name: &str, reason: Reason) -> Result<(), Invalid> {
        if index == 0 {
            return Err(Invalid { candidate: Some(0), reason });
        }
        self.refused.insert(index);
        self.left_out.push((name.to_owned(), reason));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Vni;

    fn viewer() -> Viewer {
        Viewer {
            node: "n0".into(),
            network: "pods".into(),
            l2: false,
            vni: Vni::try_from(1).expect("in range"),
        }
    }

    fn candidate(name: &str, vtep: u32, subnet: &str) -> Candidate {
        let vtep = IpAddr::V4((0xc000_0000 + vtep).into());
        let subnets = vec![subnet.parse().expect("a subnet")];
        Candidate { name: name.into(), vtep, mac: None, subnets, stations: vec![] }
    }

    fn left_out(candidates: &[Candidate]) -> Vec<String> {
        let (cluster, left_out) = ClusterState::sift(candidates.to_vec(), &viewer()).expect("a cluster");
        assert_eq!(cluster.remotes.len() + 1 + left_out.len(), candidates.len());
        left_out.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn of_those_that_contradict_each_other_the_first_stays() {
        let own = candidate("n0", 0x1_0001, "10.0.0.0/24");
        let one = candidate("n1", 0x1_0002, "10.0.1.0/24");
        for other in [
            candidate("n1", 0x1_0003, "10.0.2.0/24"),
            candidate("n2", 0x1_0002, "10.0.2.0/24"),
            candidate("n2", 0x1_0003, "10.0.1.128/25"),
            candidate("n2", 0x1_0003, "10.0.0.0/16"),
            candidate("n2", 0x1_0003, "192.1.0.0/24"),
            candidate("n2", 0x1_0003, "224.0.0.0/24"),
            Candidate {
                subnets: vec![
                    "10.0.2.0/24".parse().expect("a subnet"),
                    "10.0.1.0/25".parse().expect("a subnet"),
                ],
                ..candidate("n2", 0x1_0003, "10.0.2.0/24")
            },
        ] {
            let third = candidate("n3", 0x1_0004, "10.0.2.0/25");
            let last = other.name.clone();
            assert_eq!(left_out(&[own.clone(), one.clone(), other, third]), [last]);
        }
    }

    #[test]
    fn the_viewer_is_never_left_out() {
        let own = candidate("n0", 0x1_0001, "192.1.0.0/24");
        let invalid = ClusterState::sift(vec![own, candidate("n1", 0x1_0002, "10.0.1.0/24")], &viewer());
        assert_eq!(invalid.expect_err("its subnet contains VTEPs").candidate, Some(0));
    }

    /// Were the rest looked at anew for each that is left out, this would take hours.
    #[test]
    fn half_of_20_000_nodes_may_be_wrong() {
        let subnet = |n: u32| format!("10.{}.{}.0/26", n >> 8 & 0xff, n & 0xff);
        let right = (0..10_000_u32).map(|n| candidate(&format!("n{n}"), 0x1_0000 + n, &subnet(n)));
        let wrong = (0..10_000_u32).map(|n| candidate(&format!("w{n}"), 0x2_0000 + n, &subnet(n)));
        let candidates: Vec<_> = right.chain(wrong).collect();
        assert_eq!(left_out(&candidates).len(), 10_000);
    }
}
