//! How long the programs run, where the kernel measures it.

use std::fmt::Error;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use vxlan_ebpf_common::Hook;

use super::family::{Labels, counter, family};
use crate::datapath::Meter;

pub(super) fn encode(e: &mut DescriptorEncoder<'_>, meter: &Meter) -> Result<(), Error> {
    let measured = meter.runs();
    let of = |hook: Hook| -> Labels<'static, 1> { [("hook", hook.label())] };
    family(
        e,
        "program_runs",
        "Runs of a program while kernel.bpf_stats_enabled was 1",
        measured.iter().map(|(hook, runs)| (of(*hook), counter(runs.count))),
    )?;
    family(
        e,
        "program_run_time_seconds",
        "How long these runs took together",
        measured.iter().map(|(hook, runs)| (of(*hook), ConstCounter::new(runs.time.as_secs_f64()))),
    )
}
