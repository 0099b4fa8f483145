//! The BPF side of all networks: programs, links and maps, all pinned in one directory.
//!
//! [`DatapathState`] is what should be (or is) in the maps and on the interfaces; [`diff`] turns
//! two of them into [`Change`]s, [`Datapath`] carries those out. Everything lives in pins, so a
//! datapath outlives its agent, and the next agent adopts it. [`Pins`] reads and switches a
//! datapath without owning it.
//!
//! ```text
//! <pin_dir>/v<layout>/@node/       NODE, ROUTES4, …      maps, by name
//!                                  programs/<hook>       programs
//!                                  links/<hook>-<ifindex> one per attachment
//!                     /<network>   a link to @node
//! ```

mod attach;
mod features;
mod filter;
pub mod flows;
mod link;
mod listener;
mod look;
mod maps;
mod meter;
mod open;
mod pins;
mod recorder;
mod rehearsal;
mod sizes;
mod state;
mod subnets;
mod syscall;
mod tcx;
mod xdp;

pub use attach::FIRST_PRIORITY;
pub use features::KernelFeatures;
pub use listener::{Listener, RENEW, Report, Wanted};
pub use meter::{Meter, Runs};
pub use open::{Datapath, Features, Options, check_bpffs, check_pin_dir, detach, ensure_bpffs};
pub use pins::Pins;
pub use recorder::{LookUp, Recorder, Written};
pub use rehearsal::{Ran, Rehearsal};
pub use sizes::Sizes;
pub use state::{Attachment, Change, DatapathState, ahead_of_routes, diff};
pub use tcx::{Tcx, is_called};
