//! What SUBNETS4 and SUBNETS6 hold: of each network those of its prefixes that have the most frequent length. A hash
//! finds one of a hundred thousand as fast as one of ten.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::maps::{LONGEST_SUBNET6, NetworkId, VtepId};

use super::state::DatapathState;

type Routes = BTreeMap<(NetworkId, IpNetwork), VtepId>;
/// A network, and whether the prefixes are IPv4's.
type Version = (NetworkId, bool);

impl DatapathState {
    /// Fills SUBNETS4 and SUBNETS6 from the routes.
    pub fn index_routes(&mut self) {
        let lengths = lengths(&self.routes);
        for (id, network) in &mut self.networks {
            let length = |is_ipv4| lengths.get(&(*id, is_ipv4)).copied().unwrap_or_default();
            (network.subnet4, network.subnet6) = (length(true), length(false));
        }
        let is_chosen = |(id, prefix): &(NetworkId, IpNetwork)| {
            let version = (*id, prefix.is_ipv4());
            self.networks.contains_key(id) && lengths.get(&version) == Some(&prefix.prefix())
        };
        // What is inside of a prefix comes right behind it.
        let behind = self.routes.keys().skip(1).map(Some).chain([None]);
        let with_next = self.routes.iter().zip(behind);
        let alone = with_next
            .filter(|((at, _), next)| is_chosen(at) && !next.is_some_and(|next| is_inside(at, next)));
        self.subnets = alone.map(|((at, id), _)| (*at, *id)).collect();
    }
}

/// The most frequent length of prefixes; of several the longest.
fn lengths(routes: &Routes) -> BTreeMap<Version, u8> {
    let mut counts = BTreeMap::<(Version, u8), usize>::new();
    for (id, prefix) in routes.keys().filter(|(_, prefix)| fits(prefix)) {
        *counts.entry(((*id, prefix.is_ipv4()), prefix.prefix())).or_default() += 1;
    }
    let mut most = BTreeMap::<Version, (usize, u8)>::new();
    for ((version, length), count) in counts {
        let best = most.entry(version).or_default();
        *best = (*best).max((count, length));
    }
    most.into_iter().map(|(version, (_, length))| (version, length)).collect()
}

/// Whether the maps take it.
fn fits(prefix: &IpNetwork) -> bool {
    let longest = if prefix.is_ipv4() { 32 } else { LONGEST_SUBNET6 };
    (1..=longest).contains(&prefix.prefix())
}

fn is_inside((id, outer): &(NetworkId, IpNetwork), (other, inner): &(NetworkId, IpNetwork)) -> bool {
    id == other && outer.prefix() < inner.prefix() && outer.contains(inner.network())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::{IpAddr, Ipv4Addr};
    use vxlan_ebpf_common::maps::Network;

    fn state(routes: &[(NetworkId, &str)]) -> DatapathState {
        let prefix = |text: &str| text.parse().expect("a prefix");
        let routes = routes.iter().zip(1..).map(|((id, text), vtep)| ((*id, prefix(text)), vtep)).collect();
        let networks = [1, 2].map(|id| (id, Network { id, ..Network::default() })).into();
        let mut state = DatapathState { routes, networks, ..DatapathState::default() };
        state.index_routes();
        state
    }

    fn held(state: &DatapathState, network: NetworkId) -> Vec<String> {
        state.subnets.keys().filter(|(id, _)| *id == network).map(|(_, prefix)| prefix.to_string()).collect()
    }

    #[test]
    fn each_network_has_the_length_that_most_of_its_subnets_have() {
        let state = state(&[
            (1, "10.0.1.0/24"),
            (1, "10.0.2.0/24"),
            (1, "10.1.0.0/16"),
            (1, "fd00:1::/64"),
            (1, "fd00:2::1/128"),
            (2, "10.0.0.0/26"),
            (2, "0.0.0.0/0"),
        ]);
        assert_eq!(held(&state, 1), ["10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64"]);
        assert_eq!(held(&state, 2), ["10.0.0.0/26"]);
        let length = |id: NetworkId| (state.networks[&id].subnet4, state.networks[&id].subnet6);
        assert_eq!((length(1), length(2)), ((24, 64), (26, 0)));
    }

    #[test]
    fn a_subnet_with_another_inside_is_left_to_the_trie() {
        let state =
            state(&[(1, "10.0.1.0/24"), (1, "10.0.1.128/25"), (1, "10.0.2.0/24"), (1, "10.0.3.0/24")]);
        assert_eq!(held(&state, 1), ["10.0.2.0/24", "10.0.3.0/24"]);
    }

    proptest! {
        #[test]
        fn what_is_found_is_the_longest_match(
            prefixes in proptest::collection::btree_set((0u8..4, 24u8..=28), 1..12),
            address in any::<u8>(),
        ) {
            let network = |(third, length): &(u8, u8)| {
                let prefix = IpNetwork::new(IpAddr::from([10, 0, *third, 64]), *length).expect("short enough");
                IpNetwork::new(prefix.network(), *length).expect("the same")
            };
            let routes: Routes = prefixes.iter().map(network).zip(1..).map(|(prefix, id)| ((1, prefix), id)).collect();
            let networks = [(1, Network { id: 1, ..Network::default() })].into();
            let mut state = DatapathState { routes, networks, ..DatapathState::default() };
            state.index_routes();
            let address = IpAddr::from(Ipv4Addr::new(10, 0, address % 4, address));
            let matching = |all: &Routes| {
                let matches = all.iter().filter(|((_, prefix), _)| prefix.contains(address));
                matches.max_by_key(|((_, prefix), _)| prefix.prefix()).map(|(_, id)| *id)
            };
            if let Some(found) = matching(&state.subnets) {
                prop_assert_eq!(Some(found), matching(&state.routes));
            }
        }
    }
}
