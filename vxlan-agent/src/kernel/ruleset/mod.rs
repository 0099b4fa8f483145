//! What the node's packet filters (nf_tables) do that packets which bypass the host stack would miss.

mod devices;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use nix::libc;

use super::nft::attributes::{find_number, find_string};
use super::nft::{ANY, Attributes, Reader, nfta};

pub use devices::{DeviceChain, DeviceHook};

/// `NFT_TABLE_F_DORMANT`: no chain of the table is hooked up.
const DORMANT: u32 = 1;

/// What the node's packet filters do that the fast path would skip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// Chains at a device's own hooks, which the programs come before or go past.
    pub device_chains: BTreeSet<DeviceChain>,
}

/// A family (`NFPROTO_…`) and the name of a table, which is unique in it.
type TableKey = (u8, String);

/// Reads the rules of this thread's network namespace; nothing where the kernel has no nf_tables.
///
/// # Errors
/// The kernel does not say.
pub fn read() -> io::Result<Ruleset> {
    let reader = match Reader::open() {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(Ruleset::default()),
        reader => reader?,
    };
    let mut tables = BTreeMap::new();
    let read = reader.dump(libc::NFT_MSG_GETTABLE, ANY, Attributes::default(), |family, table| {
        let flags = find_number(table, nfta::TABLE_FLAGS).unwrap_or_default();
        tables.extend(find_string(table, nfta::TABLE_NAME).map(|name| ((family, name), flags)));
    });
    match read {
        // nfnetlink without nf_tables.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Ruleset::default()),
        read => read?,
    }
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
