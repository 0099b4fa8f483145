//! Where the host routes packets between pods and tunnel.

use ipnetwork::IpNetwork;

use super::facts::NetworkFacts;
use super::{Check, Facts, Finding};
use crate::config::Fastpath;
use crate::kernel::Kind;
use crate::net::IfIndex;

pub(super) const CHECKS: &[Check] = &[forwarding, reverse_path, elsewhere, vrf, policy_routing];

/// Whether packets are routed, of this IP version, by a network.
fn routes(network: &NetworkFacts, v6: bool) -> bool {
    network.kind != "l2" && network.own_subnets().iter().any(|subnet| subnet.is_ipv6() == v6)
}

fn forwarding(facts: &Facts) -> Vec<Finding> {
    let all = [(false, "IPv4", "ipv4/ip_forward"), (true, "IPv6", "ipv6/conf/all/forwarding")];
    let off = |(v6, version, setting): (bool, &str, &str)| {
        let wanted = facts.networks.iter().any(|network| routes(network, v6));
        (wanted && facts.number(setting) == Some(0)).then(|| {
            let what = format!("{version} is not forwarded: no pod reaches another node's by the host stack");
            Finding::error("forwarding-off", what).seen(is(setting, 0)).mend(set(setting, 1))
        })
    };
    let mut found: Vec<_> = all.into_iter().filter_map(off).collect();
    for network in facts.networks.iter().filter(|network| routes(network, false)) {
        for device in network.devices() {
            let name = facts.interface(device);
            let setting = format!("ipv4/conf/{name}/forwarding");
            // What is off for all has been told.
            if facts.number(&setting) == Some(0) && facts.number("ipv4/ip_forward") != Some(0) {
                let what = format!("{name} does not forward: what comes out of the tunnel is lost");
                found.push(
                    Finding::error("forwarding-off", what).seen(is(&setting, 0)).mend(set(&setting, 1)),
                );
            }
        }
    }
    found
}

/// A strict reverse path filter drops what comes in by another interface than its answers leave by.
fn reverse_path(facts: &Facts) -> Vec<Finding> {
    let all = facts.number("ipv4/conf/all/rp_filter").unwrap_or(0);
    let strict = |name: &str| {
        let setting = format!("ipv4/conf/{name}/rp_filter");
        (facts.number(&setting).unwrap_or(0).max(all) == 1).then_some(setting)
    };
    let mut found = vec![];
    for network in &facts.networks {
        for side in network.sides().iter().filter(|side| side.underlay.address.is_ipv4()) {
            let underlay = &side.underlay;
            let odd = network.ways.iter().find_map(|(vtep, hop)| {
                let hop = hop.as_ref().filter(|hop| hop.ifindex != underlay.ifindex)?;
                Some((vtep, facts.interface(hop.ifindex))).filter(|(vtep, _)| vtep.is_ipv4())
            });
            if let (Some(setting), Some((vtep, other))) = (strict(&underlay.name), odd) {
                found.push(rp_filter(&network.name, &underlay.name, &setting, &vtep.to_string(), &other));
            }
            let Some(device) = side.device else { continue };
            let odd = network.leads.iter().find_map(|(subnet, out)| {
                let past_tunnel = subnet.is_ipv4() && !network.direct.contains(subnet);
                let out = (*out).filter(|out| *out != device && past_tunnel)?;
                Some((subnet, facts.interface(out)))
            });
            let name = facts.interface(device);
            if let (Some(setting), Some((subnet, other))) = (strict(&name), odd) {
                found.push(rp_filter(&network.name, &name, &setting, &subnet.to_string(), &other));
            }
        }
    }
    found
}

fn rp_filter(network: &str, interface: &str, setting: &str, from: &str, other: &str) -> Finding {
    let what = format!("{interface} drops what comes from {from}: answers would leave by another interface");
    Finding::error("rp-filter", what)
        .of(network)
        .seen(format!("{}, the route to {from} leads out of {other}", is(setting, 1)))
        .mend(format!("sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.{interface}.rp_filter=2"))
}

/// The kernel sends packets for another node's pods elsewhere: policy routing, or a route that is more specific.
fn elsewhere(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.kind == "l3") {
        let devices: Vec<IfIndex> = network.devices().collect();
        let planned = |subnet: &IpNetwork| {
            network.changes.iter().any(|(_, change)| change.to_string().contains(&subnet.to_string()))
        };
        if devices.is_empty() {
            continue;
        }
        for (subnet, out) in &network.leads {
            let is_direct = network.direct.contains(subnet)
                && network.sides().iter().any(|side| *out == Some(side.underlay.ifindex));
            if is_direct || out.is_some_and(|out| devices.contains(&out)) || planned(subnet) {
                continue;
            }
            let out =
                out.map_or_else(|| "nowhere".to_owned(), |out| format!("out of {}", facts.interface(out)));
            let what = format!("the kernel sends packets for {subnet} past the tunnel");
            let ip = if subnet.is_ipv6() { "ip -6" } else { "ip" };
            let pod = subnet.iter().nth(2).unwrap_or(subnet.ip());
            found.push(
                Finding::error("route-elsewhere", what)
                    .of(&network.name)
                    .seen(format!("{ip} route get {pod}: {out}"))
                    .mend(format!("{ip} rule list; {ip} route list match {pod}: remove what comes before the tunnel's route")),
            );
        }
    }
    found
}

/// Routes of a device in a VRF are the VRF's, where nobody has put the overlay's.
fn vrf(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.kind == "l3") {
        for device in network.devices() {
            let Some(link) = facts.tables.links.get(&device) else { continue };
            let master = link.master.and_then(|master| facts.tables.links.get(&master));
            if let Some(vrf) = master.filter(|master| master.kind == Kind::Vrf) {
                let what = format!(
                    "{} is in a VRF: what comes out of the tunnel is routed by other tables",
                    link.name
                );
                let mend = format!("ip link set dev {} nomaster", link.name);
                found.push(
                    Finding::error("vrf", what)
                        .of(&network.name)
                        .seen(format!("its master is {}", vrf.name))
                        .mend(mend),
                );
            }
        }
    }
    found
}

fn policy_routing(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in facts.networks.iter().filter(|network| network.mode != Fastpath::Off) {
        for side in network.sides() {
            let v6 = side.underlay.address.is_ipv6();
            if facts.tables.rules_look_deeper(v6) {
                let what = "a routing rule looks at source ports or users: the kernel's device carries everything over that IP version";
                let ip = if v6 { "ip -6" } else { "ip" };
                let rule = facts.tables.rules.iter().find(|rule| rule.v6 == v6 && rule.looks_deeper);
                let priority = rule.map_or(0, |rule| rule.priority);
                found.push(
                    Finding::notice("policy-routing", what)
                        .of(&network.name)
                        .seen(format!("{ip} rule list: the rule {priority}"))
                        .mend(format!("{ip} rule del pref {priority}")),
                );
            }
        }
    }
    found
}

/// A setting as `sysctl` calls it.
fn dotted(setting: &str) -> String {
    format!("net.{}", setting.replace('.', "\u{0}").replace('/', ".").replace('\u{0}', "/"))
}

pub(super) fn is(setting: &str, value: u64) -> String {
    format!("{} = {value}", dotted(setting))
}

pub(super) fn set(setting: &str, value: u64) -> String {
    format!("sysctl -w {}={value}", dotted(setting))
}
