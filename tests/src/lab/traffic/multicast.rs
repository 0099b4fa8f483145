//! Datagrams to a group.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{any, uninterrupted};
use crate::lab::Netns;

/// How long a member waits for the next datagram.
const QUIET: Duration = Duration::from_millis(300);

/// A member of a group.
pub struct Member {
    socket: UdpSocket,
}

impl Member {
    /// Joins `group` on `interface` of `ns`, for datagrams to `port`.
    ///
    /// # Errors
    /// There is no such interface, or `group` is none.
    pub fn join(ns: &Netns, interface: &str, group: IpAddr, port: u16) -> Result<Self> {
        let socket = ns.run(|| {
            let socket = UdpSocket::bind(any(group, port))?;
            let index = nix::net::if_::if_nametoindex(interface)?;
            match group {
                IpAddr::V4(group) => socket2::SockRef::from(&socket)
                    .join_multicast_v4_n(&group, &socket2::InterfaceIndexOrAddress::Index(index))?,
                IpAddr::V6(group) => socket.join_multicast_v6(&group, index)?,
            }
            anyhow::Ok(socket)
        });
        Ok(Self { socket: socket.with_context(|| format!("joining {group}"))? })
    }

    /// How many datagrams with the content `data` have come, until none has for a while or there are
    /// `enough`.
    ///
    /// # Errors
    /// The socket fails.
    pub fn received(&self, data: &[u8], enough: usize) -> Result<usize> {
        self.socket.set_read_timeout(Some(QUIET))?;
        let (mut buffer, mut count) = (vec![0; 65_536], 0);
        let end = Instant::now() + Duration::from_secs(5);
        while count < enough && Instant::now() < end {
            match uninterrupted(|| self.socket.recv(&mut buffer)) {
                Ok(len) => count += usize::from(buffer[..len] == *data),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("receiving multicast"),
            }
        }
        Ok(count)
    }
}

/// Sends `data` `count` times to `group` out of `interface` of `ns`.
///
/// # Errors
/// There is no such interface, or it does not take the datagrams.
pub fn multicast(
    ns: &Netns,
    interface: &str,
    group: IpAddr,
    port: u16,
    data: &[u8],
    count: usize,
) -> Result<()> {
    ns.run(|| {
        let unspecified: IpAddr = match group {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((unspecified, 0))?;
        socket2::SockRef::from(&socket).bind_device(Some(interface.as_bytes()))?;
        (0..count).try_for_each(|_| socket.send_to(data, (group, port)).map(|_| ()))
    })
    .with_context(|| format!("sending to {group}"))
}
