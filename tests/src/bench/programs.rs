//! The programs alone: time per packet by `BPF_PROG_TEST_RUN`, with few and with many routes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use vxlan_ebpf_common::Hook;
use vxlan_ebpf_common::model::{Frame, Maps};
use vxlan_ebpf_common::testbed::{self, Inner, Outer, REMOTE4, vtep_mac};

use crate::testrun::Kernel;

/// Time per packet of one program.
#[derive(Clone, Debug)]
pub struct ProgramTime {
    /// The program's name.
    pub program: String,
    /// Routes that were loaded.
    pub routes: u32,
    /// Nanoseconds per packet.
    pub nanoseconds: f64,
}

type Maker = fn(Ipv4Addr) -> Frame;

/// What is measured: the program, its hook, and the packet that uses the route of a given pod.
const PROGRAMS: [(&str, Hook, Maker); 5] = [
    ("pod_egress, encapsulates", Hook::PodEgress, |pod| Inner::from_pod(pod.into()).frame()),
    ("tunnel_egress, encapsulates", Hook::TunnelEgress, |pod| {
        Inner { to_mac: vtep_mac(REMOTE4), ..Inner::from_pod(pod.into()) }.frame()
    }),
    ("underlay_ingress, decapsulates", Hook::UnderlayIngress, |pod| {
        let inner = Inner { from: pod.into(), ..Inner::from_remote(REMOTE4, false) };
        Outer::from_remote(REMOTE4, inner.build()).frame()
    }),
    ("tunnel_ingress, delivers", Hook::TunnelIngress, |pod| {
        Inner { from: pod.into(), ..Inner::from_remote(REMOTE4, false) }.frame()
    }),
    ("underlay_ingress, other traffic", Hook::UnderlayIngress, |pod| Inner::from_pod(pod.into()).frame()),
];

/// Measures every program with 10, 1 000 and 100 000 routes.
///
/// The median over single runs, each with a fresh packet whose remote end is picked from all
/// routes in turn, so that large tables miss the CPU's caches as they would in life. A run of a
/// program that does nothing takes some 90 ns in this measurement.
pub fn measure(quick: bool) -> Vec<ProgramTime> {
    let runs = if quick { 2_000 } else { 20_000 };
    let mut times = Vec::new();
    for routes in [10u32, 1_000, 100_000] {
        let mut kernel = Kernel::load();
        kernel.fill(&with_routes(routes));
        for (program, hook, maker) in PROGRAMS {
            // A stride that is prime to the number of routes visits all of them, far apart.
            let remotes = (0..runs).map(|run| remote(run * 7_919 % routes));
            let frames: Vec<Frame> = remotes.map(maker).collect();
            let mut measured = kernel.time(hook, &frames);
            measured.sort();
            let nanoseconds = measured[measured.len() / 2].as_nanos() as f64;
            times.push(ProgramTime { program: program.to_owned(), routes, nanoseconds });
        }
    }
    times
}

/// A pod behind route number `n`.
fn remote(n: u32) -> Ipv4Addr {
    (u32::from(Ipv4Addr::new(11, 0, 0, 9)) + (n << 8)).into()
}

fn with_routes(count: u32) -> Maps {
    let mut maps = testbed::maps();
    for n in 0..count {
        let subnet = u32::from(remote(n)) & 0xffff_ff00;
        maps.routes4.insert((testbed::key4(subnet.into()), 24), REMOTE4);
    }
    maps
}

/// As a table; nothing without results.
pub fn markdown(times: &[ProgramTime]) -> String {
    if times.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n| program | routes | ns per packet |\n|---|---|---|\n");
    for time in times {
        let _ = writeln!(text, "| {} | {} | {:.0} |", time.program, time.routes, time.nanoseconds);
    }
    text
}
