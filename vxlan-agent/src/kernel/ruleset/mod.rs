//! What the node's packet filters (nf_tables) do that packets which bypass the host stack would miss.

mod devices;
mod follow;
mod meter;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use nix::libc;

use super::nft::attributes::{find_number, find_string};
use super::nft::{ANY, Attributes, Reader, nfta};

pub use devices::{DeviceChain, DeviceHook};
pub use follow::follow;
pub use meter::Meter;

/// `NFT_TABLE_F_DORMANT`: no chain of the table is hooked up.
const DORMANT: u32 = 1;

/// What the node's packet filters do that the fast path would skip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains at a device's own hooks, which the programs come before or go past.
    pub device_chains: BTreeSet<DeviceChain>,
    /// Rules that have to see every packet.
    pub meters: BTreeSet<Meter>,
}

/// A ruleset, and the generation of the kernel's that it was read in.
#[derive(Clone, Debug)]
struct Reading {
    ruleset: Arc<Ruleset>,
    /// `None`: it changed meanwhile.
    generation: Option<u32>,
}

/// A family (`NFPROTO_…`) and the name of a table, which is unique in it.
type TableKey = (u8, String);

/// Reads the rules of this thread's network namespace; nothing where the kernel has no nf_tables.
///
/// # Errors
/// The kernel does not say.
pub fn read() -> io::Result<Ruleset> {
    read_unless_known(None).map(|reading| Arc::unwrap_or_clone(reading.ruleset))
}

/// Reads the rules unless they are still those of `known`. While they change, what was is taken to be
/// there, too: half of a change may look like less than either.
fn read_unless_known(known: Option<Reading>) -> io::Result<Reading> {
    let nothing = || Reading { ruleset: Arc::default(), generation: None };
    let reader = match Reader::open() {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(nothing()),
        reader => reader?,
    };
    let generation = match reader.generation() {
        // nfnetlink without nf_tables.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(nothing()),
        generation => generation?,
    };
    if let Some(known) = known.clone().filter(|known| known.generation == Some(generation)) {
        return Ok(known);
    }
    let mut ruleset = read_from(&reader)?;
    let whole = reader.generation()? == generation;
    if let Some(known) = known.filter(|_| !whole) {
        ruleset.device_chains.extend(known.ruleset.device_chains.iter().cloned());
        ruleset.meters.extend(known.ruleset.meters.iter().cloned());
    }
    Ok(Reading { ruleset: Arc::new(ruleset), generation: whole.then_some(generation) })
}

fn read_from(reader: &Reader) -> io::Result<Ruleset> {
    let mut tables = BTreeMap::new();
    reader.dump(libc::NFT_MSG_GETTABLE, ANY, Attributes::default(), |family, table| {
        let flags = find_number(table, nfta::TABLE_FLAGS).unwrap_or_default();
        tables.extend(find_string(table, nfta::TABLE_NAME).map(|name| ((family, name), flags)));
    })?;
    let awake = |key: &TableKey| tables.get(key).is_none_or(|flags| flags & DORMANT == 0);
    let mut ruleset = Ruleset::default();
    reader.dump(libc::NFT_MSG_GETCHAIN, ANY, Attributes::default(), |family, chain| {
        if find_string(chain, nfta::CHAIN_TABLE).is_some_and(|table| awake(&(family, table))) {
            ruleset.device_chains.extend(devices::device_chains(family, chain));
        }
    })?;
    Ok(ruleset)
}

/// A family as `nft` calls it.
fn family_name(family: u8) -> &'static str {
    match i32::from(family) {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests;
