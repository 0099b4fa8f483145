//! FRR's BGP EVPN as the owner of bridged devices: zebra writes who is where (routes of type 2) and whom to flood to
//! (type 3), and the short cut follows.

mod routing;
mod suppression;
mod tenants;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use vxlan_tests::lab::addr::{mac_text, underlay4};
use vxlan_tests::lab::segment::{Announcement, SegmentLab, SegmentSpec};
use vxlan_tests::lab::traffic::{Ping, StreamReport, UdpStream, ping};
use vxlan_tests::lab::{AgentOptions, Daemon, Frr, Speaker, wait_until};

use super::beside::{remake, takes_the_short_cut};
use super::{RED, build, kernel};
use crate::e2e::accelerate::dump::{assert_same, dump};

/// More than BGP needs to connect and to tell.
const SOON: Duration = Duration::from_secs(15);
/// Datagrams per second: one a millisecond, so that the number of lost ones tells for how long.
const RATE: u32 = 1000;
/// More than the short cut needs to follow an entry of the owner's, on a busy machine.
const FOLLOWED: Duration = Duration::from_millis(500);

/// A lab whose entries nobody writes but FRR, as far as it runs.
struct Evpn {
    lab: SegmentLab,
    frr: Vec<Frr>,
}

impl Evpn {
    /// `count` nodes with one host each, and FRR on the first `running`.
    fn new(count: u8, running: u8) -> Self {
        Self::of(&SegmentSpec::of(vec![kernel(); usize::from(count)]), running)
    }

    /// A lab like this, and FRR on the first `running` nodes.
    fn of(spec: &SegmentSpec, running: u8) -> Self {
        let lab = build(spec);
        (1..=lab.nodes().len() as u8).for_each(|n| hand_over(&lab, n));
        let mut evpn = Self { lab, frr: vec![] };
        (1..=running).for_each(|_| evpn.add_frr());
        evpn
    }

    /// Starts FRR on the next node.
    fn add_frr(&mut self) {
        let (n, count) = (self.frr.len() as u8 + 1, self.lab.nodes().len() as u8);
        let peers = (1..=count).filter(|peer| *peer != n).map(underlay4).collect();
        let speaker = Speaker { own: underlay4(n), peers, routed: None };
        let dir = self.lab.run_dir().join(format!("frr-{n}"));
        self.frr.push(Frr::start(self.lab.node(n), dir, &speaker).expect("FRR"));
    }

    fn accelerate(&mut self, n: u8) {
        self.lab.add_agent(n, &AgentOptions::beside("verified", "")).expect("an agent");
        self.lab.agent_mut(n).and_then(|agent| agent.start()).expect("started");
    }

    /// Whether the owner has an entry for the MAC of the host of `other` on node `n`.
    fn knows(&self, n: u8, other: u8) -> bool {
        self.knows_in(RED, n, other)
    }

    /// The same in a tenant's segment.
    fn knows_in(&self, tenant: &str, n: u8, other: u8) -> bool {
        let device = self.lab.tenant(tenant).device();
        let shown = self.lab.node(n).sh(&format!("bridge fdb show dev {device}")).expect("entries");
        let (mac, at) = (mac_text(self.lab.host(other, tenant, 1).mac), self.lab.host(other, tenant, 1).node);
        let entry = format!("{mac} dst {} self extern_learn", underlay4(at));
        shown.contains(&entry)
    }

    /// Waits until the host of `other` is reached from that of `n` by the short cut there.
    #[track_caller]
    fn wait_fast(&self, n: u8, other: u8) {
        self.wait_fast_in(RED, n, other);
    }

    /// The same in a tenant's segment.
    #[track_caller]
    fn wait_fast_in(&self, tenant: &str, n: u8, other: u8) {
        let (from, to) = (self.lab.host(n, tenant, 1), self.lab.host(other, tenant, 1));
        wait_until("frames take the short cut", SOON, || takes_the_short_cut(&self.lab, from, to))
            .inspect_err(|_| {
                let agent = self.lab.agent(from.node).expect("an agent");
                eprintln!("{}", agent.cli(&["status"]).unwrap_or_default());
                eprintln!("{}", agent.cli(&["dump", "stations"]).unwrap_or_default());
                eprintln!("{}", self.frr[0].show("show bgp l2vpn evpn").unwrap_or_default());
            })
            .expect("in time");
    }

    fn answers(&self, n: u8, other: u8) -> bool {
        let once = Ping { timeout: Duration::from_millis(200), ..Ping::default() };
        let (from, to) = (self.lab.host(n, RED, 1), self.lab.host(other, RED, 1));
        ping(from, to.ip4, once).is_ok_and(|report| report.all_answered())
    }

    /// What is lost between two hosts while `work` goes on.
    fn stream(&mut self, (n, other): (u8, u8), work: impl FnOnce(&mut Self)) -> StreamReport {
        let (from, to) = (self.lab.host(n, RED, 1), self.lab.host(other, RED, 1));
        let stream = UdpStream::start(from, to, IpAddr::from(to.ip4), RATE, 100).expect("a stream");
        work(self);
        stream.stop().expect("a report")
    }
}

/// Leaves the devices of node `n` to FRR: they learn nothing themselves, flood to nobody, and answer ARP for others.
fn hand_over(lab: &SegmentLab, n: u8) {
    for tenant in &lab.spec().tenants {
        remake(lab, n, &tenant.name, "nolearning");
        let device = tenant.device();
        lab.node(n)
            .ip(&format!("link set {device} type bridge_slave learning off neigh_suppress on\n"))
            .expect("a port");
    }
}

#[test]
fn what_frr_tells_of_macs_is_followed() {
    let mut evpn = Evpn::new(3, 2);
    let before = [1, 2].map(|n| {
        wait_until("FRR tells of hosts", SOON, || evpn.knows(n, 3 - n) && evpn.answers(n, 3 - n))
            .expect("a MAC");
        dump(evpn.lab.node(n))
    });
    [1, 2].into_iter().for_each(|n| evpn.accelerate(n));
    evpn.wait_fast(1, 2);
    evpn.wait_fast(2, 1);
    for (n, before) in (1..).zip(&before) {
        assert_same(before, &dump(evpn.lab.node(n)), "while it runs");
    }
    assert!(!evpn.answers(1, 3), "nobody has told of node 3");
    evpn.add_frr();
    evpn.wait_fast(1, 3);
    evpn.wait_fast(2, 3);
    // A host moves away from a node with an agent, on to a node with an agent, and home.
    let moves: [(u8, &[(u8, u8)]); 3] = [(3, &[(2, 1)]), (2, &[(1, 3)]), (1, &[(1, 2), (1, 3), (2, 1)])];
    for (to, pairs) in moves {
        evpn.lab.move_host(1, RED, 1, to).expect("moved");
        evpn.lab.host(1, RED, 1).announce(Announcement::GratuitousArp).expect("sent");
        let knowing = [1, 2, 3].into_iter().filter(|n| *n != to);
        knowing.for_each(|n| wait_until("all hear of it", SOON, || evpn.knows(n, 1)).expect("in time"));
        pairs.iter().for_each(|(from, other)| evpn.wait_fast(*from, *other));
    }
    // A node goes.
    [Daemon::Bgpd, Daemon::Zebra].into_iter().for_each(|daemon| evpn.frr[2].kill9(daemon));
    wait_until("the owner forgets it", SOON, || !evpn.knows(1, 3)).expect("in time");
    wait_until("nobody is led there", FOLLOWED * 4, || !evpn.answers(1, 3)).expect("in time");
    evpn.wait_fast(1, 2);
    for n in [1, 2] {
        let before = dump(evpn.lab.node(n));
        evpn.lab.agent_mut(n).and_then(|agent| agent.stop()).expect("stopped");
        evpn.lab.agent(n).and_then(|agent| agent.cli(&["detach"])).expect("detached");
        assert!(evpn.answers(n, 3 - n), "the owner's overlay works");
        assert_same(&before, &dump(evpn.lab.node(n)), "after detach");
    }
}

#[test]
fn nothing_is_lost_when_frr_or_the_agent_is_restarted_that_the_kernel_would_not_lose() {
    let mut evpn = Evpn::new(2, 2);
    (1..=2).for_each(|n| evpn.accelerate(n));
    evpn.wait_fast(1, 2);
    evpn.wait_fast(2, 1);
    // What zebra has written stays, and the agent is not in the packets' path.
    let report = evpn.stream((1, 2), |evpn| {
        evpn.frr[0].kill9(Daemon::Zebra);
        evpn.frr[0].resume(Daemon::Zebra).expect("started");
        evpn.lab.agent_mut(1).and_then(|agent| agent.kill9()).expect("killed");
        evpn.wait_fast(1, 2);
        evpn.lab.agent_mut(1).and_then(|agent| agent.start()).expect("started");
        evpn.wait_fast(1, 2);
    });
    assert_eq!((report.lost, report.duplicates), (0, 0), "{report:?}");
    // Other nodes forget what a BGP speaker that is gone has told, and flood to it no more.
    let mut gone = Duration::ZERO;
    let report = evpn.stream((2, 1), |evpn| {
        evpn.frr[0].kill9(Daemon::Bgpd);
        let killed = Instant::now();
        wait_until("the other node forgets", SOON, || !evpn.knows(2, 1)).expect("in time");
        evpn.frr[0].resume(Daemon::Bgpd).expect("started");
        wait_until("it is told again", SOON, || evpn.knows(2, 1)).expect("in time");
        gone = killed.elapsed();
        evpn.wait_fast(2, 1);
        evpn.wait_fast(1, 2);
    });
    eprintln!("the entry was gone for {gone:?}, datagrams for {:?}", report.longest_gap);
    assert!(report.longest_gap < gone + FOLLOWED, "{gone:?}: {report:?}");
    assert!(report.lost > 0, "without an entry the kernel has nowhere to send to, nor have we: {report:?}");
}
