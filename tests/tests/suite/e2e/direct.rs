//! Nodes on the same link are reached without a tunnel, where that is asked for, and the others through it.

use std::net::Ipv4Addr;
use std::time::Duration;

use vxlan_tests::lab::addr::{underlay, underlay4, underlay6};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, tcp_bulk};
use vxlan_tests::lab::{
    AgentOptions, Counters, DEVICE, Family, Lab, LabSpec, Netns, Overlay, PORT, UNDERLAY, wait_until,
};

use super::change::under_traffic_over;
use super::{assert_answered, assert_nothing_dropped, assert_took, build, counters, warm_up};

const ASKED_FOR: &str = "direct_routing = true";
/// Well above what a change takes, and below the next resync.
const FOLLOWED: Duration = Duration::from_secs(5);
/// Echoes at a time.
const ECHOES: u16 = 10;

fn options(fastpath: &str) -> AgentOptions {
    let sections = "[pods]\nnetworks = [\"10.244.0.0/16\"]\nmasquerade = true\n".to_owned();
    AgentOptions { fastpath: fastpath.into(), network: ASKED_FOR.into(), sections, ..AgentOptions::default() }
}

fn asked_for(fastpath: &str) -> Overlay {
    Overlay::Agent(options(fastpath))
}

/// What the nodes' link is, which is a router, too, for those that have routes by way of it.
fn router(lab: &Lab) -> Netns {
    let fabric = Netns::open(&format!("{}-fabric", lab.prefix())).expect("the fabric");
    fabric
        .ip("addr add 192.0.2.254/24 dev br0\naddr add 2001:db8::fe/64 dev br0 nodad\n")
        .expect("addresses");
    let settings = ["all", "br0"].map(|name| format!("ipv4/conf/{name}/send_redirects"));
    fabric.sysctl(&settings.each_ref().map(|name| (name.as_str(), "0"))).expect("no redirects");
    fabric.sysctl(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")]).expect("forwarding");
    fabric
}

/// Puts nodes `a` and `b` on either side of the router, or back on one link.
fn part(lab: &Lab, family: Family, a: u8, b: u8, verb: &str) {
    let (length, router) = match family {
        Family::V4 => (32, "192.0.2.254"),
        Family::V6 => (128, "2001:db8::fe"),
    };
    for (at, to) in [(a, b), (b, a)] {
        let to = underlay(family, to);
        lab.node(at).ip(&format!("route {verb} {to}/{length} via {router}\n")).expect("a route");
    }
}

/// The interface that the kernel of node `at` sends packets for the pods of node `to` out of, if any.
fn way(lab: &Lab, family: Family, at: u8, to: u8) -> String {
    let to = lab.pod(to, 1).ip(family);
    let route = lab.node(at).sh(&format!("ip -o route get {to}")).unwrap_or_default();
    route.split_whitespace().skip_while(|word| *word != "dev").nth(1).unwrap_or_default().to_owned()
}

#[track_caller]
fn await_way_over(family: Family, lab: &Lab, at: u8, to: u8, interface: &str) {
    let name = format!("node {at} reaches node {to} by {interface}");
    wait_until(&name, FOLLOWED, || way(lab, family, at, to) == interface)
        .inspect_err(|_| lab.agent(at).expect("an agent").print_log())
        .expect("a route");
}

#[track_caller]
fn await_way(lab: &Lab, at: u8, to: u8, interface: &str) {
    await_way_over(Family::V4, lab, at, to, interface);
}

/// What was on the underlay of a node while there was traffic, and what its agent counted.
struct Seen {
    node: u8,
    frames: Vec<Frame>,
    counters: Counters,
}

impl Seen {
    fn of(lab: &Lab, n: u8, traffic: impl FnOnce()) -> Self {
        let (capture, before) = (Capture::start(lab.node(n), UNDERLAY).expect("a capture"), counters(lab, n));
        traffic();
        Self { node: n, frames: capture.pending().expect("frames"), counters: &counters(lab, n) - &before }
    }

    /// Packets in a tunnel that the node has sent: of those that it gets, XDP lets nobody see any.
    fn tunnelled(&self) -> usize {
        let (v4, v6) = (underlay4(self.node).octets(), underlay6(self.node).octets());
        let own =
            |frame: &&Frame| frame.0.get(26..30) == Some(&v4[..]) || frame.0.get(22..38) == Some(&v6[..]);
        let tunnels = |frame: &&Frame| frame.udp_ports().is_some_and(|(_, to)| to == PORT);
        self.frames.iter().filter(own).filter(tunnels).count()
    }

    /// Plain packets between these two.
    fn plain(&self, from: Ipv4Addr, to: Ipv4Addr) -> usize {
        let addresses = [from.octets(), to.octets()].concat();
        let between = |frame: &&Frame| frame.0.get(26..34) == Some(&addresses[..]);
        self.frames.iter().filter(between).count()
    }
}

fn echoes(lab: &Lab, from: u8, to: u8) {
    assert_answered(lab.pod(from, 1), lab.pod(to, 1).ip4, Ping { count: ECHOES, ..Ping::default() });
}

#[track_caller]
fn assert_without_tunnel(lab: &Lab, from: u8, to: u8) {
    let seen = Seen::of(lab, from, || echoes(lab, from, to));
    let (a, b) = (lab.pod(from, 1).ip4, lab.pod(to, 1).ip4);
    assert_eq!(seen.tunnelled(), 0, "packets of a tunnel from {from} to {to}");
    // Nobody has translated their addresses.
    assert_eq!([seen.plain(a, b), seen.plain(b, a)], [usize::from(ECHOES); 2], "{from} to {to}");
    assert_took(&seen.counters, "pod_egress", "direct_route", ECHOES.into());
    assert_eq!(seen.counters.total("encapsulated"), 0, "{}", seen.counters);
    assert_nothing_dropped(&seen.counters);
}

#[track_caller]
fn assert_through_tunnel(lab: &Lab, from: u8, to: u8) {
    let seen = Seen::of(lab, from, || echoes(lab, from, to));
    assert_eq!(seen.tunnelled(), usize::from(ECHOES), "from {from} to {to}");
    assert!(seen.counters.total("encapsulated") >= ECHOES.into(), "{}", seen.counters);
    assert_eq!(seen.counters.total("direct_route"), 0, "{}", seen.counters);
    assert_nothing_dropped(&seen.counters);
}

#[test]
fn nodes_on_one_link_are_reached_without_a_tunnel_and_those_behind_a_router_through_it() {
    for mode in ["direct", "verified"] {
        let lab = build(&LabSpec::of(vec![asked_for(mode), asked_for(mode), asked_for(mode)]));
        let _router = router(&lab);
        part(&lab, Family::V4, 1, 3, "add");
        part(&lab, Family::V4, 2, 3, "add");
        for (at, to, by) in [(1, 2, UNDERLAY), (2, 1, UNDERLAY), (1, 3, DEVICE), (3, 1, DEVICE)] {
            await_way(&lab, at, to, by);
        }
        warm_up(&lab);
        assert_without_tunnel(&lab, 1, 2);
        assert_without_tunnel(&lab, 2, 1);
        assert_through_tunnel(&lab, 1, 3);
        assert_through_tunnel(&lab, 3, 1);
        // Over IPv4 there is no way for IPv6 but the tunnel.
        let ip6 = lab.pod(2, 1).ip6;
        let seen = Seen::of(&lab, 1, || {
            assert_answered(lab.pod(1, 1), ip6, Ping { count: ECHOES, ..Ping::default() });
        });
        assert_eq!(seen.tunnelled(), usize::from(ECHOES), "{}", seen.counters);
        let seen = Seen::of(&lab, 1, || {
            tcp_bulk(lab.pod(1, 1), lab.pod(2, 1), lab.pod(2, 1).ip4.into(), 8 << 20).expect("a transfer");
        });
        assert_eq!(seen.tunnelled(), 0, "{}", seen.counters);
        assert_told(&lab);
    }
}

/// What node 1 says of nodes 2, which is on its link, and 3, which is not.
fn assert_told(lab: &Lab) {
    let agent = lab.agent(1).expect("an agent");
    let status = agent.json(&["status"]).expect("a status");
    let nodes = status["networks"][0]["nodes"].as_array().expect("nodes");
    let direct: Vec<_> = nodes.iter().map(|node| node["direct"].as_bool()).collect();
    assert_eq!(direct, [Some(true), Some(false)], "{status:#}");
    let text = agent.cli(&["status"]).expect("a status");
    assert!(text.contains("on the same link, without a tunnel: n2\n"), "{text}");
    let (_, report) = agent.judged(&[], &["doctor"]).expect("a report");
    assert_eq!(report["findings"].as_array().map(Vec::len), Some(0), "{report:#}");
    let (from, to) = (lab.pod(1, 1).ip4.to_string(), lab.pod(2, 1).ip4.to_string());
    let traced = agent.json(&["trace", &from, &to]).expect("an answer");
    assert_eq!(traced["ended"], "sent", "{traced:#}");
    assert!(traced["summary"].as_str().is_some_and(|text| text.contains("without a tunnel")), "{traced:#}");
}

#[test]
fn ipv6_over_ipv6_goes_without_a_tunnel_too() {
    let lab = build(&LabSpec::pair(asked_for("verified"), asked_for("verified")).underlay(Family::V6));
    warm_up(&lab);
    let ip6 = lab.pod(2, 1).ip6;
    let seen = Seen::of(&lab, 1, || {
        assert_answered(lab.pod(1, 1), ip6, Ping { count: ECHOES, ..Ping::default() });
    });
    assert_eq!(seen.tunnelled(), 0, "{}", seen.counters);
    assert_took(&seen.counters, "pod_egress", "direct_route", ECHOES.into());
    let seen = Seen::of(&lab, 1, || echoes(&lab, 1, 2));
    assert_eq!(seen.tunnelled(), usize::from(ECHOES), "{}", seen.counters);
}

#[test]
fn a_node_that_does_not_know_of_it_is_heard_through_the_tunnel_and_answered_without() {
    for mode in ["direct", "verified"] {
        let ignorant = AgentOptions { fastpath: mode.into(), ..AgentOptions::default() };
        let mut lab = build(&LabSpec::pair(asked_for(mode), Overlay::Agent(ignorant)));
        // A strict filter would expect on the device what leaves by it.
        lab.node(1).sysctl(&[("ipv4/conf/all/rp_filter", "1")]).expect("a strict filter");
        lab.agent_mut(1).and_then(|agent| agent.restart()).expect("a restart");
        warm_up(&lab);
        for (from, to, tunnelled) in [(1, 2, 0), (2, 1, ECHOES)] {
            let seen = Seen::of(&lab, from, || echoes(&lab, from, to));
            let (a, b) = (lab.pod(1, 1).ip4, lab.pod(2, 1).ip4);
            assert_eq!(seen.tunnelled(), usize::from(tunnelled), "{mode}, from {from}: {}", seen.counters);
            assert_eq!(seen.plain(a, b), usize::from(ECHOES), "{mode}, from {from}: {}", seen.counters);
        }
        let seen = Seen::of(&lab, 1, || echoes(&lab, 1, 2));
        assert_took(&seen.counters, "pod_egress", "direct_route", ECHOES.into());
        assert_nothing_dropped(&seen.counters);
    }
}

#[test]
fn a_node_that_moves_behind_a_router_and_back_loses_nothing() {
    for (mode, family) in [("direct", Family::V4), ("verified", Family::V4), ("verified", Family::V6)] {
        // Of three, for there to be something between them that can be a router.
        let mut lab = build(&LabSpec::of(vec![asked_for(mode); 3]).underlay(family));
        let _router = router(&lab);
        warm_up(&lab);
        let await_ways = |lab: &Lab, interface: &str| {
            await_way_over(family, lab, 1, 2, interface);
            await_way_over(family, lab, 2, 1, interface);
            std::thread::sleep(Duration::from_millis(100)); // traffic on this way
        };
        under_traffic_over(family, &mut lab, |lab| {
            for _ in 0..3 {
                part(lab, family, 1, 2, "add");
                await_ways(lab, DEVICE);
                part(lab, family, 1, 2, "del");
                await_ways(lab, UNDERLAY);
            }
            let route = past(lab);
            lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
            lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
            assert_eq!(past(lab), route, "an agent that starts changes nothing");
        });
        if family == Family::V4 {
            assert_without_tunnel(&lab, 1, 2);
        }
    }
}

/// Routes of ours past the tunnel at node 1.
fn past(lab: &Lab) -> String {
    let show =
        |ip: &str| lab.node(1).sh(&format!("{ip} route show proto 86 dev {UNDERLAY}")).expect("routes");
    show("ip") + &show("ip -6")
}

#[track_caller]
fn await_none(lab: &Lab, name: &str) {
    let gone = wait_until(name, FOLLOWED, || past(lab).is_empty());
    gone.inspect_err(|_| eprintln!("{}", past(lab))).expect("no routes");
}

#[test]
fn routes_past_the_tunnel_go_with_the_node_the_setting_and_the_network() {
    let mut lab = build(&LabSpec::pair(asked_for("direct"), asked_for("direct")));
    warm_up(&lab);
    let whole = lab.state().clone();
    assert!(past(&lab).contains("10.244.2.0/24 via 192.0.2.2"), "{}", past(&lab));
    lab.write_state(whole.without("n2")).expect("a state file");
    await_none(&lab, "the node is gone");
    lab.write_state(whole.clone()).expect("a state file");
    await_way(&lab, 1, 2, UNDERLAY);
    // One that goes while nobody looks.
    lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
    lab.write_state(whole.without("n2")).expect("a state file");
    assert!(!past(&lab).is_empty(), "the overlay goes on without an agent");
    lab.agent_mut(1).and_then(|agent| agent.spawn()).expect("a start");
    await_none(&lab, "the node has gone meanwhile");
    lab.write_state(whole).expect("a state file");
    await_way(&lab, 1, 2, UNDERLAY);
    // What somebody takes away comes back: the neighbour that says whose the route is, the route.
    lab.node(1).ip(&format!("neigh del 10.244.2.0 dev {DEVICE}\n")).expect("no neighbour");
    let back =
        || lab.node(1).sh(&format!("ip neigh show dev {DEVICE}")).is_ok_and(|n| n.contains("10.244.2.0 "));
    wait_until("the neighbour is back", FOLLOWED, back).expect("a neighbour");
    lab.node(1).ip("route del 10.244.2.0/24\n").expect("no route");
    await_way(&lab, 1, 2, UNDERLAY);
    // The kernel forgets routes by an interface that is down, and says nothing of them.
    lab.node(1).ip(&format!("link set {UNDERLAY} down\n")).expect("down");
    await_none(&lab, "the link is down");
    lab.node(1).ip(&format!("link set {UNDERLAY} up\n")).expect("up");
    wait_until("the route is back", FOLLOWED, || past(&lab).contains("10.244.2.0/24")).expect("a route");
    echoes(&lab, 1, 2);
    assert!(!lab.agent(1).expect("an agent").log().contains("File exists"));
    lab.agent(1).and_then(|agent| agent.reconfigure(ASKED_FOR, "")).expect("a configuration");
    await_way(&lab, 1, 2, DEVICE);
    assert_eq!(past(&lab), "");
}

#[test]
fn detach_removes_routes_past_the_tunnel() {
    let lab = build(&LabSpec::pair(asked_for("direct"), asked_for("direct")));
    assert!(!past(&lab).is_empty());
    lab.agent(1).and_then(|agent| agent.cli(&["detach"])).expect("detached");
    assert_eq!(past(&lab), "");
    assert_eq!(lab.node(1).sh("ip route show proto 86").expect("routes"), "");
}
