//! `features`: what this kernel offers to the fast path.

use std::fmt::Write as _;

use super::{print, print_json};
use crate::datapath::KernelFeatures;
use crate::preflight;

pub(super) fn show(json: bool) -> anyhow::Result<()> {
    preflight::check_privileges()?;
    let features = KernelFeatures::probe();
    if json { print_json(&features) } else { print(&text(&features)?) }
}

/// As a person reads it.
pub(super) fn text(features: &KernelFeatures) -> anyhow::Result<String> {
    let mut out = format!("Linux {}\n", preflight::kernel_release()?);
    if let Err(refusal) = preflight::check_kernel() {
        let _ = writeln!(out, "{refusal}");
    }
    out.push_str(&missing(features));
    if features.missing().is_empty() {
        out.push_str("nothing is missing\n");
    }
    Ok(out)
}

/// A line for everything that is missing.
pub(super) fn missing(features: &KernelFeatures) -> String {
    let line = |(name, instead): (&str, &str)| format!("without    {name}: {instead}\n");
    features.missing().into_iter().map(line).collect()
}
