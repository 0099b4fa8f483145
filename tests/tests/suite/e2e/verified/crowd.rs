//! Flows of all kinds at once.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use vxlan_tests::lab::addr::{inner4, inner6, underlay};
use vxlan_tests::lab::traffic::{Ping, uninterrupted};
use vxlan_tests::lab::{Attach, Family, Lab, Netns};

use super::super::{assert_answered, assert_nothing_dropped, assert_took, counted};
use super::kube_proxy::{NodePort, Service, rules, service_ip};
use super::{any, exchange, from_port, guarded, nft, verified};

/// Flows of one kind: with ten kinds and two families, 1 000 in all.
const FLOWS: usize = 50;
/// Exchanges on every flow.
const ROUNDS: u8 = 10;
const PATIENCE: Duration = Duration::from_secs(5);

/// Ports that pods behind services listen on.
const REMOTE: u16 = 8001;
const NEIGHBOUR: u16 = 8002;
const OWN: u16 = 8003;
const REMOTE_OUTSIDE: u16 = 8004;
const NEIGHBOUR_OUTSIDE: u16 = 8005;
/// The ports of the node that lead to the last two.
const NODE_PORT: u16 = 30_080;
const NODE_PORT_LOCAL: u16 = 30_081;

#[derive(Clone, Copy)]
enum Protocol {
    Tcp,
    Udp,
    Echo,
}

/// Flows of one kind.
struct Kind<'a> {
    protocol: Protocol,
    client: &'a Netns,
    server: &'a Netns,
    /// Of the server itself.
    listen: SocketAddr,
    /// Where the client sends to.
    target: SocketAddr,
    /// Whom the server sees.
    source: IpAddr,
}

/// Whatever may bypass the stack of node 1: protocol, its pod, and the other side.
type Ends = (String, SocketAddr, SocketAddr);

/// All kinds of flows that node 1 has a part in.
fn kinds(lab: &Lab, family: Family) -> Vec<Kind<'_>> {
    use Protocol::{Echo, Tcp, Udp};
    let (pod, neighbour, remote) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    let [node, outside] = [1, 2].map(|n| underlay(family, n));
    let (gateway, vtep) = match family {
        Family::V4 => (inner4(1, 1).into(), lab.node(1).vtep4.into()),
        Family::V6 => (inner6(1, 1).into(), lab.node(1).vtep6.into()),
    };
    let [own, near, far] = [pod, neighbour, remote].map(|pod| pod.ip(family));
    let service = service_ip(family);
    let kind = |protocol, client, server, listen: (IpAddr, u16), target: (IpAddr, u16), source| Kind {
        protocol,
        client,
        server,
        listen: listen.into(),
        target: target.into(),
        source,
    };
    vec![
        // Directly.
        kind(Tcp, pod, remote, (far, 7001), (far, 7001), own),
        kind(Udp, pod, remote, (far, 7001), (far, 7001), own),
        kind(Echo, pod, remote, (far, 0), (far, 0), own),
        // Through the service, to another node, to a neighbour, to the client itself.
        kind(Tcp, pod, remote, (far, REMOTE), (service, REMOTE), own),
        kind(Udp, pod, remote, (far, REMOTE), (service, REMOTE), own),
        kind(Tcp, pod, neighbour, (near, NEIGHBOUR), (service, NEIGHBOUR), own),
        kind(Tcp, pod, pod, (own, OWN), (service, OWN), gateway),
        // From outside, with and without translation of the source.
        kind(Tcp, lab.node(2), remote, (far, REMOTE_OUTSIDE), (node, NODE_PORT), vtep),
        kind(Tcp, lab.node(2), neighbour, (near, NEIGHBOUR_OUTSIDE), (node, NODE_PORT_LOCAL), outside),
        // To the outside.
        kind(Tcp, pod, lab.node(2), (outside, 7002), (outside, 7002), node),
    ]
}

/// The sockets of flows that are open.
enum Open {
    Tcp(Vec<(TcpStream, TcpStream)>),
    Udp(UdpSocket, Vec<UdpSocket>),
    Echo,
}

impl Kind<'_> {
    fn open(&self) -> Open {
        match self.protocol {
            Protocol::Tcp => Open::Tcp(self.connect()),
            Protocol::Udp => {
                let server = self.server.run(|| UdpSocket::bind(self.listen)).expect("a server");
                Open::Udp(server, (0..FLOWS).map(|_| self.datagrams()).collect())
            }
            Protocol::Echo => Open::Echo,
        }
    }

    fn connect(&self) -> Vec<(TcpStream, TcpStream)> {
        let listener = self.server.run(|| TcpListener::bind(self.listen)).expect("a listener");
        socket2::SockRef::from(&listener).set_read_timeout(Some(PATIENCE)).expect("an option");
        let connect = |_| {
            let near = self.client.run(|| from_port(0, self.target));
            let (far, peer) = listener.accept().expect("a connection");
            assert_eq!(peer.ip(), self.source, "through {} to {}", self.target, self.listen);
            (near, far)
        };
        (0..FLOWS).map(connect).collect()
    }

    fn datagrams(&self) -> UdpSocket {
        let socket = self.client.run(|| UdpSocket::bind(any(self.target.ip(), 0))).expect("a socket");
        socket.connect(self.target).expect("an address");
        socket.set_read_timeout(Some(PATIENCE)).expect("an option");
        socket
    }

    /// Exchanges on all flows by turns.
    fn talk(&self, open: &mut Open) {
        match open {
            Open::Tcp(streams) => {
                for round in 0..ROUNDS {
                    for (number, (near, far)) in (0..).zip(streams.iter_mut()) {
                        exchange(near, far, round ^ number);
                        exchange(far, near, round ^ !number);
                    }
                }
            }
            Open::Udp(server, clients) => {
                server.set_read_timeout(Some(PATIENCE)).expect("an option");
                for round in 0..ROUNDS {
                    for (number, client) in (0..).zip(clients.iter()) {
                        self.ask(client, server, &[round, number]);
                    }
                }
            }
            Open::Echo => std::thread::scope(|scope| {
                let options = Ping { count: ROUNDS.into(), timeout: PATIENCE, ..Ping::default() };
                for _ in 0..FLOWS {
                    scope.spawn(move || assert_answered(self.client, self.target.ip(), options));
                }
            }),
        }
    }

    fn ask(&self, client: &UdpSocket, server: &UdpSocket, words: &[u8]) {
        let mut heard = [0; 10];
        client.send(words).expect("sent");
        let (len, from) = uninterrupted(|| server.recv_from(&mut heard)).expect("a question");
        assert_eq!((&heard[..len], from.ip()), (words, self.source), "through {}", self.target);
        server.send_to(words, from).expect("sent");
        let len = uninterrupted(|| client.recv(&mut heard)).expect("an answer");
        assert_eq!(&heard[..len], words, "through {}", self.target);
    }

    /// What of these flows may bypass the stack of node 1, echoes left out.
    fn direct(&self, open: &Open, remote: [IpAddr; 2]) -> Vec<Ends> {
        if !remote.contains(&self.target.ip()) {
            return Vec::new();
        }
        let ends = |protocol: &str, local: SocketAddr| (protocol.to_owned(), local, self.target);
        let local = "a local address";
        match open {
            Open::Tcp(all) => {
                all.iter().map(|(near, _)| ends("tcp", near.local_addr().expect(local))).collect()
            }
            Open::Udp(_, all) => {
                all.iter().map(|socket| ends("udp", socket.local_addr().expect(local))).collect()
            }
            Open::Echo => Vec::new(),
        }
    }
}

/// Does `work` for every kind with its state, all at once.
fn at_once<T: Send, R: Send>(kinds: &[Kind], state: Vec<T>, work: impl Fn(&Kind, T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> =
            kinds.iter().zip(state).map(|(kind, state)| scope.spawn(move || work(kind, state))).collect();
        threads.into_iter().map(|thread| thread.join().expect("flows that work")).collect()
    })
}

/// Flows that have bypassed the stack of node 1.
fn bypassing(lab: &Lab) -> Vec<Ends> {
    let flows = lab.agent(1).and_then(|agent| agent.json(&["flows", "list"])).expect("flows");
    let end = |flow: &serde_json::Value, side: &str| {
        let ip: IpAddr = flow[side].as_str().and_then(|ip| ip.parse().ok()).expect("an address");
        let port = flow[format!("{side}_port")].as_u64().and_then(|port| port.try_into().ok());
        SocketAddr::new(ip, port.expect("a port"))
    };
    let flows = flows.as_array().expect("a list").iter().filter(|flow| flow["packets"] != 0);
    flows
        .map(|flow| {
            let protocol = flow["protocol"].as_str().expect("a protocol").to_owned();
            (protocol, end(flow, "local"), end(flow, "remote"))
        })
        .collect()
}

fn serve(lab: &Lab) {
    let (pod, neighbour, remote) = (lab.pod(1, 1), lab.pod(1, 2), lab.pod(2, 1));
    let services = [
        (REMOTE, remote, None),
        (NEIGHBOUR, neighbour, None),
        (OWN, pod, None),
        (REMOTE_OUTSIDE, remote, Some(NodePort::Cluster(NODE_PORT))),
        (NEIGHBOUR_OUTSIDE, neighbour, Some(NodePort::Local(NODE_PORT_LOCAL))),
    ];
    let services = services.map(|(port, pod, node_port)| Service { port, pod, node_port });
    for family in [Family::V4, Family::V6] {
        nft(lab, 1, &rules(&services, family));
    }
}

fn a_thousand_flows(attach: Attach, bridge_netfilter: bool) {
    let lab = guarded(&verified().pods(2).attach(attach).bridge_netfilter(bridge_netfilter));
    if attach == Attach::Bridge {
        let hairpin = format!("bridge link set dev {} hairpin on", lab.pod(1, 1).host_veth);
        lab.node(1).sh(&hairpin).expect("hairpin mode");
    }
    serve(&lab);
    let kinds: Vec<_> = [Family::V4, Family::V6].into_iter().flat_map(|family| kinds(&lab, family)).collect();
    assert_eq!(kinds.len() * FLOWS, 1_000);
    let mut open = at_once(&kinds, vec![(); kinds.len()], |kind, ()| kind.open());
    let nodes = counted(&lab, || {
        at_once(&kinds, open.iter_mut().collect(), |kind, open| kind.talk(open));
    });
    let (echoes, flows): (Vec<_>, Vec<_>) =
        bypassing(&lab).into_iter().partition(|(protocol, ..)| protocol.starts_with("icmp"));
    let remote = lab.pod(2, 1).ips();
    let direct = kinds.iter().zip(&open).flat_map(|(kind, open)| kind.direct(open, remote));
    let (flows, direct): (BTreeSet<_>, BTreeSet<_>) = (flows.into_iter().collect(), direct.collect());
    assert_eq!(direct.len(), 4 * FLOWS);
    assert_eq!(flows, direct, "what has bypassed the stack, and what may");
    assert!(echoes.len() >= 2 * FLOWS, "{} echoes bypassed the stack", echoes.len());
    // Of each family: connections, datagrams and echoes but for the first of each and one a second.
    let rounds = u64::from(ROUNDS) * FLOWS as u64;
    assert_took(&nodes[0], "pod_egress", "encapsulated", 2 * (rounds + 2 * rounds / 2));
    // Services, and what goes out.
    assert_took(&nodes[0], "pod_egress", "no_route", 2 * 5 * rounds);
    nodes.iter().for_each(assert_nothing_dropped);
}

#[test]
fn a_thousand_flows_of_all_kinds_at_once_arrive_each_its_own_way() {
    a_thousand_flows(Attach::Bridge, true);
}

#[test]
fn a_thousand_flows_of_routed_pods_of_all_kinds_at_once_arrive_each_its_own_way() {
    a_thousand_flows(Attach::Ptp, false);
}
