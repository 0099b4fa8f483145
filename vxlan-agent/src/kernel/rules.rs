//! Rules that choose among routing tables.

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

/// A rule that chooses among routing tables, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Whether it is about IPv6.
    pub v6: bool,
    /// Its place: the lowest comes first.
    pub priority: u32,
    /// Which packets it is for.
    pub selects: Selects,
    /// Where it leads them.
    pub verdict: Verdict,
    /// Whether it looks at a packet's mark.
    pub looks_at_mark: bool,
    /// Whether it looks at what no question for a route can express: source ports or users.
    pub looks_deeper: bool,
    /// Whether it tells packets between the same two addresses apart: by protocols or ports, or by what the
    /// library does not know.
    pub looks_past_addresses: bool,
    /// Whether it looks at the TOS, so that it says of one TOS alone how packets leave.
    pub looks_at_tos: bool,
}

/// Which packets a rule is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selects {
    /// All of its IP version.
    #[default]
    All,
    /// Packets that carry a mark.
    Marked,
    /// Ports of VRFs.
    Vrf,
    /// Some, by what else they are like.
    Some,
}

/// Where a rule leads packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next one.
    #[default]
    Next,
    /// To a table, and on to the next rule if that has no route.
    Table {
        /// Its number.
        number: u32,
        /// Routes of prefixes of this length, and of shorter ones, are passed over.
        longer_than: Option<u8>,
    },
    /// Nowhere.
    Nowhere,
    /// To another rule, or to what is not known.
    Elsewhere,
}

/// The rule that a message describes.
pub(super) fn rule(message: &RuleMessage) -> Rule {
    use RuleAttribute::{
        DestinationPortRange, FwMark, FwMask, IpProtocol, Other, Priority, SourcePortRange, TunId, UidRange,
    };
    let any = |wanted: fn(&RuleAttribute) -> bool| message.attributes.iter().any(wanted);
    let priority = message.attributes.iter().find_map(|a| if let Priority(n) = a { Some(*n) } else { None });
    Rule {
        v6: message.header.family == AddressFamily::Inet6,
        priority: priority.unwrap_or(0),
        selects: selects(message),
        verdict: verdict(message),
        looks_at_mark: any(|a| matches!(a, FwMark(mark) | FwMask(mark) if *mark != 0)),
        looks_deeper: any(|a| matches!(a, SourcePortRange(_) | UidRange(_))),
        looks_past_addresses: any(|a| {
            let ports = matches!(a, SourcePortRange(_) | DestinationPortRange(_) | IpProtocol(_));
            ports || matches!(a, UidRange(_) | TunId(_) | Other(_))
        }),
        looks_at_tos: message.header.tos != 0,
    }
}

fn selects(message: &RuleMessage) -> Selects {
    use RuleAttribute::{
        FwMark, Goto, L3MDev, Priority, Protocol, Realm, SuppressIfGroup, SuppressPrefixLen, Table,
    };
    let any = |wanted: fn(&RuleAttribute) -> bool| message.attributes.iter().any(wanted);
    let inverts = message.header.flags.contains(RuleFlags::Invert);
    if any(|a| matches!(a, L3MDev(true))) {
        return Selects::Vrf;
    }
    if any(|a| matches!(a, FwMark(mark) if *mark != 0)) && !inverts {
        return Selects::Marked;
    }
    // It is -1 where nothing is suppressed.
    let of_group = any(|a| matches!(a, SuppressIfGroup(group) if *group != u32::MAX));
    let is_no_selector = |attribute: &RuleAttribute| {
        let about_place = matches!(attribute, Priority(_) | Protocol(_) | Realm(_) | Table(_) | Goto(_));
        about_place || matches!(attribute, SuppressIfGroup(_) | SuppressPrefixLen(_) | L3MDev(_))
    };
    let some = message.header.tos != 0 || !message.attributes.iter().all(is_no_selector);
    if inverts || of_group || some { Selects::Some } else { Selects::All }
}

fn verdict(message: &RuleMessage) -> Verdict {
    let mut number = u32::from(message.header.table);
    let mut longer_than = None;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Table(table) => number = *table,
            // It is -1 where nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(length) => longer_than = u8::try_from(*length).ok(),
            _ => {}
        }
    }
    match message.header.action {
        RuleAction::ToTable => Verdict::Table { number, longer_than },
        RuleAction::Nop => Verdict::Next,
        RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => Verdict::Nowhere,
        _ => Verdict::Elsewhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(attributes: Vec<RuleAttribute>, change: impl Fn(&mut RuleMessage)) -> (Selects, Verdict) {
        let mut message = RuleMessage::default();
        message.header.action = RuleAction::ToTable;
        message.attributes =
            [vec![RuleAttribute::Table(77), RuleAttribute::Priority(5)], attributes].concat();
        change(&mut message);
        let rule = rule(&message);
        assert_eq!(rule.priority, 5);
        (rule.selects, rule.verdict)
    }

    #[test]
    fn a_rule_without_selectors_is_for_all_packets() {
        use RuleAttribute::{FwMark, FwMask, Iifname, L3MDev, Source, SuppressIfGroup, SuppressPrefixLen};
        let table = |longer_than| Verdict::Table { number: 77, longer_than };
        let none = vec![SuppressPrefixLen(u32::MAX), SuppressIfGroup(u32::MAX)];
        assert_eq!(parsed(none, |_| ()), (Selects::All, table(None)));
        assert_eq!(parsed(vec![SuppressPrefixLen(0)], |_| ()), (Selects::All, table(Some(0))));
        let marked = || vec![FwMark(1), FwMask(u32::MAX)];
        assert_eq!(parsed(marked(), |_| ()).0, Selects::Marked);
        let not = |message: &mut RuleMessage| message.header.flags = RuleFlags::Invert;
        assert_eq!(parsed(marked(), not).0, Selects::Some);
        assert_eq!(parsed(vec![FwMask(u32::MAX)], |_| ()).0, Selects::Some, "those without a mark");
        assert_eq!(parsed(vec![L3MDev(true)], |_| ()).0, Selects::Vrf);
        for selector in [Source([10, 0, 0, 0].into()), Iifname("lo".into()), SuppressIfGroup(7)] {
            assert_eq!(parsed(vec![selector], |_| ()).0, Selects::Some);
        }
        assert_eq!(parsed(vec![], |message| message.header.tos = 8).0, Selects::Some);
    }

    #[test]
    fn a_rule_may_lead_elsewhere_than_to_a_table() {
        let verdict = |action| parsed(vec![], |message| message.header.action = action).1;
        assert_eq!(verdict(RuleAction::Prohibit), Verdict::Nowhere);
        assert_eq!(verdict(RuleAction::Nop), Verdict::Next);
        assert_eq!(verdict(RuleAction::Goto), Verdict::Elsewhere);
    }
}
