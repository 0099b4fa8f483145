//! What would happen to a packet on this node, and with [`probe`] what does.
//!
//! The packet engine runs over a [`Recorder`] of the pinned maps, so that each entry it looks up is known; the program
//! of the same hook gets the same frame in a [`Rehearsal`], and both have to agree. What they leave to the kernel is
//! followed as far as the kernel can be asked. Nothing of the node changes.
//!
//! ```text
//! Question → locate (where SRC sends from) → walk: stage (one program) and host (the kernel) by turns → Trace
//! ```
//!
//! [`Recorder`]: crate::datapath::Recorder
//! [`Rehearsal`]: crate::datapath::Rehearsal

mod describe;
mod entries;
mod frame;
mod host;
mod locate;
pub mod probe;
mod question;
mod report;
mod segment;
mod stage;
mod walk;

pub use question::{End, Flags, Protocol, Question};
pub use report::{Ended, Fact, Looked, PacketText, ProgramStep, Step, Trace};

use anyhow::Result;
use vxlan_ebpf_common::maps::NetworkId;

use crate::datapath::Pins;
use crate::kernel::Netlink;

/// How often a trace is repeated whose program and model disagree: an entry may run out between the two.
const ATTEMPTS: usize = 3;

/// A question that has no answer as it was asked.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unanswerable(pub String);

/// Follows a packet through this node. `networks`: those that it may be of.
///
/// # Errors
/// [`Unanswerable`], or the maps or the kernel's tables cannot be read.
pub async fn run(pins: &Pins, networks: &[NetworkId], question: &Question) -> Result<Trace> {
    let mut trace = once(pins, networks, question).await?;
    for _ in 1..ATTEMPTS {
        if trace.agree {
            break;
        }
        trace = once(pins, networks, question).await?;
    }
    Ok(trace)
}

async fn once(pins: &Pins, networks: &[NetworkId], question: &Question) -> Result<Trace> {
    let host = host::Host::read(Netlink::open()?).await?;
    let state = pins.state()?;
    let start = locate::start(&host, &state, networks, question).await?;
    walk::Walk::new(pins, host, state, question)?.from(start).await
}
