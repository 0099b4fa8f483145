//! Bridged and routed networks in one agent.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::{Ping, tcp_bulk};
use vxlan_tests::lab::{Counters, Netns, SegmentSpec};

use super::{BLUE, RED, assert_all_reach_each_other, assert_answered, build, direct, two_tenants};

/// On the tenants' UDP port. What is for others there must not be dropped, whatever it says.
const ROUTED: &str = "[[network]]\nname = \"pods\"\nvni = 7\nport = 4789\ndevice = \"vx-pods\"\n\
                      fastpath = \"direct\"\nother_vni = \"drop\"\n\
                      [network.state]\nsource = \"file\"\npath = \"../routed.toml\"\n\n[state]\n";

fn pod_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, n, 2)
}

/// Gives both nodes a routed network besides the tenants, and each a pod of it.
fn add_routed(lab: &mut SegmentLab) -> [Netns; 2] {
    let node = |n: u8| {
        let vtep = lab.node(n).underlay;
        format!("[[node]]\nname = \"n{n}\"\nvtep = \"{vtep}\"\nsubnets = [\"10.244.{n}.0/24\"]\n")
    };
    std::fs::write(lab.run_dir().join("routed.toml"), [1, 2].map(node).concat()).expect("a state file");
    for n in [1, 2] {
        let agent = lab.agent_mut(n).expect("an agent");
        agent.reconfigure("[state]\n", ROUTED).expect("configured");
        agent.restart().expect("restarted");
    }
    [1, 2].map(|n| pod(lab, n))
}

/// A pod with a route of its own on node `n`, as the plugin `ptp` makes it.
fn pod(lab: &SegmentLab, n: u8) -> Netns {
    let pod = lab.add_namespace(&format!("pod-{n}")).expect("a namespace");
    let (ip, ns) = (pod_ip(n), pod.namespace().to_owned());
    lab.node(n)
        .ip(&format!(
            "link add pod{n} mtu 1450 address 02:77:00:00:00:01 type veth peer name eth0 mtu 1450 netns {ns}\n\
             link set pod{n} up\nroute add {ip} dev pod{n}\n"
        ))
        .expect("a veth");
    pod.ip(&format!(
        "link set eth0 up\naddr add {ip}/32 dev eth0\nroute add 169.254.1.1 dev eth0\n\
         route add default via 169.254.1.1\nneigh add 169.254.1.1 lladdr 02:77:00:00:00:01 dev eth0\n"
    ))
    .expect("a pod");
    pod
}

fn counters(lab: &SegmentLab) -> Counters {
    lab.agent(1).and_then(|agent| agent.counters()).expect("counters")
}

#[test]
fn two_tenants_and_a_routed_network_run_side_by_side() {
    let mut lab = build(&SegmentSpec::pair(direct(), direct()).tenants(two_tenants(4789)));
    let [one, _other] = add_routed(&mut lab);
    for tenant in [RED, BLUE] {
        assert_all_reach_each_other(&lab, tenant);
    }
    // The kernel resolves the pod first.
    assert_answered(&one, pod_ip(2), Ping::default());
    let quick = || {
        let before = counters(&lab);
        assert_answered(&one, pod_ip(2), Ping { count: 5, ..Ping::default() });
        (&counters(&lab) - &before).packets("pod_egress", "encapsulated") >= 5
    };
    vxlan_tests::lab::wait_until("the routed network is fast", std::time::Duration::from_secs(5), quick)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
    for tenant in [RED, BLUE] {
        let (from, to) = (lab.host(1, tenant, 1), lab.host(2, tenant, 1));
        let before = counters(&lab);
        tcp_bulk(from, to, to.ip4.into(), 4 << 20).expect("a transfer");
        assert_eq!((&counters(&lab) - &before).packets("pod_egress", "encapsulated"), 0, "{tenant}'s");
        assert_all_reach_each_other(&lab, tenant);
    }
    check_command_line(&lab);
    lab.agent_mut(1).and_then(|agent| agent.restart()).expect("restarted");
    assert_answered(&one, pod_ip(2), Ping::default());
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("stopped");
    let agent = lab.agent(1).expect("an agent");
    agent.cli(&["detach"]).expect("detached");
    let left = lab.node(1).sh("ip -o link show type vxlan").expect("links");
    assert_eq!(left, "", "all devices are gone");
}

/// Commands show all networks, or the one that is asked for.
fn check_command_line(lab: &SegmentLab) {
    let agent = lab.agent(1).expect("an agent");
    let status = agent.json(&["status"]).expect("a status");
    let names = |json: &serde_json::Value| {
        let rows = json.as_array().expect("rows").iter();
        rows.map(|row| row["network"].as_str().expect("a network").to_owned()).collect::<BTreeSet<_>>()
    };
    let known: Vec<_> = status["fastpath_of"].as_object().expect("networks").keys().cloned().collect();
    assert_eq!(known, [BLUE, "pods", RED]);
    let stations = agent.json(&["dump", "stations"]).expect("stations");
    assert_eq!(names(&stations), [BLUE, "pods", RED].map(str::to_owned).into());
    let one = agent.json(&["dump", "stations", "--network", RED]).expect("stations");
    assert_eq!(names(&one), [RED.to_owned()].into());
    assert!(agent.cli(&["dump", "routes"]).expect("routes").contains("10.244.2.0/24"));
    let off = agent.cli(&["fastpath", "off", "--network", RED]).expect("switched");
    assert!(off.contains(RED) && !off.contains("pods"), "{off}");
    agent.cli(&["fastpath", "on"]).expect("switched");
    agent.cli(&["flows", "flush"]).expect("flushed");
}
