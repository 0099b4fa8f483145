//! How the agent's loop is doing.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::family::since_1970;

/// From a millisecond to 16 seconds.
const BUCKETS: (f64, f64, u16) = (0.001, 4.0, 8);

/// What the loop says of itself as it goes. A copy shows the same.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    started: Gauge<f64, AtomicU64>,
    turned: Gauge<f64, AtomicU64>,
    duration: Histogram,
    lag: Histogram,
    failures: Counter,
    failed_changes: Counter,
}

impl Pulse {
    /// Of an agent that starts; it counts its changes that fail in `failed_changes`.
    pub(crate) fn new(failed_changes: Counter) -> Self {
        let histogram = || {
            let (first, factor, count) = BUCKETS;
            Histogram::new(exponential_buckets(first, factor, count))
        };
        let started: Gauge<f64, AtomicU64> = Gauge::default();
        started.set(now());
        Self {
            started,
            turned: Gauge::default(),
            duration: histogram(),
            lag: histogram(),
            failures: Counter::default(),
            failed_changes,
        }
    }

    /// The loop has turned.
    pub(crate) fn turn(&self) {
        self.turned.set(now());
    }

    /// Everything is as it should be, or cannot be, after `duration`, and if something had happened, `lag` after that.
    pub(crate) fn settled(&self, duration: Duration, lag: Option<Duration>, failed: bool) {
        self.duration.observe(duration.as_secs_f64());
        lag.iter().for_each(|lag| self.lag.observe(lag.as_secs_f64()));
        if failed {
            self.failures.inc();
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "start_time_seconds",
            "When the agent started, in seconds since 1970",
            self.started.clone(),
        );
        registry.register(
            "loop_turned_time_seconds",
            "When the agent's loop last turned, in seconds since 1970; it does at least every 5 seconds",
            self.turned.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "How long it took to bring kernel and fast path in step",
            Unit::Seconds,
            self.duration.clone(),
        );
        registry.register_with_unit(
            "reconcile_lag",
            "From the first notice of a change to kernel and fast path in step with it",
            Unit::Seconds,
            self.lag.clone(),
        );
        registry.register(
            "reconcile_failures",
            "How often nothing could be brought in step; what is there stays",
            self.failures.clone(),
        );
        registry.register(
            "change_failures",
            "Attempts at single changes that failed; each is tried again",
            self.failed_changes.clone(),
        );
    }
}

fn now() -> f64 {
    since_1970(SystemTime::now()).unwrap_or_default()
}
