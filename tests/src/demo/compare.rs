//! A short comparison with a kernel overlay of the same shape.

use anyhow::Result;

use super::lab;
use crate::bench::{Glance, glance};
use crate::lab::{Lab, Overlay};

/// Measures both overlays in turn and prints a table.
pub(super) fn against_kernel(ours: &Lab, nodes: u8) -> Result<()> {
    let kernel = lab(nodes, &Overlay::KernelVxlan)?;
    println!("  {:<30} {:>14} {:>14}", "", "kernel VXLAN", "ours");
    for Glance { title, unit, values } in glance(&[&kernel, ours])? {
        let cells: String = values.iter().map(|value| format!(" {value:>9.1} {unit:<4}")).collect();
        println!("  {title:<30}{cells}");
    }
    Ok(())
}
