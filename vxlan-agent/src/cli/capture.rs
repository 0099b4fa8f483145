//! `capture`: packets that pass the programs, as pcapng.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum, value_parser};
use vxlan_ebpf_common::listen::{HEAD_LEN, MAX_AFTER};

use super::Subject;
use super::clock::Clock;
use crate::datapath::{Listener, Wanted};
use crate::listen::file::{PacketFile, Side};
use crate::listen::run::{Limits, run};
use crate::listen::which::Which;

/// The options of `capture`.
#[derive(Args)]
pub(super) struct Capture {
    /// File to write to; `-`: standard output.
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Packets as programs find them, which is what is written unless --after alone is given.
    #[arg(long)]
    before: bool,
    /// Packets as programs leave them.
    #[arg(long)]
    after: bool,
    /// Which headers packets in a tunnel begin with.
    #[arg(long, value_enum, default_value = "outer")]
    headers: Layer,
    /// Bytes of a packet at most. Of one that is forwarded, 2048 are kept as it was found.
    #[arg(long, value_name = "BYTES", default_value = "16384", value_parser = value_parser!(u32).range(14..=i64::from(MAX_AFTER)))]
    snaplen: u32,
    /// Packets per second and CPU at most; 0: any number. What is more is counted.
    #[arg(long, value_name = "N", default_value = "0")]
    rate: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layer {
    /// As they are on the underlay.
    Outer,
    /// Without those of the tunnel.
    Inner,
}

pub(super) fn write(subject: &Subject, options: &Capture, json: bool) -> Result<()> {
    let pins = subject.pins()?;
    let which = &options.which;
    let sides: &[Side] = match (options.before, options.after) {
        (false, true) => &[Side::After],
        (true, true) => &[Side::Before, Side::After],
        _ => &[Side::Before],
    };
    let of = |side: Side, most: u32| if sides.contains(&side) { options.snaplen.min(most) } else { 0 };
    // Filters look at the headers, whichever side is written.
    let wanted = Wanted {
        filter: subject.filter(&pins, which)?,
        before: of(Side::Before, HEAD_LEN as u32).max(FILTERED),
        after: of(Side::After, MAX_AFTER),
        untouched: options.snaplen,
        sample: which.sample,
        rate: options.rate,
    };
    let mut file = PacketFile::new(open(&options.write)?, options.headers == Layer::Inner)?;
    file.flush()?;
    let mut listener = Listener::start(&subject.config.node.pins(), &wanted)?;
    let (clock, networks) = (Clock::now()?, subject.names(&pins)?);
    let limits = Limits { count: which.count, seconds: which.seconds };
    let summary = run(&mut listener, limits, |reports| {
        for report in reports {
            let network = networks.get(&report.event.network).map_or("-", String::as_str);
            let is_unchanged = report.event.forwarded == 0;
            // What nobody has changed is the same before and after.
            let sides = if is_unchanged { &sides[..1] } else { sides };
            for side in sides {
                file.write(report, *side, clock.since_1970(report.event.time), network)?;
            }
        }
        file.flush()
    })?;
    super::listened(&summary, json, &mut io::sink())
}

/// Bytes that filters look at.
const FILTERED: u32 = 192;

fn open(path: &Path) -> Result<Box<dyn Write>> {
    if path == Path::new("-") {
        ensure!(
            !io::stdout().is_terminal(),
            "packets are no text for a terminal: name a file, or pipe them to a program that reads pcapng"
        );
        return Ok(Box::new(BufWriter::new(io::stdout())));
    }
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(Box::new(BufWriter::new(file)))
}
