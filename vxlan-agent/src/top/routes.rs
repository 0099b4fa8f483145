//! Whose an address is, as ROUTES4 and ROUTES6 have it.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use vxlan_ebpf_common::maps::{NetworkId, VtepId};

/// Routes by network and IP version, and of each length, the longest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Routes(BTreeMap<(NetworkId, bool), Vec<OfLength>>);

/// A prefix length, and who has which subnet of it.
type OfLength = (u8, HashMap<IpAddr, VtepId>);

impl Routes {
    pub(super) fn new(routes: impl Iterator<Item = (NetworkId, IpNetwork, VtepId)>) -> Self {
        let mut by_length = BTreeMap::<_, BTreeMap<u8, HashMap<IpAddr, VtepId>>>::new();
        for (network, to, id) in routes {
            let lengths = by_length.entry((network, to.is_ipv4())).or_default();
            lengths.entry(to.prefix()).or_default().insert(to.network(), id);
        }
        Self(by_length.into_iter().map(|(key, lengths)| (key, lengths.into_iter().rev().collect())).collect())
    }

    /// The VTEP behind which `address` is.
    pub(super) fn vtep(&self, network: NetworkId, address: IpAddr) -> Option<VtepId> {
        let lengths = self.0.get(&(network, address.is_ipv4()))?;
        lengths.iter().find_map(|(length, to)| {
            let prefix = IpNetwork::new(address, *length).ok()?;
            to.get(&prefix.network()).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_route_of_the_right_network_leads_on() {
        let route = |network, to: &str, id| (network, to.parse().expect("a prefix"), id);
        let routes = [route(1, "10.0.0.0/8", 1), route(1, "10.1.0.0/16", 2), route(1, "fd00::/16", 3)];
        let routes = Routes::new(routes.into_iter());
        let vtep = |network, ip: &str| routes.vtep(network, ip.parse().expect("an address"));
        assert_eq!(vtep(1, "10.1.2.3"), Some(2));
        assert_eq!(vtep(1, "10.2.2.3"), Some(1));
        assert_eq!(vtep(1, "fd00::1"), Some(3));
        assert_eq!(vtep(1, "192.0.2.1"), None);
        assert_eq!(vtep(2, "10.1.2.3"), None);
    }
}
