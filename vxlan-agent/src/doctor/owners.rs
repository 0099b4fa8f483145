//! Others who lay hands on what is ours, or have it already.

use super::{Check, Facts, Finding};
use crate::kernel::Kind;
use crate::ownership::network_of_device;

pub(super) const CHECKS: &[Check] = &[foreign_device, foreign_socket, managers, udev];

/// Another vxlan device of the same VNI and port, or one that takes all VNIs of the port.
fn foreign_device(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in &facts.networks {
        let (Some(vni), Some(port)) = (network.vni, network.port) else { continue };
        let ours: Vec<_> = network.devices().collect();
        let elsewhere =
            |index| facts.networks.iter().any(|other| other.devices().any(|device| device == index));
        for link in facts.tables.links.values() {
            let Kind::Vxlan(vxlan) = &link.kind else { continue };
            let clashes = vxlan.port == port && vxlan.vni.is_none_or(|other| other == vni);
            // While the cluster state is refused, nobody says which device is ours, but its alias does.
            let marked = link.alias.as_deref().is_some_and(|alias| network_of_device(alias).is_some());
            let followed = network.status.as_ref().is_some_and(|status| status.device == link.name);
            if !clashes || marked || followed || ours.contains(&link.index) || elsewhere(link.index) {
                continue;
            }
            let what = format!(
                "{} has the VNI and UDP port of this network and is somebody else's: packets may go there",
                link.name
            );
            found.push(
                Finding::error("foreign-device", what)
                    .of(&network.name)
                    .seen(format!("ip -d link show dev {}: VNI {vni}, port {port}", link.name))
                    .mend(format!("ip link del dev {}", link.name)),
            );
        }
    }
    found
}

/// A program that has the tunnel's port keeps the device from coming up.
fn foreign_socket(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for network in &facts.networks {
        let Some(port) = network.port else { continue };
        // The kernel's own are listed, too: with a device that is up nobody else can have the port.
        let serves = |link: &crate::kernel::Link| {
            link.up && matches!(&link.kind, Kind::Vxlan(vxlan) if vxlan.port == port)
        };
        if facts.tables.links.values().any(serves) {
            continue;
        }
        for (_, inode) in facts.sockets.iter().filter(|(bound, _)| *bound == port) {
            let what = format!("a program has UDP port {port}, which the tunnel needs");
            found.push(
                Finding::error("foreign-port", what)
                    .of(&network.name)
                    .seen(format!("ss -lunp sport = :{port}: socket {inode}"))
                    .mend(format!("fuser -k {port}/udp")),
            );
        }
    }
    found
}

fn managers(facts: &Facts) -> Vec<Finding> {
    let finding = |(index, program, evidence): &(crate::net::IfIndex, &str, String)| {
        let name = facts.interface(*index);
        let what = format!("{program} manages {name}: it may remove addresses and routes, or set it down");
        let mend = match *program {
            "NetworkManager" => format!("nmcli device set {name} managed no"),
            _ => format!(
                "printf '[Match]\\nName={name}\\n[Link]\\nUnmanaged=yes\\n' > /etc/systemd/network/00-{name}.network; networkctl reload"
            ),
        };
        Finding::warning("foreign-manager", what).seen(evidence.clone()).mend(mend)
    };
    facts.managed.iter().map(finding).collect()
}

/// A device whose MAC udev has made, or will make.
fn udev(facts: &Facts) -> Vec<Finding> {
    let mut found = vec![];
    for (index, file) in &facts.udev_macs {
        let Some(link) = facts.tables.links.get(index) else { continue };
        let wanted = facts.networks.iter().find_map(|network| {
            let cluster = network.cluster.as_ref().ok()?;
            let at = network.sides().iter().position(|side| side.device == Some(*index))?;
            cluster.owns().nth(at).map(|own| own.mac)
        });
        // One that has been set by hand udev leaves alone.
        if wanted.is_none_or(|wanted| wanted == link.mac) {
            continue;
        }
        let what = format!("udev gives {} a MAC of its own choice, to which no other node sends", link.name);
        found.push(
            Finding::error("udev-mac", what).seen(format!("MACAddressPolicy in {file}")).mend(format!(
                "printf '[Match]\\nOriginalName={}\\n[Link]\\nMACAddressPolicy=none\\n' > /etc/systemd/network/00-{}.link",
                link.name, link.name
            )),
        );
    }
    found
}
