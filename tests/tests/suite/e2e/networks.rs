//! Networks that are added, changed and removed while the agent runs.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;
use vxlan_tests::bench::many::Many;
use vxlan_tests::lab::addr::{inner4, underlay4};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject};
use vxlan_tests::lab::{
    AgentOptions, Counters, DEVICE, Lab, LabSpec, Overlay, PORT, StateFile, UNDERLAY, VNI, wait_until,
};

use super::change::under_traffic;
use super::guard::forged;
use super::metrics::scrape::scrape;
use super::metrics::{metered, says};
use super::{assert_answered, assert_took, build, counted, pair, warm_up};

const SOON: Duration = Duration::from_secs(10);

/// The second network, its device, and the address of the device on node 2.
const SECOND: &str = "second";
const SECOND_DEVICE: &str = "vxlab-second";
const SECOND_VTEP: [u8; 4] = [10, 99, 2, 0];

/// The configuration of a second network with `vni`.
fn snippet(lab: &Lab, vni: u32) -> String {
    format!(
        "[[network]]\nname = \"{SECOND}\"\nvni = {vni}\nport = {PORT}\ndevice = \"{SECOND_DEVICE}\"\n\
         [network.state]\nsource = \"file\"\npath = {:?}\n",
        state_path(lab)
    )
}

fn state_path(lab: &Lab) -> PathBuf {
    lab.run_dir().join("second.toml")
}

/// The second network's nodes, with subnets of its own.
fn state(lab: &Lab) -> StateFile {
    let mut state = lab.state().clone();
    for node in &mut state.nodes {
        node.mac = None;
        let own = |subnet: &String| subnet.replace("10.244.", "10.99.").replace("fd00:244:", "fd00:99:");
        node.subnets = node.subnets.iter().map(own).collect();
    }
    state
}

fn write_state(lab: &Lab) {
    state(lab).write(&state_path(lab)).expect("a state file");
}

fn add(lab: &Lab) {
    for n in [1, 2] {
        lab.agent(n).and_then(|agent| agent.add_snippet(SECOND, &snippet(lab, VNI + 1))).expect("a snippet");
    }
}

fn remove(lab: &Lab) {
    for n in [1, 2] {
        lab.agent(n).and_then(|agent| agent.remove_snippet(SECOND)).expect("a snippet that was there");
    }
}

fn status(lab: &Lab) -> Value {
    lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status")
}

#[track_caller]
fn soon(lab: &Lab, what: &str, condition: impl FnMut() -> bool) {
    let met = wait_until(what, SOON, condition);
    met.inspect_err(|_| lab.agent(1).expect("an agent").print_log()).expect("in time");
}

/// Whether both nodes have the second network's device with a route to the other one, and programs on it.
fn is_there(lab: &Lab) -> bool {
    let is_on = |n: u8| {
        let (node, other) = (lab.node(n), 3 - n);
        let route = format!("ip route show 10.99.{other}.0/24 dev {SECOND_DEVICE}");
        let status = lab.agent(n).and_then(|agent| agent.json(&["status"])).expect("a status");
        let fastpath = &status["fastpath_of"][SECOND];
        let attached = fastpath["attachments"].as_array().into_iter().flatten();
        !node.sh(&route).unwrap_or_default().is_empty()
            && fastpath["vteps"] == 1
            && attached.filter(|program| program["hook"] == "tunnel_egress").count() == 1
    };
    is_on(1) && is_on(2)
}

/// Whether node 1's table guards a network with `vni`.
fn is_guarded(lab: &Lab, vni: u32) -> bool {
    let table = lab.agent(1).expect("an agent").nft_table();
    let listed = lab.node(1).sh(&format!("nft list set inet {table} networks")).expect("a set");
    listed.contains(&format!("{vni:#010x} . {PORT}"))
}

/// Nothing of the second network is left on node 1.
fn is_gone(lab: &Lab) -> bool {
    let node = lab.node(1);
    let links = node.sh("ip -o link show type vxlan").unwrap_or_default();
    let (status, pins) = (status(lab), lab.agent(1).and_then(|agent| agent.pins()).expect("pins"));
    !is_guarded(lab, VNI + 1)
        && !links.contains(SECOND)
        && status["fastpath_of"][SECOND].is_null()
        && status["networks"].as_array().is_some_and(|list| list.len() == 1)
        && pins.with_file_name(SECOND).symlink_metadata().is_err()
}

/// Node 1 reaches node 2 through the second network, by the fast path.
fn assert_second_runs(lab: &Lab) {
    let counters = || {
        let rows = lab.agent(1).and_then(|agent| agent.json(&["dump", "counters", "--network", SECOND]));
        Counters::parse(&rows.expect("counters")).expect("counters")
    };
    let before = counters();
    assert_answered(lab.node(1), SECOND_VTEP, Ping { count: 5, ..Ping::default() });
    assert_took(&(&counters() - &before), "tunnel_egress", "encapsulated", 5);
}

fn assert_first_runs(lab: &Lab) {
    let [one, _] = counted(lab, || {
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 5, ..Ping::default() });
    });
    assert_took(&one, "pod_egress", "encapsulated", 5);
}

#[test]
fn a_network_comes_and_goes_while_packets_of_another_flow() {
    let mut lab = build(&pair());
    warm_up(&lab);
    write_state(&lab);
    under_traffic(&mut lab, |lab| {
        for _ in 0..2 {
            add(lab);
            soon(lab, "the second network is there", || is_there(lab));
            assert_second_runs(lab);
            remove(lab);
            soon(lab, "the second network is gone", || is_gone(lab));
        }
    });
    assert_first_runs(&lab);
    let status = status(&lab);
    assert_eq!(status["retrying"].as_array().map(Vec::len), Some(0), "{status:#}");
}

/// Whether `frame`, sent from node 2, comes out of node 1's `device`.
fn comes_out_of(lab: &Lab, device: &str, frame: &[u8]) -> bool {
    let capture = Capture::start(lab.node(1), device).expect("a capture");
    inject(lab.node(2), UNDERLAY, frame).expect("sent");
    let ours = |frame: &Frame| frame.udp_ports() == Some((7777, 7777));
    capture.next(Duration::from_millis(300), ours).expect("a capture").is_some()
}

#[test]
fn who_may_send_in_one_network_may_not_in_another() {
    for fastpath in ["off", "direct"] {
        let options = AgentOptions { fastpath: fastpath.into(), ..AgentOptions::default() };
        let lab = build(&LabSpec::pair(Overlay::Agent(options), Overlay::agent()));
        let only_second = Ipv4Addr::new(192, 0, 2, 77);
        let mut second = state(&lab);
        second.nodes[1].vtep = only_second.into();
        second.write(&state_path(&lab)).expect("a state file");
        let mut text = snippet(&lab, VNI + 1);
        text = text.replace("port = ", &format!("fastpath = \"{fastpath}\"\nport = "));
        lab.agent(1).and_then(|agent| agent.add_snippet(SECOND, &text)).expect("a snippet");
        soon(&lab, "the second network is there", || is_guarded(&lab, VNI + 1));
        let of_second = Ipv4Addr::new(10, 99, 2, 9);
        for (vni, device, outer, inner, expected) in [
            (VNI, DEVICE, underlay4(2), inner4(2, 9), true),
            (VNI, DEVICE, only_second, inner4(2, 9), false),
            (VNI, DEVICE, underlay4(2), of_second, false),
            (VNI + 1, SECOND_DEVICE, only_second, of_second, true),
            (VNI + 1, SECOND_DEVICE, underlay4(2), of_second, false),
            (VNI + 1, SECOND_DEVICE, only_second, inner4(2, 9), false),
        ] {
            let frame = forged(&lab, outer, inner, vni);
            let passes = if fastpath == "direct" && vni == VNI && expected {
                // Straight to the pod.
                true
            } else {
                comes_out_of(&lab, device, &frame)
            };
            assert_eq!(passes, expected, "{fastpath}: VNI {vni}, {inner} behind {outer}");
        }
    }
}

#[test]
fn many_networks_start_in_little_time_and_do_nothing_then() {
    let mut many = Many::build(64).expect("a lab");
    let start = many.start().expect("a start");
    eprintln!("64 networks: {start:.2?}");
    assert!(start.mebibytes < 128.0, "{} MiB", start.mebibytes);
    let idle = many.idle().expect("it runs");
    assert!(idle < 0.1, "{idle} of a CPU");
    let table = many.lab().agent(1).expect("an agent").nft_table();
    let node = many.lab().node(1);
    let tables = node.sh("nft list tables").expect("tables");
    assert_eq!(tables.trim(), format!("table inet {table}"), "one for all");
    let rules = node.sh(&format!("nft list chain inet {table} guard")).expect("a chain");
    assert!(rules.lines().count() < 40, "{rules}");
}

#[test]
fn a_network_is_changed_in_place() {
    let mut lab = build(&pair());
    warm_up(&lab);
    write_state(&lab);
    add(&lab);
    soon(&lab, "the second network is there", || is_there(&lab));
    under_traffic(&mut lab, |lab| {
        for (from, to) in [(VNI + 1, VNI + 2), (VNI + 2, VNI + 1)] {
            let text = snippet(lab, to);
            for n in [1, 2] {
                lab.agent(n).and_then(|agent| agent.add_snippet(SECOND, &text)).expect("a snippet");
            }
            let shown = || lab.node(1).sh(&format!("ip -d link show {SECOND_DEVICE}")).unwrap_or_default();
            soon(lab, "it has another VNI", || shown().contains(&format!("id {to} ")) && is_there(lab));
            assert!(!shown().contains(&format!("id {from} ")), "one device");
            assert!(is_guarded(lab, to) && !is_guarded(lab, from), "one guard");
        }
        let renamed = snippet(lab, VNI + 1).replace(SECOND_DEVICE, "vxlab-renamed");
        lab.agent(1).and_then(|agent| agent.add_snippet(SECOND, &renamed)).expect("a snippet");
        let links = || lab.node(1).sh("ip -o link show type vxlan").unwrap_or_default();
        soon(lab, "it has another device", || {
            let links = links();
            links.contains("vxlab-renamed") && !links.contains(SECOND_DEVICE)
        });
        lab.agent(1).and_then(|a| a.add_snippet(SECOND, &snippet(lab, VNI + 1))).expect("a snippet");
        soon(lab, "it has its first device", || is_there(lab));
    });
    assert_second_runs(&lab);
    let attach = "[node]\nattach = \"clsact\"\n";
    lab.agent(1).and_then(|agent| agent.reconfigure("[node]\n", attach)).expect("a configuration");
    let log = || lab.agent(1).expect("an agent").log();
    soon(&lab, "the agent says what it cannot do", || log().contains("restart the agent for changes of"));
    assert_eq!(status(&lab)["config_error"], Value::Null);
    assert_first_runs(&lab);
}

#[test]
fn a_network_may_take_the_place_of_another_one() {
    let mut lab = build(&pair());
    warm_up(&lab);
    write_state(&lab);
    add(&lab);
    soon(&lab, "the second network is there", || is_there(&lab));
    let alias = || lab.node(1).sh(&format!("ip link show {SECOND_DEVICE}")).unwrap_or_default();
    let state = lab.run_dir().join("second.toml").display().to_string();
    let third = snippet(&lab, VNI + 1).replace("\"second\"", "\"third\"");
    assert!(third.contains(&state) && !alias().contains("third"));
    lab.agent(1).and_then(|agent| agent.add_snippet(SECOND, &third)).expect("a snippet");
    let is_third = || {
        let networks = status(&lab)["networks"].clone();
        alias().contains("vxlan-agent network third") && networks[1]["plan_error"].is_null()
    };
    soon(&lab, "the third network has the device", is_third);
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    add(&lab);
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    soon(&lab, "the second network is there", || is_there(&lab));
    assert!(status(&lab)["fastpath_of"]["third"].is_null());
    assert_second_runs(&lab);
    assert_first_runs(&lab);
}

#[test]
fn a_wrong_snippet_is_refused_and_changes_nothing() {
    let mut lab = build(&pair());
    warm_up(&lab);
    write_state(&lab);
    add(&lab);
    soon(&lab, "the second network is there", || is_there(&lab));
    under_traffic(&mut lab, |lab| {
        let agent = lab.agent(1).expect("an agent");
        let same_vni = snippet(lab, VNI + 1).replace(SECOND, "third");
        for (text, reason) in [
            ("[[network]\n", "line 1"),
            ("[[network]]\nname = \"third\"\nvni = 0\n", "out of range"),
            (same_vni.as_str(), "as network 'second'"),
        ] {
            agent.add_snippet("third", text).expect("a snippet");
            let says = |status: &Value| {
                let error = status["config_error"].as_str().unwrap_or_default();
                error.contains("third.toml") && error.contains(reason)
            };
            soon(lab, "the snippet is refused", || says(&status(lab)));
            assert!(agent.cli(&["status"]).expect("a status").contains("refused    the configuration"));
            assert!(is_there(lab), "the second network is there as before");
        }
        agent.remove_snippet("third").expect("a snippet that was there");
        soon(lab, "all is well again", || status(lab)["config_error"].is_null());
    });
    assert_second_runs(&lab);
    assert_first_runs(&lab);
}

#[test]
fn a_network_without_its_state_waits_and_keeps_no_other_from_running() {
    let mut lab = build(&LabSpec::pair(metered("direct"), Overlay::agent()));
    let ready = |lab: &Lab, value: f64| {
        says(lab, 1, "vxlan_agent_network_ready", &[("network", SECOND)], value);
        // Once, whatever is there under one name.
        scrape(lab.node(1)).expect("metrics").value("vxlan_agent_network_ready", &[("network", SECOND)]);
    };
    for n in [1, 2] {
        lab.agent_mut(n).and_then(|agent| agent.stop()).expect("a stop");
    }
    add(&lab);
    for n in [1, 2] {
        lab.agent_mut(n).and_then(|agent| agent.start()).expect("the first network runs");
    }
    warm_up(&lab);
    assert_first_runs(&lab);
    let pending = status(&lab)["networks"][1]["pending"].as_str().unwrap_or_default().to_owned();
    assert!(pending.contains("second.toml") && pending.contains("cannot be read"), "{pending}");
    ready(&lab, 0.0);
    write_state(&lab);
    soon(&lab, "the second network is there", || is_there(&lab));
    assert_eq!(status(&lab)["networks"][1]["pending"], Value::Null);
    assert_second_runs(&lab);
    ready(&lab, 1.0);
    let labels = [("network", SECOND), ("hook", "tunnel_egress"), ("reason", "encapsulated")];
    let scraped = scrape(lab.node(1)).expect("metrics");
    assert!(scraped.value("vxlan_agent_packets_total", &labels) >= 5.0, "{}", scraped.text);

    // So does a network whose source is to be another one.
    let elsewhere = snippet(&lab, VNI + 1).replace("second.toml", "elsewhere.toml");
    lab.agent(1).and_then(|agent| agent.add_snippet(SECOND, &elsewhere)).expect("a snippet");
    soon(&lab, "it waits", || status(&lab)["networks"][1]["pending"].is_string());
    assert_second_runs(&lab);
    ready(&lab, 0.0);
    assert_eq!(status(&lab)["networks"][1]["nodes"][0]["name"], "n2", "the cluster of before");
    state(&lab).write(&lab.run_dir().join("elsewhere.toml")).expect("a state file");
    soon(&lab, "it runs", || status(&lab)["networks"][1]["pending"].is_null());
    add(&lab);
    assert_second_runs(&lab);

    // What an earlier agent has left goes on.
    let (path, away) = (state_path(&lab), lab.run_dir().join("away"));
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
    std::fs::rename(&path, &away).expect("renamed");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("the first network runs");
    soon(&lab, "it waits", || status(&lab)["networks"][1]["pending"].is_string());
    assert!(is_there(&lab), "the second network is as it was");
    assert!(is_guarded(&lab, VNI) && is_guarded(&lab, VNI + 1), "its guard, too");
    assert_second_runs(&lab);
    assert_first_runs(&lab);
    std::fs::rename(&away, &path).expect("renamed");
    soon(&lab, "it runs", || status(&lab)["networks"][1]["pending"].is_null());
    assert_second_runs(&lab);
}

#[test]
fn the_only_network_needs_its_state_from_the_start() {
    let mut lab = build(&pair());
    let agent = lab.agent_mut(1).expect("an agent");
    agent.stop().expect("a stop");
    std::fs::remove_file(lab.state_path()).expect("a state file that was there");
    let error = lab.agent(1).and_then(|agent| agent.cli(&["run"])).expect_err("nothing to run");
    let error = format!("{error:#}");
    assert!(error.contains("state.toml: cannot be read"), "{error}");
}

#[test]
fn files_for_pods_follow_the_configuration() {
    let dir = tempfile::tempdir().expect("a directory");
    let [before, after] = ["before.env", "after.env"].map(|name| dir.path().join(name));
    let sections = format!("[pods]\nnetworks = [\"10.244.0.0/16\"]\nsubnet_file = {before:?}\n");
    let options = AgentOptions { sections, ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options), Overlay::agent()));
    soon(&lab, "the file is there", || before.exists());
    let agent = lab.agent(1).expect("an agent");
    let reconfigure = |from: &str, to: &str| agent.reconfigure(from, to).expect("a configuration");
    reconfigure("before.env", "after.env");
    soon(&lab, "the file is another one", || after.exists() && !before.exists());
    // Whoever has the pods now writes the file.
    write_state(&lab);
    reconfigure(
        "[[network]]\nname = \"pods\"",
        &format!("{}\n[[network]]\nname = \"pods\"", snippet(&lab, VNI + 1)),
    );
    let says = |word: &str| std::fs::read_to_string(&after).unwrap_or_default().contains(word);
    soon(&lab, "the second network, which is the first one now, has the pods", || says("10.99.1."));
    reconfigure(&snippet(&lab, VNI + 1), "");
    soon(&lab, "the first network has the pods again", || says("10.244.1."));
    assert!(after.exists());
}

#[test]
fn networks_that_nobody_configures_any_more_are_cleaned_up_at_the_next_start() {
    let mut lab = build(&pair());
    warm_up(&lab);
    write_state(&lab);
    add(&lab);
    soon(&lab, "the second network is there", || is_there(&lab));
    under_traffic(&mut lab, |lab| {
        lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
        remove(lab);
        // Of somebody else's pins.
        let foreign = "link add vxforeign type vxlan id 77 dstport 7777\n\
                       link set vxforeign alias \"vxlan-agent network foreign\"\n";
        lab.node(1).ip(foreign).expect("a device");
        assert!(lab.node(1).sh(&format!("ip link show {SECOND_DEVICE}")).is_ok(), "nobody has removed it");
        lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
        soon(lab, "the second network is gone", || is_gone(lab));
    });
    assert!(lab.node(1).sh("ip link show vxforeign").is_ok(), "what is not ours is there");
    assert_first_runs(&lab);
}

#[test]
fn of_networks_whose_subnets_overlap_the_first_one_runs() {
    let mut lab = build(&pair());
    warm_up(&lab);
    let mut overlapping = state(&lab);
    overlapping.nodes[1].subnets[0] = "10.244.2.128/25".into();
    overlapping.write(&state_path(&lab)).expect("a state file");
    under_traffic(&mut lab, |lab| {
        add(lab);
        let reason = || status(lab)["networks"][1]["plan_error"].as_str().unwrap_or_default().to_owned();
        soon(lab, "they collide", || {
            let words = ["'pods'", "'second'", "10.244.2.128/25", "10.244.2.0/24"];
            words.iter().all(|word| reason().contains(word))
        });
        assert!(lab.node(1).sh(&format!("ip link show {SECOND_DEVICE}")).is_err(), "nothing was made");
        write_state(lab);
        soon(lab, "the second network is there", || is_there(lab));
    });
    assert_second_runs(&lab);
    assert_first_runs(&lab);
}
