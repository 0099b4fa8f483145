//! What the node's packet filters (nf_tables) do that packets which bypass the host stack would miss.

mod devices;
mod follow;
mod meter;
mod reach;
mod rule;
mod tunnel;
mod xtables;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::libc;

use super::nft::attributes::{find_number, find_string};
use super::nft::{ANY, Attributes, Reader, nfta};

pub use devices::{DeviceChain, DeviceHook};
pub use follow::follow;
pub use meter::Meter;
use reach::{Entrances, TableKey};
use rule::Packets;

/// `NFT_TABLE_F_DORMANT`: no chain of the table is hooked up.
const DORMANT: u32 = 1;
/// How often rules are read that are gone as one comes to them.
const ATTEMPTS: usize = 5;

/// What the node's packet filters do that the fast path would skip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains at a device's own hooks, which the programs come before or go past.
    pub device_chains: BTreeSet<DeviceChain>,
    /// Rules that have to see every packet.
    pub meters: BTreeSet<Meter>,
    /// Rules in front of the tunnel's port that may tell one packet of a VTEP from another.
    pub tunnel_meters: BTreeSet<Meter>,
    /// Chains that see what bridges forward, whatever their rules say: family, table and chain, as `nft list
    /// chain` takes them. The tables of `ebtables` are among them where it is made for nf_tables; for the
    /// others there is [`has_legacy_ebtables`].
    pub bridge_chains: BTreeSet<String>,
    /// Chains of others that see what is routed between pods, whatever their rules say: family, table and chain.
    pub chains: BTreeSet<String>,
    /// Such a chain may have come, or a bridge's: it is being looked at.
    pub unsettled: bool,
}

/// A ruleset, and the generation of the kernel's that it was read in.
#[derive(Clone, Debug)]
struct Reading {
    ruleset: Arc<Ruleset>,
    /// `None`: it changed meanwhile.
    generation: Option<u32>,
}

/// Tables that do not sleep.
struct Awake(BTreeMap<TableKey, u32>);

impl Awake {
    fn read(reader: &mut Reader) -> io::Result<Self> {
        let mut tables = BTreeMap::new();
        reader.dump(libc::NFT_MSG_GETTABLE, ANY, Attributes::default(), |family, table| {
            let flags = find_number(table, nfta::TABLE_FLAGS).unwrap_or_default();
            tables.extend(find_string(table, nfta::TABLE_NAME).map(|name| ((family, name), flags)));
        })?;
        Ok(Self(tables))
    }

    fn is(&self, key: &TableKey) -> bool {
        self.0.get(key).is_none_or(|flags| flags & DORMANT == 0)
    }
}

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
    let mut last = None;
    for _ in 0..ATTEMPTS {
        let Some((mut reader, generation)) = open()? else {
            return Ok(Reading { ruleset: Arc::default(), generation: None });
        };
        if let Some(known) = known.as_ref().filter(|known| known.generation == Some(generation)) {
            return Ok(known.clone());
        }
        let read = read_from(&mut reader);
        let whole = open()?.is_some_and(|(_, now)| now == generation);
        match read {
            Ok(mut ruleset) => {
                if let Some(known) = known.as_ref().filter(|_| !whole) {
                    ruleset.device_chains.extend(known.ruleset.device_chains.iter().cloned());
                    ruleset.meters.extend(known.ruleset.meters.iter().cloned());
                    ruleset.tunnel_meters.extend(known.ruleset.tunnel_meters.iter().cloned());
                    ruleset.bridge_chains.extend(known.ruleset.bridge_chains.iter().cloned());
                    ruleset.chains.extend(known.ruleset.chains.iter().cloned());
                }
                ruleset.unsettled = !whole;
                return Ok(Reading { ruleset: Arc::new(ruleset), generation: whole.then_some(generation) });
            }
            Err(error) if whole => return Err(error),
            // What it asked for was gone.
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN)))
}

/// A reader, and the generation of what it is going to read; `None` where the kernel has no nf_tables.
fn open() -> io::Result<Option<(Reader, u32)>> {
    let read = Reader::open().and_then(|mut reader| reader.generation().map(|now| (reader, now)));
    match read.as_ref().map_err(io::Error::raw_os_error) {
        // No nfnetlink, or nothing behind it.
        Err(Some(libc::EPROTONOSUPPORT | libc::EINVAL)) => Ok(None),
        _ => read.map(Some),
    }
}

fn read_from(reader: &mut Reader) -> io::Result<Ruleset> {
    let awake = Awake::read(reader)?;
    let (mut ruleset, mut entrances) = (Ruleset::default(), BTreeMap::<TableKey, Entrances>::new());
    reader.dump(libc::NFT_MSG_GETCHAIN, ANY, Attributes::default(), |family, chain| {
        if find_string(chain, nfta::CHAIN_TABLE).is_some_and(|table| awake.is(&(family, table))) {
            ruleset.device_chains.extend(devices::device_chains(family, chain));
            ruleset.bridge_chains.extend(reach::bridge_chain(family, chain));
            ruleset.chains.extend(reach::routed_chain(family, chain));
        }
        for packets in [Packets::Pods, Packets::Tunnels] {
            if let Some((table, chain)) = reach::entrance(packets, family, chain) {
                entrances.entry(table).or_default().push((packets, chain));
            }
        }
    })?;
    for (packets, meter) in reach::meters(reader, &entrances, &awake)? {
        match packets {
            Packets::Pods => ruleset.meters.insert(meter),
            Packets::Tunnels => ruleset.tunnel_meters.insert(meter),
        };
    }
    Ok(ruleset)
}

/// Whether the kernel has tables of the `ebtables` from before nf_tables: whether there are rules in them, and
/// in which network namespace, it does not say without making some.
pub fn has_legacy_ebtables() -> bool {
    let modules = ["ebtable_broute", "ebtable_filter", "ebtable_nat"];
    modules.into_iter().any(|module| Path::new("/sys/module").join(module).is_dir())
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
