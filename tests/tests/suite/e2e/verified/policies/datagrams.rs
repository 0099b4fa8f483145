//! Datagrams that are tried: which arrive, and with which DSCP.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use vxlan_tests::lab::Family;
use vxlan_tests::lab::traffic::Frame;

use super::traffic::{Ends, OTHER, REFUSED, UDP};

/// CS1.
const DSCP: u32 = 0x20;
/// Number of the first datagram to the client.
const ANSWERS: u8 = 100;
/// Length of what a datagram carries.
const MARK: usize = 9;

impl Ends {
    /// Datagrams of the old flow and of new ones, to both sides.
    pub(super) fn datagrams(
        &self,
        number: u16,
        old: &UdpSocket,
        limit: impl Fn(&str) -> Duration,
    ) -> Vec<(&'static str, String)> {
        let new = self.client.run(|| UdpSocket::bind((self.near, 0))).expect("a socket");
        let stranger = self.server.run(|| UdpSocket::bind((self.far, 0))).expect("a socket");
        let back = old.local_addr().expect("an address");
        let to_server = [
            ("a datagram of the old flow", old, UDP, 0),
            ("a datagram of the old flow with another DSCP", old, UDP, DSCP),
            ("a datagram of a new flow", &new, UDP, 0),
            ("a datagram of a new flow with another DSCP", &new, UDP, DSCP),
            ("a datagram to the other port", &new, OTHER, 0),
        ];
        let to_client = [
            ("an answer of the old flow", &self.servers[&UDP]),
            ("a datagram of the server's own", &stranger),
        ];
        drop(self.arriving.pending());
        let begun = Instant::now();
        for (kind, (_, socket, port, tos)) in (0..).zip(to_server) {
            set_tos(socket, tos);
            socket.send_to(&mark(number, kind), (self.far, port)).expect("sent");
        }
        for (kind, (_, socket)) in (ANSWERS..).zip(to_client) {
            socket.send_to(&mark(number, kind), back).expect("sent");
        }
        let arrived = self.arrived(number, to_server.map(|(what, ..)| begun + limit(what)));
        let heard = heard(old, number, to_client.map(|(what, _)| begun + limit(what)));
        let arrives = |tos: u8| format!("arrives with TOS {tos:#x}");
        let arrived = arrived.map(|tos| tos.map_or(REFUSED.to_owned(), arrives));
        let heard = heard.map(|heard| if heard { "arrives" } else { REFUSED }.to_owned());
        let server = to_server.into_iter().map(|(what, ..)| what).zip(arrived);
        server.chain(to_client.into_iter().map(|(what, _)| what).zip(heard)).collect()
    }

    /// Which datagrams reach the server, each until its time is over, and with which TOS.
    fn arrived<const N: usize>(&self, number: u16, until: [Instant; N]) -> [Option<u8>; N] {
        let (ethertype, ours) = (if self.family == Family::V4 { 0x0800 } else { 0x86dd }, mark(number, 0));
        let ours = |bytes: &[u8]| bytes.windows(MARK).position(|part| part[..MARK - 1] == ours[..MARK - 1]);
        let mut arrived = [None; N];
        while let Some(left) = left(&arrived.map(|tos| tos.is_some()), &until) {
            let wanted = |frame: &Frame| frame.ethertype() == Some(ethertype) && ours(&frame.0).is_some();
            let Some(Frame(bytes)) = self.arriving.next(left, wanted).expect("a capture") else { continue };
            let kind = ours(&bytes).map(|at| usize::from(bytes[at + MARK - 1]));
            let tos = match self.family {
                Family::V4 => bytes[15],
                Family::V6 => (bytes[14] << 4) | (bytes[15] >> 4),
            };
            // What the server sends passes there, too.
            if let Some(arrived) = kind.and_then(|kind| arrived.get_mut(kind)) {
                *arrived = Some(tos);
            }
        }
        arrived
    }
}

/// What datagram `kind` of a case carries.
fn mark(number: u16, kind: u8) -> [u8; MARK] {
    let [high, low] = number.to_be_bytes();
    [b'p', b'o', b'l', b'i', b'c', b'y', high, low, kind]
}

/// How long to wait for those that are not there; `None`: no longer.
fn left(there: &[bool], until: &[Instant]) -> Option<Duration> {
    let missing = there.iter().zip(until).filter(|(there, _)| !**there);
    let end = missing.map(|(_, until)| *until).max()?;
    end.checked_duration_since(Instant::now()).filter(|left| *left >= Duration::from_millis(1))
}

/// Which answers `socket` gets, each until its time is over.
fn heard<const N: usize>(socket: &UdpSocket, number: u16, until: [Instant; N]) -> [bool; N] {
    let (mut heard, ours) = ([false; N], mark(number, 0));
    let note = |heard: &mut [bool; N], received: &[u8]| {
        let kind =
            received.strip_prefix(&ours[..MARK - 1]).and_then(|rest| rest.first()?.checked_sub(ANSWERS));
        if let Some(heard) = kind.and_then(|kind| heard.get_mut(usize::from(kind))) {
            *heard = true;
        }
    };
    let mut buffer = [0; 64];
    // What has arrived already counts, however late it is.
    socket.set_nonblocking(true).expect("an option");
    while let Ok(len) = socket.recv(&mut buffer) {
        note(&mut heard, &buffer[..len]);
    }
    socket.set_nonblocking(false).expect("an option");
    while let Some(left) = left(&heard, &until) {
        socket.set_read_timeout(Some(left)).expect("an option");
        if let Ok(len) = socket.recv(&mut buffer) {
            note(&mut heard, &buffer[..len]);
        }
    }
    heard
}

/// TOS or traffic class of what is sent from now on.
fn set_tos(socket: &UdpSocket, tos: u32) {
    let socket = socket2::SockRef::from(socket);
    let v4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
    let set = if v4 { socket.set_tos_v4(tos) } else { socket.set_tclass_v6(tos) };
    set.expect("an option");
}
