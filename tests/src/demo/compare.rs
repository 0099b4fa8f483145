//! A short comparison with a kernel overlay of the same shape.

use anyhow::Result;

use crate::bench::{Course, Glance, glance};

/// Measures both overlays in turn and prints a table.
///
/// # Errors
/// Traffic does not flow.
pub(super) fn against_kernel(kernel: &dyn Course, ours: &dyn Course) -> Result<()> {
    println!("  {:<30} {:>14} {:>14}", "", "kernel VXLAN", "ours");
    for Glance { title, unit, values } in glance(&[kernel, ours])? {
        let cells: String = values.iter().map(|value| format!(" {value:>9.1} {unit:<4}")).collect();
        println!("  {title:<30}{cells}");
    }
    Ok(())
}
