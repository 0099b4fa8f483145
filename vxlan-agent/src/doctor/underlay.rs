//! What the underlay does to the tunnel's packets.

use nix::libc;

use super::facts::NetworkFacts;
use super::rules::{Packet, dropped};
use super::{Check, Facts, Finding};
use crate::config::Fastpath;
use crate::kernel::{Kind, Link};
use crate::net::{Mtu, family, is_link_local, overhead};
use crate::plan;

pub(super) const CHECKS: &[Check] =
    &[port_blocked, ways, path_mtu, pod_mtu, offload, checksums, ipsec, neighbours];

/// Of a thousand UDP packets so many may have a wrong checksum.
const WRONG_CHECKSUMS: u64 = 1;
/// Neighbours, in hundredths of the most, beyond which the kernel is about to refuse new ones.
const NEARLY_FULL: u64 = 90;

/// Rules that drop the tunnel's packets on their way in or out.
fn port_blocked(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in &facts.networks {
        let (Ok(cluster), Some(port)) = (&network.cluster, network.port) else { continue };
        for side in network.sides() {
            let (own, name) = (side.underlay.address, side.underlay.name.as_str());
            let over = |vtep: &std::net::IpAddr| vtep.is_ipv4() == own.is_ipv4();
            let Some(peer) = cluster.remotes.values().map(|node| node.vtep).find(over) else { continue };
            let packet = Packet { port: Some(port), ..Packet::default() };
            let entering = Packet { from: Some(peer), to: Some(own), enters: Some(name), ..packet };
            let leaving = Packet { from: Some(own), to: Some(peer), leaves: Some(name), ..packet };
            let ways = [
                ("come in", entering, [libc::NF_INET_PRE_ROUTING, libc::NF_INET_LOCAL_IN]),
                ("leave", leaving, [libc::NF_INET_LOCAL_OUT, libc::NF_INET_POST_ROUTING]),
            ];
            for (way, packet, hooks) in &ways {
                let Some(dropped) = dropped(&facts.chains, hooks, packet) else { continue };
                let what = format!("a packet filter drops the tunnel's packets that {way}: UDP port {port}");
                let (from, to) = (packet.from.unwrap_or(own), packet.to.unwrap_or(own));
                found.push(
                    Finding::error("port-blocked", what)
                        .of(&network.name)
                        .seen(format!("{}: from {from} to {to}", dropped.place()))
                        .mend(format!("nft insert rule {} udp dport {port} accept", dropped.chain())),
                );
            }
        }
    }
    found
}

fn ways(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in &facts.networks {
        let lost = network.ways.iter().filter(|(_, hop)| hop.is_none()).map(|(vtep, _)| *vtep);
        for vtep in lost {
            let what = format!(
                "the underlay leads to VTEP {vtep} in no way, or in one that only the kernel can follow"
            );
            let ip = if vtep.is_ipv6() { "ip -6" } else { "ip" };
            found.push(
                Finding::warning("no-next-hop", what)
                    .of(&network.name)
                    .seen(format!("{ip} route get {vtep} says no next hop"))
                    .mend(format!("{ip} route list match {vtep}: give it one next hop")),
            );
        }
    }
    found
}

/// A way to a VTEP takes less than the device believes, by what the kernel has been told or has learnt.
fn path_mtu(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in &facts.networks {
        for side in network.sides() {
            let outer = side.underlay.inner_mtu.0 + overhead(family(side.underlay.address));
            for (vtep, hop) in &network.ways {
                if vtep.is_ipv4() != side.underlay.address.is_ipv4() {
                    continue;
                }
                let known =
                    hop.as_ref().and_then(|hop| hop.mtu).into_iter().chain(facts.learnt.get(vtep).copied());
                let Some(mtu) = known.min().filter(|mtu| mtu.0 < outer) else { continue };
                found.push(small_path(network, &vtep.to_string(), mtu, outer));
            }
        }
    }
    found
}

/// What both the tables and a probe may find.
pub(super) fn small_path(network: &NetworkFacts, vtep: &str, mtu: Mtu, outer: u32) -> Finding {
    let what =
        format!("the path to VTEP {vtep} takes packets of {mtu} bytes, the tunnel's have up to {outer}");
    let inner = mtu.0.saturating_sub(outer - network_mtu(network));
    Finding::warning("path-mtu", what).of(&network.name).seen(format!("path MTU {mtu}")).mend(format!(
        "set mtu = {inner} in the section of the network on all nodes, or let the path take {outer} bytes"
    ))
}

/// What the network's device takes.
fn network_mtu(network: &NetworkFacts) -> u32 {
    network.sides().iter().map(|side| side.underlay.inner_mtu.0).min().unwrap_or_default()
}

/// Pods' interfaces that take more than the tunnel: what is larger is refused or fragmented.
fn pod_mtu(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.kind == "l3") {
        let tunnel = network_mtu(network);
        let state = &facts.fastpath.state;
        let Some(id) = state.number(&network.name) else { continue };
        let of_network = |link: &&Link| state.links.get(&link.index).is_some_and(|entry| entry.network == id);
        let larger = facts.tables.links.values().filter(of_network);
        let larger = larger.filter(|link| link.kind == Kind::Veth && tunnel != 0 && link.mtu.0 > tunnel);
        for link in larger {
            let what = format!("the pod behind {} sends packets larger than the tunnel takes", link.name);
            found.push(
                Finding::warning("pod-mtu", what)
                    .of(&network.name)
                    .seen(format!("{} has MTU {}, the tunnel {tunnel}", link.name, link.mtu))
                    .mend(format!(
                        "set \"mtu\": {tunnel} in the pods' CNI configuration, and make them anew"
                    )),
            );
        }
    }
    found
}

fn offload(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.mode != Fastpath::Off) {
        for side in network.sides().iter().filter(|side| !side.offloads) {
            let Some(device) = side.device.map(|device| facts.interface(device)) else { continue };
            let what = format!(
                "offloads of {device} are off, so the kernel's device carries and completes everything"
            );
            found.push(
                Finding::notice("offload-off", what)
                    .of(&network.name)
                    .seen(format!("ethtool -k {device}"))
                    .mend(format!("ethtool -K {device} tx on tso on gso on")),
            );
        }
    }
    found
}

fn checksums(facts: &Facts) -> Vec<Finding> {
    let count = |name: &str| facts.counts.get(name).copied().unwrap_or(0);
    let (wrong, right) = (count("InCsumErrors"), count("InDatagrams"));
    if wrong == 0 || wrong * 1000 <= (right + wrong) * WRONG_CHECKSUMS {
        return vec![];
    }
    let what = "UDP packets arrive with wrong checksums: an interface on the way, or this one, computes them wrongly";
    let names = facts.networks.iter().flat_map(NetworkFacts::sides).map(|side| side.underlay.name.as_str());
    let name = names.into_iter().next().unwrap_or("eth0");
    vec![
        Finding::error("checksum", what)
            .seen(format!("nstat -az UdpInCsumErrors: {wrong}, besides {right} that were right"))
            .mend(format!("on the node that sends them: ethtool -K {name} tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off tx off")),
    ]
}

fn ipsec(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.mode != Fastpath::Off) {
        let (Ok(cluster), Some(port)) = (&network.cluster, network.port) else { continue };
        for node in cluster.remotes.values() {
            let over =
                network.sides().iter().find(|side| side.underlay.address.is_ipv4() == node.vtep.is_ipv4());
            let applies = |own| plan::ipsec(&facts.policies, own, node.vtep, port) != 0;
            if over.is_some_and(|side| applies(side.underlay.address)) {
                let what = format!(
                    "an IPsec policy may apply to the tunnel to {}, so the kernel's device carries it",
                    node.name
                );
                found.push(
                    Finding::notice("ipsec", what)
                        .of(&network.name)
                        .seen("ip xfrm policy list".to_owned())
                        .mend("leave it, if the tunnel is to be encrypted; ip xfrm policy delete, if not"),
                );
            }
        }
    }
    found
}

fn neighbours(facts: &Facts) -> Vec<Finding> {
    let all = [(false, "ipv4"), (true, "ipv6")];
    let full = |(v6, version): (bool, &str)| {
        let setting = format!("{version}/neigh/default/gc_thresh3");
        let most = facts.number(&setting)?;
        let counts = facts.tables.neighbours.iter().filter(|((_, ip), n)| ip.is_ipv6() == v6 && !n.permanent);
        let count = counts.filter(|((_, ip), _)| !is_link_local(*ip)).count() as u64;
        (count * 100 >= most * NEARLY_FULL).then(|| {
            let what = "the kernel knows nearly as many neighbours as it may: packets to others are dropped";
            let name = format!("net.{version}.neigh.default.gc_thresh");
            Finding::error("neighbour-limit", what)
                .seen(format!("{count} neighbours, {name}3 = {most}"))
                .mend(format!("sysctl -w {name}1={most} {name}2={} {name}3={}", most * 3, most * 4))
        })
    };
    all.into_iter().filter_map(full).collect()
}
