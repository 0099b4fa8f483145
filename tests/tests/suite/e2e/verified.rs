//! Bypass next to NAT and packet filters, written the way kube-proxy and policies write them.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use vxlan_tests::lab::traffic::{Ping, UdpStream, ping, tcp_bulk, tcp_concurrent, udp_echo};
use vxlan_tests::lab::{AgentOptions, Attach, Counters, Family, Lab, LabSpec, Overlay, wait_until};

use super::{
    aggregates_hook, assert_answered, assert_decapsulated, assert_nothing_dropped, assert_took, build,
    counted, underlay_hook, warm_up,
};

const MIB: u64 = 1 << 20;
/// A service address that no node has.
const SERVICE4: &str = "10.96.0.10";
const SERVICE6: &str = "fd00:96::10";

/// Conntrack on, as everywhere where services are; packets that it does not understand are dropped.
const FILTER: &str = "table inet guard {\n chain forward {\n  type filter hook forward priority filter;\n  \
    ct state invalid drop\n  ct state established,related accept\n }\n}\n";

fn verified() -> LabSpec {
    let options = || AgentOptions { fastpath: "verified".into(), ..AgentOptions::default() };
    LabSpec::pair(Overlay::Agent(options()), Overlay::Agent(options()))
}

fn guarded(spec: &LabSpec) -> Lab {
    let lab = build(spec);
    for n in [1, 2] {
        nft(&lab, n, FILTER);
    }
    warm_up(&lab);
    lab
}

fn nft(lab: &Lab, n: u8, rules: &str) {
    lab.node(n).feed("nft", &["-f", "-"], rules).expect("nftables takes the rules");
}

/// Translates the service's addresses to pod 1 of node 2, on node 1.
fn service(lab: &Lab, to4: IpAddr, to6: IpAddr) {
    nft(
        lab,
        1,
        &format!(
            "table inet services {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n  \
             ip daddr {SERVICE4} dnat ip to {to4}\n  ip6 daddr {SERVICE6} dnat ip6 to {to6}\n }}\n \
             chain postrouting {{\n  type nat hook postrouting priority srcnat;\n  \
             ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade\n }}\n}}\n"
        ),
    );
}

/// Bytes that bypassed the stack from the pods of a node.
fn bypassed(node: &Counters) -> u64 {
    node.get("pod_egress", "encapsulated").bytes
}

fn direct_flows_bypass(spec: &LabSpec) {
    let lab = guarded(spec);
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    for ip in server.ips() {
        let nodes = counted(&lab, || assert_answered(client, ip, Ping { count: 20, ..Ping::default() }));
        for node in &nodes {
            // The first is looked at on its way through the stack.
            assert_took(node, "pod_egress", "encapsulated", 17);
            assert_decapsulated(node, spec.underlay, ip, 17);
            assert_took(node, "pod_egress", "unverified", 1);
            assert_took(node, "pod_ingress", "passed", 1);
            assert_nothing_dropped(node);
        }
        let nodes = counted(&lab, || {
            tcp_bulk(client, server, ip, 64 * MIB).expect("a transfer");
        });
        if spec.underlay == Family::V4 {
            assert!(bypassed(&nodes[0]) > 60 * MIB, "{}", nodes[0]);
        }
        assert_took(&nodes[1], aggregates_hook(), "delivered", 100);
        let left = nodes[0].packets("pod_egress", "unverified");
        assert!(left <= 4, "{left} packets took the stack:\n{}", nodes[0]);
        let report = udp_echo(client, server, ip, (1..=1400).step_by(9)).expect("UDP");
        assert!(report.all_intact(), "{report:?}");
        tcp_concurrent(client, server, ip, 200, 20_000).expect("200 connections at once");
        nodes.iter().for_each(assert_nothing_dropped);
    }
}

#[test]
fn direct_flows_bypass_after_their_first_packets() {
    direct_flows_bypass(&verified());
}

#[test]
fn direct_flows_of_routed_pods_bypass_after_their_first_packets() {
    direct_flows_bypass(&verified().attach(Attach::Ptp));
}

#[test]
fn direct_flows_bypass_over_an_ipv6_underlay() {
    direct_flows_bypass(&verified().underlay(Family::V6));
}

#[test]
fn flows_within_a_node_bypass_too() {
    for attach in [Attach::Bridge, Attach::Ptp] {
        let lab = build(&verified().pods(2).attach(attach));
        warm_up(&lab);
        let (one, two) = (lab.pod(1, 1), lab.pod(1, 2));
        for ip in two.ips() {
            assert_answered(one, ip, Ping { count: 5, ..Ping::default() });
            let [node, _] = counted(&lab, || {
                assert_answered(one, ip, Ping { count: 20, ..Ping::default() });
                tcp_bulk(one, two, ip, 16 * MIB).expect("a transfer");
            });
            let reason = if attach == Attach::Bridge { "switched" } else { "routed" };
            assert!(node.get("pod_egress", reason).bytes > 15 * MIB, "{node}");
            assert_nothing_dropped(&node);
        }
    }
}

#[test]
fn a_service_is_translated_and_stays_with_the_stack() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    service(&lab, server.ip4.into(), server.ip6.into());
    for address in [SERVICE4, SERVICE6].map(|ip| ip.parse::<IpAddr>().expect("an address")) {
        let [one, _] = counted(&lab, || {
            tcp_bulk(client, server, address, 16 * MIB).expect("a transfer through the service");
            let report = udp_echo(client, server, address, [1, 64, 1400, 3000]).expect("UDP");
            assert!(report.all_intact(), "{report:?}");
            tcp_concurrent(client, server, address, 100, 5_000).expect("connections through the service");
        });
        // Not one packet of the service skipped its translation, on either way.
        assert_eq!(bypassed(&one), 0, "{one}");
        assert_eq!(one.packets(underlay_hook(), "decapsulated"), 0, "{one}");
        assert_eq!(one.packets(aggregates_hook(), "delivered"), 0, "{one}");
        assert_took(&one, "pod_egress", "no_route", 20);
        assert_nothing_dropped(&one);
    }
}

#[test]
fn one_pod_is_reached_directly_and_through_a_service_at_the_same_time() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    service(&lab, server.ip4.into(), server.ip6.into());
    let service = SERVICE4.parse().expect("an address");
    let [one, _] = counted(&lab, || {
        std::thread::scope(|scope| {
            for address in [server.ip4.into(), service] {
                for _ in 0..5 {
                    scope.spawn(move || {
                        tcp_concurrent(client, server, address, 100, 5_000).expect("connections")
                    });
                }
            }
        });
    });
    assert!(bypassed(&one) > 1_000_000, "{one}");
    assert_nothing_dropped(&one);
}

#[test]
fn the_same_ports_directly_and_through_a_service_do_not_mix() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    service(&lab, server.ip4.into(), server.ip6.into());
    let service: IpAddr = SERVICE4.parse().expect("an address");
    for [first, second] in [[server.ip4.into(), service], [service, server.ip4.into()]] {
        let listener = server.run(|| TcpListener::bind(("0.0.0.0", 0))).expect("a listener");
        let port = listener.local_addr().expect("an address").port();
        let mut streams = Vec::new();
        let mut source = 0;
        for address in [first, second] {
            let stream = client.run(|| from_port(source, SocketAddr::new(address, port)));
            source = stream.local_addr().expect("an address").port();
            streams.push((stream, listener.accept().expect("a connection").0));
        }
        for round in 0..50u8 {
            for (near, far) in &mut streams {
                exchange(near, far, round);
                exchange(far, near, round);
            }
        }
    }
}

/// A connection from a given port, or any for 0.
fn from_port(port: u16, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.bind(&SocketAddr::from(([0, 0, 0, 0], port)).into()).expect("a port");
    socket.connect_timeout(&to.into(), Duration::from_secs(5)).expect("a connection");
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).expect("an option");
    stream
}

fn exchange(from: &mut TcpStream, to: &mut TcpStream, value: u8) {
    from.write_all(&[value; 100]).expect("sent");
    let mut got = [0; 100];
    to.set_read_timeout(Some(Duration::from_secs(5))).expect("an option");
    to.read_exact(&mut got).expect("received");
    assert_eq!(got, [value; 100]);
}

/// TCP connections that conntrack of node `n` believes to be up.
fn established(lab: &Lab, n: u8) -> usize {
    let listed = lab.node(n).sh("cat /proc/net/nf_conntrack").expect("conntrack");
    listed.lines().filter(|line| line.contains("tcp") && line.contains("ESTABLISHED")).count()
}

#[test]
fn connections_close_on_the_fast_path_and_leave_nothing_in_conntrack() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let nodes = counted(&lab, || {
        tcp_concurrent(client, server, server.ip4.into(), 300, 2_000)
            .expect("connections that open and close");
    });
    for node in &nodes {
        assert_took(node, "pod_egress", "encapsulated", 300 * 3);
        assert_nothing_dropped(node);
    }
    for n in [1, 2] {
        assert_eq!(established(&lab, n), 0, "node {n} keeps connections that are over");
        let flows = lab.agent(n).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
        let flows = flows.as_array().expect("a list");
        let closed =
            flows.iter().filter(|flow| flow["protocol"] == "tcp" && flow["state"] == "closed").count();
        assert!(closed >= 290, "{closed} of 300 connections are known to be closed");
    }
}

#[test]
fn what_a_filter_denies_never_bypasses_it() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    nft(
        &lab,
        2,
        "table inet deny {\n chain forward {\n  type filter hook forward priority filter - 1;\n  udp dport 1-65535 drop\n  icmp type echo-request drop\n }\n}\n",
    );
    let nodes = counted(&lab, || {
        let report = udp_echo(client, server, server.ip4.into(), [10, 20]).expect("a socket");
        assert_eq!(report.intact, 0, "{report:?}");
        let impatient = Ping { count: 3, timeout: Duration::from_millis(200), ..Ping::default() };
        let report = ping(client, server.ip4, impatient).expect("a socket");
        assert_eq!(report.rtts.len(), 0);
        tcp_bulk(client, server, server.ip4.into(), MIB).expect("what is not denied arrives");
    });
    let denied = nodes[1].packets(underlay_hook(), "unverified");
    assert!(denied >= 5, "{}", nodes[1]);
}

#[test]
fn a_flush_makes_a_running_connection_meet_a_new_rule() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let listener = server.run(|| TcpListener::bind(("0.0.0.0", 0))).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let mut near = client.run(|| from_port(0, (server.ip4, port).into()));
    let (mut far, _) = listener.accept().expect("a connection");
    for round in 0..20 {
        exchange(&mut near, &mut far, round);
    }
    // A flush alone does no harm: the connection returns to the stack, is seen, and bypasses again.
    let [one, _] = counted(&lab, || {
        for n in [1, 2] {
            lab.agent(n).and_then(|agent| agent.cli(&["flows", "flush"])).expect("a flush");
        }
        for round in 0..20 {
            exchange(&mut near, &mut far, round);
            exchange(&mut far, &mut near, round);
        }
    });
    assert_took(&one, "pod_egress", "unverified", 1);
    assert_took(&one, "pod_egress", "encapsulated", 20);

    nft(
        &lab,
        2,
        &format!(
            "table inet deny {{\n chain forward {{\n  type filter hook forward priority filter - 1;\n  tcp dport {port} drop\n }}\n}}\n"
        ),
    );
    exchange(&mut near, &mut far, 1); // still open: nobody has said anything
    lab.agent(2).and_then(|agent| agent.cli(&["flows", "flush"])).expect("a flush");
    near.write_all(&[2; 100]).expect("into the socket");
    far.set_read_timeout(Some(Duration::from_millis(500))).expect("an option");
    let got = far.read(&mut [0; 100]);
    assert!(got.is_err(), "the rule is not met: {got:?}");
}

#[test]
fn a_stream_of_datagrams_meets_a_new_rule_within_two_seconds_without_a_flush() {
    let lab = guarded(&verified());
    let (client, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let stream = UdpStream::start(client, server, server.ip4.into(), 1_000, 100).expect("a stream");
    let [one, two] = counted(&lab, || std::thread::sleep(Duration::from_millis(2500)));
    // One way only, and nevertheless on the fast path; about one packet a second takes the stack.
    assert_took(&one, "pod_egress", "encapsulated", 2_000);
    assert_took(&two, underlay_hook(), "decapsulated", 2_000);
    let looked_at = one.packets("pod_egress", "unverified");
    assert!((2..=8).contains(&looked_at), "{looked_at} packets took the stack");
    nft(
        &lab,
        2,
        "table inet deny {\n chain forward {\n  type filter hook forward priority filter - 1;\n  meta l4proto udp drop\n }\n}\n",
    );
    let stopped = || {
        let [_, two] = counted(&lab, || std::thread::sleep(Duration::from_millis(200)));
        two.packets(underlay_hook(), "decapsulated") == 0
    };
    wait_until("the rule is met", Duration::from_secs(3), stopped)
        .expect("the flow is looked at about once a second");
    drop(stream.stop());
}

/// Rules of a service on node 1: `prerouting` and `postrouting` of a `nat` table.
fn nat(lab: &Lab, prerouting: &str, postrouting: &str) {
    nft(
        lab,
        1,
        &format!(
            "table inet services {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat;\n  \
             {prerouting}\n }}\n chain postrouting {{\n  type nat hook postrouting priority srcnat;\n  \
             {postrouting}\n }}\n}}\n"
        ),
    );
}

#[test]
fn a_service_leads_to_a_pod_of_the_same_node_and_to_the_client_itself() {
    // On a bridge that takes netfilter's help, as Kubernetes asks for; or routed.
    for (attach, bridge_netfilter) in [(Attach::Bridge, true), (Attach::Ptp, false)] {
        let lab = guarded(&verified().pods(2).attach(attach).bridge_netfilter(bridge_netfilter));
        let (client, neighbour) = (lab.pod(1, 1), lab.pod(1, 2));
        let (own, other) = (client.ip4, neighbour.ip4);
        if attach == Attach::Bridge {
            // As CNI's `bridge` plugin does it for this very case.
            let hairpin = format!("bridge link set dev {} hairpin on", client.host_veth);
            lab.node(1).sh(&hairpin).expect("hairpin mode");
        }
        nat(
            &lab,
            &format!("ip daddr 10.96.0.1 dnat ip to {other}\n  ip daddr 10.96.0.2 dnat ip to {own}"),
            &format!("ip saddr {own} ip daddr {own} masquerade"),
        );
        let [one, _] = counted(&lab, || {
            for (server, service) in [(neighbour, "10.96.0.1"), (client, "10.96.0.2")] {
                let service = service.parse().expect("an address");
                tcp_bulk(client, server, service, 4 * MIB).expect("a transfer through the service");
                let report = udp_echo(client, server, service, [1, 64, 1400]).expect("UDP");
                assert!(report.all_intact(), "{report:?} to {service}, {attach:?}");
            }
        });
        assert_eq!(one.total("routed") + one.total("switched"), 0, "{one}");
        assert_nothing_dropped(&one);
        // The same two pods directly.
        let [one, _] = counted(&lab, || {
            tcp_bulk(client, neighbour, other.into(), 4 * MIB).expect("a direct transfer");
        });
        assert!(one.total("routed") + one.total("switched") > 10, "{one}");
    }
}

#[test]
fn a_node_port_is_reached_from_outside_with_and_without_source_translation() {
    for masquerade in [false, true] {
        let lab = guarded(&verified());
        let (outside, pod) = (lab.node(2), lab.pod(1, 1));
        let node: IpAddr = vxlan_tests::lab::addr::underlay4(1).into();
        nat(
            &lab,
            &format!("ip daddr {node} tcp dport 1024-65535 dnat ip to {}", pod.ip4),
            &if masquerade { format!("ip daddr {} masquerade", pod.ip4) } else { String::new() },
        );
        let [one, _] = counted(&lab, || {
            tcp_bulk(outside, pod, node, 4 * MIB).expect("a transfer from outside");
            tcp_concurrent(outside, pod, node, 50, 2_000).expect("connections from outside");
        });
        assert_eq!(bypassed(&one), 0, "{one}");
        assert_nothing_dropped(&one);
    }
}

#[test]
fn a_remote_pod_behind_a_node_port_answers_through_the_node() {
    let lab = guarded(&verified());
    let (outside, pod) = (lab.node(2), lab.pod(2, 1));
    let node: IpAddr = vxlan_tests::lab::addr::underlay4(1).into();
    nat(
        &lab,
        &format!("ip daddr {node} tcp dport 1024-65535 dnat ip to {}", pod.ip4),
        &format!("ip daddr {} masquerade", pod.ip4),
    );
    let nodes = counted(&lab, || {
        tcp_bulk(outside, pod, node, 4 * MIB).expect("a transfer from outside");
    });
    assert_took(&nodes[0], "tunnel_egress", "encapsulated", 10);
    nodes.iter().for_each(assert_nothing_dropped);
}

#[test]
fn what_leaves_the_overlay_is_masqueraded() {
    let lab = guarded(&verified());
    nat(&lab, "", "ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade");
    let server = lab.node(2);
    let address: IpAddr = vxlan_tests::lab::addr::underlay4(2).into();
    let listener = server.run(|| TcpListener::bind(("0.0.0.0", 0))).expect("a listener");
    let port = listener.local_addr().expect("an address").port();
    let [one, _] = counted(&lab, || {
        let mut near = lab.pod(1, 1).run(|| from_port(0, (address, port).into()));
        let (mut far, peer) = listener.accept().expect("a connection");
        assert_eq!(peer.ip(), IpAddr::from(vxlan_tests::lab::addr::underlay4(1)));
        for round in 0..20 {
            exchange(&mut near, &mut far, round);
            exchange(&mut far, &mut near, round);
        }
    });
    assert_took(&one, "pod_egress", "no_route", 20);
    assert_eq!(bypassed(&one), 0, "{one}");
}
