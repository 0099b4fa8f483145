//! Which packets an operator asks for.

use std::net::IpAddr;

use anyhow::{Context as _, Result, bail, ensure};
use clap::builder::PossibleValuesParser;
use clap::{Args, value_parser};
use ipnetwork::IpNetwork;
use vxlan_ebpf_common::headers::Be16;
use vxlan_ebpf_common::listen::Filter;
use vxlan_ebpf_common::maps::{Addr, NetworkId};
use vxlan_ebpf_common::{Hook, Reason};

use super::fate::is_refusal;
use crate::net::Mac;
use crate::status::Status;

/// The options that `monitor` and `capture` share.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Which {
    /// Only packets from or to this inner address, or these.
    #[arg(long, value_name = "ADDRESS[/LENGTH]")]
    pub(crate) address: Option<IpNetwork>,
    /// Only packets from or to this inner port.
    #[arg(long, value_parser = value_parser!(u16).range(1..))]
    pub(crate) port: Option<u16>,
    /// Only packets of this inner protocol: tcp, udp, icmp, icmpv6, sctp, or a number.
    #[arg(long, value_parser = protocol)]
    pub(crate) protocol: Option<u8>,
    /// Only packets of this VNI.
    #[arg(long, value_parser = value_parser!(u32).range(..1 << 24))]
    pub(crate) vni: Option<u32>,
    /// Only frames from or to this inner Ethernet address.
    #[arg(long)]
    pub(crate) mac: Option<Mac>,
    /// Only packets from or to this node, by its name or the address of its VTEP.
    #[arg(long, value_name = "NAME|ADDRESS")]
    pub(crate) node: Option<String>,
    /// Only packets at this hook; may be given several times.
    #[arg(long, value_parser = PossibleValuesParser::new(Hook::ALL.map(Hook::label)))]
    pub(crate) hook: Vec<String>,
    /// Only packets with this reason, as `dump counters` has them; may be given several times.
    #[arg(long, value_parser = PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.label())), hide_possible_values = true)]
    pub(crate) reason: Vec<String>,
    /// Only what is dropped, and what is refused as malformed or forged but left to the kernel.
    #[arg(long, conflicts_with = "reason")]
    pub(crate) drops: bool,
    /// End after so many packets.
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N")]
    pub(crate) seconds: Option<f64>,
    /// One packet in so many, picked at random.
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u32).range(1..))]
    pub(crate) sample: u32,
}

impl Which {
    /// What the programs compare packets with. Node names are those that `status` knows.
    ///
    /// # Errors
    /// There is no such node.
    pub(crate) fn filter(&self, network: Option<NetworkId>, status: Option<&Status>) -> Result<Filter> {
        let mut filter = Filter::default();
        if let Some(address) = self.address {
            (filter.address, filter.mask) = masked(address);
        }
        if let Some(name) = &self.node {
            filter.vteps = vteps(name, status)?;
        }
        let hooks = Hook::ALL.into_iter().filter(|hook| self.hook.iter().any(|name| name == hook.label()));
        if !self.hook.is_empty() {
            filter.hooks = hooks.map(Filter::hook).sum();
        }
        let is_asked_for = |reason: &&Reason| match self.drops {
            true => is_refusal(**reason),
            false => self.reason.iter().any(|name| name == reason.label()),
        };
        if self.drops || !self.reason.is_empty() {
            filter.reasons =
                Reason::ALL.iter().filter(is_asked_for).map(|reason| Filter::reason(*reason)).sum();
        }
        filter.network = network.unwrap_or(filter.network);
        filter.vni = self.vni.unwrap_or(filter.vni);
        filter.mac = self.mac.map_or(filter.mac, |mac| mac.0);
        filter.port = self.port.map_or(filter.port, Be16::new);
        filter.protocol = self.protocol.unwrap_or(filter.protocol);
        Ok(filter)
    }
}

/// Address and mask of a prefix, as the tables have addresses.
fn masked(prefix: IpNetwork) -> (Addr, Addr) {
    const IPV4_BITS: u8 = 96;
    let bits = if prefix.is_ipv4() { IPV4_BITS + prefix.prefix() } else { prefix.prefix() };
    let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
    (prefix.ip().into(), Addr(mask.to_be_bytes()))
}

/// The VTEPs of a node.
fn vteps(name: &str, status: Option<&Status>) -> Result<[Addr; 2]> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok([Addr::from(address); 2]);
    }
    let status = status.context(format!(
        "no agent has said which nodes there are, so '{name}' cannot be looked up: give the address of its VTEP"
    ))?;
    let nodes = || status.networks.iter().flat_map(|network| &network.nodes);
    let mut found: Vec<Addr> =
        nodes().filter(|node| node.name == name).map(|node| Addr::from(node.vtep)).collect();
    found.sort();
    found.dedup();
    match found.as_slice() {
        [one] => Ok([*one; 2]),
        [one, other] => Ok([*one, *other]),
        [] => {
            let mut known: Vec<&str> = nodes().map(|node| node.name.as_str()).collect();
            known.sort_unstable();
            known.dedup();
            ensure!(!known.is_empty(), "there is no other node, so none of the name '{name}'");
            bail!("there is no node '{name}': there are {}", known.join(", "))
        }
        _ => bail!("node '{name}' has more than two VTEPs: give the address of one"),
    }
}

fn protocol(text: &str) -> Result<u8, String> {
    match text {
        "icmp" => Ok(1),
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmpv6" => Ok(58),
        "sctp" => Ok(132),
        number => match number.parse() {
            Ok(0) | Err(_) => Err("tcp, udp, icmp, icmpv6, sctp, or a number from 1 to 255".to_owned()),
            Ok(number) => Ok(number),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_asked_for_is_any() {
        assert_eq!(Which::default().filter(None, None).expect("a filter"), Filter::default());
    }

    #[test]
    fn a_prefix_covers_addresses_of_its_version_only() {
        let (address, mask) = masked("10.244.0.0/16".parse().expect("a prefix"));
        assert_eq!(IpAddr::from(address), "10.244.0.0".parse::<IpAddr>().expect("an address"));
        assert_eq!(mask.0, [&[0xff; 14][..], &[0, 0]].concat()[..]);
        assert_eq!(
            masked("0.0.0.0/0".parse().expect("a prefix")).1.0,
            [&[0xff; 12][..], &[0; 4]].concat()[..]
        );
        assert_eq!(masked("::/0".parse().expect("a prefix")).1.0, [0; 16]);
    }

    #[test]
    fn hooks_and_reasons_are_sets() {
        let which = Which {
            hook: vec!["pod_egress".into(), "underlay_xdp".into()],
            reason: vec!["encapsulated".into(), "unverified".into()],
            ..Which::default()
        };
        let filter = which.filter(None, None).expect("a filter");
        assert_eq!(filter.hooks, Filter::hook(Hook::PodEgress) | Filter::hook(Hook::UnderlayXdp));
        assert_eq!(filter.reasons, Filter::reason(Reason::Encapsulated) | Filter::reason(Reason::Unverified));
        let drops = Which { drops: true, ..Which::default() }.filter(None, None).expect("a filter");
        assert_ne!(drops.reasons & Filter::reason(Reason::PodSpoofed), 0);
        assert_eq!(drops.reasons & Filter::reason(Reason::Encapsulated), 0);
    }

    #[test]
    fn a_node_is_found_by_its_address_without_an_agent() {
        let which = Which { node: Some("192.0.2.2".into()), ..Which::default() };
        let address = Addr::from("192.0.2.2".parse::<IpAddr>().expect("an address"));
        assert_eq!(which.filter(None, None).expect("a filter").vteps, [address; 2]);
        let which = Which { node: Some("n2".into()), ..Which::default() };
        let refused = which.filter(None, None).expect_err("nobody knows").to_string();
        assert!(refused.contains("give the address"), "{refused}");
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!((protocol("tcp"), protocol("47")), (Ok(6), Ok(47)));
        assert!(protocol("0").is_err() && protocol("256").is_err() && protocol("http").is_err());
    }
}
