//! Which rules packets between pods can come by, and which of those have to see all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::meter::Meter;
use super::rule::{self, Chain, Effect, Packets, Set, Sets};
use super::{Awake, family_name};
use crate::kernel::nft::attributes::{find, find_number, find_string, list};
use crate::kernel::nft::{Attributes, INET, Reader, nfta};
use crate::ownership::is_nft_table;
use nix::libc;

/// `NFPROTO_…`.
const IPV4: u8 = 2;
const BRIDGE: u8 = 7;
const IPV6: u8 = 10;

/// Hooks that what is routed comes by.
const ROUTED: [i32; 3] = [libc::NF_INET_PRE_ROUTING, libc::NF_INET_FORWARD, libc::NF_INET_POST_ROUTING];

/// A family and a table.
pub(super) type TableKey = (u8, String);
/// Chains of a table at hooks, and which packets enter there.
pub(super) type Entrances = Vec<(Packets, String)>;
/// The chains of a table that packets can come by.
type Chains = BTreeMap<String, Chain>;

/// The chain of a dump's message, if `packets` enter it at a hook. What translates addresses
/// sees a connection's first packet alone, and the stack gets that one. An agent's own rules for tunnels say what
/// its programs say.
pub(super) fn entrance(packets: Packets, family: u8, chain: &[u8]) -> Option<(TableKey, String)> {
    let hooks: &[i32] = match family {
        INET | IPV4 | IPV6 if packets == Packets::Tunnels => {
            &[libc::NF_INET_PRE_ROUTING, libc::NF_INET_LOCAL_IN]
        }
        _ if packets == Packets::Tunnels => return None,
        // What is switched goes through `forward`; what is routed is delivered to the bridge, and sent by it.
        BRIDGE => &[
            libc::NF_INET_PRE_ROUTING,
            libc::NF_INET_LOCAL_IN,
            libc::NF_INET_FORWARD,
            libc::NF_INET_LOCAL_OUT,
            libc::NF_INET_POST_ROUTING,
        ],
        INET | IPV4 | IPV6 => &ROUTED,
        _ => return None,
    };
    let translates = find_string(chain, nfta::CHAIN_TYPE).as_deref() == Some("nat");
    if !is_at(chain, hooks) || translates {
        return None;
    }
    let (table, name) = names(chain)?;
    if packets == Packets::Tunnels && is_nft_table(&table) {
        return None;
    }
    Some(((family, table), name))
}

/// Whether the chain is at one of `hooks`.
fn is_at(chain: &[u8], hooks: &[i32]) -> bool {
    let hook = find(chain, nfta::CHAIN_HOOK).and_then(|hook| find_number(hook, nfta::HOOK_HOOKNUM));
    hook.is_some_and(|hook| hooks.iter().any(|known| u32::try_from(*known) == Ok(hook)))
}

/// The names of the chain's table and of itself.
fn names(chain: &[u8]) -> Option<(String, String)> {
    Some((find_string(chain, nfta::CHAIN_TABLE)?, find_string(chain, nfta::CHAIN_NAME)?))
}

/// The chain of a dump's message, if what is routed between pods enters it at a hook, and it is none of an agent's.
pub(super) fn routed_chain(family: u8, chain: &[u8]) -> Option<String> {
    let comes_by = matches!(family, INET | IPV4 | IPV6) && is_at(chain, &ROUTED);
    let (table, name) = names(chain).filter(|(table, _)| comes_by && !is_nft_table(table))?;
    Some(format!("{} {table} {name}", family_name(family)))
}

/// The chain of a dump's message, if it is one that frames enter on a bridge.
pub(super) fn bridge_chain(family: u8, chain: &[u8]) -> Option<String> {
    let hooked = family == BRIDGE && find(chain, nfta::CHAIN_HOOK).is_some();
    let (table, name) = names(chain).filter(|_| hooked)?;
    Some(format!("{} {table} {name}", family_name(family)))
}

/// Rules that have to see every packet, in `entrances` and what they lead to.
pub(super) fn meters(
    reader: &mut Reader,
    entrances: &BTreeMap<TableKey, Entrances>,
    awake: &Awake,
) -> io::Result<Vec<(Packets, Meter)>> {
    let mut meters = vec![];
    for (key, entrances) in entrances.iter().filter(|(key, _)| awake.is(key)) {
        let table = Table::read(reader, key, entrances)?;
        for packets in [Packets::Pods, Packets::Tunnels] {
            let entered = entrances.iter().filter(|(by, _)| *by == packets).map(|(_, name)| name);
            let found = needed(&reachable(table.chains(packets), entered));
            let (family, table) = (family_name(key.0), &key.1);
            let meter = |(what, chain): (String, String)| Meter::new(what, family, table, &chain);
            meters.extend(found.into_iter().map(|found| (packets, meter(found))));
        }
    }
    Ok(meters)
}

/// The chains of a table that packets of either kind can come by, as they are to each.
#[derive(Default)]
struct Table {
    pods: Chains,
    tunnels: Chains,
}

impl Table {
    fn read(reader: &mut Reader, key: &TableKey, entrances: &Entrances) -> io::Result<Self> {
        let (mut table, mut maps) = (Self::default(), BTreeMap::new());
        let sets = sets(reader, key)?;
        let mut next: Vec<String> = entrances.iter().map(|(_, name)| name.clone()).collect();
        while let Some(name) = next.pop() {
            if table.pods.contains_key(&name) {
                continue;
            }
            let [mut pods, mut tunnels] = chain(reader, key, &name, &sets)?;
            for chain in [&mut pods, &mut tunnels] {
                for map in std::mem::take(&mut chain.maps) {
                    if !maps.contains_key(&map) {
                        maps.insert(map.clone(), map_targets(reader, key, &map)?);
                    }
                    chain.targets.extend(maps.get(&map).into_iter().flatten().cloned());
                }
                next.extend(chain.targets.iter().cloned());
            }
            table.pods.insert(name.clone(), pods);
            table.tunnels.insert(name, tunnels);
        }
        Ok(table)
    }

    const fn chains(&self, packets: Packets) -> &Chains {
        match packets {
            Packets::Pods => &self.pods,
            Packets::Tunnels => &self.tunnels,
        }
    }
}

/// Those of `chains` that `entrances` lead to, and themselves.
fn reachable<'a>(chains: &Chains, entrances: impl Iterator<Item = &'a String>) -> Chains {
    let (mut reached, mut next) = (Chains::new(), entrances.cloned().collect::<Vec<_>>());
    while let Some(name) = next.pop() {
        if let Some(chain) = chains.get(&name).filter(|_| !reached.contains_key(&name)) {
            next.extend(chain.targets.iter().cloned());
            reached.insert(name, chain.clone());
        }
    }
    reached
}

/// What has to see every packet, and the chain that it is in. A chain that says something about packets and
/// does nothing to them may miss some.
pub(super) fn needed(chains: &BTreeMap<String, Chain>) -> Vec<(String, String)> {
    let acting = acting(chains);
    let acts = |name: &str| acting.contains(name) || !chains.contains_key(name);
    let found = chains.iter().filter(|(name, _)| acts(name)).flat_map(|(name, chain)| {
        let led = chain.metered.iter().filter(|(_, target)| acts(target)).map(|(what, _)| what);
        chain.meters.iter().chain(led).map(|what| (what.clone(), name.clone()))
    });
    found.collect()
}

/// Chains that decide about packets or change something, or lead to one that does.
fn acting(chains: &BTreeMap<String, Chain>) -> BTreeSet<&str> {
    let mut callers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, chain) in chains {
        for target in &chain.targets {
            callers.entry(target).or_default().push(name);
        }
    }
    let mut acting = BTreeSet::new();
    let mut next: Vec<&str> = chains.iter().filter(|(_, c)| c.acts).map(|(name, _)| name.as_str()).collect();
    while let Some(name) = next.pop() {
        if acting.insert(name) {
            next.extend(callers.get(name).into_iter().flatten());
        }
    }
    acting
}

/// The rules of a chain, as they are to packets between pods and to tunnels.
fn chain(reader: &mut Reader, key: &TableKey, name: &str, sets: &Sets) -> io::Result<[Chain; 2]> {
    let asked = Attributes::default().string(nfta::RULE_TABLE, &key.1).string(nfta::RULE_CHAIN, name);
    let [mut pods, mut tunnels] = [Chain::default(), Chain::default()];
    reader.dump(libc::NFT_MSG_GETRULE, key.0, asked, |_, rule| {
        let is = |kind, text: &str| {
            find(rule, kind).and_then(|name| name.strip_suffix(b"\0")) == Some(text.as_bytes())
        };
        // Kernels before 5.16 dump all rules if the chain is gone.
        if is(nfta::RULE_TABLE, &key.1) && is(nfta::RULE_CHAIN, name) {
            let expressions = find(rule, nfta::RULE_EXPRESSIONS).unwrap_or_default();
            pods.add(Packets::Pods, expressions, sets);
            tunnels.add(Packets::Tunnels, expressions, sets);
        }
    })?;
    Ok([pods, tunnels])
}

/// The sets of a table.
fn sets(reader: &mut Reader, key: &TableKey) -> io::Result<Sets> {
    let mut sets = Sets::new();
    let asked = Attributes::default().string(nfta::SET_TABLE, &key.1);
    reader.dump(libc::NFT_MSG_GETSET, key.0, asked, |_, set| {
        let expressions = rule::meters_of(find(set, nfta::SET_EXPR), find(set, nfta::SET_EXPRESSIONS));
        let objects = find_number(set, nfta::SET_OBJ_TYPE).map(rule::object);
        let objects = objects.and_then(|effect| match effect {
            Effect::Meters(what) | Effect::Needs(what) => Some(what),
            _ => None,
        });
        let meters = expressions.or(objects);
        sets.extend(find_string(set, nfta::SET_NAME).map(|name| (name, Set { meters })));
    })?;
    Ok(sets)
}

/// Chains that a map of verdicts leads to.
fn map_targets(reader: &mut Reader, key: &TableKey, map: &str) -> io::Result<BTreeSet<String>> {
    let mut targets = BTreeSet::new();
    let asked =
        Attributes::default().string(nfta::SET_ELEM_LIST_TABLE, &key.1).string(nfta::SET_ELEM_LIST_SET, map);
    let read = reader.dump(libc::NFT_MSG_GETSETELEM, key.0, asked, |_, elements| {
        let elements = find(elements, nfta::SET_ELEM_LIST_ELEMENTS).unwrap_or_default();
        for (_, element) in list(elements) {
            let verdict = find(element, nfta::SET_ELEM_DATA).map(rule::verdict);
            if let Some(Effect::Jumps(chain) | Effect::Goes(chain)) = verdict {
                targets.insert(chain);
            }
        }
    });
    match read {
        // Removed meanwhile, or never there but in a message that is wrong.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(targets),
        read => read.map(|()| targets),
    }
}
