//! What somebody does to a running agent, and what becomes of it.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use vxlan_tests::lab::agent::NETWORK;
use vxlan_tests::lab::traffic::{Ping, ping};
use vxlan_tests::lab::{Lab, StateNode, UNDERLAY, agent, remove_pins, wait_until, xdp};

use super::{assert_answered, assert_took, build, counted, filters_on, pair, tcx_programs_on, warm_up};

const SOON: Duration = Duration::from_secs(5);

/// Waits until node 1 short-cuts what its pod sends, or does not any more.
#[track_caller]
fn wait_for_fast_path(lab: &Lab, what: &str, fast: bool) {
    let takes_it = || {
        let mut answered = false;
        let [one, _] = counted(lab, || {
            let report = ping(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
            answered = report.is_ok_and(|report| report.all_answered());
        });
        let took = one.packets("pod_egress", "encapsulated") >= 3;
        // The other node may still be at work.
        if fast { took && answered } else { !took }
    };
    wait_until(what, SOON, takes_it)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
}

#[test]
fn pins_that_somebody_removes_come_back_while_the_agent_runs() {
    let lab = build(&pair());
    warm_up(&lab);
    let pins = lab.agent(1).and_then(|agent| agent.pins()).expect("pins");
    let name = pins.with_file_name(NETWORK);
    for gone in [pins.clone(), pins.join("links"), pins.join("VTEPS"), pins.join("programs"), name] {
        if gone.is_dir() && !gone.is_symlink() {
            remove_pins(&gone).expect("removed");
        } else {
            std::fs::remove_file(&gone).expect("removed");
        }
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
        let there = || gone.exists() && lab.agent(1).and_then(|agent| agent.counters()).is_ok();
        wait_until("the pins are back", SOON, there)
            .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
            .expect("in time");
        wait_for_fast_path(&lab, "the fast path is back", true);
    }
}

#[test]
fn a_state_file_that_is_a_fifo_is_refused_and_the_agent_goes_on() {
    let mut lab = build(&pair());
    warm_up(&lab);
    let path = lab.state_path();
    let node = lab.node(1);
    std::fs::remove_file(&path).expect("removed");
    node.sh(&format!("mkfifo {}", path.display())).expect("a FIFO");
    let refused = || lab.agent(1).expect("an agent").log().contains("not a regular file");
    wait_until("it is refused", SOON, refused).expect("in time");
    node.sh("ip route del 10.244.2.0/24").expect("damage");
    let repaired = || node.sh("ip route").unwrap_or_default().contains("10.244.2.0/24");
    wait_until("the route is put back", SOON, repaired).expect("in time");
    let state = lab.state().without("n2");
    lab.write_state(state).expect("written");
    let gone = || !lab.node(1).sh("ip route").unwrap_or_default().contains("10.244.2.0/24");
    wait_until("the new state is taken", SOON, gone).expect("in time");
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
}

#[test]
fn a_way_of_attaching_that_is_changed_leaves_nothing_of_the_other() {
    let mut lab = build(&pair());
    warm_up(&lab);
    let ours = if xdp().is_some() { 2 } else { 1 };
    let tcx = tcx_programs_on(lab.node(1), UNDERLAY) > 0;
    for (from, to, links) in
        [("name = \"n1\"\n", "name = \"n1\"\nattach = \"clsact\"\n", 0), ("attach = \"clsact\"\n", "", ours)]
    {
        lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
        lab.agent(1).and_then(|agent| agent.reconfigure(from, to)).expect("configured");
        lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
        wait_for_fast_path(&lab, "it is fast", true);
        if tcx {
            let on = (tcx_programs_on(lab.node(1), UNDERLAY), filters_on(lab.node(1), UNDERLAY));
            assert_eq!(on, (links, ours - links), "links and filters");
        }
    }
}

#[test]
fn a_clsact_filter_that_somebody_removes_is_put_back() {
    let mut lab = build(&pair());
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    lab.agent(1)
        .and_then(|agent| agent.reconfigure("name = \"n1\"\n", "name = \"n1\"\nattach = \"clsact\"\n"))
        .expect("configured");
    lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
    warm_up(&lab);
    let veth = &lab.pod(1, 1).host_veth;
    for damage in [format!("tc filter del dev {veth} ingress"), format!("tc qdisc del dev {veth} clsact")] {
        lab.node(1).sh(&damage).expect("damage");
        wait_until(&format!("`{damage}` is repaired"), SOON, || filters_on(lab.node(1), veth) == 1)
            .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
            .expect("a repair");
        wait_for_fast_path(&lab, "it is fast again", true);
    }
}

#[test]
fn a_node_that_the_kernel_has_another_route_to_is_not_short_cut() {
    let mut lab = build(&pair());
    warm_up(&lab);
    lab.agent_mut(1).and_then(|agent| agent.stop()).expect("a stop");
    let node = lab.node(1);
    node.ip("route del 10.244.2.0/24\nroute add unreachable 10.244.2.0/24\n").expect("another route");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
    wait_for_fast_path(&lab, "the kernel's route counts", false);
    let report =
        ping(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() }).expect("a socket");
    assert!(report.rtts.is_empty(), "as the kernel has it: {} answers", report.rtts.len());
    lab.node(1).sh("ip route del unreachable 10.244.2.0/24").expect("removed");
    wait_for_fast_path(&lab, "the route is ours again", true);
}

/// Another agent of `node`, for another network.
struct SecondAgent(Child);

impl SecondAgent {
    fn start(lab: &Lab) -> Self {
        let dir = lab.run_dir();
        let text =
            std::fs::read_to_string(lab.agent(1).expect("an agent").config()).expect("a configuration");
        let others = [
            ("/n1\"", "/n1-second\""),
            ("state.toml", "second.toml"),
            ("name = \"pods\"", "name = \"second\""),
            ("port = ", "port = 1"),
            ("device = \"", "device = \"x"),
        ];
        let text = others.into_iter().fold(text, |text, (from, to)| text.replace(from, to));
        let state = lab.state().to_toml().replace("10.244.", "10.99.").replace("fd00:244:", "fd00:99:");
        std::fs::write(dir.join("second.toml"), state).expect("written");
        std::fs::write(dir.join("second-agent.toml"), text).expect("written");
        let log = std::fs::File::create(dir.join("second.log")).expect("a log");
        let program = agent::agent_binary().expect("an agent");
        let child = lab.node(1).run(|| {
            let config = dir.join("second-agent.toml");
            let words = [std::ffi::OsStr::new("run"), "--config".as_ref(), config.as_os_str()];
            Command::new(program).args(words).stdin(Stdio::null()).stderr(log).spawn()
        });
        Self(child.expect("a start"))
    }
}

impl Drop for SecondAgent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn agents_of_two_networks_leave_each_others_head_room_alone() {
    let lab = build(&pair());
    warm_up(&lab);
    let port = || {
        let links = lab.node(1).sh("ip -o link show type vxlan").unwrap_or_default();
        let port = links.lines().find(|line| line.contains(": vxr"));
        port.and_then(|line| line.split_once("<")).map(|(name, _)| name.to_owned())
    };
    wait_until("the bridge has head-room", SOON, || port().is_some()).expect("in time");
    let before = port();
    let second = SecondAgent::start(&lab);
    let runs =
        || std::fs::read_to_string(lab.run_dir().join("second.log")).unwrap_or_default().contains("running");
    wait_until("the second agent runs", SOON, runs).expect("in time");
    // Both hear of the new one before it has an alias.
    let name = before.as_deref().and_then(|port| port.split([' ', ':']).find(|word| word.starts_with("vxr")));
    lab.node(1).sh(&format!("ip link del {}", name.expect("a name"))).expect("damage");
    wait_until("the bridge has head-room again", SOON, || port().is_some()).expect("in time");
    std::thread::sleep(Duration::from_millis(500)); // for a war to begin, not synchronisation
    let before = port();
    // Notifications that would make one of them remove it come with every change of a link.
    lab.node(1).ip("link set cni0 alias a\nlink set cni0 alias b\n").expect("changes");
    std::thread::sleep(Duration::from_millis(500)); // time to do harm, not synchronisation
    assert_eq!(port(), before, "the port is the one that it was");
    drop(second);
    let [one, _] = counted(&lab, || {
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 5, ..Ping::default() });
    });
    assert_took(&one, "pod_egress", "encapsulated", 5);
}

#[test]
fn an_underlay_too_small_for_ipv6_carries_ipv4() {
    let mut lab = build(&pair());
    let mut state = lab.state().clone();
    state.nodes.iter_mut().for_each(|node| node.subnets.truncate(1));
    lab.write_state(state).expect("written");
    let device = vxlan_tests::lab::DEVICE;
    for (mtu, inner, modes) in [(1280, 1230, 0), (1400, 1350, 1)] {
        for n in [1, 2] {
            lab.node(n).sh(&format!("ip link set {UNDERLAY} mtu {mtu}")).expect("an MTU");
            if modes == 0 {
                lab.node(n).sh(&format!("ip link del {device}")).expect("damage");
            }
        }
        let link = || lab.node(1).sh(&format!("ip -d link show {device}")).unwrap_or_default();
        let set = || {
            let link = link();
            let made_up = link.matches("addrgenmode none").count();
            link.contains(&format!("mtu {inner}")) && link.contains(",UP") && made_up == modes
        };
        wait_until(&format!("the device is up with MTU {inner}"), SOON, set)
            .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
            .unwrap_or_else(|_| panic!("not in time: {}", link()));
        wait_for_fast_path(&lab, "it is fast", true);
        assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
    }
}

#[test]
fn tables_grow_with_the_cluster_while_the_agent_runs() {
    let mut lab = build(&pair());
    warm_up(&lab);
    let mut state = lab.state().clone();
    state.nodes.extend((0..8_200_u16).map(|n| StateNode {
        name: format!("more-{n}"),
        vtep: IpAddr::from([198, 18, (n >> 8) as u8, n as u8]),
        mac: None,
        subnets: vec![],
        stations: vec![],
    }));
    lab.write_state(state).expect("written");
    let pins = lab.agent(1).and_then(|agent| agent.pins()).expect("pins");
    let places = || aya::maps::MapInfo::from_pin(pins.join("VTEPS")).map_or(0, |map| map.max_entries());
    wait_until("there is room for them", SOON * 4, || places() == 32_768)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("in time");
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping { count: 3, ..Ping::default() });
    wait_for_fast_path(&lab, "it is fast", true);
}
