//! Tables that rules lead to.

use super::*;
use crate::kernel::{Rule, Selects, Verdict};

/// A rule of IPv4 that leads to a table.
fn rule(priority: u32, selects: Selects, number: u32) -> Rule {
    let verdict = Verdict::Table { number, longer_than: None };
    Rule { priority, selects, verdict, ..Rule::default() }
}

/// Tables with node 2 in the main one, and these rules before it.
fn ruled(rules: &[Rule], paths: &[Path]) -> Mirror {
    let mut tables = tables();
    add_node(&mut tables, 2);
    tables.rules = [rules, &[rule(32_766, Selects::All, MAIN)]].concat();
    tables.paths.extend(paths.iter().cloned());
    seen(&tables)
}

fn in_table(table: u32, path: Path) -> Path {
    Path { table, ..path }
}

#[test]
fn a_table_that_all_packets_are_led_to_hides_what_it_covers() {
    let ours = in_table(100, path("10.4.0.0/24", DEVICE, Some("10.2.0.0")));
    let hides = in_table(100, path("10.2.0.0/16", UNDERLAY, Some("192.0.2.9")));
    let all = rule(5, Selects::All, 100);
    let mirror = ruled(std::slice::from_ref(&all), std::slice::from_ref(&ours));
    let to = |mirror: &Mirror| subnets(mirror).into_iter().map(|(to, _)| to).collect::<BTreeSet<_>>();
    let both = ["10.2.0.0/24", "10.4.0.0/24"].map(str::to_owned);
    assert_eq!((to(&mirror), mirror.left.len()), (both.clone().into(), 0));
    let mirror = ruled(&[all], &[ours.clone(), hides]);
    assert_eq!((to(&mirror), mirror.left.len()), ([both[1].clone()].into(), 0));
    // Behind the main table it is for what that has no route to, which is nothing: it has a default route.
    let mirror = ruled(&[rule(40_000, Selects::All, 100)], &[ours]);
    assert_eq!(to(&mirror), [both[0].clone()].into());
}

#[test]
fn a_table_that_some_packets_are_led_to_is_a_hole() {
    let inside = in_table(100, path("10.2.0.128/25", UNDERLAY, None));
    let some = rule(5, Selects::Some, 100);
    let mirror = ruled(std::slice::from_ref(&some), std::slice::from_ref(&inside));
    assert_eq!(mirror.holes, [net("10.2.0.128/25")].into());
    assert!(mirror.left[0].contains("some packets, and not all, to table 100"), "{:?}", mirror.left);
    let around = in_table(100, path("10.0.0.0/8", UNDERLAY, None));
    let mirror = ruled(std::slice::from_ref(&some), &[around]);
    assert!(subnets(&mirror).is_empty() && mirror.cluster.own.subnets.is_empty(), "{mirror:?}");
    assert_eq!(mirror.cluster.remotes.len(), 1, "what the host has routed is led by its MAC");
    let marked = rule(5, Selects::Marked, 100);
    assert_eq!(
        ruled(&[marked], std::slice::from_ref(&inside)).holes,
        BTreeSet::new(),
        "marked packets are told apart"
    );
    // Some skip the table.
    let mirror = ruled(&[rule(4, Selects::Some, MAIN), rule(5, Selects::All, 100)], &[inside]);
    assert_eq!((mirror.holes.len(), mirror.left.len()), (1, 1), "{mirror:?}");
}

#[test]
fn rules_that_lead_to_no_table_leave_what_comes_behind() {
    for (selects, verdict) in [
        (Selects::All, Verdict::Nowhere),
        (Selects::Some, Verdict::Nowhere),
        (Selects::All, Verdict::Elsewhere),
    ] {
        let mirror = ruled(&[Rule { priority: 5, selects, verdict, ..Rule::default() }], &[]);
        assert!(subnets(&mirror).is_empty() && mirror.left.len() == 1, "{mirror:?}");
    }
    let next = Rule { priority: 5, verdict: Verdict::Next, ..Rule::default() };
    assert_eq!(subnets(&ruled(&[next], &[])).len(), 1);
}

#[test]
fn a_tunnel_that_takes_the_default_route_takes_no_other() {
    // As wg-quick makes it.
    let verdict = Verdict::Table { number: MAIN, longer_than: Some(0) };
    let rules = [Rule { priority: 4, verdict, ..Rule::default() }, rule(5, Selects::Some, 51_820)];
    let mirror = ruled(&rules, &[in_table(51_820, path("0.0.0.0/0", UNDERLAY, None))]);
    assert_eq!((subnets(&mirror).len(), mirror.cluster.own.subnets.len()), (1, 1), "{mirror:?}");
    // What is passed over is not forgotten: short prefixes of the main table come with its own rule.
    let verdict = Verdict::Table { number: MAIN, longer_than: Some(24) };
    let mirror = ruled(&[Rule { priority: 4, verdict, ..Rule::default() }], &[]);
    assert_eq!(subnets(&mirror).len(), 1, "{mirror:?}");
}

#[test]
fn a_table_that_no_rule_leads_to_is_named() {
    let mirror = ruled(&[], &[in_table(100, path("10.4.0.0/24", DEVICE, Some("10.2.0.0")))]);
    assert!(mirror.left[0].contains("table 100") && subnets(&mirror).len() == 1, "{mirror:?}");
}
