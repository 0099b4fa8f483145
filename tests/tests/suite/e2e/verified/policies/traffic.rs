//! The traffic of a case: what is open beforehand, and what is tried afterwards.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use vxlan_ebpf_common::headers::Be16;
use vxlan_tests::lab::traffic::Capture;
use vxlan_tests::lab::{Family, Lab, Netns};

use super::super::{exchange, from_port};

/// Of the server, or of the client where the server begins.
const TCP: u16 = 7000;
pub(super) const UDP: u16 = 7001;
/// What rules are about.
pub(super) const OTHER: u16 = 7003;
const PATIENCE: Duration = Duration::from_secs(5);
/// What has not arrived.
pub(super) const REFUSED: &str = "refused";

/// What became of each packet or connection that was tried.
pub(super) type Outcome = BTreeMap<String, String>;

/// Tries something within a time, and says whether it passes.
type Attempt<'a> = Box<dyn FnOnce(Duration) -> bool + Send + 'a>;

/// How long is waited for a packet.
pub(super) enum Limits<'a> {
    /// As long as it takes with a busy machine: the referee does not know what arrives.
    Referee,
    /// What has to arrive is given time. What has not until then does not arrive.
    Expected(&'a Outcome),
}

impl Limits<'_> {
    fn of(&self, name: &str) -> Duration {
        match self {
            Self::Referee => Duration::from_secs(1),
            Self::Expected(outcome) if outcome.get(name).is_some_and(|result| result != REFUSED) => PATIENCE,
            Self::Expected(_) => Duration::from_millis(300),
        }
    }
}

/// Sockets that stay, of one IP version.
pub(super) struct Ends {
    pub(super) family: Family,
    pub(super) client: Netns,
    pub(super) server: Netns,
    pub(super) near: IpAddr,
    pub(super) far: IpAddr,
    listeners: Vec<TcpListener>,
    pub(super) servers: BTreeMap<u16, UdpSocket>,
    pub(super) arriving: Capture,
}

/// What is open when something happens.
pub(super) struct Session {
    /// Number of the case: ports and identifiers are its own.
    number: u16,
    near: TcpStream,
    far: TcpStream,
    datagrams: UdpSocket,
}

impl Session {
    /// The client's ports, and the identifier, of what is open.
    pub(super) fn ports(number: u16) -> [Be16; 3] {
        [20_000, 40_000, 50_000].map(|base| Be16::new(base + number))
    }
}

impl Ends {
    pub(super) fn new(lab: &Lab, family: Family) -> Self {
        let [near, far] = [1, 2].map(|n| lab.pod(n, 1).ip(family));
        let [client, server] = [1, 2].map(|n| Netns::open(lab.pod(n, 1).namespace()).expect("a pod"));
        let listen = |ns: &Netns, ip, port| {
            let listener = ns.run(|| TcpListener::bind((ip, port))).expect("a listener");
            listener.set_nonblocking(true).expect("an option");
            listener
        };
        let udp = |port| (port, server.run(|| UdpSocket::bind((far, port))).expect("a server"));
        Self {
            family,
            near,
            far,
            listeners: vec![
                listen(&server, far, TCP),
                listen(&server, far, OTHER),
                listen(&client, near, TCP),
            ],
            servers: [udp(UDP), udp(OTHER)].into(),
            arriving: Capture::start(&server, "eth0").expect("a capture"),
            client,
            server,
        }
    }

    /// Opens a connection, one that ends, a flow of datagrams and one of echoes.
    pub(super) fn open(&self, number: u16) -> Session {
        let (mut near, mut far) = self.connection(20_000 + number);
        let (mut ending, mut ended) = self.connection(30_000 + number);
        let datagrams = self.client.run(|| UdpSocket::bind((self.near, 40_000 + number))).expect("a socket");
        let server = &self.servers[&UDP];
        let back = datagrams.local_addr().expect("an address");
        for round in 0..6 {
            for (a, b) in [(&mut near, &mut far), (&mut ending, &mut ended)] {
                exchange(a, b, round);
                exchange(b, a, round);
            }
            datagrams.send_to(&[round], (self.far, UDP)).expect("sent");
            assert!(hears(server, round), "a datagram of an open flow");
            server.send_to(&[round], back).expect("sent");
            assert!(hears(&datagrams, round), "an answer of an open flow");
            assert!(self.echo(&self.client, self.far, 50_000 + number, PATIENCE), "an echo");
        }
        // TIME_WAIT is the server's, so that the client may use the port again.
        drop(ended);
        assert_eq!(ending.read_to_end(&mut Vec::new()).expect("an end"), 0);
        Session { number, near, far, datagrams }
    }

    fn connection(&self, port: u16) -> (TcpStream, TcpStream) {
        let near = self.client.run(|| from_port(port, (self.far, TCP).into()));
        let own = near.local_addr().expect("an address");
        let end = Instant::now() + PATIENCE;
        loop {
            match self.listeners[0].accept() {
                Ok((far, peer)) if peer == own => {
                    far.set_nonblocking(false).expect("an option");
                    far.set_nodelay(true).expect("an option");
                    return (near, far);
                }
                // Left by a case before.
                Ok(_) => {}
                Err(error) => {
                    assert!(Instant::now() < end, "no connection: {error}");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Tries everything at once.
    pub(super) fn attempt(&self, mut session: Session, limits: &Limits) -> Outcome {
        let (number, family) = (session.number, self.family);
        let Session { near, far, datagrams, .. } = &mut session;
        let (own, other, used) = (50_000 + number, 55_000 + number, 30_000 + number);
        let (client, server) = (&self.client, &self.server);
        let opens = |ns, own: (IpAddr, u16), to: (IpAddr, u16), limit| connects(ns, own, to.into(), limit);
        let tries: Vec<(&str, Attempt<'_>)> = vec![
            ("an old connection", Box::new(|limit| tells(far, near, limit) && tells(near, far, limit))),
            ("a new connection", Box::new(|limit| opens(client, (self.near, 0), (self.far, TCP), limit))),
            (
                "a new connection to the other port",
                Box::new(|limit| opens(client, (self.near, 0), (self.far, OTHER), limit)),
            ),
            (
                "a new connection with ports used before",
                Box::new(|limit| opens(client, (self.near, used), (self.far, TCP), limit)),
            ),
            (
                "a connection that the server opens",
                Box::new(|limit| opens(server, (self.far, 0), (self.near, TCP), limit)),
            ),
            ("an echo of the old identifier", Box::new(|limit| self.echo(client, self.far, own, limit))),
            ("an echo of a new one", Box::new(|limit| self.echo(client, self.far, other, limit))),
            (
                "the server's echo of the old identifier",
                Box::new(|limit| self.echo(server, self.near, own, limit)),
            ),
            ("the server's echo of a new one", Box::new(|limit| self.echo(server, self.near, other, limit))),
        ];
        let outcome = std::thread::scope(|scope| {
            let name = |what: &str| format!("{what} over {family:?}");
            let running: Vec<_> = tries
                .into_iter()
                .map(|(what, attempt)| {
                    let limit = limits.of(&name(what));
                    (name(what), scope.spawn(move || attempt(limit)))
                })
                .collect();
            let sent = self.datagrams(number, datagrams, |what| limits.of(&name(what)));
            let sent = sent.into_iter().map(|(what, result)| (name(what), result));
            let passes = |passes: bool| if passes { "passes" } else { REFUSED };
            let ended = running.into_iter().map(|(name, thread)| (name, thread.join().expect("an attempt")));
            sent.chain(ended.map(|(name, passed)| (name, passes(passed).to_owned()))).collect()
        });
        self.listeners.iter().for_each(|listener| while listener.accept().is_ok() {});
        outcome
    }

    /// Whether `target` answers an echo request with this identifier.
    fn echo(&self, from: &Netns, target: IpAddr, identifier: u16, limit: Duration) -> bool {
        let (domain, protocol, request, reply) = match self.family {
            Family::V4 => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
            Family::V6 => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
        };
        let own = if target == self.far { self.near } else { self.far };
        let socket = from.run(|| Socket::new(domain, Type::DGRAM, Some(protocol))).expect("a socket");
        socket.bind(&SocketAddr::new(own, identifier).into()).expect("an identifier");
        socket.connect(&SocketAddr::new(target, 0).into()).expect("an address");
        socket.set_read_timeout(Some(limit)).expect("an option");
        let mut answer = [0; 9];
        (&socket).write_all(&[request, 0, 0, 0, 0, 0, 0, 1, 42]).is_ok()
            && (&socket).read_exact(&mut answer).is_ok()
            && (answer[0], answer[8]) == (reply, 42)
    }
}

/// Whether `to` receives what `from` writes.
fn tells(from: &mut TcpStream, to: &mut TcpStream, limit: Duration) -> bool {
    to.set_read_timeout(Some(limit)).expect("an option");
    from.write_all(&[7; 100]).is_ok() && to.read_exact(&mut [0; 100]).is_ok()
}

/// Whether a connection comes about.
fn connects(ns: &Netns, own: (IpAddr, u16), to: SocketAddr, limit: Duration) -> bool {
    ns.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&SocketAddr::from(own).into()).expect("a port");
        socket.connect_timeout(&to.into(), limit).is_ok()
    })
}

/// Whether `socket` receives this byte; what else it receives does not count, nor does a signal.
fn hears(socket: &UdpSocket, byte: u8) -> bool {
    socket.set_read_timeout(Some(PATIENCE)).expect("an option");
    let (mut buffer, end) = ([0; 64], Instant::now() + PATIENCE);
    while Instant::now() < end {
        if socket.recv(&mut buffer).is_ok_and(|len| buffer[..len] == [byte]) {
            return true;
        }
    }
    false
}
