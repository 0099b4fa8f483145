//! What packet filters and conntrack do with packets between pods and tunnel.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;

use super::facts::NetworkFacts;
use super::routing::{is, set};
use super::rules::{Packet, dropped};
use super::{Check, Facts, Finding};
use crate::cluster::ClusterState;
use crate::config::Fastpath;
use crate::kernel::Kind;

pub(super) const CHECKS: &[Check] =
    &[forward_rules, firewalld, bridge_filters, conntrack_full, conntrack_strict];

/// Connections that conntrack follows, in hundredths of the most, beyond which it is about to drop.
const NEARLY_FULL: u64 = 95;

/// Rules that drop what is routed between pods and tunnel.
fn forward_rules(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.kind == "l3") {
        let Ok(cluster) = &network.cluster else { continue };
        let bridge = pod_side(facts, network);
        let Some(device) = network.devices().next().map(|device| facts.interface(device)) else { continue };
        for (own, other) in pairs(cluster) {
            let out = Packet {
                from: Some(own),
                to: Some(other),
                port: None,
                enters: Some(&bridge),
                leaves: Some(&device),
            };
            let back = Packet {
                from: Some(other),
                to: Some(own),
                port: None,
                enters: Some(&device),
                leaves: Some(&bridge),
            };
            let hooks = [libc::NF_INET_FORWARD];
            let dropped = [out, back].iter().find_map(|packet| dropped(&facts.chains, &hooks, packet));
            let Some(dropped) = dropped else { continue };
            let what = "a packet filter drops what is forwarded between pods and tunnel";
            let subnets = cluster.own_subnets();
            let subnet = subnets
                .iter()
                .find(|subnet| subnet.contains(own))
                .map_or_else(String::new, ToString::to_string);
            let chain = dropped.chain();
            let ip = if own.is_ipv6() { "ip6" } else { "ip" };
            found.push(
                Finding::error("forward-drop", what)
                    .of(&network.name)
                    .seen(format!("{}: from {own} to {other}", dropped.place()))
                    .mend(format!(
                        "nft insert rule {chain} {ip} saddr {subnet} accept; nft insert rule {chain} {ip} daddr {subnet} accept"
                    )),
            );
        }
    }
    found
}

/// A pod's address here and one there, for each IP version.
fn pairs(cluster: &ClusterState) -> Vec<(IpAddr, IpAddr)> {
    let (own, others) = (cluster.own_subnets(), cluster.remotes.values().flat_map(|node| &node.subnets));
    let pod = |subnet: &IpNetwork| subnet.iter().nth(2);
    let others: Vec<&IpNetwork> = others.collect();
    let pair = |v6: bool| {
        let here = own.iter().find(|subnet| subnet.is_ipv6() == v6).and_then(pod)?;
        let there = others.iter().find(|subnet| subnet.is_ipv6() == v6).and_then(|subnet| pod(subnet))?;
        Some((here, there))
    };
    [false, true].into_iter().filter_map(pair).collect()
}

/// The interface by which this node's pods' packets enter: their bridge, or what the kernel routes to them by.
fn pod_side(facts: &Facts, network: &NetworkFacts) -> String {
    let own = network.own_subnets();
    let gateway = facts.tables.addresses.iter().find(|address| {
        let is_device = network.devices().any(|device| device == address.ifindex);
        !is_device && own.iter().any(|subnet| subnet.contains(address.ip))
    });
    gateway.map_or_else(|| "cni0".to_owned(), |address| facts.interface(address.ifindex))
}

/// firewalld rejects what comes by an interface that is in no zone that forwards.
fn firewalld(facts: &Facts) -> Vec<Finding> {
    use crate::kernel::nft::chains::Condition;
    let of_firewalld = || facts.chains.iter().filter(|chain| chain.table == "firewalld");
    if of_firewalld().next().is_none() {
        return vec![];
    }
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.kind == "l3") {
        for device in network.devices() {
            let name = facts.interface(device);
            let knows = |condition: &Condition| matches!(condition, Condition::In(known) | Condition::Out(known) if *known == name);
            if of_firewalld().flat_map(|chain| &chain.rules).flat_map(|rule| &rule.conditions).any(knows) {
                continue;
            }
            let what = format!(
                "firewalld runs, and {name} is in none of its zones: what comes out of the tunnel is rejected"
            );
            found.push(
                Finding::error("firewalld", what)
                    .of(&network.name)
                    .seen("nft table inet firewalld has no rule about it".to_owned())
                    .mend(format!(
                        "firewall-cmd --permanent --zone=trusted --add-interface={name} --add-interface={}; firewall-cmd --reload",
                        pod_side(facts, network)
                    )),
            );
        }
    }
    found
}

/// In a segment netfilter keeps frames from the fast path; services of Kubernetes need it where pods are on a bridge.
fn bridge_filters(facts: &Facts) -> Vec<Finding> {
    let settings = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
    let on = settings.into_iter().find(|setting| facts.number(setting) == Some(1));
    let mut found = vec![];
    for network in &facts.networks {
        if let ("l2", Some(setting), true) = (network.kind.as_str(), on, network.mode != Fastpath::Off) {
            let what = "bridges pass frames to netfilter, so the kernel carries all of the segment's";
            found.push(
                Finding::notice("br-netfilter", what)
                    .of(&network.name)
                    .seen(is(setting, 1))
                    .mend(set(setting, 0)),
            );
        }
        let bridged =
            facts.tables.link_named(&pod_side(facts, network)).is_some_and(|link| link.kind == Kind::Bridge);
        if network.source == "kubernetes" && bridged && facts.number(settings[0]) == Some(0) {
            let what = "bridges do not pass packets to netfilter: a service fails where client and server are pods of this node";
            found.push(
                Finding::warning("br-netfilter", what)
                    .of(&network.name)
                    .seen(is(settings[0], 0))
                    .mend(set(settings[0], 1)),
            );
        }
    }
    found
}

fn conntrack_full(facts: &Facts) -> Vec<Finding> {
    let number = |name: &str| facts.number(&format!("netfilter/{name}"));
    let (Some(count), Some(most)) = (number("nf_conntrack_count"), number("nf_conntrack_max")) else {
        return vec![];
    };
    if most == 0 || count * 100 < most * NEARLY_FULL {
        return vec![];
    }
    let what =
        "conntrack follows nearly as many connections as it may: the first packets of others are dropped";
    vec![
        Finding::error("conntrack-full", what)
            .seen(format!("net.netfilter.nf_conntrack_count = {count}, nf_conntrack_max = {most}"))
            .mend(format!("sysctl -w net.netfilter.nf_conntrack_max={}", most * 2)),
    ]
}

/// A connection that comes back from the fast path is outside of the windows that conntrack has seen.
fn conntrack_strict(facts: &Facts) -> Vec<Finding> {
    let setting = "netfilter/nf_conntrack_tcp_be_liberal";
    let verified =
        facts.networks.iter().any(|network| network.mode == Fastpath::Verified && network.kind != "l2");
    if !verified || facts.number(setting) != Some(0) {
        return vec![];
    }
    let what =
        "conntrack takes no TCP connection back that has bypassed it, so TCP does not bypass the host stack";
    vec![Finding::notice("conntrack-strict", what).seen(is(setting, 0)).mend(set(setting, 1))]
}
