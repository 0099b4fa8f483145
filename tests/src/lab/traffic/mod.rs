//! Traffic between namespaces, without any program of the distribution.
//!
//! Clients and servers are threads of this process that have entered a namespace; they take
//! anything that dereferences to a [`Netns`](super::Netns), so pods and nodes alike.

pub mod frames;
mod multicast;
mod offload;
mod ping;
mod raw;
mod talk;
mod tap;
mod tcp;
mod udp;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::libc;

pub use multicast::{Member, multicast};
pub use offload::{OffloadCapture, Offloads};
pub use ping::{Ping, PingError, PingReport, ping};
pub use raw::{Capture, Frame, Injector, inject, mac_of};
pub use talk::{Talk, TalkReport};
pub use tap::Cable;
pub use tcp::{Transfer, tcp_bulk, tcp_concurrent};
pub use udp::{EchoReport, StreamReport, UdpStream, udp_echo};

/// The unspecified address of the family of `ip`, with port `port`.
pub(crate) fn any(ip: IpAddr, port: u16) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// `setsockopt` for options that are an `int`.
pub(crate) fn set_int(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let size = size_of_val(&value) as libc::socklen_t;
    let pointer = (&raw const value).cast();
    // SAFETY: the kernel reads `size` bytes from `value`, which outlives the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, pointer, size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Does `receive` again for as long as it is interrupted. A receive with a time limit is, unlike one
/// without, when the process was stopped or frozen in it and goes on (`signal(7)`).
///
/// # Errors
/// Any other of `receive`.
pub fn uninterrupted<T>(mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match receive() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// `len` bytes that differ from place to place, so that a shifted or swapped part shows.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}
