//! Networks that cannot run side by side: they share one routing table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::network::Network;
use crate::net::Vni;

/// What a network needs for itself alone.
#[derive(Clone, Debug)]
pub(super) struct Claim<'n> {
    pub(super) name: &'n str,
    /// `None` while nobody knows.
    pub(super) id: Option<(Vni, u16)>,
    pub(super) devices: Vec<&'n str>,
    /// Of all nodes.
    pub(super) subnets: Vec<IpNetwork>,
}

impl<'n> Claim<'n> {
    pub(super) fn of(network: &'n Network) -> Self {
        let cluster = &network.cluster;
        let nodes = cluster.owns().chain(cluster.remotes.values());
        let config = &network.config.network;
        let id = Some((config.vni, config.port));
        if network.is_accelerated() {
            // Routes through a device that somebody else manages are in that table already.
            let id = id.filter(|_| network.mirror.is_ok());
            return Self { name: network.name(), id, devices: vec![&config.device], subnets: vec![] };
        }
        Self {
            name: network.name(),
            id,
            devices: cluster.owns().map(|own| network.config.device_over(own.vtep)).collect(),
            subnets: nodes.flat_map(|node| &node.subnets).copied().collect(),
        }
    }
}

/// Why networks cannot run, one sentence for each that cannot: of two that collide the first one runs.
pub(super) fn collisions(claims: &[Claim<'_>]) -> Vec<Option<String>> {
    let (mut devices, mut ids) = (BTreeMap::new(), BTreeMap::new());
    let mut taken = BTreeMap::new();
    let mut found = vec![];
    for claim in claims {
        let reason =
            same_device(claim, &devices).or_else(|| same_id(claim, &ids)).or_else(|| overlap(claim, &taken));
        if reason.is_none() {
            devices.extend(claim.devices.iter().map(|device| (*device, claim.name)));
            ids.extend(claim.id.map(|id| (id, claim.name)));
            taken.extend(claim.subnets.iter().map(|subnet| (start(*subnet), (*subnet, claim.name))));
        }
        found.push(reason);
    }
    found
}

/// Subnets by their first address, and whose they are. Those of one network do not overlap.
type Taken<'n> = BTreeMap<IpAddr, (IpNetwork, &'n str)>;

fn start(subnet: IpNetwork) -> IpAddr {
    subnet.network()
}

fn same_device(claim: &Claim<'_>, taken: &BTreeMap<&str, &str>) -> Option<String> {
    let (device, name) = claim.devices.iter().find_map(|device| Some((device, taken.get(device)?)))?;
    Some(format!(
        "the networks '{name}' and '{}' have the same device {device}: the first one runs",
        claim.name
    ))
}

fn same_id(claim: &Claim<'_>, taken: &BTreeMap<(Vni, u16), &str>) -> Option<String> {
    let (vni, port) = claim.id?;
    let name = taken.get(&(vni, port))?;
    Some(format!(
        "the networks '{name}' and '{}' have the same VNI {vni} and UDP port {port}: the first one runs",
        claim.name
    ))
}

fn overlap(claim: &Claim<'_>, taken: &Taken<'_>) -> Option<String> {
    let meets = |subnet: &IpNetwork| {
        let before = taken.range(..=start(*subnet)).next_back();
        let behind = taken.range(start(*subnet)..).next();
        let mut near = before.into_iter().chain(behind).map(|(_, other)| *other);
        let (other, name) =
            near.find(|(other, _)| other.contains(start(*subnet)) || subnet.contains(start(*other)))?;
        Some(format!(
            "subnet {subnet} of the network '{}' overlaps {other} of the network '{name}', and both are in one \
             routing table: '{name}' runs, being the first one",
            claim.name
        ))
    };
    claim.subnets.iter().find_map(meets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim<'n>(name: &'n str, vni: u32, device: &'n str, subnets: &[&str]) -> Claim<'n> {
        let subnets = subnets.iter().map(|subnet| subnet.parse().expect("a subnet")).collect();
        let id = Some((vni.try_into().expect("in range"), 8472));
        Claim { name, id, devices: vec![device], subnets }
    }

    #[test]
    fn networks_of_their_own_run_side_by_side() {
        let claims = [
            claim("a", 1, "a0", &["10.1.0.0/24", "fd00:1::/64"]),
            claim("b", 2, "b0", &["10.1.1.0/24", "10.0.255.0/24", "fd00:2::/64"]),
            claim("c", 3, "c0", &[]),
        ];
        assert_eq!(collisions(&claims), [None, None, None]);
    }

    #[test]
    fn the_second_of_two_whose_subnets_overlap_does_not_run() {
        for (one, other) in [
            ("10.1.0.0/24", "10.1.0.0/24"),
            ("10.1.0.0/24", "10.1.0.128/25"),
            ("10.1.0.0/24", "10.0.0.0/8"),
            ("fd00:1::/64", "fd00::/16"),
            ("fd00:1::/64", "fd00:1:0:0:8000::/80"),
        ] {
            let claims = [
                claim("a", 1, "a0", &["10.9.0.0/24", one, "fd09::/64"]),
                claim("b", 2, "b0", &["192.0.2.0/24", other]),
                claim("c", 3, "c0", &["10.9.1.0/24"]),
            ];
            let found = collisions(&claims);
            let reason = found[1].as_deref().expect("they overlap");
            let words = ["'a'", "'b'", &format!("subnet {other} of"), &format!("overlaps {one} of")];
            assert!(words.iter().all(|word| reason.contains(*word)), "{reason}");
            assert_eq!((&found[0], &found[2]), (&None, &None), "{one} {other}");
        }
    }

    #[test]
    fn who_does_not_run_is_in_nobodys_way() {
        let claims = [
            claim("a", 1, "a0", &["10.1.0.0/24"]),
            claim("b", 2, "b0", &["10.1.0.0/24", "10.2.0.0/24"]),
            claim("c", 3, "c0", &["10.2.0.0/24"]),
        ];
        let found = collisions(&claims);
        assert!(found[1].is_some() && found[2].is_none(), "{found:?}");
    }

    #[test]
    fn devices_and_identifiers_are_one_networks_only() {
        let [a, b] = [claim("a", 1, "a0", &[]), claim("b", 1, "b0", &[])];
        let reason = collisions(&[a.clone(), b]).pop().flatten().expect("the same VNI");
        assert!(reason.contains("'a' and 'b'") && reason.contains("VNI 1 and UDP port 8472"), "{reason}");
        let reason = collisions(&[a, claim("c", 2, "a0", &[])]).pop().flatten().expect("the same device");
        assert!(reason.contains("device a0"), "{reason}");
    }
}
