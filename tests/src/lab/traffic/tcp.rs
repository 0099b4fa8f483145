//! TCP transfers whose content is checked byte by byte.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{any, pattern, uninterrupted};
use crate::lab::Netns;

const BLOCK: usize = 128 * 1024;
const PATIENCE: Duration = Duration::from_secs(10);

/// What was moved, and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Bytes that arrived and were right.
    pub bytes: u64,
    /// From the first byte sent until the receiver had said that it has the last.
    pub elapsed: Duration,
}

impl Transfer {
    /// Throughput in Gb/s.
    pub fn gigabits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64() / 1e9
    }
}

/// Moves `bytes` from `client` to a server in `server` that listens on `address`.
///
/// # Errors
/// No connection within 10 s, nothing moves for 10 s, or other bytes arrive than were sent.
pub fn tcp_bulk(client: &Netns, server: &Netns, address: IpAddr, bytes: u64) -> Result<Transfer> {
    let listener = server.run(|| TcpListener::bind(any(address, 0)))?;
    let target = SocketAddr::new(address, listener.local_addr()?.port());
    let stream = client.run(|| connect(target))?;
    let (accepted, _) = listener.accept()?;
    // The sockets stay in the namespaces that they were made in, whoever uses them.
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(accepted));
        let start = Instant::now();
        send(stream, bytes)?;
        let elapsed = start.elapsed();
        let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))??;
        ensure!(received == bytes, "{received} of {bytes} bytes arrived");
        Ok(Transfer { bytes, elapsed })
    })
    .with_context(|| format!("TCP transfer to {target}"))
}

/// Opens `count` connections at the same time; each moves `bytes` there and the same back.
///
/// # Errors
/// Says how many failed, and how the first one did.
pub fn tcp_concurrent(
    client: &Netns,
    server: &Netns,
    address: IpAddr,
    count: usize,
    bytes: usize,
) -> Result<()> {
    let listener = server.run(|| TcpListener::bind(any(address, 0)))?;
    let target = SocketAddr::new(address, listener.local_addr()?.port());
    socket2::SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    // Accepted while more are made: the listener's backlog is shorter than the list.
    let (streams, accepted) = std::thread::scope(|scope| {
        let acceptor =
            scope.spawn(|| (0..count).map(|_| Ok(listener.accept()?.0)).collect::<Result<Vec<_>>>());
        let streams = client.run(|| (0..count).map(|_| connect(target)).collect::<Result<Vec<_>>>())?;
        let accepted = acceptor.join().map_err(|_| anyhow::anyhow!("the acceptor panicked"))??;
        anyhow::Ok((streams, accepted))
    })?;
    let failures: Vec<anyhow::Error> = std::thread::scope(|scope| {
        for stream in &accepted {
            scope.spawn(|| echo(stream));
        }
        let clients: Vec<_> =
            streams.iter().map(|stream| scope.spawn(|| there_and_back(stream, bytes))).collect();
        let results = clients.into_iter().map(|c| c.join().map_err(|_| anyhow::anyhow!("panicked")));
        results.filter_map(|result| result.and_then(|inner| inner).err()).collect()
    });
    match failures.first() {
        Some(first) => bail!("{} of {count} connections failed: {first:#}", failures.len()),
        None => Ok(()),
    }
}

pub(super) fn connect(target: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)
        .with_context(|| format!("no connection to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn send(mut stream: TcpStream, bytes: u64) -> Result<()> {
    let block = pattern(BLOCK);
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
        stream.write_all(&block[..len]).with_context(|| format!("{left} bytes left to send"))?;
        left -= len as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // The receiver closes when it has everything.
    let rest = uninterrupted(|| stream.read(&mut [0; 1])).context("the receiver never closed")?;
    ensure!(rest == 0, "the receiver sent something");
    Ok(())
}

fn receive(mut stream: TcpStream) -> Result<u64> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let (block, mut buffer) = (pattern(BLOCK), vec![0; BLOCK]);
    let mut total = 0;
    loop {
        let offset = total % BLOCK;
        let read = uninterrupted(|| stream.read(&mut buffer[..BLOCK - offset]));
        let len = read.context("nothing arrives")?;
        if len == 0 {
            return Ok(total as u64);
        }
        ensure!(buffer[..len] == block[offset..offset + len], "wrong bytes after {total}");
        total += len;
    }
}

fn echo(mut stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match uninterrupted(|| stream.read(&mut buffer))? {
            0 => return Ok(stream.shutdown(Shutdown::Write)?),
            len => stream.write_all(&buffer[..len])?,
        }
    }
}

fn there_and_back(stream: &TcpStream, bytes: usize) -> Result<()> {
    let sent = pattern(bytes);
    let mut received = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut stream = stream;
            stream.write_all(&sent).and_then(|()| stream.shutdown(Shutdown::Write))
        });
        { stream }.read_to_end(&mut received)?;
        writer.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        ensure!(received == sent, "{} of {bytes} bytes came back, or wrong ones", received.len());
        Ok(())
    })
}
