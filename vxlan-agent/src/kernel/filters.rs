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

/// What of packet filters may be at work of which no notice is given: the first that is found. What cannot be read may
/// be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unannounced {
    /// What may judge packets between pods by more than their addresses, or change them: of legacy iptables and
    /// ebtables, services of IPVS, conntrack and security modules.
    pub between_pods: Option<String>,
    /// What of legacy iptables may look at packets in front of the tunnel's port one by one. NAT looks at the first
    /// of a connection alone.
    pub of_tunnels: Option<String>,
}

/// Looks for all of that.
pub fn unannounced() -> Unannounced {
    let lists = LEGACY.map(|(list, name)| (name, read(&format!("/proc/thread-self/net/{list}"))));
    let first = |counts: fn(&str) -> bool| lists.iter().find_map(|(name, list)| legacy(name, list, counts));
    let ebtables = || has_legacy_ebtables().then(|| "legacy ebtables".to_owned());
    let between_pods =
        first(|_| true).or_else(ebtables).or_else(ipvs).or_else(conntrack).or_else(security_module);
    Unannounced { between_pods, of_tunnels: first(|table| table != "nat") }
}

/// Conntrack, once it follows connections in this network namespace: then it should see all there are.
fn conntrack() -> Option<String> {
    let count = read("/proc/sys/net/netfilter/nf_conntrack_count");
    let follows = count.map_or(true, |count| !matches!(count.trim(), "" | "0"));
    follows.then(|| "connections that conntrack follows".to_owned())
}

/// The first table that counts in a list of those of `name`.
fn legacy(name: &str, list: &Result<String, std::io::Error>, counts: fn(&str) -> bool) -> Option<String> {
    match list {
        Err(error) => Some(format!("{name}, of which the kernel does not tell: {error}")),
        Ok(tables) => {
            Some(format!("the table {} of legacy {name}", tables.lines().find(|table| counts(table))?))
        }
    }
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
