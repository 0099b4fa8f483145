//! Labs that are alike but for the overlay, and what becomes of frames in them.

use std::cell::Cell;
use std::net::{Ipv6Addr, UdpSocket};
use std::time::Duration;

use vxlan_agent::datapath::Pins;
use vxlan_ebpf_common::{Hook, Reason};
use vxlan_tests::lab::NETWORK;
use vxlan_tests::lab::traffic::{Capture, Frame, Injector};
use vxlan_tests::lab::{Family, Lab, LabSpec, Overlay, PORT, UNDERLAY, VNI, xdp};

use super::course::{Course, is_marker};
use super::normal::{Normal, errors};
use crate::e2e::{build, warm_up};

/// The other network on node 2.
const OTHER: &str = "other0";
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
    other: Capture,
    socket: UdpSocket,
    pins: [Option<Pins>; 2],
    markers: Cell<u32>,
    _lab: Lab,
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
    /// What appeared in the other network.
    pub(super) other: Vec<Vec<u8>>,
    /// ICMP errors for the sender: version, type, code.
    pub(super) answers: Vec<[u8; 3]>,
}

/// Which counters went up, once for each packet.
pub(super) type Counted = Vec<(Hook, Reason)>;

impl Arena {
    /// Builds the lab of `spec` with the overlay of `way` on both nodes.
    pub(super) fn build(way: Way, spec: &LabSpec) -> Self {
        let overlay = match way {
            Way::Kernel => Overlay::KernelVxlan,
            Way::Direct => Overlay::agent(),
            Way::Verified => Overlay::verified(),
        };
        let mut spec = spec.clone();
        spec.nodes.iter_mut().for_each(|node| node.overlay = overlay.clone());
        let lab = build(&spec);
        warm_up(&lab);
        keep_quiet(&lab);
        add_other_network(&lab, spec.underlay);
        let (sender, receiver) = (lab.pod(1, 1), lab.pod(2, 1));
        let capture = |ns, interface| Capture::start(ns, interface).expect("a capture");
        let socket = receiver.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, LISTENS))).expect("a socket");
        socket.set_nonblocking(true).expect("an option");
        let pins = |n| lab.agent(n).ok().map(|agent| Pins::open(&agent.pins()?)).transpose().expect("pins");
        Self {
            way,
            course: Course::of(&lab, spec.underlay),
            wire: Injector::open(lab.node(1), UNDERLAY).expect("a socket"),
            pod: Injector::open(sender, "eth0").expect("a socket"),
            arriving: capture(receiver, "eth0"),
            // Where they are sent: behind the receiver's XDP the tunnel is gone.
            sent: capture(lab.node(1), UNDERLAY),
            returned: capture(lab.node(2), UNDERLAY),
            answers: capture(sender, "eth0"),
            other: capture(lab.node(2), OTHER),
            socket,
            pins: [pins(1), pins(2)],
            markers: Cell::new(0),
            _lab: lab,
        }
    }

    pub(super) const fn way(&self) -> Way {
        self.way
    }

    /// Sends `frames`, and returns what became of them.
    pub(super) fn play(&self, from: From, frames: &[Vec<u8>]) -> (Outcome, Counted) {
        if self.way == Way::Verified {
            // The flow of most cases is open, or has just been looked at.
            let ordinary = match from {
                From::Wire => self.course.plain(),
                From::Pod => self.course.sent(Family::V4).build(),
            };
            self.observe(from, &[ordinary]);
        }
        let before = self.counters(from);
        let outcome = self.observe(from, frames);
        let mut counted = self.counters(from);
        for seen in before.into_iter().chain(marker_counts(from)) {
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
            let hook = watched(from, hook, reason)?;
            Some(vec![(hook, reason); count.packets as usize])
        });
        watched.flatten().collect()
    }
}

/// The hook that a count is taken for. With XDP it is that which sees packets from the underlay first;
/// what it has not taken out of the tunnel the next one counts once more.
fn watched(from: From, hook: Hook, reason: Reason) -> Option<Hook> {
    match (from, hook) {
        (From::Wire, Hook::UnderlayXdp) => Some(Hook::UnderlayIngress),
        (From::Wire, Hook::UnderlayIngress) if xdp().is_some() => None,
        (From::Wire, Hook::UnderlayIngress | Hook::TunnelIngress) | (From::Pod, Hook::PodEgress) => {
            Some(hook)
        }
        // Now and then the host says something of its own accord.
        (From::Pod, Hook::TunnelEgress) => (reason != Reason::OtherMac).then_some(hook),
        _ => None,
    }
}

/// A marker has an option, so both programs on its way leave it to the kernel.
fn marker_counts(from: From) -> [(Hook, Reason); 2] {
    match from {
        From::Wire => [Hook::UnderlayIngress, Hook::TunnelIngress],
        From::Pod => [Hook::PodEgress, Hook::TunnelEgress],
    }
    .map(|hook| (hook, Reason::Options))
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

/// Neighbours are not asked again while packets are counted, and every error is sent.
fn keep_quiet(lab: &Lab) {
    for n in [1, 2] {
        let patient = |interface| {
            ["ipv4", "ipv6"]
                .map(|family| (format!("{family}/neigh/{interface}/delay_first_probe_time"), "600"))
        };
        let set = |ns: &vxlan_tests::lab::Netns, settings: &[(String, &str)]| {
            let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), *value)).collect();
            ns.sysctl(&settings).expect("settings");
        };
        set(lab.pod(n, 1), &patient("eth0"));
        set(lab.node(n), &[patient("cni0"), patient(UNDERLAY)].concat());
        let unlimited = [("ipv4/icmp_ratelimit", "0"), ("ipv6/icmp/ratelimit", "0")];
        lab.node(n).sysctl(&unlimited).expect("settings");
    }
}

/// A vxlan device of another VNI on the same port of node 2, with an address of its own.
fn add_other_network(lab: &Lab, underlay: Family) {
    let local = vxlan_tests::lab::addr::underlay(underlay, 2);
    let vni = VNI + 1;
    let node = lab.node(2);
    let device = format!("type vxlan id {vni} dev {UNDERLAY} local {local} dstport {PORT} nolearning");
    node.ip(&format!("link add {OTHER} {device}\n")).expect("a second network");
    // It says nothing of its own accord.
    node.sysctl(&[(&format!("ipv6/conf/{OTHER}/disable_ipv6"), "1")]).expect("a setting");
    node.ip(&format!("addr add 10.99.2.1/24 dev {OTHER}\nlink set {OTHER} up\n")).expect("a second network");
}
