//! From nodes to the cluster as this node sees it: pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use vxlan_ebpf_common::maps::Family;

use super::Settings;
use super::annotations::{Names, Published};
use super::node::{NodeObject, Peer, Side};
use crate::cluster::{Candidate, ClusterState, Viewer, derive_mac};
use crate::local::Local;

/// Every node that the API server knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::source) struct Mirror {
    /// This node.
    pub own: Option<NodeObject>,
    /// The others, by name.
    pub peers: BTreeMap<String, Peer>,
}

/// Nodes that take no part, or less than they could, and why.
pub(in crate::source) type LeftOut = BTreeMap<String, String>;

/// How this node takes part: its VTEPs, at most one for each IP version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::source) struct Own {
    /// Over IPv4.
    pub v4: Option<Side>,
    /// Over IPv6.
    pub v6: Option<Side>,
    /// Why it does not run an IP version that it has a subnet for.
    pub lacks: Option<String>,
}

impl Own {
    /// Decides how the node takes part.
    ///
    /// Address: what an operator overwrote, then what the configuration says, then of the
    /// interface's addresses the one that the others know already, the kubelet's, or the first.
    /// MAC: the one that the others know already, then that of the device that is there, then one
    /// derived from the name. So neither changes with a restart.
    ///
    /// # Errors
    /// One sentence why it cannot take part.
    pub(super) fn decide(object: &NodeObject, local: &Local, settings: &Settings) -> Result<Self, String> {
        let mut own = Self::default();
        let mut missing = vec![];
        let Self { v4, v6, lacks } = &mut own;
        for (family, side) in [(Family::V4, v4), (Family::V6, v6)] {
            if settings.runs(family) {
                *side = own_side(object, local, settings, family)?;
            }
            if side.is_none() {
                missing.push(why_none(object, local, settings, family)?);
                if settings.runs(family) && object.subnet(family)?.is_some() {
                    *lacks = missing.last().cloned();
                }
            }
        }
        if own.v4.is_none() && own.v6.is_none() {
            return Err(format!("node '{}' cannot take part: {}", settings.viewer.node, missing.join("; ")));
        }
        Ok(own)
    }

    /// What the others should know.
    pub(super) fn published(&self, viewer: &Viewer) -> Published {
        let sides = [&self.v4, &self.v6].into_iter().flatten();
        Published { vni: viewer.vni, vteps: sides.map(|side| (side.vtep, side.mac)).collect() }
    }
}

fn own_side(
    object: &NodeObject,
    local: &Local,
    settings: &Settings,
    family: Family,
) -> Result<Option<Side>, String> {
    let Some(subnet) = object.subnet(family)? else { return Ok(None) };
    let (names, annotations) = (&settings.names, &object.metadata.annotations);
    let overwrite = names.overwrite(annotations, family)?;
    let Some(vtep) =
        overwrite.or(settings.public_ip(family)).or_else(|| address(object, local, names, family))
    else {
        return Ok(None);
    };
    // What an earlier run wrote wrongly is overwritten.
    let written = names.backend_data(annotations, family).ok().flatten();
    let known = written.filter(|data| data.vni.is_none_or(|vni| vni == settings.viewer.vni));
    let known = known.map(|data| data.mac).filter(|mac| mac.is_station());
    let name = match family {
        Family::V4 => settings.viewer.node.clone(),
        Family::V6 => format!("{}/6", settings.viewer.node),
    };
    let mac = known.or(local.side(family).mac).unwrap_or_else(|| derive_mac(&name, settings.viewer.vni));
    Ok(Some(Side { vtep, mac, subnet }))
}

fn address(object: &NodeObject, local: &Local, names: &Names, family: Family) -> Option<IpAddr> {
    let addresses = &local.side(family).addresses;
    let known = names.public_ip(&object.metadata.annotations, family).ok().flatten();
    let preferred = known.into_iter().chain(object.internal_ip(family)).find(|ip| addresses.contains(ip));
    preferred.or_else(|| addresses.first().copied())
}

fn why_none(
    object: &NodeObject,
    local: &Local,
    settings: &Settings,
    family: Family,
) -> Result<String, String> {
    let version = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    Ok(if !settings.runs(family) {
        format!("{version} is switched off")
    } else if object.subnet(family)?.is_none() {
        format!("it has no {version} podCIDR (does the controller manager run with --allocate-node-cidrs?)")
    } else {
        let interface = local.interface.as_deref().unwrap_or("no interface");
        format!("{interface} has no {version} address")
    })
}

/// The cluster as this node sees it. A node that cannot be right is left out, rather than stop the
/// rest: of two that claim the same subnet, address or MAC, the one whose kubelet does not report
/// its address; else the one that was created first, which has been replaced.
///
/// # Errors
/// One sentence: what is wrong with the own node.
pub(in crate::source) fn assemble(
    own: &Own,
    mirror: &Mirror,
    viewer: &Viewer,
) -> Result<(ClusterState, LeftOut), String> {
    let mut left_out: LeftOut =
        mirror.peers.iter().filter_map(|(name, peer)| Some((name.clone(), peer.trouble.clone()?))).collect();
    let mut newest: Vec<(&String, &Peer)> = mirror.peers.iter().collect();
    newest.sort_by(|(_, a), (_, b)| (b.is_credible, &b.created).cmp(&(a.is_credible, &a.created)));
    let mut over = |family, own: &Option<Side>| -> Result<Option<ClusterState>, String> {
        let Some(own) = own else { return Ok(None) };
        let others = newest.iter().filter_map(|(name, peer)| Some(candidate(name, peer.side(family)?)));
        let candidates = std::iter::once(candidate(&viewer.node, own)).chain(others).collect();
        valid_part(candidates, viewer, &mut left_out).map(Some)
    };
    let (v4, v6) = (over(Family::V4, &own.v4)?, over(Family::V6, &own.v6)?);
    let cluster = match (v4, v6) {
        (Some(v4), Some(v6)) => ClusterState::dual(v4, v6),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return Err(format!("node '{}' has no VTEP", viewer.node)),
    };
    Ok((ClusterState { left_out: left_out.clone(), ..cluster }, left_out))
}

fn candidate(name: &str, side: &Side) -> Candidate {
    let (mac, subnets) = (Some(side.mac), vec![side.subnet]);
    Candidate { name: name.to_owned(), vtep: side.vtep, mac, subnets, stations: vec![] }
}

/// Leaves out what cannot be right. The first candidate is this node.
fn valid_part(
    candidates: Vec<Candidate>,
    viewer: &Viewer,
    left_out: &mut LeftOut,
) -> Result<ClusterState, String> {
    let (cluster, others) = ClusterState::sift(candidates, viewer).map_err(|invalid| invalid.to_string())?;
    left_out.extend(others.into_iter().map(|(name, reason)| (name, reason.to_string())));
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalSide;
    use crate::net::{Mac, Vni};
    use crate::source::kubernetes::node::tests::flannel_node;

    fn settings() -> Settings {
        Settings::new(Viewer {
            node: "n1".into(),
            network: "pods".into(),
            l2: false,
            vni: Vni::try_from(1).expect("in range"),
        })
    }

    fn local() -> Local {
        let side = |ips: &[&str]| LocalSide {
            addresses: ips.iter().map(|ip| ip.parse().expect("IP")).collect(),
            mac: None,
        };
        Local {
            interface: Some("eth0".into()),
            v4: side(&["192.0.2.1", "192.0.2.101"]),
            v6: side(&["2001:db8::1"]),
        }
    }

    fn mirror(nodes: impl IntoIterator<Item = NodeObject>) -> Mirror {
        let settings = settings();
        let mut mirror = Mirror::default();
        for node in nodes {
            let peer = Peer::read(&node, &settings.names, settings.viewer.vni);
            mirror.peers.insert(node.metadata.name.clone(), peer);
        }
        mirror
    }

    fn see(own: NodeObject, others: impl IntoIterator<Item = NodeObject>) -> (ClusterState, LeftOut) {
        let own = Own::decide(&own, &local(), &settings()).expect("takes part");
        assemble(&own, &mirror(others), &settings().viewer).expect("valid")
    }

    fn annotate(node: &mut NodeObject, name: &str, value: &str) {
        node.metadata.annotations.insert(format!("flannel.alpha.coreos.com/{name}"), value.to_owned());
    }

    #[test]
    fn a_new_node_finds_its_address_and_derives_its_macs() {
        let mut bare = flannel_node(1);
        bare.metadata.annotations.clear();
        bare.status.addresses[1].address = "192.0.2.101".into();
        let own = Own::decide(&bare, &local(), &settings()).expect("takes part");
        let (v4, v6) = (own.v4.expect("IPv4"), own.v6.expect("IPv6"));
        assert_eq!(v4.vtep, IpAddr::from([192, 0, 2, 101]), "the kubelet's address");
        assert_eq!(v4.mac, derive_mac("n1", settings().viewer.vni));
        assert_ne!(v4.mac, v6.mac);
    }

    #[test]
    fn what_the_others_know_stays_as_long_as_it_is_true() {
        let mut known = flannel_node(1);
        annotate(&mut known, "public-ip", "192.0.2.101");
        let side =
            |node: &NodeObject| Own::decide(node, &local(), &settings()).expect("own").v4.expect("IPv4");
        assert_eq!(side(&known).vtep, IpAddr::from([192, 0, 2, 101]));
        assert_eq!(side(&known).mac.to_string(), "0e:11:00:00:00:01");
        annotate(&mut known, "public-ip", "192.0.2.77");
        assert_eq!(
            side(&known).vtep,
            IpAddr::from([192, 0, 2, 1]),
            "the interface does not have it any more"
        );
        annotate(&mut known, "public-ip-overwrite", "198.51.100.1");
        assert_eq!(side(&known).vtep, IpAddr::from([198, 51, 100, 1]), "but an operator knows better");
    }

    #[test]
    fn the_device_that_is_there_keeps_its_mac() {
        let mut bare = flannel_node(1);
        bare.metadata.annotations.clear();
        let mut local = local();
        local.v4.mac = Some(Mac([2, 0, 0, 0, 0, 7]));
        let own = Own::decide(&bare, &local, &settings()).expect("takes part");
        assert_eq!(own.v4.map(|side| side.mac), local.v4.mac);
    }

    #[test]
    fn a_node_that_cannot_take_part_says_why() {
        let refused = |node: &NodeObject, local: &Local, word: &str| {
            let why = Own::decide(node, local, &settings()).expect_err(word);
            assert!(why.contains(word), "{why}");
        };
        let mut young = flannel_node(1);
        young.spec = super::super::node::Spec::default();
        refused(&young, &local(), "no IPv4 podCIDR");
        let mut bare = flannel_node(1);
        bare.metadata.annotations.clear();
        refused(
            &bare,
            &Local { interface: Some("eth0".into()), ..Local::default() },
            "eth0 has no IPv4 address",
        );
    }

    #[test]
    fn a_node_with_a_subnet_and_no_address_says_so_and_runs_the_other_ip_version() {
        let mut local = local();
        local.v6.addresses.clear();
        let mut bare = flannel_node(1);
        bare.metadata.annotations.clear();
        let own = Own::decide(&bare, &local, &settings()).expect("takes part");
        let (cluster, left_out) =
            assemble(&own, &mirror([flannel_node(2)]), &settings().viewer).expect("valid");
        assert_eq!((cluster.own6, cluster.remotes.len()), (None, 1));
        assert_eq!(left_out, LeftOut::new());
        assert!(own.lacks.is_some_and(|lacks| lacks.contains("no IPv6 address")));
    }

    #[test]
    fn a_cluster_of_both_ip_versions_has_two_vteps_a_node() {
        let (cluster, left_out) = see(flannel_node(1), [flannel_node(2), flannel_node(3)]);
        assert_eq!(left_out, LeftOut::new());
        assert_eq!(cluster.own.vtep, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(
            cluster.own6.as_ref().map(|own| own.mac.to_string()).as_deref(),
            Some("0e:16:00:00:00:01")
        );
        assert_eq!(cluster.remotes.len(), 4);
        assert!(
            cluster
                .remotes
                .values()
                .all(|node| node.subnets.len() == 1 && node.subnets[0].is_ipv4() == node.vtep.is_ipv4())
        );
    }

    #[test]
    fn a_node_that_replaces_another_wins() {
        let mut new = flannel_node(9);
        new.spec = flannel_node(2).spec;
        let (cluster, left_out) = see(flannel_node(1), [flannel_node(2), new]);
        assert!(cluster.remotes.contains_key("n9") && !cluster.remotes.contains_key("n2"));
        assert!(left_out["n2"].contains("overlaps"), "{left_out:?}");
    }

    #[test]
    fn a_node_that_claims_another_s_address_loses() {
        let mut thief = flannel_node(2);
        thief.metadata.name = "thief".into();
        thief.metadata.creation_timestamp = "2027-01-01T00:00:00Z".into();
        thief.status.addresses.clear();
        let (cluster, left_out) = see(flannel_node(1), [flannel_node(2), thief]);
        assert!(cluster.remotes.contains_key("n2") && left_out.contains_key("thief"), "{left_out:?}");
    }

    #[test]
    fn no_other_node_can_push_this_one_out() {
        let mut thief = flannel_node(1);
        thief.metadata.name = "thief".into();
        let (cluster, left_out) = see(flannel_node(1), [thief, flannel_node(2)]);
        assert_eq!(cluster.remotes.keys().collect::<Vec<_>>(), ["n2", "n2 (IPv6)"]);
        assert!(left_out.contains_key("thief"));
    }
}
