//! A socket, and whoever waits for answers at it.

use std::collections::HashMap;
use std::io::{self, IoSliceMut, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use socket2::Socket;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::message::{self, HEADER};
use super::{Outcome, Way, socket};

/// The largest packet there is.
const LARGEST: usize = 65_536;

/// Sends probes one way over one IP version. Any number may be on their way at once.
pub struct Prober {
    shared: Arc<Shared>,
    listener: JoinHandle<()>,
}

struct Shared {
    socket: AsyncFd<Socket>,
    v6: bool,
    way: Way,
    id: u16,
    next: AtomicU16,
    /// When requests were sent, by number, and who waits for what comes of them.
    waiting: Mutex<HashMap<u16, (Instant, oneshot::Sender<Outcome>)>>,
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Prober {
    /// From `source`, or from what the kernel chooses.
    ///
    /// # Errors
    /// No raw socket is allowed, or nobody here has the address.
    pub fn open(v6: bool, way: Way, source: Option<IpAddr>) -> anyhow::Result<Self> {
        let from = source.map(|source| format!(" from {source}")).unwrap_or_default();
        let context = || format!("cannot send ICMP echoes{from}: it takes CAP_NET_RAW");
        let socket = socket::open(v6, way, source).with_context(context)?;
        // SAFETY: the socket owns its descriptor, which nothing closes or replaces before the socket is dropped.
        let socket = unsafe { AsyncFd::register(socket) }.with_context(context)?;
        let id = (getrandom::u32().context("the kernel has no random number")? >> 16) as u16;
        let shared = Shared { socket, v6, way, id, next: AtomicU16::new(0), waiting: Mutex::default() };
        let shared = Arc::new(shared);
        let listener = tokio::spawn(listen(Arc::clone(&shared)));
        Ok(Self { shared, listener })
    }

    /// An IP packet of `bytes` bytes to `to`, or the smallest if that is less.
    pub async fn echo(&self, to: IpAddr, bytes: usize, timeout: Duration) -> Outcome {
        let shared = &self.shared;
        let payload = bytes.saturating_sub(self.smallest());
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        shared.waiting().insert(number, (Instant::now(), tell));
        let request = message::request(shared.v6, shared.id, number, payload);
        let outcome = match shared.send(&request, to).await {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Outcome::TooBig,
            Err(error) => Outcome::Refused(format!("cannot send to {to}: {error}")),
            Ok(()) => match tokio::time::timeout(timeout, told).await {
                Ok(Ok(outcome)) => outcome,
                _ => Outcome::Silent,
            },
        };
        shared.waiting().remove(&number);
        outcome
    }

    /// Bytes of a packet without payload.
    pub fn smallest(&self) -> usize {
        let ip = if self.shared.v6 { 40 } else { 20 };
        ip + socket::extra(self.shared.way) + HEADER
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u16, (Instant, oneshot::Sender<Outcome>)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, request: &[u8], to: IpAddr) -> io::Result<()> {
        let to = SocketAddr::new(to, 0).into();
        loop {
            let mut ready = self.socket.writable().await?;
            // The first attempt may take up an error that is about an earlier request.
            let sent = ready.try_io(|socket| {
                socket.get_ref().send_to(request, &to).or_else(|_| socket.get_ref().send_to(request, &to))
            });
            if let Ok(sent) = sent {
                return sent.map(drop);
            }
        }
    }

    fn tell(&self, number: u16, outcome: impl FnOnce(Instant) -> Outcome) {
        if let Some((sent, waiting)) = self.waiting().remove(&number) {
            // Who waited may have given up.
            let _ = waiting.send(outcome(sent));
        }
    }

    /// Takes in answers until there are none; IPv4 packets come with their IP header.
    fn take_answers(&self, buffer: &mut [u8]) {
        loop {
            match self.socket.get_ref().read(buffer) {
                Ok(length) => {
                    let packet = &buffer[..length];
                    let header =
                        if self.v6 { 0 } else { usize::from(packet.first().map_or(0, |b| b & 0xf)) * 4 };
                    let message = packet.get(header..).unwrap_or_default();
                    if let Some(number) = message::answered(self.v6, self.id, message) {
                        self.tell(number, |sent| Outcome::Answered(sent.elapsed()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // It is in the queue of errors, too.
                Err(_) => {}
            }
        }
    }

    /// Takes in what others say of requests until they say no more.
    fn take_errors(&self, buffer: &mut [u8]) {
        loop {
            let mut space = vec![0; 512];
            let (length, error) = {
                let mut slices = [IoSliceMut::new(buffer)];
                let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
                let fd = self.socket.get_ref().as_raw_fd();
                let Ok(message) = recvmsg::<()>(fd, &mut slices, Some(&mut space), flags) else { return };
                let error = message.cmsgs().ok().and_then(|mut all| all.find_map(outcome));
                (message.bytes, error)
            };
            let request = buffer.get(..length).unwrap_or_default();
            if let (Some(number), Some(error)) = (message::requested(self.v6, self.id, request), error) {
                self.tell(number, |_| error);
            }
        }
    }
}

fn outcome(control: ControlMessageOwned) -> Option<Outcome> {
    let (ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _)) = control
    else {
        return None;
    };
    let number = i32::try_from(error.ee_errno).unwrap_or_default();
    if number == libc::EMSGSIZE {
        return Some(Outcome::TooBig);
    }
    Some(Outcome::Refused(format!(
        "{} (ICMP type {}, code {})",
        io::Error::from_raw_os_error(number),
        error.ee_type,
        error.ee_code
    )))
}

async fn listen(shared: Arc<Shared>) {
    let mut buffer = vec![0; LARGEST];
    // It fails when there is no event loop any more.
    while let Ok(mut ready) = shared.socket.readable().await {
        shared.take_errors(&mut buffer);
        shared.take_answers(&mut buffer);
        ready.clear_ready();
    }
}
