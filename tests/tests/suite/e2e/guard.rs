//! Who may send.

use std::sync::Arc;
use std::time::Duration;

use etherparse::PacketBuilder;
use vxlan_agent::net::Vni;
use vxlan_agent::node::{self, Change, Guard, TunnelTable};
use vxlan_tests::lab::addr::{inner4, underlay4, vtep_mac};
use vxlan_tests::lab::traffic::{Capture, Frame, Ping, inject, mac_of};
use vxlan_tests::lab::{AgentOptions, Lab, LabSpec, Overlay, PORT, UNDERLAY, VNI, wait_until};

use super::{assert_answered, assert_took, build, counted, counters, pair, underlay_hook, warm_up};

/// A datagram for pod 1 of node 1 that claims to come from `inner` through the VTEP `outer`.
pub(super) fn forged(lab: &Lab, outer: std::net::Ipv4Addr, inner: std::net::Ipv4Addr, vni: u32) -> Vec<u8> {
    let mac = |text: String| {
        let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).expect("hex")).collect();
        <[u8; 6]>::try_from(bytes).expect("six bytes")
    };
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(vtep_mac(2)), mac(vtep_mac(1)))
        .ipv4(inner.octets(), lab.pod(1, 1).ip4.octets(), 64)
        .udp(7777, 7777)
        .write(&mut packet, b"forged")
        .expect("a packet");
    let [_, a, b, c] = vni.to_be_bytes();
    let vxlan = [&[8, 0, 0, 0, a, b, c, 0], packet.as_slice()].concat();
    let node = |n| mac_of(lab.node(n), UNDERLAY).expect("a MAC");
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(node(2), node(1))
        .ipv4(outer.octets(), underlay4(1).octets(), 64)
        .udp(40_000, PORT)
        .write(&mut frame, &vxlan)
        .expect("a packet");
    frame
}

/// The MAC of pod 1 of node 1 as text.
pub(super) fn pod_mac(lab: &Lab) -> String {
    let mac = mac_of(lab.pod(1, 1), "eth0").expect("a MAC");
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Whether `frame`, sent from node 2, reaches pod 1 of node 1.
fn arrives(lab: &Lab, frame: &[u8]) -> bool {
    let capture = Capture::start(lab.pod(1, 1), "eth0").expect("a capture");
    inject(lab.node(2), UNDERLAY, frame).expect("sent");
    let ours = |frame: &Frame| frame.udp_ports() == Some((7777, 7777));
    capture.next(Duration::from_millis(300), ours).expect("a capture").is_some()
}

#[test]
fn forged_packets_are_counted_and_dropped() {
    let lab = build(&LabSpec::pair(Overlay::agent(), Overlay::agent()));
    warm_up(&lab);
    let stranger = std::net::Ipv4Addr::new(192, 0, 2, 66);
    let foreign = std::net::Ipv4Addr::new(8, 8, 8, 8);
    for (outer, inner, vni, reason, delivered) in [
        (underlay4(2), inner4(2, 9), VNI, "decapsulated", true),
        (stranger, inner4(2, 9), VNI, "unknown_vtep", false),
        (underlay4(2), inner4(1, 9), VNI, "foreign_source", false),
        (underlay4(2), foreign, VNI, "foreign_source", false),
        (underlay4(2), inner4(2, 9), VNI + 1, "other_vni", false),
    ] {
        let frame = forged(&lab, outer, inner, vni);
        let [one, _] = counted(&lab, || assert_eq!(arrives(&lab, &frame), delivered, "{reason}"));
        assert_took(&one, underlay_hook(), reason, 1);
    }
}

#[test]
fn violations_are_only_counted_where_that_is_asked_for() {
    let options = AgentOptions { network: "source_check = \"count\"".into(), ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options), Overlay::agent()));
    warm_up(&lab);
    let frame = forged(&lab, underlay4(2), std::net::Ipv4Addr::new(8, 8, 8, 8), VNI);
    let [one, _] = counted(&lab, || assert!(arrives(&lab, &frame), "the kernel takes it"));
    assert_took(&one, underlay_hook(), "foreign_source", 1);
}

/// What the set `name` of node 1's table holds.
fn holds(lab: &Lab, name: &str) -> String {
    let table = lab.agent(1).expect("an agent").nft_table();
    let listed = lab.node(1).sh(&format!("nft list set inet {table} {name}")).expect("a set");
    listed.split_once("elements =").map_or(String::new(), |(_, elements)| elements.to_owned())
}

/// The rules of node 1's guard with their handles, which change when they are made anew.
fn rules(lab: &Lab) -> String {
    let table = lab.agent(1).expect("an agent").nft_table();
    lab.node(1).sh(&format!("nft -a list chain inet {table} guard")).expect("a chain")
}

#[test]
fn the_guard_follows_the_cluster_by_the_elements_of_its_sets() {
    let mut lab = build(&pair());
    let (whole, before) = (lab.state().clone(), rules(&lab));
    let is_known =
        |lab: &Lab| ["vteps4", "nodes4", "sources44/24"].map(|set| holds(lab, set).contains("192.0.2.2"));
    assert_eq!(is_known(&lab), [true; 3]);
    for (state, known) in [(whole.without("n2"), false), (whole, true)] {
        lab.write_state(state).expect("a state file");
        wait_until("the sets follow", Duration::from_secs(5), || is_known(&lab) == [known; 3])
            .expect("a change");
        assert_eq!(rules(&lab), before);
    }
    assert_answered(lab.pod(1, 1), lab.pod(2, 1).ip4, Ping::default());
}

#[test]
fn what_somebody_takes_out_of_the_guards_sets_comes_back() {
    let lab = build(&pair());
    let before = rules(&lab);
    for set in ["vteps4", "own4", "sources44/24"] {
        let held = holds(&lab, set);
        assert!(held.contains("192.0.2."), "{held}");
        let table = lab.agent(1).expect("an agent").nft_table();
        lab.node(1).sh(&format!("nft flush set inet {table} {set}")).expect("a flush");
        // What comes with a repair is looked at, too; otherwise it is within a minute.
        lab.node(1).sh("ip route del 10.244.2.0/24").expect("damage");
        wait_until("the elements are back", Duration::from_secs(5), || holds(&lab, set) == held)
            .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
            .expect("a repair");
    }
    assert_eq!(rules(&lab), before, "the rules stay");
}

#[test]
fn rules_that_are_flushed_all_together_come_back_at_once() {
    let lab = build(&pair());
    let table = lab.agent(1).expect("an agent").nft_table();
    let rules = || lab.node(1).sh(&format!("nft list chain inet {table} guard")).unwrap_or_default();
    let before = rules();
    assert!(before.contains("drop"), "{before}");
    lab.node(1).sh("nft flush ruleset").expect("a flush");
    wait_until("the rules are back", Duration::from_secs(5), || rules() == before)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("a repair");
}

#[test]
fn the_status_says_whether_the_tunnels_port_is_guarded() {
    let counting = AgentOptions { network: "source_check = \"count\"".into(), ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::agent(), Overlay::Agent(counting)));
    for (n, guard) in [(1, "yes"), (2, "no: strangers are counted only")] {
        let agent = lab.agent(n).expect("an agent");
        assert_eq!(agent.json(&["status"]).expect("a status")["networks"][0]["guard"], guard);
        let text = agent.cli(&["status"]).expect("a status");
        assert!(text.lines().any(|line| line == format!("guarded    {guard}")), "{text}");
    }
}

#[test]
fn a_guard_that_is_refused_this_time_is_told_from_one_that_the_kernel_cannot_have() {
    let lab = build(&LabSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan));
    let source = |subnet: &str| (underlay4(2).into(), subnet.parse().expect("a network"));
    let table = |name: &str, subnets: &[&str]| TunnelTable {
        name: name.into(),
        guards: vec![Arc::new(Guard {
            port: PORT,
            vni: Vni::try_from(VNI).expect("a VNI"),
            own: [underlay4(1).into()].into(),
            sources: subnets.iter().map(|subnet| source(subnet)).collect(),
            bridged: false,
            pods: vec![],
        })],
        ..TunnelTable::default()
    };
    let refused = table(&"long".repeat(100), &["10.244.2.0/24"]);
    lab.node(1).run(|| {
        assert!(refused.install(&mut None).is_err());
        assert_eq!(refused.no_guard(), None);
        let install = |subnets: &[&str]| table("tried", subnets).install(&mut None).expect("a table");
        assert_eq!(install(&["10.244.2.0/24"]), Change::Table);
        assert_eq!(install(&["10.244.2.0/24"]), Change::Nothing);
        assert_eq!(install(&["10.244.3.0/24", "10.244.0.0/24"]), Change::Elements);
        assert_eq!(install(&["10.244.0.0/16", "10.244.0.0/24"]), Change::Table, "another prefix length");
    });
    let listed = lab.node(1).sh("nft list table inet tried").expect("a table");
    for listed_source in ["192.0.2.2 . 10.244.0.0", "sources44/16", "sources44/24"] {
        assert!(listed.contains(listed_source), "{listed}");
    }
    lab.node(1).run(|| assert!(node::remove_table("tried").expect("removed")));
}

/// Node 1 with a device of its own for the next VNI: whether a packet of that VNI reaches it.
fn reaches_another_network(other_vni: &str) -> bool {
    let options = AgentOptions { network: format!("other_vni = \"{other_vni}\""), ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options), Overlay::agent()));
    warm_up(&lab);
    let other = "other";
    let add = format!(
        "link add {other} address {} type vxlan id {} dstport {PORT} dev {UNDERLAY}\n",
        vtep_mac(1),
        VNI + 1
    );
    lab.node(1).ip(&format!("{add}link set {other} up\n")).expect("a second network");
    let capture = Capture::start(lab.node(1), other).expect("a capture");
    let frame = forged(&lab, underlay4(2), inner4(2, 9), VNI + 1);
    let ours = |frame: &Frame| frame.udp_ports() == Some((7777, 7777));
    let mut reached = false;
    let [one, _] = counted(&lab, || {
        inject(lab.node(2), UNDERLAY, &frame).expect("sent");
        reached = capture.next(Duration::from_millis(300), ours).expect("a capture").is_some();
    });
    assert_took(&one, underlay_hook(), "other_vni", 1);
    reached
}

#[test]
fn packets_of_another_network_are_the_kernels_unless_they_shall_be_dropped() {
    assert!(reaches_another_network("kernel"));
    assert!(!reaches_another_network("drop"));
}

/// Whether node 1 leaves a packet with a damaged outer header to the kernel, which counts it.
fn is_left_to_the_kernel(malformed: &str) -> bool {
    let options = AgentOptions { network: format!("malformed = \"{malformed}\""), ..AgentOptions::default() };
    let lab = build(&LabSpec::pair(Overlay::Agent(options), Overlay::agent()));
    warm_up(&lab);
    let mut frame = forged(&lab, underlay4(2), inner4(2, 9), VNI);
    frame[24] ^= 1; // the header's checksum
    let errors = || {
        let text = lab.node(1).cmd("nstat", &["-az", "--json", "IpExtInCsumErrors"]).expect("nstat");
        let text: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        text["kernel"]["IpExtInCsumErrors"].as_u64().unwrap_or_default()
    };
    let before = errors();
    let [one, _] = counted(&lab, || assert!(!arrives(&lab, &frame), "delivered"));
    assert_took(&one, underlay_hook(), "bad_checksum", 1);
    errors() > before
}

#[test]
fn malformed_packets_are_the_kernels_unless_they_shall_be_dropped() {
    assert!(is_left_to_the_kernel("kernel"));
    assert!(!is_left_to_the_kernel("drop"));
}

#[test]
fn a_pod_cannot_send_as_somebody_else() {
    let lab = build(&pair());
    warm_up(&lab);
    let pod = lab.pod(1, 1);
    let gateway = mac_of(lab.node(1), "cni0").expect("a MAC");
    let own = mac_of(pod, "eth0").expect("a MAC");
    let frame = |from: std::net::Ipv4Addr| {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(own, gateway)
            .ipv4(from.octets(), lab.pod(2, 1).ip4.octets(), 64)
            .udp(7777, 7777)
            .write(&mut bytes, b"spoofed")
            .expect("a packet");
        bytes
    };
    for (from, delivered) in
        [(pod.ip4, true), (inner4(2, 77), false), (std::net::Ipv4Addr::new(8, 8, 8, 8), false)]
    {
        let capture = Capture::start(lab.pod(2, 1), "eth0").expect("a capture");
        let [one, _] = counted(&lab, || inject(pod, "eth0", &frame(from)).expect("sent"));
        let ours = |frame: &Frame| frame.udp_ports() == Some((7777, 7777));
        let got = capture.next(Duration::from_millis(300), ours).expect("a capture").is_some();
        assert_eq!(got, delivered, "from {from}");
        assert_took(&one, "pod_egress", if delivered { "encapsulated" } else { "pod_spoofed" }, 1);
    }
    assert_answered(pod, lab.pod(2, 1).ip4, Ping::default());
    assert_took(&counters(&lab, 1), "pod_egress", "pod_spoofed", 2);
}

#[test]
fn a_pod_that_makes_a_tunnel_of_its_own_to_a_node_is_counted_and_dropped() {
    let lab = build(&pair());
    warm_up(&lab);
    for node in [1, 2] {
        let [one, _] = counted(&lab, || {
            lab.pod(1, 1).run(|| {
                let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).expect("a socket");
                socket.send_to(b"tunnel", (underlay4(node), PORT)).expect("sent");
                socket.send_to(b"other", (underlay4(node), PORT + 1)).expect("sent");
            });
        });
        assert_took(&one, "pod_egress", "pod_tunnels", 1);
        assert_eq!(one.packets("pod_egress", "pod_tunnels"), 1, "{one}");
        assert_took(&one, "pod_egress", "no_route", 1);
    }
}
