//! Packets through the engine, one module per direction.

extern crate std;

mod arrivals;
mod cached;
mod decap;
mod encap;
mod flows;
mod listen;
mod networks;
mod pairs;
mod pods;
mod profile;
mod segments;
mod untouched;
mod xdp;

use crate::counters::Reason;
use crate::hooks::Verdict;
use crate::model::{Frame, Maps};
use crate::testbed;

/// A hook's entry point.
type Entry = for<'t> fn(&mut Frame, &'t Maps) -> Verdict<'t>;

/// Runs `frame` through `entry` on the testbed: the verdict's reason, and the frame afterwards.
fn run(entry: Entry, frame: &Frame) -> (Reason, Frame) {
    run_with(entry, frame, &testbed::maps())
}

fn run_with(entry: Entry, frame: &Frame, maps: &Maps) -> (Reason, Frame) {
    let mut after = frame.clone();
    let reason = entry(&mut after, maps).reason();
    (reason, after)
}

/// Expects `frame` to be left alone for `reason`.
#[track_caller]
fn left_alone(entry: Entry, frame: &Frame, reason: Reason) {
    let (got, after) = run(entry, frame);
    assert_eq!(got, reason);
    assert_eq!(&after, frame, "a frame that is not forwarded stays as it is");
}

/// `frame` with its bytes changed.
fn with(frame: &Frame, change: impl FnOnce(&mut std::vec::Vec<u8>)) -> Frame {
    let mut frame = frame.clone();
    change(&mut frame.bytes);
    frame
}

/// Recomputes the checksum of the IPv4 header at `offset`.
fn fix_checksum(bytes: &mut [u8], offset: usize) {
    bytes[offset + 10..offset + 12].fill(0);
    let (header, _) = etherparse::Ipv4Header::from_slice(&bytes[offset..]).expect("an IPv4 header");
    let sum = header.calc_header_checksum();
    bytes[offset + 10..offset + 12].copy_from_slice(&sum.to_be_bytes());
}
