//! Virtual machines on a segment: they boot, ask for their address, talk, and move while they run.

mod file;
mod moving;

use std::time::{Duration, Instant};

use vxlan_tests::lab::Counters;
use vxlan_tests::lab::machine::{Machine, MachineSpec};
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::Ping;

use super::dhcp::Server;
use super::{Pairing, RED, assert_answered, build, over_all};

const SOON: Duration = Duration::from_secs(30);
/// A tap's name, the same on all nodes: an emulator keeps it when a machine moves.
const TAP: [&str; 2] = ["vm1", "vm2"];

/// A machine on the segment.
struct Guest {
    machine: Machine,
    address: String,
    mac: [u8; 6],
    /// Where it is.
    node: u8,
    tap: &'static str,
}

impl Guest {
    /// Switches on the machine `n` at node `n`; its address comes from a server at the other node.
    fn boot(lab: &SegmentLab, n: u8) -> Self {
        let (mac, tap) = ([0x02, 0x66, 0, 1, 0, n], TAP[usize::from(n) - 1]);
        let spec = MachineSpec {
            name: format!("vm{n}"),
            dir: lab.run_dir(),
            mac,
            mtu: lab.spec().host_mtu(),
            memory: 512,
        };
        lab.add_tap(n, RED, tap).expect("a tap");
        let started = Instant::now();
        let mut machine = Machine::start(&spec, lab.node(n), tap).expect("a machine");
        eprintln!("  machine {n} is up after {:.1} s", started.elapsed().as_secs_f32());
        let _server = Server::start(lab.host(3 - n, RED, 1), &lab.run_dir(), 200 + n);
        let ask = "ip link set eth0 up && udhcpc -i eth0 -f -n -q -t 10 -T 1 -s /on-lease > /tmp/lease 2>&1";
        machine.run(ask, SOON).expect("a lease");
        let shown = machine.run("ip -4 -o addr show dev eth0", SOON).expect("an address");
        let address = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1);
        let address = address.and_then(|text| text.split('/').next()).expect("an address").to_owned();
        assert!(address.starts_with(&format!("10.66.{}.", 200 + n)), "{address}");
        Self { machine, address, mac, node: n, tap }
    }

    fn ip(&self) -> std::net::IpAddr {
        self.address.parse().expect("an address")
    }

    /// Gets an answer to each of three echo requests to `other`.
    fn reaches(&mut self, other: &Self) {
        let printed = self.machine.run(&format!("ping -c 3 {}", other.address), SOON).expect("answers");
        assert!(printed.contains(" 0% packet loss"), "{printed}");
    }

    /// A counter of the machine's TCP, as `/proc/net/snmp` calls it.
    fn tcp(&mut self, name: &str) -> u64 {
        let shown = self.machine.run("grep ^Tcp: /proc/net/snmp", SOON).expect("counters");
        let [names, values] = shown.lines().collect::<Vec<_>>()[..] else { panic!("{shown}") };
        let named = names.split(' ').zip(values.split(' ')).find(|(counter, _)| *counter == name);
        named.and_then(|(_, value)| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {shown}"))
    }
}

/// What the agents of both nodes count while `work` goes on; none where a node has none.
fn counted<T>(lab: &SegmentLab, work: impl FnOnce() -> T) -> ([Option<Counters>; 2], T) {
    let read = || [1, 2].map(|n| lab.agent(n).ok().map(|agent| agent.counters().expect("counters")));
    let before = read();
    let result = work();
    let mut after = read();
    for (now, then) in after.iter_mut().zip(before) {
        *now = now.as_ref().zip(then.as_ref()).map(|(now, then)| now - then);
    }
    (after, result)
}

/// Node `from` has encapsulated, and node `to` taken out of the tunnel, most of `bytes`, as far as they run agents.
#[track_caller]
fn assert_carried(counts: &[Option<Counters>; 2], (from, to): (u8, u8), bytes: u64) {
    let of = |n: u8| counts[usize::from(n) - 1].as_ref();
    if let Some(counters) = of(from) {
        let sent = counters.get("port_ingress", "encapsulated");
        assert!(sent.bytes * 10 > bytes * 9, "{bytes} bytes from node {from}: {counters}");
    }
    if let Some(counters) = of(to) {
        let [single, joined] = [("underlay_ingress", "decapsulated"), ("tunnel_ingress", "delivered")];
        let got = counters.get(single.0, single.1).bytes + counters.get(joined.0, joined.1).bytes;
        assert!(got * 10 > bytes * 9, "{bytes} bytes to node {to}: {counters}");
    }
}

/// Echoes between a host of node 2 and a machine at node 1 take the short cut both ways.
fn assert_echoes_are_fast(lab: &SegmentLab, (n, h): (u8, u8), guest: &Guest) {
    let echoes = Ping { count: 50, ..Ping::default() };
    let host = lab.host(n, RED, h);
    let (counts, ()) = counted(lab, || assert_answered(host, guest.ip(), echoes));
    let bytes = 40 * (14 + 20 + 8 + echoes.payload as u64);
    assert_carried(&counts, (n, guest.node), bytes);
    assert_carried(&counts, (guest.node, n), bytes);
}

/// What the pairing without agents has done, which the others are compared with.
#[derive(Default)]
struct Referee {
    files: Option<file::Sent>,
    moves: Option<moving::Outage>,
}

fn test(pairing: &Pairing, referee: &mut Referee) {
    let lab = build(&pairing.pair());
    let (mut one, mut two) = (Guest::boot(&lab, 1), Guest::boot(&lab, 2));
    one.reaches(&two);
    two.reaches(&one);
    assert_echoes_are_fast(&lab, (2, 1), &one);
    assert_echoes_are_fast(&lab, (1, 1), &two);
    let mut files = file::send(&lab, &mut one, &mut two, file::size());
    files.add(file::send(&lab, &mut two, &mut one, file::size()));
    files.compare(referee.files.get_or_insert(files));

    // There, and back again.
    let mut moves = moving::move_under_traffic(&lab, &mut one, 2);
    one.reaches(&two);
    two.reaches(&one);
    assert_echoes_are_fast(&lab, (1, 1), &one);
    moves.add(moving::move_under_traffic(&lab, &mut one, 1));
    moves.compare(referee.moves.get_or_insert(moves));
    one.reaches(&two);
    two.reaches(&one);
    assert_echoes_are_fast(&lab, (2, 1), &one);
    file::send(&lab, &mut one, &mut two, file::size() / 10);
    for guest in [&mut one, &mut two] {
        assert_eq!(guest.tcp("InCsumErrors"), 0, "wrong checksums at {}", guest.address);
    }
}

#[test]
#[ignore = "it needs an emulator and a kernel: cargo xtask test --suite vm"]
fn machines_get_addresses_talk_and_move_while_they_run() {
    let mut referee = Referee::default();
    over_all(|pairing| test(pairing, &mut referee));
}
