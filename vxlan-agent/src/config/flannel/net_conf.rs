//! `net-conf.json`, the part of flannel's configuration that all nodes share. Keys are matched
//! without case, as Go does.

use ipnetwork::IpNetwork;
use serde_json::{Map, Value};

use crate::config::DEFAULT_PORT;
use crate::net::{Mtu, Vni};
use crate::text::Text;

/// What matters of `net-conf.json` where subnets come from Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NetConf {
    network: Option<IpNetwork>,
    ipv6_network: Option<IpNetwork>,
    pub(crate) ipv4: bool,
    pub(crate) ipv6: bool,
    pub(crate) vni: Vni,
    pub(crate) port: u16,
    pub(crate) mtu: Option<Mtu>,
    /// Whether nodes on the same link are reached without a tunnel.
    pub(crate) direct_routing: bool,
    /// What is asked for and not done, one sentence each.
    pub(crate) undone: Vec<String>,
}

impl NetConf {
    /// Reads the file.
    pub(crate) fn parse(text: &Text) -> Result<Self, String> {
        let refuse = |reason: String| text.refuse(None, reason).to_string();
        let json: Value =
            serde_json::from_str(text.content()).map_err(|e| refuse(format!("no JSON: {e}")))?;
        let top = Fields::of(&json, "the file").map_err(refuse)?;
        Self::read(&top).map_err(refuse)
    }

    fn read(top: &Fields<'_>) -> Result<Self, String> {
        let empty = Value::Object(Map::new());
        let backend = Fields::of(top.get("Backend").unwrap_or(&empty), "Backend")?;
        match backend.text("Type")? {
            Some("vxlan") => {}
            other => {
                let kind = other.unwrap_or("udp");
                return Err(format!("Backend.Type is '{kind}': only 'vxlan' is done here"));
            }
        }
        if backend.truth("GBP")?.unwrap_or(false) {
            return Err("Backend.GBP is not done here: remove it".to_owned());
        }
        let learning = backend.truth("Learning")?.unwrap_or(false);
        let learns =
            learning.then(|| "Backend.Learning: the device does not learn: every node is known".to_owned());
        let conf = Self {
            network: top.network("Network")?,
            ipv6_network: top.network("IPv6Network")?,
            ipv4: top.truth("EnableIPv4")?.unwrap_or(true),
            ipv6: top.truth("EnableIPv6")?.unwrap_or(false),
            vni: Vni::try_from(backend.number("VNI")?.unwrap_or(1)).map_err(|e| format!("Backend.{e}"))?,
            port: match backend.number("Port")?.unwrap_or(0) {
                0 => DEFAULT_PORT,
                port => u16::try_from(port).map_err(|_| format!("Backend.Port {port} is no UDP port"))?,
            },
            mtu: mtu(backend.number("MTU")?.unwrap_or(0))?,
            direct_routing: backend.truth("DirectRouting")?.unwrap_or(false),
            undone: learns.into_iter().collect(),
        };
        conf.check()
    }

    fn check(self) -> Result<Self, String> {
        if !(self.ipv4 || self.ipv6) {
            return Err("both EnableIPv4 and EnableIPv6 are false".to_owned());
        }
        let cases = [
            (self.ipv4, "Network", self.network, true),
            (self.ipv6, "IPv6Network", self.ipv6_network, false),
        ];
        for (enabled, key, network, v4) in cases {
            match network {
                None if enabled => return Err(format!("{key} is missing")),
                Some(network) if network.is_ipv4() != v4 => {
                    return Err(format!("{key} {network} is of the other IP version"));
                }
                _ => {}
            }
        }
        Ok(self)
    }

    /// Networks that pods are in, of the IP versions that are on.
    pub(crate) fn networks(&self) -> Vec<IpNetwork> {
        let v4 = self.network.filter(|_| self.ipv4);
        let v6 = self.ipv6_network.filter(|_| self.ipv6);
        v4.into_iter().chain(v6).collect()
    }
}

fn mtu(bytes: u32) -> Result<Option<Mtu>, String> {
    match bytes {
        0 => Ok(None),
        68..=65_485 => Ok(Some(Mtu(bytes))),
        _ => Err(format!("Backend.MTU {bytes} is not between 68 and 65485")),
    }
}

/// Fields of a JSON object.
pub(crate) struct Fields<'j> {
    fields: &'j Map<String, Value>,
}

impl<'j> Fields<'j> {
    pub(crate) fn of(value: &'j Value, what: &str) -> Result<Self, String> {
        let fields = value.as_object().ok_or_else(|| format!("{what} is no JSON object"))?;
        Ok(Self { fields })
    }

    /// The field called so without regard to case; `null` counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'j Value> {
        let found = self.fields.iter().find(|(name, _)| name.eq_ignore_ascii_case(key));
        found.map(|(_, value)| value).filter(|value| !value.is_null())
    }

    fn typed<T>(
        &self,
        key: &str,
        kind: &str,
        read: impl Fn(&'j Value) -> Option<T>,
    ) -> Result<Option<T>, String> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| format!("{key} is {value}, which is no {kind}"))
    }

    pub(crate) fn text(&self, key: &str) -> Result<Option<&'j str>, String> {
        self.typed(key, "text", Value::as_str)
    }

    fn truth(&self, key: &str) -> Result<Option<bool>, String> {
        self.typed(key, "truth value", Value::as_bool)
    }

    pub(crate) fn number(&self, key: &str) -> Result<Option<u32>, String> {
        self.typed(key, "number", |value| value.as_u64().and_then(|n| u32::try_from(n).ok()))
    }

    fn network(&self, key: &str) -> Result<Option<IpNetwork>, String> {
        let read = |value: &Value| value.as_str().and_then(|text| text.parse::<IpNetwork>().ok());
        let network = self.typed(key, "network", read)?;
        Ok(network.and_then(|network| IpNetwork::new(network.network(), network.prefix()).ok()))
    }
}
