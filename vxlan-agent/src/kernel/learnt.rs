//! Path MTUs that the kernel has learnt. It keeps them as exceptions from its routes and notifies nobody,
//! so they are asked for; a dump of exceptions alone is short (Linux 5.3).

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use nix::libc;
use rtnetlink::sys::AsyncSocket as _;
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::nft::attributes;
use super::raw;
use crate::net::Mtu;

/// `struct rtmsg`.
const HEADER: usize = 12;
/// `RTM_F_CLONED` of `linux/rtnetlink.h`.
const EXCEPTIONS: u32 = 0x200;
/// `RTA_DST` and `RTA_METRICS`, and `RTAX_MTU` within that.
const DESTINATION: u16 = 1;
const METRICS: u16 = 8;
const MTU: u16 = 2;

/// The path MTUs that the kernel has learnt, by destination, in this thread's network namespace. Where the
/// kernel does not list them apart, none.
///
/// # Errors
/// The kernel does not say.
pub async fn learnt_mtus() -> io::Result<BTreeMap<IpAddr, Mtu>> {
    let mut learnt = BTreeMap::new();
    let Some(mut socket) = raw::open(NETLINK_ROUTE)? else { return Ok(learnt) };
    // Without it, a dump has the routes, too.
    if socket.socket_mut().set_netlink_get_strict_chk(true).is_err() {
        return Ok(learnt);
    }
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut body = [0; HEADER];
        body[0] = family as u8;
        body[8..].copy_from_slice(&EXCEPTIONS.to_ne_bytes());
        let read = raw::ask(&socket, libc::RTM_GETROUTE, raw::DUMP, &body, |kind, content| {
            learnt.extend((kind == libc::RTM_NEWROUTE).then(|| exception(content)).flatten());
        });
        match read.await {
            // Before Linux 5.3, or without IPv6.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            read => read?,
        }
    }
    Ok(learnt)
}

/// The destination of an exception, and the MTU that it is about, if it is about one.
fn exception(content: &[u8]) -> Option<(IpAddr, Mtu)> {
    let (mut destination, mut mtu) = (None, None);
    for (kind, value) in attributes::list(content.get(HEADER..)?) {
        match kind {
            DESTINATION => destination = address(value),
            METRICS => {
                let learnt = attributes::list(value).find(|(kind, _)| *kind == MTU);
                mtu = learnt.and_then(|(_, value)| Some(Mtu(u32::from_ne_bytes(value.try_into().ok()?))));
            }
            _ => {}
        }
    }
    destination.zip(mtu)
}

fn address(value: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(value).ok().map(IpAddr::from);
    v4().or_else(|| <[u8; 16]>::try_from(value).ok().map(IpAddr::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_has_a_destination_and_an_mtu() {
        let mut content = vec![0; HEADER];
        content.extend([8, 0, 1, 0, 192, 0, 2, 2]);
        assert_eq!(exception(&content), None, "a redirect");
        content.extend([12, 0, 8, 0, 8, 0, 2, 0]);
        content.extend(1400_u32.to_ne_bytes());
        assert_eq!(exception(&content), Some((IpAddr::from([192, 0, 2, 2]), Mtu(1400))));
        assert_eq!(exception(&content[..5]), None);
    }
}
