//! Settings of the kernel that matter to the overlay.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys";

/// Below [`ROOT`]; `*` stands for any name.
const SETTINGS: &[&str] = &[
    "kernel/bpf_stats_enabled",
    "kernel/osrelease",
    "kernel/unprivileged_bpf_disabled",
    "net/bridge/*",
    "net/core/bpf_jit_enable",
    "net/core/bpf_jit_harden",
    "net/core/default_qdisc",
    "net/core/netdev_max_backlog",
    "net/ipv4/conf/*/accept_local",
    "net/ipv4/conf/*/arp_ignore",
    "net/ipv4/conf/*/forwarding",
    "net/ipv4/conf/*/proxy_arp",
    "net/ipv4/conf/*/route_localnet",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/src_valid_mark",
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_no_pmtu_disc",
    "net/ipv4/neigh/default/gc_thresh*",
    "net/ipv4/tcp_mtu_probing",
    "net/ipv6/conf/*/accept_ra",
    "net/ipv6/conf/*/addr_gen_mode",
    "net/ipv6/conf/*/disable_ipv6",
    "net/ipv6/conf/*/forwarding",
    "net/ipv6/neigh/default/gc_thresh*",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
];

/// A line for each that there is.
pub(crate) fn settings() -> String {
    let mut out = String::new();
    for pattern in SETTINGS {
        for path in matching(Path::new(ROOT), pattern) {
            let name = path.strip_prefix(ROOT).unwrap_or(&path).display().to_string();
            let value = fs::read_to_string(&path);
            let value = value.map_or_else(|error| format!("({error})"), |value| value.trim().to_owned());
            let _ = writeln!(out, "{name} = {value}");
        }
    }
    out
}

/// Files below `root` that `pattern` means, in order.
fn matching(root: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    for part in pattern.split('/') {
        found = match part.split_once('*') {
            None => found.into_iter().map(|dir| dir.join(part)).collect(),
            Some((begin, end)) => {
                let names = |dir: PathBuf| {
                    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
                    entries.map(|entry| entry.path()).filter(|path| {
                        let name = path.file_name().unwrap_or_default().to_string_lossy();
                        name.len() >= begin.len() + end.len()
                            && name.starts_with(begin)
                            && name.ends_with(end)
                    })
                };
                let mut all: Vec<PathBuf> = found.into_iter().flat_map(names).collect();
                all.sort();
                all
            }
        };
    }
    found.retain(|path| path.is_file());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_name() {
        let dir = tempfile::tempdir().expect("a directory");
        for interface in ["eth0", "all"] {
            fs::create_dir_all(dir.path().join("conf").join(interface)).expect("a directory");
            fs::write(dir.path().join("conf").join(interface).join("rp_filter"), "1").expect("written");
        }
        fs::write(dir.path().join("gc_thresh1"), "1").expect("written");
        let found = |pattern: &str| -> Vec<String> {
            let all = matching(dir.path(), pattern);
            all.iter().map(|p| p.strip_prefix(dir.path()).expect("below").display().to_string()).collect()
        };
        assert_eq!(found("conf/*/rp_filter"), ["conf/all/rp_filter", "conf/eth0/rp_filter"]);
        assert_eq!(found("gc_thresh*"), ["gc_thresh1"]);
        assert!(found("conf/*/none").is_empty());
    }

    #[test]
    fn this_machine_has_settings() {
        assert!(settings().contains("net/ipv4/ip_forward = "));
    }
}
