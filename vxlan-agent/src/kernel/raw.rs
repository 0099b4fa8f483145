//! Conversations over netlink about what the library has no messages for, or reads none of in which it
//! does not understand a part.

use std::io;

use nix::libc;
use rtnetlink::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket};

/// `struct nlmsghdr`.
const HEADER: usize = 16;
/// Flags of a request for everything.
pub(super) const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
/// Flags of a request for one thing.
pub(super) const ONE: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;

/// A socket of `protocol` in this thread's network namespace; `None` where the kernel has no such protocol.
pub(super) fn open(protocol: isize) -> io::Result<Option<TokioSocket>> {
    let mut socket = match TokioSocket::new(protocol) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
        socket => socket?,
    };
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    Ok(Some(socket))
}

/// Sends a request with this body and hands kind and content of every answer to `each`.
pub(super) async fn ask(
    socket: &TokioSocket,
    kind: u16,
    flags: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    let length = HEADER + body.len();
    let mut request = vec![0; HEADER];
    request[..4].copy_from_slice(&(length as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&kind.to_ne_bytes());
    request[6..8].copy_from_slice(&flags.to_ne_bytes());
    request.extend(body);
    socket.send_to(&request, &SocketAddr::new(0, 0)).await?;
    loop {
        let (answers, _) = socket.recv_from_full().await?;
        for (kind, _, content) in messages(&answers) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => return check(content),
                _ => each(kind, content),
            }
        }
    }
}

/// Kinds, numbers and contents of messages, as far as they are whole.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<HEADER>()?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (length, kind) = (word(0) as usize, u16::from_ne_bytes([header[4], header[5]]));
        let (number, content) = (word(8), bytes.get(HEADER..length)?);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, number, content))
    })
}

/// An error message with the number zero is an acknowledgement.
pub(super) fn check(content: &[u8]) -> io::Result<()> {
    let number = content.first_chunk().map_or(-libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes));
    if number == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-number)) }
}
