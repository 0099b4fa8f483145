//! What the agent costs in a cluster of five thousand nodes, apart from packets: CPU time, memory,
//! and the time until the datapath is what the API server says.

mod cluster;
mod nodes;
mod report;
mod storm;
mod usage;

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

pub use cluster::{Cluster, Found, Listing, Start};
pub use nodes::{NODES, reading_seconds};
pub(super) use usage::{cpu_seconds, peak_mebibytes};

pub use storm::{RATE, SECONDS, Storm};

use report::Report;

/// All ways to start: what there is, and how nodes are listed.
pub const STARTS: [(Found, Listing); 4] = [
    (Found::Nothing, Listing::Streamed),
    (Found::Nothing, Listing::Paged),
    (Found::Everything, Listing::Streamed),
    (Found::Everything, Listing::Paged),
];

/// Measures, prints the tables and writes the numbers to `json`.
///
/// # Errors
/// The lab cannot be built, the agent does not follow, or the file cannot be written.
pub(super) fn bench(rounds: u32, json: &Path) -> Result<()> {
    eprintln!("==> building a lab with {NODES} further nodes");
    let mut cluster = Cluster::build()?;
    let mut report = Report::new(rounds, cluster.stub().is_some());
    for round in 1..=rounds {
        let begun = Instant::now();
        eprint!("==> round {round} of {rounds}:");
        for (found, listing) in report.starts() {
            eprint!(" start");
            report.add_start((found, listing), cluster.start(found, listing)?);
        }
        if cluster.stub().is_some() {
            eprint!(" changes");
            report.add_storm(cluster.storm()?);
        }
        eprintln!(" ({:.0} s)", begun.elapsed().as_secs_f64());
    }
    print!("{}", report.markdown());
    super::write(json, &report.json()?)
}
