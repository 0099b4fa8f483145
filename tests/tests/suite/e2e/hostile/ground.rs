//! What the frames' course leads through: a routed network between pods, or a segment between stations.

use std::net::IpAddr;
use std::time::Duration;

use vxlan_agent::datapath::{DatapathState, Pins};
use vxlan_ebpf_common::maps::{Addr, LOCAL_VTEP, MacKey};
use vxlan_ebpf_common::testbed::Inner;
use vxlan_tests::lab::addr::underlay;
use vxlan_tests::lab::segment::{Host, SegmentLab, TenantSpec};
use vxlan_tests::lab::traffic::{Injector, Ping, ping};
use vxlan_tests::lab::{
    Agent, Family, Lab, LabSpec, NETWORK, Netns, Overlay, PORT, SegmentSpec, StateNode, UNDERLAY, VNI,
    wait_until,
};

use super::course::{Course, edited};
use crate::e2e::{build, warm_up};

/// Number of a node of the cluster that there is not.
pub(super) const ABSENT: u8 = 3;
/// Its MAC on the underlay.
const ABSENT_MAC: &str = "02:00:00:00:00:03";
/// The other network on node 2.
pub(super) const OTHER: &str = "other0";
const SOON: Duration = Duration::from_secs(5);

/// A lab to be built.
#[derive(Clone)]
pub(super) enum Spec {
    Routed(LabSpec),
    Bridged(SegmentSpec),
}

/// A lab of two nodes with two pods or two hosts each, of which the first is at the end of the course.
pub(super) enum Ground {
    Routed(Box<Lab>),
    Bridged(Box<SegmentLab>),
}

impl Spec {
    /// Routed, over `underlay`.
    pub(super) fn routed(underlay: Family) -> Self {
        Self::Routed(pair(underlay))
    }

    /// Bridged, with the same numbers and names.
    pub(super) fn bridged(underlay: Family) -> Self {
        let spec = SegmentSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan).hosts(2);
        Self::Bridged(spec.underlay(underlay).tenants([TenantSpec::new(NETWORK, VNI).port(PORT)]))
    }

    /// Family of the tunnel's outer addresses.
    pub(super) const fn underlay(&self) -> Family {
        match self {
            Self::Routed(spec) => spec.underlay,
            Self::Bridged(spec) => spec.underlay,
        }
    }
}

/// Two nodes of a routed network.
pub(super) fn pair(underlay: Family) -> LabSpec {
    LabSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan).underlay(underlay)
}

impl Ground {
    /// The lab of `spec` with `overlay` on both nodes.
    pub(super) fn build(spec: &Spec, overlay: &Overlay) -> Self {
        match spec.clone() {
            Spec::Routed(mut spec) => {
                spec.nodes.iter_mut().for_each(|node| node.overlay = overlay.clone());
                Self::Routed(Box::new(build(&spec)))
            }
            Spec::Bridged(mut spec) => {
                spec.nodes.fill(overlay.clone());
                Self::Bridged(Box::new(spec.build().expect("a lab")))
            }
        }
    }

    /// Sends the first packets, so that it is known who is there.
    pub(super) fn warm_up(&self) {
        match self {
            Self::Routed(lab) => warm_up(lab),
            Self::Bridged(lab) => {
                for (one, other) in [(1, 2), (2, 1)] {
                    for h in [1, 2] {
                        let [client, server] = [one, other].map(|n| host(lab, n, h));
                        server.ips().into_iter().for_each(|ip| reached(client, ip));
                    }
                }
            }
        }
    }

    /// Has both nodes of a segment believe in a third one.
    pub(super) fn add_absent_node(&mut self) {
        if let Self::Bridged(lab) = self {
            add_absent_node(lab);
        }
    }

    /// Node `n`.
    pub(super) fn node(&self, n: u8) -> &Netns {
        match self {
            Self::Routed(lab) => lab.node(n),
            Self::Bridged(lab) => lab.node(n),
        }
    }

    /// Pod or host `p` of node `n`.
    pub(super) fn end(&self, n: u8, p: u8) -> &Netns {
        match self {
            Self::Routed(lab) => lab.pod(n, p),
            Self::Bridged(lab) => host(lab, n, p),
        }
    }

    /// An address of pod or host `p` of node `n`.
    pub(super) fn address(&self, n: u8, p: u8, family: Family) -> IpAddr {
        let [v4, v6] = match self {
            Self::Routed(lab) => lab.pod(n, p).ips(),
            Self::Bridged(lab) => host(lab, n, p).ips(),
        };
        if family == Family::V4 { v4 } else { v6 }
    }

    /// The agent of node `n`, if it runs one.
    fn agent(&self, n: u8) -> Option<&Agent> {
        match self {
            Self::Routed(lab) => lab.agent(n).ok(),
            Self::Bridged(lab) => lab.agent(n).ok(),
        }
    }

    /// What the agent of node `n` has pinned.
    pub(super) fn pins(&self, n: u8) -> Option<Pins> {
        self.agent(n).map(|agent| Pins::open(&agent.pins().expect("a directory")).expect("pins"))
    }

    /// The way from end to end, whose tunnel runs over `underlay`.
    pub(super) fn course(&self, underlay: Family) -> Course {
        match self {
            Self::Routed(lab) => Course::routed(lab, underlay),
            Self::Bridged(lab) => Course::bridged(lab, underlay),
        }
    }

    /// The hosts of a segment, by node and number.
    pub(super) fn hosts(&self) -> Vec<&Host> {
        match self {
            Self::Routed(_) => Vec::new(),
            Self::Bridged(lab) => lab.hosts(NETWORK).collect(),
        }
    }
}

/// Waits until `client` gets an answer. While switches learn, a machine that does other things may be late.
fn reached(client: &Netns, ip: IpAddr) {
    let answered = || ping(client, ip, Ping::default()).is_ok_and(|report| report.all_answered());
    wait_until("the host is reached", SOON, answered).expect("an answer");
}

/// Host `h` of node `n`.
fn host(lab: &SegmentLab, n: u8, h: u8) -> &Host {
    lab.host(n, NETWORK, h)
}

/// Has both nodes believe in a third one, from which frames may come and to which they flood.
fn add_absent_node(lab: &mut SegmentLab) {
    let vtep = underlay(lab.spec().underlay, ABSENT);
    for n in [1, 2] {
        let node = lab.node(n);
        node.ip(&format!("neigh add {vtep} lladdr {ABSENT_MAC} dev {UNDERLAY} nud permanent\n"))
            .expect("a neighbour");
        if node.agent.is_none() {
            let device = lab.tenant(NETWORK).device();
            node.sh(&format!("bridge fdb append 00:00:00:00:00:00 dev {device} dst {vtep}"))
                .expect("an entry");
        }
    }
    let mut state = lab.state().clone();
    let name = format!("n{ABSENT}");
    state.nodes.push(StateNode { name, vtep, mac: None, subnets: vec![], stations: vec![] });
    lab.write_state(state).expect("a state file");
    for agent in lab.agents() {
        let knows = || agent.cli(&["dump", "vteps"]).is_ok_and(|text| text.contains(&vtep.to_string()));
        wait_until("the third node is known", SOON, knows).expect("in time");
    }
}

/// A MAC, and the node that it is behind.
pub(super) type Place = (u8, [u8; 6]);

/// Whether `state`, that of node `n`, has every MAC where it is.
pub(super) fn has_all(state: &DatapathState, n: u8, nodes: [IpAddr; 2], places: &[Place]) -> bool {
    let network = state.networks.keys().next().copied().unwrap_or_default();
    places.iter().all(|&(node, mac)| {
        let Some(station) = state.stations.get(&MacKey::new(network, mac)) else { return false };
        if node == n {
            return station.ifindex != 0;
        }
        let behind = Addr::from(nodes[usize::from(node) - 1]);
        station.vtep != LOCAL_VTEP && state.vteps.get(&station.vtep).is_some_and(|vtep| vtep.addr == behind)
    })
}

/// What a host says, so that it is known where it is: a frame to the first host of the other node.
pub(super) struct Saying {
    pub(super) place: Place,
    injector: Injector,
    frame: Vec<u8>,
}

impl Saying {
    pub(super) fn of(ground: &Ground, host: &Host) -> Self {
        let to = ground.hosts().into_iter().find(|to| to.node != host.node).expect("another host");
        let (from, from_mac, to_mac) = (host.ip4.into(), host.mac, to.mac);
        let inner = Inner { from_mac, to_mac, from, ..Inner::from_pod(to.ip4.into()) };
        let injector = Injector::open(host, "eth0").expect("a socket");
        Self { place: (host.node, host.mac), injector, frame: inner.build() }
    }

    /// Says it.
    pub(super) fn say(&self) {
        self.injector.send(&self.frame).expect("the interface takes the frame");
    }

    /// Says it of `mac`, which is then behind the same node.
    pub(super) fn say_of(&self, mac: [u8; 6]) -> Place {
        let frame = edited(self.frame.clone(), |b| b[6..12].copy_from_slice(&mac));
        self.injector.send(&frame).expect("the interface takes the frame");
        (self.place.0, mac)
    }
}

/// Neighbours are not asked again while packets are counted, and every error is sent.
pub(super) fn keep_quiet(ground: &Ground) {
    let trust = |ns: &Netns, interface| ns.trust_neighbours(interface).expect("a setting");
    let unlimited = [("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0")];
    for n in [1, 2] {
        trust(ground.end(n, 1), "eth0");
        if let Ground::Routed(_) = ground {
            trust(ground.node(n), "cni0");
        }
        trust(ground.node(n), UNDERLAY);
        ground.node(n).sysctl(&unlimited).expect("settings");
    }
    for host in ground.hosts() {
        trust(host, "eth0");
        host.sysctl(&unlimited).expect("settings");
    }
}

/// A vxlan device of another VNI on the same port of a node, with an address of its own.
pub(super) fn add_other_network(node: &Netns, underlay: Family) {
    let local = vxlan_tests::lab::addr::underlay(underlay, 2);
    let vni = VNI + 1;
    let device = format!("type vxlan id {vni} dev {UNDERLAY} local {local} dstport {PORT} nolearning");
    node.ip(&format!("link add {OTHER} {device}\n")).expect("a second network");
    // It says nothing of its own accord.
    node.sysctl(&[(&format!("ipv6/conf/{OTHER}/disable_ipv6"), "1")]).expect("a setting");
    node.ip(&format!("addr add 10.99.2.1/24 dev {OTHER}\nlink set {OTHER} up\n")).expect("a second network");
}
