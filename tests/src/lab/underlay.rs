//! The nodes' underlay: links, addresses, and the wait until it carries packets.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::addr::{underlay, underlay4, underlay6};
use super::site::Site;
use super::traffic::{Ping, ping};
use super::{Family, Netns, cmd, wait_until};

/// The namespace of the bridge that links more than two nodes.
pub(super) const FABRIC: &str = "fabric";

/// Links the interfaces `name` of the nodes' namespaces `n1` to `n<count>`: two directly, more by a
/// bridge in a namespace of its own, which has to be there.
pub(super) fn link_nodes(site: &Site, count: usize, name: &str, mtu: u32) -> Result<()> {
    let prefix = site.prefix();
    let mut batch = String::new();
    let mut fabric = String::new();
    if count == 2 {
        let _ = writeln!(
            batch,
            "link add {name} mtu {mtu} netns {prefix}-n1 type veth \
             peer name {name} mtu {mtu} netns {prefix}-n2"
        );
    } else {
        let _ = writeln!(fabric, "link add br0 mtu {mtu} type bridge mcast_snooping 0");
        let _ = writeln!(fabric, "link set br0 up");
        for n in 1..=count {
            let _ = writeln!(
                batch,
                "link add {name} mtu {mtu} netns {prefix}-n{n} type veth \
                 peer name n{n} mtu {mtu} netns {prefix}-{FABRIC}"
            );
            let _ = writeln!(fabric, "link set n{n} master br0 up");
        }
    }
    cmd::feed(Command::new("ip").args(["-batch", "-"]), &batch)?;
    if fabric.is_empty() { Ok(()) } else { site.namespace(FABRIC)?.ip(&fabric) }
}

/// The lines for `ip -batch` that give node `n` its addresses on `interface` and set it up.
pub(super) fn addresses(n: u8, interface: &str) -> String {
    format!(
        "addr add {}/24 dev {interface}\naddr add {}/64 dev {interface} nodad\nlink set {interface} up\n",
        underlay4(n),
        underlay6(n),
    )
}

/// Waits until the nodes, given in order, reach each other, with sockets bound to `device` if it is
/// given. An interface that has just come up takes part in multicast, and so in neighbour discovery,
/// only when the kernel has noticed its carrier, which may take a second.
pub(super) fn settle(nodes: &[&Netns], device: Option<&'static str>) -> Result<()> {
    let count = u8::try_from(nodes.len())?;
    for (from, to) in (2..=count).flat_map(|n| [(1, n), (n, 1)]) {
        for family in [Family::V4, Family::V6] {
            let node = nodes[usize::from(from) - 1];
            until_reached(node, &format!("n{from}"), underlay(family, to), device)?;
        }
    }
    Ok(())
}

/// Waits until `target` answers `from`.
pub(super) fn until_reached(
    from: &Netns,
    name: &str,
    target: IpAddr,
    device: Option<&'static str>,
) -> Result<()> {
    let impatient = Ping { timeout: Duration::from_millis(100), device, ..Ping::default() };
    wait_until(&format!("{name} reaches {target}"), Duration::from_secs(10), || {
        ping(from, target, impatient).is_ok_and(|report| report.all_answered())
    })
}
