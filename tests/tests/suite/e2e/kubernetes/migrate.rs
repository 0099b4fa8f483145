//! From flannel to us and back, on a running node, under traffic.

use std::time::Duration;

use vxlan_tests::lab::addr::{inner4, inner6};
use vxlan_tests::lab::kubernetes::flannel;
use vxlan_tests::lab::traffic::{Ping, Talk};
use vxlan_tests::lab::{AgentOptions, DEVICE, Lab, LabSpec, Overlay, wait_until};

use super::super::{assert_answered, assert_took, counters};
use super::{assert_all_reach_all, build, mac, off, soon};

fn index_and_mac(lab: &Lab, device: &str) -> String {
    let link = lab.node(1).sh(&format!("ip -o link show {device}")).expect("a device");
    let index = link.split(':').next().unwrap_or_default().to_owned();
    format!("{index} {}", mac(lab, device))
}

fn aliases(lab: &Lab) -> usize {
    lab.node(1).sh("ip -d link show").expect("links").matches("alias vxlan-agent").count()
}

#[test]
fn a_node_comes_from_flannel_and_goes_back_with_no_connection_broken() {
    let spec = LabSpec::of(vec![Overlay::KernelVxlan, Overlay::KernelVxlan, off()]).kubernetes();
    let mut lab = build(&spec);
    assert_all_reach_all(&lab);
    let talks: Vec<Talk> = [(1, 2), (2, 1), (1, 3)]
        .into_iter()
        .flat_map(|(from, to)| lab.pod(to, 1).ips().map(|ip| (from, to, ip)))
        .map(|(from, to, ip)| Talk::start(lab.pod(from, 1), lab.pod(to, 1), ip).expect("a connection"))
        .collect();
    let devices = [DEVICE, flannel::DEVICE6].map(|device| index_and_mac(&lab, device));
    let annotations = lab.kubernetes().node("n1").expect("a node")["metadata"]["annotations"].clone();

    for mode in ["direct", "verified"] {
        let options = AgentOptions { fastpath: mode.into(), ..AgentOptions::default() };
        lab.add_agent(1, &options).expect("an agent");
        lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
        let took_over = [DEVICE, flannel::DEVICE6].map(|device| index_and_mac(&lab, device));
        assert_eq!(took_over, devices, "the same devices with the same MACs");
        assert_eq!(lab.kubernetes().node("n1").expect("a node")["metadata"]["annotations"], annotations);
        let before = counters(&lab, 1);
        std::thread::sleep(Duration::from_millis(500)); // of traffic
        assert_took(&(&counters(&lab, 1) - &before), "pod_egress", "encapsulated", 100);
        let routes = lab.node(1).sh("ip route show proto 86").expect("routes");
        assert_eq!(routes.lines().count(), 2, "routes are ours now:\n{routes}");

        lab.agent(1).and_then(|agent| agent.cli(&["release"])).expect("released");
        lab.agent_mut(1).and_then(|agent| agent.stop().or(Ok(()))).expect("ended");
        assert_eq!(aliases(&lab), 0, "no mark is left");
        assert_eq!([DEVICE, flannel::DEVICE6].map(|device| index_and_mac(&lab, device)), devices);
        let pins = wait_until("the pins are gone", Duration::from_secs(5), || {
            lab.agent(1).is_ok_and(|agent| agent.pins().is_err())
        });
        pins.expect("gone");
        flannel::follow(&lab, 1).expect("flannel goes on");
        assert_all_reach_all(&lab);
    }
    for talk in talks {
        let report = talk.stop().expect("a connection that has not broken");
        assert!(report.rounds > 100 && report.longest < Duration::from_secs(2), "{report:?}");
    }
}

#[test]
fn a_node_with_direct_routes_comes_from_flannel_with_no_connection_broken() {
    let mut lab = build(&LabSpec::of(vec![Overlay::KernelVxlan, Overlay::KernelVxlan, off()]).kubernetes());
    // As flannel makes them with DirectRouting; node 3 has got another address since.
    lab.node(1)
        .ip(&format!(
            "route replace 10.244.2.0/24 via 192.0.2.2\n\
             route replace 10.244.3.0/24 via 192.0.2.99\n\
             route replace {}/64 via 2001:db8::2\n\
             route add 10.244.40.0/24 via 192.0.2.40\n\
             route add 10.99.0.0/24 via 192.0.2.40\n\
             route add 10.244.41.0/24 via 192.0.2.41 proto static\n",
            inner6(2, 0),
        ))
        .expect("direct routes");
    let ips = lab.pod(2, 1).ips();
    let talks = ips.map(|ip| Talk::start(lab.pod(1, 1), lab.pod(2, 1), ip).expect("a connection"));
    // What is inside the cluster's networks and no node's is a node's that is gone.
    let sections = "[pods]\nnetworks = [\"10.244.0.0/16\", \"fd00:244::/32\"]\n".to_owned();
    lab.add_agent(1, &AgentOptions { sections, ..AgentOptions::default() }).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    let log = lab.agent(1).expect("an agent").log();
    assert!(!log.contains("File exists"), "{log}");
    let before = counters(&lab, 1);
    assert_all_reach_all(&lab);
    assert_took(&(&counters(&lab, 1) - &before), "pod_egress", "encapsulated", 8);
    let routes =
        ["ip route show", "ip -6 route show"].map(|show| lab.node(1).sh(show).expect("routes")).concat();
    for gone in ["via 192.0.2.2 ", "via 192.0.2.99 ", "via 2001:db8::2 ", "10.244.40.0/24"] {
        assert!(!routes.contains(gone), "'{gone}' is still there:\n{routes}");
    }
    for kept in ["10.99.0.0/24", "10.244.41.0/24"] {
        assert!(routes.contains(kept), "an operator's own route stays:\n{routes}");
    }
    for talk in talks {
        let report = talk.stop().expect("a connection that has not broken");
        assert!(report.longest < Duration::from_secs(2), "{report:?}");
    }
}

#[test]
fn flannels_direct_routes_stay_under_its_own_configuration_and_become_ours() {
    let mut lab = build(&LabSpec::of(vec![Overlay::KernelVxlan, Overlay::KernelVxlan, off()]).kubernetes());
    for (at, to) in [(1, 2), (2, 1)] {
        let (subnet4, subnet6) = (inner4(to, 0), inner6(to, 0));
        lab.node(at)
            .ip(&format!(
                "route replace {subnet4}/24 via 192.0.2.{to}\nroute replace {subnet6}/64 via 2001:db8::{to}\n"
            ))
            .expect("direct routes");
    }
    let ips = lab.pod(2, 1).ips();
    let talks = ips.map(|ip| Talk::start(lab.pod(1, 1), lab.pod(2, 1), ip).expect("a connection"));
    let options = AgentOptions { flannel: Some(vec![]), ..AgentOptions::default() };
    lab.add_agent(1, &options).expect("an agent");
    let path = lab.run_dir().join("n1/net-conf.json");
    let text = std::fs::read_to_string(&path).expect("flannel's configuration");
    let asked_for = text.replace(r#""Type": "vxlan""#, r#""Type": "vxlan", "DirectRouting": true"#);
    assert_ne!(text, asked_for);
    std::fs::write(&path, asked_for).expect("written");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    let before = counters(&lab, 1);
    for ip in ips {
        assert_answered(lab.pod(1, 1), ip, Ping { count: 10, ..Ping::default() });
    }
    let counted = &counters(&lab, 1) - &before;
    assert_took(&counted, "pod_egress", "direct_route", 20);
    assert_eq!(counted.total("encapsulated"), 0, "{counted}");
    let routes = ["ip route show proto 86", "ip -6 route show proto 86"];
    let routes = routes.map(|show| lab.node(1).sh(show).expect("routes")).concat();
    for ours in ["via 192.0.2.2 dev underlay0", "via 2001:db8::2 dev underlay0"] {
        assert!(routes.contains(ours), "'{ours}' is not ours:\n{routes}");
    }
    for talk in talks {
        let report = talk.stop().expect("a connection that has not broken");
        assert!(report.longest < Duration::from_secs(2), "{report:?}");
    }
}

#[test]
fn what_flannel_left_behind_of_nodes_that_are_gone_is_removed() {
    let mut lab = build(&LabSpec::of(vec![Overlay::KernelVxlan, Overlay::KernelVxlan, off()]).kubernetes());
    lab.node(1)
        .ip(&format!(
            "neigh add 10.244.40.0 lladdr 0e:11:00:00:00:40 dev {DEVICE} nud permanent\n\
             route add 10.244.40.0/24 via 10.244.40.0 dev {DEVICE} onlink\n\
             route add 10.99.0.0/24 dev {DEVICE}\n"
        ))
        .expect("stale entries");
    lab.add_agent(1, &AgentOptions::default()).expect("an agent");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    let stale =
        || lab.node(1).sh(&format!("ip route show dev {DEVICE}")).is_ok_and(|r| !r.contains("10.244.40.0"));
    soon(&lab, "the stale route is gone", stale);
    let routes = lab.node(1).sh(&format!("ip route show dev {DEVICE}")).expect("routes");
    assert!(routes.contains("10.99.0.0/24"), "an operator's own route stays:\n{routes}");
    assert!(
        !lab.node(1).sh(&format!("ip neigh show dev {DEVICE}")).expect("neighbours").contains("10.244.40.0")
    );
}
