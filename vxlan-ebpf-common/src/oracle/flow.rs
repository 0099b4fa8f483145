//! Which flows may bypass the host stack, judged by a ledger of what the stack has passed.
//!
//! The input is a script, four bytes a step: what happens, to which of the connections, with which
//! TCP flags, and what the stack makes of the packet if it gets it. The stack passes packets,
//! drops them, or translates them so that they look like those of another connection. Meanwhile
//! time passes, all flows are forgotten, the table is full or evicts.
//!
//! The promises, in mode `verified`:
//! - a flow bypasses the stack only after the stack has passed its packets unchanged: of TCP in both
//!   directions and, in this one, within the last ten seconds; of others in this one, within the last;
//! - a packet that begins a TCP connection never does, and ends what was known of the last one; it
//!   does not count as passed, because more has to pass until conntrack knows the connection;
//! - from the first FIN or RST of a known flow that the stack was given on, nothing of that connection
//!   does;
//! - after all flows have been forgotten, none does;
//! - where no packet filter is at work, all connections between two addresses are one flow that neither begins
//!   nor ends: it bypasses the stack only if that has passed a packet of it in this direction, within the last
//!   ten seconds if the packet is TCP's, else within the last;
//! - whatever does not bypass is left to the stack, untouched, also when the table is full.

use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::connection::{ACK, Connection, SYN, Side};
use super::{check, std};
use crate::counters::{Disposition, Hook, Reason};
use crate::maps::{BY_ADDRESS, FlowKey, Mode, Network, Vtep, moment};
use crate::model::{Frame, Maps};
use crate::testbed;

const SECOND: u64 = 1_000_000_000;
/// Of [`Step::fate`]: the stack has just let in what VTEPs send.
const HEARD: u8 = 4;
/// Steps that count; a longer script would say nothing new.
const STEPS: usize = 64;

/// One step of a script.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Byte 0: one of the constants below, modulo their number.
    pub what: u8,
    /// Byte 1: the number of a connection, or the unit of time.
    pub which: u8,
    /// Byte 2: TCP flags, or the time.
    pub flags: u8,
    /// Byte 3: what the stack does: pass, drop, translate, pass, modulo 4; with 4 added, it has just let in what
    /// VTEPs send.
    pub fate: u8,
}

impl Step {
    /// The connection's pod sends.
    pub const SEND: u8 = 0;
    /// Its peer sends.
    pub const RECEIVE: u8 = 1;
    /// Its peer sends what only the kernel's device can decapsulate.
    pub const RECEIVE_AGGREGATE: u8 = 2;
    /// Time passes: [`flags`](Self::flags) tenths of a second, seconds, minutes or hours.
    pub const WAIT: u8 = 3;
    /// All flows are forgotten.
    pub const FLUSH: u8 = 4;
    /// The table takes no new flows, or does again.
    pub const FULL: u8 = 5;
    /// The table forgets one flow.
    pub const EVICT: u8 = 6;
    const COUNT: u8 = 7;

    /// The bytes that stand for this step.
    pub const fn write(self) -> [u8; 4] {
        [self.what, self.which, self.flags, self.fate]
    }
}

/// By what the host stack judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filters {
    /// By connections, among other things.
    Some,
    /// By addresses alone.
    None,
}

/// Plays a script; without packet filters if the input's first bit is set.
///
/// Returns what became of every packet at every hook; panics if a promise is broken.
pub fn flow(data: &[u8]) -> Vec<Reason> {
    let (steps, _) = data.as_chunks::<4>();
    let steps = steps.iter().map(|&[what, which, flags, fate]| Step { what, which, flags, fate });
    let filters =
        if data.first().is_some_and(|first| first & 0x80 != 0) { Filters::None } else { Filters::Some };
    play_flows(filters, steps.take(STEPS), |hook, frame, maps| check(hook, frame, maps))
}

/// As [`flow`], but it is `at` that sends a frame through a hook.
pub fn play_flows(
    filters: Filters,
    steps: impl IntoIterator<Item = Step>,
    at: impl FnMut(Hook, &Frame, &mut Maps) -> Reason,
) -> Vec<Reason> {
    let maps = testbed::maps();
    let flags = if filters == Filters::None { BY_ADDRESS } else { 0 };
    let network = Network { mode: Mode::Verified as u8, flags, ..maps.network() };
    let maps =
        Maps { networks: [(testbed::NETWORK, network)].into(), now: 1000 * SECOND, watched: true, ..maps };
    let mut world = World { at, maps, filters, ledger: Ledger::default(), reasons: Vec::new() };
    steps.into_iter().for_each(|step| world.play(step));
    world.reasons
}

struct World<F> {
    at: F,
    maps: Maps,
    filters: Filters,
    ledger: Ledger,
    reasons: Vec<Reason>,
}

impl<F: FnMut(Hook, &Frame, &mut Maps) -> Reason> World<F> {
    fn play(&mut self, step: Step) {
        match step.what % Step::COUNT {
            Step::SEND => self.sent(step, Side::Pod),
            Step::RECEIVE if Connection::of(step.which).is_local() => self.sent(step, Side::Peer),
            Step::RECEIVE => self.received(step, true),
            Step::RECEIVE_AGGREGATE => self.received(step, false),
            Step::WAIT => {
                let unit = [SECOND / 10, SECOND, 60 * SECOND, 3600 * SECOND][usize::from(step.which % 4)];
                self.maps.now += u64::from(step.flags) * unit;
            }
            Step::FLUSH => {
                self.maps.generation += 1;
                self.ledger = Ledger::default();
            }
            Step::FULL => self.maps.full = !self.maps.full,
            _ => self.evict(step.which),
        }
    }

    /// The flow that a connection is of, or is part of.
    fn key(&self, connection: Connection, side: Side) -> FlowKey {
        let key = connection.key(side);
        match self.filters {
            Filters::Some => key,
            Filters::None => FlowKey::pair(testbed::NETWORK, (key.local, key.remote), 0),
        }
    }

    fn evict(&mut self, which: u8) {
        let mut flows = self.maps.flows.borrow_mut();
        if let Some(key) = flows.keys().nth(usize::from(which)).copied() {
            flows.remove(&key);
            self.ledger.forget(&key);
        }
    }

    /// A pod of this node sends.
    fn sent(&mut self, step: Step, side: Side) {
        let connection = Connection::of(step.which);
        let frame = connection.sent(side, step.flags);
        let reason = self.at(Hook::PodEgress, &frame);
        let mut keys = std::vec![(self.key(connection, side), Way::Egress)];
        if bypasses(reason) {
            return self.ledger.bypassed(keys[0], (connection.is_tcp(), step.flags), self.maps.now);
        }
        if connection.is_local() {
            keys.push((self.key(connection, side.other()), Way::Ingress));
        }
        let hook = if connection.is_local() { Hook::PodIngress } else { Hook::TunnelEgress };
        self.stack(step, &keys, hook, |connection| connection.behind_stack(side, step.flags));
    }

    /// The peer on another node sends.
    fn received(&mut self, step: Step, single: bool) {
        let connection = Connection::of(step.which);
        if connection.is_local() {
            return;
        }
        let key = (self.key(connection, Side::Pod), Way::Ingress);
        let (tunnelled, bare) = connection.received(step.flags);
        if step.fate & HEARD != 0 {
            let (heard, generation) = (moment(self.maps.now), self.maps.generation);
            self.maps.vteps.values_mut().for_each(|vtep| *vtep = Vtep { heard, generation, ..*vtep });
        }
        if single && bypasses(self.at(Hook::UnderlayIngress, &tunnelled))
            || bypasses(self.at(Hook::TunnelIngress, &bare))
        {
            return self.ledger.bypassed(key, (connection.is_tcp(), step.flags), self.maps.now);
        }
        self.stack(step, &[key], Hook::PodIngress, |connection| connection.received(step.flags).1);
    }

    /// The stack gets a packet of the flows `keys`, and may hand on to `hook` what `packet` makes of
    /// a connection.
    fn stack(
        &mut self,
        step: Step,
        keys: &[(FlowKey, Way)],
        hook: Hook,
        packet: impl Fn(&Connection) -> Frame,
    ) {
        for key in keys {
            // A full table takes no note of what it does not know.
            let known = self.maps.flows.borrow().contains_key(&key.0);
            self.ledger.left(*key, step.flags, known);
        }
        let connection = Connection::of(step.which);
        let before = packet(&connection);
        match step.fate % 4 {
            1 => {}
            // Nobody is there who could.
            2 if self.filters == Filters::Some => {
                // Translation does not change the flow hash.
                let translated = Frame { flow_hash: before.flow_hash, ..packet(&connection.lookalike()) };
                self.at(hook, &translated);
            }
            _ => {
                self.at(hook, &before);
                let counts = |key: &&(FlowKey, Way)| key.0.protocol != TCP || step.flags & (SYN | ACK) != SYN;
                keys.iter().filter(counts).for_each(|key| self.ledger.passed(*key, self.maps.now));
            }
        }
    }

    /// What becomes of a packet at a hook: it is fit to bypass, so the stack gets it for one reason.
    fn at(&mut self, hook: Hook, frame: &Frame) -> Reason {
        let reason = (self.at)(hook, frame, &mut self.maps);
        let fine = match hook {
            Hook::TunnelEgress => reason == Reason::Encapsulated,
            Hook::PodIngress => reason == Reason::Passed,
            Hook::UnderlayIngress if reason == Reason::HandedOver => true,
            _ => bypasses(reason) || reason == Reason::Unverified,
        };
        assert!(fine, "{}: {reason:?}", hook.label());
        self.reasons.push(reason);
        reason
    }
}

fn bypasses(reason: Reason) -> bool {
    reason.disposition() == Disposition::Forwarded
}

/// Direction of a packet as its pod sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Egress,
    Ingress,
}

/// What the stack has passed unchanged.
#[derive(Default)]
struct Ledger {
    /// When it last did, and the entry's number.
    passed: BTreeMap<(FlowKey, Way), (u64, usize)>,
    /// How many entries there were when a flow last bypassed it.
    used: BTreeMap<FlowKey, usize>,
    /// Whether the stack has been given a FIN or RST of it.
    ended: BTreeSet<FlowKey>,
    entries: usize,
}

impl Ledger {
    fn left(&mut self, (key, way): (FlowKey, Way), flags: u8, known: bool) {
        if key.protocol == TCP && flags & (SYN | ACK) == SYN {
            let ended = self.ended.remove(&key);
            let used = self.used.remove(&key).or(ended.then_some(self.entries));
            // What has been passed since it last bypassed may belong to the new connection already.
            self.passed
                .retain(|(known, _), (_, number)| *known != key || used.is_none_or(|used| *number > used));
        }
        if key.protocol == TCP && flags & (FIN | RST) != 0 && known {
            self.ended.insert(key);
        }
        // Until it is passed itself.
        if key.protocol != TCP {
            self.passed.remove(&(key, way));
        }
    }

    fn passed(&mut self, at: (FlowKey, Way), now: u64) {
        self.entries += 1;
        self.passed.insert(at, (now, self.entries));
    }

    fn bypassed(&mut self, (key, way): (FlowKey, Way), (is_tcp, flags): (bool, u8), now: u64) {
        let when = |way| self.passed.get(&(key, way)).map(|(when, _)| *when);
        let this = when(way).unwrap_or_else(|| panic!("{way:?} of {key:?} was never passed"));
        if key.protocol == TCP {
            assert!(when(Way::Egress).is_some() && when(Way::Ingress).is_some(), "one direction of {key:?}");
            assert_eq!(flags & SYN, 0, "a connection began unseen");
            assert!(flags & (FIN | RST) == 0 && !self.ended.contains(&key), "a connection ended unseen");
        }
        let longest = if is_tcp { 10 * SECOND } else { SECOND };
        assert!(now - this < longest, "{way:?} of {key:?} was not looked at for {} ns", now - this);
        self.used.insert(key, self.entries);
    }

    fn forget(&mut self, key: &FlowKey) {
        self.passed.retain(|(known, _), _| known != key);
        self.used.remove(key);
        self.ended.remove(key);
    }
}

/// TCP flags.
const FIN: u8 = 0x01;
/// TCP flags.
const RST: u8 = 0x04;
/// IP protocol number of TCP.
const TCP: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step() -> impl Strategy<Value = Step> {
        let flags = prop_oneof![Just(SYN), Just(SYN | ACK), Just(ACK), Just(ACK | 1), Just(4), any::<u8>()];
        // A connection and its look-alike.
        let which = prop_oneof![Just(0u8), Just(18)];
        (0..Step::COUNT + 9, which, flags, any::<u8>()).prop_map(|(what, which, flags, fate)| Step {
            what: if what < Step::COUNT { what } else { what % 2 },
            which,
            flags,
            fate,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 500 }))]

        #[test]
        fn every_script_keeps_the_promises(steps in proptest::collection::vec(step(), 0..60), base in 0u8..18) {
            let steps = steps.into_iter().map(|step| Step { which: step.which + base, ..step });
            let script: Vec<u8> = steps.flat_map(Step::write).collect();
            flow(&script);
            let no_wait = Step { what: 0x81, ..Step::default() };
            assert_eq!(no_wait.what % Step::COUNT, Step::WAIT);
            let without: Vec<u8> = no_wait.write().into_iter().chain(script).collect();
            flow(&without);
        }
    }
}
