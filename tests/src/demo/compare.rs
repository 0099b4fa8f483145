//! A short comparison with a kernel overlay of the same shape.

use anyhow::Result;

use crate::bench::{Course, Glance, glance};

/// Measures both overlays in turn and prints a table.
///
/// # Errors
/// Traffic does not flow.
pub(super) fn against_kernel(kernel: &dyn Course, ours: &dyn Course) -> Result<()> {
    table(&["kernel VXLAN", "ours"], &glance(&[kernel, ours])?);
    Ok(())
}

/// Prints what was measured, a column for each of `heads`.
pub(super) fn table(heads: &[&str], rows: &[Glance]) {
    println!("  {:<30}{}", "", heads.iter().map(|head| format!(" {head:>14}")).collect::<String>());
    for Glance { title, unit, values } in rows {
        let cells: String = values.iter().map(|value| format!(" {value:>9.1} {unit:<4}")).collect();
        println!("  {title:<30}{cells}");
    }
}
