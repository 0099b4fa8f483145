//! Why packets do not take the fast path: what `status` says, in the same words.

use vxlan_ebpf_common::maps::endpoint;

use super::facts::NetworkFacts;
use super::{Check, Facts, Finding};
use crate::config::Fastpath;

pub(super) const CHECKS: &[Check] = &[unreadable, missing, switched_off, hooked, left, meters, disputed];

/// The networks that are to have a fast path.
fn fast(facts: &Facts) -> impl Iterator<Item = &NetworkFacts> {
    facts.networks.iter().filter(|network| network.mode != Fastpath::Off)
}

fn unreadable(facts: &Facts) -> Vec<Finding> {
    let finding = |error: &String| {
        Finding::warning("pins-unreadable", "what is pinned of the fast path cannot be read")
            .seen(error.clone())
            .mend("vxlan-agent detach, then systemctl start vxlan-agent")
    };
    facts.fastpath.error.iter().map(finding).collect()
}

fn missing(facts: &Facts) -> Vec<Finding> {
    if facts.fastpath.is_pinned || fast(facts).next().is_none() || facts.no_bpffs.is_some() {
        return vec![];
    }
    let what = "nothing is pinned of the fast path: the kernel does all the work";
    let evidence = format!("{} is not there", facts.node.pins().display());
    vec![Finding::notice("fastpath-missing", what).seen(evidence).mend("systemctl restart vxlan-agent")]
}

fn switched_off(facts: &Facts) -> Vec<Finding> {
    let off = |network: &&NetworkFacts| facts.fastpath.switched_off.contains(&network.name);
    let finding = |network: &NetworkFacts| {
        let what = "the fast path is switched off by hand: every packet is the kernel's";
        let mend = format!("vxlan-agent fastpath on --network {}", network.name);
        Finding::notice("fastpath-off", what).of(&network.name).seen("vxlan-agent status").mend(mend)
    };
    fast(facts).filter(off).map(finding).collect()
}

/// Queueing disciplines, filters and programs that a bypass would skip.
fn hooked(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for (network, status) in facts.told() {
        for hooked in &status.hooked {
            let what =
                format!("the kernel carries what passes {} because of: {}", hooked.interface, hooked.what);
            let mend = mend_hook(&hooked.interface, &hooked.what);
            found.push(
                Finding::notice("hooked", what).of(&network.name).seen("vxlan-agent status").mend(mend),
            );
        }
    }
    found
}

fn mend_hook(interface: &str, what: &str) -> String {
    let edge = if what.ends_with("entry") { "ingress" } else { "egress" };
    match what.split(' ').next().unwrap_or_default() {
        "qdisc" => format!("tc qdisc del dev {interface} root"),
        "filter" => format!("tc filter del dev {interface} {edge}"),
        "program" => format!("bpftool net show dev {interface}: bpftool net detach what need not be there"),
        _ => "nft list ruleset: delete the chain, if it need not be there".to_owned(),
    }
}

fn left(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for (network, status) in facts.told() {
        for reason in &status.left {
            let what = "part of the network's packets is left to the kernel";
            let mend = "change what the evidence names, if the network is to be faster";
            found.push(Finding::notice("left", what).of(&network.name).seen(reason.clone()).mend(mend));
        }
    }
    found
}

fn meters(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for (network, status) in facts.told().filter(|(network, _)| network.mode == Fastpath::Verified) {
        if let Some(first) = status.meters.first() {
            let what = "no flow bypasses the host stack while there are rules that have to see every packet";
            let more = status.meters.len() - 1;
            let more = if more == 0 { String::new() } else { format!(", and {more} more") };
            found.push(
                Finding::notice("meters", what)
                    .of(&network.name)
                    .seen(format!("{first}{more}"))
                    .mend("remove them, or let fastpath = \"direct\" skip them, with all others"),
            );
        }
    }
    found
}

/// Two pods with one address.
fn disputed(facts: &Facts) -> Vec<Finding> {
    let state = &facts.fastpath.state;
    let mut found = vec![];
    for network in fast(facts) {
        let Some(id) = state.number(&network.name) else { continue };
        let claimed =
            state.endpoints.iter().filter(|((of, _), pod)| *of == id && pod.flags & endpoint::DISPUTED != 0);
        for ((_, address), _) in claimed {
            let what = format!("more than one pod claims {address}: it is the kernel's");
            let mend = format!("ip neigh show {address}; give one of the pods another address");
            found.push(
                Finding::warning("disputed", what).of(&network.name).seen("vxlan-agent status").mend(mend),
            );
        }
    }
    found
}
