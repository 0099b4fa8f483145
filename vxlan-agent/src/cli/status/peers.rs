//! The other ends of tunnels, and whether the hops that lead there answer.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::Serialize;
use vxlan_ebpf_common::maps::Vtep;

use crate::datapath::DatapathState;
use crate::kernel::Reach;
use crate::net::{IfIndex, address_of};

/// How many next hops are listed that do not answer.
const MOST: usize = 4;

/// VTEPs of other nodes by what is known of the way there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Peers {
    /// All of them.
    pub(super) vteps: usize,
    /// Next hops whose MAC the kernel knows.
    pub(super) reachable: usize,
    /// Next hops that nothing has been sent to lately.
    pub(super) not_asked: usize,
    /// Next hops that do not answer.
    pub(super) unreachable: BTreeSet<IpAddr>,
    /// VTEPs without a single next hop: the kernel finds the way.
    pub(super) by_kernel: usize,
}

impl Peers {
    pub(super) fn of(state: &DatapathState, reach: &Reach) -> Self {
        let hop = |vtep: &Vtep| {
            let address = address_of(&vtep.next_hop).filter(|_| vtep.ifindex != 0)?;
            Some((IfIndex(vtep.ifindex), address))
        };
        let hops: BTreeMap<_, _> =
            state.vteps.values().filter_map(hop).map(|hop| (hop, reach.get(&hop).copied())).collect();
        let count = |known: Option<bool>| hops.values().filter(|seen| **seen == known).count();
        Self {
            vteps: state.vteps.len(),
            reachable: count(Some(true)),
            not_asked: count(None),
            unreachable: hops
                .iter()
                .filter(|(_, seen)| **seen == Some(false))
                .map(|((_, ip), _)| *ip)
                .collect(),
            by_kernel: state.vteps.values().filter(|vtep| hop(vtep).is_none()).count(),
        }
    }

    /// One line: how many, and what is the matter with them.
    pub(super) fn sentence(&self, nodes: usize) -> String {
        let mut out = format!("{nodes} nodes, {} VTEPs", self.vteps);
        let known = [
            (self.reachable, "next hops answer"),
            (self.not_asked, "next hops not asked lately"),
            (self.by_kernel, "VTEPs whose next hop the kernel chooses"),
        ];
        for (count, what) in known.into_iter().filter(|(count, _)| *count != 0) {
            let _ = write!(out, "; {count} {what}");
        }
        if !self.unreachable.is_empty() {
            let _ = write!(out, "; no answer from {}", self.silent());
        }
        out
    }

    /// The next hops that do not answer, as far as there is room.
    pub(super) fn silent(&self) -> String {
        let named: Vec<String> = self.unreachable.iter().take(MOST).map(ToString::to_string).collect();
        match self.unreachable.len().saturating_sub(MOST) {
            0 => named.join(", "),
            more => format!("{} and {more} more", named.join(", ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use vxlan_ebpf_common::maps::{Addr, NextHop};

    use super::*;

    fn vtep(last: u8, ifindex: u32) -> Vtep {
        let mut addr = [0; 16];
        addr[..4].copy_from_slice(&[192, 0, 2, last]);
        let family = if last == 0 { 0 } else { nix::libc::AF_INET as u32 };
        Vtep { ifindex, next_hop: NextHop { family, addr }, addr: Addr(addr), ..Vtep::default() }
    }

    #[test]
    fn next_hops_are_told_apart_by_whether_they_answer() {
        let vteps = [vtep(1, 2), vtep(1, 2), vtep(2, 2), vtep(3, 2), vtep(4, 0), vtep(0, 2)];
        let state = DatapathState { vteps: (1..).zip(vteps).collect(), ..DatapathState::default() };
        let hop = |last: u8| (IfIndex(2), IpAddr::from([192, 0, 2, last]));
        let reach = Reach::from([(hop(1), true), (hop(2), false)]);
        let peers = Peers::of(&state, &reach);
        assert_eq!((peers.vteps, peers.reachable, peers.not_asked, peers.by_kernel), (6, 1, 1, 2));
        assert_eq!(peers.silent(), "192.0.2.2");
        assert!(
            peers.sentence(6).starts_with("6 nodes, 6 VTEPs; 1 next hops answer"),
            "{}",
            peers.sentence(6)
        );
    }

    #[test]
    fn of_many_that_do_not_answer_few_are_named() {
        let unreachable = (1..=9).map(|n| IpAddr::from([192, 0, 2, n])).collect();
        let silent = Peers { unreachable, ..Peers::default() }.silent();
        assert!(silent.ends_with("192.0.2.4 and 5 more"), "{silent}");
    }
}
