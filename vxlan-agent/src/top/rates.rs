//! Two samples, and what has gone on per second between them.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;
use vxlan_ebpf_common::maps::{Counter, Flow, FlowKey, LOCAL_VTEP, NO_NETWORK, NetworkId, VtepId};

use super::sample::{Map, Sample};
use crate::datapath::flows;
use crate::report::fate::{self, Path};

/// The network of packets that are nobody's.
const NOBODY: &str = "-";

/// Packets and bits per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(super) struct Rate {
    #[serde(rename = "packets_per_second")]
    pub(super) packets: f64,
    #[serde(rename = "bits_per_second")]
    pub(super) bits: f64,
}

impl Rate {
    fn of(before: Counter, now: Counter, seconds: f64) -> Self {
        // Counters of a network that has gone and come again begin anew.
        let per_second = |before: u64, now: u64| now.saturating_sub(before) as f64 / seconds;
        Self {
            packets: per_second(before.packets, now.packets),
            bits: 8.0 * per_second(before.bytes, now.bytes),
        }
    }

    fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bits += other.bits;
    }
}

/// What goes through the tunnel of a network in one direction.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NetworkRate {
    pub(super) network: String,
    pub(super) direction: &'static str,
    /// Whether its fast path is switched on.
    pub(super) switched_on: bool,
    pub(super) fast: Rate,
    pub(super) kernel: Rate,
    pub(super) drop: Rate,
}

impl NetworkRate {
    /// How many of hundred packets took the fast path; nothing where there were none.
    pub(super) fn share(&self) -> Option<f64> {
        share(self.fast.packets, self.kernel.packets + self.drop.packets)
    }
}

/// How many of hundred are `fast`.
pub(super) fn share(fast: f64, others: f64) -> Option<f64> {
    let all = fast + others;
    (all > 0.0).then(|| fast * 100.0 / all)
}

/// What flows to and from a node bypass the stack with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct NodeRate {
    pub(super) node: String,
    pub(super) vtep: Option<IpAddr>,
    pub(super) network: String,
    pub(super) flows: usize,
    pub(super) rate: Rate,
}

/// A flow.
#[derive(Clone, Debug, Serialize)]
pub(super) struct FlowRate {
    pub(super) network: String,
    pub(super) protocol: String,
    pub(super) local: String,
    pub(super) remote: String,
    pub(super) node: String,
    pub(super) state: &'static str,
    pub(super) rate: Rate,
    /// Since it began.
    pub(super) bytes: u64,
    /// Seconds since its last packet.
    pub(super) idle: f64,
}

/// Packets that a program saw and that ended for one reason.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ReasonRate {
    pub(super) network: String,
    pub(super) hook: &'static str,
    pub(super) reason: &'static str,
    /// `fast`, `kernel` or `drop`.
    pub(super) path: &'static str,
    pub(super) rate: Rate,
    /// Since the counters began.
    pub(super) packets: u64,
}

/// What goes on.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Rates {
    /// This node.
    pub(super) node: String,
    /// Whether an agent lives.
    pub(super) running: bool,
    /// Seconds between the samples.
    pub(super) seconds: f64,
    pub(super) networks: Vec<NetworkRate>,
    pub(super) nodes: Vec<NodeRate>,
    pub(super) flows: Vec<FlowRate>,
    pub(super) reasons: Vec<ReasonRate>,
    /// How many entries of FLOWS were looked at, and about how many there are.
    pub(super) flows_read: usize,
    pub(super) flows_in_all: u64,
}

impl Rates {
    /// From `before` to `now`.
    pub(super) fn between(before: &Sample, now: &Sample) -> Self {
        let seconds = now.at.saturating_duration_since(before.at).as_secs_f64().max(1e-3);
        let map = &now.map;
        let (flows, nodes) = flows_and_nodes(before, now, seconds);
        Self {
            node: map.node.clone(),
            running: map.running,
            seconds,
            networks: map.networks.keys().flat_map(|id| network(*id, before, now, seconds)).collect(),
            nodes,
            flows,
            reasons: reasons(before, now, seconds),
            flows_read: now.flows.len(),
            flows_in_all: now.entries,
        }
    }

    /// How many of hundred packets of all networks took the fast path in a direction.
    pub(super) fn share(&self, direction: &str) -> Option<f64> {
        let of = self.networks.iter().filter(|network| network.direction == direction);
        let (fast, others) = of.fold((0.0, 0.0), |(fast, others), network| {
            (fast + network.fast.packets, others + network.kernel.packets + network.drop.packets)
        });
        share(fast, others)
    }
}

fn network(id: NetworkId, before: &Sample, now: &Sample, seconds: f64) -> [NetworkRate; 2] {
    let seen = now.map.networks.get(&id);
    let tunnel = |sample: &Sample| {
        let counters = sample.counters.get(&id).map_or(&[][..], Vec::as_slice);
        fate::tunnel(seen.map(|seen| &seen.entry), counters)
    };
    let (earlier, later) = (tunnel(before), tunnel(now));
    ["out", "in"].map(|direction| {
        let rate = |path| {
            let counter = |sums: &fate::Tunnel| sums.get(&(direction, path)).copied().unwrap_or_default();
            Rate::of(counter(&earlier), counter(&later), seconds)
        };
        NetworkRate {
            network: name(&now.map, id),
            direction,
            switched_on: seen.is_some_and(|seen| seen.is_on),
            fast: rate(Path::Fast),
            kernel: rate(Path::Kernel),
            drop: rate(Path::Drop),
        }
    })
}

fn name(map: &Map, id: NetworkId) -> String {
    map.networks.get(&id).map_or_else(|| NOBODY.to_owned(), |seen| seen.name.clone())
}

fn reasons(before: &Sample, now: &Sample, seconds: f64) -> Vec<ReasonRate> {
    let mut rows = vec![];
    for (id, counters) in &now.counters {
        let earlier: HashMap<_, Counter> = before
            .counters
            .get(id)
            .into_iter()
            .flatten()
            .map(|(hook, reason, counter)| ((*hook as u32, *reason as u32), *counter))
            .collect();
        let entry = now.map.networks.get(id).map(|seen| &seen.entry).filter(|_| *id != NO_NETWORK);
        for (hook, reason, counter) in counters {
            let was = earlier.get(&(*hook as u32, *reason as u32)).copied().unwrap_or_default();
            rows.push(ReasonRate {
                network: name(&now.map, *id),
                hook: hook.label(),
                reason: reason.label(),
                path: Path::of(entry, *hook, *reason).label(),
                rate: Rate::of(was, *counter, seconds),
                packets: counter.packets,
            });
        }
    }
    rows
}

/// Flows, and the same by the node that the other side is on.
fn flows_and_nodes(before: &Sample, now: &Sample, seconds: f64) -> (Vec<FlowRate>, Vec<NodeRate>) {
    let map = &now.map;
    let mut rows = vec![];
    let mut nodes = BTreeMap::<Option<VtepId>, NodeRate>::new();
    for (id, peer) in &map.vteps {
        let (node, network) = (peer.node.clone(), name(map, peer.network));
        let row = NodeRate { node, vtep: Some(peer.address), network, flows: 0, rate: Rate::default() };
        nodes.insert(Some(*id), row);
    }
    for (key, flow) in &now.flows {
        let idle = now.clock.saturating_sub(flow.last) as f64 / 1e9;
        let state = flows::state(key.protocol, flow);
        if !flows::is_current(state, idle) {
            continue;
        }
        let counter = |flow: &Flow| Counter { packets: flow.packets, bytes: flow.bytes };
        // One whose place has been another's has begun since.
        let was = before.flows.get(key).filter(|was| was.since == flow.since).map(counter);
        let rate = Rate::of(was.unwrap_or_default(), counter(flow), seconds);
        let vtep = map.routes.vtep(u32::from(key.network), key.remote.into());
        let row = nodes.entry(vtep.filter(|id| *id != LOCAL_VTEP)).or_insert_with(|| here(map, vtep, key));
        row.flows += 1;
        row.rate.add(rate);
        rows.push(flow_row(map, key, flow, (state, idle), rate, row.node.clone()));
    }
    (rows, nodes.into_values().collect())
}

/// Pods of this node that talk to each other, or whoever a flow is with of which no route is known.
fn here(map: &Map, vtep: Option<VtepId>, key: &FlowKey) -> NodeRate {
    let node = if vtep == Some(LOCAL_VTEP) { "this node" } else { "?" };
    let network = name(map, u32::from(key.network));
    NodeRate { node: node.to_owned(), vtep: None, network, flows: 0, rate: Rate::default() }
}

fn flow_row(
    map: &Map,
    key: &FlowKey,
    flow: &Flow,
    (state, idle): (&'static str, f64),
    rate: Rate,
    node: String,
) -> FlowRate {
    let end = |ip: IpAddr, port: u16| match port {
        0 => ip.to_string(),
        port => SocketAddr::new(ip, port).to_string(),
    };
    FlowRate {
        network: name(map, u32::from(key.network)),
        protocol: flows::protocol(key.protocol),
        local: end(key.local.into(), key.local_port.get()),
        remote: end(key.remote.into(), key.remote_port.get()),
        node,
        state,
        rate,
        bytes: flow.bytes,
        idle,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use vxlan_ebpf_common::maps::{Addr, Network};
    use vxlan_ebpf_common::{Hook, Reason};

    use super::super::routes::Routes;
    use super::super::sample::{Peer, Seen};
    use super::*;

    /// One network, two other nodes.
    fn map() -> Arc<Map> {
        let entry = Network { id: 1, ..Network::default() };
        let seen = Seen { entry, name: "pods".into(), is_on: true, generation: 0 };
        let peer = |n: u8| Peer { node: format!("n{n}"), address: [192, 0, 2, n].into(), network: 1 };
        let route = |n: u8| (1, format!("10.0.{n}.0/24").parse().expect("a prefix"), u32::from(n));
        Arc::new(Map {
            node: "n1".into(),
            running: true,
            networks: BTreeMap::from([(1, seen)]),
            routes: Routes::new([route(2), route(3)].into_iter()),
            vteps: BTreeMap::from([(2, peer(2)), (3, peer(3))]),
        })
    }

    pub(in crate::top) fn sample(at: Instant) -> Sample {
        Sample {
            at,
            clock: 5_000_000_000,
            map: map(),
            counters: BTreeMap::from([(1, vec![])]),
            flows: HashMap::new(),
            entries: 0,
        }
    }

    pub(in crate::top) fn counter(packets: u64, bytes: u64) -> Counter {
        Counter { packets, bytes }
    }

    /// A flow of a pod with one on node `n`, which has bypassed the stack with so many packets of 100 bytes.
    pub(in crate::top) fn flow(n: u8, packets: u64) -> (FlowKey, Flow) {
        let addr = |ip: [u8; 4]| {
            let mut bytes = [0; 16];
            bytes[10..12].copy_from_slice(&[0xff, 0xff]);
            bytes[12..].copy_from_slice(&ip);
            Addr(bytes)
        };
        let key = FlowKey {
            local: addr([10, 0, 1, 2]),
            remote: addr([10, 0, n, 2]),
            protocol: 17,
            network: 1,
            ..FlowKey::default()
        };
        (key, Flow { packets, bytes: packets * 100, last: 4_000_000_000, ..Flow::default() })
    }

    #[test]
    fn rates_are_per_second_by_direction_and_path() {
        let start = Instant::now();
        let (mut before, mut now) = (sample(start), sample(start + Duration::from_secs(2)));
        before.counters =
            BTreeMap::from([(1, vec![(Hook::PodEgress, Reason::Encapsulated, counter(100, 1000))])]);
        now.counters = BTreeMap::from([(
            1,
            vec![
                (Hook::PodEgress, Reason::Encapsulated, counter(300, 5000)),
                (Hook::TunnelEgress, Reason::TooBig, counter(100, 100)),
                (Hook::UnderlayIngress, Reason::UnknownVtep, counter(4, 400)),
            ],
        )]);
        let rates = Rates::between(&before, &now);
        let [out, into] = rates.networks.as_slice() else { panic!("{rates:?}") };
        assert_eq!(out.fast, Rate { packets: 100.0, bits: 16_000.0 });
        assert_eq!((out.kernel.packets, out.drop.packets), (50.0, 0.0));
        assert_eq!((into.fast.packets, into.drop.packets), (0.0, 2.0));
        assert_eq!(rates.share("out").map(f64::round), Some(67.0));
        assert_eq!(rates.share("in"), Some(0.0));
        let of = |path| rates.reasons.iter().filter(|row| row.path == path).count();
        assert_eq!((of("fast"), of("kernel"), of("drop")), (1, 1, 1));
    }

    #[test]
    fn counters_that_begin_anew_are_no_negative_rate() {
        let start = Instant::now();
        let (mut before, mut now) = (sample(start), sample(start + Duration::from_secs(1)));
        let counted = |packets| {
            BTreeMap::from([(1, vec![(Hook::PodEgress, Reason::Encapsulated, counter(packets, 0))])])
        };
        (before.counters, now.counters) = (counted(100), counted(7));
        assert_eq!(Rates::between(&before, &now).networks[0].fast.packets, 0.0);
        assert_eq!(Rates::between(&now, &now).share("out"), None, "nothing went out");
    }

    #[test]
    fn flows_are_summed_by_the_node_that_they_are_with() {
        let start = Instant::now();
        let (mut before, mut now) = (sample(start), sample(start + Duration::from_secs(1)));
        before.flows = HashMap::from([flow(2, 10)]);
        now.flows = HashMap::from([flow(2, 30), flow(9, 5)]);
        let rates = Rates::between(&before, &now);
        let node = |name: &str| rates.nodes.iter().find(|row| row.node == name).expect("a node");
        assert_eq!((node("n2").flows, node("n2").rate.packets), (1, 20.0));
        assert_eq!((node("n3").flows, node("?").flows), (0, 1), "a node without flows is there");
        assert_eq!(rates.flows.iter().map(|flow| flow.node.as_str()).filter(|node| *node == "n2").count(), 1);
    }

    #[test]
    fn a_flow_that_is_over_is_not_shown() {
        let start = Instant::now();
        let (before, mut now) = (sample(start), sample(start + Duration::from_secs(1)));
        now.clock = 100_000_000_000;
        now.flows = HashMap::from([flow(2, 30)]);
        assert!(Rates::between(&before, &now).flows.is_empty(), "a minute without packets");
    }
}
