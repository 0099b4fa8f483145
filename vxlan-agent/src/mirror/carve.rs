//! Prefixes without what lies inside of them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// What `prefix` is without those of `others` that lie inside of it and are longer.
pub(super) fn without(prefix: IpNetwork, others: &[IpNetwork]) -> Vec<IpNetwork> {
    let is_inside = |other: &&IpNetwork| other.prefix() > prefix.prefix() && prefix.contains(other.network());
    let inside: Vec<IpNetwork> = others.iter().filter(is_inside).copied().collect();
    rest(prefix, &inside)
}

/// What is left of `prefix`, all of `inside` being inside of it.
fn rest(prefix: IpNetwork, inside: &[IpNetwork]) -> Vec<IpNetwork> {
    match halves(prefix) {
        _ if inside.is_empty() => vec![prefix],
        Some(halves) if !inside.contains(&prefix) => {
            let of = |half: IpNetwork| {
                let inside: Vec<_> =
                    inside.iter().filter(|to| half.contains(to.network())).copied().collect();
                rest(half, &inside)
            };
            halves.into_iter().flat_map(of).collect()
        }
        _ => vec![],
    }
}

/// The two prefixes that `prefix` consists of; a single address of none.
fn halves(prefix: IpNetwork) -> Option<[IpNetwork; 2]> {
    let length = prefix.prefix();
    let upper = match prefix.network() {
        IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from_bits(
            ip.to_bits() | 1_u32.checked_shl(31_u32.checked_sub(length.into())?)?,
        )),
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(
            ip.to_bits() | 1_u128.checked_shl(127_u32.checked_sub(length.into())?)?,
        )),
    };
    let half = |ip| IpNetwork::new(ip, length + 1).ok();
    Some([half(prefix.network())?, half(upper)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prefix: &str, others: &[&str], expected: &[&str]) {
        let parse =
            |all: &[&str]| all.iter().map(|to| to.parse().expect("a prefix")).collect::<Vec<IpNetwork>>();
        let left = without(prefix.parse().expect("a prefix"), &parse(others));
        assert_eq!(left, parse(expected), "{prefix} without {others:?}");
    }

    #[test]
    fn what_lies_inside_of_a_prefix_is_taken_out() {
        check("10.1.0.0/24", &[], &["10.1.0.0/24"]);
        check("10.1.0.0/24", &["10.1.0.128/25"], &["10.1.0.0/25"]);
        check("10.1.0.0/30", &["10.1.0.2/32", "10.1.0.0/32"], &["10.1.0.1/32", "10.1.0.3/32"]);
        check("fd00::/126", &["fd00::3/128"], &["fd00::/127", "fd00::2/128"]);
        check("10.1.0.0/31", &["10.1.0.0/32", "10.1.0.1/32"], &[]);
        check("0.0.0.0/0", &["128.0.0.0/2"], &["0.0.0.0/1", "192.0.0.0/2"]);
    }

    #[test]
    fn what_is_as_long_or_elsewhere_takes_nothing() {
        check("10.1.0.0/24", &["10.1.0.0/24", "10.0.0.0/8", "10.2.0.0/25", "fd00::/64"], &["10.1.0.0/24"]);
        check("10.1.0.7/32", &["10.1.0.7/32"], &["10.1.0.7/32"]);
    }
}
