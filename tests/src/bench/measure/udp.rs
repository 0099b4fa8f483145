//! UDP datagrams in one direction, as fast as one sender can.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::libc;

use super::{SMALL, watch};
use crate::bench::course::End;
use crate::bench::cpu::{Pair, pin};
use crate::lab::traffic::set_int;
use crate::lab::traffic::uninterrupted;

/// What a receiver saw of a sender's datagrams.
pub(crate) struct OneWay {
    /// Thousands of datagrams per second, at the receiver.
    pub(crate) delivered_kpps: f64,
    /// Of all that were sent.
    pub(crate) lost_percent: f64,
    /// CPU seconds of the whole machine per million delivered.
    pub(crate) cpu_per_million: f64,
}

/// Sends from `client` to `server`.
pub(crate) fn one_way(client: End<'_>, server: End<'_>, cpus: Pair, duration: Duration) -> Result<OneWay> {
    let target = SocketAddr::from((server.ip4, 5202));
    let sink = server.ns.run(|| UdpSocket::bind(target))?;
    set_int(&sink, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 32 << 20)?;
    sink.set_read_timeout(Some(Duration::from_millis(100)))?;
    let socket = client.ns.run(|| UdpSocket::bind((client.ip4, 0)))?;
    socket.connect(target)?;
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&sink, cpus.server, &received, &stop));
        let sender = scope.spawn(|| send(&socket, cpus.client, &sent, &stop));
        let window = watch(&received, duration);
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?.context("sending")?;
        receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?.context("receiving")?;
        let (window, all) = (window?, sent.load(Ordering::Relaxed) as f64);
        ensure!(window.amount > 0.0, "nothing arrived");
        Ok(OneWay {
            delivered_kpps: window.amount / window.seconds / 1e3,
            lost_percent: 100.0 * (all - received.load(Ordering::Relaxed) as f64) / all,
            cpu_per_million: window.cpu_seconds / (window.amount / 1e6),
        })
    })
}

fn send(socket: &UdpSocket, cpu: usize, sent: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    pin(cpu)?;
    let datagram = [0; SMALL];
    while !stop.load(Ordering::Relaxed) {
        socket.send(&datagram)?;
        sent.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Counts until the sender has stopped and nothing has come for a read timeout.
fn receive(socket: &UdpSocket, cpu: usize, received: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    pin(cpu)?;
    let mut datagram = [0; SMALL];
    loop {
        match uninterrupted(|| socket.recv(&mut datagram)) {
            Ok(_) => {
                received.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}
