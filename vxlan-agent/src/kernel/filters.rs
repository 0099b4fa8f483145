//! Packet filters that are not nf_tables': of some the kernel gives no notice, and none of what they ask for.

use std::fs;
use std::io::ErrorKind;

use aya::programs::links::{LinkError, LinkType};
use aya::programs::loaded_links;
use nix::libc;

use super::ruleset::has_legacy_ebtables;

/// Lists of the tables that iptables from before nf_tables has made in this network namespace.
const LEGACY: [(&str, &str); 2] = [("ip_tables_names", "iptables"), ("ip6_tables_names", "ip6tables")];
/// Lines above the first service in the list of IPVS.
const IPVS_HEAD: usize = 3;
/// File systems that are there only while the security module is at work.
const MODULES: [(&str, &str); 2] = [("selinuxfs", "SELinux"), ("smackfs", "Smack")];

/// What may judge packets by more than their addresses, or change them: the first that is found of legacy
/// iptables and ebtables, services of IPVS, conntrack and security modules. What cannot be read may be anything.
pub fn unannounced() -> Option<String> {
    let ebtables = || has_legacy_ebtables().then(|| "legacy ebtables".to_owned());
    LEGACY
        .into_iter()
        .find_map(|list| legacy(list, |_| true))
        .or_else(ebtables)
        .or_else(ipvs)
        .or_else(conntrack)
        .or_else(security_module)
}

/// What legacy iptables may do to packets in front of the tunnel's port, one by one: NAT looks at the first of a
/// connection alone.
pub fn legacy_of_packets() -> Option<String> {
    LEGACY.into_iter().find_map(|list| legacy(list, |table| table != "nat"))
}

/// Conntrack, once it follows connections in this network namespace: then it should see all there are.
fn conntrack() -> Option<String> {
    let count = read("/proc/sys/net/netfilter/nf_conntrack_count");
    let follows = count.map_or(true, |count| !matches!(count.trim(), "" | "0"));
    follows.then(|| "connections that conntrack follows".to_owned())
}

fn legacy((list, name): (&str, &str), counts: impl Fn(&str) -> bool) -> Option<String> {
    let tables = read(&format!("/proc/thread-self/net/{list}"));
    tables.map_or_else(
        |error| Some(format!("{name}, of which the kernel does not tell: {error}")),
        |tables| Some(format!("the table {} of legacy {name}", tables.lines().find(|table| counts(table))?)),
    )
}

fn ipvs() -> Option<String> {
    let services = read("/proc/thread-self/net/ip_vs");
    let serves = services.map_or(true, |services| services.lines().count() > IPVS_HEAD);
    serves.then(|| "services of IPVS".to_owned())
}

fn security_module() -> Option<String> {
    let Ok(known) = read("/proc/filesystems") else {
        return Some("a security module that cannot be seen".into());
    };
    let is_known = |name: &str| known.lines().any(|line| line.split_whitespace().next_back() == Some(name));
    MODULES
        .into_iter()
        .find(|(name, _)| is_known(name))
        .map(|(_, module)| format!("the security module {module}"))
}

/// The content of a file; nothing where it is not there.
fn read(path: &str) -> Result<String, std::io::Error> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        read => read,
    }
}

/// Whether there is a BPF program at a hook of netfilter (since Linux 6.4), in any network namespace: in which,
/// the kernel does not say. Where links cannot be listed, there may be one.
pub fn has_netfilter_program() -> bool {
    let gone = |error: &LinkError| {
        let number = match error {
            LinkError::SyscallError(error) => error.io_error.raw_os_error(),
            _ => None,
        };
        number == Some(libc::ENOENT)
    };
    loaded_links().any(|link| match link {
        Ok(link) => matches!(link.link_type(), Ok(LinkType::Netfilter)),
        Err(error) => !gone(&error),
    })
}
