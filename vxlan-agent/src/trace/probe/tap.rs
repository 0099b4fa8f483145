//! Sees probes on the underlay: as they leave, and their answers as they arrive, in their tunnels or out of them.

use std::io;

use anyhow::{Context as _, Result};
use nix::libc;
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use super::place::Seen;

/// `ETH_P_ALL` in network byte order, as packet sockets want it.
const ALL_PROTOCOLS: u16 = (libc::ETH_P_ALL as u16).to_be();
/// Length of an echo header.
const HEADER: usize = 8;
/// Headers that a probe has in front of its IP header: Ethernet alone; and a tunnel over IPv4 or IPv6; each with a VLAN
/// tag, too.
const IN_FRONT: [usize; 6] = [14, 18, 64, 68, 84, 88];

/// A packet socket.
pub(super) struct Tap {
    socket: Socket,
}

impl Tap {
    /// On an interface of this thread's namespace, for probes of `length` bytes: frames of other lengths stay in the
    /// kernel.
    pub(super) fn open(ifindex: u32, length: usize) -> Result<Self> {
        let protocol = Protocol::from(i32::from(ALL_PROTOCOLS));
        let context = "cannot open a packet socket: it needs CAP_NET_RAW";
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context(context)?;
        socket.attach_filter(&filter(length)).context("cannot filter by length")?;
        let bound = socket.bind(&address(ifindex)?);
        bound.with_context(|| format!("cannot look at interface {ifindex}"))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// What has come by since it was last asked, of those that carry `cookie`.
    pub(super) fn seen(&self, cookie: &[u8]) -> Result<Seen> {
        let mut seen = Seen::default();
        let mut buffer = Vec::with_capacity(1 << 16);
        loop {
            buffer.clear();
            match self.socket.recv(buffer.spare_capacity_mut()) {
                Ok(length) => {
                    // SAFETY: the kernel has written `length` bytes there.
                    unsafe { buffer.set_len(length) };
                    seen.add(kind(&buffer, cookie));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(seen),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("cannot look at the underlay"),
            }
        }
    }
}

/// Whether a frame is a request or an answer with this cookie.
fn kind(frame: &[u8], cookie: &[u8]) -> Seen {
    let at = frame.windows(cookie.len()).position(|window| window == cookie);
    let kind = at.and_then(|at| frame.get(at.checked_sub(HEADER)?));
    Seen { left: matches!(kind, Some(8 | 128)), came_back: matches!(kind, Some(0 | 129)) }
}

/// Takes frames of the lengths that a probe may have (`linux/filter.h`).
fn filter(length: usize) -> Vec<SockFilter> {
    const LOAD_LENGTH: u16 = 0x80;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    let mut program = vec![SockFilter::new(LOAD_LENGTH, 0, 0, 0)];
    for (left, in_front) in (0..IN_FRONT.len() as u8).rev().zip(IN_FRONT) {
        let frame = u32::try_from(length + in_front).unwrap_or(u32::MAX);
        // To the last instruction, over the other comparisons and the one that refuses.
        program.push(SockFilter::new(JUMP_IF_EQUAL, left + 1, 0, frame));
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program.push(SockFilter::new(RETURN, 0, 0, u32::MAX));
    program
}

fn address(ifindex: u32) -> Result<SockAddr> {
    let index = i32::try_from(ifindex).context("no interface has such an index")?;
    // SAFETY: `storage` is zeroed and large enough for any address, `sockaddr_ll` included; the length is set to that
    // of what is written.
    let (_, address) = unsafe {
        SockAddr::try_init(|storage, length| {
            let link: *mut libc::sockaddr_ll = storage.cast();
            (*link).sll_family = libc::AF_PACKET as u16;
            (*link).sll_protocol = ALL_PROTOCOLS;
            (*link).sll_ifindex = index;
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }?;
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_and_answers_come_back() {
        let cookie = b"vxtrace:12345678";
        let frame = |kind: u8| [&[0xff; 34], &[kind, 0, 0, 0, 0, 1, 0, 1][..], cookie, &[0x5a; 9]].concat();
        let seen = |kind_: u8| (kind(&frame(kind_), cookie).left, kind(&frame(kind_), cookie).came_back);
        assert_eq!([8, 128, 0, 129].map(seen), [(true, false), (true, false), (false, true), (false, true)]);
        assert_eq!(kind(&frame(8), b"vxtrace:87654321"), Seen::default());
    }
}
