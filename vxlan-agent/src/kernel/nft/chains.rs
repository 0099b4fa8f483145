//! Chains of nf_tables with what their rules ask for and do, as far as one can tell whether they let a packet
//! pass.

use std::io;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use nix::libc;

use super::attributes::{find, find_number, find_string, list, string};
use super::{ANY, Attributes, Reader, nfta};

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// `NFPROTO_…`.
    pub family: u8,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The hook (`NF_INET_…`) that it is at; `None` for one that others lead to.
    pub hook: Option<u32>,
    /// Its place among those of the hook: the lowest comes first.
    pub priority: i32,
    /// Whether it drops what no rule decides about.
    pub drops: bool,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its number, as `nft -a list chain` shows it.
    pub handle: u64,
    /// What all has to be so of a packet.
    pub conditions: Vec<Condition>,
    /// What it does with such a packet, if it decides anything.
    pub verdict: Option<Verdict>,
}

/// What a rule asks of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The IP protocol.
    Protocol(u8),
    /// `NFPROTO_…`.
    Family(u8),
    /// A UDP destination port from the first to the last.
    Ports(u16, u16),
    /// The interface that it comes in by; `*` at the end stands for anything.
    In(String),
    /// The interface that it leaves by.
    Out(String),
    /// Its source.
    From(IpNetwork),
    /// Its destination.
    To(IpNetwork),
    /// A connection's state, by `NF_CT_STATE_…` bits.
    State(u32),
    /// What is not understood here.
    Unknown,
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The hook's next chain is asked.
    Accept,
    /// The packet is gone.
    Drop,
    /// Back to the chain that led here.
    Return,
    /// This chain is asked, and then the next rule.
    Jump(String),
    /// This chain is asked.
    Goto(String),
}

/// Bit of a connection's first packet.
pub const NEW: u32 = 8;
/// Interfaces of a rule by name.
const IIFNAME: u32 = libc::NFT_META_IIFNAME as u32;
const OIFNAME: u32 = libc::NFT_META_OIFNAME as u32;

/// All chains and rules of this thread's network namespace; none where the kernel has no nf_tables.
///
/// # Errors
/// The kernel does not say.
pub fn read() -> io::Result<Vec<Chain>> {
    let mut reader = match Reader::open() {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL)) => {
            return Ok(vec![]);
        }
        reader => reader?,
    };
    let mut chains = vec![];
    reader.dump(libc::NFT_MSG_GETCHAIN, ANY, Attributes::default(), |family, attributes| {
        chains.extend(chain(family, attributes));
    })?;
    reader.dump(libc::NFT_MSG_GETRULE, ANY, Attributes::default(), |family, attributes| {
        let name = |kind| find_string(attributes, kind).unwrap_or_default();
        let (table, name) = (name(nfta::RULE_TABLE), name(nfta::RULE_CHAIN));
        let is_its =
            |chain: &&mut Chain| (chain.family, &chain.table, &chain.name) == (family, &table, &name);
        if let Some(chain) = chains.iter_mut().find(is_its) {
            chain.rules.push(rule(attributes));
        }
    })?;
    Ok(chains)
}

fn chain(family: u8, attributes: &[u8]) -> Option<Chain> {
    let hook = find(attributes, nfta::CHAIN_HOOK);
    Some(Chain {
        family,
        table: find_string(attributes, nfta::CHAIN_TABLE)?,
        name: find_string(attributes, nfta::CHAIN_NAME)?,
        hook: hook.and_then(|hook| find_number(hook, nfta::HOOK_HOOKNUM)),
        priority: hook.and_then(|hook| find_number(hook, nfta::HOOK_PRIORITY)).unwrap_or_default() as i32,
        drops: find_number(attributes, nfta::CHAIN_POLICY) == Some(libc::NF_DROP as u32),
        rules: vec![],
    })
}

/// What the last expressions have loaded, for the one that compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loaded {
    Nothing,
    Protocol,
    Family,
    Port,
    InIndex,
    In,
    Out,
    From,
    To,
    State,
}

fn rule(attributes: &[u8]) -> Rule {
    let handle = find(attributes, nfta::RULE_HANDLE).and_then(|bytes| bytes.try_into().ok());
    let mut rule = Rule { handle: handle.map_or(0, u64::from_be_bytes), ..Rule::default() };
    let (mut loaded, mut mask): (_, Option<Vec<u8>>) = (Loaded::Nothing, None);
    let expressions = find(attributes, nfta::RULE_EXPRESSIONS).unwrap_or_default();
    for (_, expression) in list(expressions) {
        let name = find_string(expression, nfta::EXPR_NAME).unwrap_or_default();
        let data = find(expression, nfta::EXPR_DATA).unwrap_or_default();
        match name.as_str() {
            "payload" => (loaded, mask) = (load_payload(data), None),
            "meta" => (loaded, mask) = (load_meta(data), None),
            "ct" => (loaded, mask) = (load_connection(data), None),
            "bitwise" => mask = find(data, nfta::BITWISE_MASK).and_then(value).map(<[u8]>::to_vec),
            "cmp" => rule.conditions.push(compare(loaded, mask.as_deref(), data)),
            "range" => rule.conditions.push(range(loaded, data)),
            "match" => rule.conditions.push(matched(data)),
            "immediate" => rule.verdict = verdict(data).or(rule.verdict),
            "reject" => rule.verdict = Some(Verdict::Drop),
            "target" => rule.verdict = target(data).or(rule.verdict),
            "counter" | "log" => {}
            // Sets, limits, and what else may be.
            _ => rule.conditions.push(Condition::Unknown),
        }
    }
    rule
}

fn value(data: &[u8]) -> Option<&[u8]> {
    find(data, nfta::DATA_VALUE)
}

fn load_payload(data: &[u8]) -> Loaded {
    let number = |kind| find_number(data, kind).unwrap_or(u32::MAX);
    let (base, offset, length) =
        (number(nfta::PAYLOAD_BASE) as i32, number(nfta::PAYLOAD_OFFSET), number(nfta::PAYLOAD_LEN));
    match (base, offset, length) {
        (libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2) => Loaded::Port,
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 9, 1) => Loaded::Protocol,
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 12, 1..=4) => Loaded::From,
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 1..=4) => Loaded::To,
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 8, 5..=16) => Loaded::From,
        (libc::NFT_PAYLOAD_NETWORK_HEADER, 24, 1..=16) => Loaded::To,
        _ => Loaded::Nothing,
    }
}

fn load_meta(data: &[u8]) -> Loaded {
    match find_number(data, nfta::META_KEY) {
        Some(key) if key == libc::NFT_META_L4PROTO as u32 => Loaded::Protocol,
        Some(key) if key == libc::NFT_META_NFPROTO as u32 => Loaded::Family,
        Some(key) if key == libc::NFT_META_IIF as u32 => Loaded::InIndex,
        Some(IIFNAME) => Loaded::In,
        Some(OIFNAME) => Loaded::Out,
        _ => Loaded::Nothing,
    }
}

fn load_connection(data: &[u8]) -> Loaded {
    let state = find_number(data, nfta::CT_KEY) == Some(libc::NFT_CT_STATE as u32);
    if state { Loaded::State } else { Loaded::Nothing }
}

fn compare(loaded: Loaded, mask: Option<&[u8]>, data: &[u8]) -> Condition {
    let condition = || {
        let value = find(data, nfta::CMP_DATA).and_then(value)?;
        let operation = find_number(data, nfta::CMP_OP)? as i32;
        if let (Loaded::State, Some(mask), libc::NFT_CMP_NEQ) = (loaded, mask, operation) {
            return Some(Condition::State(u32::from_ne_bytes(mask.try_into().ok()?)));
        }
        if operation != libc::NFT_CMP_EQ {
            return None;
        }
        Some(match loaded {
            Loaded::Protocol => Condition::Protocol(*value.first()?),
            Loaded::Family => Condition::Family(*value.first()?),
            Loaded::Port => {
                let port = u16::from_be_bytes(value.try_into().ok()?);
                Condition::Ports(port, port)
            }
            // In every network namespace this is the loopback's; of others the names may have changed.
            Loaded::InIndex if value == 1u32.to_ne_bytes() => Condition::In("lo".to_owned()),
            Loaded::InIndex => return None,
            // Without the zero byte at its end, a name stands for all that begin so.
            Loaded::In => Condition::In(interface(value)),
            Loaded::Out => Condition::Out(interface(value)),
            Loaded::From => Condition::From(network(value, mask)?),
            Loaded::To => Condition::To(network(value, mask)?),
            Loaded::State | Loaded::Nothing => return None,
        })
    };
    condition().unwrap_or(Condition::Unknown)
}

fn interface(value: &[u8]) -> String {
    let end = if value.contains(&0) { "" } else { "*" };
    string(value) + end
}

/// The prefix that the first bytes of an address, or those that a mask leaves, stand for.
fn network(value: &[u8], mask: Option<&[u8]>) -> Option<IpNetwork> {
    let bits = mask.map_or(value.len() * 8, |mask| mask.iter().map(|byte| byte.count_ones() as usize).sum());
    let ip = if value.len() <= 4 {
        let mut octets = [0; 4];
        octets[..value.len()].copy_from_slice(value);
        IpAddr::from(octets)
    } else {
        let mut octets = [0; 16];
        octets.get_mut(..value.len())?.copy_from_slice(value);
        IpAddr::from(octets)
    };
    IpNetwork::new(ip, u8::try_from(bits).ok()?).ok()
}

fn range(loaded: Loaded, data: &[u8]) -> Condition {
    let end = |kind| {
        let bytes = find(data, kind).and_then(value)?;
        Some(u16::from_be_bytes(bytes.try_into().ok()?))
    };
    let equal = find_number(data, nfta::RANGE_OP) == Some(libc::NFT_RANGE_EQ as u32);
    match (loaded, end(nfta::RANGE_FROM), end(nfta::RANGE_TO)) {
        (Loaded::Port, Some(first), Some(last)) if equal => Condition::Ports(first, last),
        _ => Condition::Unknown,
    }
}

/// As `iptables` asks. `struct xt_udp` has the source ports first, and at the end what is inverted.
fn matched(data: &[u8]) -> Condition {
    let name = find_string(data, nfta::MATCH_NAME).unwrap_or_default();
    let info = find(data, nfta::MATCH_INFO).unwrap_or_default();
    let port = |at: usize| Some(u16::from_ne_bytes([*info.get(at)?, *info.get(at + 1)?]));
    match (name.as_str(), port(0), port(2), port(4), port(6), info.get(8)) {
        ("udp", Some(0), Some(u16::MAX), Some(first), Some(last), Some(0)) => Condition::Ports(first, last),
        ("comment", ..) => Condition::Family(ANY),
        // As all who ask for it want: of connections that are there.
        ("conntrack" | "state", ..) => Condition::State(!NEW),
        _ => Condition::Unknown,
    }
}

fn verdict(data: &[u8]) -> Option<Verdict> {
    let verdict = find(find(data, nfta::IMMEDIATE_DATA)?, nfta::DATA_VERDICT)?;
    let chain = || find_string(verdict, nfta::VERDICT_CHAIN);
    match find_number(verdict, nfta::VERDICT_CODE)? as i32 {
        libc::NF_ACCEPT => Some(Verdict::Accept),
        libc::NF_DROP => Some(Verdict::Drop),
        libc::NFT_RETURN => Some(Verdict::Return),
        libc::NFT_JUMP => chain().map(Verdict::Jump),
        libc::NFT_GOTO => chain().map(Verdict::Goto),
        _ => None,
    }
}

fn target(data: &[u8]) -> Option<Verdict> {
    match find_string(data, nfta::TARGET_NAME)?.as_str() {
        "REJECT" | "DROP" => Some(Verdict::Drop),
        "ACCEPT" => Some(Verdict::Accept),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(name: &str, data: &Attributes) -> Attributes {
        Attributes::default().string(nfta::EXPR_NAME, name).nest(nfta::EXPR_DATA, data)
    }

    fn payload(base: i32, offset: u32, length: u32) -> Attributes {
        let data = Attributes::default()
            .number(nfta::PAYLOAD_BASE, base as u32)
            .number(nfta::PAYLOAD_OFFSET, offset)
            .number(nfta::PAYLOAD_LEN, length);
        expression("payload", &data)
    }

    fn equals(value: &[u8]) -> Attributes {
        let value = Attributes::default().bytes(nfta::DATA_VALUE, value);
        expression("cmp", &Attributes::default().number(nfta::CMP_OP, 0).nest(nfta::CMP_DATA, &value))
    }

    fn conditions(parts: &[Attributes]) -> Vec<Condition> {
        let list = parts.iter().fold(Attributes::default(), |list, part| list.nest(nfta::LIST_ELEM, part));
        rule(Attributes::default().nest(nfta::RULE_EXPRESSIONS, &list).as_bytes()).conditions
    }

    #[test]
    fn ports_and_addresses_are_understood_as_nft_writes_them() {
        let port = conditions(&[payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2), equals(&[0x21, 0x18])]);
        assert_eq!(port, [Condition::Ports(8472, 8472)]);
        let from = conditions(&[payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 12, 1), equals(&[10])]);
        assert_eq!(from, [Condition::From("10.0.0.0/8".parse().expect("a prefix"))]);
        let mask = Attributes::default().bytes(nfta::DATA_VALUE, &[255, 255, 240, 0]);
        let mask = expression("bitwise", &Attributes::default().nest(nfta::BITWISE_MASK, &mask));
        let to =
            conditions(&[payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 4), mask, equals(&[172, 16, 0, 0])]);
        assert_eq!(to, [Condition::To("172.16.0.0/20".parse().expect("a prefix"))]);
    }

    #[test]
    fn what_is_not_understood_is_a_condition_all_the_same() {
        assert_eq!(conditions(&[expression("lookup", &Attributes::default())]), [Condition::Unknown]);
        let other = conditions(&[payload(libc::NFT_PAYLOAD_LL_HEADER, 0, 6), equals(&[1; 6])]);
        assert_eq!(other, [Condition::Unknown]);
    }
}
