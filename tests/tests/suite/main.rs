//! Everything that needs a kernel and root, in one binary.

mod e2e;
mod programs;
mod rehearsal;
mod segment;
mod segments;
