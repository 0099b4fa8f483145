//! The values as tables for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::cluster::{Found, Listing, Start};
use super::storm::{RATE, SECONDS, Storm};
use super::{NODES, STARTS};
use crate::bench::report::{kernel, machine, show};
use crate::bench::stats::Summary;

type Way = (Found, Listing);

/// A column: its name in JSON, its title, and the value.
type Column<T> = (&'static str, &'static str, fn(&T) -> f64);

const OF_START: [Column<Start>; 3] = [
    ("cpu_seconds", "agent's CPU, s", |start| start.cpu_seconds),
    ("seconds", "until the datapath is complete, s", |start| start.seconds),
    ("mebibytes", "peak memory, MiB", |start| start.mebibytes),
];

const OF_STORM: [Column<Storm>; 9] = [
    ("offered_per_second", "changes offered, 1/s", |storm| storm.offered),
    ("followed_per_second", "changes followed, 1/s", |storm| storm.followed),
    ("first_half_late_seconds", "how late, median of the first half, s", |storm| storm.late[0]),
    ("second_half_late_seconds", "how late, median of the second half, s", |storm| storm.late[1]),
    ("worst_late_seconds", "how late, worst, s", |storm| storm.worst),
    ("last_late_seconds", "how late, last, s", |storm| storm.last),
    ("falls_behind_seconds_per_second", "later with every second, s", |storm| storm.falls_behind()),
    ("cpus", "agent's CPU, s/s", |storm| storm.cpus),
    ("mebibytes", "peak memory, MiB", |storm| storm.mebibytes),
];

/// What has been measured so far, and where.
pub(super) struct Report {
    rounds: u32,
    stub: bool,
    starts: BTreeMap<Way, Vec<Start>>,
    storms: Vec<Storm>,
}

impl Report {
    /// Empty; with the `stub` of an API server or a real one.
    pub(super) fn new(rounds: u32, stub: bool) -> Self {
        Self { rounds, stub, starts: BTreeMap::new(), storms: vec![] }
    }

    /// The ways to start that are measured: a real server lists as it can.
    pub(super) fn starts(&self) -> Vec<Way> {
        STARTS.into_iter().filter(|(_, listing)| self.stub || *listing == Listing::Streamed).collect()
    }

    /// Adds a start.
    pub(super) fn add_start(&mut self, way: Way, start: Start) {
        self.starts.entry(way).or_default().push(start);
    }

    /// Adds a storm.
    pub(super) fn add_storm(&mut self, storm: Storm) {
        self.storms.push(storm);
    }

    fn server(&self) -> &'static str {
        if self.stub { "a stub of the API server" } else { "a real API server" }
    }

    /// The tables.
    pub(super) fn markdown(&self) -> String {
        let mut text = format!(
            "\n{}, Linux {}. {NODES} nodes, {}. Medians of {} rounds (lowest–highest).\n\n",
            machine(),
            kernel(),
            self.server(),
            self.rounds
        );
        let heads = OF_START.map(|(_, title, _)| title).join(" | ");
        let _ = writeln!(text, "| start | {heads} |\n|---|---|---|---|");
        for (way, starts) in &self.starts {
            let cells = OF_START.map(|column| cell(starts, column)).join(" | ");
            let _ = writeln!(text, "| {} | {cells} |", self.title(*way));
        }
        if !self.storms.is_empty() {
            let _ = writeln!(text, "\n| {RATE} changes a second, for {SECONDS} s | |\n|---|---|");
            for column in OF_STORM {
                let _ = writeln!(text, "| {} | {} |", column.1, cell(&self.storms, column));
            }
        }
        text
    }

    fn title(&self, (found, listing): Way) -> String {
        let found = match found {
            Found::Nothing => "from nothing",
            Found::Everything => "restart, everything in place",
        };
        let listing = match listing {
            _ if !self.stub => "listed as the server can",
            Listing::Streamed => "streaming list",
            Listing::Paged => "pages",
        };
        format!("{found}, {listing}")
    }

    /// The JSON file.
    pub(super) fn json(&self) -> Result<String> {
        let starts = self.starts.iter().map(|(way, starts)| {
            let mut start = summaries(starts, OF_START);
            start.insert("start".into(), json!(self.title(*way)));
            Value::Object(start)
        });
        let file = json!({
            "machine": machine(), "kernel": kernel(), "nodes": NODES, "server": self.server(),
            "rounds": self.rounds, "starts": starts.collect::<Vec<_>>(),
            "changes": summaries(&self.storms, OF_STORM),
        });
        Ok(serde_json::to_string_pretty(&file)? + "\n")
    }
}

fn summary<T>(values: &[T], value: fn(&T) -> f64) -> Option<Summary> {
    Summary::of(&values.iter().map(value).collect::<Vec<_>>())
}

fn cell<T>(values: &[T], (_, _, value): Column<T>) -> String {
    summary(values, value).as_ref().map_or_else(|| "–".into(), show)
}

fn summaries<T, const N: usize>(values: &[T], columns: [Column<T>; N]) -> Map<String, Value> {
    columns.into_iter().map(|(name, _, value)| (name.to_owned(), json!(summary(values, value)))).collect()
}
