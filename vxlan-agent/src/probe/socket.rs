//! Raw ICMP sockets that send with Don't Fragment, and hear answers alone.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::Way;
use super::message::{REPLY4, REPLY6};

/// `ICMP_FILTER` of `linux/icmp.h` and `ICMPV6_FILTER` of `linux/icmpv6.h`.
const ICMP_FILTER: libc::c_int = 1;
const ICMPV6_FILTER: libc::c_int = 1;
/// Room for the answers of many nodes at once.
const BUFFER: usize = 4 << 20;
/// Record Route with room for one address (RFC 791 §3.1), and the end of options.
const RECORD_ROUTE: [u8; 8] = [7, 7, 4, 0, 0, 0, 0, 0];
/// Hop-by-hop options with nothing but padding (RFC 8200 §4.3). Of destination options the kernel takes the length off
/// the MTU twice (`__ip6_append_data`, v6.18).
const PADDING: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// Bytes between the IP header and the echo of probes that go this way.
pub(super) const fn extra(way: Way) -> usize {
    match way {
        Way::Fast => 0,
        Way::Kernel => RECORD_ROUTE.len(),
    }
}

/// A socket that sends this way, from `source` if it is given.
pub(super) fn open(v6: bool, way: Way, source: Option<IpAddr>) -> io::Result<Socket> {
    let (domain, protocol) =
        if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(protocol))?;
    if v6 {
        set_up6(&socket)?
    } else {
        set_up4(&socket)?
    }
    match (way, v6) {
        (Way::Fast, _) => {}
        (Way::Kernel, false) => set(&socket, libc::IPPROTO_IP, libc::IP_OPTIONS, &RECORD_ROUTE)?,
        (Way::Kernel, true) => set(&socket, libc::IPPROTO_IPV6, libc::IPV6_HOPOPTS, &PADDING)?,
    }
    socket.set_recv_buffer_size(BUFFER)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(socket)
}

/// The path MTU is what is asked for: what the kernel believes of it does not count, and nothing is fragmented.
fn set_up4(socket: &Socket) -> io::Result<()> {
    set_number(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
    set_number(socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
    let others = !(1u32 << REPLY4);
    set(socket, libc::SOL_RAW, ICMP_FILTER, &others.to_ne_bytes())
}

fn set_up6(socket: &Socket) -> io::Result<()> {
    set_number(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
    set_number(socket, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
    set_number(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
    let mut others = [u32::MAX; 8];
    others[usize::from(REPLY6 >> 5)] &= !(1 << (REPLY6 & 31));
    let others: Vec<u8> = others.into_iter().flat_map(u32::to_ne_bytes).collect();
    set(socket, libc::IPPROTO_ICMPV6, ICMPV6_FILTER, &others)
}

fn set_number(
    socket: &Socket,
    level: libc::c_int,
    option: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    set(socket, level, option, &value.to_ne_bytes())
}

fn set(socket: &Socket, level: libc::c_int, option: libc::c_int, value: &[u8]) -> io::Result<()> {
    let length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` bytes of `value`, which has as many, during the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.as_ptr().cast(), length) };
    nix::errno::Errno::result(result)?;
    Ok(())
}
