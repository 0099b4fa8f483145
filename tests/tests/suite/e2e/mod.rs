//! Real agents, real kernels, real packets, in namespaces.
//!
//! Every test also asserts from the counters which way the packets took: traffic that arrives only
//! because the kernel silently did all the work fails.

pub(crate) mod accelerate;
mod change;
mod cni;
mod connectivity;
mod delivery;
mod direct;
mod doctor;
mod etcd;
mod firewall;
mod floor;
mod foreign;
pub(crate) mod guard;
mod headers;
mod heal;
mod hostile;
mod interop;
mod kubernetes;
mod limits;
mod listen;
mod metrics;
mod networks;
mod notrack;
mod onward;
mod operate;
mod outlive;
mod owner;
mod pods;
mod routing;
mod ruleset;
mod soak;
mod table;
mod trace;
mod underlays;
mod upgrade;
mod verified;
mod xdp;

use std::time::Duration;

use vxlan_agent::datapath::KernelFeatures;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{Counters, Family, Lab, LabSpec, Netns, Overlay};

/// The hook that sees a packet from the underlay first.
fn underlay_hook() -> &'static str {
    if vxlan_tests::lab::xdp().is_some() { "underlay_xdp" } else { "underlay_ingress" }
}

/// The hook that hands aggregates to pods: behind the vxlan device, or where the kernel has merged
/// what XDP took out of the tunnel.
fn aggregates_hook() -> &'static str {
    if vxlan_tests::lab::xdp().is_some() { "stripped_ingress" } else { "tunnel_ingress" }
}

/// Two nodes of ours.
fn pair() -> LabSpec {
    LabSpec::pair(Overlay::agent(), Overlay::agent())
}

fn build(spec: &LabSpec) -> Lab {
    spec.build().expect("a lab")
}

/// Counters of node `n`.
fn counters(lab: &Lab, n: u8) -> Counters {
    lab.agent(n).and_then(|agent| agent.counters()).expect("counters")
}

/// Runs `traffic` and returns what each of the first two nodes counted meanwhile.
fn counted(lab: &Lab, traffic: impl FnOnce()) -> [Counters; 2] {
    let before = [counters(lab, 1), counters(lab, 2)];
    traffic();
    [&counters(lab, 1) - &before[0], &counters(lab, 2) - &before[1]]
}

/// Sends traffic both ways until every pod is known at its node: a pod that has said nothing yet
/// is the kernel's.
fn warm_up(lab: &Lab) {
    for client in [lab.pod(1, 1), lab.pod(2, 1)] {
        for server in [lab.pod(1, 1), lab.pod(2, 1)] {
            for ip in server.ips() {
                assert_answered(client, ip, Ping { count: 2, ..Ping::default() });
            }
        }
    }
    for n in 1..=lab.nodes().len() as u8 {
        if let Ok(agent) = lab.agent(n) {
            let known = || {
                let endpoints = agent.json(&["dump", "endpoints"]).unwrap_or_default();
                endpoints.as_array().is_some_and(|list| list.len() >= 2)
            };
            vxlan_tests::lab::wait_until("the pods are known", Duration::from_secs(5), known)
                .inspect_err(|_| agent.print_log())
                .expect("pods that have been heard of are found");
        }
    }
}

/// Echo requests from `client`, all of which must be answered.
#[track_caller]
fn assert_answered(client: &Netns, target: impl Into<std::net::IpAddr>, options: Ping) {
    let target = target.into();
    let report = ping(client, target, options).expect("a socket");
    assert!(report.all_answered(), "echo to {target}: {:?}", report.errors);
}

/// At least `packets` were counted for `reason` at `hook`.
#[track_caller]
fn assert_took(counters: &Counters, hook: &str, reason: &str, packets: u64) {
    let took = counters.packets(hook, reason);
    assert!(took >= packets, "{took} packets {reason} at {hook}, expected {packets} or more:\n{counters}");
}

/// At least `packets` with the inner address `inner` came out of a tunnel over `underlay`.
#[track_caller]
fn assert_decapsulated(counters: &Counters, underlay: Family, inner: std::net::IpAddr, packets: u64) {
    assert_decapsulated_at(underlay_hook(), counters, underlay, inner, packets);
}

/// The same at `hook`: by our program, or, where the kernel does not let it, by the device.
#[track_caller]
fn assert_decapsulated_at(
    hook: &str,
    counters: &Counters,
    underlay: Family,
    inner: std::net::IpAddr,
    packets: u64,
) {
    if inner.is_ipv4() == (underlay == Family::V4) || decapsulates_other_family(hook) {
        assert_took(counters, hook, "decapsulated", packets);
    } else {
        assert_took(counters, hook, "no_room", packets);
        assert_eq!(counters.packets(hook, "decapsulated"), 0, "{counters}");
    }
}

/// Whether the program at `hook` takes IPv6 out of IPv4 and the other way round: XDP moves the
/// frame's start itself, TC needs Linux 6.3.
fn decapsulates_other_family(hook: &str) -> bool {
    hook == "underlay_xdp" || KernelFeatures::probe().mixed_decap
}

/// Nothing was dropped.
#[track_caller]
fn assert_nothing_dropped(counters: &Counters) {
    for reason in ["unknown_vtep", "foreign_source", "pod_spoofed", "write_failed"] {
        assert_eq!(counters.total(reason), 0, "{reason}:\n{counters}");
    }
}

/// How many programs are on an interface of `ns`, at ingress, as TCX links.
fn tcx_programs_on(ns: &Netns, interface: &str) -> usize {
    use aya::programs::{SchedClassifier, TcAttachType};
    if !KernelFeatures::probe().tcx {
        return 0;
    }
    let query = || {
        let index = nix::net::if_::if_nametoindex(interface).expect("an interface");
        SchedClassifier::query_tcx(index, TcAttachType::Ingress).expect("TCX").1.len()
    };
    ns.run(query)
}

/// How many programs are on an interface of `ns`, at ingress, as clsact filters.
fn filters_on(ns: &Netns, interface: &str) -> usize {
    // Where there is no clsact, tc fails.
    let shown = ns.sh(&format!("tc filter show dev {interface} ingress")).unwrap_or_default();
    shown.matches("direct-action").count()
}

/// How many programs are on an interface of `ns`, at ingress.
fn programs_on(ns: &Netns, interface: &str) -> usize {
    tcx_programs_on(ns, interface) + filters_on(ns, interface)
}
