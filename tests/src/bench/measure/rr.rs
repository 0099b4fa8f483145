//! Requests and responses, one at a time. Values are µs per transaction: the time of a round
//! divided by the number of transactions in it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{SMALL, WARM_UP};
use crate::bench::course::End;
use crate::bench::cpu::{Pair, pin};
use crate::lab::traffic::uninterrupted;

const PATIENCE: Duration = Duration::from_secs(5);

/// Over one TCP connection.
pub(crate) fn tcp(client: End<'_>, server: End<'_>, cpus: Pair, duration: Duration) -> Result<f64> {
    let target = SocketAddr::from((server.ip4, 5203));
    let listener = server.ns.run(|| TcpListener::bind(target))?;
    let mut asking = client.ns.run(|| TcpStream::connect(target))?;
    let (mut answering, _) = listener.accept()?;
    for stream in [&asking, &answering] {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
    }
    let serve = move || {
        let mut message = [0; SMALL];
        while answering.read_exact(&mut message).is_ok() && answering.write_all(&message).is_ok() {}
    };
    against(serve, cpus, move || {
        let mut message = [0; SMALL];
        time(duration, || {
            asking.write_all(&message)?;
            Ok(asking.read_exact(&mut message)?)
        })
    })
}

/// Over a new TCP connection each. The server closes first.
pub(crate) fn tcp_connect(client: End<'_>, server: End<'_>, cpus: Pair, duration: Duration) -> Result<f64> {
    let target = SocketAddr::from((server.ip4, 5204));
    let listener = server.ns.run(|| TcpListener::bind(target))?;
    let serve = move || {
        let mut message = [0; SMALL];
        // An empty connection is the end.
        while let Ok((mut stream, _)) = listener.accept() {
            if stream.read_exact(&mut message).is_err() || stream.write_all(&message).is_err() {
                return;
            }
        }
    };
    against(serve, cpus, move || {
        // The sockets belong to the pod that this thread has entered.
        client.ns.run(|| {
            pin(cpus.client)?;
            let mut message = [0; SMALL];
            let result = time(duration, || {
                let mut stream = TcpStream::connect(target)?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(&message)?;
                stream.read_exact(&mut message)?;
                let _closed = uninterrupted(|| stream.read(&mut [0; 1]))?;
                Ok(())
            });
            drop(TcpStream::connect(target)?);
            result
        })
    })
}

/// Over a pair of UDP sockets.
pub(crate) fn udp(client: End<'_>, server: End<'_>, cpus: Pair, duration: Duration) -> Result<f64> {
    let target = SocketAddr::from((server.ip4, 5205));
    let answering = server.ns.run(|| UdpSocket::bind(target))?;
    let asking = client.ns.run(|| UdpSocket::bind((client.ip4, 0)))?;
    asking.connect(target)?;
    answering.connect(asking.local_addr()?)?;
    asking.set_read_timeout(Some(PATIENCE))?;
    let serve = move || {
        let mut message = [0; SMALL];
        // A datagram of another size is the end.
        while let Ok(SMALL) = answering.recv(&mut message) {
            if answering.send(&message).is_err() {
                return;
            }
        }
    };
    against(serve, cpus, move || {
        let mut message = [0; SMALL];
        let result = time(duration, || {
            asking.send(&message)?;
            uninterrupted(|| asking.recv(&mut message))?;
            Ok(())
        });
        asking.send(&[0])?;
        result
    })
}

/// Runs `serve` on the server's CPU and `ask` on the client's; returns what `ask` returned.
fn against(serve: impl FnOnce() + Send, cpus: Pair, ask: impl FnOnce() -> Result<f64> + Send) -> Result<f64> {
    std::thread::scope(|scope| {
        scope.spawn(move || pin(cpus.server).map(|()| serve()));
        let client = scope.spawn(move || pin(cpus.client).and_then(|()| ask()));
        client.join().map_err(|_| anyhow!("the client panicked"))?
    })
}

/// Repeats `transaction` for `duration` after the warm-up; µs per transaction.
fn time(duration: Duration, mut transaction: impl FnMut() -> Result<()>) -> Result<f64> {
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        transaction()?;
    }
    let (start, mut count) = (Instant::now(), 0_u32);
    while start.elapsed() < duration {
        transaction()?;
        count += 1;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(count))
}
