//! A netlink socket to nf_tables. The kernel has answered by the time that `send` returns, so
//! nothing here waits.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::libc;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

use crate::kernel::raw::{check, messages};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// With `struct nfgenmsg`.
const NETFILTER_HEADER: usize = 20;
/// What a kernel's answer has room for, by its own convention (`NLMSG_GOODSIZE`) with some to spare.
pub(super) const ANSWER: usize = 64 * 1024;

/// Room for the largest batch: 20 000 nodes take 4 MiB.
const SEND_BUFFER: usize = 16 << 20;

pub(super) struct Socket(OwnedFd);

/// An answer's type, number and content after the header.
type Answer<'a> = (i32, u32, &'a [u8]);

impl Socket {
    /// A socket in the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // A batch is one message, however many elements it brings. Needs CAP_NET_ADMIN of the host's.
        let _ = setsockopt(&fd, sockopt::SndBufForce, &SEND_BUFFER);
        Ok(Self(fd))
    }

    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), bytes, MsgFlags::empty()).map(drop).map_err(io::Error::from)
    }

    /// Waits for the answer to message `last`, or for the first that is an error.
    pub(super) fn await_acknowledgement(&self, last: u32) -> io::Result<()> {
        let (mut done, mut buffer) = (false, vec![0; ANSWER]);
        while !done {
            self.receive(&mut buffer, |(kind, number, content)| {
                if kind == libc::NLMSG_ERROR {
                    check(content)?;
                    done |= number == last;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Hands family and attributes of every message to `each`, up to the end of a dump or an
    /// acknowledgement. `buffer` has room for an answer.
    pub(super) fn collect(&self, buffer: &mut [u8], mut each: impl FnMut(u8, &[u8])) -> io::Result<()> {
        let mut done = false;
        while !done {
            self.receive(buffer, |(kind, _, content)| {
                match kind {
                    libc::NLMSG_ERROR => {
                        check(content)?;
                        done = true;
                    }
                    libc::NLMSG_DONE => done = true,
                    _ => {
                        if let Some((header, attributes)) =
                            content.split_first_chunk::<{ NETFILTER_HEADER - HEADER }>()
                        {
                            each(header[0], attributes);
                        }
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn receive(
        &self,
        buffer: &mut [u8],
        mut each: impl FnMut(Answer<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let length = recv(self.0.as_raw_fd(), buffer, MsgFlags::empty())?;
        messages(&buffer[..length])
            .try_for_each(|(kind, number, content)| each((i32::from(kind), number, content)))
    }
}
