//! What files of the host say: counters, sockets, limits, and who manages interfaces.

use std::collections::BTreeMap;
use std::fs;

use crate::net::IfIndex;

/// The counters of UDP that `/proc/net/snmp` has in two lines, one of names and one of numbers.
pub(super) fn counts() -> BTreeMap<String, u64> {
    let text = fs::read_to_string("/proc/thread-self/net/snmp").unwrap_or_default();
    udp_counts(&text)
}

pub(super) fn udp_counts(text: &str) -> BTreeMap<String, u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, numbers) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let pairs = names.split(' ').zip(numbers.split(' '));
    pairs.filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?))).collect()
}

/// Ports and inodes of UDP sockets.
pub(super) fn sockets() -> Vec<(u16, u64)> {
    let files = ["udp", "udp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
    files.iter().flatten().flat_map(|text| text.lines().skip(1)).filter_map(socket).collect()
}

pub(super) fn socket(line: &str) -> Option<(u16, u64)> {
    let mut words = line.split_whitespace();
    let port = words.nth(1)?.rsplit_once(':')?.1;
    Some((u16::from_str_radix(port, 16).ok()?, words.nth(7)?.parse().ok()?))
}

/// The limit of locked memory of a process, where it has one.
pub(super) fn memlock(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The program that says of itself that it manages an interface, and the file where it does.
pub(super) fn manager(index: IfIndex) -> Option<(IfIndex, &'static str, String)> {
    let networkd = format!("/run/systemd/netif/links/{index}");
    let manager = format!("/run/NetworkManager/devices/{index}");
    let says = |path: &str, wanted: fn(&str) -> bool| {
        fs::read_to_string(path).is_ok_and(|text| text.lines().any(wanted))
    };
    if says(&networkd, |line| line.starts_with("NETWORK_FILE=")) {
        return Some((index, "systemd-networkd", networkd));
    }
    says(&manager, |line| line == "managed=true" || line == "managed=1").then_some((
        index,
        "NetworkManager",
        manager,
    ))
}

/// The file because of which udev gives an interface a MAC of its own choice.
pub(super) fn udev_mac(index: IfIndex) -> Option<String> {
    let known = fs::read_to_string(format!("/run/udev/data/n{index}")).ok()?;
    let file = known.lines().find_map(|line| line.strip_prefix("E:ID_NET_LINK_FILE="))?;
    let text = fs::read_to_string(file).ok()?;
    let policy = text.lines().rev().find_map(|line| line.trim().strip_prefix("MACAddressPolicy="))?;
    (policy != "none").then(|| file.to_owned())
}
