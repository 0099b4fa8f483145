//! TCP connections that go on while something changes.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use super::any;
use super::tcp::connect;
use crate::lab::Netns;

/// Longer than TCP's third retransmission: a connection that is silent for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// One connection over which question and answer go back and forth without a pause.
pub struct Talk {
    done: Arc<AtomicBool>,
    asking: JoinHandle<Result<TalkReport>>,
    answering: JoinHandle<()>,
}

/// What was said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TalkReport {
    /// Questions that were answered rightly.
    pub rounds: u64,
    /// The longest that one took.
    pub longest: Duration,
}

impl Talk {
    /// Connects `client` to a server in `server` that listens on `address`.
    ///
    /// # Errors
    /// There is no connection.
    pub fn start(client: &Netns, server: &Netns, address: IpAddr) -> Result<Self> {
        let listener = server.run(|| TcpListener::bind(any(address, 0)))?;
        let target = SocketAddr::new(address, listener.local_addr()?.port());
        let mut stream = client.run(|| connect(target))?;
        let (mut accepted, _) = listener.accept()?;
        accepted.set_nodelay(true)?;
        let answering = std::thread::spawn(move || {
            let mut number = [0; 8];
            while accepted.read_exact(&mut number).and_then(|()| accepted.write_all(&number)).is_ok() {}
        });
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let asking = std::thread::spawn(move || {
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut report = TalkReport::default();
            while !stop.load(Ordering::Relaxed) {
                let (started, mut answer) = (Instant::now(), [0; 8]);
                stream.write_all(&report.rounds.to_be_bytes())?;
                let read = stream.read_exact(&mut answer);
                read.with_context(|| format!("the connection broke after {} rounds", report.rounds))?;
                anyhow::ensure!(answer == report.rounds.to_be_bytes(), "a wrong answer");
                report.rounds += 1;
                report.longest = report.longest.max(started.elapsed());
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(report)
        });
        Ok(Self { done, asking, answering })
    }

    /// Ends the connection.
    ///
    /// # Errors
    /// It broke before.
    pub fn stop(self) -> Result<TalkReport> {
        self.done.store(true, Ordering::Relaxed);
        let report = self.asking.join().map_err(|_| anyhow!("the client panicked"))?;
        self.answering.join().map_err(|_| anyhow!("the server panicked"))?;
        report
    }
}
