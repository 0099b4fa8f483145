//! The files: the configuration, and the list of nodes with this one in it. Whatever may be left out stands there as a
//! comment, with its default.

use std::fmt::Write as _;

use ipnetwork::IpNetwork;
use toml::Value;

use super::{Found, IPV6_NEEDS, NODES, Wanted};
use crate::net::{Mtu, family};

/// The longest name of an interface (`IFNAMSIZ`, without its end).
const LONGEST_DEVICE: usize = 15;

const NODE: &str = r##"# pin_dir = "/sys/fs/bpf/vxlan-agent"      # programs and maps, on a BPF file system
# run_dir = "/run/vxlan-agent/vxlan-agent" # status file and lock
# attach = "auto"                          # "clsact": no TCX, even where the kernel has it
# xdp = "auto"                             # "native": with every driver that has XDP of its own; "off": never
# healthz = "127.0.0.1:9475"               # example; without it nothing answers /healthz and /readyz
# metrics = "127.0.0.1:9469"               # example; without it nothing answers /metrics for Prometheus
# connectivity = 60                        # example: seconds between probes of all nodes; without it there are none
"##;

const NETWORK: &str = r##"# port = 8472                              # UDP; IANA's number is 4789; the same on all nodes
# fastpath = "verified"                    # "direct": hosts without packet filters; "off": the kernel alone
# source_check = "drop"                    # "count": packets from wrong senders are counted and let in
# flows = 65536                            # places in the table of flows, some 250 bytes each
# malformed = "kernel"                     # "drop": malformed packets from the underlay are dropped
# other_vni = "kernel"                     # "drop": packets for another VNI are dropped
# notrack = false                          # true: conntrack leaves the tunnel's own packets alone
# ttl = 64                                 # example, or "inherit"; without it as the route or the host says
# tos = 0                                  # example: a multiple of 4, or "inherit"
# df = false                               # example: Don't Fragment of outer IPv4 packets; true, or "inherit"
# checksum = false                         # example: no UDP checksum; without it over IPv6 alone
"##;

const ROUTED: &str = r##"# direct_routing = false                   # true: nodes on the same link are reached without a tunnel
"##;

const SEGMENT: &str = r##"# flood = "copies"                         # or a multicast group of the underlay, such as "239.1.1.1"
# learning = true                          # false: stations are those of the list of nodes
# suppress = false                         # true: the local bridge answers ARP and neighbour discovery
"##;

const PODS: &str = r##"
# What containers need besides, all of it off:
# [pods]
# masquerade = false                       # true: packets to the world outside get an address of the node
# cni = "off"                              # "bridge" or "flannel": write a CNI configuration
# cni_file = "/etc/cni/net.d/10-flannel.conflist"
# subnet_file = "/run/flannel/subnet.env"  # example; without it written with cni = "flannel" alone
"##;

impl Found {
    /// The configuration.
    pub(crate) fn configuration(&self) -> String {
        let mut out = format!(
            "# Written by `vxlan-agent init` for this machine. Lines that are commented out have the default, or an \
             example\n# where they say so. docs/configuration.md explains every key; `vxlan-agent check` finds \
             mistakes.\n\n[node]\nname = {}\n",
            quoted(&self.node)
        );
        out += &self.underlay_lines();
        out += NODE;
        out += &self.network_lines();
        let _ = write!(
            out,
            "\n[state]\nsource = \"file\"\npath = \"{NODES}\"                        # next to this file; it needs \
             an entry for this node, such as\n{}",
            commented(&self.entry())
        );
        if self.kind == Wanted::L3 {
            out += PODS;
            let _ = writeln!(out, "# networks = {}", list(&self.blocks()));
        }
        out
    }

    fn underlay_lines(&self) -> String {
        let why = if self.underlay.default_route { "the interface of the default route" } else { "chosen" };
        let mtu = self.underlay.mtu;
        let mut out = format!("# To the other nodes: {why}, MTU {mtu}, with\n");
        for address in &self.underlay.addresses {
            let lease = if address.lease {
                "   (with a lifetime, by DHCP or a router: it has to stay the same)"
            } else {
                ""
            };
            let _ = writeln!(out, "#   {}{lease}", address.ip);
        }
        let _ = writeln!(out, "underlay = {}", quoted(&self.underlay.name));
        let vtep = quoted(&self.vtep.to_string());
        let _ = writeln!(out, "# address = {vtep:<30} # only where others send to another address (NAT)");
        out
    }

    fn network_lines(&self) -> String {
        let Self { vni, kind, .. } = self;
        let word = match kind {
            Wanted::L3 => "l3",
            Wanted::L2 => "l2",
        };
        let mut out = format!(
            "\n[[network]]\nname = {}\nkind = \"{word}\"\nvni = {vni:<36} # free here; the same on all nodes\n",
            quoted(&self.network)
        );
        out += &self.mtu_lines();
        let device = quoted(&format!("vxlan{vni}"));
        let _ = writeln!(out, "# device = {device}");
        out += NETWORK;
        if *kind == Wanted::L3 {
            out += ROUTED;
        } else {
            out += &self.bridge_line();
            let addresses = if self.subnets.is_empty() { "[]".to_owned() } else { list(&self.subnets) };
            let _ = writeln!(
                out,
                "# address = {addresses} # example, free here: this host on the segment; without it none"
            );
            out += SEGMENT;
        }
        out
    }

    /// The default, unless that is too long.
    fn bridge_line(&self) -> String {
        let usual = format!("br-{}", self.network);
        let short: String = usual.chars().take(LONGEST_DEVICE).collect();
        match short == usual {
            true => format!("# bridge = {}\n", quoted(&usual)),
            false => format!("bridge = {:<33} # '{usual}' is too long\n", quoted(&short)),
        }
    }

    /// What the tunnel leaves of the underlay's MTU.
    fn mtu_lines(&self) -> String {
        let (Mtu(underlay), Mtu(inner)) = (self.underlay.mtu, self.inner_mtu);
        let overhead = underlay.saturating_sub(inner);
        let version = if self.vtep.is_ipv6() { "IPv6" } else { "IPv4" };
        let mut out = format!(
            "# The tunnel takes {overhead} bytes over {version}: containers and machines must not send more than \
             {inner}.\n"
        );
        if self.inner_mtu < IPV6_NEEDS {
            let _ = writeln!(out, "# IPv6 needs {IPV6_NEEDS} and does not run inside.");
        }
        out + "# mtu = \"auto\"\n"
    }

    /// The list of nodes, so far with this one alone.
    pub(crate) fn nodes(&self) -> String {
        let other = self.underlay.addresses.iter().find(|a| family(a.ip) != family(self.vtep));
        let mut out =
            "# The nodes of the overlay: the same file on every node. A running agent notices changes.\n\
                       # Add a [[node]] for each other node: `vxlan-agent init` proposes it there.\n\n"
                .to_owned();
        if let Some(other) = other {
            let _ = writeln!(
                out,
                "# The tunnel can run over the other IP version, for all nodes alike: {}",
                other.ip
            );
        }
        out + &self.entry()
    }

    /// This node's entry there.
    pub(crate) fn entry(&self) -> String {
        let (name, vtep) = (quoted(&self.node), quoted(&self.vtep.to_string()));
        let mut out = format!("[[node]]\nname = {name}\nvtep = {vtep}\n");
        match (self.kind, self.subnets.as_slice()) {
            (Wanted::L2, _) => {}
            (Wanted::L3, []) => {
                out += "# subnets = [\"…\"]    # every private network is in use here: choose\n"
            }
            (Wanted::L3, subnets) => {
                let _ = writeln!(out, "subnets = {}", list(subnets));
            }
        }
        out
    }

    /// The networks that the proposed subnets are parts of.
    fn blocks(&self) -> Vec<IpNetwork> {
        let around = |subnet: &IpNetwork| {
            let length = if subnet.is_ipv6() { 32 } else { 16 };
            let wide = IpNetwork::new(subnet.ip(), length).ok()?;
            IpNetwork::new(wide.network(), length).ok()
        };
        self.subnets.iter().filter_map(around).collect()
    }
}

/// As TOML has it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn list(prefixes: &[IpNetwork]) -> String {
    let all = prefixes.iter().map(|prefix| quoted(&prefix.to_string()));
    format!("[{}]", all.collect::<Vec<_>>().join(", "))
}

fn commented(text: &str) -> String {
    text.lines().map(|line| format!("#   {line}\n")).collect()
}
