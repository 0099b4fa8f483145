//! Whose address it is: pods that claim each other's, use nobody's, and come and go.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vxlan_tests::lab::addr::{inner4, inner6};
use vxlan_tests::lab::traffic::{Injector, Ping, StreamReport, UdpStream, mac_of, ping, uninterrupted};
use vxlan_tests::lab::{Attach, Counters, Lab, LabSpec, Netns, Overlay, Pod, wait_until};

use super::{assert_nothing_dropped, assert_took, build, counters, warm_up};

/// More than it takes until a dispute is over, on a busy machine.
const SETTLED: Duration = Duration::from_secs(40);

/// The kernel alone, which is the referee, and both modes.
fn overlays() -> [(&'static str, Overlay); 3] {
    [("kernel", Overlay::KernelVxlan), ("direct", Overlay::agent()), ("verified", Overlay::verified())]
}

/// Pods 1 and 2 of node 1 on a bridge.
fn bridged(overlay: &Overlay) -> Lab {
    with_pods(overlay, Attach::Bridge)
}

/// Nodes with two pods each. Their bridges do not get another MAC with every port, which pods would learn late.
fn with_pods(overlay: &Overlay, attach: Attach) -> Lab {
    let lab = build(&LabSpec::pair(overlay.clone(), overlay.clone()).pods(2).attach(attach));
    if attach == Attach::Bridge {
        for (n, node) in (1u8..).zip(lab.nodes()) {
            let mac = mac_of(node, "cni0").expect("a MAC").map(|byte| format!("{byte:02x}")).join(":");
            node.sh(&format!("ip link set cni0 address {mac}")).expect("a MAC of its own");
            // The kernel forgets the bridge's neighbours (`neigh_changeaddr`).
            node.pods.iter().for_each(|pod| introduce(&lab, n, pod));
        }
    }
    lab
}

/// An ARP packet to everybody that says that `ip` is at `mac`.
fn gratuitous(mac: [u8; 6], operation: u8, ip: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = [[0xff; 6], mac].concat();
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, operation]);
    frame.extend(mac);
    frame.extend(ip.octets());
    frame.extend([0xff; 6]);
    frame.extend(to.octets());
    frame
}

/// A frame of no protocol, to nobody.
fn from_mac(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = [[0x02, 0, 0, 0, 0, 0x77], mac].concat();
    frame.extend([0x88, 0xb5]);
    frame.resize(60, 0);
    frame
}

/// What a neighbour does.
struct Theft {
    /// Sends these,
    frames: fn(&Lab) -> Vec<Vec<u8>>,
    /// over and over,
    pause: Duration,
    /// for so long.
    lasts: Duration,
}

/// What pod 1 of node 1 sends to node 2, while pod 2 tries to take its address.
fn while_claimed(lab: &Lab, theft: &Theft) -> StreamReport {
    let (victim, thief, server) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    let injector = Injector::open(thief, "eth0").expect("a packet socket");
    let stream = UdpStream::start(victim, server, server.ip4.into(), 200, 100).expect("a stream");
    let (frames, end) = ((theft.frames)(lab), Instant::now() + theft.lasts);
    while Instant::now() < end {
        frames.iter().for_each(|frame| injector.send(frame).expect("sent"));
        std::thread::sleep(theft.pause);
    }
    stream.stop().expect("a stream that ends")
}

fn disputed(lab: &Lab, ip: Ipv4Addr) -> bool {
    let agent = lab.agent(1).expect("an agent");
    let status = agent.json(&["status"]).expect("a status");
    let listed =
        status["fastpath"]["disputed"].as_array().is_some_and(|l| l.contains(&ip.to_string().into()));
    let endpoints = agent.json(&["dump", "endpoints"]).expect("endpoints");
    let row = endpoints.as_array().and_then(|l| l.iter().find(|row| row["address"] == ip.to_string()));
    let dumped =
        row.is_some_and(|row| row["kernel"].as_array().is_some_and(|l| l.contains(&"disputed".into())));
    listed && dumped
}

/// Nothing that the victim sends is lost, and the address is its own again when it is over. Most of it is
/// waiting, which three labs do side by side.
fn assert_unharmed(theft: &Theft) {
    std::thread::scope(|scope| {
        for (name, overlay) in overlays() {
            scope.spawn(move || assert_unharmed_by(theft, name, &overlay));
        }
    });
}

fn assert_unharmed_by(theft: &Theft, name: &str, overlay: &Overlay) {
    let lab = bridged(overlay);
    if name == "kernel" {
        let report = while_claimed(&lab, theft);
        assert_eq!(report.lost, 0, "{name}: {report:?}");
        return;
    }
    warm_up(&lab);
    let ip = lab.pod(1, 1).ip4;
    let before = counters(&lab, 1);
    let (report, seen) = while_watched(&lab, theft);
    assert_eq!(report.lost, 0, "{name}: {report:?}");
    assert!(seen, "{name}: nobody says that the address is in dispute");
    let counted = &counters(&lab, 1) - &before;
    assert_took(&counted, "pod_egress", "disputed", 100);
    assert_nothing_dropped(&counted);
    assert_settles(&lab, name, ip);
}

/// As [`while_claimed`], and whether the agent says meanwhile that the address is in dispute.
fn while_watched(lab: &Lab, theft: &Theft) -> (StreamReport, bool) {
    let (ip, done) = (lab.pod(1, 1).ip4, AtomicBool::new(false));
    std::thread::scope(|scope| {
        let seen = || {
            // Reading takes a while: often enough.
            while !done.load(Ordering::Relaxed) {
                if disputed(lab, ip) {
                    return true;
                }
            }
            false
        };
        let watcher = scope.spawn(seen);
        let report = while_claimed(lab, theft);
        done.store(true, Ordering::Relaxed);
        (report, watcher.join().expect("a watcher"))
    })
}

/// The pod's packets take the fast path again.
fn assert_settles(lab: &Lab, name: &str, ip: Ipv4Addr) {
    let (victim, server) = (lab.pod(1, 1), lab.pod(2, 1));
    let stream = UdpStream::start(victim, server, server.ip4.into(), 20, 100).expect("a stream");
    let fast = || {
        // Where nothing is for the pod, the kernel does not ask whether it is still where it was.
        let impatient = Ping { timeout: Duration::from_millis(100), ..Ping::default() };
        ping(lab.node(1), ip, impatient).expect("a socket");
        let before = counters(lab, 1);
        std::thread::sleep(Duration::from_millis(300));
        (&counters(lab, 1) - &before).packets("pod_egress", "encapsulated") > 3
    };
    wait_until(&format!("{name}: {ip} is its pod's again"), SETTLED, fast)
        .inspect_err(|_| lab.agent(1).expect("an agent").print_log())
        .expect("a dispute that ends");
    assert!(!disputed(lab, ip), "{name}");
    assert_eq!(stream.stop().expect("a stream that ends").lost, 0, "{name}");
}

#[test]
fn a_neighbours_gratuitous_arp_costs_a_pod_nothing_that_the_kernel_lets_pass() {
    let frames = |lab: &Lab| {
        let (mac, ip) = (mac_of(lab.pod(1, 2), "eth0").expect("a MAC"), lab.pod(1, 1).ip4);
        vec![gratuitous(mac, 1, ip, ip), gratuitous(mac, 2, ip, inner4(1, 1))]
    };
    assert_unharmed(&Theft { frames, pause: Duration::from_millis(200), lasts: Duration::from_secs(6) });
}

#[test]
fn a_neighbour_that_uses_a_pods_mac_costs_it_nothing_that_the_kernel_lets_pass() {
    let frames = |lab: &Lab| vec![from_mac(mac_of(lab.pod(1, 1), "eth0").expect("a MAC"))];
    assert_unharmed(&Theft { frames, pause: Duration::from_millis(20), lasts: Duration::from_secs(2) });
}

/// A datagram from `ip` in `pod` to `server`; whether it arrives.
fn arrives(pod: &Netns, ip: Ipv4Addr, server: &UdpSocket, to: Ipv4Addr, word: &[u8]) -> bool {
    let port = server.local_addr().expect("bound").port();
    let sent = pod.run(|| UdpSocket::bind((ip, 0)).and_then(|socket| socket.send_to(word, (to, port))));
    sent.expect("sent");
    let mut buffer = [0; 64];
    while let Ok((length, from)) = uninterrupted(|| server.recv_from(&mut buffer)) {
        if buffer[..length] == *word {
            return from.ip() == ip;
        }
    }
    false
}

fn listen(pod: &Netns) -> UdpSocket {
    let server = pod.run(|| UdpSocket::bind("0.0.0.0:0")).expect("a server");
    server.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    server
}

/// Starts a pod on node 1's bridge, with its program attached.
fn start_pod(lab: &Lab, name: &str, ip: Ipv4Addr) -> Netns {
    let pod = lab.add_namespace(name).expect("a namespace");
    let node = lab.node(1);
    let made = node.ip(&format!(
        "link add {name} type veth peer name eth0 netns {}\nlink set {name} master cni0 up\n",
        pod.namespace()
    ));
    made.and_then(|()| {
        pod.ip(&format!(
            "addr add {ip}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
            inner4(1, 1)
        ))
    })
    .expect("a pod");
    if lab.agent(1).is_ok() {
        let attached = || super::programs_on(node, name) != 0;
        wait_until("the program is attached", Duration::from_secs(10), attached).expect("attached");
    }
    pod
}

#[test]
fn pods_that_come_and_go_with_the_same_address_lose_nothing() {
    const PODS: usize = 40;
    for (name, overlay) in overlays() {
        let lab = bridged(&overlay);
        if name != "kernel" {
            warm_up(&lab);
        }
        let (server, to, ip) = (listen(lab.pod(2, 1)), lab.pod(2, 1).ip4, inner4(1, 200));
        let mut before: Option<String> = None;
        let mut lost = vec![];
        for n in 0..PODS {
            let veth = format!("burst{n}");
            // Every other one goes before the next one comes.
            if n % 2 == 0 {
                before.take().iter().for_each(|veth| stop_pod(&lab, veth));
            }
            let pod = start_pod(&lab, &veth, ip);
            for word in ["one", "two", "three"] {
                if !arrives(&pod, ip, &server, to, format!("{n} {word}").as_bytes()) {
                    lost.push((n, word));
                }
            }
            before.replace(veth).iter().for_each(|veth| stop_pod(&lab, veth));
        }
        assert_eq!(lost, [], "{name}");
        if name != "kernel" {
            assert_nothing_dropped(&counters(&lab, 1));
        }
    }
}

/// The namespace goes at once, the veth whenever the kernel gets to it.
fn stop_pod(lab: &Lab, veth: &str) {
    lab.node(1).sh(&format!("ip netns del {}-{veth}", lab.prefix())).expect("a pod that goes");
}

#[test]
fn an_address_that_no_pod_has_is_not_a_known_pods_to_use() {
    for (name, overlay) in overlays() {
        let lab = bridged(&overlay);
        let (pod, server, to) = (lab.pod(1, 1), listen(lab.pod(2, 1)), lab.pod(2, 1).ip4);
        let unknown = inner4(1, 77);
        pod.sh(&format!("ip addr add {unknown}/24 dev eth0")).expect("an address");
        if name == "kernel" {
            assert!(arrives(pod, unknown, &server, to, b"unknown"), "the kernel asks nobody");
            continue;
        }
        warm_up(&lab);
        server.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let spoofed = |now: &Counters| now.packets("pod_egress", "pod_spoofed");
        let dropped = || {
            let before = counters(&lab, 1);
            !arrives(pod, unknown, &server, to, b"unknown") && spoofed(&(&counters(&lab, 1) - &before)) == 1
        };
        wait_until("the pod is known", Duration::from_secs(5), dropped).expect("a spoofed packet");
        assert!(arrives(pod, pod.ip4, &server, to, b"its own"), "{name}");
        // Who answers for an address has it.
        let reached = || ping(lab.node(1), unknown, Ping::default()).is_ok_and(|r| r.all_answered());
        wait_until("the address answers", Duration::from_secs(5), reached).expect("an answer");
        let passes = || arrives(pod, unknown, &server, to, b"known");
        wait_until("the address is the pod's", Duration::from_secs(5), passes).expect("a second address");
    }
}

#[test]
fn a_pod_that_is_replaced_while_the_agent_is_dead_is_reached() {
    for (name, overlay) in overlays().into_iter().skip(1) {
        for attach in [Attach::Bridge, Attach::Ptp] {
            let mut lab = with_pods(&overlay, attach);
            warm_up(&lab);
            lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("a kill");
            replace(&lab, attach);
            let (pod, patient) = (lab.pod(1, 1), Ping { count: 5, ..Ping::default() });
            for ip in pod.ips() {
                for client in [lab.pod(2, 1), lab.pod(1, 2)] {
                    super::assert_answered(client, ip, patient);
                }
            }
            let counted = counters(&lab, 1);
            let hook = super::underlay_hook();
            assert_took(&counted, hook, "no_endpoint", if name == "direct" { 5 } else { 0 });
            lab.agent_mut(1).and_then(|agent| agent.start()).expect("a start");
            let fast = || {
                let before = counters(&lab, 1);
                super::assert_answered(lab.pod(2, 1), lab.pod(1, 1).ip4, Ping { count: 20, ..patient });
                (&counters(&lab, 1) - &before).packets(hook, "decapsulated") > 5
            };
            wait_until(&format!("{name}: the new pod is known"), Duration::from_secs(10), fast)
                .expect("a short cut");
        }
    }
}

/// Gives pod 1 of node 1 a new veth with the addresses of the one before.
fn replace(lab: &Lab, attach: Attach) {
    let (node, pod) = (lab.node(1), lab.pod(1, 1));
    let veth = &pod.host_veth;
    let (ip4, ip6, gw4, gw6) = (pod.ip4, pod.ip6, inner4(1, 1), inner6(1, 1));
    let link =
        format!("link del {veth}\nlink add {veth} type veth peer name eth0 netns {}\n", pod.namespace());
    let (outside, inside) = match attach {
        Attach::Bridge => (
            format!("link set {veth} master cni0 up\n"),
            format!("addr add {ip4}/24 dev eth0\naddr add {ip6}/64 dev eth0 nodad\nlink set eth0 up\n"),
        ),
        Attach::Ptp => (
            format!(
                "addr add {gw4}/32 dev {veth}\naddr add {gw6}/128 dev {veth} nodad\nlink set {veth} up\n\
                 route add {ip4}/32 dev {veth}\nroute add {ip6}/128 dev {veth}\n"
            ),
            format!(
                "addr add {ip4}/32 dev eth0\naddr add {ip6}/128 dev eth0 nodad\nlink set eth0 up\n\
                 route add {gw4} dev eth0 scope link\nroute add {gw6} dev eth0\n"
            ),
        ),
    };
    node.ip(&format!("{link}{outside}")).expect("a veth");
    let routes = format!("route add default via {gw4} dev eth0\nroute add default via {gw6} dev eth0\n");
    Netns::ip(pod, &format!("{inside}{routes}")).expect("addresses");
    introduce(lab, 1, pod);
}

/// The pod of node `n` talks to its gateway, so that the node knows its addresses.
fn introduce(lab: &Lab, n: u8, pod: &Pod) {
    for gateway in [IpAddr::from(inner4(n, 1)), inner6(n, 1).into()] {
        let reached = || ping(pod, gateway, Ping::default()).is_ok_and(|report| report.all_answered());
        wait_until(
            &format!("{} of {} reaches its gateway", pod.name, lab.prefix()),
            Duration::from_secs(10),
            reached,
        )
        .expect("an answer");
    }
}
