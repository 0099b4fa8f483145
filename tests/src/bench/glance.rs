//! A glance at a few cases, for the demo.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::case::{CASES, Measurement};
use super::course::Course;
use super::cpu;
use super::stats::Summary;

const ROUNDS: usize = 3;
const DURATION: Duration = Duration::from_millis(300);
const SHOWN: [&str; 4] = ["tcp_rr", "udp_rr", "udp_rate", "tcp_stream_1"];

/// One case.
#[derive(Clone, Debug)]
pub struct Glance {
    /// Name for people.
    pub title: &'static str,
    /// Unit of the values.
    pub unit: &'static str,
    /// Medians, in the order of the courses.
    pub values: Vec<f64>,
}

/// Measures `courses` in turn, a few rounds each.
///
/// # Errors
/// Traffic does not flow.
pub fn glance(courses: &[&dyn Course]) -> Result<Vec<Glance>> {
    let cpus = cpu::pair()?;
    let mut seen: BTreeMap<(&str, usize), Vec<f64>> = BTreeMap::new();
    for measurement in Measurement::FEW {
        for _ in 0..ROUNDS {
            for (index, course) in courses.iter().enumerate() {
                for (case, value) in measurement.run(course.ends(), cpus, DURATION)? {
                    seen.entry((case, index)).or_default().push(value);
                }
            }
        }
    }
    let shown = SHOWN.iter().filter_map(|name| CASES.iter().find(|case| case.name == *name));
    let glances = shown.map(|case| {
        let values = (0..courses.len()).filter_map(|index| Summary::of(seen.get(&(case.name, index))?));
        Glance { title: case.title, unit: case.unit, values: values.map(|s| s.median).collect() }
    });
    Ok(glances.collect())
}
