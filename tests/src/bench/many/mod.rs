//! What thousands of networks on a node cost, and a segment with a hundred thousand stations: the agent, its maps,
//! and each packet, compared with one network and ten stations.

mod networks;
mod programs;
mod stations;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::cpu::Pair;

pub use networks::{Many, Start};
pub use programs::{Ratio, of_networks, of_stations};
pub use stations::{Crowd, Loaded};

/// Networks on one node, half of them routed, half bridged.
pub const NETWORKS: u32 = 4_096;
/// Stations of one segment.
pub const STATIONS: u32 = 100_000;

/// All that is measured.
#[derive(Debug, Serialize)]
struct Report {
    networks: u32,
    first_start: Start,
    restart: Start,
    idle_cpu: f64,
    map_mebibytes: f64,
    /// Request and response by the fast path, and by the kernel's way: many networks ÷ one.
    fast_path: f64,
    kernels_way: f64,
    stations: u32,
    loaded: Loaded,
    programs: Vec<Ratio>,
}

/// Measures, prints the table and writes the numbers to `json`.
///
/// # Errors
/// The lab cannot be built, the agent does not follow, or the file cannot be written.
pub(super) fn bench(quick: bool, cpus: Pair, json: &Path) -> Result<()> {
    let networks = if quick { NETWORKS / 16 } else { NETWORKS };
    let stations = if quick { STATIONS / 10 } else { STATIONS };
    let mut programs = of_networks(networks);
    programs.extend(of_stations(stations));
    eprintln!("==> {stations} stations");
    let loaded = Crowd::build(stations)?.load()?;
    eprintln!("==> {networks} networks");
    let mut many = Many::build(networks)?;
    let first_start = many.start()?;
    let restart = many.start()?;
    let (idle_cpu, map_mebibytes) = (many.idle()?, many.map_mebibytes()?);
    let [fast_path, kernels_way] = many.packets(cpus)?;
    drop(many);
    let report = Report {
        networks,
        first_start,
        restart,
        idle_cpu,
        map_mebibytes,
        fast_path,
        kernels_way,
        stations,
        loaded,
        programs,
    };
    print!("{}", report.markdown());
    super::write(json, &(serde_json::to_string_pretty(&report)? + "\n"))
}

impl Report {
    fn markdown(&self) -> String {
        let Self { networks, first_start: first, restart, stations, loaded, .. } = self;
        let mut text = format!("\n| {networks} networks, {stations} stations | |\n|---|---|\n");
        let mut row = |what: &str, value: String| {
            let _ = writeln!(text, "| {what} | {value} |");
        };
        row("from nothing to running", format!("{:.1} s, {:.1} s of CPU", first.seconds, first.cpu_seconds));
        row("restart", format!("{:.1} s, {:.1} s of CPU", restart.seconds, restart.cpu_seconds));
        row("agent, at most", format!("{:.0} MiB", first.mebibytes.max(restart.mebibytes)));
        row("agent, idle", format!("{:.2} % of a CPU", 100.0 * self.idle_cpu));
        row("maps", format!("{:.0} MiB", self.map_mebibytes));
        row("request and response, fast path, ÷ with one network", format!("{:.2}", self.fast_path));
        row("request and response, kernel's way, ÷ with one network", format!("{:.2}", self.kernels_way));
        row("stations: from start to in the maps", format!("{:.2} s", loaded.seconds));
        row("stations: written to the map", format!("{:.0} ms", 1e3 * loaded.written));
        row("stations: CPU of the start", format!("{:.2} s", loaded.cpu_seconds));
        row("stations: agent, at most", format!("{:.0} MiB", loaded.mebibytes));
        row("stations: maps", format!("{:.0} MiB", loaded.map_mebibytes));
        for Ratio { program, few, many } in &self.programs {
            row(program, format!("{few:.0} ns, {many:.0} ns: {:.2}", many / few));
        }
        text
    }
}
