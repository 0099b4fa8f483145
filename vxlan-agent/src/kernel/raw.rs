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
        let mut rest = answers.as_slice();
        while let Some((length, kind, content)) = message(rest) {
            match i32::from(kind) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    let code =
                        content.first_chunk().map_or(-libc::EBADMSG, |bytes| i32::from_ne_bytes(*bytes));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => each(kind, content),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The first of several messages: length, kind and content.
fn message(bytes: &[u8]) -> Option<(usize, u16, &[u8])> {
    let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
    let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
    Some((length, kind, bytes.get(HEADER..length)?))
}

/// Kinds and values of attributes, up to the first that is cut off.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & libc::NLA_TYPE_MASK as u16;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_where_they_are_cut_off() {
        let two = [5, 0, 1, 0, 7, 0, 0, 0, 4, 0, 2, 0];
        assert_eq!(attributes(&two).collect::<Vec<_>>(), [(1, &[7][..]), (2, &[][..])]);
        assert_eq!(attributes(&two[..10]).count(), 1);
        assert_eq!(attributes(&[9, 0, 1, 0]).count(), 0);
    }
}
