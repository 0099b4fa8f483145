//! The traffic that is measured, by threads that are bound to CPUs.

pub(super) mod rr;
pub(super) mod stream;
pub(super) mod udp;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::cpu::busy_seconds;

/// How long traffic runs before it counts: slow start, neighbour look-ups, cold caches.
const WARM_UP: Duration = Duration::from_millis(100);

/// Size of requests, responses and small datagrams.
const SMALL: usize = 64;

/// How much of something happened in how much time, at how much of the machine's CPU.
struct Window {
    amount: f64,
    seconds: f64,
    cpu_seconds: f64,
}

/// Watches `counter` for `duration` after the warm-up.
fn watch(counter: &AtomicU64, duration: Duration) -> Result<Window> {
    std::thread::sleep(WARM_UP);
    let (amount, cpu, start) = (counter.load(Ordering::Relaxed), busy_seconds()?, Instant::now());
    std::thread::sleep(duration);
    let seconds = start.elapsed().as_secs_f64();
    Ok(Window {
        amount: (counter.load(Ordering::Relaxed) - amount) as f64,
        seconds,
        cpu_seconds: busy_seconds()? - cpu,
    })
}
