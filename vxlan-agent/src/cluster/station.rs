//! Stations of a bridged network: what is attached to a node's bridge and known beforehand.

use std::collections::HashMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::{Invalid, Node, Reason, is_unicast};
use crate::net::Mac;

/// Something with a MAC at a node's bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Station {
    /// Its MAC: neither a group address nor zero.
    pub mac: Mac,
    /// Its unicast address, where that is known: questions for it can be answered.
    pub ip: Option<IpAddr>,
}

impl Station {
    /// What is wrong with this station of `node` alone.
    pub(super) fn check(&self, node: &str) -> Result<(), Reason> {
        if !self.mac.is_station() {
            return Err(Reason::BadStation(node.to_owned(), self.mac));
        }
        match self.ip {
            Some(ip) if !is_unicast(ip) => Err(Reason::BadStationAddress(node.to_owned(), self.mac, ip)),
            _ => Ok(()),
        }
    }
}

/// A MAC is at one place, and an address has one MAC.
pub(super) fn check_unique(nodes: &[Node]) -> Result<(), Invalid> {
    let (mut macs, mut addresses) = (HashMap::new(), HashMap::new());
    for (index, node) in nodes.iter().enumerate() {
        let (name, invalid) = (&node.name, |reason| Err(Invalid { candidate: Some(index), reason }));
        for Station { mac, ip } in &node.stations {
            if let Some(other) = macs.insert(*mac, name) {
                return invalid(Reason::DuplicateStation(other.clone(), name.clone(), *mac));
            }
            let Some(ip) = ip else { continue };
            if let Some(other) = addresses.insert(*ip, name) {
                let reason = Reason::DuplicateStationAddress(other.clone(), name.clone(), *mac, *ip);
                return invalid(reason);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Candidate, ClusterState, Viewer};
    use super::*;
    use crate::net::Vni;

    fn seen(l2: bool, nodes: Vec<Candidate>) -> Result<ClusterState, Invalid> {
        let vni = Vni::try_from(1).expect("in range");
        ClusterState::new(nodes, &Viewer { node: "n1".into(), network: "tenant".into(), vni, l2 })
    }

    fn station(mac: u8, ip: Option<&str>) -> Station {
        Station { mac: Mac([2, 0, 0, 0, 0, mac]), ip: ip.map(|ip| ip.parse().expect("address")) }
    }

    fn node(n: u8, subnet: &str, stations: &[Station]) -> Candidate {
        let subnets = vec![subnet.parse().expect("subnet")];
        let vtep = IpAddr::from([192, 0, 2, n]);
        Candidate { name: format!("n{n}"), vtep, mac: None, subnets, stations: stations.to_vec() }
    }

    #[test]
    fn a_segment_has_stations_and_no_subnets() {
        let stations = [station(1, Some("10.0.0.7")), station(2, Some("fe80::2")), station(3, None)];
        // Neither the subnets of a segment nor the stations of a routed network are looked at.
        let nodes = || vec![node(1, "10.1.0.0/24", &stations), node(2, "10.1.0.0/16", &[])];
        let cluster = seen(true, nodes()).expect("valid");
        assert_eq!((cluster.own.subnets.len(), &cluster.own.stations[..]), (0, &stations[..]));
        assert!(cluster.remotes["n2"].stations.is_empty() && cluster.remotes["n2"].subnets.is_empty());
        assert!(seen(false, nodes()).is_err());
        let twice = vec![node(1, "10.1.0.0/24", &stations), node(2, "10.2.0.0/24", &stations)];
        let cluster = seen(false, twice).expect("valid");
        assert_eq!((cluster.own.subnets.len(), cluster.own.stations.len()), (1, 0));
    }

    #[test]
    fn a_mac_is_at_one_place_and_an_address_has_one_mac() {
        let refused = |a: &[Station], b: &[Station], candidate: usize, word: &str| {
            let nodes = vec![node(1, "10.1.0.0/24", a), node(2, "10.2.0.0/24", b)];
            let invalid = seen(true, nodes).expect_err(word);
            assert!(invalid.to_string().contains(word), "{invalid}");
            assert_eq!(invalid.candidate, Some(candidate), "{invalid}");
        };
        let one = station(1, Some("10.0.0.7"));
        refused(
            &[one],
            &[station(1, None)],
            1,
            "02:00:00:00:00:01 of node 'n2' is there already, at node 'n1'",
        );
        refused(&[one, one], &[], 0, "already, at node 'n1'");
        refused(&[one], &[station(2, Some("10.0.0.7"))], 1, "address 10.0.0.7");
        let group = Station { mac: Mac([1, 0, 0, 0, 0, 1]), ip: None };
        refused(&[one], &[group], 1, "group address or zero");
        refused(&[Station { mac: Mac::default(), ip: None }], &[], 0, "group address or zero");
        for ip in ["0.0.0.0", "224.0.0.1", "127.0.0.1", "::", "ff02::1", "::ffff:10.0.0.7"] {
            refused(&[one], &[station(2, Some(ip))], 1, "not unicast");
        }
    }
}
