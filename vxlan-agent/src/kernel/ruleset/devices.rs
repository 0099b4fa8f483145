//! Chains that are hooked to devices: of family `netdev`, and of family `inet` at its hook `ingress`.

use std::fmt;

use super::family_name;
use crate::kernel::nft::attributes::{find, find_number, find_string, list, string};
use crate::kernel::nft::{INET, nfta};

/// `NFPROTO_NETDEV`.
const NETDEV: u8 = 5;
/// `NF_NETDEV_INGRESS` and `NF_NETDEV_EGRESS` (Linux 5.16).
const INGRESS: u32 = 0;
const EGRESS: u32 = 1;
/// `NF_INET_INGRESS` (Linux 5.10).
const INET_INGRESS: u32 = 5;

/// Where on a device a chain sees packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceHook {
    /// What the device receives, behind TC programs.
    Ingress,
    /// What is sent out of it, before TC programs.
    Egress,
}

/// A chain at a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceChain {
    /// Name of the device; one that ends with `*` stands for all whose names begin so (Linux 6.16).
    pub device: String,
    /// Where it sees packets.
    pub hook: DeviceHook,
    /// Family, table and chain, as `nft list chain` takes them.
    pub chain: String,
}

impl DeviceChain {
    /// Whether it sees packets of the device `name`.
    pub fn is_on(&self, name: &str) -> bool {
        match self.device.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == self.device,
        }
    }
}

impl fmt::Display for DeviceChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hook = match self.hook {
            DeviceHook::Ingress => "ingress",
            DeviceHook::Egress => "egress",
        };
        write!(f, "chain {} ({hook} of {})", self.chain, self.device)
    }
}

/// Devices that the chain of a dump's message is hooked to.
pub(super) fn device_chains(family: u8, chain: &[u8]) -> Vec<DeviceChain> {
    let Some(attributes) = find(chain, nfta::CHAIN_HOOK) else { return vec![] };
    let hook = match (family, find_number(attributes, nfta::HOOK_HOOKNUM)) {
        (NETDEV, Some(INGRESS)) | (INET, Some(INET_INGRESS)) => DeviceHook::Ingress,
        (NETDEV, Some(EGRESS)) => DeviceHook::Egress,
        _ => return vec![],
    };
    let [table, name] =
        [nfta::CHAIN_TABLE, nfta::CHAIN_NAME].map(|kind| find_string(chain, kind).unwrap_or_default());
    let chain = format!("{} {table} {name}", family_name(family));
    let several = find(attributes, nfta::HOOK_DEVS).unwrap_or_default();
    let mut devices: Vec<String> = list(several).filter_map(|(kind, value)| device(kind, value)).collect();
    if devices.is_empty() {
        devices.extend(find_string(attributes, nfta::HOOK_DEV));
    }
    devices.into_iter().map(|device| DeviceChain { device, hook, chain: chain.clone() }).collect()
}

/// A name, or a prefix with a `*` behind it. Linux 6.16 wrote a prefix as a name without a zero byte.
fn device(kind: u16, value: &[u8]) -> Option<String> {
    match kind {
        nfta::DEVICE_NAME if value.ends_with(b"\0") => Some(string(value)),
        nfta::DEVICE_NAME | nfta::DEVICE_PREFIX => Some(format!("{}*", string(value).trim_end_matches('*'))),
        _ => None,
    }
}
