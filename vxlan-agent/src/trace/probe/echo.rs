//! Echo requests (RFC 792, RFC 4443 §4) that are not fragmented, and what comes back.

use std::io::{self, IoSliceMut, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::{Domain, Protocol, Socket, Type};

/// Length of an ICMP echo header.
const HEADER: usize = 8;
/// What a request begins with, before a number that no other has.
const NAME: &[u8; 8] = b"vxtrace:";
/// Room for whatever comes back.
const LARGEST: usize = 1 << 16;

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It was answered after this time.
    Reply(Duration),
    /// It was not sent, and why.
    Refused(String),
    /// It is too large for somebody on the way.
    TooBig {
        /// How large it may be there; 0: nobody says.
        mtu: u32,
        /// Who says so; none: this host itself.
        by: Option<IpAddr>,
    },
    /// Somebody on the way answered that it does not get on.
    Unreachable {
        /// Type and code of the ICMP message.
        icmp: (u8, u8),
        /// Who; none: this host itself.
        by: Option<IpAddr>,
    },
    /// Nothing came back in time.
    None,
}

/// A socket for echo requests between two addresses.
pub(super) struct Echoes {
    socket: Socket,
    to: IpAddr,
    id: u16,
    number: AtomicU16,
    cookie: [u8; 16],
}

impl Echoes {
    /// In the network namespace of this thread.
    pub(super) fn open(from: IpAddr, to: IpAddr) -> Result<Self> {
        let (domain, protocol) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
        };
        let context = "cannot open a raw socket for echo requests: it needs CAP_NET_RAW";
        let socket = Socket::new(domain, Type::RAW, Some(protocol)).context(context)?;
        let probe = libc::IP_PMTUDISC_PROBE;
        let options = match to {
            IpAddr::V4(_) => [
                (libc::IPPROTO_IP, libc::IP_RECVERR, 1),
                (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, probe),
                (libc::SOL_SOCKET, libc::SO_RCVBUF, 4 << 20),
            ],
            IpAddr::V6(_) => [
                (libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
                (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, probe),
                (libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1),
            ],
        };
        for (level, name, value) in options {
            set(&socket, level, name, value).context("cannot set up a socket for echo requests")?;
        }
        let bound = socket.bind(&SocketAddr::new(from, 0).into());
        bound.with_context(|| format!("cannot send from {from}"))?;
        let mut random = [0; 10];
        getrandom::fill(&mut random).context("there are no random numbers")?;
        let [a, b, number @ ..] = random;
        let mut cookie = [0; 16];
        cookie[..8].copy_from_slice(NAME);
        cookie[8..].copy_from_slice(&number);
        Ok(Self { socket, to, id: u16::from_be_bytes([a, b]), number: AtomicU16::new(0), cookie })
    }

    /// What every request carries, and its answer.
    pub(super) const fn cookie(&self) -> &[u8; 16] {
        &self.cookie
    }

    /// Whether IPv6 is spoken.
    pub(super) const fn is_ipv6(&self) -> bool {
        self.to.is_ipv6()
    }

    /// Sends a request of `length` bytes, from the IP header on, and waits for the answer.
    pub(super) fn exchange(&self, length: usize, patience: Duration) -> Result<Answer> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let request = self.request(number, length);
        self.take_error();
        let begun = Instant::now();
        let to = SocketAddr::new(self.to, 0).into();
        // A failed attempt takes up an error that an earlier packet has left.
        let sent = self.socket.send_to(&request, &to).or_else(|_| self.socket.send_to(&request, &to));
        if let Err(error) = sent {
            return Ok(match (error.raw_os_error(), self.take_error()) {
                (_, Some(answer @ Answer::TooBig { .. })) => answer,
                (Some(libc::EMSGSIZE), _) => Answer::TooBig { mtu: 0, by: None },
                _ => Answer::Refused(error.to_string()),
            });
        }
        let mut buffer = vec![0; LARGEST];
        while let Some(left) = patience.checked_sub(begun.elapsed()) {
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match (&self.socket).read(&mut buffer) {
                Ok(length) if self.is_reply(&buffer[..length], number, &request) => {
                    return Ok(Answer::Reply(begun.elapsed()));
                }
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(_) => {}
            }
            if let Some(answer) = self.take_error() {
                return Ok(answer);
            }
        }
        Ok(Answer::None)
    }

    fn request(&self, number: u16, length: usize) -> Vec<u8> {
        let ip = if self.is_ipv6() { 40 } else { 20 };
        let mut message = vec![if self.is_ipv6() { 128 } else { 8 }, 0, 0, 0];
        message.extend(self.id.to_be_bytes());
        message.extend(number.to_be_bytes());
        message.extend(self.cookie);
        message.resize(length.saturating_sub(ip).max(HEADER + self.cookie.len()), 0x5a);
        if !self.is_ipv6() {
            // The kernel fills in that of ICMPv6.
            let sum = checksum(&message).to_be_bytes();
            message[2..4].copy_from_slice(&sum);
        }
        message
    }

    fn is_reply(&self, packet: &[u8], number: u16, request: &[u8]) -> bool {
        let (start, kind) = match packet.first() {
            Some(first) if !self.is_ipv6() => (usize::from(first & 0xf) * 4, 0),
            _ => (0, 129),
        };
        let Some(message) = packet.get(start..) else { return false };
        message.first() == Some(&kind)
            && message.get(4..6) == Some(&self.id.to_be_bytes())
            && message.get(6..HEADER) == Some(&number.to_be_bytes())
            && message.get(HEADER..) == request.get(HEADER..)
    }

    /// An error that the kernel has queued.
    fn take_error(&self) -> Option<Answer> {
        let (mut bytes, mut space) = ([0; 64], vec![0; 512]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags).ok()?;
        let (error, by) = message.cmsgs().ok()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4RecvErr(error, by) => {
                Some((error, by.map(|by| IpAddr::from(by.sin_addr.s_addr.to_ne_bytes()))))
            }
            ControlMessageOwned::Ipv6RecvErr(error, by) => {
                Some((error, by.map(|by| IpAddr::from(by.sin6_addr.s6_addr))))
            }
            _ => None,
        })?;
        let by = by.filter(|by| !by.is_unspecified());
        Some(match i32::try_from(error.ee_errno) {
            Ok(libc::EMSGSIZE) => Answer::TooBig { mtu: error.ee_info, by },
            _ => Answer::Unreachable { icmp: (error.ee_type, error.ee_code), by },
        })
    }
}

/// `setsockopt` for options that are an `int`.
fn set(socket: &Socket, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    // SAFETY: the kernel reads `size` bytes from `value`, which outlives the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// RFC 1071.
fn checksum(data: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let sum: u32 = data.chunks(2).map(word).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_make_the_sum_vanish() {
        let mut message = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1, 0xff, 0xff, 0x5a];
        let sum = checksum(&message).to_be_bytes();
        message[2..4].copy_from_slice(&sum);
        assert_eq!(checksum(&message), 0);
    }
}
