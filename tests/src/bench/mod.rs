//! The benchmark: no overlay, kernel VXLAN and ours, side by side on this machine.
//!
//! There are four labs at once, alike but for the overlay, ours in both modes: two nodes, one pod each on a bridge, a
//! veth pair as underlay. Every round measures every case in all three, one after the other, so
//! that what else happens on the machine hits all of them. The labs that are not being measured
//! are idle. What is reported is the median over the rounds, with the lowest and the highest.

mod case;
mod chart;
pub mod control_plane;
mod cpu;
mod glance;
mod lineup;
mod measure;
pub mod programs;
mod report;
mod stats;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use case::{CASES, Measurement};
use lineup::{Kind, Mode, Way};
use report::Report;

pub use glance::{Glance, glance};

/// What to measure and where the results go.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Rounds instead of 7 (3 with --quick)
    #[arg(long)]
    rounds: Option<u32>,
    /// Only these cases, for example tcp_rr
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Leave our overlay out: compare kernel VXLAN with no overlay only
    #[arg(long)]
    without_ours: bool,
    /// Client and server on one CPU in every case
    #[arg(long)]
    one_cpu: bool,
    /// Only this mode of our fast path, instead of both
    #[arg(long, value_enum, value_delimiter = ',', default_value = "verified,direct")]
    mode: Vec<Mode>,
    /// With connection tracking and 5 000 service rules on all nodes
    #[arg(long)]
    conntrack: bool,
    /// Our agents keep conntrack out of the tunnel's outer packets (notrack = true)
    #[arg(long)]
    notrack: bool,
    /// With netfilter on the pods' bridges, as Kubernetes asks for (slows all but ours down)
    #[arg(long)]
    bridge_netfilter: bool,
    /// What the agent itself costs among 5 000 nodes, instead: how it starts, and how it follows changes
    /// of nodes. With KUBE_APISERVER and ETCD the starts are measured with that API server, with a stub
    /// otherwise; changes need the stub
    #[arg(long, conflicts_with_all = ["cases", "without_ours", "one_cpu", "mode", "conntrack", "notrack", "bridge_netfilter", "svg"])]
    control_plane: bool,
    /// Where the numbers go; by default bench.json, or control-plane.json
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the chart goes
    #[arg(long, default_value = "bench.svg")]
    svg: PathBuf,
}

impl BenchArgs {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 7 })
    }

    /// Length of one measurement.
    fn duration(&self) -> Duration {
        Duration::from_millis(if self.quick { 500 } else { 1000 })
    }

    /// What is compared.
    fn kinds(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| match kind {
            Kind::NoOverlay | Kind::KernelVxlan => true,
            Kind::Ours(mode) => !self.without_ours && self.mode.contains(mode),
        })
    }

    fn json(&self) -> PathBuf {
        let default = if self.control_plane { "control-plane.json" } else { "bench.json" };
        self.json.clone().unwrap_or_else(|| default.into())
    }

    fn wants(&self, measurement: Measurement) -> bool {
        let selected = |case: &str| self.cases.is_empty() || self.cases.iter().any(|name| name == case);
        CASES.iter().any(|case| case.measurement == measurement && selected(case.name))
    }
}

/// Builds the labs, measures, prints the table and writes the files.
///
/// # Errors
/// A lab cannot be built, traffic does not flow, or a file cannot be written.
pub fn bench(args: &BenchArgs) -> Result<()> {
    if args.control_plane {
        return control_plane::bench(args.rounds(), &args.json());
    }
    for name in &args.cases {
        ensure!(CASES.iter().any(|case| case.name == name), "there is no case {name}");
    }
    let pair = cpu::pair()?;
    let cpus = if args.one_cpu { pair.place(cpu::Placement::Together) } else { pair };
    eprintln!("==> building {} labs", args.kinds().count());
    let ways = lineup::build(args)?;
    let before = lineup::counters(&ways)?;
    let mut report = Report::new();
    for round in 1..=args.rounds() {
        let start = Instant::now();
        eprint!("==> round {round} of {}:", args.rounds());
        for measurement in Measurement::ALL.into_iter().filter(|m| args.wants(*m)) {
            eprint!(" {}", measurement.label());
            measure_all(&ways, measurement, cpus, args.duration(), &mut report)?;
        }
        eprintln!(" ({:.0} s)", start.elapsed().as_secs_f64());
    }
    let path = lineup::path_taken(&ways, before)?;
    drop(ways);
    let programs = if args.without_ours { Vec::new() } else { programs::measure(args.quick) };
    print!("{}", report.markdown(args, cpus, path.as_deref()));
    print!("{}", programs::markdown(&programs));
    write(&args.json(), &report.json()?)?;
    write(&args.svg, &chart::svg(&report))
}

fn measure_all(
    ways: &[Way],
    measurement: Measurement,
    cpus: cpu::Pair,
    duration: Duration,
    report: &mut Report,
) -> Result<()> {
    for way in ways {
        let values = measurement
            .run(&way.lab, cpus, duration)
            .with_context(|| format!("measuring {} over {}", measurement.label(), way.kind.label()))?;
        values.into_iter().for_each(|(case, value)| report.add(case, way.kind, value));
        // What is still under way does not count for the next one.
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    eprintln!("==> wrote {}", path.display());
    Ok(())
}
