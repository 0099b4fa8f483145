//! What somebody else has put on interfaces, as far as the fast path would pass it by.

use std::collections::BTreeSet;

use crate::kernel::{Edge, Foreign, What};
use crate::net::IfIndex;

/// What an interface is to the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// The host side of a pod's veth.
    Pod,
    /// The bridge of a pod.
    Bridge,
    /// The vxlan device.
    Device,
    /// The underlay, where TC takes packets out of the tunnel.
    Underlay,
    /// The underlay, or the interface below it, where XDP does so before anything else.
    Stripped,
    /// An interface that leads to other nodes.
    Way,
}

impl Role {
    /// Whether the fast path passes `foreign` by, which is on an interface of this role.
    fn passes_by(self, foreign: &Foreign) -> bool {
        match (self, foreign.edge) {
            // What is in front of our program has had its say.
            (Self::Pod | Self::Underlay, Edge::Entry) => foreign.behind,
            (Self::Pod, Edge::Exit) | (Self::Bridge | Self::Device, _) | (Self::Stripped, Edge::Entry) => {
                true
            }
            // What a program redirects passes everything at an exit but nf_tables (`nf_skip_egress`, v6.18).
            (Self::Way, Edge::Exit) => foreign.what == What::Chain,
            (Self::Underlay | Self::Stripped, Edge::Exit) | (Self::Way, Edge::Entry) => false,
        }
    }
}

/// What the fast path would pass by.
pub(super) struct Hooked<'a>(BTreeSet<&'a Foreign>);

impl<'a> Hooked<'a> {
    /// What of `foreign` is on interfaces of these roles.
    pub(super) fn new(foreign: &'a [Foreign], roles: &BTreeSet<(IfIndex, Role)>) -> Self {
        let on = |ifindex: IfIndex| roles.range((ifindex, Role::Pod)..=(ifindex, Role::Way));
        let counts = |f: &&Foreign| on(f.ifindex).any(|(_, role)| role.passes_by(f));
        Self(foreign.iter().filter(counts).collect())
    }

    /// Whether anything is at this edge of an interface.
    pub(super) fn at(&self, ifindex: IfIndex, edge: Edge) -> bool {
        self.0.iter().any(|f| f.ifindex == ifindex && f.edge == edge)
    }

    /// Whether anything comes behind our programs at the entry of an interface.
    pub(super) fn behind(&self, ifindex: IfIndex) -> bool {
        self.0.iter().any(|f| f.ifindex == ifindex && f.edge == Edge::Entry && f.behind)
    }

    /// All of it.
    pub(super) fn all(&self) -> Vec<Foreign> {
        self.0.iter().map(|f| (*f).clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn foreign(edge: Edge, what: What, behind: bool) -> Foreign {
        Foreign { ifindex: IfIndex(7), edge, what, name: "x".into(), behind }
    }

    fn counts(role: Role, foreign: Foreign) -> bool {
        let (edge, all) = (foreign.edge, [foreign]);
        Hooked::new(&all, &[(IfIndex(7), role)].into()).at(IfIndex(7), edge)
    }

    #[test]
    fn what_counts_depends_on_what_the_interface_is_to_the_overlay() {
        use Edge::{Entry, Exit};
        use Role::{Bridge, Device, Pod, Stripped, Underlay, Way};
        for (role, edge, what, behind, expected) in [
            (Pod, Entry, What::Filter, true, true),
            (Pod, Entry, What::Filter, false, false),
            (Pod, Exit, What::Qdisc, true, true),
            (Pod, Exit, What::Program, false, true),
            (Bridge, Entry, What::Filter, false, true),
            (Device, Entry, What::Filter, false, true),
            (Device, Exit, What::Qdisc, true, true),
            (Underlay, Entry, What::Program, false, false),
            (Underlay, Entry, What::Chain, true, true),
            (Underlay, Exit, What::Qdisc, true, false),
            (Stripped, Entry, What::Program, false, true),
            (Way, Exit, What::Chain, true, true),
            (Way, Exit, What::Qdisc, true, false),
        ] {
            assert_eq!(
                counts(role, foreign(edge, what, behind)),
                expected,
                "{role:?} {edge:?} {what:?} {behind}"
            );
        }
        let elsewhere = [foreign(Exit, What::Qdisc, true)];
        assert!(Hooked::new(&elsewhere, &[(IfIndex(8), Pod)].into()).all().is_empty());
    }
}
