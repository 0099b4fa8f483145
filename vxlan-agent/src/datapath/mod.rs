//! The BPF side of a network: programs, links and maps, all pinned in one directory.
//!
//! [`DatapathState`] is what should be (or is) in the maps and on the interfaces; [`diff`] turns
//! two of them into [`Change`]s, [`Datapath`] carries those out. Everything lives in pins, so a
//! datapath outlives its agent, and the next agent adopts it.

mod state;

pub use state::{Attachment, Change, DatapathState, diff};
