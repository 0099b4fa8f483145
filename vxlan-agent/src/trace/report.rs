//! The answer: a list of steps, for people and for machines.

use std::fmt::Write as _;

use serde::Serialize;

use super::question::Question;

/// Where a packet's way ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// It left on the underlay for another node, in its tunnel.
    Sent,
    /// A pod of this node, or a station behind a port, has it.
    Delivered,
    /// This host takes it itself.
    Host,
    /// A bridge sends it to all.
    Flooded,
    /// It leaves by an interface that is no overlay's.
    Elsewhere,
    /// It is dropped.
    Dropped,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PacketText {
    /// Its length in bytes, from the Ethernet header on.
    pub length: usize,
    /// Its headers in words, from the outermost on.
    pub headers: Vec<String>,
    /// Its bytes in hexadecimal.
    pub bytes: String,
}

/// An entry of a map that was looked up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// Of which map.
    pub map: &'static str,
    /// With which key.
    pub key: String,
    /// Whether there is one.
    pub found: bool,
    /// What it says.
    pub value: String,
}

/// What the kernel said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fact {
    /// Of which of its tables.
    pub table: &'static str,
    /// Asked for what.
    pub key: String,
    /// The answer.
    pub value: String,
}

/// What a program makes of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramStep {
    /// Which program.
    pub hook: &'static str,
    /// At which interface.
    pub interface: String,
    /// The network that it takes the packet for; none: of none.
    pub network: Option<String>,
    /// What the packet is counted as.
    pub reason: &'static str,
    /// That in a sentence.
    pub meaning: &'static str,
    /// `forwarded`, `kernel` or `dropped`.
    pub verdict: &'static str,
    /// Entries that were looked up, in order.
    pub looked_up: Vec<Looked>,
    /// Entries that a packet that is really there would change, a sentence each.
    pub would_write: Vec<String>,
    /// The packet before.
    pub before: PacketText,
    /// The packet afterwards, if it has changed.
    pub after: Option<PacketText>,
    /// Whether a run of the program came to the same as the model of it; none: it was not run.
    pub agrees: Option<bool>,
    /// Why it was not run.
    pub not_run: Option<String>,
    /// How they differ, a sentence each.
    pub differences: Vec<String>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What happens, in a sentence.
    pub what: String,
    /// The program that decides, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<Box<ProgramStep>>,
    /// What the kernel was asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<Fact>,
}

impl Step {
    /// A step of the kernel's.
    pub(super) fn kernel(what: impl Into<String>, kernel: Vec<Fact>) -> Self {
        Self { what: what.into(), program: None, kernel }
    }
}

/// A packet's way through this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// What was asked.
    pub packet: Question,
    /// The steps in order.
    pub steps: Vec<Step>,
    /// Where it ended.
    pub ended: Ended,
    /// The same in a sentence.
    pub summary: String,
    /// Whether programs and model agree everywhere.
    pub agree: bool,
    /// What this does not say, a sentence each.
    pub notes: Vec<String>,
}

impl Trace {
    /// Whether the packet gets on, and everybody agrees that it does.
    pub fn is_well(&self) -> bool {
        self.agree && self.ended != Ended::Dropped
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (number, step) in (1..).zip(&self.steps) {
            let _ = writeln!(out, "{number:2}. {}", step.what);
            if let Some(program) = &step.program {
                program_text(&mut out, program);
            }
            for Fact { table, key, value } in &step.kernel {
                let _ = writeln!(out, "      {table:<11} {key}: {value}");
            }
        }
        let _ = writeln!(out, "\n{}", self.summary);
        if !self.agree {
            out.push_str("Program and model do not agree: please report this, with what is above.\n");
        }
        self.notes.iter().for_each(|note| {
            let _ = writeln!(out, "{note}");
        });
        out
    }
}

fn program_text(out: &mut String, program: &ProgramStep) {
    for Looked { map, key, value, .. } in &program.looked_up {
        let key = if key.is_empty() { String::new() } else { format!(" {key}") };
        let _ = writeln!(out, "      {:<11}{key}: {value}", map);
    }
    let verdict = match program.verdict {
        "dropped" => "It is dropped",
        "kernel" => "It is the kernel's",
        _ => "It takes the fast path",
    };
    let _ = writeln!(out, "    {verdict} ({}): {}", program.reason, program.meaning);
    for change in &program.would_write {
        let _ = writeln!(out, "    A real packet would change an entry: {change}");
    }
    let mut frame = |when: &str, packet: &PacketText| {
        let _ = writeln!(out, "      {when:<11} {} bytes: {}", packet.length, packet.headers.join(" | "));
    };
    frame("before", &program.before);
    if let Some(after) = &program.after {
        frame("after", after);
    }
    let _ = match (program.agrees, &program.not_run) {
        (Some(true), _) => writeln!(out, "    A run of the program agrees, byte by byte."),
        (Some(false), _) => {
            let all = program.differences.join("; ");
            writeln!(out, "    A RUN OF THE PROGRAM DISAGREES: {all}")
        }
        (None, Some(why)) => writeln!(out, "    The program was not run: {why}"),
        (None, None) => Ok(()),
    };
}
