//! Virtual machines on a segment: they boot, ask for their address, talk, and move while they run.

use std::time::{Duration, Instant};

use vxlan_tests::lab::machine::{Machine, MachineSpec};
use vxlan_tests::lab::segment::SegmentLab;
use vxlan_tests::lab::traffic::{Ping, ping};

use super::dhcp::Server;
use super::{RED, assert_answered, build, over_all};

const SOON: Duration = Duration::from_secs(30);
/// For a file, which a machine makes, sends and sums up.
const PATIENCE: Duration = Duration::from_secs(120);
/// Size of a file in MiB.
const FILE: u32 = 100;
const PORT: u16 = 9000;
/// A tap's name, the same on all nodes: an emulator keeps it when a machine moves.
const TAP: [&str; 2] = ["vm1", "vm2"];

/// Switches on the machine `n` at node `n`; its address comes from a server at the other node.
fn boot(lab: &SegmentLab, n: u8) -> (Machine, String) {
    let spec = MachineSpec {
        name: format!("vm{n}"),
        dir: lab.run_dir(),
        mac: [0x02, 0x66, 0, 1, 0, n],
        mtu: lab.spec().host_mtu(),
        memory: 512,
    };
    let tap = TAP[usize::from(n) - 1];
    lab.add_tap(n, RED, tap).expect("a tap");
    let started = Instant::now();
    let mut machine = Machine::start(&spec, lab.node(n), tap).expect("a machine");
    eprintln!("machine {n} is up after {:.1} s", started.elapsed().as_secs_f32());
    let _server = Server::start(lab.host(3 - n, RED, 1), &lab.run_dir(), 200 + n);
    let ask = "ip link set eth0 up && udhcpc -i eth0 -f -n -q -t 10 -T 1 -s /on-lease > /tmp/lease 2>&1";
    machine.run(ask, SOON).expect("a lease");
    let shown = machine.run("ip -4 -o addr show dev eth0", SOON).expect("an address");
    let address = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1);
    let address = address.and_then(|text| text.split('/').next()).expect("an address").to_owned();
    assert!(address.starts_with(&format!("10.66.{}.", 200 + n)), "{address}");
    (machine, address)
}

/// Makes a file of random bytes in `from`, sends it to `to` and compares what has arrived.
fn send_file(from: &mut Machine, (to, address): (&mut Machine, &str), megabytes: u32) {
    let sum = |printed: String| printed.split_whitespace().next().map(str::to_owned);
    let started = Instant::now();
    from.run(&format!("dd if=/dev/urandom of=/tmp/out bs=1M count={megabytes} 2> /dev/null"), PATIENCE)
        .expect("a file");
    let sent = sum(from.run("md5sum /tmp/out", PATIENCE).expect("a sum"));
    let made = started.elapsed();
    // With an input that neither ends nor says anything: busybox closes when it has sent all.
    to.run("[ -p /tmp/idle ] || mkfifo /tmp/idle", SOON).expect("a pipe");
    to.begin(&format!("nc -l -p {PORT} 0<> /tmp/idle > /tmp/in")).expect("a shell");
    // The other machine has to listen first.
    let send = format!("for i in 1 2 3 4 5; do sleep 1; nc {address} {PORT} < /tmp/out && break; done");
    let began = Instant::now();
    from.run(&send, PATIENCE).expect("sent");
    to.finish(PATIENCE).expect("received");
    let moved = began.elapsed();
    let received = sum(to.run("md5sum /tmp/in", PATIENCE).expect("a sum"));
    assert_eq!(sent, received, "{megabytes} MiB to {address}");
    to.run("rm /tmp/in", SOON).expect("removed");
    from.run("rm /tmp/out", SOON).expect("removed");
    eprintln!("{megabytes} MiB: made in {:.1} s, sent in {:.1} s", made.as_secs_f32(), moved.as_secs_f32());
}

#[test]
#[ignore = "it needs an emulator and a kernel: cargo xtask test --suite vm"]
fn machines_get_addresses_talk_and_move_while_they_run() {
    over_all(|pairing| {
        let lab = build(&pairing.pair());
        let (mut one, address1) = boot(&lab, 1);
        let (mut two, address2) = boot(&lab, 2);
        one.run(&format!("ping -c 3 {address2}"), SOON).expect("answers");
        two.run(&format!("ping -c 3 {address1}"), SOON).expect("answers");
        let host = lab.host(2, RED, 1);
        let ip: std::net::IpAddr = address1.parse().expect("an address");
        assert_answered(host, ip, Ping { count: 20, ..Ping::default() });
        send_file(&mut one, (&mut two, &address2), FILE);
        send_file(&mut two, (&mut one, &address1), FILE);

        lab.add_tap(2, RED, TAP[0]).expect("a tap");
        let (report, stood_still) = std::thread::scope(|scope| {
            let (count, interval) = (1000, Duration::from_millis(10));
            let patient = Ping { count, interval, timeout: Duration::from_millis(200), ..Ping::default() };
            let pings = scope.spawn(move || ping(host, ip, patient).expect("a socket"));
            std::thread::sleep(Duration::from_millis(500));
            let stood_still = one.migrate(lab.node(2), TAP[0]).expect("moved");
            (pings.join().expect("a report"), stood_still)
        });
        let lost = report.errors.len();
        eprintln!("moved: stood still for {stood_still:?}, {lost} of {} echoes lost", report.sent);
        assert!(lost * 2 < report.sent, "{lost} of {} echoes lost", report.sent);

        // At its new place it is reached from both nodes, with what it had.
        for n in [1, 2] {
            assert_answered(lab.host(n, RED, 1), ip, Ping { count: 10, ..Ping::default() });
        }
        one.run(&format!("ping -c 3 {address2}"), SOON).expect("answers");
        two.run(&format!("ping -c 3 {address1}"), SOON).expect("answers");
        send_file(&mut one, (&mut two, &address2), FILE / 10);
    });
}
