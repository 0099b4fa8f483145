//! The agent's own configuration: one TOML file per node, most of it optional.

mod etcd;
pub mod flannel;
mod pods;
mod state;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};
use toml::Spanned;
use vxlan_ebpf_common::maps::DEFAULT_FLOWS;

use crate::net::{Mtu, Vni};
use crate::ownership;
use crate::text::{Refused, Text};

pub use etcd::EtcdConfig;
pub use pods::{Cni, DEFAULT_CNI_FILE, DEFAULT_SUBNET_FILE, PodsConfig};
pub use state::{KubernetesConfig, StateConfig};
use state::{StateSection, flannel_device};

/// Flannel's UDP port, so that a cluster can have nodes of both; the kernel's historical default.
/// IANA's number for VXLAN, 4789, is a matter of one line in the configuration.
pub const DEFAULT_PORT: u16 = 8472;

/// How many flows a table may hold: the kernel keeps some of its places back for every CPU, and an
/// entry takes about 250 bytes.
pub const FLOWS: RangeInclusive<u32> = 256..=16_777_216;

/// Where the configuration lies unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/vxlan-agent/config.toml";

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// This node.
    pub node: NodeConfig,
    /// The network that this node takes part in.
    pub network: NetworkConfig,
    /// What pods need of this node besides the overlay.
    pub pods: PodsConfig,
    /// Where cluster state comes from.
    pub state: StateConfig,
}

/// What one network sees of the configuration.
pub type View = Config;

/// What is particular to this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of the own entry in the cluster state.
    pub name: String,
    /// Name of the underlay interface; detected from the own VTEP address otherwise.
    pub underlay: Option<String>,
    /// Underlay address to send from, where it differs from the one that others send to (NAT).
    pub address: Option<IpAddr>,
    /// Directory on a BPF file system.
    pub pin_dir: PathBuf,
    /// Status file and lock.
    pub run_dir: PathBuf,
    /// How programs are attached.
    pub attach: Attach,
    /// Whether packets are taken out of the tunnel before the stack sees them.
    pub xdp: Xdp,
    /// Where to answer health checks.
    pub healthz: Option<SocketAddr>,
}

/// Whether packets are taken out of the tunnel before the stack sees them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// With the drivers that are known to gain from it.
    #[default]
    Auto,
    /// With any driver that has XDP of its own.
    Native,
    /// Never.
    Off,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// With TCX where the kernel has it, otherwise with clsact.
    #[default]
    Auto,
    /// With clsact, even where the kernel has TCX.
    Clsact,
}

/// One overlay network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// Its VNI.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// MTU of the vxlan device; `None`: what the underlay leaves.
    pub mtu: Option<Mtu>,
    /// Name of the vxlan device.
    pub device: String,
    /// How much of the fast path runs.
    pub fastpath: Fastpath,
    /// What becomes of packets that fail a source check.
    pub source_check: SourceCheck,
    /// How many flows are kept in verification or verified.
    pub flows: u32,
    /// What becomes of malformed packets from the underlay.
    pub malformed: Guard,
    /// What becomes of packets from the underlay for another VNI.
    pub other_vni: Guard,
    /// Whether conntrack is left out of the tunnel's outer packets.
    pub notrack: bool,
}

/// How much of the fast path runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fastpath {
    /// Nothing is attached.
    Off,
    /// Stateless bypass of the host stack: for hosts without NAT or packet filter between pods.
    Direct,
    /// Bypass of the host stack for flows that it has been seen to pass unchanged.
    #[default]
    Verified,
}

/// What becomes of packets that fail a source check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceCheck {
    /// Counted and dropped.
    #[default]
    Drop,
    /// Counted and left to the kernel.
    Count,
}

/// What becomes of packets from the underlay that this network has no use for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guard {
    /// Counted and left to the kernel, which may have a use for them.
    #[default]
    Kernel,
    /// Counted and dropped.
    Drop,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSections {
    #[serde(default)]
    node: NodeSection,
    #[serde(default)]
    network: Vec<Spanned<NetworkSection>>,
    #[serde(default)]
    pods: pods::PodsSection,
    state: StateSection,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeSection {
    name: Option<Spanned<String>>,
    underlay: Option<String>,
    address: Option<IpAddr>,
    pin_dir: Option<Spanned<PathBuf>>,
    run_dir: Option<PathBuf>,
    #[serde(default)]
    attach: Attach,
    #[serde(default)]
    xdp: Xdp,
    healthz: Option<SocketAddr>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkSection {
    name: Spanned<String>,
    #[serde(default)]
    #[allow(dead_code, reason = "there is one kind so far; reading it refuses the others")]
    kind: Kind,
    vni: Spanned<u32>,
    port: Option<Spanned<u16>>,
    #[serde(default, deserialize_with = "mtu")]
    mtu: Option<Mtu>,
    device: Option<Spanned<String>>,
    #[serde(default)]
    fastpath: Fastpath,
    #[serde(default)]
    source_check: SourceCheck,
    flows: Option<Spanned<u32>>,
    #[serde(default)]
    malformed: Guard,
    #[serde(default)]
    other_vni: Guard,
    #[serde(default)]
    notrack: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    L3,
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, Refused> {
        let base = path.parent().unwrap_or(Path::new("."));
        Self::parse(&Text::read(path)?, base, &hostname)
    }

    /// Checks `text`; a relative state path counts from `base`, `hostname` names a nameless node.
    pub fn parse(text: &Text, base: &Path, hostname: &dyn Fn() -> Option<String>) -> Result<Self, Refused> {
        let sections: FileSections = text.parse()?;
        let like_flannel = sections.state.is_like_flannel();
        let network = match sections.network.as_slice() {
            [one] => check_network(text, one.get_ref(), like_flannel)?,
            [] => return Err(text.refuse(None, "there is no [[network]]: give one with a name and a vni")),
            [_, second, ..] => {
                let reason =
                    "a second [[network]]: an agent serves one network so far, run one agent per network";
                return Err(text.refuse(Some(second.span()), reason));
            }
        };
        let pods = pods::check(text, sections.pods)?;
        if pods.needs_networks() && pods.networks.is_empty() {
            let reason = "[pods] networks is missing: give the networks that all pods of the cluster are in";
            return Err(text.refuse(None, reason));
        }
        let node = check_node(text, sections.node, hostname)?;
        let state = sections.state.check(text, base, network.vni, node.underlay.as_deref())?;
        Ok(Self { node, network, pods, state })
    }

    /// Name of the vxlan device whose underlay address is `vtep`.
    pub fn device_over(&self, vtep: IpAddr) -> &str {
        match self.state.place() {
            Some(place) if vtep.is_ipv6() => place.device6,
            _ => &self.network.device,
        }
    }

    /// What a device without alias must be to be taken over: flannel's, in its place.
    pub fn adopts(&self) -> Option<Vni> {
        self.state.place().map(|_| self.network.vni)
    }

    /// Names and aliases of all vxlan devices that the configuration may lead to.
    pub fn devices(&self) -> Vec<(&str, String)> {
        let network = &self.network;
        let first = (network.device.as_str(), ownership::device_alias(&network.name));
        match self.state.place() {
            Some(place) => vec![first, (place.device6, ownership::device6_alias(&network.name))],
            None => vec![first],
        }
    }

    /// Where the pins lie.
    pub fn pins(&self) -> PathBuf {
        ownership::node_pin_dir(&self.node.pin_dir)
    }
}

fn check_node(
    text: &Text,
    node: NodeSection,
    hostname: &dyn Fn() -> Option<String>,
) -> Result<NodeConfig, Refused> {
    let name = match node.name {
        Some(name) if name.get_ref().is_empty() => {
            return Err(
                text.refuse(Some(name.span()), "the node's name is empty: leave it out for the host name")
            );
        }
        Some(name) if name.get_ref().contains(char::is_control) => {
            return Err(text.refuse(Some(name.span()), "the node's name has control characters in it"));
        }
        Some(name) => name.into_inner(),
        None => hostname()
            .ok_or_else(|| text.refuse(None, "[node] name is missing and this machine has no host name"))?,
    };
    let pin_dir = match node.pin_dir {
        Some(dir) if dir.get_ref().is_relative() => {
            return Err(text.refuse(Some(dir.span()), "pin_dir is not an absolute path"));
        }
        Some(dir) if dir.get_ref().as_os_str().as_encoded_bytes().contains(&b'.') => {
            return Err(text.refuse(Some(dir.span()), "pin_dir has a dot in it, which bpffs refuses"));
        }
        Some(dir) => dir.into_inner(),
        None => PathBuf::from(ownership::DEFAULT_PIN_DIR),
    };
    let run_dir = node.run_dir.unwrap_or_else(|| ownership::default_run_dir(&pin_dir));
    let NodeSection { underlay, address, attach, xdp, healthz, .. } = node;
    Ok(NodeConfig { name, underlay, address, pin_dir, run_dir, attach, xdp, healthz })
}

fn check_network(
    text: &Text,
    section: &NetworkSection,
    like_flannel: bool,
) -> Result<NetworkConfig, Refused> {
    let name = section.name.get_ref().clone();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
        let reason = format!("network name '{name}' is not 1 to 32 letters, digits, '-' or '_'");
        return Err(text.refuse(Some(section.name.span()), reason));
    }
    let vni = Vni::try_from(*section.vni.get_ref()).map_err(|e| text.refuse(Some(section.vni.span()), e))?;
    let port = match &section.port {
        Some(port) if *port.get_ref() == 0 => {
            return Err(text.refuse(Some(port.span()), "port 0 is not a UDP port"));
        }
        Some(port) => *port.get_ref(),
        None => DEFAULT_PORT,
    };
    let device = match &section.device {
        Some(device) => device_name(text, device)?,
        None if like_flannel => flannel_device(vni),
        None => format!("vxlan{vni}"),
    };
    let flows = check_flows(text, section.flows.as_ref())?;
    let NetworkSection { mtu, fastpath, source_check, malformed, other_vni, notrack, .. } = *section;
    Ok(NetworkConfig {
        name,
        vni,
        port,
        mtu,
        device,
        fastpath,
        source_check,
        flows,
        malformed,
        other_vni,
        notrack,
    })
}

fn check_flows(text: &Text, flows: Option<&Spanned<u32>>) -> Result<u32, Refused> {
    match flows {
        Some(flows) if !FLOWS.contains(flows.get_ref()) => {
            let reason = format!("flows is not {} to {}", FLOWS.start(), FLOWS.end());
            Err(text.refuse(Some(flows.span()), reason))
        }
        Some(flows) => Ok(*flows.get_ref()),
        None => Ok(DEFAULT_FLOWS),
    }
}

fn device_name(text: &Text, device: &Spanned<String>) -> Result<String, Refused> {
    if is_device_name(device.get_ref()) {
        return Ok(device.get_ref().clone());
    }
    let reason =
        format!("'{}' is not an interface name: 1 to 15 characters without '/' or blanks", device.get_ref());
    Err(text.refuse(Some(device.span()), reason))
}

/// As the kernel's `dev_valid_name`.
fn is_device_name(name: &str) -> bool {
    let refused = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace();
    !name.is_empty() && name.len() <= 15 && name != "." && name != ".." && !name.contains(refused)
}

/// The name that Kubernetes has for the node, if it says so, or the host name without its domain.
fn hostname() -> Option<String> {
    if let Some(name) = std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty()) {
        return Some(name);
    }
    let full = nix::sys::utsname::uname().ok()?.nodename().to_str()?.to_owned();
    full.split('.').next().filter(|n| !n.is_empty()).map(str::to_owned)
}

fn mtu<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mtu>, D::Error> {
    struct MtuVisitor;
    impl Visitor<'_> for MtuVisitor {
        type Value = Option<Mtu>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("\"auto\" or a number of bytes from 68 to 65485")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if text == "auto" { Ok(None) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
        }

        fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Self::Value, E> {
            match u32::try_from(bytes) {
                Ok(bytes @ 68..=65_485) => Ok(Some(Mtu(bytes))),
                _ => Err(E::invalid_value(de::Unexpected::Signed(bytes), &self)),
            }
        }
    }
    deserializer.deserialize_any(MtuVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &str = "[state]\nsource = \"file\"\npath = \"cluster.toml\"\n";

    fn parse(content: &str) -> Result<Config, Refused> {
        let text = Text::new("/etc/c.toml", format!("{STATE}{content}"));
        Config::parse(&text, Path::new("/etc"), &|| Some("box".into()))
    }

    /// Refused in `line` with a reason that has `word` in it.
    fn refused(content: &str, line: Option<usize>, word: &str) {
        let refusal = parse(content).expect_err(content);
        assert_eq!(refusal.line, line, "{refusal}");
        assert!(refusal.reason.contains(word), "{refusal}");
        assert!(!refusal.reason.contains('\n'), "{refusal}");
    }

    #[test]
    fn everything_that_can_be_detected_may_be_left_out() {
        let config = parse("[[network]]\nname = \"pods\"\nvni = 7\n").expect("minimal");
        assert_eq!(config.node.name, "box");
        assert_eq!(config.node.run_dir, Path::new("/run/vxlan-agent/vxlan-agent"));
        assert_eq!(config.network.device, "vxlan7");
        assert_eq!(config.network.port, 8472);
        assert_eq!(config.network.mtu, None);
        assert_eq!(config.network.fastpath, Fastpath::Verified);
        assert_eq!(config.state, StateConfig::File("/etc/cluster.toml".into()));
        assert_eq!(config.pins(), Path::new("/sys/fs/bpf/vxlan-agent/v5/@node"));
    }

    #[test]
    fn everything_can_be_given() {
        let config = parse(
            "[node]\nname = \"a\"\nunderlay = \"eth1\"\naddress = \"fd00::1\"\npin_dir = \"/sys/fs/bpf/a\"\nrun_dir = \"/run/a\"\nxdp = \"native\"\n\
             [[network]]\nname = \"pods\"\nkind = \"l3\"\nvni = 16777215\nport = 4789\nmtu = 1400\ndevice = \"ov0\"\nfastpath = \"off\"\nsource_check = \"count\"\nflows = 1024\nmalformed = \"drop\"\nother_vni = \"drop\"\nnotrack = true\n",
        )
        .expect("complete");
        assert_eq!(config.node.underlay.as_deref(), Some("eth1"));
        assert_eq!(config.network.mtu, Some(Mtu(1400)));
        assert_eq!(config.network.fastpath, Fastpath::Off);
        assert_eq!(config.network.source_check, SourceCheck::Count);
        assert_eq!((config.node.xdp, config.network.flows), (Xdp::Native, 1024));
        assert_eq!((config.network.malformed, config.network.other_vni), (Guard::Drop, Guard::Drop));
        assert!(config.network.notrack);
    }

    #[test]
    fn the_line_of_what_is_wrong_is_named() {
        refused("[[network]]\nname = \"pods\"\nvni = 16777216\n", Some(6), "out of range");
        refused("[[network]]\nname = \"pods\"\nvni = 0\n", Some(6), "out of range");
        refused("[[network]]\nname = \"pods\"\nvni = -1\n", Some(6), "");
        refused("[[network]]\nname = \"po ds\"\nvni = 1\n", Some(5), "po ds");
        refused("[[network]]\nname = \"pods\"\nvni = 1\nport = 0\n", Some(7), "port 0");
        refused("[[network]]\nname = \"pods\"\nvni = 1\nport = 65536\n", Some(7), "");
        refused("[[network]]\nname = \"pods\"\nvni = 1\nmtu = \"big\"\n", Some(7), "auto");
        refused("[[network]]\nname = \"pods\"\nvni = 1\nmtu = 40\n", Some(7), "68");
        refused("[[network]]\nname = \"pods\"\nvni = 1\nflows = 10\n", Some(7), "256 to 16777216");
        refused("[node]\nxdp = \"generic\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "native");
        refused(
            "[[network]]\nname = \"pods\"\nvni = 1\ndevice = \"a-name-that-is-long\"\n",
            Some(7),
            "interface name",
        );
        refused("[[network]]\nname = \"pods\"\nvni = 1\nfastpath = \"warp\"\n", Some(7), "warp");
        refused("[[network]]\nname = \"pods\"\nvni = 1\nkind = \"l2\"\n", Some(7), "l2");
        refused("[[network]]\nname = \"pods\"\nvni = 1\ncolour = \"red\"\n", Some(7), "colour");
        refused("[node]\nname = \"\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "empty");
        refused(
            "[node]\nname = \"a\\u001b[2J\"\n[[network]]\nname = \"pods\"\nvni = 1\n",
            Some(5),
            "control",
        );
        refused("[[network]]\nname = \"po\\nds\"\nvni = 1\n", Some(5), "po\\nds");
        refused("[node]\npin_dir = \"bpf\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "absolute");
        refused(
            "[node]\npin_dir = \"/sys/fs/bpf/a.b\"\n[[network]]\nname = \"pods\"\nvni = 1\n",
            Some(5),
            "dot",
        );
        refused("[node]\naddress = \"10.0.0\"\n[[network]]\nname = \"pods\"\nvni = 1\n", Some(5), "");
        refused("[[network]\n", Some(4), "");
    }

    #[test]
    fn exactly_one_network_is_served() {
        refused("", None, "no [[network]]");
        let two = "[[network]]\nname = \"a\"\nvni = 1\n[[network]]\nname = \"b\"\nvni = 2\n";
        refused(two, Some(7), "second");
    }

    #[test]
    fn nothing_is_done_for_pods_unless_asked_for() {
        let network = "[[network]]\nname = \"pods\"\nvni = 7\n";
        assert_eq!(parse(network).expect("minimal").pods, PodsConfig::default());
        let all = "[pods]\nnetworks = [\"10.244.0.0/16\", \"fd00:244::/48\"]\nsubnet_file = \"/run/s\"\n\
                   cni = \"bridge\"\ncni_file = \"/etc/c\"\nmasquerade = true\n";
        let pods = parse(&format!("{network}{all}")).expect("complete").pods;
        assert_eq!((pods.networks.len(), pods.cni, pods.masquerade), (2, Cni::Bridge, true));
        let flannel = format!("{network}[pods]\ncni = \"flannel\"\nnetworks = [\"10.244.0.0/16\"]\n");
        let pods = parse(&flannel).expect("flannel's").pods;
        assert_eq!(pods.subnet_file, Some(DEFAULT_SUBNET_FILE.into()), "its plugin reads it");
    }

    #[test]
    fn what_is_wrong_for_pods_is_named() {
        let refused = |lines: &str, line, word| {
            refused(&format!("[[network]]\nname = \"pods\"\nvni = 7\n[pods]\n{lines}"), line, word);
        };
        refused("networks = [\"10.244.1.0/16\"]", Some(8), "host bits");
        refused("networks = [\"0.0.0.0/0\"]", Some(8), "unicast");
        refused("networks = [\"10.1.0.0/16\", \"10.2.0.0/16\"]", Some(8), "second");
        refused("subnet_file = \"s\"", Some(8), "absolute");
        refused("cni_file = \"/\"", Some(8), "absolute");
        refused("cni = \"calico\"", Some(8), "calico");
        refused("masquerade = true", None, "networks is missing");
        refused("cni = \"flannel\"", None, "networks is missing");
    }

    #[test]
    fn an_unknown_source_is_refused() {
        let text = Text::new(
            "c",
            "[state]\nsource = \"oracle\"\npath = \"x\"\n[[network]]\nname = \"a\"\nvni = 1\n",
        );
        let refusal = Config::parse(&text, Path::new("/"), &|| None).expect_err("no such source");
        assert_eq!(refusal.line, Some(2));
    }

    fn kubernetes(section: &str) -> Result<Config, Refused> {
        let text =
            format!("[state]\nsource = \"kubernetes\"\n{section}[[network]]\nname = \"pods\"\nvni = 1\n");
        Config::parse(&Text::new("c", text), Path::new("/etc"), &|| Some("box".into()))
    }

    #[test]
    fn a_kubernetes_cluster_needs_nothing_but_its_name() {
        let config = kubernetes("").expect("minimal");
        assert_eq!(config.network.device, "flannel.1");
        assert_eq!(config.device_over([192, 0, 2, 1].into()), "flannel.1");
        assert_eq!(config.device_over("2001:db8::1".parse().expect("address")), "flannel-v6.1");
        assert_eq!(config.state, StateConfig::Kubernetes(KubernetesConfig::new(config.network.vni)));
    }

    #[test]
    fn a_kubernetes_cluster_can_be_told_everything() {
        let config = kubernetes(
            "kubeconfig = \"k\"\nannotation_prefix = \"a.example\"\ndevice6 = \"six\"\nipv4 = false\nipv6 = true\n\
             public_ip = \"198.51.100.1\"\npublic_ipv6 = \"2001:db8::1\"\nset_condition = false\n",
        );
        let StateConfig::Kubernetes(state) = config.expect("complete").state else {
            panic!("another source")
        };
        assert_eq!(state.kubeconfig.as_deref(), Some(Path::new("/etc/k")));
        assert_eq!((state.names.prefix(), state.device6.as_str()), ("a.example/", "six"));
        assert_eq!(
            (state.ipv4, state.ipv6, state.set_condition, state.public.len()),
            (false, true, false, 2)
        );
    }

    #[test]
    fn keys_of_one_source_are_refused_for_the_other() {
        let refused = |section: &str, word: &str| {
            let refusal = kubernetes(section).expect_err(section);
            assert!(refusal.line == Some(3) && refusal.reason.contains(word), "{refusal}");
        };
        refused("path = \"x\"\n", "source = \"file\"");
        refused("annotation_prefix = \"a/b/c\"\n", "a/b/c");
        refused("public_ip = \"2001:db8::1\"\n", "other IP version");
        refused("device6 = \"a-name-that-is-long\"\n", "interface name");
        let text = Text::new("c", "[state]\nsource = \"file\"\n[[network]]\nname = \"a\"\nvni = 1\n");
        let refusal = Config::parse(&text, Path::new("/"), &|| Some("a".into())).expect_err("no path");
        assert!(refusal.line == Some(2) && refusal.reason.contains("'path'"), "{refusal}");
    }
}
