//! Flannel's layout in etcd, both ways: pure.
//!
//! | key below the prefix | value |
//! |---|---|
//! | `config` | `net-conf.json` |
//! | `subnets/10.244.1.0-24` | a node's [`Attributes`] |
//! | `subnets/10.244.1.0-24&fd00:244:1::-64` | of a node with subnets of both IP versions |

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde_json::Value;
use vxlan_ebpf_common::maps::Family;

use crate::config::flannel::net_conf::Fields;
use crate::net::Vni;
use crate::source::kubernetes::annotations::{BackendData, VXLAN};
use crate::source::kubernetes::node::{Peer, Side};

/// Pod subnets of a node; written as the last part of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Subnets {
    /// Over IPv4: the layout has no key without one.
    pub v4: IpNetwork,
    /// Over IPv6.
    pub v6: Option<IpNetwork>,
}

impl Subnets {
    /// Whether any address is in both.
    pub(super) fn overlap(&self, other: &Self) -> bool {
        let both = |a: IpNetwork, b: IpNetwork| a.contains(b.network()) || b.contains(a.network());
        let v6 = self.v6.zip(other.v6).is_some_and(|(a, b)| both(a, b));
        both(self.v4, other.v4) || v6
    }

    /// Over this IP version.
    pub(super) const fn get(&self, family: Family) -> Option<IpNetwork> {
        match family {
            Family::V4 => Some(self.v4),
            Family::V6 => self.v6,
        }
    }
}

impl fmt::Display for Subnets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.v4.network(), self.v4.prefix())?;
        self.v6.map_or(Ok(()), |v6| write!(f, "&{}-{}", v6.network(), v6.prefix()))
    }
}

impl FromStr for Subnets {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let (v4, v6) = name.split_once('&').map_or((name, None), |(v4, v6)| (v4, Some(v6)));
        let read = || {
            let v4 = subnet(v4).filter(IpNetwork::is_ipv4)?;
            let v6 = match v6 {
                Some(v6) => Some(subnet(v6).filter(IpNetwork::is_ipv6)?),
                None => None,
            };
            Some(Self { v4, v6 })
        };
        read().ok_or_else(|| format!("{name:?} names no subnet"))
    }
}

/// `10.244.1.0-24`, or an address in that subnet instead of its first.
fn subnet(text: &str) -> Option<IpNetwork> {
    let (ip, prefix) = text.rsplit_once('-')?;
    whole(IpNetwork::new(ip.parse().ok()?, prefix.parse().ok()?).ok()?)
}

/// `network` without host bits.
pub(super) fn whole(network: IpNetwork) -> Option<IpNetwork> {
    IpNetwork::new(network.network(), network.prefix()).ok()
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    /// Underlay address that others send to.
    pub public_ip: Option<Ipv4Addr>,
    /// The same over IPv6.
    pub public_ipv6: Option<Ipv6Addr>,
    /// Which of flannel's backends it runs.
    pub backend: String,
    /// Its VTEP over IPv4.
    pub v4: Option<BackendData>,
    /// Its VTEP over IPv6.
    pub v6: Option<BackendData>,
}

impl Attributes {
    /// Reads a value: keys in any order and case, as Go does. What other backends say of
    /// themselves is not looked at.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let json: Value = serde_json::from_str(text).map_err(|_| format!("{text:?} is not JSON"))?;
        let fields = Fields::of(&json, "the value")?;
        let backend = fields.text("BackendType")?.unwrap_or_default().to_owned();
        let data = |key| match fields.get(key) {
            Some(data) if backend == VXLAN => BackendData::parse(&data.to_string()),
            _ => Ok(None),
        };
        Ok(Self {
            public_ip: address(&fields, "PublicIP")?,
            public_ipv6: address(&fields, "PublicIPv6")?,
            v4: data("BackendData")?,
            v6: data("BackendV6Data")?,
            backend,
        })
    }

    /// Over this IP version: address and VTEP.
    fn side(&self, family: Family) -> Option<(IpAddr, BackendData)> {
        match family {
            Family::V4 => Some((self.public_ip?.into(), self.v4?)),
            Family::V6 => Some((self.public_ipv6?.into(), self.v6?)),
        }
    }
}

impl fmt::Display for Attributes {
    /// As flannel writes it: an absent IPv6 address is `null`, an absent VTEP is not there.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |ip: Option<IpAddr>| ip.map_or_else(|| "null".to_owned(), |ip| format!("\"{ip}\""));
        let (v4, v6) = (self.public_ip.map(IpAddr::from), self.public_ipv6.map(IpAddr::from));
        let backend = Value::from(self.backend.as_str());
        write!(f, "{{\"PublicIP\":{},\"PublicIPv6\":{},\"BackendType\":{backend}", quoted(v4), quoted(v6))?;
        for (key, data) in [("BackendData", self.v4), ("BackendV6Data", self.v6)] {
            if let Some(data) = data {
                write!(f, ",\"{key}\":{data}")?;
            }
        }
        write!(f, "}}")
    }
}

fn address<T: FromStr>(fields: &Fields<'_>, key: &str) -> Result<Option<T>, String> {
    let Some(text) = fields.text(key)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("{key} '{text}' is no address of its IP version"))
}

/// A key below `subnets/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What the key says.
    pub subnets: Subnets,
    /// What the value says, or why it cannot be read.
    pub attributes: Result<Attributes, String>,
    /// The lease that it ends with; 0 for one that an operator has made to stay.
    pub lease: i64,
    /// Revision that created it.
    pub created: i64,
    /// Revision that changed it last.
    pub changed: i64,
}

/// All keys below `subnets/` that name subnets, by that name.
pub(super) type Entries = BTreeMap<String, Entry>;

impl Entry {
    /// The VTEPs that it stands for in the network `vni`.
    pub(super) fn peer(&self, vni: Vni) -> Peer {
        // Revisions in as many digits as there can be, so that later is greater.
        let mut peer =
            Peer { created: format!("{:020}", self.created), is_credible: true, ..Peer::default() };
        match &self.attributes {
            Err(reason) => peer.trouble = Some(reason.clone()),
            Ok(attributes) if attributes.backend != VXLAN => {
                peer.trouble = Some(format!("runs the backend '{}', not vxlan", attributes.backend));
            }
            Ok(attributes) => {
                for (family, side) in [(Family::V4, &mut peer.v4), (Family::V6, &mut peer.v6)] {
                    let Some((vtep, data)) = attributes.side(family) else { continue };
                    let Some(subnet) = self.subnets.get(family) else { continue };
                    match data.vni.filter(|other| *other != vni) {
                        Some(other) => {
                            peer.trouble = Some(format!("has VNI {other}, this network's is {vni}"));
                        }
                        None => *side = Some(Side { vtep, mac: data.mac, subnet }),
                    }
                }
            }
        }
        peer
    }
}

/// The subnets of a subnet file, where flannel's CNI plugin looks for them: the node's before this
/// start, unless it is broken.
pub(super) fn subnet_file(content: &str) -> Option<Subnets> {
    let fields: BTreeMap<&str, &str> = content.lines().filter_map(|line| line.split_once('=')).collect();
    let subnet = |key: &str| fields.get(key)?.trim().parse().ok().and_then(whole);
    Some(Subnets {
        v4: subnet("FLANNEL_SUBNET").filter(IpNetwork::is_ipv4)?,
        v6: subnet("FLANNEL_IPV6_SUBNET").filter(IpNetwork::is_ipv6),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::Mac;

    pub(in crate::source::etcd) fn attributes(n: u8) -> Attributes {
        let vni = Vni::try_from(1).ok();
        Attributes {
            public_ip: Some([192, 0, 2, n].into()),
            public_ipv6: None,
            backend: VXLAN.to_owned(),
            v4: Some(BackendData { vni, mac: Mac([0x0e, 0x11, 0, 0, 0, n]) }),
            v6: None,
        }
    }

    /// An entry of node `n`, created and changed in that order.
    pub(in crate::source::etcd) fn entry(name: &str, n: u8) -> (String, Entry) {
        let entry = Entry {
            subnets: name.parse().expect("subnets"),
            attributes: Ok(attributes(n)),
            lease: 100 + i64::from(n),
            created: i64::from(n),
            changed: 50 + i64::from(n),
        };
        (name.to_owned(), entry)
    }

    const PLAIN: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"0e:11:00:00:00:01"}}"#;

    #[test]
    fn values_are_written_as_flannel_writes_them_and_read_again() {
        assert_eq!(attributes(1).to_string(), PLAIN);
        let dual = Attributes {
            public_ipv6: "2001:db8::1".parse().ok(),
            v6: Some(BackendData { vni: None, mac: Mac([0x0e, 0x16, 0, 0, 0, 1]) }),
            ..attributes(1)
        };
        assert!(dual.to_string().contains(r#""PublicIPv6":"2001:db8::1""#));
        assert!(dual.to_string().ends_with(r#""BackendV6Data":{"VNI":0,"VtepMAC":"0e:16:00:00:00:01"}}"#));
        for attributes in [attributes(1), dual] {
            assert_eq!(Attributes::parse(&attributes.to_string()), Ok(attributes));
        }
    }

    #[test]
    fn values_are_read_in_any_case_and_of_other_backends_only_their_name() {
        let read = Attributes::parse(
            r#"{"backenddata":{"vtepmac":"0e:11:00:00:00:01"},"BACKENDTYPE":"vxlan","publicip":"192.0.2.1"}"#,
        )
        .expect("valid");
        assert_eq!((read.public_ip, read.v4.map(|data| data.vni)), (attributes(1).public_ip, Some(None)));
        let other = r#"{"PublicIP":"192.0.2.1","BackendType":"wireguard","BackendData":{"PublicKey":"k"}}"#;
        assert_eq!(Attributes::parse(other).expect("valid").backend, "wireguard");
        for bad in ["", "[]", r#"{"PublicIP":"::1"}"#, r#"{"BackendType":"vxlan","BackendData":{}}"#] {
            assert!(Attributes::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn keys_are_subnets_of_one_or_both_ip_versions() {
        for name in ["10.244.1.0-24", "10.244.1.0-24&fd00:244:1::-64"] {
            assert_eq!(name.parse::<Subnets>().map(|subnets| subnets.to_string()).as_deref(), Ok(name));
        }
        assert_eq!("10.244.1.7-24".parse::<Subnets>().map(|s| s.to_string()).as_deref(), Ok("10.244.1.0-24"));
        for bad in ["", "config", "10.244.1.0", "10.244.1.0-33", "fd00::-64", "10.1.0.0-24&10.2.0.0-24"] {
            assert!(bad.parse::<Subnets>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_entry_that_cannot_be_used_says_why() {
        let vni = |vni| Vni::try_from(vni).expect("in range");
        let (_, good) = entry("10.244.2.0-24", 2);
        assert!(good.peer(vni(1)).v4.is_some_and(|side| side.vtep == IpAddr::from([192, 0, 2, 2])));
        let trouble = |entry: &Entry, n| {
            let peer = entry.peer(vni(n));
            assert_eq!((&peer.v4, &peer.v6), (&None, &None));
            peer.trouble.expect("trouble")
        };
        assert!(trouble(&good, 2).contains("VNI 1"));
        let other = Attributes { backend: "host-gw".into(), ..attributes(2) };
        assert!(trouble(&Entry { attributes: Ok(other), ..good.clone() }, 1).contains("'host-gw'"));
        assert_eq!(trouble(&Entry { attributes: Err("bad".into()), ..good }, 1), "bad");
    }

    #[test]
    fn the_subnet_file_has_the_gateway_s_address() {
        let file = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.7.1/24\n\
                    FLANNEL_IPV6_SUBNET=fd00:244:7::1/64\nFLANNEL_MTU=1450\n";
        let read = subnet_file(file).map(|subnets| subnets.to_string());
        assert_eq!(read.as_deref(), Some("10.244.7.0-24&fd00:244:7::-64"));
        assert_eq!(subnet_file("FLANNEL_SUBNET=\n"), None);
        assert_eq!(subnet_file(""), None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_in_one_line(text in "\\PC*|[ -~\n\t]*") {
            for refused in [Attributes::parse(&text).err(), text.parse::<Subnets>().err()].into_iter().flatten() {
                prop_assert!(!refused.is_empty() && !refused.contains('\n'), "{refused:?}");
            }
        }
    }
}
