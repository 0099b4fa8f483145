//! A virtual machine's network card: a tap device whose frames a process reads and writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, gettid};

use crate::lab::Netns;

/// How many milliseconds a cable sleeps before it looks whether it has been unplugged.
const LOOK: u8 = 50;

/// Two tap devices and a process that carries whole frames between them, as a virtual machine monitor
/// does: without offloads, so what passes is what would be on a wire. Ends when dropped.
pub struct Cable {
    unplugged: Arc<AtomicBool>,
    longest: Arc<AtomicUsize>,
    thread: Pid,
    carrier: Option<JoinHandle<()>>,
}

impl Cable {
    /// Makes a tap device at either end, given as namespace and name, and plugs them together.
    ///
    /// # Errors
    /// A device of that name exists, or the kernel has no taps.
    pub fn plug(one: (&Netns, &str), other: (&Netns, &str)) -> Result<Self> {
        let ends = [one, other].map(|(ns, name)| ns.run(|| tap(name)));
        let [one, other] = ends;
        let (one, other) = (one?, other?);
        let (unplugged, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stop, seen) = (Arc::clone(&unplugged), Arc::clone(&longest));
        let (tell, told) = channel();
        let carrier = std::thread::spawn(move || {
            // Who asks waits for the answer.
            let _ = tell.send(gettid());
            while !stop.load(Ordering::Relaxed) {
                let mut ready = [
                    PollFd::new(one.as_fd(), PollFlags::POLLIN),
                    PollFd::new(other.as_fd(), PollFlags::POLLIN),
                ];
                let _ = poll(&mut ready, PollTimeout::from(LOOK));
                carry(&one, &other, &seen);
                carry(&other, &one, &seen);
            }
        });
        let thread = told.recv().context("the cable's thread has ended")?;
        Ok(Self { unplugged, longest, thread, carrier: Some(carrier) })
    }

    /// The thread that carries frames.
    pub fn thread(&self) -> Pid {
        self.thread
    }

    /// The longest frame that has passed, in bytes.
    pub fn longest(&self) -> usize {
        self.longest.load(Ordering::Relaxed)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.unplugged.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Carries what there is. A frame that the other end does not take is lost, as on a wire.
fn carry(mut from: &File, mut to: &File, longest: &AtomicUsize) {
    let mut frame = vec![0; 1 << 16];
    while let Ok(len) = from.read(&mut frame) {
        longest.fetch_max(len, Ordering::Relaxed);
        let _ = to.write(&frame[..len]);
    }
}

/// A tap device of the current namespace.
fn tap(name: &str) -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let file = file.context("cannot open /dev/net/tun")?;
    // SAFETY: all zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(anyhow!("{name} is too long for an interface"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()).with_context(|| format!("cannot make the tap {name}")),
    }
}
