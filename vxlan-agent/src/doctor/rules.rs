//! What becomes of a packet at the rules of nf_tables, as far as they are understood: a packet is said to be
//! dropped only where no rule that might let it pass comes before.

use std::net::IpAddr;

use nix::libc;

use crate::kernel::nft::chains::{Chain, Condition, NEW, Rule, Verdict};
use crate::ownership::is_nft_table;

/// How deep chains may lead into each other (`NFT_JUMP_STACK_SIZE`).
const DEEPEST: usize = 16;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

/// A connection's first packet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Packet<'a> {
    pub(super) from: Option<IpAddr>,
    pub(super) to: Option<IpAddr>,
    /// Its UDP destination port, if it is UDP.
    pub(super) port: Option<u16>,
    /// The interfaces that it comes in by and leaves by, where it does.
    pub(super) enters: Option<&'a str>,
    pub(super) leaves: Option<&'a str>,
}

/// Where a packet is dropped: the chain, and the rule or its policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dropped<'c> {
    pub(super) chain: &'c Chain,
    /// `None`: the chain's policy.
    pub(super) rule: Option<&'c Rule>,
}

impl Dropped<'_> {
    /// As one finds it with `nft -a list chain`.
    pub(super) fn place(&self) -> String {
        let Chain { table, name, family, .. } = self.chain;
        let chain = format!("{} {table} {name}", family_name(*family));
        match self.rule {
            Some(rule) => format!("nft chain {chain}, handle {}", rule.handle),
            None => format!("nft chain {chain}, policy drop"),
        }
    }

    /// The chain and the rule as arguments of nft.
    pub(super) fn chain(&self) -> String {
        let Chain { table, name, family, .. } = self.chain;
        format!("{} {table} {name}", family_name(*family))
    }
}

fn family_name(family: u8) -> &'static str {
    match family {
        IPV4 => "ip",
        IPV6 => "ip6",
        _ => "inet",
    }
}

/// What may come of asking a chain.
enum Outcome<'c> {
    Dropped(Dropped<'c>),
    /// It passes, or nobody can tell.
    Passes,
    /// The chain says nothing.
    Silent,
}

/// Where `packet` is certainly dropped at one of `hooks`, if it is.
pub(super) fn dropped<'c>(chains: &'c [Chain], hooks: &[i32], packet: &Packet<'_>) -> Option<Dropped<'c>> {
    let v6 = packet.from.or(packet.to).is_some_and(|ip| ip.is_ipv6());
    let sees = |chain: &&Chain| {
        let family = chain.family == INET || chain.family == if v6 { IPV6 } else { IPV4 };
        let at = chain.hook.is_some_and(|hook| hooks.iter().any(|known| u32::try_from(*known) == Ok(hook)));
        family && at && !is_nft_table(&chain.table)
    };
    let mut bases: Vec<_> = chains.iter().filter(sees).collect();
    bases.sort_by_key(|chain| chain.priority);
    bases.into_iter().find_map(|base| match ask(chains, base, packet, 0) {
        Outcome::Dropped(dropped) => Some(dropped),
        Outcome::Silent if base.drops => Some(Dropped { chain: base, rule: None }),
        Outcome::Silent | Outcome::Passes => None,
    })
}

fn ask<'c>(chains: &'c [Chain], chain: &'c Chain, packet: &Packet<'_>, depth: usize) -> Outcome<'c> {
    let named = |name: &str| {
        let of_table = chains.iter().filter(|c| c.family == chain.family && c.table == chain.table);
        of_table.into_iter().find(|c| c.name == name).filter(|_| depth < DEEPEST)
    };
    // Whether a rule that is not understood may have led out of this chain.
    let mut may_have_left = false;
    for rule in &chain.rules {
        let Some(certain) = matches(rule, packet) else { continue };
        match &rule.verdict {
            None => {}
            Some(Verdict::Drop) if certain && !may_have_left => {
                return Outcome::Dropped(Dropped { chain, rule: Some(rule) });
            }
            Some(Verdict::Drop) => {}
            Some(Verdict::Accept) => return Outcome::Passes,
            Some(Verdict::Return) if certain => return Outcome::Silent,
            Some(Verdict::Return) => may_have_left = true,
            Some(Verdict::Jump(name) | Verdict::Goto(name)) => {
                let Some(target) = named(name) else { return Outcome::Passes };
                match ask(chains, target, packet, depth + 1) {
                    Outcome::Dropped(dropped) if certain && !may_have_left => {
                        return Outcome::Dropped(dropped);
                    }
                    Outcome::Dropped(_) => {}
                    Outcome::Passes => return Outcome::Passes,
                    Outcome::Silent => {}
                }
            }
        }
    }
    if may_have_left { Outcome::Passes } else { Outcome::Silent }
}

/// Whether the rule is about the packet: `None` if not, and whether that is certain.
fn matches(rule: &Rule, packet: &Packet<'_>) -> Option<bool> {
    let answers: Vec<Option<bool>> = rule.conditions.iter().map(|c| holds(c, packet)).collect();
    (!answers.contains(&Some(false))).then(|| !answers.contains(&None))
}

/// Whether a condition is met; `None` where nobody can tell.
fn holds(condition: &Condition, packet: &Packet<'_>) -> Option<bool> {
    let v6 = packet.from.or(packet.to).map(|ip| ip.is_ipv6());
    match condition {
        Condition::Protocol(protocol) => packet.port.map(|_| i32::from(*protocol) == libc::IPPROTO_UDP),
        Condition::Family(0) => Some(true),
        Condition::Family(family) => v6.map(|v6| *family == if v6 { IPV6 } else { IPV4 }),
        Condition::Ports(first, last) => packet.port.map(|port| (*first..=*last).contains(&port)),
        Condition::In(name) => Some(packet.enters.is_some_and(|interface| is_called(interface, name))),
        Condition::Out(name) => Some(packet.leaves.is_some_and(|interface| is_called(interface, name))),
        Condition::From(network) => packet.from.map(|ip| network.contains(ip)),
        Condition::To(network) => packet.to.map(|ip| network.contains(ip)),
        Condition::State(states) => Some(states & NEW != 0),
        Condition::Unknown => None,
    }
}

fn is_called(interface: &str, name: &str) -> bool {
    name.strip_suffix('*').map_or(interface == name, |begin| interface.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKET: Packet<'static> =
        Packet { from: None, to: None, port: Some(8472), enters: Some("eth0"), leaves: None };

    fn chain(name: &str, drops: bool, rules: &[(&[Condition], Verdict)]) -> Chain {
        let rule = |(conditions, verdict): &(&[Condition], Verdict)| Rule {
            handle: 7,
            conditions: conditions.to_vec(),
            verdict: Some(verdict.clone()),
        };
        Chain {
            family: INET,
            table: "t".into(),
            name: name.into(),
            hook: (name == "input").then_some(libc::NF_INET_LOCAL_IN as u32),
            drops,
            rules: rules.iter().map(rule).collect(),
            ..Chain::default()
        }
    }

    fn place(chains: &[Chain]) -> Option<String> {
        dropped(chains, &[libc::NF_INET_LOCAL_IN], &PACKET).map(|dropped| dropped.place())
    }

    #[test]
    fn a_rule_about_the_port_drops_and_a_rule_about_another_does_not() {
        let with =
            |port| place(&[chain("input", false, &[(&[Condition::Ports(port, port)], Verdict::Drop)])]);
        assert_eq!(with(8472).as_deref(), Some("nft chain inet t input, handle 7"));
        assert_eq!(with(4789), None);
    }

    #[test]
    fn a_policy_drops_what_no_rule_might_let_pass() {
        let policy = |rules: &[(&[Condition], Verdict)]| place(&[chain("input", true, rules)]).is_some();
        assert!(policy(&[]));
        assert!(policy(&[
            (&[Condition::State(6)], Verdict::Accept),
            (&[Condition::In("lo".into())], Verdict::Accept)
        ]));
        assert!(!policy(&[(&[Condition::In("eth*".into())], Verdict::Accept)]));
        assert!(!policy(&[(&[Condition::Unknown], Verdict::Accept)]), "it may let it pass");
        assert!(policy(&[(&[Condition::Unknown], Verdict::Drop)]), "it drops either way");
    }

    #[test]
    fn what_other_chains_say_counts_where_they_are_asked() {
        let jump =
            |condition: Condition| chain("input", false, &[(&[condition], Verdict::Jump("more".into()))]);
        let more = || chain("more", false, &[(&[], Verdict::Drop)]);
        assert!(place(&[jump(Condition::Protocol(17)), more()]).is_some());
        assert!(place(&[jump(Condition::Protocol(6)), more()]).is_none());
        assert!(place(&[jump(Condition::Unknown), more()]).is_none(), "it may not be asked");
    }

    #[test]
    fn what_an_agent_has_made_is_no_fault() {
        let mut own = chain("input", true, &[]);
        own.table = "vxlan-agent-pods".into();
        assert_eq!(place(&[own]), None);
    }
}
