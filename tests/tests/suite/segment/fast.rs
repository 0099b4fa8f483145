//! Which frames take the short cut, and which never do: counted, and the kernel's bridge is the referee.

use std::io::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use vxlan_agent::datapath::KernelFeatures;
use vxlan_tests::lab::segment::{Card, SegmentLab};
use vxlan_tests::lab::traffic::{Ping, StreamReport, UdpStream, ping, tcp_bulk};
use vxlan_tests::lab::{AgentOptions, Count, Counters, Family, Overlay, PORT, SegmentSpec, wait_until, xdp};

use super::{BLUE, RED, assert_all_reach_each_other, assert_answered, build, direct, two_tenants, verified};

const RATE: u32 = 2000;
/// Of frames between stations that know each other, about one a second is the kernel's.
const MOST: f64 = 0.9;
pub(super) const SOON: Duration = Duration::from_secs(5);

fn counters(lab: &SegmentLab, n: u8) -> Counters {
    lab.agent(n).and_then(|agent| agent.counters()).expect("counters")
}

/// What both nodes count while `work` goes on.
pub(super) fn counted<T>(lab: &SegmentLab, work: impl FnOnce() -> T) -> ([Counters; 2], T) {
    let before = [1, 2].map(|n| counters(lab, n));
    let result = work();
    let [one, two] = [1, 2].map(|n| counters(lab, n));
    ([&one - &before[0], &two - &before[1]], result)
}

/// A stream from the first host to another of the tenant.
fn stream(lab: &SegmentLab, (n, h): (u8, u8), family: Family, length: Duration) -> StreamReport {
    let (from, to) = (lab.host(1, RED, 1), lab.host(n, RED, h));
    let stream = UdpStream::start(from, to, to.address(family), RATE, 200).expect("a stream");
    std::thread::sleep(length); // what is measured, not synchronisation
    let report = stream.stop().expect("a report");
    assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    report
}

/// Waits until the agents know all hosts, of which packets tell.
pub(super) fn warm_up(lab: &SegmentLab) {
    assert_all_reach_each_other(lab, RED);
    let hosts: Vec<String> = lab.hosts(RED).map(|host| mac_text(host.mac)).collect();
    for n in [1, 2] {
        let knows_all = || {
            let stations = lab.agent(n).and_then(|agent| agent.cli(&["dump", "stations"]));
            stations.is_ok_and(|text| hosts.iter().all(|mac| text.contains(mac)))
        };
        wait_until("the agent knows all stations", SOON, knows_all).expect("in time");
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[track_caller]
fn assert_most(counters: &Counters, hook: &str, reason: &str, sent: u64) {
    let packets = counters.packets(hook, reason);
    assert!(packets as f64 >= sent as f64 * MOST, "{packets} of {sent} were {reason} at {hook}: {counters}");
}

/// Where frames of `inner` packets come out of a tunnel over `underlay`, and what is counted there.
fn arrival(underlay: Family, inner: Family) -> (&'static str, &'static str) {
    if xdp().is_some() {
        return ("underlay_xdp", "decapsulated");
    }
    if underlay == inner || KernelFeatures::probe().mixed_decap {
        return ("underlay_ingress", "decapsulated");
    }
    ("tunnel_ingress", "delivered")
}

/// What programs have taken out of its tunnel.
pub(super) fn taken_out(counters: &Counters) -> Count {
    let [tc, xdp] = ["underlay_ingress", "underlay_xdp"].map(|hook| counters.get(hook, "decapsulated"));
    Count { packets: tc.packets + xdp.packets, bytes: tc.bytes + xdp.bytes }
}

pub(super) fn is_fast(lab: &SegmentLab) -> bool {
    let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
    let ([one, two], report) =
        counted(lab, || ping(from, to.ip4, Ping { count: 10, ..Ping::default() }).expect("a socket"));
    report.all_answered() && one.packets("port_ingress", "encapsulated") >= 8 && taken_out(&two).packets >= 8
}

#[test]
fn frames_between_known_stations_take_the_short_cut() {
    for overlay in [direct, verified] {
        for (underlay, card) in [(Family::V4, Card::Veth), (Family::V6, Card::Veth), (Family::V4, Card::Tap)]
        {
            let lab = build(&SegmentSpec::pair(overlay(), overlay()).underlay(underlay).card(card).hosts(2));
            warm_up(&lab);
            for family in [Family::V4, Family::V6] {
                let ([one, two], report) = counted(&lab, || stream(&lab, (2, 1), family, SOON / 10));
                assert_most(&one, "port_ingress", "encapsulated", report.sent);
                let (hook, reason) = arrival(underlay, family);
                assert_most(&two, hook, reason, report.sent);
                let ([one, two], report) = counted(&lab, || stream(&lab, (1, 2), family, SOON / 10));
                assert_most(&one, "port_ingress", "switched", report.sent);
                assert_eq!(taken_out(&two).packets, 0, "{two}");
            }
        }
    }
}

/// Also between tenants that have the same MACs, whose packets must not be merged.
#[test]
fn xdp_takes_frames_out_of_the_tunnel_before_segments_are_merged() {
    for options in [AgentOptions::default(), AgentOptions::verified()] {
        let agent = || Overlay::Agent(AgentOptions { node: "xdp = \"native\"".into(), ..options.clone() });
        let lab = build(&SegmentSpec::pair(agent(), agent()).tenants(two_tenants(PORT)));
        warm_up(&lab);
        assert_all_reach_each_other(&lab, BLUE);
        let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        for ip in to.ips() {
            let ([_, two], moved) = counted(&lab, || tcp_bulk(from, to, ip, 8 << 20));
            moved.expect("a transfer");
            let stripped = two.get("underlay_xdp", "decapsulated");
            assert!(stripped.bytes > 7 << 20, "{two}");
            assert!(two.get("stripped_ingress", "delivered").bytes > 7 << 20, "{two}");
            assert_eq!(two.packets("stripped_ingress", "handed_over"), 0, "{two}");
        }
    }
}

#[test]
fn aggregates_stay_whole() {
    for card in [Card::Veth, Card::Tap] {
        let lab = build(&SegmentSpec::pair(direct(), direct()).card(card));
        warm_up(&lab);
        let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
        for ip in to.ips() {
            let ([one, two], moved) = counted(&lab, || tcp_bulk(from, to, ip, 32 << 20));
            moved.expect("a transfer");
            let sent = one.get("port_ingress", "encapsulated");
            assert!(sent.bytes > 30 << 20, "{one}");
            if card == Card::Veth {
                assert!(sent.bytes / sent.packets > 10_000, "aggregates were cut: {one}");
            }
            let behind = two.get("tunnel_ingress", "delivered").bytes;
            assert!(behind + taken_out(&two).bytes > 25 << 20, "{two}");
        }
    }
}

#[test]
fn stations_that_talk_do_not_age_out() {
    let lab = build(&SegmentSpec::pair(direct(), direct()).hosts(2));
    warm_up(&lab);
    let bridge = lab.tenant(RED).bridge();
    for n in [1, 2] {
        lab.node(n).ip(&format!("link set {bridge} type bridge ageing_time 300\n")).expect("3 s");
    }
    let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
    let talk = UdpStream::start(from, to, to.ip4.into(), RATE, 200).expect("a stream");
    let answers = UdpStream::start(to, from, from.ip4.into(), RATE, 200).expect("a stream");
    let known = |n: u8| {
        let fdb = lab.node(n).sh(&format!("bridge fdb show br {bridge}")).expect("entries");
        [from, to].iter().all(|host| fdb.contains(&mac_text(host.mac)))
    };
    let end = std::time::Instant::now() + Duration::from_secs(7);
    while std::time::Instant::now() < end {
        for n in [1, 2] {
            assert!(known(n), "a bridge has forgotten who talks, node {n}");
        }
        std::thread::sleep(Duration::from_millis(100)); // between two looks
    }
    for stream in [talk, answers] {
        let report = stream.stop().expect("a report");
        assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    }
}

#[test]
fn a_filter_on_the_bridge_is_obeyed() {
    let lab = build(&SegmentSpec::pair(verified(), verified()));
    warm_up(&lab);
    wait_until("it is fast", SOON, || is_fast(&lab)).expect("in time");
    let (from, to) = (lab.host(1, RED, 1), lab.host(2, RED, 1));
    let node = lab.node(1);
    for command in [
        "add table bridge lab",
        "add chain bridge lab forward { type filter hook forward priority 0 ; }",
        // ICMP by its number, as a list of names may be missing.
        "add rule bridge lab forward ip protocol 1 drop",
    ] {
        node.sh(&format!("nft {command}")).expect("a rule");
    }
    let filtered = || {
        let once = Ping { timeout: Duration::from_millis(100), ..Ping::default() };
        ping(from, to.ip4, once).is_ok_and(|report| report.rtts.is_empty())
    };
    wait_until("the rule is obeyed", SOON, filtered).expect("in time");
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    assert!(status["networks"][0]["left"].to_string().contains("lab"), "{status}");
    node.sh("nft delete table bridge lab").expect("removed");
    wait_until("it is fast again", SOON, || is_fast(&lab)).expect("in time");
}

#[test]
fn what_bridges_and_ports_are_told_to_do_is_done() {
    let lab = build(&SegmentSpec::pair(direct(), direct()).hosts(2));
    warm_up(&lab);
    let (one, two) = (lab.host(1, RED, 1), lab.host(1, RED, 2));
    let bridge = lab.tenant(RED).bridge();
    let reaches = |to: IpAddr| {
        ping(one, to, Ping { timeout: Duration::from_millis(100), ..Ping::default() })
            .is_ok_and(|report| report.all_answered())
    };
    let ports = [&one.port, &two.port];
    let set = |what: &str| {
        ports.iter().for_each(|port| {
            lab.node(1).sh(&format!("bridge link set dev {port} {what}")).expect("a port");
        });
    };
    // Isolated ports reach others, but not each other.
    set("isolated on");
    wait_until("they are kept apart", SOON, || !reaches(two.ip4.into())).expect("in time");
    assert_answered(one, lab.host(2, RED, 1).ip4, Ping::default());
    let status = lab.agent(1).and_then(|agent| agent.json(&["status"])).expect("a status");
    assert!(status["networks"][0]["left"].to_string().contains("isolated"), "{status}");
    set("isolated off");
    wait_until("they are together", SOON, || reaches(two.ip4.into())).expect("in time");
    // A port that leaves the bridge is reached no more.
    lab.node(1).ip(&format!("link set {} nomaster\n", one.port)).expect("out of the bridge");
    wait_until("it is reached no more", SOON, || !reaches(two.ip4.into())).expect("in time");
    lab.node(1).ip(&format!("link set {} master {bridge}\n", one.port)).expect("a port again");
    wait_until("it is reached", SOON, || reaches(two.ip4.into())).expect("in time");
    // VLANs of ports, where the kernel knows them (`CONFIG_BRIDGE_VLAN_FILTERING`).
    if lab.node(1).ip(&format!("link set {bridge} type bridge vlan_filtering 1\n")).is_ok() {
        lab.node(1).sh(&format!("bridge vlan del dev {} vid 1", one.port)).expect("removed");
        wait_until("it is in no VLAN", SOON, || !reaches(two.ip4.into())).expect("in time");
        lab.node(1).sh(&format!("bridge vlan add dev {} vid 1 pvid untagged", one.port)).expect("added");
        lab.node(1).ip(&format!("link set {bridge} type bridge vlan_filtering 0\n")).expect("no filtering");
    } else {
        writeln!(std::io::stderr(), "SKIPPED: this kernel's bridges filter no VLANs")
            .expect("standard error");
    }
    wait_until("they are together", SOON, || reaches(two.ip4.into())).expect("in time");
    wait_until("it is fast again", SOON, || is_fast(&lab)).expect("in time");
}

#[test]
fn switching_killing_and_restarting_lose_nothing() {
    let mut lab = build(&SegmentSpec::pair(verified(), direct()));
    warm_up(&lab);
    let streams = [(1, 2), (2, 1)].map(|(from, to)| {
        let (from, to) = (lab.host(from, RED, 1), lab.host(to, RED, 1));
        UdpStream::start(from, to, to.ip4.into(), RATE, 200).expect("a stream")
    });
    for n in [1, 2] {
        for to in ["off", "on"] {
            lab.agent(n).and_then(|agent| agent.cli(&["fastpath", to])).expect("switched");
            let ([one, two], ()) = counted(&lab, || std::thread::sleep(Duration::from_millis(100)));
            let counted = if n == 1 { one } else { two };
            let fast = counted.packets("port_ingress", "encapsulated");
            assert_eq!(fast > 100, to == "on", "{counted}");
        }
        lab.agent_mut(n).and_then(|agent| agent.kill9()).expect("killed");
        let ([one, two], ()) = counted(&lab, || std::thread::sleep(Duration::from_millis(100)));
        assert!([one, two].iter().all(|node| node.packets("port_ingress", "encapsulated") > 100));
        lab.agent_mut(n).and_then(|agent| agent.start()).expect("started");
    }
    for stream in streams {
        let report = stream.stop().expect("a report");
        assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    }
}

#[test]
fn a_mac_that_flaps_between_ports_fares_as_on_the_kernels_bridge() {
    for overlay in [Overlay::KernelVxlan, direct()] {
        eprintln!("{overlay:?}");
        let lab = build(&SegmentSpec::pair(overlay.clone(), overlay).hosts(2));
        assert_all_reach_each_other(&lab, RED);
        // The second host of node 1 gets the first one's MAC and speaks up now and then.
        let (first, second, other) = (lab.host(1, RED, 1), lab.host(1, RED, 2), lab.host(2, RED, 1));
        second.ip(&format!("link set eth0 address {}\n", mac_text(first.mac))).expect("a MAC");
        for _ in 0..20 {
            for host in [first, second] {
                // Whoever spoke last has the MAC, so an answer comes back, unless the other one has just spoken by itself.
                let ask = || ping(host, other.ip4, Ping::default()).is_ok_and(|report| report.all_answered());
                wait_until("an answer", SOON, ask).expect("in time");
            }
        }
    }
}
