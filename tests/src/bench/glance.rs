//! A glance at a few cases, for the demo.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::case::{CASES, Measurement};
use super::cpu;
use super::stats::Summary;
use crate::lab::Lab;

const ROUNDS: usize = 3;
const DURATION: Duration = Duration::from_millis(300);
const MEASUREMENTS: [Measurement; 4] =
    [Measurement::TcpRr, Measurement::UdpRr, Measurement::UdpRate, Measurement::Stream1];
const SHOWN: [&str; 4] = ["tcp_rr", "udp_rr", "udp_rate", "tcp_stream_1"];

/// One case.
#[derive(Clone, Debug)]
pub struct Glance {
    /// Name for people.
    pub title: &'static str,
    /// Unit of the values.
    pub unit: &'static str,
    /// Medians, in the order of the labs.
    pub values: Vec<f64>,
}

/// Measures `labs` in turn, a few rounds each.
///
/// # Errors
/// Traffic does not flow.
pub fn glance(labs: &[&Lab]) -> Result<Vec<Glance>> {
    let cpus = cpu::pair()?;
    let mut seen: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    for measurement in MEASUREMENTS {
        for _ in 0..ROUNDS {
            for (index, lab) in labs.iter().enumerate() {
                for (case, value) in measurement.run(lab, cpus, DURATION)? {
                    seen.entry((case, index)).or_default().push(value);
                }
            }
        }
    }
    let shown = SHOWN.iter().filter_map(|name| CASES.iter().find(|case| case.name == *name));
    let glances = shown.map(|case| {
        let values = (0..labs.len()).filter_map(|index| Summary::of(seen.get(&(case.name, index))?));
        Glance { title: case.title, unit: case.unit, values: values.map(|s| s.median).collect() }
    });
    Ok(glances.collect())
}
