//! All values, as a table for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::case::{Better, CASES, Case, NOT_IN_JSON, in_instructions};
use super::cpu::{Pair, Placement};
use super::lineup::{Kind, Mode};
use super::scene::Scene;
use super::stats::Summary;
use super::{BenchArgs, Measurement};

/// What has been measured so far, and where.
pub(super) struct Report {
    scene: Scene,
    /// Whether the clock counts instructions.
    instructions: bool,
    machine: String,
    kernel: String,
    values: BTreeMap<(&'static str, Kind), Vec<f64>>,
}

impl Report {
    /// Empty, of this machine.
    pub(super) fn new(scene: Scene, instructions: bool) -> Self {
        Self { scene, instructions, machine: machine(), kernel: kernel(), values: BTreeMap::new() }
    }

    /// Adds the value of one round.
    pub(super) fn add(&mut self, case: &'static str, kind: Kind, value: f64) {
        let value = if self.instructions { in_instructions(case, value) } else { Some(value) };
        self.values.entry((case, kind)).or_default().extend(value);
    }

    /// A case's summary; `None` if it was not measured.
    pub(super) fn summary(&self, case: &Case, kind: Kind) -> Option<Summary> {
        Summary::of(self.values.get(&(case.name, kind))?)
    }

    /// The cases that were measured.
    pub(super) fn cases(&self) -> impl Iterator<Item = &'static Case> {
        CASES.iter().filter(|case| self.summary(case, Kind::NoOverlay).is_some())
    }

    /// Machine, kernel, and what is unusual, in one line.
    pub(super) fn place(&self) -> String {
        let scene = self.scene.title().map(|title| format!("; {title}")).unwrap_or_default();
        format!("{}, Linux {}{scene}", self.machine, self.kernel)
    }

    /// The table, with what has to be known to read it.
    pub(super) fn markdown(&self, args: &BenchArgs, cpus: Pair, path: Option<&str>) -> String {
        let mut text =
            format!("\n{}. Medians of {} rounds (lowest–highest).\n\n", self.place(), args.rounds());
        let kinds: Vec<Kind> = args.kinds().collect();
        let ratios: Vec<(Kind, Kind)> = kinds
            .iter()
            .filter(|kind| matches!(kind, Kind::Ours(_)))
            .flat_map(|ours| [(*ours, Kind::KernelVxlan), (*ours, Kind::NoOverlay)])
            .collect();
        let heads = kinds.iter().map(|kind| kind.label().to_owned());
        let heads = heads.chain(ratios.iter().map(|(ours, to)| format!("{} ÷ {}", ours.label(), to.label())));
        let heads: Vec<String> = heads.collect();
        let _ = writeln!(text, "| case | {} |\n|---{}|", heads.join(" | "), "|---".repeat(heads.len()));
        for case in self.cases() {
            let _ = writeln!(text, "{}", self.line(case, &kinds, &ratios));
        }
        let _ = write!(
            text,
            "\n{}Latencies are per transaction, there and back. CPU is that of the whole machine. \
             Netfilter on the bridges: {}.\n",
            self.placed(cpus),
            if args.bridge_netfilter { "on" } else { "off" }
        );
        if let Some(path) = path {
            let _ = writeln!(text, "{path}");
        }
        text
    }

    /// Where client and server of what was measured ran.
    fn placed(&self, cpus: Pair) -> String {
        let measured = |m: &Measurement| self.cases().any(|case| case.measurement == *m);
        let sentence = |placement| {
            let names = Measurement::ALL.into_iter().filter(|m| m.placement() == placement && measured(m));
            let names = names.map(Measurement::label).collect::<Vec<_>>().join(", ");
            let Pair { client, server } = cpus;
            match placement {
                _ if names.is_empty() => String::new(),
                Placement::Apart => format!("{names}: client on CPU {client}, server on CPU {server}. "),
                Placement::Together => format!("{names}: both on CPU {client}. "),
            }
        };
        [Placement::Apart, Placement::Together].map(sentence).concat()
    }

    fn line(&self, case: &Case, kinds: &[Kind], ratios: &[(Kind, Kind)]) -> String {
        let (unit, better) = self.unit(case);
        let arrow = match better {
            Better::Higher => "↑",
            Better::Lower => "↓",
        };
        let cell = |kind: &Kind| self.summary(case, *kind).map_or_else(|| "–".into(), |s| show(&s));
        let ratio = |(ours, to): &(Kind, Kind)| match [ours, to].map(|kind| self.summary(case, *kind)) {
            [Some(ours), Some(other)] if other.median > 0.0 => format!("{:.2}", ours.median / other.median),
            _ => "–".to_owned(),
        };
        let cells: Vec<String> = kinds.iter().map(cell).chain(ratios.iter().map(ratio)).collect();
        format!("| {}, {unit} {arrow} | {} |", case.title, cells.join(" | "))
    }

    /// The unit of a case's values, and which of them are better.
    fn unit(&self, case: &Case) -> (&'static str, Better) {
        match (self.instructions, case.better) {
            (true, Better::Higher) => ("thousand instructions a KiB", Better::Lower),
            (true, Better::Lower) => ("thousand instructions", Better::Lower),
            (false, better) => (case.unit, better),
        }
    }

    /// The JSON file.
    pub(super) fn json(&self) -> Result<String> {
        let cases = self.cases().filter(|case| case.name != NOT_IN_JSON).map(|case| CaseJson {
            name: case.name,
            unit: self.unit(case).0,
            better: self.unit(case).1.key(),
            no_overlay: self.summary(case, Kind::NoOverlay),
            kernel_vxlan: self.summary(case, Kind::KernelVxlan),
            verified: self.summary(case, Kind::Ours(Mode::Verified)),
            direct: self.summary(case, Kind::Ours(Mode::Direct)),
        });
        let file = FileJson { machine: &self.machine, kernel: &self.kernel, cases: cases.collect() };
        Ok(serde_json::to_string_pretty(&file)? + "\n")
    }
}

#[derive(Serialize)]
struct FileJson<'a> {
    machine: &'a str,
    kernel: &'a str,
    cases: Vec<CaseJson>,
}

/// What was not measured is `null`.
#[derive(Serialize)]
struct CaseJson {
    name: &'static str,
    unit: &'static str,
    better: &'static str,
    no_overlay: Option<Summary>,
    kernel_vxlan: Option<Summary>,
    verified: Option<Summary>,
    direct: Option<Summary>,
}

/// Median, and in brackets the span.
pub(super) fn show(summary: &Summary) -> String {
    let digits = digits(summary.median);
    let Summary { median, min, max } = summary;
    format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
}

/// Three significant figures.
pub(super) fn digits(value: f64) -> usize {
    match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    }
}

/// Release of the kernel.
pub(super) fn kernel() -> String {
    let uname = nix::sys::utsname::uname();
    uname.map_or_else(|_| "unknown".into(), |uname| uname.release().to_string_lossy().into_owned())
}

/// CPU model and number of CPUs.
pub(super) fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| line.split_once(':').map(|(_, value)| value.trim().to_owned());
    let model = info.lines().find(|line| line.starts_with("model name")).and_then(value);
    let count = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{}, {count} CPUs", model.unwrap_or_else(|| std::env::consts::ARCH.to_owned()))
}
