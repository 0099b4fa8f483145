//! UDP: echoes of any size, and numbered streams whose losses are counted.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::libc;

use super::{any, pattern, set_int, uninterrupted};
use crate::lab::Netns;

/// What became of datagrams that were sent to an echo server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EchoReport {
    /// Sent.
    pub sent: usize,
    /// Came back as they were.
    pub intact: usize,
    /// Came back with other content.
    pub corrupt: usize,
}

impl EchoReport {
    /// Whether every datagram came back as it was.
    pub fn all_intact(&self) -> bool {
        self.intact == self.sent
    }
}

/// Sends one datagram of each size to an echo server in `server`, waiting for each.
///
/// # Errors
/// A socket cannot be opened, or the own host refuses to send.
pub fn udp_echo(
    client: &Netns,
    server: &Netns,
    address: IpAddr,
    sizes: impl IntoIterator<Item = usize>,
) -> Result<EchoReport> {
    let echo = server.run(|| UdpSocket::bind(any(address, 0)))?;
    let socket = client.run(|| UdpSocket::bind(any(address, 0)))?;
    socket.connect((address, echo.local_addr()?.port()))?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    echo.set_read_timeout(Some(Duration::from_millis(50)))?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| serve_echo(&echo, &done));
        let mut report = EchoReport::default();
        let result = sizes.into_iter().try_for_each(|size| exchange(&socket, size, &mut report));
        done.store(true, Ordering::Relaxed);
        result.map(|()| report).with_context(|| format!("UDP echo to {address}"))
    })
}

fn exchange(socket: &UdpSocket, size: usize, report: &mut EchoReport) -> Result<()> {
    let sent = pattern(size);
    let mut buffer = vec![0; 65_536];
    socket.send(&sent).with_context(|| format!("cannot send {size} bytes"))?;
    report.sent += 1;
    match uninterrupted(|| socket.recv(&mut buffer)) {
        Ok(len) if buffer[..len] == sent[..] => report.intact += 1,
        Ok(_) => report.corrupt += 1,
        Err(_) => {}
    }
    Ok(())
}

fn serve_echo(socket: &UdpSocket, done: &AtomicBool) {
    let mut buffer = vec![0; 65_536];
    while !done.load(Ordering::Relaxed) {
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            // A reply that cannot be sent is one that the client misses.
            let _ = socket.send_to(&buffer[..len], from);
        }
    }
}

/// What a receiver saw of a numbered stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Different datagrams received.
    pub received: u64,
    /// Sent, never received.
    pub lost: u64,
    /// Received more than once.
    pub duplicates: u64,
    /// Received after one with a higher number.
    pub reordered: u64,
    /// The longest time between two arrivals.
    pub longest_gap: Duration,
}

/// A stream of numbered datagrams at a fixed rate in the background.
pub struct UdpStream {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<io::Result<u64>>,
    receiver: JoinHandle<io::Result<StreamReport>>,
    finished: Arc<AtomicBool>,
}

impl UdpStream {
    /// Starts to send `rate` datagrams of `size` bytes (at least 8) per second from `client` to
    /// `address` in `server`.
    ///
    /// # Errors
    /// A socket cannot be opened.
    pub fn start(client: &Netns, server: &Netns, address: IpAddr, rate: u32, size: usize) -> Result<Self> {
        let sink = server.run(|| UdpSocket::bind(any(address, 0)))?;
        set_int(&sink, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20)?;
        sink.set_read_timeout(Some(Duration::from_millis(50)))?;
        let target = SocketAddr::new(address, sink.local_addr()?.port());
        let socket = client.run(|| UdpSocket::bind(any(address, 0)))?;
        socket.connect(target)?;
        let (stop, finished) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (stop2, finished2) = (Arc::clone(&stop), Arc::clone(&finished));
        Ok(Self {
            stop,
            sender: std::thread::spawn(move || send(&socket, rate, size, &stop2)),
            receiver: std::thread::spawn(move || receive(&sink, &finished2)),
            finished,
        })
    }

    /// Stops sending, waits for what is under way, and reports.
    ///
    /// # Errors
    /// The own host refused to send, for example because it had no route.
    pub fn stop(self) -> Result<StreamReport> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        std::thread::sleep(Duration::from_millis(200));
        self.finished.store(true, Ordering::Relaxed);
        let seen = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        let sent = sent.context("cannot send")?;
        Ok(StreamReport { sent, lost: sent - seen.received, ..seen })
    }
}

fn send(socket: &UdpSocket, rate: u32, size: usize, stop: &AtomicBool) -> io::Result<u64> {
    let mut datagram = pattern(size.max(8));
    let start = Instant::now();
    let mut sent: u64 = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while sent <= due {
            datagram[..8].copy_from_slice(&sent.to_be_bytes());
            socket.send(&datagram)?;
            sent += 1;
        }
        std::thread::sleep(Duration::from_secs_f64(1.0 / f64::from(rate)).min(Duration::from_millis(1)));
    }
    Ok(sent)
}

fn receive(socket: &UdpSocket, finished: &AtomicBool) -> io::Result<StreamReport> {
    let (mut report, mut seen, mut highest) = (StreamReport::default(), HashSet::new(), 0);
    let mut last: Option<Instant> = None;
    let mut buffer = [0; 65_536];
    while !finished.load(Ordering::Relaxed) {
        let len = match uninterrupted(|| socket.recv(&mut buffer)) {
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        let Some(number) = buffer[..len].first_chunk().map(|bytes| u64::from_be_bytes(*bytes)) else {
            continue;
        };
        if !seen.insert(number) {
            report.duplicates += 1;
            continue;
        }
        report.received += 1;
        report.reordered += u64::from(number < highest);
        highest = highest.max(number);
        report.longest_gap = report.longest_gap.max(last.map_or(Duration::ZERO, |at| now - at));
        last = Some(now);
    }
    Ok(report)
}
