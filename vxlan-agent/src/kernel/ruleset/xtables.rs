//! Matches and targets of iptables and ebtables, as nf_tables carries them, by their names.

use super::rule::Effect;

/// Where nothing is said about it, an address, a state, a mark or another property of the packet or its
/// connection decides.
const PURE_MATCHES: &[&str] = &[
    "802_3",
    "addrtype",
    "ah",
    "among",
    "arp",
    "cgroup",
    "cluster",
    "comment",
    "connlabel",
    "connmark",
    "conntrack",
    "cpu",
    "dccp",
    "devgroup",
    "dscp",
    "dst",
    "ecn",
    "esp",
    "eui64",
    "frag",
    "hbh",
    "helper",
    "hl",
    "icmp",
    "icmp6",
    "ip",
    "ip6",
    "ipcomp",
    "iprange",
    "ipv6header",
    "ipvs",
    "l2tp",
    "length",
    "mac",
    "mark",
    "mark_m",
    "mh",
    "multiport",
    // Counts, and decides only if its object has a quota, which none of kube-proxy's has.
    "nfacct",
    "osf",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "realm",
    "rpfilter",
    "rt",
    "sctp",
    "set",
    "socket",
    "srh",
    "state",
    "stp",
    "string",
    "tcp",
    "tcpmss",
    "time",
    "tos",
    "ttl",
    "u32",
    "udp",
    "udplite",
    "vlan",
];

/// They say something about a packet, and do nothing to it.
const SAYING_TARGETS: &[&str] = &["AUDIT", "LED", "LOG", "NFLOG", "TRACE", "ULOG", "log", "nflog"];

/// What they do is done to the first packets, or seen behind the stack.
const ACTING_TARGETS: &[&str] = &[
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "CT",
    "DNAT",
    "DNPT",
    "DSCP",
    "ECN",
    "HMARK",
    "IDLETIMER",
    "MARK",
    "MASQUERADE",
    "NETMAP",
    "NOTRACK",
    "REDIRECT",
    "REJECT",
    "SECMARK",
    "SET",
    "SNAT",
    "SNPT",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TOS",
    "TPROXY",
    "arpreply",
    "dnat",
    "mark",
    "redirect",
    "snat",
];

/// A match `name` of revision `revision` with the data `info`.
pub(super) fn of_match(name: &str, revision: u32, info: &[u8]) -> Effect {
    let pure = PURE_MATCHES.contains(&name) && !(name == "set" && compares_counters(revision, info));
    if pure { Effect::None } else { Effect::Meters(format!("match {name}")) }
}

/// Whether a target writes beside a packet what stays there.
pub(super) fn marks(name: &str) -> bool {
    ["CLASSIFY", "CONNMARK", "CONNSECMARK", "HMARK", "MARK", "SECMARK", "TPROXY"].contains(&name)
}

/// Whether a match looks at what differs among the packets of one VTEP.
pub(super) fn looks_inside(name: &str, info: &[u8]) -> bool {
    // Pairs of 16-bit numbers: source ports, destination ports (`struct xt_udp`).
    const ALL_PORTS: [u8; 4] = [0, 0, 0xff, 0xff];
    // `XT_MULTIPORT_DESTINATION`.
    const DESTINATION: u8 = 1;
    match name {
        "bpf" | "cpu" | "dscp" | "ecn" | "length" | "string" | "tos" | "u32" => true,
        "udp" => info.get(..4) != Some(&ALL_PORTS),
        "multiport" => info.first() != Some(&DESTINATION),
        "set" => compares_source_ports(info),
        _ => false,
    }
}

/// Whether a match may look at source ports in an IP set, which are never the first part of its entries: `struct
/// xt_set_info` is an index of 16 bits, the number of parts, and the parts that are the source's from bit 1 on.
fn compares_source_ports(info: &[u8]) -> bool {
    const BEHIND_FIRST: u8 = !0b11;
    let [_, _, parts, sources] = info.first_chunk().copied().unwrap_or([0, 0, u8::MAX, u8::MAX]);
    parts > 1 && sources & BEHIND_FIRST != 0
}

/// A target that is no verdict.
pub(super) fn of_target(name: &str) -> Effect {
    match name {
        _ if SAYING_TARGETS.contains(&name) => Effect::None,
        _ if ACTING_TARGETS.contains(&name) => Effect::Acts,
        _ => Effect::Needs(format!("target {name}")),
    }
}

/// Whether a match looks at the counters of an IP set's entries: `xt_set_info_match_v3` and `_v4` of
/// `linux/netfilter/xt_set.h`, whose operators are zero where they do not.
fn compares_counters(revision: u32, info: &[u8]) -> bool {
    let operators = match revision {
        0..=2 => return false,
        3 => [8, 24],
        _ => [16, 32],
    };
    operators.into_iter().any(|at| info.get(at) != Some(&0))
}
