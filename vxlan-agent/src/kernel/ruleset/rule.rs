//! What the expressions of a rule do, and what it means to packets that do not come by.

use std::collections::{BTreeMap, BTreeSet};

use nix::libc;

use super::{tunnel, xtables};
use crate::kernel::nft::attributes::{find, find_number, find_string, list};
use crate::kernel::nft::nfta;

/// `NFT_OBJECT_…`.
const OBJECT_COUNTER: u32 = 1;
const OBJECT_QUOTA: u32 = 2;
const OBJECT_LIMIT: u32 = 4;
const OBJECT_CONNLIMIT: u32 = 5;
const OBJECT_SYNPROXY: u32 = 10;

/// What an expression does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It looks at the packet or its connection, or says something about it.
    None,
    /// Whether the rule goes on depends on how many packets there were, or on chance.
    Meters(String),
    /// It has to see every packet, whatever comes of it.
    Needs(String),
    /// It decides about the packet or changes something.
    Acts,
    /// Ends this chain alone.
    Returns,
    /// Has another chain look at the packet.
    Jumps(String),
    /// As [`Effect::Jumps`], and ends this chain.
    Goes(String),
    /// As a map of verdicts says.
    Verdicts(String),
}

/// Packets that rules are looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packets {
    /// What goes from pod to pod, out of its tunnel.
    Pods,
    /// What is in a tunnel, and comes to this node.
    Tunnels,
}

impl Packets {
    /// What an expression does to them, in order.
    fn effects(self, expression: &[u8], sets: &Sets) -> Vec<Effect> {
        match tunnel::effect(expression).filter(|_| self == Self::Tunnels) {
            Some(effect) => vec![effect],
            None => effects(expression, sets),
        }
    }
}

/// What there is to know of a set.
#[derive(Clone, Debug, Default)]
pub(super) struct Set {
    /// What its elements or objects count, if anything.
    pub(super) meters: Option<String>,
}

/// The sets of a table.
pub(super) type Sets = BTreeMap<String, Set>;

/// What the rules of a chain come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Chains that packets go on to.
    pub(super) targets: BTreeSet<String>,
    /// Maps of verdicts, which may lead to more.
    pub(super) maps: BTreeSet<String>,
    /// What has to see every packet.
    pub(super) meters: BTreeSet<String>,
    /// The same if the chain acts that it leads to.
    pub(super) metered: BTreeSet<(String, String)>,
    /// Whether a rule decides about packets or changes something.
    pub(super) acts: bool,
}

impl Chain {
    /// Adds what a rule of these `expressions` does to `packets`.
    pub(super) fn add(&mut self, packets: Packets, expressions: &[u8], sets: &Sets) {
        if packets == Packets::Tunnels && tunnel::is_about_others(expressions) {
            return;
        }
        self.add_effects(list(expressions).flat_map(|(_, expression)| packets.effects(expression, sets)));
    }

    /// Adds a rule whose expressions have these effects, in order.
    pub(super) fn add_effects(&mut self, effects: impl IntoIterator<Item = Effect>) {
        let mut met: Vec<String> = vec![];
        for effect in effects {
            match effect {
                Effect::None => continue,
                Effect::Meters(what) => {
                    met.push(what);
                    continue;
                }
                Effect::Needs(what) => {
                    self.meters.insert(what);
                    self.acts = true;
                }
                Effect::Acts => self.acts = true,
                Effect::Returns => {}
                Effect::Jumps(chain) => {
                    self.metered.extend(met.iter().map(|what| (what.clone(), chain.clone())));
                    self.targets.insert(chain);
                    continue;
                }
                Effect::Goes(chain) => {
                    self.targets.insert(chain);
                    self.acts = true;
                }
                Effect::Verdicts(map) => {
                    self.maps.insert(map);
                    self.acts = true;
                }
            }
            self.meters.append(&mut met.drain(..).collect());
        }
    }
}

/// Whether the lists or the single expression of a set or of one that adds to it count, and what.
pub(super) fn meters_of(single: Option<&[u8]>, several: Option<&[u8]>) -> Option<String> {
    let several = several.into_iter().flat_map(|several| list(several).map(|(_, expression)| expression));
    single.into_iter().chain(several).find_map(|expression| {
        effects(expression, &Sets::new()).into_iter().find_map(|effect| match effect {
            Effect::Meters(what) | Effect::Needs(what) => Some(what),
            _ => None,
        })
    })
}

/// What an object of the type `NFT_OBJECT_…` does.
pub(super) fn object(kind: u32) -> Effect {
    match kind {
        OBJECT_COUNTER => Effect::None,
        OBJECT_QUOTA => Effect::Meters("quota".into()),
        OBJECT_LIMIT => Effect::Meters("limit".into()),
        OBJECT_CONNLIMIT => Effect::Meters("ct count".into()),
        OBJECT_SYNPROXY => Effect::Needs("synproxy".into()),
        _ => Effect::Acts,
    }
}

/// What one expression does, in order.
fn effects(expression: &[u8], sets: &Sets) -> Vec<Effect> {
    let name = find_string(expression, nfta::EXPR_NAME).unwrap_or_default();
    let data = find(expression, nfta::EXPR_DATA).unwrap_or_default();
    let number = |kind| find_number(data, kind);
    let effect = match name.as_str() {
        "bitwise" | "byteorder" | "cmp" | "counter" | "fib" | "hash" | "inner" | "last" | "log" | "osf"
        | "range" | "rt" | "socket" | "tunnel" | "xfrm" => Effect::None,
        "flow_offload" | "masq" | "nat" | "notrack" | "redir" | "reject" | "tproxy" => Effect::Acts,
        "limit" | "quota" | "numgen" => Effect::Meters(name),
        "connlimit" => Effect::Meters("ct count".into()),
        "ct" => connection(number(nfta::CT_KEY), number(nfta::CT_SREG)),
        "meta" => meta(number(nfta::META_KEY), number(nfta::META_SREG)),
        "exthdr" if number(nfta::EXTHDR_SREG).is_some() => Effect::Acts,
        "exthdr" => Effect::None,
        "payload" => payload(data),
        "immediate" => immediate(data),
        "lookup" => return lookup(data, sets),
        "dynset" => return dynset(data),
        "objref" => return vec![object_reference(data, sets)],
        "match" => {
            let name = find_string(data, nfta::MATCH_NAME).unwrap_or_default();
            let info = find(data, nfta::MATCH_INFO).unwrap_or_default();
            xtables::of_match(&name, number(nfta::MATCH_REV).unwrap_or_default(), info)
        }
        "target" => xtables::of_target(&find_string(data, nfta::TARGET_NAME).unwrap_or_default()),
        // Copies to elsewhere, programs that decide, and what is not known here.
        _ => Effect::Needs(name),
    };
    vec![effect]
}

fn connection(key: Option<u32>, written: Option<u32>) -> Effect {
    let what = match key.and_then(|key| i32::try_from(key).ok()) {
        _ if written.is_some() => return Effect::Acts,
        Some(libc::NFT_CT_BYTES) => "bytes",
        Some(libc::NFT_CT_PKTS) => "packets",
        Some(libc::NFT_CT_AVGPKT) => "avgpkt",
        Some(libc::NFT_CT_EXPIRATION) => "expiration",
        _ => return Effect::None,
    };
    Effect::Meters(format!("ct {what}"))
}

fn meta(key: Option<u32>, written: Option<u32>) -> Effect {
    match key {
        _ if written.is_some() => Effect::Acts,
        Some(key) if key == libc::NFT_META_PRANDOM as u32 => Effect::Meters("meta random".into()),
        _ => Effect::None,
    }
}

/// Writing to the packet is seen behind the stack only where addresses, ports or DSCP are.
fn payload(data: &[u8]) -> Effect {
    let number = |kind| find_number(data, kind).unwrap_or(u32::MAX);
    if find(data, nfta::PAYLOAD_SREG).is_none() {
        return Effect::None;
    }
    let (base, offset) = (number(nfta::PAYLOAD_BASE), number(nfta::PAYLOAD_OFFSET));
    let length = number(nfta::PAYLOAD_LEN);
    let seen = if base == libc::NFT_PAYLOAD_NETWORK_HEADER as u32 {
        offset.saturating_add(length) <= 2 || offset >= 8 && length >= 4
    } else {
        base == libc::NFT_PAYLOAD_TRANSPORT_HEADER as u32 && offset.saturating_add(length) <= 4
    };
    if seen { Effect::Acts } else { Effect::Needs("changing packets".into()) }
}

fn immediate(data: &[u8]) -> Effect {
    if find_number(data, nfta::IMMEDIATE_DREG) != Some(libc::NFT_REG_VERDICT as u32) {
        return Effect::None;
    }
    let value = find(data, nfta::IMMEDIATE_DATA).unwrap_or_default();
    verdict(value)
}

/// What the verdict in a value does.
pub(super) fn verdict(value: &[u8]) -> Effect {
    let verdict = find(value, nfta::DATA_VERDICT).unwrap_or_default();
    let code = find_number(verdict, nfta::VERDICT_CODE).map_or(i32::MIN, |code| code as i32);
    let chain = || find_string(verdict, nfta::VERDICT_CHAIN).unwrap_or_default();
    match code {
        libc::NFT_CONTINUE | libc::NFT_BREAK => Effect::None,
        libc::NFT_RETURN => Effect::Returns,
        libc::NFT_JUMP => Effect::Jumps(chain()),
        libc::NFT_GOTO => Effect::Goes(chain()),
        libc::NF_DROP | libc::NF_ACCEPT => Effect::Acts,
        _ => Effect::Needs("queue".into()),
    }
}

fn lookup(data: &[u8], sets: &Sets) -> Vec<Effect> {
    let name = find_string(data, nfta::LOOKUP_SET).unwrap_or_default();
    let meters = sets.get(&name).and_then(|set| set.meters.clone()).map(Effect::Meters);
    let verdicts = find_number(data, nfta::LOOKUP_DREG) == Some(libc::NFT_REG_VERDICT as u32);
    meters.into_iter().chain(verdicts.then_some(Effect::Verdicts(name))).collect()
}

fn dynset(data: &[u8]) -> Vec<Effect> {
    let meters = meters_of(find(data, nfta::DYNSET_EXPR), find(data, nfta::DYNSET_EXPRESSIONS));
    std::iter::once(Effect::Acts).chain(meters.map(Effect::Meters)).collect()
}

fn object_reference(data: &[u8], sets: &Sets) -> Effect {
    if let Some(kind) = find_number(data, nfta::OBJREF_IMM_TYPE) {
        return object(kind);
    }
    let set = find_string(data, nfta::OBJREF_SET_NAME).and_then(|name| sets.get(&name));
    set.and_then(|set| set.meters.clone()).map_or(Effect::Acts, Effect::Meters)
}
