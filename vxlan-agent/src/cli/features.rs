//! `features`: what this kernel offers to the fast path.

use std::fmt::Write as _;

use super::{print, print_json};
use crate::datapath::KernelFeatures;
use crate::preflight;

pub(super) fn show(json: bool) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    let features = KernelFeatures::probe();
    if json {
        return print_json(&features);
    }
    let mut out = format!("Linux {}\n", preflight::kernel_release()?);
    if let Err(refusal) = preflight::check_kernel() {
        let _ = writeln!(out, "{refusal}");
    }
    out.push_str(&missing(&features));
    if features.missing().is_empty() {
        out.push_str("nothing is missing\n");
    }
    print(&out)
}

/// A line for everything that is missing.
pub(super) fn missing(features: &KernelFeatures) -> String {
    let line = |(name, instead): (&str, &str)| format!("without    {name}: {instead}\n");
    features.missing().into_iter().map(line).collect()
}
