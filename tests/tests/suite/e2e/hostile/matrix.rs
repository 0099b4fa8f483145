//! Who sends, in which outer form, with what inside, to which of the node's addresses: nobody unknown
//! gets a packet in, nor does a known VTEP with another's source, nor a pod that makes a tunnel of its own. In a segment
//! any station may be behind any VTEP, and hosts do not reach the nodes. Everything proper arrives that the kernel alone
//! delivers, whoever delivers it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use vxlan_ebpf_common::testbed::{Inner, Outer};
use vxlan_tests::lab::addr::{inner4, inner6};
use vxlan_tests::lab::traffic::{Capture, Frame, Injector, Ping, mac_of};
use vxlan_tests::lab::{AgentOptions, Family, Netns, Overlay, UNDERLAY};

use super::super::assert_answered;
use super::super::pods::with_pods;
use super::course::{
    Course, Edit, IP, add, fragments, fragments6, is_marker, mend, mend_header, put, with_extension,
    with_ip_options, with_tag,
};
use super::ground::{Ground, Spec, pair};

/// What a datagram begins with; its cell's number follows.
const CELL: &[u8; 5] = b"cell ";
/// Port that node and pod listen on; the testbed's datagrams go there.
const LISTENS: u16 = 53;
/// How long what has to arrive may take, and how long nothing may come before there is no more.
const PATIENCE: Duration = Duration::from_secs(5);
const QUIET: Duration = Duration::from_millis(100);

/// How many cells the receivers' buffers are sure to hold.
const AT_ONCE: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Vtep,
    VtepAsPodOfTheReceiver,
    VtepAsMachineOutside,
    Stranger,
    Pod,
    PodOfTheReceiver,
}

const WHO: [Who; 6] = [
    Who::Vtep,
    Who::VtepAsPodOfTheReceiver,
    Who::VtepAsMachineOutside,
    Who::Stranger,
    Who::Pod,
    Who::PodOfTheReceiver,
];

/// Those that have a way to a segment.
const WHO_BRIDGED: [Who; 4] = [WHO[0], WHO[1], WHO[2], WHO[3]];

/// What becomes of the outer packet; the number tells fragments of one from another's.
#[derive(Clone, Copy)]
enum Form {
    Edited(Edit),
    /// In two fragments, the first with so many bytes of what follows the IP header; after an edit.
    Fragments(usize, Edit),
}

const BOTH: [(&str, Form); 9] = [
    ("plain", Form::Edited(|_| {})),
    ("in a frame with a priority tag", Form::Edited(|b| with_tag(b, 0x8100, 0))),
    ("with a trailer", Form::Edited(|b| b.extend([0x5a; 6]))),
    ("without a checksum", Form::Edited(|b| put_sum(b, 0))),
    ("with a wrong checksum", Form::Edited(|b| put_sum(b, 0x1234))),
    ("longer than the datagram", Form::Edited(slack)),
    ("first fragment of 8 bytes", Form::Fragments(8, |_| {})),
    ("first fragment of 24 bytes", Form::Fragments(24, |_| {})),
    ("first fragment of 80 bytes", Form::Fragments(80, |_| {})),
];
const ONLY_IPV4: [(&str, Form); 2] = [
    ("with options", Form::Edited(|b| with_ip_options(b, 1))),
    ("with as many options as fit", Form::Edited(|b| with_ip_options(b, 10))),
];
const ONLY_IPV6: [(&str, Form); 6] = [
    ("with hop-by-hop options", Form::Edited(|b| with_extension(b, 0, OPTIONS))),
    ("with destination options", Form::Edited(|b| with_extension(b, 60, OPTIONS))),
    ("with a routing header", Form::Edited(|b| with_extension(b, 43, [0, 0, 4, 0, 0, 0, 0, 0]))),
    ("an atomic fragment", Form::Edited(|b| with_extension(b, 44, [0; 8]))),
    ("options in a first fragment of 8 bytes", Form::Fragments(8, |b| with_extension(b, 60, OPTIONS))),
    ("options in a first fragment of 16 bytes", Form::Fragments(16, |b| with_extension(b, 60, OPTIONS))),
];
const OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// What becomes of the inner frame.
const INSIDE: [(&str, Edit); 9] = [
    ("plain", |_| {}),
    ("with options", |b| {
        if b[12..14] == [8, 0] {
            with_ip_options(b, 1)
        }
    }),
    ("with a tag of no VLAN", |b| with_tag(b, 0x8100, 0)),
    ("with a tag of no service VLAN", |b| with_tag(b, 0x88a8, 0)),
    ("with a tag of a VLAN", |b| with_tag(b, 0x8100, 5)),
    (TWICE[0], |b| twice(b, 0x8100, 0x8100)),
    (TWICE[1], |b| twice(b, 0x8100, 0x88a8)),
    (TWICE[2], |b| twice(b, 0x88a8, 0x8100)),
    ("for everybody", |b| b[..6].fill(0xff)),
];
/// No peer sends that, and it is dropped whoever does.
const TWICE: [&str; 3] =
    ["with two tags", "with two tags, one of a service", "with two tags, one of a customer"];

fn twice(bytes: &mut Vec<u8>, outer: u16, inner: u16) {
    with_tag(bytes, inner, 0);
    with_tag(bytes, outer, 0);
}

/// Whom the inner packet is for.
#[derive(Clone, Copy, Debug)]
enum Target {
    Pod,
    Node,
    Everybody,
}

fn udp(bytes: &[u8]) -> usize {
    if bytes[12..14] == [8, 0] { IP + 20 } else { IP + 40 }
}

fn put_sum(bytes: &mut [u8], sum: u16) {
    let at = udp(bytes) + 6;
    put(bytes, at, sum);
}

/// Eight bytes behind the datagram that are part of the IP packet.
fn slack(bytes: &mut Vec<u8>) {
    bytes.extend([0x5a; 8]);
    let length = if bytes[12..14] == [8, 0] { IP + 2 } else { IP + 4 };
    add(bytes, length, 8);
    mend_header(bytes);
}

/// What is sent, by whom, and whether it has to arrive where the kernel alone delivers it.
struct Cell {
    name: String,
    who: Who,
    frames: Vec<Vec<u8>>,
    may: bool,
}

fn forms(family: Family) -> Vec<(&'static str, Form)> {
    let only = if family == Family::V4 { &ONLY_IPV4[..] } else { &ONLY_IPV6[..] };
    [&BOTH, only].concat()
}

/// Addresses that node 2 has in `family`, and those that it hears besides. The VTEP's is the first.
fn destinations(course: &Course) -> Vec<IpAddr> {
    let more: &[&str] = match course.underlay {
        Family::V4 => {
            &["192.0.2.102", "198.51.100.7", "10.244.2.0", "192.0.2.255", "255.255.255.255", "224.0.0.1"]
        }
        Family::V6 => &["2001:db8::102", "2001:db8:7::7", "fd00:244:2::", "ff02::1"],
    };
    let more = more.iter().map(|address| address.parse().expect("an address"));
    [course.nodes[1]].into_iter().chain(more).collect()
}

/// Gives node 2 the addresses that [`destinations`] are of, besides its own.
fn add_addresses(ground: &Ground) {
    let batch = format!(
        "addr add 192.0.2.102/24 dev {UNDERLAY}\naddr add 2001:db8::102/64 dev {UNDERLAY} nodad\n\
         addr add 198.51.100.7/32 dev lo\naddr add 2001:db8:7::7/128 dev lo\n"
    );
    ground.node(2).ip(&batch).expect("addresses");
    let batch = "route add 198.51.100.7 via 192.0.2.2\nroute add 2001:db8:7::7 via 2001:db8::2\n";
    ground.node(1).ip(batch).expect("routes");
}

/// A lab, and what is sent and seen in it.
struct Field {
    ground: Ground,
    course: Course,
    /// MAC of the second pod of node 2.
    pod: [u8; 6],
    wire: Injector,
    pods: [Injector; 2],
    arriving: Capture,
    node: UdpSocket,
    _pod: UdpSocket,
}

impl Field {
    fn build(overlay: &Overlay, spec: &Spec) -> Self {
        let ground = Ground::build(spec, overlay);
        match overlay {
            Overlay::Agent(options) if options.fastpath == "off" => {
                let to = ground.address(2, 1, Family::V4);
                assert_answered(ground.end(1, 1), to, Ping::default());
            }
            _ => ground.warm_up(),
        }
        add_addresses(&ground);
        let injector = |ns, interface| Injector::open(ns, interface).expect("a socket");
        let listener = |ns: &Netns| {
            let socket = ns.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, LISTENS))).expect("a socket");
            socket.set_nonblocking(true).expect("an option");
            socket
        };
        let receiver = ground.end(2, 1);
        Self {
            course: ground.course(spec.underlay()),
            pod: mac_of(ground.end(2, 2), "eth0").expect("a MAC"),
            wire: injector(ground.node(1), UNDERLAY),
            pods: [injector(ground.end(1, 1), "eth0"), injector(ground.end(2, 2), "eth0")],
            arriving: Capture::start(receiver, "eth0").expect("a capture"),
            node: listener(ground.node(2)),
            _pod: listener(receiver),
            ground,
        }
    }

    /// Who may try.
    fn who(&self) -> &'static [Who] {
        if self.course.is_bridged() { &WHO_BRIDGED } else { &WHO }
    }

    /// How much has to be behind the outer IP header for the sender to be judged, in bytes: options and VXLAN's header,
    /// or the source of the packet that is inside.
    fn read(&self) -> usize {
        if self.course.is_bridged() { 24 } else { 64 }
    }

    /// Whether `who` may send such a frame.
    fn may(&self, who: Who, inside: &str) -> bool {
        if self.course.is_bridged() {
            return who != Who::Stranger;
        }
        who == Who::Vtep && !TWICE.contains(&inside)
    }

    /// Every combination. `short`: fragments too short to be judged may pass, because they never come.
    fn cells(&self, short: bool) -> Vec<Cell> {
        let mut cells = vec![];
        for who in self.who().iter().copied() {
            for (at, to) in destinations(&self.course).into_iter().enumerate() {
                for (outside, form) in forms(self.course.underlay) {
                    for (inside, edit) in INSIDE {
                        for (inner, target) in [
                            (Family::V4, Target::Pod),
                            (Family::V6, Target::Pod),
                            (Family::V4, Target::Node),
                            (Family::V4, Target::Everybody),
                        ] {
                            let number = cells.len() as u32;
                            let frame = self.frame(who, to, self.inner(who, inner, target, number, edit));
                            let judged = match form {
                                Form::Fragments(first, _) => short || first >= self.read(),
                                Form::Edited(_) => true,
                            };
                            cells.push(Cell {
                                name: format!(
                                    "{who:?} to {to}, {outside}; inside {inner:?} for {target:?}, {inside}"
                                ),
                                who,
                                frames: apply(form, frame, number),
                                may: at == 0 && judged && self.may(who, inside),
                            });
                        }
                    }
                }
            }
        }
        cells
    }

    fn inner(&self, who: Who, family: Family, target: Target, number: u32, edit: Edit) -> Vec<u8> {
        let v4 = family == Family::V4;
        let outside =
            || if v4 { IpAddr::from([8, 8, 8, 8]) } else { "2001:db8:8::8".parse().expect("an address") };
        let inner = self.course.inner(family);
        let from = match who {
            Who::VtepAsPodOfTheReceiver if v4 => inner4(2, 9).into(),
            Who::VtepAsPodOfTheReceiver => inner6(2, 9).into(),
            Who::VtepAsMachineOutside => outside(),
            _ => inner.from,
        };
        let to = match target {
            Target::Pod => inner.to,
            Target::Node => inner4(2, 1).into(),
            Target::Everybody => [255; 4].into(),
        };
        let mut bytes = Inner { from, to, len: 48, ..inner }.build();
        let at = udp(&bytes) + 8;
        bytes[at..at + 5].copy_from_slice(CELL);
        bytes[at + 5..at + 9].copy_from_slice(&number.to_be_bytes());
        mend(&mut bytes);
        edit(&mut bytes);
        bytes
    }

    fn frame(&self, who: Who, to: IpAddr, inner: Vec<u8>) -> Vec<u8> {
        let (course, v4) = (&self.course, to.is_ipv4());
        let family = if v4 { Family::V4 } else { Family::V6 };
        let of = |n, p| self.ground.address(n, p, family);
        let (from, macs) = match who {
            Who::Stranger if v4 => ([192, 0, 2, 66].into(), [course.wire[1], course.wire[0]]),
            Who::Stranger => ("2001:db8::66".parse().expect("an address"), [course.wire[1], course.wire[0]]),
            Who::Pod => (of(1, 1), [course.gateways[0], course.pods[0]]),
            Who::PodOfTheReceiver => (of(2, 2), [course.gateways[1], self.pod]),
            _ => (course.nodes[0], [course.wire[1], course.wire[0]]),
        };
        let mut bytes = Outer { from, to, ..course.outer(inner) }.build();
        bytes[..12].copy_from_slice(macs.as_flattened());
        bytes
    }

    /// Sends all cells, and returns the numbers of those that arrived; those of `expected` are waited for.
    fn play(&self, cells: &[Cell], expected: &BTreeSet<u32>) -> BTreeSet<u32> {
        let mut arrived = BTreeSet::new();
        for some in cells.chunks(AT_ONCE) {
            for cell in some {
                let injector = match cell.who {
                    Who::Pod => &self.pods[0],
                    Who::PodOfTheReceiver => &self.pods[1],
                    _ => &self.wire,
                };
                let send = |frame: &Vec<u8>| injector.send(frame).expect("the interface takes the frame");
                cell.frames.iter().for_each(send);
            }
            self.hear(&mut arrived);
        }
        self.wire.send(&self.course.marker(0)).expect("the interface takes the frame");
        while let Some(Frame(bytes)) = self.arriving.next(PATIENCE, |_| true).expect("a capture") {
            arrived.extend(number(&bytes));
            if is_marker(&bytes, 0) {
                break;
            }
        }
        while !arrived.is_superset(expected) {
            let Some(Frame(bytes)) = self.arriving.next(QUIET, |_| true).expect("a capture") else { break };
            arrived.extend(number(&bytes));
        }
        self.hear(&mut arrived);
        arrived
    }

    /// Of all cells, those of `expected` arrive and no other.
    fn compare(&self, expected: &BTreeSet<u32>, short: bool, mode: &str) {
        let cells = self.cells(short);
        let arrived = self.play(&cells, expected);
        let names = |numbers: Vec<&u32>| {
            let some = numbers.iter().take(40).map(|number| &cells[**number as usize].name);
            some.fold(format!("{} of {} cells", numbers.len(), cells.len()), |text, name| {
                text + "\n  " + name
            })
        };
        let wrong: Vec<&u32> = arrived.difference(expected).collect();
        let missing: Vec<&u32> = expected.difference(&arrived).collect();
        let whole = wrong.is_empty() && missing.is_empty();
        assert!(whole, "{mode}: came in: {}\ndid not: {}", names(wrong), names(missing));
    }

    /// What has come to pod and node so far.
    fn hear(&self, arrived: &mut BTreeSet<u32>) {
        let frames = self.arriving.pending().expect("a capture");
        arrived.extend(frames.iter().filter_map(|Frame(bytes)| number(bytes)));
        let mut buffer = [0; 256];
        while let Ok(length) = self.node.recv(&mut buffer) {
            arrived.extend(number(&buffer[..length]));
        }
    }
}

/// The number of the cell that `bytes` are of.
fn number(bytes: &[u8]) -> Option<u32> {
    let at = bytes.windows(CELL.len()).position(|window| window == CELL)?;
    Some(u32::from_be_bytes(*bytes.get(at + CELL.len()..)?.first_chunk()?))
}

fn apply(form: Form, mut frame: Vec<u8>, number: u32) -> Vec<Vec<u8>> {
    match form {
        Form::Edited(edit) => {
            edit(&mut frame);
            vec![frame]
        }
        Form::Fragments(first, edit) => {
            edit(&mut frame);
            let ranges = [(0, first), (first, 9999)];
            match frame[12..14] {
                [8, 0] => fragments(&frame, number as u16, &ranges),
                _ => fragments6(&frame, number, &ranges),
            }
        }
    }
}

const MODES: [&str; 3] = ["off", "direct", "verified"];

/// `conntrack`: whether it puts fragments together before anybody looks, as it does with masquerading.
fn only_who_may_send_gets_a_packet_in(family: Family, conntrack: bool) {
    let agents = |fastpath: &str| match conntrack {
        true => with_pods(fastpath, "masquerade = true"),
        false => agent(fastpath),
    };
    compare(&Spec::Routed(pair(family).pods(2)), MODES.map(agents), conntrack || family == Family::V4);
}

fn only_who_may_send_gets_a_frame_in(family: Family) {
    compare(&Spec::bridged(family), MODES.map(agent), family == Family::V4);
}

fn agent(fastpath: &str) -> Overlay {
    Overlay::Agent(AgentOptions { fastpath: fastpath.into(), ..AgentOptions::default() })
}

/// Of all cells, those arrive that the kernel alone delivers and that may. `short`: as [`Field::cells`] has it.
fn compare(spec: &Spec, [off, direct, verified]: [Overlay; 3], short: bool) {
    // Side by side: to build a lab is mostly to wait.
    let [referee, fields @ ..] = std::thread::scope(|scope| {
        [Overlay::KernelVxlan, off, direct, verified]
            .map(|overlay| scope.spawn(move || Field::build(&overlay, spec)))
            .map(|built| built.join().expect("a lab"))
    });
    let cells = referee.cells(short);
    let by_kernel = referee.play(&cells, &BTreeSet::new());
    let gets_in = |who: Who| by_kernel.iter().any(|number| cells[*number as usize].who == who);
    assert!(referee.who().iter().all(|who| gets_in(*who)), "the kernel alone lets everybody in");
    let expected: BTreeSet<u32> =
        by_kernel.iter().copied().filter(|number| cells[*number as usize].may).collect();
    assert!(expected.len() > 100, "{} of {} cells have to arrive", expected.len(), cells.len());
    for (mode, field) in MODES.into_iter().zip(&fields) {
        field.compare(&expected, short, mode);
    }
}

#[test]
fn only_who_may_send_gets_a_frame_in_over_ipv4() {
    only_who_may_send_gets_a_frame_in(Family::V4);
}

#[test]
fn only_who_may_send_gets_a_frame_in_over_ipv6() {
    only_who_may_send_gets_a_frame_in(Family::V6);
}

#[test]
fn only_who_may_send_gets_a_packet_in_over_ipv4() {
    only_who_may_send_gets_a_packet_in(Family::V4, false);
}

#[test]
fn only_who_may_send_gets_a_packet_in_over_ipv4_with_conntrack() {
    only_who_may_send_gets_a_packet_in(Family::V4, true);
}

#[test]
fn only_who_may_send_gets_a_packet_in_over_ipv6() {
    only_who_may_send_gets_a_packet_in(Family::V6, false);
}

#[test]
fn only_who_may_send_gets_a_packet_in_over_ipv6_with_conntrack() {
    only_who_may_send_gets_a_packet_in(Family::V6, true);
}
