//! Routes that refer to next hop objects, and those in tables that rules lead to.

use std::fs;

use vxlan_tests::lab::addr::{inner4, inner6};
use vxlan_tests::lab::{DEVICE, Lab, wait_until};

use super::changes::{reaches, three};
use super::{SOON, is_fast, left, wait_fast};

/// Whether the maps of node 1 lead `to` to `vtep`.
fn leads(lab: &Lab, to: &str, vtep: &str) -> bool {
    let routes = lab.agent(1).and_then(|agent| agent.cli(&["dump", "routes"])).expect("routes");
    routes.lines().any(|line| line.contains(to) && line.contains(vtep))
}

/// Takes the routes to node 2 away on node 1, and waits until nobody is led there.
fn take_routes_away(lab: &Lab) {
    let (net4, net6) = (inner4(2, 0), inner6(2, 0));
    lab.node(1).ip(&format!("route del {net4}/24\nroute del {net6}/64\n")).expect("gone");
    wait_until("nobody is led there", SOON, || !reaches(lab, lab.pod(2, 1).ip4)).expect("in time");
}

#[test]
fn next_hop_objects_are_followed() {
    let lab = three();
    let (node, pod) = (lab.node(1), lab.pod(2, 1).ip4);
    let (net4, net6, other) = (inner4(2, 0), inner6(2, 0), inner4(3, 0));
    wait_fast(&lab, 1, 2);
    take_routes_away(&lab);
    let hop =
        |verb: &str, id: u8, via: &str| format!("nexthop {verb} id {id} via {via} dev {DEVICE} onlink\n");
    node.ip(&(hop("add", 7, &net4.to_string()) + &hop("add", 8, &net6.to_string()))).expect("objects");
    node.ip(&format!("route add {net4}/24 nhid 7\nroute add {net6}/64 nhid 8\n")).expect("routes");
    wait_fast(&lab, 1, 2);
    node.ip(&hop("replace", 7, &other.to_string())).expect("an object");
    wait_until("the object's new way is taken", SOON, || leads(&lab, "10.244.2.0/24", "192.0.2.3"))
        .expect("in time");
    // Routes are not announced anew with their object.
    node.run(|| fs::write("/proc/sys/net/ipv4/nexthop_compat_mode", "0")).expect("a setting");
    node.ip(&hop("replace", 7, &net4.to_string())).expect("an object");
    wait_fast(&lab, 1, 2);
    node.ip(&(hop("add", 10, &other.to_string()) + "nexthop add id 9 group 7/10\n")).expect("a group");
    node.ip(&format!("route replace {net4}/24 nhid 9\n")).expect("a route");
    wait_until("a group is the kernel's", SOON, || left(&lab, 1).contains("a group of next hop objects"))
        .expect("in time");
    assert!(!leads(&lab, "10.244.2.0/24", "192.0.2"));
    node.ip(&format!("route replace {net4}/24 nhid 7\n")).expect("a route");
    wait_fast(&lab, 1, 2);
    // The kernel drops the route, and tells nobody.
    node.ip("nexthop del id 7\n").expect("gone");
    wait_until("the route is gone with its object", SOON, || !reaches(&lab, pod)).expect("in time");
    assert!(reaches(&lab, lab.pod(2, 1).ip6) && is_fast(&lab, 1, 3), "the rest goes on");
}

#[test]
fn what_arrives_for_an_address_that_leads_elsewhere_is_the_kernels() {
    let lab = three();
    let (node, pod, own) = (lab.node(1), lab.pod(2, 1), lab.pod(1, 1).ip4);
    wait_fast(&lab, 1, 2);
    node.ip(&format!("route add blackhole {own}/32\n")).expect("a route");
    wait_until("answers are not delivered", SOON, || !reaches(&lab, pod.ip4)).expect("in time");
    assert!(reaches(&lab, pod.ip6), "it is about IPv4");
    node.ip(&format!("route del {own}/32\n")).expect("gone");
    wait_fast(&lab, 1, 2);
}

#[test]
fn tables_that_rules_lead_to_are_followed() {
    let lab = three();
    let (node, pod) = (lab.node(1), lab.pod(2, 1).ip4);
    let (net4, net6) = (inner4(2, 0), inner6(2, 0));
    wait_fast(&lab, 1, 2);
    take_routes_away(&lab);
    let routes = |table: &str| {
        format!(
            "route add {net4}/24 via {net4} dev {DEVICE} onlink table {table}\n\
             route add {net6}/64 via {net6} dev {DEVICE} onlink table {table}\n"
        )
    };
    node.ip(&routes("100")).expect("routes");
    wait_until("no rule leads there", SOON, || left(&lab, 1).contains("the routes in table 100"))
        .expect("in time");
    node.sh("ip rule add pref 100 lookup 100").expect("a rule");
    node.sh("ip -6 rule add pref 100 lookup 100").expect("a rule");
    wait_fast(&lab, 1, 2);
    assert!(!left(&lab, 1).contains("table"), "{}", left(&lab, 1));
    node.ip(&format!("route add blackhole {pod}/32 table 100\n")).expect("a route");
    wait_until("the table's routes count", SOON, || !reaches(&lab, pod)).expect("in time");
    node.ip(&format!("route del {pod}/32 table 100\n")).expect("gone");
    wait_fast(&lab, 1, 2);
    node.sh("ip rule del pref 100").expect("gone");
    wait_until("no rule leads there any more", SOON, || !reaches(&lab, pod)).expect("in time");
    node.ip(&format!("route add {net4}/24 via {net4} dev {DEVICE} onlink\n")).expect("a route");
    wait_fast(&lab, 1, 2);
    // A table with a default route, behind the main one's other routes.
    node.sh("ip rule add pref 50 lookup main suppress_prefixlength 0").expect("a rule");
    node.ip("route add default via 192.0.2.2 table 51\nrule add pref 60 lookup 51\n").expect("a rule");
    wait_fast(&lab, 1, 2);
    assert!(!left(&lab, 1).contains("table 51"), "{}", left(&lab, 1));
    node.sh("ip rule del pref 50").expect("gone");
    wait_until("the table hides the main one", SOON, || !leads(&lab, "10.244.2.0/24", "192.0.2"))
        .expect("in time");
    assert!(!reaches(&lab, pod), "replies are led away from the pod, too, as the kernel does it");
}
