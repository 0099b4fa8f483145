//! Whether a clsact filter is on an interface, asked of the kernel over rtnetlink (RFC 3549). It answers
//! before `send` returns, so nothing here waits.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// With `struct tcmsg`.
const LENGTH: u32 = 36;
/// What an answer has room for; its beginning says enough.
const ANSWER: usize = 4096;

/// Whether `interface` has a filter with this `parent` (`TC_H_CLSACT` and the direction), `priority` and
/// `handle` for packets of any protocol.
pub(super) fn is_there(interface: u32, parent: u32, priority: u16, handle: u32) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    send(socket.as_raw_fd(), &request(interface, parent, priority, handle), MsgFlags::empty())?;
    let mut answer = [0; ANSWER];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT)?;
    read(answer.get(..length).unwrap_or_default())
}

fn request(interface: u32, parent: u32, priority: u16, handle: u32) -> Vec<u8> {
    let kind_and_flags = u32::from(libc::RTM_GETTFILTER) | (libc::NLM_F_REQUEST as u32) << 16;
    let kind_and_flags =
        if cfg!(target_endian = "big") { kind_and_flags.rotate_left(16) } else { kind_and_flags };
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    let words = [
        LENGTH,
        kind_and_flags,
        1,
        0,
        0,
        interface,
        handle,
        parent,
        u32::from(priority) << 16 | u32::from(protocol),
    ];
    words.into_iter().flat_map(u32::to_ne_bytes).collect()
}

fn read(answer: &[u8]) -> io::Result<bool> {
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    let error = answer.get(HEADER..HEADER + 4).and_then(|code| code.try_into().ok()).map(i32::from_ne_bytes);
    match (kind.map(i32::from), error) {
        (Some(libc::NLMSG_ERROR), Some(error)) if -error == libc::EPERM || -error == libc::ENOMEM => {
            Err(io::Error::from_raw_os_error(-error))
        }
        // No such filter, chain, qdisc or interface.
        (Some(libc::NLMSG_ERROR), _) => Ok(false),
        (Some(kind), _) => Ok(kind == i32::from(libc::RTM_NEWTFILTER)),
        (None, _) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_without_filters_has_none() {
        const LOOPBACK: u32 = 1;
        assert!(!is_there(LOOPBACK, 0xffff_fff2, 7, 0x0bad_cafe).expect("an answer"));
        assert!(!is_there(u32::MAX >> 1, 0xffff_fff2, 7, 1).expect("an answer"));
    }
}
