//! Labs that are alike but for the overlay, and what becomes of frames in them.

use std::cell::Cell;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use vxlan_agent::datapath::Pins;
use vxlan_ebpf_common::maps::Kind;
use vxlan_ebpf_common::{Hook, Reason};
use vxlan_tests::lab::NETWORK;
use vxlan_tests::lab::traffic::{Capture, Frame, Injector};
use vxlan_tests::lab::{Family, Overlay, UNDERLAY, wait_until, xdp};

use super::course::{Course, is_marker};
use super::ground::{Ground, OTHER, Place, Saying, Spec, add_other_network, has_all, keep_quiet};
use super::is_fast;
use super::normal::{Normal, errors};

/// Port that the pods listen on; the testbed's datagrams go there.
const LISTENS: u16 = 53;
/// What a marker may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What brings packets from node to node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The kernel alone: the referee.
    Kernel,
    /// Our agent in mode `direct`.
    Direct,
    /// Our agent in mode `verified`.
    Verified,
}

/// Where a frame is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// On the wire from node 1 to node 2, which is watched.
    Wire,
    /// At pod 1 of node 1, which is watched.
    Pod,
}

/// A lab under observation.
pub(super) struct Arena {
    way: Way,
    pub(super) course: Course,
    wire: Injector,
    pod: Injector,
    arriving: Capture,
    sent: Capture,
    returned: Capture,
    answers: Capture,
    neighbour: Option<Capture>,
    /// What the hosts of a segment say, so that it is known where they are.
    saying: Vec<Saying>,
    /// How many MACs have been seen that nobody had before.
    newcomers: Cell<u16>,
    other: Capture,
    socket: UdpSocket,
    pins: [Option<Pins>; 2],
    markers: Cell<u32>,
    /// Whether it is known of the hosts of a segment where they are.
    is_settled: Cell<bool>,
    /// Lasts as long as what is sent in it.
    _ground: Ground,
}

/// What became of the frames of a case. Addresses that differ from lab to lab are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// What pod 1 of node 2 received.
    pub(super) arrived: Vec<Vec<u8>>,
    /// What its sockets did.
    pub(super) accepted: Vec<Vec<u8>>,
    /// What node 1 sent to node 2, if the frames came from a pod.
    pub(super) sent: Vec<Vec<u8>>,
    /// What the other host of node 1 received of that, in a segment.
    pub(super) neighbour: Vec<Vec<u8>>,
    /// What appeared in the other network.
    pub(super) other: Vec<Vec<u8>>,
    /// ICMP errors for the sender: version, type, code.
    pub(super) answers: Vec<[u8; 3]>,
}

/// Which counters went up, once for each packet.
pub(super) type Counted = Vec<(Hook, Reason)>;

impl Arena {
    /// Builds the lab of `spec` with the overlay of `way` on both nodes.
    pub(super) fn build(way: Way, spec: &Spec) -> Self {
        let overlay = match way {
            Way::Kernel => Overlay::KernelVxlan,
            Way::Direct => Overlay::agent(),
            Way::Verified => Overlay::verified(),
        };
        let mut ground = Ground::build(spec, &overlay);
        ground.warm_up();
        ground.add_absent_node();
        keep_quiet(&ground);
        add_other_network(ground.node(2), spec.underlay());
        let (sender, receiver) = (ground.end(1, 1), ground.end(2, 1));
        let capture = |ns, interface| Capture::start(ns, interface).expect("a capture");
        let socket = receiver.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, LISTENS))).expect("a socket");
        socket.set_nonblocking(true).expect("an option");
        Self {
            way,
            course: ground.course(spec.underlay()),
            wire: Injector::open(ground.node(1), UNDERLAY).expect("a socket"),
            pod: Injector::open(sender, "eth0").expect("a socket"),
            arriving: capture(receiver, "eth0"),
            // Where they are sent: behind the receiver's XDP the tunnel is gone.
            sent: capture(ground.node(1), UNDERLAY),
            returned: capture(ground.node(2), UNDERLAY),
            answers: capture(sender, "eth0"),
            neighbour: ground.hosts().first().map(|_| capture(ground.end(1, 2), "eth0")),
            saying: ground.hosts().into_iter().rev().map(|host| Saying::of(&ground, host)).collect(),
            newcomers: Cell::new(0),
            other: capture(ground.node(2), OTHER),
            socket,
            pins: [1, 2].map(|n| ground.pins(n)),
            markers: Cell::new(0),
            is_settled: Cell::new(false),
            _ground: ground,
        }
    }

    pub(super) const fn way(&self) -> Way {
        self.way
    }

    /// Sends `frames`, and returns what became of them.
    pub(super) fn play(&self, from: From, frames: &[Vec<u8>]) -> (Outcome, Counted) {
        match self.course.kind {
            Kind::L2 if !self.is_settled.get() => self.settle(from),
            Kind::L2 => {}
            Kind::L3 if self.way == Way::Verified => self.confirm(from),
            Kind::L3 => {}
        }
        self.observe_and_count(from, frames)
    }

    /// A frame that nothing is odd about: the flow of most cases is open, or has just been looked at.
    fn ordinary(&self, from: From) -> Vec<u8> {
        match from {
            From::Wire => self.course.plain(),
            From::Pod => self.course.sent(Family::V4).build(),
        }
    }

    /// Has the kernel get a frame of those that it had none of for a while.
    pub(super) fn confirm(&self, from: From) {
        self.observe(from, &[self.ordinary(from)]);
    }

    /// Remembers that the last frames may have said of hosts of a segment what is not so.
    pub(super) fn doubt(&self) {
        self.is_settled.set(false);
    }

    /// Has all hosts of the segment say where they are, until it is believed. An agent that is late may yet hear
    /// of what they have gone back on: so somebody new speaks last at each host, and has to be known, too.
    fn settle(&self, from: From) {
        let newcomers: Vec<_> = self.saying.iter().map(|_| self.newcomer()).collect();
        let is_there = |(n, pins): (u8, &Option<Pins>), places: &[Place]| {
            let state = pins.as_ref().map(|pins| pins.state().expect("the maps can be read"));
            state.is_none_or(|state| has_all(&state, n, self.course.nodes, places))
        };
        let believed = || {
            let before = self.moves();
            self.saying.iter().for_each(Saying::say);
            let new = self.saying.iter().zip(&newcomers).map(|(saying, mac)| saying.say_of(*mac));
            let places: Vec<_> = new.chain(self.saying.iter().map(|saying| saying.place)).collect();
            let (_, counted) = self.observe_and_count(from, &[self.ordinary(from)]);
            let is_fast = self.way == Way::Kernel || counted.iter().any(|(_, reason)| is_fast(*reason));
            let all_there = || (1..).zip(&self.pins).all(|node| is_there(node, &places));
            is_fast && before == self.moves() && all_there()
        };
        wait_until("all hosts are where they are", PATIENCE, believed).expect("in time");
        self.is_settled.set(true);
    }

    /// A MAC that nobody has had before.
    fn newcomer(&self) -> [u8; 6] {
        let number = self.newcomers.get() + 1;
        self.newcomers.set(number);
        let [high, low] = number.to_be_bytes();
        [2, 0xfe, 0, 0, high, low]
    }

    /// How many frames from elsewhere than expected the programs of both nodes have counted.
    fn moves(&self) -> u64 {
        let of = |pins: &Pins| -> u64 {
            let counters =
                pins.network(NETWORK).and_then(|network| pins.counters(network)).expect("counters");
            let moved = counters.iter().filter(|(_, reason, _)| *reason == Reason::Moved);
            moved.map(|(_, _, count)| count.packets).sum()
        };
        self.pins.iter().flatten().map(of).sum()
    }

    /// Sends `frames`, and returns what became of them.
    fn observe_and_count(&self, from: From, frames: &[Vec<u8>]) -> (Outcome, Counted) {
        let before = self.counters(from);
        let outcome = self.observe(from, frames);
        let mut counted = self.counters(from);
        for seen in before.into_iter().chain(self.marker_counts(from)) {
            if let Some(at) = counted.iter().position(|count| *count == seen) {
                counted.swap_remove(at);
            }
        }
        counted.sort();
        (outcome, counted)
    }

    /// Sends `frames` and a marker, and collects what comes before the marker.
    fn observe(&self, from: From, frames: &[Vec<u8>]) -> Outcome {
        let number = self.markers.get() + 1;
        self.markers.set(number);
        let (injector, marker) = match from {
            From::Wire => (&self.wire, self.course.marker(number)),
            From::Pod => (&self.pod, self.course.sent_marker(number)),
        };
        for frame in frames.iter().chain([&marker]) {
            injector.send(frame).expect("the interface takes the frame");
        }
        let normal = Normal::of(&self.course);
        let arrived = until_marker(&self.arriving, number);
        // The marker has come last, so everything else has happened.
        let (sent, returned) = (everything(&self.sent), everything(&self.returned));
        let answers = everything(&self.answers);
        let neighbour = self.neighbour.as_ref().map(everything).unwrap_or_default();
        Outcome {
            arrived: arrived.iter().filter_map(|frame| normal.received(frame)).collect(),
            accepted: self.datagrams(),
            sent: match from {
                From::Wire => Vec::new(),
                From::Pod => {
                    let sent = sent.iter().filter(|frame| !is_marker(frame, number));
                    sent.filter_map(|frame| normal.on_wire(frame)).collect()
                }
            },
            neighbour: match from {
                From::Wire => Vec::new(),
                From::Pod => {
                    let seen = neighbour.iter().filter(|frame| !is_marker(frame, number));
                    seen.filter_map(|frame| normal.received(frame)).collect()
                }
            },
            other: everything(&self.other),
            answers: match from {
                From::Wire => errors(&returned, self.course.wire[1], self.course.vxlan() + 8),
                From::Pod => errors(&answers, self.course.gateways[0], 0),
            },
        }
    }

    /// What the pod's socket has got, but for the marker.
    fn datagrams(&self) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        let next = || self.socket.recv(&mut buffer).ok().map(|len| buffer[..len].to_vec());
        let all = std::iter::from_fn(next);
        all.filter(|datagram| !is_marker(datagram, self.markers.get())).collect()
    }

    /// Every packet that the programs of the node that is watched have counted.
    fn counters(&self, from: From) -> Counted {
        let pins = match from {
            From::Wire => &self.pins[1],
            From::Pod => &self.pins[0],
        };
        let Some(pins) = pins else { return Vec::new() };
        let network = pins.network(NETWORK).expect("the network");
        let counters = pins.counters(network).expect("counters").into_iter();
        let watched = counters.filter_map(|(hook, reason, count)| {
            let hook = self.watched(from, hook, reason)?;
            Some(vec![(hook, reason); count.packets as usize])
        });
        watched.flatten().collect()
    }

    /// The hook that a count is taken for. With XDP it is that which sees packets from the underlay first;
    /// what it has not taken out of the tunnel the next one counts once more.
    fn watched(&self, from: From, hook: Hook, reason: Reason) -> Option<Hook> {
        match (self.course.kind, from, hook) {
            (Kind::L2, From::Pod, hook) => (hook == Hook::PortIngress).then_some(hook),
            (_, From::Wire, Hook::UnderlayXdp) => Some(Hook::UnderlayIngress),
            (_, From::Wire, Hook::UnderlayIngress) if xdp().is_some() => None,
            (_, From::Wire, Hook::UnderlayIngress | Hook::TunnelIngress)
            | (_, From::Pod, Hook::PodEgress) => Some(hook),
            // Now and then the host says something of its own accord.
            (_, From::Pod, Hook::TunnelEgress) => (reason != Reason::OtherMac).then_some(hook),
            _ => None,
        }
    }

    /// A marker has an option, so the programs on its way leave it to the kernel; in a segment it is in a VLAN.
    fn marker_counts(&self, from: From) -> Vec<(Hook, Reason)> {
        let (hooks, reason): (&[Hook], _) = match (self.course.kind, from) {
            (Kind::L3, From::Wire) => (&[Hook::UnderlayIngress, Hook::TunnelIngress], Reason::Options),
            (Kind::L3, From::Pod) => (&[Hook::PodEgress, Hook::TunnelEgress], Reason::Options),
            (Kind::L2, From::Wire) => (&[Hook::TunnelIngress], Reason::NotIp),
            (Kind::L2, From::Pod) => (&[Hook::PortIngress], Reason::NotIp),
        };
        hooks.iter().map(|hook| (*hook, reason)).collect()
    }
}

/// What `capture` saw before marker `number`.
fn until_marker(capture: &Capture, number: u32) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let next = capture.next(PATIENCE, |_| true).expect("a capture");
        let Some(Frame(bytes)) = next else { panic!("marker {number} is lost behind {frames:02x?}") };
        if is_marker(&bytes, number) {
            return frames;
        }
        frames.push(bytes);
    }
}

/// What `capture` has seen so far.
fn everything(capture: &Capture) -> Vec<Vec<u8>> {
    let frames = capture.pending().expect("a capture");
    frames.into_iter().map(|Frame(bytes)| bytes).collect()
}
