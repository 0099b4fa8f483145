//! The cluster as a source describes it, checked as a whole: pure, the same on every node.

mod sift;
mod station;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::net::{self, Mac, Vni};

pub use station::Station;

/// A node, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name, unique.
    pub name: String,
    /// Underlay address that others send to, unique.
    pub vtep: IpAddr,
    /// MAC of its vxlan device, unique.
    pub mac: Mac,
    /// Pod subnets, without host bits, overlapping with no other. None in a bridged network.
    pub subnets: Vec<IpNetwork>,
    /// What is known to be attached to it, each MAC and each address once in the cluster. None in a
    /// routed network.
    pub stations: Vec<Station>,
}

/// All nodes, seen from one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterState {
    /// This node.
    pub own: Node,
    /// This node over IPv6, where the network runs over both IP versions: `own` is then over IPv4,
    /// and every other node is one entry for each version that it runs.
    pub own6: Option<Node>,
    /// Every other node, by name.
    pub remotes: BTreeMap<String, Node>,
    /// A number that changes whenever rules for packets between pods have: flows that bypass the host
    /// stack have to meet it again. `None` where the source knows nothing of rules.
    pub policy: Option<u64>,
    /// Why the node is not ready although the cluster is followed: a line for whoever asks.
    pub trouble: Option<String>,
    /// Other nodes that take no part, or only in part, by the source's name for them, and why.
    pub left_out: BTreeMap<String, String>,
}

/// What follows a node's name in the entry of its VTEP over IPv6, where it has one over IPv4, too.
const OVER_IPV6: &str = " (IPv6)";

/// A node as somebody wrote it down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its underlay address.
    pub vtep: IpAddr,
    /// Its MAC; [`derive_mac`] otherwise.
    pub mac: Option<Mac>,
    /// Its pod subnets; a bridged network has no use for them.
    pub subnets: Vec<IpNetwork>,
    /// What is attached to it; a routed network has no use for them.
    pub stations: Vec<Station>,
}

/// Whose view a [`ClusterState`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Viewer {
    /// Name of the own node.
    pub node: String,
    /// Name of the network.
    pub network: String,
    /// VNI that MACs are derived for.
    pub vni: Vni,
    /// Whether the network is bridged: nodes then have stations instead of subnets.
    pub l2: bool,
}

/// Why a cluster was refused, and for which of the candidates.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Invalid {
    /// Index of the candidate to blame, where it is one.
    pub candidate: Option<usize>,
    /// What is wrong with it.
    pub reason: Reason,
}

/// What can be wrong with a cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Reason {
    #[error("a node has an empty name")]
    NoName,
    #[error("node name '{0}' has control characters in it")]
    BadName(String),
    #[error("there are two nodes '{0}'")]
    DuplicateName(String),
    #[error("nodes '{0}' and '{1}' have the same VTEP address {2}")]
    DuplicateVtep(String, String, IpAddr),
    #[error("nodes '{0}' and '{1}' have the same MAC {2}: give one of them another 'mac'")]
    DuplicateMac(String, String, Mac),
    #[error("node '{0}': {1} cannot be a VTEP address: it is not a unicast address of the underlay")]
    BadVtep(String, IpAddr),
    #[error("node '{0}': MAC {1} is not a station's: a group address or zero")]
    BadMac(String, Mac),
    #[error("node '{0}': subnet {1} has host bits set: did you mean {2}?")]
    HostBits(String, IpNetwork, IpNetwork),
    #[error(
        "node '{0}': subnet {1} cannot hold pods: it is not unicast, or reserved, or has fewer than four addresses"
    )]
    BadSubnet(String, IpNetwork),
    #[error("subnet {1} of node '{0}' overlaps {3} of node '{2}'")]
    Overlap(String, IpNetwork, String, IpNetwork),
    #[error("subnet {1} of node '{0}' contains the VTEP address {3} of node '{2}': packets to it would loop")]
    VtepInside(String, IpNetwork, String, IpAddr),
    #[error(
        "node '{0}' has the VTEP address {1}, but this node's is {2}: one network runs over one IP version"
    )]
    OtherFamily(String, IpAddr, IpAddr),
    #[error(
        "this node, '{0}', is not in the cluster state: add it, or set [node] name to one of the {1} that are"
    )]
    OwnMissing(String, usize),
    #[error(
        "this node, '{0}', is limited to the networks {2}: add '{1}' to its 'networks', or leave '{1}' out of the configuration"
    )]
    OwnElsewhere(String, String, String),
    #[error("node '{0}': {1} cannot be a station's MAC: it is a group address or zero")]
    BadStation(String, Mac),
    #[error("node '{0}': {2} cannot be the address of station {1}: it is not unicast")]
    BadStationAddress(String, Mac, IpAddr),
    #[error("station {2} of node '{1}' is there already, at node '{0}'")]
    DuplicateStation(String, String, Mac),
    #[error("station {2} of node '{1}' has the address {3}, which a station of node '{0}' has, too")]
    DuplicateStationAddress(String, String, Mac, IpAddr),
}

impl ClusterState {
    /// Checks `candidates` and takes the viewpoint of `viewer`.
    pub fn new(candidates: Vec<Candidate>, viewer: &Viewer) -> Result<Self, Invalid> {
        let count = candidates.len();
        let nodes: Vec<Node> = candidates.into_iter().map(|c| complete(c, viewer)).collect();
        for (index, node) in nodes.iter().enumerate() {
            check_node(node).map_err(|reason| Invalid { candidate: Some(index), reason })?;
        }
        check_unique(&nodes)?;
        check_subnets(&nodes)?;
        station::check_unique(&nodes)?;
        let Some(own) = nodes.iter().position(|n| n.name == viewer.node) else {
            return Err(Invalid { candidate: None, reason: Reason::OwnMissing(viewer.node.clone(), count) });
        };
        check_family(&nodes, &nodes[own])?;
        let mut remotes: BTreeMap<_, _> = nodes.into_iter().map(|n| (n.name.clone(), n)).collect();
        let own = remotes.remove(&viewer.node);
        let missing = || Invalid { candidate: None, reason: Reason::OwnMissing(viewer.node.clone(), count) };
        let own = own.ok_or_else(missing)?;
        Ok(Self { own, own6: None, remotes, policy: None, trouble: None, left_out: BTreeMap::new() })
    }

    /// A cluster over both IP versions out of one over each. A MAC means one VTEP: the second node
    /// to have one is left out over IPv6.
    pub fn dual(v4: Self, v6: Self) -> Self {
        let macs: BTreeSet<Mac> = v4.owns().chain(v4.remotes.values()).map(|node| node.mac).collect();
        let mut remotes = v4.remotes;
        for (name, node) in v6.remotes {
            if !macs.contains(&node.mac) {
                let name = format!("{name}{OVER_IPV6}");
                remotes.insert(name.clone(), Node { name, ..node });
            }
        }
        let trouble = v4.trouble.or(v6.trouble);
        let policy = v4.policy.or(v6.policy);
        let left_out = v4.left_out.into_iter().chain(v6.left_out).collect();
        Self { own: v4.own, own6: Some(v6.own), remotes, policy, trouble, left_out }
    }

    /// How many other nodes there are, whatever number of IP versions they run.
    pub fn remote_nodes(&self) -> usize {
        let name = |entry| str::strip_suffix(entry, OVER_IPV6).unwrap_or(entry);
        self.remotes.keys().map(|entry| name(entry)).collect::<BTreeSet<_>>().len()
    }

    /// This node, once for each IP version that the network runs over.
    pub fn owns(&self) -> impl Iterator<Item = &Node> {
        std::iter::once(&self.own).chain(&self.own6)
    }

    /// This node's pod subnets.
    pub fn own_subnets(&self) -> Vec<IpNetwork> {
        self.owns().flat_map(|own| &own.subnets).copied().collect()
    }
}

/// A node as `viewer` sees it, without what its kind of network has no use for.
fn complete(candidate: Candidate, viewer: &Viewer) -> Node {
    let Candidate { name, vtep, mac, mut subnets, mut stations } = candidate;
    if viewer.l2 {
        subnets.clear()
    } else {
        stations.clear()
    }
    let mac = mac.unwrap_or_else(|| derive_mac(&name, viewer.vni));
    Node { name, vtep, mac, subnets, stations }
}

/// A locally administered unicast MAC for node `name` in network `vni`: the same on every node and
/// after every restart. FNV-1a over VNI and name, stirred with the finaliser of MurmurHash3 so that
/// names that differ in one character differ in half of the bits.
pub fn derive_mac(name: &str, vni: Vni) -> Mac {
    let bytes = vni.get().to_be_bytes().into_iter().chain(name.bytes());
    let mut h =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^= h >> 33;
    let [_, _, a, b, c, d, e, f] = h.to_be_bytes();
    Mac([a & 0xfc | 0x02, b, c, d, e, f])
}

fn check_node(node: &Node) -> Result<(), Reason> {
    let name = || node.name.clone();
    if node.name.is_empty() {
        return Err(Reason::NoName);
    }
    if node.name.contains(char::is_control) {
        return Err(Reason::BadName(name().escape_debug().to_string()));
    }
    if !is_unicast(node.vtep) {
        return Err(Reason::BadVtep(name(), node.vtep));
    }
    if !node.mac.is_station() {
        return Err(Reason::BadMac(name(), node.mac));
    }
    for subnet in &node.subnets {
        if subnet.ip() != subnet.network() {
            let meant = IpNetwork::new(subnet.network(), subnet.prefix()).unwrap_or(*subnet);
            return Err(Reason::HostBits(name(), *subnet, meant));
        }
        // The first address is the node's own inside the overlay, as flannel has it.
        if subnet.prefix() == 0 || subnet.prefix() + 2 > net::full_length(subnet.ip()) || is_reserved(subnet)
        {
            return Err(Reason::BadSubnet(name(), *subnet));
        }
    }
    node.stations.iter().try_for_each(|station| station.check(&node.name))
}

/// A mapped IPv4 address (`::ffff:a.b.c.d`) is none: no packet carries it, and the tables mean IPv4.
fn is_unicast(address: IpAddr) -> bool {
    let other = match address {
        IpAddr::V4(a) => a.is_broadcast(),
        IpAddr::V6(a) => a.to_ipv4_mapped().is_some(),
    };
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || other)
}

/// Whether packets to some of `subnet` never reach a pod, or must not be routed to one: this host,
/// loopback, link-local, multicast, class E, and mapped IPv4 addresses.
fn is_reserved(subnet: &IpNetwork) -> bool {
    const V4: [(Ipv4Addr, u8); 5] = [
        (Ipv4Addr::UNSPECIFIED, 8),
        (Ipv4Addr::new(127, 0, 0, 0), 8),
        (Ipv4Addr::new(169, 254, 0, 0), 16),
        (Ipv4Addr::new(224, 0, 0, 0), 4),
        (Ipv4Addr::new(240, 0, 0, 0), 4),
    ];
    const V6: [(Ipv6Addr, u8); 3] = [
        // Unspecified, loopback, and mapped.
        (Ipv6Addr::UNSPECIFIED, 80),
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
        (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
    ];
    let overlaps = |network: IpAddr, prefix: u8| {
        IpNetwork::new(network, prefix).is_ok_and(|reserved| net::overlap(&reserved, subnet))
    };
    if subnet.is_ipv4() {
        V4.into_iter().any(|(network, prefix)| overlaps(network.into(), prefix))
    } else {
        V6.into_iter().any(|(network, prefix)| overlaps(network.into(), prefix))
    }
}

fn check_unique(nodes: &[Node]) -> Result<(), Invalid> {
    let (mut names, mut vteps, mut macs) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (index, node) in nodes.iter().enumerate() {
        let invalid = |reason| Err(Invalid { candidate: Some(index), reason });
        if names.insert(&node.name, ()).is_some() {
            return invalid(Reason::DuplicateName(node.name.clone()));
        }
        if let Some(other) = vteps.insert(node.vtep, &node.name) {
            return invalid(Reason::DuplicateVtep(other.clone(), node.name.clone(), node.vtep));
        }
        if let Some(other) = macs.insert(node.mac, &node.name) {
            return invalid(Reason::DuplicateMac(other.clone(), node.name.clone(), node.mac));
        }
    }
    Ok(())
}

/// Prefixes are nested or disjoint, so in sorted order the first that lies inside another follows
/// a prefix that contains it: comparing neighbours is enough.
fn check_subnets(nodes: &[Node]) -> Result<(), Invalid> {
    let owned =
        |(index, node): (usize, &Node)| node.subnets.iter().map(move |s| (*s, index)).collect::<Vec<_>>();
    let mut subnets: Vec<(IpNetwork, usize)> = nodes.iter().enumerate().flat_map(owned).collect();
    subnets.sort_by_key(|(subnet, _)| (subnet.network(), subnet.prefix()));
    for pair in subnets.windows(2) {
        let &[(outer, a), (inner, b)] = pair else { continue };
        if outer.contains(inner.network()) {
            let (first, second) = if a <= b { ((outer, a), (inner, b)) } else { ((inner, b), (outer, a)) };
            let name = |i: usize| nodes[i].name.clone();
            let reason = Reason::Overlap(name(second.1), second.0, name(first.1), first.0);
            return Err(Invalid { candidate: Some(second.1), reason });
        }
    }
    for node in nodes {
        let at = subnets.partition_point(|(subnet, _)| subnet.network() <= node.vtep);
        let Some(&(subnet, owner)) = at.checked_sub(1).and_then(|i| subnets.get(i)) else { continue };
        if subnet.contains(node.vtep) {
            let reason = Reason::VtepInside(nodes[owner].name.clone(), subnet, node.name.clone(), node.vtep);
            return Err(Invalid { candidate: Some(owner), reason });
        }
    }
    Ok(())
}

fn check_family(nodes: &[Node], own: &Node) -> Result<(), Invalid> {
    let other = nodes.iter().position(|n| n.vtep.is_ipv4() != own.vtep.is_ipv4());
    let Some(index) = other else { return Ok(()) };
    let reason = Reason::OtherFamily(nodes[index].name.clone(), nodes[index].vtep, own.vtep);
    Err(Invalid { candidate: Some(index), reason })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn viewer() -> Viewer {
        Viewer {
            node: "a".into(),
            network: "pods".into(),
            l2: false,
            vni: Vni::try_from(1).expect("in range"),
        }
    }

    fn node(name: &str, vtep: &str, subnets: &[&str]) -> Candidate {
        let subnets = subnets.iter().map(|s| s.parse().expect("subnet")).collect();
        let vtep = vtep.parse().expect("address");
        Candidate { name: name.into(), vtep, mac: None, subnets, stations: vec![] }
    }

    fn refused(candidates: Vec<Candidate>, candidate: Option<usize>, word: &str) {
        let invalid = ClusterState::new(candidates, &viewer()).expect_err(word);
        assert!(invalid.to_string().contains(word), "{invalid}");
        assert_eq!(invalid.candidate, candidate, "{invalid}");
    }

    fn a() -> Candidate {
        node("a", "192.0.2.1", &["10.1.0.0/24", "fd00:1::/64"])
    }

    #[test]
    fn a_cluster_is_seen_from_its_own_node() {
        let cluster =
            ClusterState::new(vec![node("b", "192.0.2.2", &["10.2.0.0/24"]), a()], &viewer()).expect("valid");
        assert_eq!(cluster.own.name, "a");
        assert_eq!(cluster.remotes.keys().collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn a_derived_mac_is_a_locally_administered_station_and_never_changes() {
        let vni = viewer().vni;
        let mac = derive_mac("node-1", vni);
        assert_eq!(mac.0[0] & 0x03, 0x02);
        assert_eq!(mac.to_string(), "5e:c3:56:40:39:a0");
        assert_ne!(mac, derive_mac("node-2", vni));
        assert_ne!(mac, derive_mac("node-1", Vni::try_from(2).expect("in range")));
    }

    #[test]
    fn ten_thousand_nodes_have_as_many_macs() {
        let macs: BTreeSet<_> = (0..10_000).map(|i| derive_mac(&format!("node-{i}"), viewer().vni)).collect();
        assert_eq!(macs.len(), 10_000);
    }

    #[test]
    fn names_addresses_and_macs_are_unique() {
        refused(vec![a(), node("a", "192.0.2.2", &[])], Some(1), "two nodes 'a'");
        refused(vec![a(), node("b", "192.0.2.1", &[])], Some(1), "same VTEP address");
        let mac = Some(Mac([2, 0, 0, 0, 0, 1]));
        let same = vec![Candidate { mac, ..a() }, Candidate { mac, ..node("b", "192.0.2.2", &[]) }];
        refused(same, Some(1), "same MAC");
        refused(vec![a(), node("", "192.0.2.2", &[])], Some(1), "empty name");
    }

    #[test]
    fn overlapping_subnets_are_refused() {
        refused(
            vec![a(), node("b", "192.0.2.2", &["10.0.0.0/8"])],
            Some(1),
            "overlaps 10.1.0.0/24 of node 'a'",
        );
        refused(vec![a(), node("b", "192.0.2.2", &["10.1.0.128/25"])], Some(1), "overlaps");
        refused(vec![a(), node("b", "192.0.2.2", &["fd00:1::/64"])], Some(1), "overlaps");
        refused(vec![node("a", "192.0.2.1", &["10.1.0.0/24", "10.1.0.0/26"])], Some(0), "overlaps");
        let far = vec![
            node("a", "192.0.2.1", &["10.0.0.0/8"]),
            node("b", "192.0.2.2", &["10.1.0.0/24"]),
            node("c", "192.0.2.3", &["10.9.0.0/24"]),
        ];
        refused(far, Some(1), "overlaps");
    }

    #[test]
    fn subnets_are_unicast_without_host_bits_and_hold_pods() {
        refused(vec![a(), node("b", "192.0.2.2", &["10.2.0.1/24"])], Some(1), "did you mean 10.2.0.0/24?");
        for bad in ["224.0.0.0/8", "ff00::/16", "127.0.0.0/8", "0.0.0.0/0", "10.2.0.0/31", "fd00:2::/127"] {
            refused(vec![a(), node("b", "192.0.2.2", &[bad])], Some(1), "cannot hold pods");
        }
    }

    #[test]
    fn a_subnet_around_a_vtep_is_refused() {
        refused(vec![a(), node("b", "192.0.2.2", &["192.0.2.0/24"])], Some(1), "would loop");
    }

    #[test]
    fn group_and_zero_macs_are_refused() {
        for mac in [[1, 0, 0, 0, 0, 1], [0xff; 6], [0; 6]] {
            refused(
                vec![a(), Candidate { mac: Some(Mac(mac)), ..node("b", "192.0.2.2", &[]) }],
                Some(1),
                "not a station's",
            );
        }
    }

    #[test]
    fn vteps_are_unicast_and_of_one_family() {
        for bad in
            ["0.0.0.0", "224.0.0.1", "127.0.0.1", "255.255.255.255", "::", "ff02::1", "::ffff:192.0.2.2"]
        {
            refused(vec![a(), node("b", bad, &[])], Some(1), "cannot be a VTEP address");
        }
        refused(vec![a(), node("b", "2001:db8::2", &[])], Some(1), "one IP version");
    }

    #[test]
    fn a_cluster_without_the_own_node_is_refused() {
        refused(vec![node("b", "192.0.2.2", &[])], None, "this node, 'a', is not in");
    }
}
