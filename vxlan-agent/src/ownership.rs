//! What is ours, and how it is recognised. Anything else is never changed and never removed.
//!
//! - Devices carry an alias (`ip link show`: `alias vxlan-agent …`) with the network's name.
//! - On our vxlan device, every permanent neighbour, every forwarding entry and every single-address
//!   assignment is ours; a route is ours when it also carries [`ROUTE_PROTOCOL`]. So is a route with that number
//!   out of another interface, to a subnet whose first address is such a neighbour. Where the device is a
//!   bridge's port, forwarding entries that go by themselves are not.
//! - On a bridge with our alias, every address is ours that neither goes by itself nor is link-local. Of a
//!   bridge without it nothing is ours but the port that our device is. On either, a neighbour is ours that
//!   carries [`ROUTE_PROTOCOL`].
//! - Of a device that somebody else manages and that is accelerated, nothing is ours, and nothing around it.
//! - Programs, links and maps of all networks lie in one pin directory per layout version.
//! - So have nf_tables tables names of ours: one that the pin directory says, and one for each network that
//!   masquerades.
//! - Status and lock lie in one run directory per pin directory.

use std::path::{Path, PathBuf};

use vxlan_ebpf_common::maps::LAYOUT_VERSION;

use crate::net::{IfIndex, Mac};

/// Number in `rtm_protocol` of the routes that we add, and of neighbours where others have theirs; below 128 none of iproute2's `rt_protos`
/// has it, and routing daemons leave alone what carries a number that is not theirs.
pub const ROUTE_PROTOCOL: u8 = 86;

/// Where BPF objects are pinned unless the configuration says otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/vxlan-agent";

/// UDP port of the head-room devices. They are never up, so nothing is sent to or from it; it only
/// keeps them from colliding with a real device of the same VNI.
pub const HEADROOM_PORT: u16 = 1;

/// Alias of the vxlan device of `network`.
pub fn device_alias(network: &str) -> String {
    format!("vxlan-agent network {network}")
}

/// Alias of the vxlan device of `network` over IPv6, where it has one of its own. No network's name
/// has a blank.
pub fn device6_alias(network: &str) -> String {
    format!("vxlan-agent network {network} over IPv6")
}

/// Aliases of all vxlan devices that `network` may have.
pub fn device_aliases(network: &str) -> [String; 2] {
    [device_alias(network), device6_alias(network)]
}

/// Alias of the devices that give a bridge's ports head-room.
pub fn headroom_alias(network: &str) -> String {
    format!("vxlan-agent head-room {network}")
}

/// Alias of the bridge of `network`, where the network made it.
pub fn bridge_alias(network: &str) -> String {
    format!("vxlan-agent bridge {network}")
}

/// Name of the nf_tables table of `network`.
pub fn nft_table(network: &str) -> String {
    format!("{NFT_PREFIX}{network}")
}

const NFT_PREFIX: &str = "vxlan-agent-";

/// Name of the nf_tables table of all networks with these pins. It is like a network's, so that an agent of before
/// removes it, being that of a network without a device; but no network's name has a dot.
pub fn tunnel_table(pin_dir: &Path) -> String {
    let below = pin_dir.strip_prefix("/sys/fs/bpf").unwrap_or(pin_dir);
    format!("{NFT_PREFIX}node.{}", below.to_string_lossy().trim_end_matches('/'))
}

/// Whether an nf_tables table is called as an agent's are.
pub fn is_nft_table(table: &str) -> bool {
    table.strip_prefix(NFT_PREFIX).is_some_and(|rest| !rest.is_empty())
}

/// The network that an nf_tables table is named after, if its name is one that we give.
pub fn network_of_nft_table(table: &str) -> Option<&str> {
    let is_name = |name: &&str| !name.is_empty() && !name.contains('.');
    table.strip_prefix(NFT_PREFIX).filter(is_name)
}

/// The network whose vxlan device carries `alias`, if it is one that we give.
pub fn network_of_device(alias: &str) -> Option<&str> {
    alias.strip_prefix("vxlan-agent network ")?.split(' ').next()
}

/// What the names of head-room devices begin with; the index of the bridge follows.
pub const HEADROOM_PREFIX: &str = "vxr";

/// Name of the device that gives head-room to the ports of `bridge`; at most 15 characters.
pub fn headroom_name(bridge: IfIndex) -> String {
    format!("{HEADROOM_PREFIX}{bridge}")
}

/// MAC of every head-room device. A bridge takes the lowest MAC of its ports: this one never is.
pub const HEADROOM_MAC: Mac = Mac([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);

/// Where the pins of all networks lie below the configured `pin_dir`.
pub fn node_pin_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{LAYOUT_VERSION}")).join(NODE_PINS)
}

/// What the directory with the pins of all networks is called. No network's name has a dot, and bpffs refuses
/// one.
pub const NODE_PINS: &str = "@node";

/// The run directory that belongs to `pin_dir`: agents with different pin directories, one per
/// network namespace, do not meet.
pub fn default_run_dir(pin_dir: &Path) -> PathBuf {
    let below = pin_dir.strip_prefix("/sys/fs/bpf").or_else(|_| pin_dir.strip_prefix("/"));
    let name = below.unwrap_or(pin_dir).to_string_lossy().trim_matches('/').replace('/', "-");
    Path::new("/run/vxlan-agent").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_headroom_device_of_any_bridge_has_a_valid_name() {
        assert!(headroom_name(IfIndex(u32::MAX)).len() <= 15);
    }

    #[test]
    fn a_network_is_found_by_what_is_named_after_it() {
        assert_eq!(network_of_nft_table(&nft_table("pods")), Some("pods"));
        assert_eq!(network_of_nft_table("filter"), None);
        for (pins, table) in
            [(DEFAULT_PIN_DIR, "vxlan-agent"), ("/sys/fs/bpf/lab/n1/", "lab/n1"), ("/b", "/b")]
        {
            let name = tunnel_table(Path::new(pins));
            assert_eq!(
                (name.as_str(), network_of_nft_table(&name)),
                (format!("vxlan-agent-node.{table}").as_str(), None)
            );
        }
        assert_eq!(network_of_device(&device_alias("pods")), Some("pods"));
        assert_eq!(network_of_device(&device6_alias("pods")), Some("pods"));
        assert_eq!(network_of_device("flannel"), None);
    }

    #[test]
    fn every_pin_directory_has_its_own_run_directory() {
        let run = |p: &str| default_run_dir(Path::new(p)).display().to_string();
        assert_eq!(run("/sys/fs/bpf/vxlan-agent"), "/run/vxlan-agent/vxlan-agent");
        assert_eq!(run("/sys/fs/bpf/lab/n1"), "/run/vxlan-agent/lab-n1");
        assert_eq!(run("/tmp/bpf"), "/run/vxlan-agent/tmp-bpf");
    }
}
