//! Hostile and odd packets, with the kernel as referee: in labs that differ in nothing but the
//! overlay, each must come to the same end, or be dropped by us with a counter that says why. On the
//! receiving node there is a second network, whose VNI shares the port.

mod arena;
mod arriving;
mod course;
mod inside;
mod jumbo;
mod matrix;
mod normal;
mod sent;
mod tunnel;

use vxlan_ebpf_common::{Disposition, Hook, Reason};
use vxlan_tests::lab::{Family, LabSpec, Overlay, xdp};

use super::{decapsulates_other_family, underlay_hook};
use arena::{Arena, Counted, From, Outcome, Way};
use course::Course;

/// Frames that are sent one after the other, and what our programs have to count.
struct Case {
    name: String,
    frames: Vec<Vec<u8>>,
    counted: Counted,
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
        Self { name: name.into(), frames, counted, guarded: false }
    }

    /// Dropped in front of the vxlan device.
    fn guarded(self) -> Self {
        Self { guarded: true, ..self }
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
    fn of(spec: &LabSpec) -> Self {
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
        let [kernel, direct, verified] = self.arenas.each_ref().map(|arena| cases(&arena.course));
        for ((kernel, direct), verified) in kernel.iter().zip(&direct).zip(&verified) {
            let (referee, _) = self.arenas[0].play(from, &kernel.frames);
            for (n, case) in [(1, direct), (2, verified)] {
                let (outcome, counted) = self.arenas[n].play(from, &case.frames);
                self.fast[n] += usize::from(counted.iter().any(|(_, reason)| is_fast(*reason)));
                self.failures.extend(judge(case, &referee, &outcome, &counted, self.arenas[n].way()));
            }
        }
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

/// What is wrong with an outcome.
fn judge(case: &Case, referee: &Outcome, outcome: &Outcome, counted: &Counted, way: Way) -> Option<String> {
    let nothing = Outcome::default();
    let expected = if case.is_violation() { &nothing } else { referee };
    let mut wrong = String::new();
    if outcome != expected && !(may_end_at_a_device(case, counted) && ends_before_the_pod(outcome, expected))
    {
        wrong += &format!("\n    kernel: {}\n    ours:   {}", show(expected), show(outcome));
    }
    let unverified = way == Way::Verified && may_be_unverified(case, counted);
    let otherwise = xdp().is_some() && is_xdps_way(case, counted) || is_old_kernels_way(case, counted);
    if !(*counted == case.counted || unverified || otherwise) {
        wrong += &format!("\n    counted {counted:?}, not {:?}", case.counted);
    }
    // What is for one network may not appear in the other, whatever the kernel thinks of it.
    let other = case.counted.iter().any(|(_, reason)| *reason == Reason::OtherVni);
    if !(if other { &outcome.arrived } else { &outcome.other }).is_empty() {
        wrong += &format!("\n    in the wrong network: {}", show(outcome));
    }
    (!wrong.is_empty()).then(|| format!("{way:?}: {}{wrong}", case.name))
}

/// Whether the flow was being looked at: then packets that nothing else was wrong with go through the
/// host stack.
fn may_be_unverified(case: &Case, counted: &Counted) -> bool {
    let late = |&(hook, reason): &(Hook, Reason)| {
        let after = [Reason::NeedsChecksum, Reason::TooBig, Reason::TtlExpired];
        is_fast(reason) || hook != Hook::UnderlayIngress && after.contains(&reason)
    };
    counted.iter().any(|(_, reason)| *reason == Reason::Unverified) && case.counted.iter().any(late)
}

/// Whether XDP counts otherwise than TC for a reason: it cannot know that a frame is for another host,
/// which the stack drops after it; nothing has been merged yet; and GRO, behind it, may judge a checksum
/// that it had to leave.
fn is_xdps_way(case: &Case, counted: &Counted) -> bool {
    let first = |counted: &Counted| -> Vec<Reason> {
        let underlay = counted.iter().filter(|(hook, _)| *hook == Hook::UnderlayIngress);
        underlay.map(|(_, reason)| *reason).collect()
    };
    let (here, with_tc) = (first(counted), first(&case.counted));
    let all = |reasons: &[Reason], reason| reasons.iter().all(|r| *r == reason);
    here == with_tc && all(&here, Reason::NeedsChecksum)
        || all(&here, Reason::Decapsulated) && all(&with_tc, Reason::Aggregate)
}

/// Whether a packet that the pod's stack would not have accepted ended before it, all else being as
/// expected.
fn ends_before_the_pod(outcome: &Outcome, expected: &Outcome) -> bool {
    *outcome == Outcome { arrived: Vec::new(), ..expected.clone() }
}

/// Whether a kernel before Linux 6.3 left it to the device of the receiving node to take the packet out
/// of its tunnel. Over IPv6 a wrong inner checksum makes the outer one wrong that we work out from it,
/// which the device looks at and our program cannot.
fn may_end_at_a_device(case: &Case, counted: &Counted) -> bool {
    let sent = counted.iter().any(|(_, reason)| *reason == Reason::Encapsulated);
    is_old_kernels_way(case, counted) || sent && !decapsulates_other_family(underlay_hook())
}

/// Whether a kernel before Linux 6.3 let the program not take one IP version out of the other, so that
/// its device did, and all else was as expected.
fn is_old_kernels_way(case: &Case, counted: &Counted) -> bool {
    let left = (Hook::UnderlayIngress, Reason::NoRoom);
    let elsewhere = |counted: &Counted| -> Counted {
        let ways = [left, (Hook::UnderlayIngress, Reason::Decapsulated)];
        let others = counted.iter().filter(|way| !ways.contains(way) && way.0 != Hook::TunnelIngress);
        others.copied().collect()
    };
    !decapsulates_other_family(underlay_hook())
        && counted.contains(&left)
        && elsewhere(counted) == elsewhere(&case.counted)
}

fn show(outcome: &Outcome) -> String {
    let Outcome { arrived, accepted, sent, other, answers } = outcome;
    let hex = |frames: &[Vec<u8>]| {
        let hex =
            |frame: &Vec<u8>| frame.iter().take(120).map(|byte| format!("{byte:02x}")).collect::<String>();
        frames.iter().map(hex).collect::<Vec<_>>().join(" ")
    };
    format!(
        "arrived [{}], accepted {}, sent [{}], other network [{}], answers {answers:?}",
        hex(arrived),
        accepted.len(),
        hex(sent),
        hex(other)
    )
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

fn labs(underlay: Family) -> LabSpec {
    LabSpec::pair(Overlay::KernelVxlan, Overlay::KernelVxlan).underlay(underlay)
}

fn everything_ends_as_with_the_kernel(spec: &LabSpec) {
    let mut trial = Trial::of(spec);
    trial.play(From::Wire, arriving::cases);
    trial.play(From::Wire, inside::cases);
    trial.play(From::Pod, sent::cases);
    // In mode `verified` what has a DSCP of its own meets the stack.
    trial.end(90);
}

#[test]
fn odd_packets_end_as_with_the_kernel_over_ipv4() {
    everything_ends_as_with_the_kernel(&labs(Family::V4));
}

#[test]
fn odd_packets_end_as_with_the_kernel_over_ipv6() {
    everything_ends_as_with_the_kernel(&labs(Family::V6));
}

#[test]
fn odd_packets_end_as_with_the_kernel_with_gro_on_the_underlay() {
    everything_ends_as_with_the_kernel(&labs(Family::V4).gro());
}

#[test]
fn large_packets_end_as_with_the_kernel() {
    let labs = labs(Family::V4).mtu(jumbo::UNDERLAY_MTU);
    let mut trial = Trial::of(&labs.clone().pod_mtu(jumbo::SMALL_POD_MTU));
    trial.play(From::Wire, jumbo::arriving);
    trial.end(1);
    let mut trial = Trial::of(&labs.pod_mtu(jumbo::UNDERLAY_MTU));
    trial.play(From::Pod, jumbo::sent);
    trial.end(1);
}
