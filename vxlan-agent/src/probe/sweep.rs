//! Many nodes at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use ipnetwork::IpNetwork;
use serde::Serialize;

use super::{Outcome, Prober, Way, path_mtu};
use crate::cluster::ClusterState;

/// Nodes that are probed at the same time: answers of more would not fit into a socket's buffer.
const AT_ONCE: usize = 128;
/// A node that does not answer is asked so often, and given so much time.
const ATTEMPTS: usize = 3;
const PATIENCE: Duration = Duration::from_millis(500);
/// Bytes of the packets that ask whether a node answers.
const SMALL: usize = 84;

/// What of a network is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlay {
    /// Its name.
    pub network: String,
    /// The other nodes, once for each of their IP versions inside.
    pub targets: Vec<Target>,
    /// Bytes of the largest packet that its device takes.
    pub mtu: usize,
}

/// A node to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub node: String,
    /// Its VTEP address.
    pub vtep: IpAddr,
    /// Its overlay address.
    pub address: IpAddr,
    /// This node's.
    pub source: IpAddr,
}

/// What came of the probes of one node over one IP version.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Name of the network.
    pub network: String,
    /// Name of the node.
    pub node: String,
    /// Its VTEP address.
    pub vtep: IpAddr,
    /// Its overlay address, which was probed.
    pub address: IpAddr,
    /// Plain packets.
    pub fast: PathReport,
    /// Packets that are always left to the kernel.
    pub kernel: PathReport,
}

/// One way to a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PathReport {
    /// Whether it answers.
    pub reachable: bool,
    /// How soon.
    pub round_trip_seconds: Option<f64>,
    /// Bytes of the largest packet that it answers; `None` where that was not asked for.
    pub path_mtu: Option<usize>,
    /// Why it does not answer, as far as anybody says.
    pub reason: Option<String>,
}

impl Row {
    /// One of its ways.
    pub const fn path(&self, way: Way) -> &PathReport {
        match way {
            Way::Fast => &self.fast,
            Way::Kernel => &self.kernel,
        }
    }

    /// Whether it answers both ways.
    pub fn is_well(&self) -> bool {
        Way::ALL.iter().all(|way| self.path(*way).reachable)
    }
}

impl Overlay {
    /// All other nodes of a routed network: a node's overlay address is the first of its subnet, as flannel has it.
    /// A bridged network's nodes have none that others know.
    pub fn new(network: &str, cluster: &ClusterState, mtu: usize) -> Self {
        let own = cluster.own_subnets();
        let source = |v6: bool| own.iter().find(|subnet| subnet.is_ipv6() == v6).map(IpNetwork::network);
        let mut targets = vec![];
        for node in cluster.remotes.values() {
            for v6 in [false, true] {
                let subnet = node.subnets.iter().find(|subnet| subnet.is_ipv6() == v6);
                let (Some(address), Some(source)) = (subnet.map(IpNetwork::network), source(v6)) else {
                    continue;
                };
                targets.push(Target { node: node.name.clone(), vtep: node.vtep, address, source });
            }
        }
        Self { network: network.to_owned(), targets, mtu }
    }
}

/// Probes all nodes of `overlays`, many at once; with their path MTUs if `sized`.
///
/// # Errors
/// No raw socket is allowed, or this node lacks its own overlay address.
pub async fn sweep(overlays: &[Overlay], sized: bool) -> anyhow::Result<Vec<Row>> {
    let mut probers = BTreeMap::new();
    for source in overlays.iter().flat_map(|overlay| &overlay.targets).map(|target| target.source) {
        for way in Way::ALL {
            if let std::collections::btree_map::Entry::Vacant(vacant) = probers.entry((source, way)) {
                vacant.insert(Arc::new(Prober::open(source.is_ipv6(), way, Some(source))?));
            }
        }
    }
    let mut jobs = vec![];
    for overlay in overlays {
        for target in &overlay.targets {
            let prober = |way| probers.get(&(target.source, way)).map(Arc::clone);
            if let (Some(fast), Some(kernel)) = (prober(Way::Fast), prober(Way::Kernel)) {
                let mtu = sized.then_some(overlay.mtu);
                jobs.push(probe_node(overlay.network.clone(), target.clone(), [fast, kernel], mtu));
            }
        }
    }
    let mut rows: Vec<Row> = stream::iter(jobs).buffer_unordered(AT_ONCE).collect().await;
    rows.sort_by(|a, b| (&a.network, &a.node, a.address).cmp(&(&b.network, &b.node, b.address)));
    Ok(rows)
}

async fn probe_node(
    network: String,
    target: Target,
    [fast, kernel]: [Arc<Prober>; 2],
    mtu: Option<usize>,
) -> Row {
    let Target { node, vtep, address, .. } = target;
    // One after the other: the answers to one would make the other slower.
    let fast = probe_one(&fast, address, mtu).await;
    let kernel = probe_one(&kernel, address, mtu).await;
    Row { network, node, vtep, address, fast, kernel }
}

async fn probe_one(prober: &Prober, to: IpAddr, mtu: Option<usize>) -> PathReport {
    let mut last = Outcome::Silent;
    for _ in 0..ATTEMPTS {
        last = prober.echo(to, SMALL, PATIENCE).await;
        if last.round_trip().is_some() {
            break;
        }
    }
    let Some(first) = last.round_trip() else {
        let reason = Some(last.to_string());
        return PathReport { reachable: false, round_trip_seconds: None, path_mtu: None, reason };
    };
    // The first may have waited for a neighbour to be found.
    let second = prober.echo(to, SMALL, PATIENCE).await.round_trip();
    let round_trip = second.map_or(first, |second| second.min(first));
    let path_mtu = match mtu {
        Some(mtu) => Some(path_mtu(prober, to, mtu, round_trip).await),
        None => None,
    };
    PathReport { reachable: true, round_trip_seconds: Some(round_trip.as_secs_f64()), path_mtu, reason: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Candidate, Viewer};

    #[test]
    fn nodes_are_probed_at_the_first_address_of_their_subnets() {
        let node = |n: u8, subnets: &[&str]| Candidate {
            name: format!("n{n}"),
            vtep: IpAddr::from([192, 0, 2, n]),
            mac: None,
            subnets: subnets.iter().map(|subnet| subnet.parse().expect("a subnet")).collect(),
            stations: vec![],
        };
        let vni = crate::net::Vni::try_from(1).expect("in range");
        let viewer = Viewer { node: "n1".into(), network: "pods".into(), vni, l2: false };
        let nodes = vec![
            node(1, &["10.1.0.0/24", "fd00:1::/64"]),
            node(2, &["10.2.0.0/24", "fd00:2::/64"]),
            node(3, &["10.3.0.0/24"]),
        ];
        let cluster = ClusterState::new(nodes, &viewer).expect("valid");
        let overlay = Overlay::new("pods", &cluster, 1450);
        let pairs = overlay.targets.iter().map(|t| format!("{} {} {}", t.node, t.source, t.address));
        assert_eq!(
            pairs.collect::<Vec<_>>(),
            ["n2 10.1.0.0 10.2.0.0", "n2 fd00:1:: fd00:2::", "n3 10.1.0.0 10.3.0.0"]
        );
    }
}
