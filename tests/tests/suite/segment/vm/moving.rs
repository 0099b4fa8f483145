//! Machines that move from node to node while they run and are talked to.

use std::time::Duration;

use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::{Ping, PingReport, ping};

use super::{Guest, RED, assert_answered};

/// Requests of a host while a machine moves.
const ECHOES: Ping = Ping {
    payload: 56,
    dont_fragment: false,
    count: 600,
    until_lost: false,
    interval: Duration::from_millis(10),
    timeout: Duration::from_millis(100),
    ttl: 64,
    tos: 0,
    device: None,
};
/// What a busy machine adds to an outage.
const SLACK: Duration = Duration::from_millis(600);

/// For how long hosts got no answers because a machine moved.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outage {
    /// For how long the machine stood still.
    stood_still: Duration,
    /// For how long the host of each node got no answers.
    silent: [Duration; 2],
}

/// Moves a machine to node `to` while hosts of both nodes send it echo requests.
pub(super) fn move_under_traffic(lab: &SegmentLab, guest: &mut Guest, to: u8) -> Outage {
    lab.add_tap(to, RED, guest.tap).expect("a tap");
    let ip = guest.ip();
    let (reports, stood_still) = std::thread::scope(|scope| {
        let pings = [1, 2].map(|n| {
            let host = lab.host(n, RED, 1);
            scope.spawn(move || ping(host, ip, ECHOES).expect("a socket"))
        });
        std::thread::sleep(Duration::from_millis(500)); // before it moves, all is well
        let stood_still = guest.machine.migrate(lab.node(to), guest.tap).expect("moved");
        (pings.map(|pings| pings.join().expect("a report")), stood_still)
    });
    lab.node(guest.node).ip(&format!("link del {}\n", guest.tap)).expect("a tap");
    guest.node = to;
    let outage = Outage { stood_still, silent: [&reports[0], &reports[1]].map(silence) };
    eprintln!("  moved to node {to}: {outage:?}");
    for report in &reports {
        assert!(report.rtts.len() * 2 > report.sent, "{} of {} answered", report.rtts.len(), report.sent);
    }
    for n in [1, 2] {
        assert_answered(lab.host(n, RED, 1), ip, Ping { count: 10, ..Ping::default() });
    }
    outage
}

/// For how long there was no answer: each request that gets none takes its time.
fn silence(report: &PingReport) -> Duration {
    (ECHOES.timeout + ECHOES.interval) * u32::try_from(report.errors.len()).unwrap_or(u32::MAX)
}

impl Outage {
    pub(super) fn add(&mut self, other: Self) {
        self.stood_still += other.stood_still;
        for (silent, more) in self.silent.iter_mut().zip(other.silent) {
            *silent += more;
        }
    }

    /// Machines are not silent for longer than without agents, but for what they stand still.
    pub(super) fn compare(&self, kernels: &Self) {
        for (own, kernel) in self.silent.iter().zip(kernels.silent) {
            let allowed = kernel.saturating_sub(kernels.stood_still) + self.stood_still + SLACK;
            assert!(*own <= allowed, "{self:?}, without agents {kernels:?}");
        }
    }
}
