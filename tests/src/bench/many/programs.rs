//! Time per packet by `BPF_PROG_TEST_RUN`, with little and with much in the maps.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Serialize;
use vxlan_agent::datapath::Sizes;
use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::maps::{Key4, Key6, LOCAL_VTEP, MacKey, NO_NETWORK, Network, Station, VniKey};
use vxlan_ebpf_common::model::{Frame, Maps};
use vxlan_ebpf_common::testbed::{
    self, Inner, NETWORK, Outer, REMOTE4, VNI, endpoint, key4, key6, node4, pod_mac, pod4, vtep_mac,
};

use crate::testrun::{Kernel, now};

/// Runs of each program in each of [`ROUNDS`].
const RUNS: u32 = 3_000;
const ROUNDS: usize = 5;

/// What a program takes.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// The program, and what there is much of.
    pub program: String,
    /// Nanoseconds per packet with little, and with much.
    pub few: f64,
    /// With much.
    pub many: f64,
}

/// The two loaded datapaths, measured in turn.
struct Measured<'m> {
    kernels: [Kernel; 2],
    maps: [&'m dyn Fn() -> Maps; 2],
}

impl Measured<'_> {
    /// Medians over all rounds; `frames` are of the first or second.
    fn ratio(&mut self, program: &str, hook: Hook, frames: [&[Frame]; 2]) -> Ratio {
        let mut times: [Vec<Duration>; 2] = [vec![], vec![]];
        for _ in 0..ROUNDS {
            for (at, times) in times.iter_mut().enumerate() {
                // The kernel was given a frame of each station just now.
                self.kernels[at].fill(&(self.maps[at])());
                times.extend(self.kernels[at].time(hook, frames[at]));
            }
        }
        let [few, many] = times.map(|mut times| {
            times.sort();
            times[times.len() / 2].as_nanos() as f64
        });
        Ratio { program: program.to_owned(), few, many }
    }
}

/// One network, and `count`, which all have the same addresses.
pub fn of_networks(count: u32) -> Vec<Ratio> {
    let (one, many) = (|| networks(1), || networks(count));
    let kernels = [1, count].map(|count| Kernel::load_for(Sizes::of(count as usize, count as usize, 1)));
    let mut measured = Measured { kernels, maps: [&one, &many] };
    let from_pod: Vec<Frame> = (0..RUNS).map(|_| Inner::from_pod(pod4(2, 9).into()).frame()).collect();
    let arriving = |count: u32| -> Vec<Frame> {
        // A stride that is prime to their number visits all of them, far apart.
        (0..RUNS).map(|run| tunnelled(run * 7_919 % count)).collect()
    };
    vec![
        measured.ratio("pod_egress, networks", Hook::PodEgress, [&from_pod, &from_pod]),
        measured.ratio("underlay_ingress, networks", Hook::UnderlayIngress, [&arriving(1), &arriving(count)]),
    ]
}

/// A packet of network number `n` for pod 1.
fn tunnelled(n: u32) -> Frame {
    let [_, a, b, c] = (VNI + n).to_be_bytes();
    let inner = Inner::from_remote(REMOTE4, false).build();
    Outer { vxlan: [8, 0, 0, 0, a, b, c, 0], ..Outer::from_remote(REMOTE4, inner) }.frame()
}

fn networks(count: u32) -> Maps {
    let mut maps = testbed::maps();
    let (first, remote) = (maps.networks[&NETWORK], maps.vteps[&REMOTE4]);
    for n in 1..count {
        let (id, vtep) = (NETWORK + n, 100 + n);
        let network = Network { id, vni: VNI + n, ..first };
        maps.networks.insert(id, network);
        maps.vnis.insert(VniKey::new(network.vni, network.port()), id);
        for (node, to) in [(1, LOCAL_VTEP), (2, vtep)] {
            maps.routes4.insert((Key4 { network: id, ..key4(pod4(node, 0)) }, 24), to);
        }
        maps.vteps.insert(vtep, remote);
        maps.vtep_ids.insert(Key6 { network: id, ..key6(node4(2)) }, vtep);
        maps.stations.insert(MacKey::new(id, vtep_mac(REMOTE4)), Station::vtep(vtep));
        maps.endpoints4.insert(Key4 { network: id, ..key4(pod4(1, 1)) }, endpoint(1));
    }
    if count > 1 {
        maps.node.only = NO_NETWORK;
    }
    maps
}

/// A segment with ten stations, and with `count`.
pub fn of_stations(count: u32) -> Vec<Ratio> {
    let (ten, many) = (|| segment(10), || segment(count));
    let sizes = Sizes::of(1, 1, 1).with_segments(true);
    let kernels = [Kernel::load_for(sizes), Kernel::load_for(sizes)];
    let mut measured = Measured { kernels, maps: [&ten, &many] };
    let leaving = |count: u32| -> Vec<Frame> {
        let to = |run: u32| testbed::frame_to(mac(run * 7_919 % count), false).frame();
        (0..RUNS).map(to).collect()
    };
    let arriving = |count: u32| -> Vec<Frame> { (0..RUNS).map(|run| from(run * 7_919 % count)).collect() };
    vec![
        measured.ratio("port_ingress, stations", Hook::PortIngress, [&leaving(10), &leaving(count)]),
        measured.ratio(
            "underlay_ingress, stations",
            Hook::UnderlayIngress,
            [&arriving(10), &arriving(count)],
        ),
    ]
}

/// The MAC of station number `n`.
fn mac(n: u32) -> [u8; 6] {
    let [a, b, c, d] = n.to_be_bytes();
    [2, 1, a, b, c, d]
}

/// A frame of station number `n` to that of pod 1.
fn from(n: u32) -> Frame {
    let ip: Ipv4Addr = pod4(2, 9);
    let inner =
        Inner { from: ip.into(), from_mac: mac(n), to_mac: pod_mac(1), ..Inner::from_remote(REMOTE4, false) };
    Outer::from_remote(REMOTE4, inner.build()).frame()
}

/// With `count` stations behind the remote node.
fn segment(count: u32) -> Maps {
    let now = now();
    let mut maps = testbed::segment(now);
    let station = Station { confirmed: now, ..Station::vtep(REMOTE4) };
    maps.stations.extend((0..count).map(|n| (MacKey::new(NETWORK, mac(n)), station)));
    maps
}
