//! Metrics: what a scrape says is what the command line says, and the real Prometheus understands it.

mod prometheus;
pub(super) mod scrape;

use std::net::UdpSocket;
use std::time::Duration;

use aya::maps::{HashMap, Map, MapData};
use serde_json::Value;
use vxlan_ebpf_common::headers::Be32;
use vxlan_ebpf_common::maps::{Addr, Flow, FlowKey, names};
use vxlan_tests::lab::addr::underlay4;
use vxlan_tests::lab::traffic::Ping;
use vxlan_tests::lab::{AgentOptions, Counters, Lab, LabSpec, NETWORK, Overlay, wait_until};

use super::{assert_answered, build, warm_up};
use scrape::{PORT, Scrape, scrape};

const SOON: Duration = Duration::from_secs(10);
/// Whoever asks more often than this gets the same answer.
const FRESH: Duration = Duration::from_secs(1);
pub(super) fn metered(fastpath: &str) -> Overlay {
    let node = format!("metrics = \"0.0.0.0:{PORT}\"");
    Overlay::Agent(AgentOptions { fastpath: fastpath.into(), node, ..AgentOptions::default() })
}

/// Traffic between the pods of two nodes, by way of the stack and past it.
fn talk(lab: &Lab) {
    for ip in lab.pod(2, 1).ips() {
        assert_answered(lab.pod(1, 1), ip, Ping { count: 20, ..Ping::default() });
        // From the node itself, which no program sees before the tunnel.
        assert_answered(lab.node(1), ip, Ping { count: 5, ..Ping::default() });
    }
}

/// A pod of node 1 sends a tunnel's packet to a node, which it must not.
fn drop_one(lab: &Lab) {
    lab.pod(1, 1).run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.send_to(b"tunnel", (underlay4(2), vxlan_tests::lab::PORT)).expect("sent");
    });
}

/// What node `n` says now.
#[track_caller]
fn fresh(lab: &Lab, n: u8) -> Scrape {
    std::thread::sleep(FRESH); // until the last answer is too old
    scrape(lab.node(n)).expect("metrics")
}

/// Waits until node `n` says `value` of `name`.
#[track_caller]
pub(super) fn says(lab: &Lab, n: u8, name: &str, labels: &[(&str, &str)], value: f64) {
    let said = || {
        let scraped = scrape(lab.node(n));
        scraped.is_some_and(|scraped| scraped.all(name, labels).iter().any(|sample| sample.value == value))
    };
    wait_until(&format!("{name} {labels:?} is {value}"), SOON, said)
        .inspect_err(|_| eprintln!("{}", scrape(lab.node(n)).map(|scraped| scraped.text).unwrap_or_default()))
        .expect("in time");
}

fn counters(lab: &Lab) -> Counters {
    lab.agent(1).and_then(|agent| agent.counters_of(NETWORK)).expect("counters")
}

/// Every counter of a scrape is between what `dump counters` said before and after it, and nothing is missing.
fn assert_counts(scraped: &Scrape, before: &Counters, after: &Counters) {
    for (hook, reason, count) in before.iter() {
        let (labels, last) =
            ([("network", NETWORK), ("hook", hook), ("reason", reason)], after.get(hook, reason));
        let packets = scraped.value("vxlan_agent_packets_total", &labels) as u64;
        assert!(
            (count.packets..=last.packets).contains(&packets),
            "{hook} {reason}: {packets}, {count:?} {last:?}"
        );
        let bytes = scraped.value("vxlan_agent_bytes_total", &labels) as u64;
        assert!((count.bytes..=last.bytes).contains(&bytes), "{hook} {reason}: {bytes}, {count:?} {last:?}");
    }
    for sample in scraped.all("vxlan_agent_packets_total", &[("network", NETWORK)]) {
        let (hook, reason) = (&sample.labels["hook"], &sample.labels["reason"]);
        assert!(after.packets(hook, reason) as f64 >= sample.value, "{sample:?}");
        assert_eq!(sample.labels["path"] == "fast", is_fast(reason), "{sample:?}");
    }
}

fn is_fast(reason: &str) -> bool {
    ["encapsulated", "decapsulated", "delivered", "routed", "switched"].contains(&reason)
}

/// What went through the tunnel is counted once, whichever programs saw it.
fn assert_tunnel(lab: &Lab) {
    let tunnel = |scraped: &Scrape, direction: &str| {
        let labels = [("network", NETWORK), ("direction", direction)];
        scraped.sum("vxlan_agent_tunnel_packets_total", &labels) as u64
    };
    let before = fresh(lab, 1);
    let ip = lab.pod(2, 1).ip4;
    let count = 100;
    assert_answered(lab.pod(1, 1), ip, Ping { count, ..Ping::default() });
    let after = fresh(lab, 1);
    for direction in ["out", "in"] {
        let counted = tunnel(&after, direction) - tunnel(&before, direction);
        // There is nobody else but a neighbour now and then.
        let sent = u64::from(count);
        assert!((sent..sent + 20).contains(&counted), "{direction}: {counted}\n{}", after.text);
    }
}

/// How full maps are is what is in them.
fn assert_fill(lab: &Lab, scraped: &Scrape) {
    let dump = |what: &str| -> Vec<Value> {
        let rows = lab.agent(1).and_then(|agent| agent.json(&["dump", what])).expect("a dump");
        rows.as_array().expect("rows").clone()
    };
    let is_v4 = |row: &Value, key: &str| !row[key].as_str().expect("an address").contains(':');
    let entries = |map: &str| scraped.value("vxlan_agent_map_entries", &[("map", map)]) as usize;
    let routes = dump("routes");
    let routes4 = routes.iter().filter(|row| is_v4(row, "to")).count();
    assert_eq!((entries("ROUTES4"), entries("ROUTES6")), (routes4, routes.len() - routes4));
    let endpoints = dump("endpoints");
    let endpoints4 = endpoints.iter().filter(|row| is_v4(row, "address")).count();
    assert_eq!((entries("ENDPOINTS4"), entries("ENDPOINTS6")), (endpoints4, endpoints.len() - endpoints4));
    assert_eq!((entries("VTEPS"), entries("NETWORKS")), (dump("vteps").len(), 1));
    let flows = lab.agent(1).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
    assert!(entries("FLOWS") >= flows.as_array().map_or(1, Vec::len).max(1));
    for sample in scraped.all("vxlan_agent_map_entries", &[]) {
        let map = sample.labels["map"].as_str();
        assert!(scraped.value("vxlan_agent_map_max_entries", &[("map", map)]) > sample.value, "{sample:?}");
    }
    assert_eq!(scraped.value("vxlan_agent_map_max_entries", &[("map", "FLOWS")]), 65_536.0);
}

/// A table of flows with more than a scrape reads is told nearly as full as it is.
fn assert_estimated(lab: &Lab) {
    const COUNT: u32 = 20_000;
    let pin = lab.agent(1).and_then(|agent| agent.pins()).expect("pins").join(names::FLOWS);
    let map = MapData::from_pin(pin).and_then(Map::from_map_data).expect("the map");
    let mut flows = HashMap::<_, FlowKey, Flow>::try_from(map).expect("a hash");
    for n in 0..COUNT {
        let address = |first: u32| Addr::v4(Be32::from_bytes((first + n).to_be_bytes()));
        let key = FlowKey::pair(1, (address(0x0af4_0000), address(0x0af5_0000)), 0);
        flows.insert(&key, &Flow::default(), 0).expect("a place");
    }
    let told = fresh(lab, 1).value("vxlan_agent_map_entries", &[("map", "FLOWS")]);
    let ratio = told / f64::from(COUNT);
    assert!((0.93..1.07).contains(&ratio), "{told} of {COUNT} flows");
}

/// The agent, its network and its source are as they should be.
fn assert_well(scraped: &Scrape) {
    let of = [("network", NETWORK)];
    for (name, value) in [("nodes", 1), ("vteps", 1), ("network_ready", 1), ("source_refused", 0)] {
        assert_eq!(scraped.value(&format!("vxlan_agent_{name}"), &of), f64::from(value), "{name}");
    }
    for (name, value) in [("fastpath_loaded", 1), ("reconcile_failing", 0), ("retrying_changes", 0)] {
        assert_eq!(scraped.value(&format!("vxlan_agent_{name}"), &[]), f64::from(value), "{name}");
    }
    let known =
        [("network", NETWORK), ("kind", "l3"), ("mode", "verified"), ("vni", "1"), ("device", "flannel.1")];
    assert_eq!(scraped.value("vxlan_agent_network_info", &known), 1.0);
    let source = [("network", NETWORK), ("source", "file")];
    assert_eq!(scraped.value("vxlan_agent_source_connected", &source), 1.0);
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(scraped.value("vxlan_agent_build_info", &version), 1.0);
    assert!(scraped.value("vxlan_agent_reconcile_duration_seconds_count", &[]) >= 2.0);
    let started = scraped.value("vxlan_agent_start_time_seconds", &[]);
    let (turned, snapshot) =
        ("vxlan_agent_loop_turned_time_seconds", "vxlan_agent_source_snapshot_time_seconds");
    assert!(scraped.value(turned, &[]) > started && scraped.value(snapshot, &of) >= started - 1.0);
}

#[test]
fn a_scrape_says_what_the_command_line_says() {
    let lab = build(&LabSpec::pair(metered("verified"), Overlay::verified()));
    warm_up(&lab);
    talk(&lab);
    let before = counters(&lab);
    let scraped = fresh(&lab, 1);
    assert_counts(&scraped, &before, &counters(&lab));
    assert_well(&scraped);
    assert_fill(&lab, &scraped);
    assert_tunnel(&lab);
    assert_estimated(&lab);
    assert!(scrape(lab.node(2)).is_none(), "nobody has asked for it");
}

#[test]
fn metrics_say_what_is_wrong() {
    let lab = build(&LabSpec::pair(metered("direct"), Overlay::agent()));
    warm_up(&lab);
    let of = [("network", NETWORK)];
    let (agent, state) = (lab.agent(1).expect("an agent"), lab.state().clone());
    let wrong = |is_wrong: bool| {
        let (well, ill) = (f64::from(!is_wrong), f64::from(is_wrong));
        says(&lab, 1, "vxlan_agent_fastpath_switched_on", &of, well);
        says(&lab, 1, "vxlan_agent_network_ready", &of, well);
        says(&lab, 1, "vxlan_agent_source_refused", &of, ill);
        says(&lab, 1, "vxlan_agent_configuration_refused", &[], ill);
    };
    wrong(false);
    agent.cli(&["fastpath", "off"]).expect("a command");
    agent.reconfigure("vni = 1", "vni = \"one\"").expect("a configuration");
    std::fs::write(lab.state_path(), "[[node]]\nname = \"n1\"\n").expect("a broken state");
    wrong(true);
    agent.reconfigure("vni = \"one\"", "vni = 1").expect("the configuration of before");
    agent.cli(&["fastpath", "on"]).expect("a command");
    state.write(&lab.state_path()).expect("the state of before");
    wrong(false);

    // What the programs drop is a drop here, too.
    drop_one(&lab);
    let labels = [("network", NETWORK), ("path", "drop"), ("reason", "pod_tunnels"), ("direction", "out")];
    says(&lab, 1, "vxlan_agent_packets_total", &labels, 1.0);
}
