//! Rules that may tell one of the tunnel's packets from another of the same VTEP.
//!
//! Of a VTEP's packets only one in a second meets the rules in front of the tunnel's port, if the host stack has to see
//! what is inside: what becomes of it says what becomes of the others. So it is with rules about addresses, the
//! destination port, interfaces and connections, but not with those that look at what differs; nor with those that
//! write beside a packet what stays there when it leaves its tunnel (`skb_scrub_packet`, v6.18: its mark).

use nix::libc;

use super::rule::Effect;
use super::xtables;
use crate::kernel::nft::attributes::{find, find_number, find_string, list};
use crate::kernel::nft::nfta;

const UDP: u8 = libc::IPPROTO_UDP as u8;
/// Bytes of IP headers in front of this one differ from packet to packet: length, identification, DSCP.
const FIRST_STEADY: u32 = 6;
/// The destination port within UDP's header.
const DESTINATION_PORT: std::ops::Range<u32> = 2..4;

/// What an expression does to a VTEP's packets that it does not do to all of them alike.
pub(super) fn effect(expression: &[u8]) -> Option<Effect> {
    if marks(expression) {
        Some(Effect::Needs("a mark".into()))
    } else {
        looks_inside(expression).map(Effect::Meters)
    }
}

/// Whether an expression writes beside the packet what is still there when it has left its tunnel.
fn marks(expression: &[u8]) -> bool {
    let data = find(expression, nfta::EXPR_DATA).unwrap_or_default();
    match find_string(expression, nfta::EXPR_NAME).as_deref() {
        Some("meta") => {
            let tracing = find_number(data, nfta::META_KEY) == Some(libc::NFT_META_NFTRACE as u32);
            find(data, nfta::META_SREG).is_some() && !tracing
        }
        Some("target") => xtables::marks(&find_string(data, nfta::TARGET_NAME).unwrap_or_default()),
        _ => false,
    }
}

/// What in the packet an expression looks at that differs among the packets of a VTEP.
fn looks_inside(expression: &[u8]) -> Option<String> {
    let name = find_string(expression, nfta::EXPR_NAME).unwrap_or_default();
    let data = find(expression, nfta::EXPR_DATA).unwrap_or_default();
    let key = |kind| find_number(data, kind).and_then(|key| i32::try_from(key).ok());
    match name.as_str() {
        "hash" | "inner" => Some(name),
        "payload" if find(data, nfta::PAYLOAD_SREG).is_none() => payload(data),
        "meta" if find(data, nfta::META_SREG).is_none() => match key(nfta::META_KEY)? {
            libc::NFT_META_LEN => Some("meta length".into()),
            libc::NFT_META_CPU => Some("meta cpu".into()),
            _ => None,
        },
        "ct" if find(data, nfta::CT_SREG).is_none() => {
            (key(nfta::CT_KEY)? == libc::NFT_CT_PROTO_SRC).then(|| "ct proto-src".into())
        }
        "match" => {
            let name = find_string(data, nfta::MATCH_NAME).unwrap_or_default();
            let info = find(data, nfta::MATCH_INFO).unwrap_or_default();
            xtables::looks_inside(&name, info).then(|| format!("match {name}"))
        }
        _ => None,
    }
}

fn payload(data: &[u8]) -> Option<String> {
    let number = |kind| find_number(data, kind).unwrap_or(u32::MAX);
    let (base, offset) = (number(nfta::PAYLOAD_BASE) as i32, number(nfta::PAYLOAD_OFFSET));
    let end = offset.saturating_add(number(nfta::PAYLOAD_LEN));
    let steady = match base {
        libc::NFT_PAYLOAD_LL_HEADER => true,
        libc::NFT_PAYLOAD_NETWORK_HEADER => offset >= FIRST_STEADY,
        libc::NFT_PAYLOAD_TRANSPORT_HEADER => offset >= DESTINATION_PORT.start && end <= DESTINATION_PORT.end,
        _ => false,
    };
    (!steady).then(|| "payload".into())
}

/// Whether a rule of these expressions is about packets of another protocol than UDP.
pub(super) fn is_about_others(expressions: &[u8]) -> bool {
    let mut is_protocol = false;
    for (_, expression) in list(expressions) {
        let name = find_string(expression, nfta::EXPR_NAME).unwrap_or_default();
        let data = find(expression, nfta::EXPR_DATA).unwrap_or_default();
        if is_protocol && name == "cmp" && compares_with_another(data) {
            return true;
        }
        is_protocol = loads_protocol(&name, data);
    }
    false
}

fn loads_protocol(name: &str, data: &[u8]) -> bool {
    let number = |kind| find_number(data, kind).map_or(-1, |number| number as i32);
    match name {
        "meta" => number(nfta::META_KEY) == libc::NFT_META_L4PROTO && find(data, nfta::META_SREG).is_none(),
        // As `iptables` asks.
        "payload" => {
            number(nfta::PAYLOAD_BASE) == libc::NFT_PAYLOAD_NETWORK_HEADER
                && number(nfta::PAYLOAD_LEN) == 1
                && number(nfta::PAYLOAD_OFFSET) == 9
        }
        _ => false,
    }
}

/// Whether a comparison asks for a protocol other than UDP.
fn compares_with_another(data: &[u8]) -> bool {
    let equal = find_number(data, nfta::CMP_OP) == Some(libc::NFT_CMP_EQ as u32);
    let value = find(data, nfta::CMP_DATA).and_then(|data| find(data, nfta::DATA_VALUE));
    equal && value.and_then(|value| value.first()).is_some_and(|protocol| *protocol != UDP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::nft::Attributes;

    fn expression(name: &str, data: &Attributes) -> Attributes {
        Attributes::default().string(nfta::EXPR_NAME, name).nest(nfta::EXPR_DATA, data)
    }

    fn load(base: i32, offset: u32, length: u32) -> Attributes {
        let data = Attributes::default()
            .number(nfta::PAYLOAD_BASE, base as u32)
            .number(nfta::PAYLOAD_OFFSET, offset)
            .number(nfta::PAYLOAD_LEN, length);
        expression("payload", &data)
    }

    fn meta(key: i32) -> Attributes {
        expression("meta", &Attributes::default().number(nfta::META_KEY, key as u32))
    }

    fn equals(value: u8) -> Attributes {
        let value = Attributes::default().bytes(nfta::DATA_VALUE, &[value]);
        let data = Attributes::default().number(nfta::CMP_OP, 0).nest(nfta::CMP_DATA, &value);
        expression("cmp", &data)
    }

    #[test]
    fn what_differs_among_a_vteps_packets_is_inside() {
        let inside = |expression: Attributes| looks_inside(expression.as_bytes()).is_some();
        for (offset, length, differs) in
            [(2, 2, false), (0, 2, true), (0, 4, true), (4, 2, true), (12, 3, true)]
        {
            assert_eq!(inside(load(libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset, length)), differs, "{offset}");
        }
        for (offset, length, differs) in
            [(12, 4, false), (12, 8, false), (9, 1, false), (8, 16, false), (1, 1, true)]
        {
            assert_eq!(inside(load(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length)), differs, "{offset}");
        }
        assert!(inside(load(3, 0, 4)), "the inner header");
        assert!(inside(meta(libc::NFT_META_LEN)) && !inside(meta(libc::NFT_META_MARK)));
        assert!(!inside(meta(libc::NFT_META_L4PROTO)));
        let ct = |key: i32| expression("ct", &Attributes::default().number(nfta::CT_KEY, key as u32));
        assert!(inside(ct(libc::NFT_CT_PROTO_SRC)) && !inside(ct(libc::NFT_CT_STATE)));
        assert!(inside(expression("hash", &Attributes::default())));
        let sets = |key: i32| {
            let data = Attributes::default().number(nfta::META_KEY, key as u32).number(nfta::META_SREG, 1);
            effect(expression("meta", &data).as_bytes())
        };
        assert!(matches!(sets(libc::NFT_META_MARK), Some(Effect::Needs(_))));
        assert_eq!(sets(libc::NFT_META_NFTRACE), None);
    }

    #[test]
    fn a_rule_about_another_protocol_is_not_about_tunnels() {
        let rule = |parts: &[Attributes]| {
            let list =
                parts.iter().fold(Attributes::default(), |list, part| list.nest(nfta::LIST_ELEM, part));
            is_about_others(list.as_bytes())
        };
        let protocol = meta(libc::NFT_META_L4PROTO);
        assert!(rule(&[protocol.clone(), equals(6)]));
        assert!(rule(&[load(libc::NFT_PAYLOAD_NETWORK_HEADER, 9, 1), equals(1)]));
        assert!(!rule(&[protocol.clone(), equals(UDP)]));
        assert!(!rule(&[protocol.clone(), meta(libc::NFT_META_MARK), equals(6)]));
        assert!(!rule(&[protocol]) && !rule(&[equals(6)]) && !rule(&[]));
    }
}
