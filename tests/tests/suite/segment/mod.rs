//! Bridged segments: what a broadcast domain has to do, whoever carries it.
//!
//! Every test runs over [`PAIRINGS`]: kinds of nodes that take turns in a lab.

mod beside;
mod crowd;
mod dhcp;
mod evpn;
mod fast;
mod frames;
mod ifupdown2;
mod membership;
mod mixed;
mod moves;
mod multicast;
mod neighbours;
mod networkd;
mod owner;
mod ports;
mod reach;
mod stations;
mod streams;
mod tags;
mod tenants;
mod vlans;
mod vm;

use std::net::IpAddr;

use vxlan_tests::lab::segment::{SegmentLab, SegmentSpec, TenantSpec};
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{AgentOptions, Netns, Overlay};

/// Who carries the segments in the tests.
const PAIRINGS: &[Pairing] = &[
    Pairing { name: "kernel-kernel", nodes: [kernel, kernel] },
    Pairing { name: "verified-kernel", nodes: [verified, kernel] },
    Pairing { name: "direct-direct", nodes: [direct, direct] },
    Pairing { name: "accelerated-kernel", nodes: [accelerated, kernel] },
];

/// The tenant of tests that need one.
const RED: &str = "red";
/// Another tenant, with the same addresses.
const BLUE: &str = "blue";

/// Two kinds of nodes: odd nodes are the first, even ones the second.
struct Pairing {
    name: &'static str,
    nodes: [fn() -> Overlay; 2],
}

fn kernel() -> Overlay {
    Overlay::KernelVxlan
}

fn direct() -> Overlay {
    Overlay::agent()
}

fn verified() -> Overlay {
    Overlay::verified()
}

/// The kernel's devices, with a short cut beside them.
fn accelerated() -> Overlay {
    Overlay::Agent(AgentOptions::beside("verified", ""))
}

impl Pairing {
    /// `count` nodes with one tenant and one host each.
    fn spec(&self, count: usize) -> SegmentSpec {
        SegmentSpec::of((0..count).map(|n| self.nodes[n % 2]()).collect())
    }

    /// Two nodes.
    fn pair(&self) -> SegmentSpec {
        self.spec(2)
    }
}

/// Runs `test` over every pairing; a failure comes with the pairing's name in front.
fn over_all(mut test: impl FnMut(&Pairing)) {
    for pairing in PAIRINGS {
        eprintln!("pairing {}", pairing.name);
        test(pairing);
    }
}

/// Two nodes with agents that have these lines in the tenants' sections, `{n}` being the node's number.
fn agents_with(lines: &str) -> SegmentSpec {
    let agent = |n: u8| {
        let network = lines.replace("{n}", &n.to_string());
        Overlay::Agent(AgentOptions { network, ..AgentOptions::default() })
    };
    SegmentSpec::pair(agent(1), agent(2))
}

fn build(spec: &SegmentSpec) -> SegmentLab {
    spec.build().expect("a lab")
}

/// Two tenants with the same addresses and MACs; the second on `port`.
fn two_tenants(port: u16) -> [TenantSpec; 2] {
    [TenantSpec::new(RED, 100), TenantSpec::new(BLUE, 200).port(port)]
}

/// Echo requests from `client`, all of which must be answered.
#[track_caller]
fn assert_answered(client: &Netns, target: impl Into<IpAddr>, options: Ping) {
    let target = target.into();
    let report = ping(client, target, options).expect("a socket");
    assert!(report.all_answered(), "{} to {target}: {:?}", client.namespace(), report.errors);
}

/// Every host of a tenant gets answers from every other, by both IP versions.
#[track_caller]
fn assert_all_reach_each_other(lab: &SegmentLab, tenant: &str) {
    for client in lab.hosts(tenant) {
        for server in lab.hosts(tenant).filter(|server| server.name != client.name) {
            server.ips().into_iter().for_each(|ip| assert_answered(client, ip, Ping::default()));
        }
    }
}
