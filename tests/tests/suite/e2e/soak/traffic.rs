//! Traffic without a pause: numbered datagrams and short connections between all pods.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use vxlan_tests::lab::{Lab, Netns, Pod, wait_until};

/// Time between two datagrams of one direction.
const TICK: Duration = Duration::from_millis(10);
/// Pause of a client between two connections.
const PAUSE: Duration = Duration::from_millis(100);
/// Longer than TCP's third retransmission.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a datagram may take.
const LATE: Duration = Duration::from_secs(5);
/// Datagrams of each direction that have to arrive before traffic counts as undisturbed.
const ENOUGH: u64 = 10;
/// Bytes of a question, and of its answer.
const QUESTION: usize = 1_000;
/// Questions on a connection.
const ROUNDS: u8 = 4;

/// Runs until it is stopped.
pub(super) struct Traffic {
    directions: Arc<Vec<Direction>>,
    clients: Vec<Arc<Mutex<Record>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// How much there was.
pub(super) struct Total {
    pub(super) datagrams: u64,
    pub(super) connections: u64,
}

/// Datagrams of one pod to another.
struct Direction {
    name: String,
    tag: u8,
    from: UdpSocket,
    to: UdpSocket,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    sent: u64,
    missing: BTreeSet<u64>,
}

/// What became of a client's connections, which are numbered from 0.
#[derive(Default)]
struct Record {
    begun: u64,
    ended: u64,
    failures: Vec<(u64, String)>,
}

impl Traffic {
    /// Starts it between the first pods of all nodes, over both IP versions.
    pub(super) fn start(lab: &Lab) -> Result<Self> {
        let pods: Vec<&Pod> = lab.nodes().iter().map(|node| &node.pods[0]).collect();
        let pairs = pods.iter().enumerate().flat_map(|(at, a)| pods[at + 1..].iter().map(move |b| (*a, *b)));
        let stop = Arc::new(AtomicBool::new(false));
        let (mut directions, mut clients, mut threads) = (Vec::new(), Vec::new(), Vec::new());
        for (a, b) in pairs {
            for (ip_a, ip_b) in a.ips().into_iter().zip(b.ips()) {
                directions.extend(both_directions((a, ip_a), (b, ip_b), directions.len() as u8)?);
                let record = Arc::new(Mutex::new(Record::default()));
                clients.push(Arc::clone(&record));
                threads.extend(connections([(a, ip_a), (b, ip_b)], record, &stop)?);
            }
        }
        let directions = Arc::new(directions);
        let (all, done) = (Arc::clone(&directions), Arc::clone(&stop));
        threads.push(std::thread::spawn(move || {
            while !done.load(Ordering::Relaxed) {
                all.iter().for_each(Direction::send);
                all.iter().for_each(Direction::receive);
                std::thread::sleep(TICK);
            }
        }));
        Ok(Self { directions, clients, stop, threads })
    }

    /// Waits until more has gone through on all ways, and everything that was sent before.
    ///
    /// # Errors
    /// Something is lost: what, and on which way.
    pub(super) fn settle(&self) -> Result<()> {
        let marks: Vec<u64> = self.directions.iter().map(|way| lock(&way.log).sent + ENOUGH).collect();
        let missing = || {
            self.directions.iter().zip(&marks).find_map(|(way, mark)| {
                let log = lock(&way.log);
                let lost: Vec<_> = log.missing.range(..*mark).copied().collect();
                (log.sent < *mark || !lost.is_empty()).then(|| format!("{}: {lost:?} of {mark}", way.name))
            })
        };
        let begun: Vec<u64> = self.clients.iter().map(|client| lock(client).begun).collect();
        wait_until("datagrams arrive", LATE, || missing().is_none())
            .with_context(|| missing().unwrap_or_default())?;
        let ended = || self.clients.iter().zip(&begun).all(|(client, begun)| lock(client).ended > *begun);
        wait_until("connections end", PATIENCE * 3, ended)?;
        for client in &self.clients {
            if let Some((_, failure)) = lock(client).failures.first() {
                bail!("a connection failed: {failure}");
            }
        }
        Ok(())
    }

    /// Forgets what has been lost so far, and what becomes of connections that have begun.
    pub(super) fn forgive(&self) {
        self.directions.iter().for_each(|way| lock(&way.log).missing.clear());
        let begun: Vec<u64> = self.clients.iter().map(|client| lock(client).begun).collect();
        let ended = || self.clients.iter().zip(&begun).all(|(client, begun)| lock(client).ended >= *begun);
        wait_until("connections end", PATIENCE * 3, ended).expect("connections have time limits");
        for (client, begun) in self.clients.iter().zip(begun) {
            lock(client).failures.retain(|(number, _)| *number >= begun);
        }
    }

    /// Stops it.
    pub(super) fn stop(mut self) -> Total {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("traffic that does not panic"));
        Total {
            datagrams: self.directions.iter().map(|way| lock(&way.log).sent).sum(),
            connections: self.clients.iter().map(|client| lock(client).ended).sum(),
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn both_directions(a: (&Pod, IpAddr), b: (&Pod, IpAddr), tag: u8) -> Result<[Direction; 2]> {
    let socket = |(pod, ip): (&Pod, IpAddr)| pod.run(|| UdpSocket::bind((ip, 0)));
    let [near, far] = [socket(a)?, socket(b)?];
    near.connect(far.local_addr()?)?;
    far.connect(near.local_addr()?)?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    let direction = |from: &UdpSocket, to: &UdpSocket, tag| {
        let name = format!("datagrams from {} to {}", from.local_addr()?, to.local_addr()?);
        let (from, to) = (from.try_clone()?, to.try_clone()?);
        anyhow::Ok(Direction { name, tag, from, to, log: Mutex::default() })
    };
    Ok([direction(&near, &far, tag)?, direction(&far, &near, tag + 1)?])
}

impl Direction {
    /// The datagram of this number; none is larger than any link's MTU.
    fn datagram(&self, number: u64) -> Vec<u8> {
        let len = 16 + (number * 37 % 1_180) as usize;
        let content = number.to_be_bytes().into_iter().chain((0..=250).cycle().map(|at: u8| at ^ self.tag));
        content.take(len).collect()
    }

    fn send(&self) {
        let mut log = lock(&self.log);
        let datagram = self.datagram(log.sent);
        // A failed send takes up an error of an earlier one; what cannot be sent is missing.
        let _ = self.from.send(&datagram).or_else(|_| self.from.send(&datagram));
        let number = log.sent;
        log.missing.insert(number);
        log.sent += 1;
    }

    fn receive(&self) {
        let (mut log, mut buffer) = (lock(&self.log), [0; 2_048]);
        loop {
            match self.to.recv(&mut buffer) {
                Ok(len) => {
                    let number = buffer.first_chunk().map(|number| u64::from_be_bytes(*number));
                    let intact = number.filter(|number| self.datagram(*number) == buffer[..len]);
                    intact.map(|number| log.missing.remove(&number));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // An error of what was sent from here.
                Err(_) => {}
            }
        }
    }
}

/// Connections between two pods, by turns from either: two servers and a client.
fn connections(
    ends: [(&Pod, IpAddr); 2],
    record: Arc<Mutex<Record>>,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<JoinHandle<()>>> {
    let (mut threads, mut ways) = (Vec::new(), Vec::new());
    for [(client, _), (server, ip)] in [ends, [ends[1], ends[0]]] {
        let listener = server.run(|| TcpListener::bind((ip, 0)))?;
        ways.push((Netns::open(client.namespace())?, listener.local_addr()?));
        let stop = Arc::clone(stop);
        threads.push(std::thread::spawn(move || serve(&listener, &stop)));
    }
    let stop = Arc::clone(stop);
    threads.push(std::thread::spawn(move || {
        for (client, target) in ways.iter().cycle() {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let number = lock(&record).begun;
            lock(&record).begun += 1;
            let outcome = converse(client, *target);
            let mut record = lock(&record);
            record.ended += 1;
            if let Err(error) = outcome {
                record.failures.push((number, format!("{error:#}")));
            }
            drop(record);
            std::thread::sleep(PAUSE);
        }
    }));
    Ok(threads)
}

fn serve(listener: &TcpListener, stop: &AtomicBool) {
    socket2::SockRef::from(listener).set_read_timeout(Some(PAUSE)).expect("an option");
    while !stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            // What goes wrong here the client sees.
            std::thread::spawn(move || echo(stream));
        }
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; QUESTION];
    // Reads that a signal interrupts are read again; so `read` is not called by itself.
    while stream.read_exact(&mut buffer).is_ok() {
        stream.write_all(&buffer)?;
    }
    Ok(())
}

/// A connection with questions and answers, and its proper end.
fn converse(client: &Netns, target: SocketAddr) -> Result<()> {
    let connect = || TcpStream::connect_timeout(&target, PATIENCE);
    let mut stream = client.run(connect).with_context(|| format!("no connection to {target}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    for round in 0..ROUNDS {
        let (question, mut answer) = ([round; QUESTION], [0; QUESTION]);
        stream.write_all(&question)?;
        stream.read_exact(&mut answer).with_context(|| format!("{target} gives answer {round} not"))?;
        ensure!(answer == question, "{target} gives a wrong answer {round}");
    }
    stream.shutdown(Shutdown::Write)?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).with_context(|| format!("{target} does not close"))?;
    ensure!(rest.is_empty(), "{target} says more than it should");
    Ok(())
}
