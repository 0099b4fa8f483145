//! What does happen to a packet: echo requests are sent as SRC would send them, and looked for wherever this node can
//! see them.
//!
//! They are sent from the pod's own network namespace ([`namespace`]), so that they take the way that its packets
//! take; [`tap`] sees them leave and their answers arrive on the underlay, [`mtu`] makes them as large as they may be.

mod echo;
mod mtu;
mod namespace;
mod place;
mod tap;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use vxlan_ebpf_common::maps::{LOCAL_VTEP, NetworkId};

pub use mtu::PathMtu;
pub use place::{Place, Seen};

use self::echo::{Answer, Echoes};
use self::namespace::Namespace;
use self::tap::Tap;
use super::locate;
use super::question::{End, Question};
use super::{Trace, Unanswerable};
use crate::datapath::{DatapathState, Pins};
use crate::net::overhead;

/// How many requests are sent at most until one is answered. The first may wait for neighbours to be resolved.
const REQUESTS: u16 = 3;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Length of a request in bytes, from the IP header on.
const LENGTH: usize = 101;

/// A cell of COUNTERS that went up meanwhile, by whosever packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// Which program.
    pub hook: &'static str,
    /// Why.
    pub reason: &'static str,
    /// By how many packets.
    pub packets: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Probe {
    /// From where requests were sent: `this node`, or the namespace of the pod.
    pub sent_from: String,
    /// How many requests were sent.
    pub sent: u16,
    /// Round trips in microseconds.
    pub round_trips: Vec<u64>,
    /// What was seen of requests and answers.
    pub seen: Seen,
    /// Where they ended.
    pub ended: Place,
    /// The same in a sentence.
    pub summary: String,
    /// The largest IP packet that SRC and DST exchange.
    pub path_mtu: Option<PathMtu>,
    /// The largest IP packet that the two nodes exchange on the underlay.
    pub outer_path_mtu: Option<PathMtu>,
    /// Whether the other node's underlay address answers echo requests; none: nobody asked.
    pub vtep_answers: Option<bool>,
    /// What the network's programs counted meanwhile.
    pub counted: Vec<Counted>,
}

impl Probe {
    /// Whether all was answered, at full length, too.
    pub fn is_well(&self) -> bool {
        let whole = |mtu: &Option<PathMtu>| mtu.as_ref().is_none_or(PathMtu::is_whole);
        self.ended == Place::Answered && whole(&self.path_mtu) && whole(&self.outer_path_mtu)
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = format!(
            "\nProbe: {} echo requests were sent from {}.\n{}\n",
            self.sent, self.sent_from, self.summary
        );
        if let Some(fastest) = self.round_trips.iter().min() {
            out += &format!("Round trip: {:.3} ms.\n", *fastest as f64 / 1000.0);
        }
        let paths = [
            ("Path MTU from SRC to DST", &self.path_mtu),
            ("Path MTU of the underlay", &self.outer_path_mtu),
        ];
        for (name, mtu) in paths {
            out += &mtu.as_ref().map_or_else(String::new, |mtu| format!("{name}: {}\n", mtu.text()));
        }
        if self.vtep_answers == Some(false) {
            out += "The other node's underlay address answers no echo requests: the underlay's path MTU is not known.\n";
        }
        let counted =
            self.counted.iter().map(|cell| format!("{} {} {}", cell.packets, cell.hook, cell.reason));
        let counted: Vec<_> = counted.collect();
        if !counted.is_empty() {
            out += &format!("Counted meanwhile, by whosever packets: {}.\n", counted.join(", "));
        }
        out
    }
}

/// The network's counters, by hook and reason.
type Counters = BTreeMap<(&'static str, &'static str), u64>;

fn counters(pins: &Pins, network: NetworkId) -> Result<Counters> {
    let all = pins.counters(network)?.into_iter();
    Ok(all.map(|(hook, reason, counter)| ((hook.label(), reason.label()), counter.packets)).collect())
}

/// The ends of the tunnel that packets to DST take.
#[derive(Clone, Copy)]
struct Tunnel {
    network: NetworkId,
    underlay: u32,
    local: IpAddr,
    vtep: IpAddr,
    /// Largest inner IP packet that is sent.
    mtu: u16,
}

fn tunnel(state: &DatapathState, networks: &[NetworkId], to: IpAddr) -> Option<Tunnel> {
    let (network, id) = locate::owner(state, networks, to)?;
    let vtep = state.vteps.get(&id).filter(|_| id != LOCAL_VTEP)?;
    let local = if vtep.family == 4 { network.local4 } else { network.local6 };
    Some(Tunnel {
        network: network.id,
        underlay: local.ifindex,
        local: local.addr.into(),
        vtep: vtep.addr.into(),
        mtu: vtep.mtu,
    })
}

/// Sends echo requests from SRC to DST. `trace` says what should become of them.
///
/// # Errors
/// [`Unanswerable`], or a socket cannot be opened.
pub fn run(pins: &Pins, networks: &[NetworkId], question: &Question, trace: &Trace) -> Result<Probe> {
    let (End::Ip(from), End::Ip(to)) = (question.source, question.destination) else {
        return Err(Unanswerable("a probe is sent between two IP addresses".to_owned()).into());
    };
    let state = pins.state()?;
    let namespace = Namespace::of(&state, networks, from)?;
    let network = locate::owner(&state, networks, from).or_else(|| locate::owner(&state, networks, to));
    let network = network.map_or(vxlan_ebpf_common::maps::NO_NETWORK, |(network, _)| network.id);
    let tunnel = tunnel(&state, networks, to);
    let before = counters(pins, tunnel.map_or(network, |tunnel| tunnel.network))?;
    let tap = tunnel.map(|tunnel| Tap::open(tunnel.underlay, LENGTH)).transpose()?;
    let echoes = namespace.run(|| Echoes::open(from, to))??;
    let (mut seen, mut round_trips, mut sent, mut last) = (Seen::default(), vec![], 0, Answer::None);
    for _ in 0..REQUESTS {
        let answer = echoes.exchange(LENGTH, PATIENCE)?;
        sent += 1;
        if let Some(tap) = &tap {
            seen.add(tap.seen(echoes.cookie())?);
        }
        match answer {
            Answer::Reply(time) => round_trips.push(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
            // Neighbours are being resolved, or who says that it does not get on says so once in a while.
            Answer::None => {}
            answer => last = answer,
        }
        if matches!(last, Answer::Refused(_) | Answer::TooBig { .. }) {
            break;
        }
    }
    let after = counters(pins, tunnel.map_or(network, |tunnel| tunnel.network))?;
    let counted = went_up(&before, &after);
    let answered = !round_trips.is_empty();
    let outer = match &tunnel {
        Some(tunnel) => outer(tunnel)?,
        None => Outer::default(),
    };
    let (ended, summary) =
        place::judge(answered, &last, seen, &counted, trace, (tunnel.map(|t| t.vtep), outer.answers));
    let most = tunnel.map(|tunnel| usize::from(tunnel.mtu));
    let path_mtu = if answered { mtu::inner(&echoes, most)? } else { None };
    Ok(Probe {
        sent_from: namespace.name().to_owned(),
        sent,
        round_trips,
        seen,
        ended,
        summary,
        path_mtu,
        outer_path_mtu: outer.mtu,
        vtep_answers: outer.answers,
        counted,
    })
}

fn went_up(before: &Counters, after: &Counters) -> Vec<Counted> {
    let more =
        after.iter().map(|(key, packets)| (key, packets - before.get(key).copied().unwrap_or_default()));
    more.filter(|(_, packets)| *packets != 0)
        .map(|((hook, reason), packets)| Counted { hook, reason, packets })
        .collect()
}

/// What the underlay makes of echo requests.
#[derive(Default)]
struct Outer {
    answers: Option<bool>,
    mtu: Option<PathMtu>,
}

/// Asks the other node's underlay address, with packets as large as the tunnel's largest.
fn outer(tunnel: &Tunnel) -> Result<Outer> {
    let echoes = Echoes::open(tunnel.local, tunnel.vtep)?;
    let mut answers = false;
    for _ in 0..REQUESTS {
        answers = matches!(echoes.exchange(LENGTH, PATIENCE)?, Answer::Reply(_));
        if answers {
            break;
        }
    }
    let overhead = overhead(crate::net::family(tunnel.vtep)) as usize;
    let mtu = if answers { mtu::search(&echoes, usize::from(tunnel.mtu) + overhead)? } else { None };
    Ok(Outer { answers: Some(answers), mtu })
}
