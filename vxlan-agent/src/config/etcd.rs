//! `[state] source = "etcd"`.

use std::net::IpAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;

use super::state::{flannel_device, flannel_device6};
use super::{DEFAULT_SUBNET_FILE, NetworkConfig};
use crate::local::Choice;
use crate::net::Vni;
use crate::source::etcd::{Access, DEFAULT_MARGIN, DEFAULT_PREFIX, Network};
use crate::text::{Refused, Text};

/// Minutes between a lease's beginning and its end.
const DAY: u32 = 24 * 60;

/// How to take part in a network in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// How to reach etcd.
    pub access: Access,
    /// Name of the vxlan device over IPv6; the network's `device` is the one over IPv4.
    pub device6: String,
    /// Underlay addresses that others send to, instead of those that the node finds.
    pub public: Vec<IpAddr>,
    /// Which interface leads to the other nodes, in order of preference; that of the default route
    /// if this is empty.
    pub interfaces: Vec<Choice>,
    /// How long before its end the lease of the node's subnet is renewed.
    pub margin: Duration,
    /// May tell which subnet the node had.
    pub subnet_file: PathBuf,
    /// Whether VNI, port and devices' names are etcd's to say, as with flannel's flags. Otherwise
    /// they must be the same there.
    pub follows: bool,
}

impl EtcdConfig {
    /// What flannel does by default in network `vni`.
    pub fn new(vni: Vni, endpoints: Vec<String>) -> Self {
        let prefix = DEFAULT_PREFIX.to_owned();
        Self {
            access: Access { endpoints, prefix, ca_file: None, identity: None, user: None },
            device6: flannel_device6(vni),
            public: vec![],
            interfaces: vec![],
            margin: DEFAULT_MARGIN,
            subnet_file: DEFAULT_SUBNET_FILE.into(),
            follows: false,
        }
    }

    /// A margin as flannel takes it.
    ///
    /// # Errors
    /// One sentence: it is not less than a lease's time.
    pub(super) fn set_margin(&mut self, minutes: u32) -> Result<(), String> {
        if !(1..DAY).contains(&minutes) {
            return Err(format!("{minutes} is not between 1 and {} minutes", DAY - 1));
        }
        self.margin = Duration::from_secs(60 * u64::from(minutes));
        Ok(())
    }

    /// A prefix as flannel takes it: slashes at its end mean nothing.
    ///
    /// # Errors
    /// One sentence: nothing is left.
    pub(super) fn set_prefix(&mut self, prefix: &str) -> Result<(), String> {
        self.access.prefix = prefix.trim_end_matches('/').to_owned();
        if self.access.prefix.is_empty() { Err("the prefix is empty".to_owned()) } else { Ok(()) }
    }

    /// Brings `network` in line with what etcd says of it.
    ///
    /// # Errors
    /// One sentence: what is configured is another network.
    pub fn agree(&mut self, network: &mut NetworkConfig, found: &Network) -> Result<(), String> {
        let conf = &found.conf;
        if self.follows {
            (network.vni, network.port) = (conf.vni, conf.port);
            network.device = flannel_device(conf.vni);
            self.device6 = flannel_device6(conf.vni);
        }
        if (network.vni, network.port) != (conf.vni, conf.port) {
            let (name, prefix) = (&network.name, &self.access.prefix);
            return Err(format!(
                "network '{name}' has VNI {} and port {}, but {prefix}/config in etcd says VNI {} and port {}",
                network.vni, network.port, conf.vni, conf.port
            ));
        }
        network.mtu = network.mtu.or(conf.mtu);
        network.direct_routing |= conf.direct_routing;
        Ok(())
    }
}

/// The keys of `[state]` that only this source has.
pub(super) struct EtcdKeys {
    pub(super) endpoints: Option<Spanned<Vec<String>>>,
    pub(super) prefix: Option<Spanned<String>>,
    pub(super) ca_file: Option<Spanned<PathBuf>>,
    pub(super) cert_file: Option<Spanned<PathBuf>>,
    pub(super) key_file: Option<Spanned<PathBuf>>,
    pub(super) username: Option<Spanned<String>>,
    pub(super) password: Option<Spanned<String>>,
    pub(super) renew_margin: Option<Spanned<u32>>,
    pub(super) subnet_file: Option<Spanned<PathBuf>>,
}

impl EtcdKeys {
    /// Checks the keys; relative paths count from `base`, `source` is where the source is named.
    pub(super) fn check(
        self,
        text: &Text,
        base: &Path,
        vni: Vni,
        source: Range<usize>,
    ) -> Result<EtcdConfig, Refused> {
        let refuse = |reason: &str| text.refuse(Some(source.clone()), reason);
        let endpoints = self.endpoints.ok_or_else(|| refuse("source = \"etcd\" needs 'endpoints'"))?;
        check_endpoints(endpoints.get_ref()).map_err(|reason| text.refuse(Some(endpoints.span()), reason))?;
        let mut config = EtcdConfig::new(vni, endpoints.into_inner());
        if let Some(prefix) = self.prefix {
            let refuse = |reason| text.refuse(Some(prefix.span()), reason);
            config.set_prefix(prefix.get_ref()).map_err(refuse)?;
        }
        if let Some(margin) = self.renew_margin {
            let refuse = |reason| text.refuse(Some(margin.span()), reason);
            config.set_margin(*margin.get_ref()).map_err(refuse)?;
        }
        let file = |path: Option<Spanned<PathBuf>>| path.map(|path| base.join(path.into_inner()));
        config.access.ca_file = file(self.ca_file);
        config.access.identity = pair(file(self.cert_file), file(self.key_file))
            .map_err(|()| refuse("'cert_file' and 'key_file' go together"))?;
        let word = |word: Option<Spanned<String>>| word.map(Spanned::into_inner);
        config.access.user = pair(word(self.username), word(self.password))
            .map_err(|()| refuse("'username' and 'password' go together"))?;
        config.subnet_file = file(self.subnet_file).unwrap_or(config.subnet_file);
        Ok(config)
    }
}

/// Both or neither.
pub(super) fn pair<T>(a: Option<T>, b: Option<T>) -> Result<Option<(T, T)>, ()> {
    match (a, b) {
        (Some(a), Some(b)) => Ok(Some((a, b))),
        (None, None) => Ok(None),
        _ => Err(()),
    }
}

/// That these are URLs.
///
/// # Errors
/// One sentence.
pub(super) fn check_endpoints(endpoints: &[String]) -> Result<(), String> {
    let is_url = |url: &&String| {
        let authority = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
        authority.is_some() && url.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some())
    };
    match endpoints.iter().find(|url| !is_url(url)) {
        Some(other) => Err(format!("endpoint {other:?} is no http:// or https:// URL")),
        None if endpoints.is_empty() => Err("there is no endpoint".to_owned()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, StateConfig, View};
    use super::*;

    fn parse(section: &str) -> Result<View, Refused> {
        let text = format!("[state]\nsource = \"etcd\"\n{section}[[network]]\nname = \"pods\"\nvni = 1\n");
        Config::parse(&Text::new("c", text), Path::new("/etc"), &|| Some("box".into()))
            .map(|config| config.networks.into_iter().next().expect("a network"))
    }

    fn etcd(section: &str) -> EtcdConfig {
        match parse(section).expect("valid").state {
            StateConfig::Etcd(config) => config,
            other => panic!("{other:?}"),
        }
    }

    const ENDPOINTS: &str = "endpoints = [\"http://192.0.2.9:2379\"]\n";

    #[test]
    fn etcd_needs_nothing_but_its_endpoints() {
        let config = parse(ENDPOINTS).expect("minimal");
        assert_eq!(config.device_over([192, 0, 2, 1].into()), "flannel.1");
        assert_eq!(config.device_over("2001:db8::1".parse().expect("address")), "flannel-v6.1");
        let expected = EtcdConfig::new(config.network.vni, vec!["http://192.0.2.9:2379".into()]);
        assert_eq!(config.state, StateConfig::Etcd(expected));
    }

    #[test]
    fn etcd_can_be_told_everything() {
        let config = etcd(
            "endpoints = [\"https://[2001:db8::9]:2379\", \"https://b\"]\nprefix = \"/net/\"\nca_file = \"ca\"\n\
             cert_file = \"/c\"\nkey_file = \"/k\"\nusername = \"u\"\npassword = \"secret\"\nrenew_margin = 5\n\
             subnet_file = \"s\"\ndevice6 = \"six\"\npublic_ip = \"198.51.100.1\"\n",
        );
        assert_eq!((config.access.prefix.as_str(), config.margin.as_secs()), ("/net", 300));
        assert_eq!(config.access.ca_file.as_deref(), Some(Path::new("/etc/ca")));
        assert_eq!(config.access.identity, Some(("/c".into(), "/k".into())));
        assert_eq!(config.subnet_file, Path::new("/etc/s"));
        assert_eq!((config.device6.as_str(), config.public.len()), ("six", 1));
        assert!(!format!("{config:?}").contains("secret"), "a password is not printed");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (section, line, word) in [
            ("", 2, "endpoints"),
            ("endpoints = []\n", 3, "no endpoint"),
            ("endpoints = [\"192.0.2.9:2379\"]\n", 3, "192.0.2.9:2379"),
            ("endpoints = [\"http://a\"]\nprefix = \"/\"\n", 4, "empty"),
            ("endpoints = [\"http://a\"]\nkey_file = \"k\"\n", 2, "cert_file"),
            ("endpoints = [\"http://a\"]\npassword = \"k\"\n", 2, "username"),
            ("endpoints = [\"http://a\"]\nrenew_margin = 1440\n", 4, "1439"),
            ("endpoints = [\"http://a\"]\nkubeconfig = \"k\"\n", 4, "kubernetes"),
        ] {
            let refusal = parse(section).expect_err(section);
            assert!(refusal.line == Some(line) && refusal.reason.contains(word), "{refusal}");
        }
    }
}
