//! What the agent reads of a node's nf_tables rules.

use vxlan_agent::kernel::ruleset::{self, Ruleset};
use vxlan_tests::lab::{Lab, LabSpec, Netns, Overlay};

use super::build;

fn node() -> Lab {
    build(&LabSpec::pair(Overlay::None, Overlay::None).unfiltered())
}

fn read(node: &Netns) -> Ruleset {
    node.run(ruleset::read).expect("rules")
}

fn device_chains(node: &Netns) -> Vec<String> {
    read(node).device_chains.iter().map(ToString::to_string).collect()
}

#[test]
fn chains_at_devices_are_found() {
    let lab = node();
    let node = lab.node(1);
    assert_eq!(read(node), Ruleset::default());
    node.ip("link add d0 type veth peer x0\nlink add d1 type veth peer x1").expect("devices");
    let rules = "table netdev t {\n chain out { type filter hook egress device d0 priority 0; }\n \
                 chain both { type filter hook ingress devices = { d0, d1 } priority 5; }\n }\n \
                 table inet u {\n chain in { type filter hook ingress device d1 priority 0; }\n \
                 chain other { type filter hook prerouting priority 0; }\n }\n \
                 table netdev asleep { flags dormant;\n chain c { type filter hook ingress device d0 priority 0; }\n }";
    node.feed("nft", &["-f", "-"], rules).expect("rules");
    assert_eq!(
        device_chains(node),
        [
            "chain netdev t both (ingress of d0)",
            "chain netdev t out (egress of d0)",
            "chain inet u in (ingress of d1)",
            "chain netdev t both (ingress of d1)",
        ]
    );
    node.sh("nft flush ruleset").expect("no rules");
    assert_eq!(read(node), Ruleset::default());
}

/// What has to see every packet after `program` was fed `rules`.
fn meters(node: &Netns, program: &[&str], rules: &str) -> Vec<String> {
    node.feed(program[0], &program[1..], rules).unwrap_or_else(|error| panic!("{error:#}\n{rules}"));
    let found = read(node).meters.iter().map(ToString::to_string).collect();
    node.sh("nft flush ruleset").expect("no rules");
    found
}

/// With the rules `body` in a chain of table `inet t` at hook `forward`.
fn forward(node: &Netns, body: &str, more: &str) -> Vec<String> {
    let rules =
        format!("table inet t {{\n{more}\n chain f {{ type filter hook forward priority 0;\n{body}\n }}\n}}");
    meters(node, &["nft", "-f", "-"], &rules)
}

#[test]
fn rules_that_count_are_found_wherever_packets_come_by() {
    let lab = node();
    let node = lab.node(1);
    let counting = [
        ("limit rate over 20/second drop", "", "limit"),
        ("limit rate 20/second accept", "", "limit"),
        ("limit rate 20/second log counter accept", "", "limit"),
        ("limit rate 20/second meta mark set 1", "", "limit"),
        ("limit rate 20/second return\ndrop", "", "limit"),
        ("quota over 20 mbytes drop", "", "quota"),
        ("ct count over 10 reject", "", "ct count"),
        ("ct original bytes > 100000 drop", "", "ct bytes"),
        ("ct packets > 1000 drop", "", "ct packets"),
        ("ct avgpkt > 1000 drop", "", "ct avgpkt"),
        ("numgen random mod 2 0 drop", "", "numgen"),
        ("numgen inc mod 2 vmap { 0 : accept, 1 : drop }", "", "numgen"),
        ("meta random < 1000000 drop", "", "meta random"),
        ("meter m { ip saddr limit rate over 10/second } drop", "", "limit"),
        (
            "add @s { ip saddr limit rate over 10/second } drop",
            "set s { type ipv4_addr; flags dynamic; }",
            "limit",
        ),
        ("add @s { ip saddr ct count over 2 } drop", "set s { type ipv4_addr; flags dynamic; }", "ct count"),
        ("ip saddr @s drop", "set s { type ipv4_addr; quota 1 mbytes; elements = { 10.0.0.1 } }", "quota"),
        ("limit name l drop", "limit l { rate 10/second }", "limit"),
        ("quota name q drop", "quota q { over 1 mbytes }", "quota"),
        ("quota name ip daddr map { 10.0.0.1 : \"q\" } drop", "quota q { over 1 mbytes }", "quota"),
        ("dup to 192.0.2.9", "", "dup"),
        ("ip ttl set 3", "", "changing packets"),
    ];
    for (rule, more, what) in counting {
        // Copying needs a table of one IP version.
        let found = if rule.starts_with("dup") {
            let rules =
                format!("table ip t {{ chain f {{ type filter hook forward priority 0; {rule}; }}\n}}");
            meters(node, &["nft", "-f", "-"], &rules)
        } else {
            forward(node, rule, more)
        };
        let [found] = found.as_slice() else { panic!("{rule}: {found:?}") };
        assert!(found.starts_with(&format!("{what} in chain ")), "{rule}: {found}");
    }
    let rules = |family: &str, hook: &str| {
        format!(
            "table {family} t {{ chain c {{ type filter hook {hook} priority 0; quota 1 mbytes drop; }}\n}}"
        )
    };
    for (family, hooks) in [
        ("ip", &["prerouting", "forward", "postrouting"][..]),
        ("ip6", &["prerouting", "forward", "postrouting"]),
        ("inet", &["prerouting", "forward", "postrouting"]),
        ("bridge", &["prerouting", "input", "forward", "output", "postrouting"]),
    ] {
        for hook in hooks {
            let found = meters(node, &["nft", "-f", "-"], &rules(family, hook));
            assert_eq!(found, [format!("quota in chain {family} t c")], "{hook}");
        }
    }
    for hook in ["input", "output"] {
        assert!(meters(node, &["nft", "-f", "-"], &rules("inet", hook)).is_empty(), "{hook}");
    }
}

/// What may tell a tunnel's packets apart after `program` was fed `rules`.
fn tunnel_meters(node: &Netns, program: &[&str], rules: &str) -> Vec<String> {
    node.feed(program[0], &program[1..], rules).unwrap_or_else(|error| panic!("{error:#}\n{rules}"));
    let found = read(node).tunnel_meters.iter().map(ToString::to_string).collect();
    node.sh("nft flush ruleset").expect("no rules");
    found
}

#[test]
fn rules_that_tell_a_tunnels_packets_apart_are_found_in_front_of_its_port() {
    let lab = node();
    let node = lab.node(1);
    let at = |hook: &str, rule: &str| {
        let table = format!(
            "table inet t {{\n chain deep {{ limit rate 5/second drop; }}\n \
             chain c {{ type filter hook {hook} priority 0;\n{rule}\n }}\n}}"
        );
        tunnel_meters(node, &["nft", "-f", "-"], &table)
    };
    for (rule, what) in [
        ("udp dport 8472 @th,64,32 1 drop", "payload"),
        ("udp sport 1-1000 drop", "payload"),
        ("udp length > 1000 drop", "payload"),
        ("ip dscp 3 accept", "payload"),
        ("meta length > 1000 drop", "meta length"),
        ("meta l4proto udp limit rate 5/second accept", "limit"),
        ("udp dport 8472 jump deep", "limit"),
        ("jhash udp dport mod 2 1 drop", "hash"),
        ("udp dport 8472 meta mark set 7", "a mark"),
    ] {
        for hook in ["prerouting", "input"] {
            let found = at(hook, rule);
            let [found] = found.as_slice() else { panic!("{rule}: {found:?}") };
            assert!(found.starts_with(&format!("{what} in chain inet t ")), "{rule}: {found}");
        }
        assert!(at("forward", rule).is_empty() && at("output", rule).is_empty(), "{rule}");
    }
    for rule in [
        "ip saddr 192.0.2.9 udp dport 8472 drop",
        "ip6 saddr 2001:db8::9 udp dport { 4789, 8472 } drop",
        "iifname eth0 udp dport 8472 accept\ndrop",
        "ct state new udp dport 8472 accept\nct state established accept\nmeta mark 7 drop",
        "meta nftrace set 1\nmeta l4proto tcp meta mark set 1",
        "tcp dport 22 limit rate over 5/minute drop\ntcp sport 1-1000 drop",
        "tcp dport 22 jump deep",
        "limit rate 5/minute log",
        "fib daddr type local accept",
        "udp dport vmap { 53 : accept, 8472 : drop }",
    ] {
        assert_eq!(at("input", rule), [""; 0], "{rule}");
    }
    let nat =
        "table ip t { chain c { type nat hook prerouting priority dstnat; numgen random mod 2 0 drop; }\n}";
    assert_eq!(
        tunnel_meters(node, &["nft", "-f", "-"], nat),
        [""; 0],
        "what translates sees the first alone"
    );
    let iptables = |rule: &str| {
        let rules = format!("*filter\n-A INPUT {rule}\nCOMMIT\n");
        tunnel_meters(node, &["iptables-nft-restore"], &rules)
    };
    for (rule, what) in [
        ("-p udp --sport 1:1000 -j DROP", "udp"),
        ("-p udp -m multiport --ports 8472 -j DROP", "multiport"),
        ("-m length --length 1000: -j DROP", "length"),
        ("-p udp -m u32 --u32 \"0&0xff=1\" -j DROP", "u32"),
        ("-p udp -m limit --limit 5/second -j ACCEPT", "limit"),
        ("-p udp -j CONNMARK --restore-mark", "a mark"),
    ] {
        let found = iptables(rule);
        let [found] = found.as_slice() else { panic!("{rule}: {found:?}") };
        assert!(found.ends_with(" in chain ip filter INPUT"), "{rule}: {what}: {found}");
    }
    for rule in [
        "-p udp --dport 8472 -s 192.0.2.9 -j DROP",
        "-p udp -m multiport --dports 53,8472 -j ACCEPT",
        "-p tcp --dport 22 -m limit --limit 5/minute -j ACCEPT",
        "-m conntrack --ctstate ESTABLISHED -j ACCEPT",
    ] {
        assert_eq!(iptables(rule), [""; 0], "{rule}");
    }
}

#[test]
fn rules_that_count_are_found_through_jumps_and_maps() {
    let lab = node();
    let chain = "chain deep { limit rate 5/second drop; }";
    let through = [
        ("jump deep", chain.to_owned()),
        ("goto deep", chain.to_owned()),
        ("ip protocol vmap { icmp : jump deep }", chain.to_owned()),
        (
            "ip protocol vmap @m",
            format!("{chain}\nmap m {{ type inet_proto : verdict; elements = {{ icmp : goto deep }} }}"),
        ),
        ("jump middle", format!("{chain}\nchain middle {{ tcp dport 1 jump deep; }}")),
    ];
    for (rule, more) in through {
        assert_eq!(forward(lab.node(1), rule, &more), ["limit in chain inet t deep"], "{rule}");
    }
    assert_eq!(
        forward(lab.node(1), "limit rate 5/second jump deep", "chain deep { drop; }"),
        ["limit in chain inet t f"]
    );
    assert!(forward(lab.node(1), "accept", chain).is_empty(), "nothing leads there");
}

#[test]
fn rules_that_only_say_something_may_miss_packets() {
    let lab = node();
    let saying = [
        ("counter drop", ""),
        ("limit rate 5/minute log prefix \"x\" counter\ndrop", ""),
        ("limit rate 5/minute ct state invalid log\naccept", ""),
        ("jump logging\ndrop", "chain logging { limit rate 3/minute return; limit rate 5/minute log; }"),
        ("limit rate 5/minute jump logging\ndrop", "chain logging { log; counter; }"),
        ("quota 5 mbytes counter", ""),
        ("add @seen { ip saddr timeout 1m }", "set seen { type ipv4_addr; flags dynamic, timeout; }"),
        (
            "ct state established,related accept\nip daddr { 10.0.0.1, 10.0.0.2 } tcp dport vmap { 1 : accept }",
            "",
        ),
        ("counter name c accept", "counter c { }"),
        ("meta mark set 1\nip dscp set 3\nct mark set 2\nnotrack", ""),
        ("tcp flags syn tcp option maxseg size set rt mtu", ""),
        ("fib saddr . iif oif missing drop\nreject", ""),
    ];
    for (rule, more) in saying {
        assert_eq!(forward(lab.node(1), rule, more), [""; 0], "{rule}");
    }
    let asleep = "table inet t { flags dormant; chain f { type filter hook forward priority 0; quota 1 mbytes drop; }\n}";
    assert_eq!(meters(lab.node(1), &["nft", "-f", "-"], asleep), [""; 0]);
}

#[test]
fn matches_of_iptables_are_known_by_name() {
    let lab = node();
    let rules =
        |rule: &str| format!("*filter\n:LOGGING - [0:0]\n-A LOGGING -j LOG\n-A FORWARD {rule}\nCOMMIT\n");
    for (rule, what) in [
        ("-m limit --limit 5/second -j ACCEPT", "limit"),
        (
            "-m hashlimit --hashlimit-above 5/second --hashlimit-name a --hashlimit-mode srcip -j DROP",
            "hashlimit",
        ),
        ("-m connbytes --connbytes 1000: --connbytes-dir both --connbytes-mode bytes -j DROP", "connbytes"),
        ("-m connlimit --connlimit-above 5 -j REJECT", "connlimit"),
        ("-m quota --quota 1000 -j ACCEPT", "quota"),
        ("-m statistic --mode random --probability 0.5 -j DROP", "statistic"),
        ("-m recent --name a --update --seconds 60 --hitcount 5 -j DROP", "recent"),
        ("-j TEE --gateway 192.0.2.9", "TEE"),
        ("-j NFQUEUE --queue-num 1", "NFQUEUE"),
    ] {
        let found = meters(lab.node(1), &["iptables-nft-restore"], &rules(rule));
        let [found] = found.as_slice() else { panic!("{rule}: {found:?}") };
        assert!(found.contains(what) && found.ends_with(" in chain ip filter FORWARD"), "{rule}: {found}");
    }
    for rule in [
        "-m limit --limit 5/minute -j LOG",
        "-m limit --limit 5/minute -j NFLOG --nflog-group 100",
        "-m limit --limit 5/minute -j LOGGING",
        "-m conntrack --ctstate INVALID -j DROP",
        "-m mark --mark 0x4000/0x4000 -m comment --comment x -j ACCEPT",
        "-p tcp -m multiport --dports 1,2 -m addrtype --dst-type LOCAL -j REJECT",
        "-j MARK --set-xmark 0x1/0x1",
    ] {
        assert_eq!(meters(lab.node(1), &["iptables-nft-restore"], &rules(rule)), [""; 0], "{rule}");
    }
}

/// What kube-proxy 1.36, kubelet, flannel, Docker, kube-router's policies and ufw's logging write for iptables.
const KUBERNETES: &str = "*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:FLANNEL-FWD - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-POD-FW-1 - [0:0]
:ufw-before-logging-forward - [0:0]
:ufw-logging-deny - [0:0]
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -d 10.244.1.9/32 -j KUBE-POD-FW-1
-A FORWARD -j ufw-before-logging-forward
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A FORWARD -j ufw-logging-deny
-A FORWARD -m physdev --physdev-is-bridged -j ACCEPT
-A DOCKER-USER -j RETURN
-A FLANNEL-FWD -s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m udp --dport 53 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-POD-FW-1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-POD-FW-1 -m addrtype --src-type LOCAL -d 10.244.1.9/32 -j ACCEPT
-A KUBE-POD-FW-1 -m mark ! --mark 0x10000/0x10000 -m limit --limit 10/minute --limit-burst 10 -j NFLOG --nflog-group 100
-A KUBE-POD-FW-1 -m mark ! --mark 0x10000/0x10000 -j REJECT
-A ufw-logging-deny -m conntrack --ctstate INVALID -m limit --limit 3/min --limit-burst 10 -j RETURN
-A ufw-logging-deny -m limit --limit 3/min --limit-burst 10 -j LOG --log-prefix \"[UFW BLOCK] \"
COMMIT
*mangle
:KUBE-KUBELET-CANARY - [0:0]
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
-A POSTROUTING -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-1 - [0:0]
:KUBE-SEP-2 - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-1 - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-1
-A KUBE-SVC-1 -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-1
-A KUBE-SVC-1 -j KUBE-SEP-2
-A KUBE-SEP-1 -p tcp -m recent --set --name KUBE-SEP-1 -m tcp -j DNAT --to-destination 10.244.1.9:443
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.244.2.9:443
COMMIT
";

/// The filter chains that kube-proxy writes for nftables, over the same maps and chains as its NAT.
const KUBE_PROXY: &str = "table ip kube-proxy {
 set cluster-ips { type ipv4_addr; elements = { 10.96.0.1 } }
 map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.2 . tcp . 80 : goto firewall } }
 map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.3 . tcp . 80 : goto reject-chain } }
 map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 443 : goto service } }
 chain cluster-ips-check { ip daddr @cluster-ips reject; }
 chain endpoint-1 { dnat to 10.244.1.9; }
 chain endpoint-2 { dnat to 10.244.2.9; }
 chain service { numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }; }
 chain firewall { ip saddr 10.0.0.1 return; drop; }
 chain reject-chain { reject; }
 chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
 chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
 chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
 chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
 chain filter-forward { type filter hook forward priority -110; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }
 chain nat-prerouting { type nat hook prerouting priority -100; jump services; }
}
";

#[test]
fn rules_of_kubernetes_need_not_see_every_packet() {
    let lab = node();
    assert_eq!(meters(lab.node(1), &["iptables-nft-restore"], KUBERNETES), [""; 0]);
    assert_eq!(meters(lab.node(1), &["nft", "-f", "-"], KUBE_PROXY), [""; 0]);
    // The same with the one rule in it that has to.
    let limited =
        KUBERNETES.replace("-A DOCKER-USER -j RETURN", "-A DOCKER-USER -m limit --limit 9/s -j ACCEPT");
    let found = meters(lab.node(1), &["iptables-nft-restore"], &limited);
    assert_eq!(found.len(), 1, "{found:?}");
    let reached = KUBE_PROXY.replace("jump firewall-check", "jump services");
    let reached = reached.replace("chain endpoint-1 { dnat to 10.244.1.9; }", "chain endpoint-1 { accept; }");
    let reached = reached.replace("chain endpoint-2 { dnat to 10.244.2.9; }", "chain endpoint-2 { accept; }");
    let reached = reached
        .replace(" chain nat-prerouting { type nat hook prerouting priority -100; jump services; }\n", "");
    assert_eq!(meters(lab.node(1), &["nft", "-f", "-"], &reached), ["numgen in chain ip kube-proxy service"]);
}
