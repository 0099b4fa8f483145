//! Files from machine to machine, with their sums compared.

use std::time::{Duration, Instant};

use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::{OffloadCapture, Offloads};

use super::{Guest, SOON, assert_carried, counted};

/// For a file, which a machine makes, sends and sums up.
const PATIENCE: Duration = Duration::from_secs(300);
/// Size of a file in MiB, unless this variable says otherwise.
const FILE: u32 = 100;
const SIZE: &str = "VXLAN_VM_MIB";
const PORT: u16 = 9000;
/// The least share of aggregates among the bytes that machines send, for a test that says something. On a busy
/// computer it is less than it could be: what is lost at a tap makes TCP send little at a time.
const LEAST: f64 = 0.3;

/// What became of files on their way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    /// Payload in bytes.
    bytes: u64,
    /// Segments that machines sent again.
    again: u64,
    /// What came by at the taps of the machines that sent, and of those that received.
    taps: [Offloads; 2],
}

/// Size of a file in MiB.
pub(super) fn size() -> u32 {
    std::env::var(SIZE).map_or(FILE, |text| text.parse().expect("a number of MiB"))
}

/// Makes a file of random bytes in `from`, sends it to `to`, which is at another node, and compares what has
/// arrived.
pub(super) fn send(lab: &SegmentLab, from: &mut Guest, to: &mut Guest, megabytes: u32) -> Sent {
    let sum = |printed: String| printed.split_whitespace().next().map(str::to_owned);
    let started = Instant::now();
    let make = format!("dd if=/dev/urandom of=/tmp/out bs=1M count={megabytes} 2> /dev/null");
    from.machine.run(&make, PATIENCE).expect("a file");
    let sent = sum(from.machine.run("md5sum /tmp/out", PATIENCE).expect("a sum"));
    let made = started.elapsed();
    let before = from.tcp("RetransSegs");
    let look = |guest: &Guest| OffloadCapture::start(lab.node(guest.node), guest.tap).expect("a capture");
    let captures = [look(from), look(to)];
    let began = Instant::now();
    let (counts, ()) = counted(lab, || transfer(from, to));
    let moved = began.elapsed();
    let taps = captures.map(|capture| capture.stop(from.mac).expect("what came by"));
    let again = from.tcp("RetransSegs") - before;
    let received = sum(to.machine.run("md5sum /tmp/in", PATIENCE).expect("a sum"));
    assert_eq!(sent, received, "{megabytes} MiB to {}", to.address);
    to.machine.run("rm /tmp/in", SOON).expect("removed");
    from.machine.run("rm /tmp/out", SOON).expect("removed");
    let bytes = u64::from(megabytes) << 20;
    assert_carried(&counts, (from.node, to.node), bytes);
    eprintln!(
        "  {megabytes} MiB from node {}: made in {:.1} s, sent in {:.1} s, {again} segments again, aggregates {:.0} % \
         at the sender's tap and {:.0} % at the receiver's",
        from.node,
        made.as_secs_f32(),
        moved.as_secs_f32(),
        taps[0].share() * 100.0,
        taps[1].share() * 100.0,
    );
    Sent { bytes, again, taps }
}

fn transfer(from: &mut Guest, to: &mut Guest) {
    // With an input that neither ends nor says anything: busybox closes when it has sent all.
    to.machine.run("[ -p /tmp/idle ] || mkfifo /tmp/idle", SOON).expect("a pipe");
    to.machine.begin(&format!("nc -l -p {PORT} 0<> /tmp/idle > /tmp/in")).expect("a shell");
    // The other machine has to listen first.
    let address = &to.address;
    let send = format!("for i in 1 2 3 4 5; do sleep 1; nc {address} {PORT} < /tmp/out && break; done");
    from.machine.run(&send, PATIENCE).expect("sent");
    to.machine.finish(PATIENCE).expect("received");
}

impl Sent {
    pub(super) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.again += other.again;
        for (tap, more) in self.taps.iter_mut().zip(other.taps) {
            tap.frames += more.frames;
            tap.bytes += more.bytes;
            tap.whole += more.whole;
            tap.odd += more.odd;
        }
    }

    /// Aggregates stay whole, and no more is lost than without agents.
    pub(super) fn compare(&self, kernels: &Self) {
        let [sent, received] = self.taps;
        assert!(sent.share() > LEAST, "the machines cut what they send: {self:?}");
        assert!(received.share() > sent.share() * 0.9, "aggregates were cut on the way: {self:?}");
        assert_eq!(received.odd, 0, "aggregates without a checksum to fill in: {self:?}");
        // A hundredth of all segments of full length: emulators do not read their taps all the time.
        let slack = self.bytes / 1400 / 100;
        assert!(self.again <= kernels.again + slack, "{self:?}, without agents {kernels:?}");
    }
}
