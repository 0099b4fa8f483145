//! Sets of rules of the host's forward chain: what holds when flows begin, and what holds afterwards.

/// A set of rules, for both IP versions. The client is pod 1 of node 1, the server pod 1 of node 2.
pub(super) struct Policy {
    pub(super) name: &'static str,
    /// With them the client's connections, datagrams and echo requests to the server pass, and answers.
    pub(super) before: &'static str,
    pub(super) after: &'static str,
}

pub(super) const POLICIES: [Policy; 6] = [
    Policy {
        name: "only the client opens, then nobody",
        before: "chain forward { type filter hook forward priority filter; policy drop;
            ct state invalid drop
            ct state established,related accept
            ip saddr 10.244.1.0/24 tcp dport 7000 accept
            ip6 saddr fd00:244:1::/64 tcp dport 7000 accept
            ip saddr 10.244.1.0/24 udp dport 7001 accept
            ip6 saddr fd00:244:1::/64 udp dport 7001 accept
            icmp type echo-request ip saddr 10.244.1.0/24 accept
            icmpv6 type echo-request ip6 saddr fd00:244:1::/64 accept
        }",
        after: "chain forward { type filter hook forward priority filter; policy drop;
            ct state invalid drop
            ct state established,related accept
        }",
    },
    Policy {
        name: "addresses in both directions, then in one",
        before: "chain forward { type filter hook forward priority filter; policy drop;
            ip saddr . ip daddr { 10.244.1.2 . 10.244.2.2, 10.244.2.2 . 10.244.1.2 } accept
            ip6 saddr . ip6 daddr { fd00:244:1::2 . fd00:244:2::2, fd00:244:2::2 . fd00:244:1::2 } accept
        }",
        after: "chain forward { type filter hook forward priority filter; policy drop;
            ip saddr . ip daddr { 10.244.1.2 . 10.244.2.2 } accept
            ip6 saddr . ip6 daddr { fd00:244:1::2 . fd00:244:2::2 } accept
        }",
    },
    Policy {
        name: "some ports, then more",
        before: "chain forward { type filter hook forward priority filter;
            th dport 7003 drop
        }",
        after: "chain forward { type filter hook forward priority filter;
            th dport { 7000, 7003 } drop
            udp sport 7001 drop
        }",
    },
    Policy {
        name: "echo requests of one side, then of none",
        before: "chain forward { type filter hook forward priority filter;
            ct state established,related accept
            icmp type echo-request ip daddr 10.244.1.0/24 drop
            icmpv6 type echo-request ip6 daddr fd00:244:1::/64 drop
        }",
        after: "chain forward { type filter hook forward priority filter;
            icmp type echo-request drop
            icmpv6 type echo-request drop
        }",
    },
    Policy {
        name: "what a rule before has marked, then more",
        before: "chain marks { type filter hook prerouting priority mangle;
            th dport 7003 meta mark set 7
            ct state new ip saddr 10.244.2.0/24 meta mark set 7
            ct state new ip6 saddr fd00:244:2::/64 meta mark set 7
        }
        chain forward { type filter hook forward priority filter;
            meta mark 7 drop
        }",
        after: "chain marks { type filter hook prerouting priority mangle;
            th dport { 7001, 7003 } meta mark set 7
            tcp sport 7000 meta mark set 7
        }
        chain forward { type filter hook forward priority filter;
            meta mark 7 drop
        }",
    },
    Policy {
        name: "a DSCP is dropped and another set, then more",
        before: "chain forward { type filter hook forward priority filter;
            ip dscp cs1 drop
            ip6 dscp cs1 drop
            th dport 7003 ip dscp set cs3
            th dport 7003 ip6 dscp set cs3
        }",
        after: "chain forward { type filter hook forward priority filter;
            ip dscp cs1 drop
            ip6 dscp cs1 drop
            th dport 7001 ip dscp set cs2
            th dport 7001 ip6 dscp set cs2
            tcp dport 7000 ip dscp cs0 drop
            tcp dport 7000 ip6 dscp cs0 drop
        }",
    },
];

/// The table with these chains, in the place of the one before.
pub(super) fn table(chains: &str) -> String {
    format!("table inet rules {{}}\ndelete table inet rules\ntable inet rules {{\n{chains}\n}}\n")
}
