//! Flannel's own configuration, translated into ours: its flags, its environment, and its
//! `net-conf.json`. So flannel's manifest needs another image and the rights and volumes of ours.

mod etcd;
mod flags;
pub(crate) mod net_conf;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::values::Flows;
use super::{
    DEFAULT_PORT, DEFAULT_SUBNET_FILE, Fastpath, Guard, Kind, KubernetesConfig, NetworkConfig, NodeConfig,
    PodsConfig, SourceCheck, StateConfig, View,
};
use super::{node, state};
use crate::kernel::WantedHeaders;
use crate::local::Choice;
use crate::net::Vni;
use crate::source::kubernetes::annotations::Names;
use crate::text::Text;
use flags::Flags;
use net_conf::NetConf;

/// Where flannel's manifest mounts its configuration.
pub const NET_CONF: &str = "/etc/kube-flannel/net-conf.json";

/// Next to flannel's configuration: what flannel does not have.
const EXTRAS: &str = "vxlan-agent.toml";

/// Name of the network.
const NETWORK: &str = "flannel";

/// Flannel's configuration, translated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flannel {
    /// What the agent runs with.
    pub config: View,
    /// `--version`: only the version is asked for.
    pub only_version: bool,
    /// What is given and not done, one sentence each.
    pub undone: Vec<String>,
}

/// What flannel does not have: `[node]` as in our own configuration, and some keys of `[[network]]`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Extras {
    node: NodeConfig,
    fastpath: Fastpath,
    source_check: SourceCheck,
    flows: Flows,
    malformed: Guard,
    other_vni: Guard,
    notrack: bool,
}

/// What the translation asks of the machine.
pub trait Machine {
    /// The file at `path`; `None` if there is none.
    ///
    /// # Errors
    /// One sentence: it cannot be read.
    fn read(&self, path: &Path) -> Result<Option<Text>, String>;
    /// All environment variables.
    fn environment(&self) -> Vec<(String, String)>;
    /// The host name without its domain.
    fn hostname(&self) -> Option<String>;
}

/// The machine that this runs on.
pub struct ThisMachine;

impl Machine for ThisMachine {
    fn read(&self, path: &Path) -> Result<Option<Text>, String> {
        match path.try_exists() {
            Ok(false) => Ok(None),
            _ => Text::read(path).map(Some).map_err(|refused| refused.to_string()),
        }
    }

    fn environment(&self) -> Vec<(String, String)> {
        std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect()
    }

    fn hostname(&self) -> Option<String> {
        node::hostname()
    }
}

impl Flannel {
    /// What flanneld says of its flags, if `words` ask for that.
    pub fn help(words: &[String]) -> Option<String> {
        flags::ask_for_help(words).then(flags::help)
    }

    /// Translates `words`, what flanneld's command line has after the program's name.
    ///
    /// # Errors
    /// One sentence: what cannot be done.
    pub fn translate(words: impl IntoIterator<Item = String>, machine: &dyn Machine) -> Result<Self, String> {
        let environment = machine.environment();
        let flags = Flags::parse(words, environment.iter().cloned())?;
        let path = Path::new(flags.last("net-config-path").unwrap_or(NET_CONF));
        let missing =
            || format!("there is no {}: mount flannel's ConfigMap, or set --net-config-path", path.display());
        // Without Kubernetes, what is in this file is in etcd.
        let net_conf = match flags.is_on("kube-subnet-mgr", false) {
            true => Some(NetConf::parse(&machine.read(path)?.ok_or_else(missing)?)?),
            false => None,
        };
        let extras = path.with_file_name(EXTRAS);
        let extras = machine.read(&extras)?.unwrap_or_else(|| Text::new(&extras, ""));
        let mut undone = flags.undone.clone();
        undone.extend(net_conf.iter().flat_map(|conf| &conf.undone).cloned());
        Ok(Self {
            config: config(&flags, net_conf.as_ref(), &extras, &environment, machine)?,
            only_version: flags.is_on("version", false),
            undone,
        })
    }
}

fn config(
    flags: &Flags,
    net_conf: Option<&NetConf>,
    text: &Text,
    environment: &[(String, String)],
    machine: &dyn Machine,
) -> Result<View, String> {
    let extras: Extras = text.parse().map_err(|refused| refused.to_string())?;
    let variable = |name: &str| {
        let value = environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        value.filter(|value| !value.is_empty())
    };
    let name = variable("NODE_NAME");
    let pod = variable("POD_NAMESPACE")
        .zip(variable("POD_NAME"))
        .filter(|_| name.is_none() && !extras.node.is_named());
    let node = extras.node.complete(text, &|| name.clone().or_else(|| machine.hostname()));
    let mut node = node.map_err(|refused| refused.to_string())?;
    node.healthz = node.healthz.or(healthz(flags)?);
    // Flannel's, until etcd says otherwise.
    let usual = (Vni::try_from(1)?, DEFAULT_PORT, None);
    let (vni, port, mtu) = net_conf.map_or(usual, |conf| (conf.vni, conf.port, conf.mtu));
    let mut state = match net_conf {
        Some(net_conf) => StateConfig::Kubernetes(kubernetes(flags, net_conf, pod)?),
        None => StateConfig::Etcd(etcd::config(flags, vni)?),
    };
    if let (Some(name), Some(interfaces)) = (node.underlay.take(), state.interfaces_mut()) {
        interfaces.push(Choice::Name(name));
    }
    let network = NetworkConfig {
        name: NETWORK.to_owned(),
        kind: Kind::L3,
        vni,
        port,
        mtu,
        device: state::flannel_device(vni),
        fastpath: extras.fastpath,
        source_check: extras.source_check,
        flows: extras.flows.0,
        malformed: extras.malformed,
        other_vni: extras.other_vni,
        notrack: extras.notrack,
        direct_routing: net_conf.is_some_and(|conf| conf.direct_routing),
        headers: WantedHeaders::default(),
    };
    Ok(View { node: Arc::new(node), network, pods: pods(flags, net_conf)?, state })
}

fn kubernetes(
    flags: &Flags,
    net_conf: &NetConf,
    pod: Option<(String, String)>,
) -> Result<KubernetesConfig, String> {
    let mut state = KubernetesConfig {
        kubeconfig: flags.last("kubeconfig-file").map(PathBuf::from),
        ipv4: net_conf.ipv4,
        ipv6: net_conf.ipv6,
        public: public(flags)?,
        interfaces: interfaces(flags)?,
        set_condition: flags.is_on("set-node-network-unavailable", true),
        pod,
        ..KubernetesConfig::new(net_conf.vni)
    };
    if let Some(prefix) = flags.last("kube-annotation-prefix") {
        state.names = Names::new(prefix)?;
    }
    Ok(state)
}

/// The CNI configuration is the manifest's: an init container of it writes the file.
fn pods(flags: &Flags, net_conf: Option<&NetConf>) -> Result<PodsConfig, String> {
    let subnet_file = PathBuf::from(flags.last("subnet-file").unwrap_or(DEFAULT_SUBNET_FILE));
    if !(subnet_file.is_absolute() && subnet_file.file_name().is_some()) {
        return Err(format!("--subnet-file: {} is not the absolute path of a file", subnet_file.display()));
    }
    Ok(PodsConfig {
        // Without Kubernetes they are in etcd.
        networks: net_conf.map(NetConf::networks).unwrap_or_default(),
        subnet_file: Some(subnet_file),
        masquerade: flags.is_on("ip-masq", false),
        random_ports: !flags.is_on("ip-masq-fully-random-disable", false),
        ..PodsConfig::default()
    })
}

/// Flannel answers nowhere unless it is given a port, and then everywhere.
fn healthz(flags: &Flags) -> Result<Option<SocketAddr>, String> {
    let port = flags.last("healthz-port").unwrap_or("0");
    let port: u16 = port.parse().map_err(|_| format!("--healthz-port: '{port}' is no TCP port"))?;
    let ip = flags.last("healthz-ip").unwrap_or("0.0.0.0");
    let ip: IpAddr = ip.parse().map_err(|_| format!("--healthz-ip: '{ip}' is no address"))?;
    Ok((port != 0).then_some(SocketAddr::new(ip, port)))
}

fn public(flags: &Flags) -> Result<Vec<IpAddr>, String> {
    let mut public = vec![];
    for (name, v4) in [("public-ip", true), ("public-ipv6", false)] {
        let Some(text) = flags.last(name) else { continue };
        match text.parse::<IpAddr>() {
            Ok(ip) if ip.is_ipv4() == v4 => public.push(ip),
            _ => return Err(format!("--{name}: '{text}' is no address of its IP version")),
        }
    }
    Ok(public)
}

/// In flannel's order: names and addresses, then patterns, then what leads somewhere.
fn interfaces(flags: &Flags) -> Result<Vec<Choice>, String> {
    let named = |text: &String| text.parse().map_or_else(|_| Choice::Name(text.clone()), Choice::Address);
    let given = |name| flags.all(name).iter().filter(|text: &&String| !text.is_empty());
    let mut choices: Vec<Choice> = given("iface").map(named).collect();
    for text in given("iface-regex") {
        let pattern =
            regex::Regex::new(text).map_err(|_| format!("--iface-regex: '{text}' is no pattern"))?;
        choices.push(Choice::Pattern(pattern));
    }
    for text in given("iface-can-reach") {
        let ip = text.parse().map_err(|_| format!("--iface-can-reach: '{text}' is no address"))?;
        choices.push(Choice::Reaching(ip));
    }
    Ok(choices)
}

#[cfg(test)]
mod tests;
