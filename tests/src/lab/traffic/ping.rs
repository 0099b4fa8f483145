//! ICMP and ICMPv6 echo.

use std::io::{self, IoSliceMut, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::{pattern, set_int, uninterrupted};
use crate::lab::Netns;

const HEADER: usize = 8;

/// Which echo requests to send.
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    /// Bytes behind the ICMP header.
    pub payload: usize,
    /// IPv4: DF set. Both families: the path MTU is obeyed, nothing is fragmented.
    pub dont_fragment: bool,
    /// How many.
    pub count: u16,
    /// Whether none is sent after one without a reply.
    pub until_lost: bool,
    /// Time between two.
    pub interval: Duration,
    /// How long to wait for a reply.
    pub timeout: Duration,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// The interface that the socket is bound to, as for one in a VRF.
    pub device: Option<&'static str>,
}

impl Default for Ping {
    fn default() -> Self {
        Self {
            payload: 56,
            dont_fragment: false,
            count: 1,
            until_lost: false,
            interval: Duration::from_millis(5),
            timeout: Duration::from_secs(1),
            ttl: 64,
            tos: 0,
            device: None,
        }
    }
}

/// Why one request got no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PingError {
    /// Larger than the path MTU, in bytes, as the own host or an ICMP error said.
    TooBig {
        /// The path MTU; 0 if unknown.
        mtu: u32,
    },
    /// Another ICMP error.
    Icmp {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
    },
    /// Nothing came back.
    Timeout,
    /// A reply with another payload.
    Corrupt,
    /// The own host refused to send.
    Send(String),
}

/// What became of the requests.
#[derive(Clone, Debug, Default)]
pub struct PingReport {
    /// Requests sent, or tried to.
    pub sent: usize,
    /// Round-trip times of those that were answered.
    pub rtts: Vec<Duration>,
    /// What happened to the others.
    pub errors: Vec<PingError>,
}

impl PingReport {
    /// Whether every request was answered.
    pub fn all_answered(&self) -> bool {
        self.errors.is_empty() && self.rtts.len() == self.sent
    }

    /// The median round-trip time, zero if nothing was answered.
    pub fn median(&self) -> Duration {
        let mut sorted = self.rtts.clone();
        sorted.sort();
        sorted.get(sorted.len() / 2).copied().unwrap_or_default()
    }
}

/// Sends echo requests from `client` to `target`, one after the other.
///
/// # Errors
/// A socket cannot be opened or set up. Requests without a reply are in the report.
pub fn ping(client: &Netns, target: impl Into<IpAddr>, options: Ping) -> Result<PingReport> {
    let target = target.into();
    client.run(|| Pinger::new(target, options)?.run()).with_context(|| format!("pinging {target}"))
}

struct Pinger {
    socket: Socket,
    target: IpAddr,
    options: Ping,
    id: u16,
}

impl Pinger {
    fn new(target: IpAddr, options: Ping) -> Result<Self> {
        static NEXT: AtomicU16 = AtomicU16::new(1);
        let socket = match target {
            IpAddr::V4(_) => Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?,
            IpAddr::V6(_) => Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?,
        };
        let (ttl, tos) = (i32::from(options.ttl), i32::from(options.tos));
        let discover = if options.dont_fragment { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_DONT };
        if target.is_ipv4() {
            set_int(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
            set_int(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, discover)?;
            set_int(&socket, libc::IPPROTO_IP, libc::IP_TTL, ttl)?;
            set_int(&socket, libc::IPPROTO_IP, libc::IP_TOS, tos)?;
        } else {
            set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
            set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, discover)?;
            set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, options.dont_fragment.into())?;
            set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl)?;
            set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos)?;
        }
        // A raw socket gets the replies to everybody's requests.
        set_int(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 4 << 20)?;
        socket.bind_device(options.device.map(str::as_bytes))?;
        socket.connect(&SocketAddr::new(target, 0).into())?;
        Ok(Self { socket, target, options, id: NEXT.fetch_add(1, Ordering::Relaxed) })
    }

    fn run(&self) -> Result<PingReport> {
        let mut report = PingReport::default();
        for sequence in 0..self.options.count {
            if sequence > 0 {
                std::thread::sleep(self.options.interval);
            }
            report.sent += 1;
            match self.exchange(sequence)? {
                Ok(rtt) => report.rtts.push(rtt),
                Err(error) => report.errors.push(error),
            }
            if self.options.until_lost && !report.errors.is_empty() {
                break;
            }
        }
        Ok(report)
    }

    fn exchange(&self, sequence: u16) -> Result<Result<Duration, PingError>> {
        let request = self.request(sequence);
        let start = Instant::now();
        // A failed send takes up an error that is pending from an earlier request: try again.
        if let Err(error) = self.socket.send(&request).or_else(|_| self.socket.send(&request)) {
            return Ok(Err(match self.queued_error().filter(|e| matches!(e, PingError::TooBig { .. })) {
                Some(queued) => queued,
                None if error.raw_os_error() == Some(libc::EMSGSIZE) => PingError::TooBig { mtu: 0 },
                None => PingError::Send(error.to_string()),
            }));
        }
        let mut buffer = vec![0; 65_536];
        while let Some(left) = self.options.timeout.checked_sub(start.elapsed()) {
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match uninterrupted(|| (&self.socket).read(&mut buffer)) {
                Ok(len) => match self.judge(&buffer[..len], sequence, &request) {
                    Some(Ok(())) => return Ok(Ok(start.elapsed())),
                    Some(Err(error)) => return Ok(Err(error)),
                    None => {}
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    let other = || PingError::Send(error.to_string());
                    return Ok(Err(self.queued_error().unwrap_or_else(other)));
                }
            }
        }
        Ok(Err(PingError::Timeout))
    }

    fn request(&self, sequence: u16) -> Vec<u8> {
        let kind = if self.target.is_ipv4() { 8 } else { 128 };
        let mut message = vec![kind, 0, 0, 0];
        message.extend(self.id.to_be_bytes());
        message.extend(sequence.to_be_bytes());
        message.extend(pattern(self.options.payload));
        if self.target.is_ipv4() {
            // The kernel fills in the checksum of ICMPv6 only.
            let sum = checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        message
    }

    /// `None`: not the reply to this request.
    fn judge(&self, packet: &[u8], sequence: u16, request: &[u8]) -> Option<Result<(), PingError>> {
        let (message, reply_kind) = match self.target {
            IpAddr::V4(_) => (packet.get(usize::from(packet.first()? & 0xf) * 4..)?, 0),
            IpAddr::V6(_) => (packet, 129),
        };
        let ours = *message.first()? == reply_kind
            && message.get(4..6)? == self.id.to_be_bytes()
            && message.get(6..HEADER)? == sequence.to_be_bytes();
        let intact = message.get(HEADER..) == request.get(HEADER..);
        ours.then_some(if intact { Ok(()) } else { Err(PingError::Corrupt) })
    }

    fn queued_error(&self) -> Option<PingError> {
        let mut byte = [0; 64];
        let mut slices = [IoSliceMut::new(&mut byte)];
        let mut space = vec![0; 512];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
        message.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
                Some(describe(&error))
            }
            _ => None,
        })
    }
}

fn describe(error: &libc::sock_extended_err) -> PingError {
    if i32::try_from(error.ee_errno) == Ok(libc::EMSGSIZE) {
        return PingError::TooBig { mtu: error.ee_info };
    }
    PingError::Icmp { kind: error.ee_type, code: error.ee_code }
}

/// RFC 1071.
fn checksum(data: &[u8]) -> u16 {
    let words =
        data.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}
