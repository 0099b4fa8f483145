//! Hostile and odd packets, with the kernel as referee: in labs that differ in nothing but the
//! overlay, each must come to the same end, or be dropped by us with a counter that says why. On the
//! receiving node there is a second network, whose VNI shares the port. Routed networks and segments get the same
//! packets.

mod arena;
mod arriving;
mod checksum;
mod course;
mod ground;
mod inside;
mod judge;
mod jumbo;
mod matrix;
mod normal;
mod sent;
mod stations;
mod tunnel;

use vxlan_ebpf_common::{Disposition, Hook, Reason};
use vxlan_tests::lab::Family;

use arena::{Arena, Counted, From, Outcome, Way};
use course::Course;
use ground::{Spec, pair};
use judge::judge;

/// Frames that are sent one after the other, and what our programs have to count.
struct Case {
    name: String,
    frames: Vec<Vec<u8>>,
    counted: Counted,
    /// What they have to count in a segment, if that does not follow.
    bridged: Option<Counted>,
    /// Whether the table drops it.
    guarded: bool,
}

impl Case {
    /// One frame.
    fn new(name: impl Into<String>, frame: Vec<u8>, counted: Counted) -> Self {
        Self::several(name, vec![frame], counted)
    }

    fn several(name: impl Into<String>, frames: Vec<Vec<u8>>, mut counted: Counted) -> Self {
        counted.sort();
        Self { name: name.into(), frames, counted, bridged: None, guarded: false }
    }

    /// With something else to count in a segment than [`on_segment`] says.
    fn bridged(self, mut counted: Counted) -> Self {
        counted.sort();
        Self { bridged: Some(counted), ..self }
    }

    /// As it is on `course`.
    fn on(self, course: &Course) -> Self {
        match self.bridged.clone() {
            _ if !course.is_bridged() => self,
            Some(counted) => Self { counted, ..self },
            None => Self { counted: on_segment(&self.counted), ..self },
        }
    }

    /// Dropped in front of the vxlan device.
    fn guarded(self) -> Self {
        Self { guarded: true, ..self }
    }

    /// Whether somebody believes afterwards that a station is where it is not.
    fn disturbs(&self) -> bool {
        self.is_violation() || self.counted.iter().any(|(_, reason)| *reason == Reason::Moved)
    }

    /// Whether we drop it, where the kernel would not.
    fn is_violation(&self) -> bool {
        self.guarded || self.counted.iter().any(|(_, reason)| reason.disposition() == Disposition::Violation)
    }
}

/// All labs of a kind, and the cases that are to be tried in them.
struct Trial {
    arenas: [Arena; 3],
    failures: Vec<String>,
    /// Cases in which packets took the fast path, in each lab.
    fast: [usize; 3],
}

impl Trial {
    fn of(spec: &Spec) -> Self {
        let ways = [Way::Kernel, Way::Direct, Way::Verified];
        // Side by side: to build a lab is mostly to wait.
        let arenas = std::thread::scope(|scope| {
            ways.map(|way| scope.spawn(move || Arena::build(way, spec)))
                .map(|built| built.join().expect("a lab"))
        });
        Self { arenas, failures: Vec::new(), fast: [0; 3] }
    }

    /// Tries the cases that `cases` makes for each of the labs.
    fn play(&mut self, from: From, cases: fn(&Course) -> Vec<Case>) {
        let of = |arena: &Arena| -> Vec<Case> {
            cases(&arena.course).into_iter().map(|case| case.on(&arena.course)).collect()
        };
        let [kernel, direct, verified] = self.arenas.each_ref().map(of);
        for ((kernel, direct), verified) in kernel.iter().zip(&direct).zip(&verified) {
            let (referee, _) = self.arenas[0].play(from, &kernel.frames);
            for (n, case) in [(1, direct), (2, verified)] {
                self.try_case(n, from, case, &referee);
            }
            if direct.disturbs() {
                self.arenas.iter().for_each(Arena::doubt);
            }
        }
    }

    /// Tries a case in lab `n`: again, if the kernel had to be given a frame to confirm where its sender is.
    fn try_case(&mut self, n: usize, from: From, case: &Case, referee: &Outcome) {
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            let (outcome, counted) = self.arenas[n].play(from, &case.frames);
            self.failures.extend(judge(case, referee, &outcome, &counted, self.arenas[n].way()));
            if !is_due(&counted) {
                self.fast[n] += usize::from(counted.iter().any(|(_, reason)| is_fast(*reason)));
                return;
            }
            self.arenas[n].confirm(from);
        }
        self.failures.push(format!("{}: never counted as expected", case.name));
    }

    /// Fails if any case has; in either mode at least `fast` cases must have taken the fast path.
    #[track_caller]
    fn end(&self, fast: usize) {
        let failures = self.failures.join("\n");
        assert!(self.failures.is_empty(), "{} failures:\n{failures}", self.failures.len());
        assert!(self.fast[1..].iter().all(|cases| *cases >= fast), "fast path taken: {:?}", self.fast);
    }
}

fn is_fast(reason: Reason) -> bool {
    reason.disposition() == Disposition::Forwarded
}

/// Whether a frame was left to the kernel because it had not had one of that station for a while.
fn is_due(counted: &Counted) -> bool {
    counted.iter().any(|(_, reason)| *reason == Reason::Unconfirmed)
}

/// What the programs of a segment count where those of a routed network count `routed`: no hop is counted, nobody
/// asks for the packet's addresses, and what the bridge sends is no more than looked at.
fn on_segment(routed: &Counted) -> Counted {
    use Reason::{ForeignSource, NoEndpoint, NoRoute, NotForNode, PodSpoofed, TtlExpired};
    let routing = [ForeignSource, NoEndpoint, NoRoute, NotForNode, PodSpoofed, TtlExpired];
    let on_segment = |&(hook, reason): &(Hook, Reason)| match (hook, routing.contains(&reason)) {
        (Hook::UnderlayIngress, true) => Some((hook, Reason::Decapsulated)),
        (Hook::PodEgress, true) => Some((Hook::PortIngress, Reason::Encapsulated)),
        (Hook::PodEgress, false) => Some((Hook::PortIngress, reason)),
        (Hook::TunnelIngress, true) | (Hook::TunnelEgress, _) => None,
        (_, false) => Some((hook, reason)),
        (_, true) => None,
    };
    let mut counted: Counted = routed.iter().filter_map(on_segment).collect();
    counted.sort();
    counted
}

/// Decapsulated by us.
fn fast() -> Counted {
    vec![(Hook::UnderlayIngress, Reason::Decapsulated)]
}

/// Left to the kernel or dropped, and not seen again.
fn ends(reason: Reason) -> Counted {
    vec![(Hook::UnderlayIngress, reason)]
}

/// Left to the kernel, decapsulated by its device, and left to it for the same reason again.
fn stays(reason: Reason) -> Counted {
    device(reason, reason)
}

/// Left to the kernel's device for one reason, and to the host stack for another.
fn device(outside: Reason, inside: Reason) -> Counted {
    vec![(Hook::UnderlayIngress, outside), (Hook::TunnelIngress, inside)]
}

/// None of ours on the underlay, but this when it comes out of the kernel's device.
fn later(reason: Reason) -> Counted {
    vec![(Hook::TunnelIngress, reason)]
}

/// None of ours.
fn unseen() -> Counted {
    Vec::new()
}

fn everything_ends_as_with_the_kernel(spec: &Spec) {
    let mut trial = Trial::of(spec);
    trial.play(From::Wire, arriving::cases);
    trial.play(From::Wire, inside::cases);
    trial.play(From::Pod, sent::cases);
    // In mode `verified` what has a DSCP of its own meets the stack.
    trial.end(90);
}

fn frames_end_as_with_the_kernel(underlay: Family) {
    let mut trial = Trial::of(&Spec::bridged(underlay));
    trial.play(From::Wire, arriving::cases);
    trial.play(From::Wire, inside::cases);
    trial.play(From::Wire, stations::arriving);
    trial.play(From::Pod, sent::cases);
    trial.play(From::Pod, stations::sent);
    trial.end(150);
}

#[test]
fn odd_frames_of_segments_end_as_with_the_kernel_over_ipv4() {
    frames_end_as_with_the_kernel(Family::V4);
}

#[test]
fn odd_frames_of_segments_end_as_with_the_kernel_over_ipv6() {
    frames_end_as_with_the_kernel(Family::V6);
}

#[test]
fn odd_packets_end_as_with_the_kernel_over_ipv4() {
    everything_ends_as_with_the_kernel(&Spec::routed(Family::V4));
}

#[test]
fn odd_packets_end_as_with_the_kernel_over_ipv6() {
    everything_ends_as_with_the_kernel(&Spec::routed(Family::V6));
}

#[test]
fn odd_packets_end_as_with_the_kernel_with_gro_on_the_underlay() {
    everything_ends_as_with_the_kernel(&Spec::Routed(pair(Family::V4).gro()));
}

#[test]
fn large_packets_end_as_with_the_kernel() {
    let labs = pair(Family::V4).mtu(jumbo::UNDERLAY_MTU);
    let mut trial = Trial::of(&Spec::Routed(labs.clone().pod_mtu(jumbo::SMALL_POD_MTU)));
    trial.play(From::Wire, jumbo::arriving);
    trial.end(1);
    let mut trial = Trial::of(&Spec::Routed(labs.pod_mtu(jumbo::UNDERLAY_MTU)));
    trial.play(From::Pod, jumbo::sent);
    trial.end(1);
}
