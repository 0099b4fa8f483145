//! The benchmark: no overlay, kernel VXLAN and ours, side by side on this machine.
//!
//! There are four labs at once, alike but for the overlay, ours in both modes: two nodes, one pod each on a bridge, a
//! veth pair as underlay. Every round measures every case in all four, one after the other, so
//! that what else happens on the machine hits all of them. The labs that are not being measured
//! are idle. What is reported is the median over the rounds, with the lowest and the highest.
//!
//! The same for bridged segments, once for each card that hosts may have; there no overlay is both hosts on
//! one bridge. And the same for a device of somebody else's, by itself and with our agents beside it.

mod args;
mod bridged;
mod case;
mod chart;
pub mod control_plane;
mod course;
mod cpu;
mod glance;
mod lineup;
pub mod many;
mod measure;
pub mod programs;
mod report;
mod routed;
mod scene;
mod stats;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use case::{CASES, Measurement};
use lineup::Way;
use report::Report;
use scene::Scene;

pub use args::BenchArgs;
pub use course::{Course, End};
pub use glance::{Glance, glance};

/// Builds the labs, measures, prints the table and writes the files.
///
/// # Errors
/// A lab cannot be built, traffic does not flow, or a file cannot be written.
pub fn bench(args: &BenchArgs) -> Result<()> {
    if args.control_plane {
        return control_plane::bench(args.rounds(), &args.control_plane_json());
    }
    if args.many {
        return many::bench(args.quick, cpu::pair()?, &args.many_json());
    }
    for name in &args.cases {
        ensure!(CASES.iter().any(|case| case.name == name), "there is no case {name}");
    }
    let cpus = if args.one_cpu || args.instructions { cpu::first()? } else { cpu::pair()? };
    args.scenes().into_iter().try_for_each(|scene| compare(args, scene, cpus))
}

/// One table and its files.
fn compare(args: &BenchArgs, scene: Scene, cpus: cpu::Pair) -> Result<()> {
    let title = scene.title().map(|title| format!(" ({title})")).unwrap_or_default();
    eprintln!("==> building {} labs{title}", args.kinds().count());
    let ways = scene.build(args)?;
    let before = lineup::counters(&ways)?;
    let report = measure_rounds(args, scene, &ways, cpus)?;
    let counted: Vec<_> =
        lineup::counters(&ways)?.iter().zip(&before).map(|(now, before)| now - before).collect();
    let path = lineup::path_taken(&counted);
    drop(ways);
    print!("{}", report.markdown(args, cpus, path.as_deref()));
    // They are measured in no lab, and are those of routed subnets.
    if scene == Scene::Routed && !args.without_ours && !args.instructions {
        print!("{}", programs::markdown(&programs::measure(args.quick)));
    }
    write(&args.json(scene), &report.json()?)?;
    write(&args.svg(scene), &chart::svg(&report))
}

fn measure_rounds(args: &BenchArgs, scene: Scene, ways: &[Way], cpus: cpu::Pair) -> Result<Report> {
    let (mut report, measurements) = (Report::new(scene, args.instructions), args.measurements(scene));
    for round in 1..=args.rounds() {
        let start = Instant::now();
        eprint!("==> round {round} of {}:", args.rounds());
        for measurement in &measurements {
            eprint!(" {}", measurement.label());
            measure_all(ways, *measurement, cpus, args.duration(), &mut report)?;
        }
        eprintln!(" ({:.0} s)", start.elapsed().as_secs_f64());
    }
    Ok(report)
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
            .run(way.course.ends(), cpus, duration)
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
