//! Everything that needs a kernel and root, in one binary.

mod kernel;
mod programs;
