//! Metrics in Prometheus' text format, at an address of their own.
//!
//! The agent's loop leaves what it knows when a round is over ([`Facts`]) and times itself ([`Pulse`]); the rest is read
//! from the pinned maps when somebody asks, on a thread of its own. What a scrape costs is bounded: it names at most
//! [`MOST_NETWORKS`] networks, reads each one's counters with one system call and no more than a few thousand flows,
//! and whoever asks more often than once in [`FRESH`] gets the same text again.

mod facts;
mod family;
pub(crate) mod fate;
mod fill;
pub(crate) mod http;
mod node;
mod peers;
mod programs;
mod pulse;
mod traffic;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE, encode};
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::datapath::Meter;
pub(crate) use facts::{Facts, NetworkFacts, Probed, source};
use http::Answer;
pub(crate) use pulse::Pulse;

/// What all names of metrics begin with.
const PREFIX: &str = "vxlan_agent";
/// Networks that are reported one by one. How many there are beyond is a metric.
pub(crate) const MOST_NETWORKS: usize = 256;
/// For how long a text is sent again.
const FRESH: Duration = Duration::from_secs(1);
/// How long until it is tried again to listen at an address that is not there, or is somebody else's.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Answers at `address` for as long as the process lives, with what is sent to the result. An address that is
/// taken does not keep the agent from running: it is tried again.
pub(crate) fn serve(
    address: SocketAddr,
    pulse: &Pulse,
    facts: Facts,
) -> anyhow::Result<watch::Sender<Arc<Facts>>> {
    let (sender, facts) = watch::channel(Arc::new(facts));
    let report = Report::new(pulse, facts);
    http::serve("metrics", move || listen(address), move |method, path| report.answer(method, path))?;
    Ok(sender)
}

fn listen(address: SocketAddr) -> TcpListener {
    let mut said = false;
    loop {
        match http::listen(address) {
            Ok(listener) => return listener,
            Err(error) if !said => {
                tracing::warn!("cannot listen for scrapes of metrics on {address}, trying again: {error}");
                said = true;
            }
            Err(_) => {}
        }
        std::thread::sleep(LISTEN_AGAIN);
    }
}

/// All metrics.
struct Report {
    registry: Registry,
    /// The last text, and when it was made.
    last: Mutex<Option<(Instant, String)>>,
}

impl Report {
    fn new(pulse: &Pulse, facts: watch::Receiver<Arc<Facts>>) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        pulse.register(&mut registry);
        registry.register_collector(Box::new(Looked { facts }));
        Self { registry, last: Mutex::default() }
    }

    fn answer(&self, method: &Method, path: &str) -> Answer {
        match (method, path) {
            (&Method::GET | &Method::HEAD, "/metrics") => match self.text(Instant::now()) {
                Ok(text) => Answer { status: StatusCode::OK, kind: CONTENT_TYPE, text },
                Err(error) => Answer::plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
            },
            _ => Answer::plain(StatusCode::NOT_FOUND, "there is /metrics\n".to_owned()),
        }
    }

    fn text(&self, now: Instant) -> Result<String, std::fmt::Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((made, text)) = last.as_ref()
            && now.duration_since(*made) < FRESH
        {
            return Ok(text.clone());
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        *last = Some((now, text.clone()));
        Ok(text)
    }
}

/// What is looked up when somebody asks.
#[derive(Debug)]
struct Looked {
    facts: watch::Receiver<Arc<Facts>>,
}

impl Collector for Looked {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let facts = Arc::clone(&self.facts.borrow());
        let meter = Meter::open(&facts.pins);
        if let Err(error) = &meter {
            tracing::debug!("no metrics of the fast path: {error:#}");
        }
        let meter = meter.ok();
        node::encode(&mut encoder, &facts, meter.as_ref())?;
        if let Some(probed) = &facts.probed {
            let probed = Arc::clone(&probed.borrow());
            peers::encode(&mut encoder, &probed)?;
        }
        let Some(meter) = meter else { return Ok(()) };
        traffic::encode(&mut encoder, &facts, &meter)?;
        fill::encode(&mut encoder, &facts, &meter)?;
        programs::encode(&mut encoder, &meter)
    }
}

#[cfg(test)]
mod tests;
