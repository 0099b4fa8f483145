//! From which subnets nodes choose theirs, and choosing: pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::layout::{Subnets, whole};
use crate::config::flannel::net_conf::{Fields, NetConf};
use crate::net::full_length;
use crate::text::Text;

/// How many free subnets a node chooses from at random: enough for nodes that start at the same
/// time to rarely choose the same.
const CHOICES: usize = 100;

/// The network's parameters, and where nodes choose their subnets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Everything else in it.
    pub(crate) conf: NetConf,
    v4: Range,
    v6: Option<Range>,
}

impl Network {
    /// Reads the value of the key `config`.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn parse(text: &Text) -> Result<Self, String> {
        let conf = NetConf::parse(text)?;
        let refuse = |reason: String| text.refuse(None, reason).to_string();
        if !conf.ipv4 {
            return Err(refuse("EnableIPv4 is false: in etcd, nodes are known by their IPv4 subnets".into()));
        }
        let json: Value = serde_json::from_str(text.content()).map_err(|e| refuse(e.to_string()))?;
        let fields = Fields::of(&json, "the value").map_err(refuse)?;
        let range = |network: IpNetwork, [len, min, max]: [&str; 3], usual| {
            Range::read(network, [fields.number(len)?, Some(usual)], fields.text(min)?, fields.text(max)?)
                .map_err(|reason| format!("{reason} ({len}, {min}, {max})"))
        };
        let (mut v4, mut v6) = (None, None);
        for network in conf.networks() {
            if network.is_ipv4() {
                v4 = Some(range(network, ["SubnetLen", "SubnetMin", "SubnetMax"], 24).map_err(refuse)?);
            } else {
                let keys = ["IPv6SubnetLen", "IPv6SubnetMin", "IPv6SubnetMax"];
                v6 = Some(range(network, keys, 64).map_err(refuse)?);
            }
        }
        let v4 = v4.ok_or_else(|| refuse("Network is missing".into()))?;
        Ok(Self { conf, v4, v6 })
    }

    /// Whether the network runs over both IP versions.
    pub(super) const fn is_dual(&self) -> bool {
        self.v6.is_some()
    }

    /// Whether a node may have these subnets.
    pub(super) fn fits(&self, subnets: &Subnets) -> bool {
        let v6 = match (&self.v6, subnets.v6) {
            (Some(range), Some(subnet)) => range.fits(subnet),
            (None, None) => true,
            _ => false,
        };
        v6 && self.v4.fits(subnets.v4)
    }

    /// Subnets that overlap none of `taken`: one of the first that are free, which `random` chooses.
    ///
    /// # Errors
    /// One sentence: all are taken.
    pub(super) fn choose(&self, taken: &[Subnets], random: u64) -> Result<Subnets, String> {
        let v4 = self.v4.choose(taken.iter().map(|t| t.v4), random)?;
        let v6 = match &self.v6 {
            Some(range) => Some(range.choose(taken.iter().filter_map(|t| t.v6), random.rotate_left(32))?),
            None => None,
        };
        Ok(Subnets { v4, v6 })
    }
}

/// Subnets of one length, from the first to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    min: u128,
    max: u128,
    len: u8,
    v4: bool,
}

impl Range {
    /// Flannel's rules: a subnet holds four addresses or more, a network four subnets or more, and
    /// its first is left out because it has the network's own address in it.
    fn read(
        network: IpNetwork,
        len: [Option<u32>; 2],
        min: Option<&str>,
        max: Option<&str>,
    ) -> Result<Self, String> {
        let (full, own) = (full_length(network.network()), network.prefix());
        let [given, usual] = len.map(|len| len.and_then(|len| u8::try_from(len).ok()));
        let len = match given.filter(|len| *len > 0) {
            Some(len) => len,
            None => usual.filter(|usual| own + 2 <= *usual).unwrap_or(own + 2),
        };
        if len < own + 2 || len + 2 > full {
            return Err(format!(
                "{network} cannot be divided into four subnets or more of four addresses or more"
            ));
        }
        let step = 1_u128 << (full - len);
        let first = number(network.network());
        let last = first + ((1_u128 << (len - own)) - 1) * step;
        let v4 = network.is_ipv4();
        let bound = |text: Option<&str>, usual: u128| match text {
            None | Some("" | "0.0.0.0" | "::") => Ok(usual),
            Some(text) => {
                let ip: IpAddr = text.parse().map_err(|_| format!("'{text}' is no address"))?;
                if !network.contains(ip) || !number(ip).is_multiple_of(step) {
                    return Err(format!("{ip} is not the first address of a /{len} in {network}"));
                }
                Ok(number(ip))
            }
        };
        Ok(Self { min: bound(min, first + step)?, max: bound(max, last)?, len, v4 })
    }

    fn step(&self) -> u128 {
        1 << (if self.v4 { 32 } else { 128 } - self.len)
    }

    fn fits(&self, subnet: IpNetwork) -> bool {
        let first = number(subnet.network());
        subnet.is_ipv4() == self.v4 && subnet.prefix() == self.len && (self.min..=self.max).contains(&first)
    }

    fn choose(&self, taken: impl Iterator<Item = IpNetwork>, random: u64) -> Result<IpNetwork, String> {
        let mut taken: Vec<(u128, u128)> =
            taken.map(|t| (number(t.network()), number(t.broadcast()))).collect();
        taken.sort_unstable();
        let (mut free, mut next, mut passed) = (vec![], self.min, taken.iter().peekable());
        while next <= self.max && free.len() < CHOICES {
            let last = next + (self.step() - 1);
            while passed.next_if(|(_, end)| *end < next).is_some() {}
            match passed.peek() {
                // Behind a subnet that is larger, too.
                Some((start, end)) if *start <= last => {
                    next = (end - (end - next) % self.step()).saturating_add(self.step());
                }
                _ => {
                    free.push(next);
                    next = next.saturating_add(self.step());
                }
            }
        }
        let chosen = usize::try_from(random % free.len().max(1) as u64).unwrap_or_default();
        let subnet = free.get(chosen).and_then(|first| IpNetwork::new(self.address(*first), self.len).ok());
        subnet.and_then(whole).ok_or_else(|| {
            let (min, max) = (self.address(self.min), self.address(self.max));
            format!("every /{} from {min} to {max} is taken: make Network larger, or remove keys", self.len)
        })
    }

    fn address(&self, number: u128) -> IpAddr {
        match u32::try_from(number) {
            Ok(number) if self.v4 => Ipv4Addr::from(number).into(),
            _ => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    pub(in crate::source::etcd) fn network(more: &str) -> Result<Network, String> {
        let backend = r#""Backend":{"Type":"vxlan"}"#;
        Network::parse(&Text::new("config", format!(r#"{{"Network":"10.244.0.0/16",{backend}{more}}}"#)))
    }

    fn subnets(name: &str) -> Subnets {
        name.parse().expect("subnets")
    }

    const DUAL: &str = r#","EnableIPv6":true,"IPv6Network":"fd00:244::/48""#;

    #[test]
    fn subnets_are_of_the_length_and_in_the_range_that_the_network_says() {
        let usual = network("").expect("valid");
        assert!(usual.fits(&subnets("10.244.1.0-24")) && usual.fits(&subnets("10.244.255.0-24")));
        for other in ["10.244.0.0-24", "10.244.1.0-25", "10.245.1.0-24", "10.244.1.0-24&fd00:244:0:1::-64"] {
            assert!(!usual.fits(&subnets(other)), "{other}");
        }
        let given = r#","subnetlen":20,"SubnetMin":"10.244.32.0","SubnetMax":"10.244.48.0""#;
        let given = network(given).expect("valid");
        assert!(given.fits(&subnets("10.244.32.0-20")) && given.fits(&subnets("10.244.48.0-20")));
        assert!(!given.fits(&subnets("10.244.16.0-20")) && !given.fits(&subnets("10.244.64.0-20")));
        let dual = network(DUAL).expect("valid");
        assert!(
            dual.fits(&subnets("10.244.1.0-24&fd00:244:0:1::-64")) && !dual.fits(&subnets("10.244.1.0-24"))
        );
    }

    #[test]
    fn a_small_network_is_divided_into_four() {
        let text = r#"{"Network":"10.1.0.0/24","Backend":{"Type":"vxlan"}}"#;
        let small = Network::parse(&Text::new("config", text)).expect("valid");
        let mut taken = vec![];
        while let Ok(chosen) = small.choose(&taken, 0) {
            taken.push(chosen);
        }
        let names: Vec<String> = taken.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["10.1.0.64-26", "10.1.0.128-26", "10.1.0.192-26"]);
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        for (more, word) in [
            (r#","SubnetLen":17"#, "four subnets"),
            (r#","SubnetLen":31"#, "four addresses"),
            (r#","SubnetMin":"10.244.1.1""#, "SubnetMin"),
            (r#","SubnetMax":"10.245.1.0""#, "10.245.1.0"),
            (r#","EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00::/48""#, "EnableIPv4"),
            (r#","EnableIPv6":true,"IPv6Network":"fd00::/126""#, "IPv6SubnetLen"),
        ] {
            let refused = network(more).expect_err(more);
            assert!(refused.contains(word) && !refused.contains('\n'), "{refused}");
        }
    }

    #[test]
    fn what_is_taken_is_not_chosen_whatever_its_length() {
        let dual = network(DUAL).expect("valid");
        let taken =
            [subnets("10.244.0.0-20&fd00:244::-60"), subnets("10.244.16.128-25"), subnets("10.0.0.0-24")];
        let chosen = dual.choose(&taken, 0).expect("free");
        assert_eq!(chosen.to_string(), "10.244.17.0-24&fd00:244:0:10::-64");
        assert!(dual.choose(&[subnets("10.0.0.0-8")], 0).expect_err("taken").contains("10.244.1.0"));
    }

    #[test]
    fn nodes_that_start_at_the_same_time_choose_from_a_hundred() {
        let plain = network("").expect("valid");
        let chosen: BTreeSet<String> =
            (0..1000).map(|random| plain.choose(&[], random).expect("free").to_string()).collect();
        assert_eq!(chosen.len(), CHOICES);
    }

    proptest! {
        #[test]
        fn the_chosen_fits_and_overlaps_nothing(
            taken in prop::collection::vec((any::<u16>(), 16_u8..=30), 0..40), random: u64,
        ) {
            let network = network("").expect("valid");
            let taken: Vec<Subnets> = taken
                .into_iter()
                .filter_map(|(at, len)| format!("10.244.{}.{}-{len}", at >> 8, at & 0xff).parse().ok())
                .collect();
            if let Ok(chosen) = network.choose(&taken, random) {
                prop_assert!(network.fits(&chosen));
                prop_assert!(!taken.iter().any(|taken| taken.overlap(&chosen)), "{chosen} of {taken:?}");
            }
        }
    }
}
