//! TCP streams in one direction.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::watch;
use crate::bench::course::End;
use crate::bench::cpu::{Pair, pin};

const BLOCK: usize = 128 * 1024;

/// What one or more streams did.
pub(crate) struct Streamed {
    /// At the receiver, all streams together.
    pub(crate) gigabits_per_second: f64,
    /// CPU seconds of the whole machine per 10⁹ bytes.
    pub(crate) cpu_per_gigabyte: f64,
}

/// `count` streams from `client` to `server`.
pub(crate) fn tcp(
    client: End<'_>,
    server: End<'_>,
    count: usize,
    cpus: Pair,
    duration: Duration,
) -> Result<Streamed> {
    let target = SocketAddr::from((server.ip4, 5201));
    let listener = server.ns.run(|| TcpListener::bind(target))?;
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..count {
            let sender = client.ns.run(|| TcpStream::connect(target))?;
            let (receiver, _) = listener.accept()?;
            let (received, stop) = (&received, &stop);
            scope.spawn(move || receive(receiver, cpus.server, received));
            scope.spawn(move || send(sender, cpus.client, stop));
        }
        let window = watch(&received, duration);
        stop.store(true, Ordering::Relaxed);
        let window = window?;
        ensure!(window.amount > 0.0, "nothing arrived");
        Ok(Streamed {
            gigabits_per_second: window.amount * 8.0 / window.seconds / 1e9,
            cpu_per_gigabyte: window.cpu_seconds / (window.amount / 1e9),
        })
    })
}

fn send(mut stream: TcpStream, cpu: usize, stop: &AtomicBool) -> Result<()> {
    pin(cpu)?;
    let block = vec![0; BLOCK];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&block)?;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, cpu: usize, received: &AtomicU64) -> Result<()> {
    pin(cpu)?;
    let mut block = vec![0; 2 * BLOCK];
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(()),
            len => received.fetch_add(len as u64, Ordering::Relaxed),
        };
    }
}
