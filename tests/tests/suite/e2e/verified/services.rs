//! Flows that are translated stay with the stack.

use std::net::{IpAddr, SocketAddr, TcpListener};

use vxlan_tests::lab::Attach;
use vxlan_tests::lab::traffic::{tcp_bulk, tcp_concurrent, udp_echo};

use super::super::{aggregates_hook, assert_nothing_dropped, assert_took, counted, underlay_hook};
use super::{MIB, SERVICE4, SERVICE6, bypassed, exchange, from_port, guarded, nat, service, verified};

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
