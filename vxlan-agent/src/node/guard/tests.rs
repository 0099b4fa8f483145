use super::*;

fn guard(vni: u32, own: &[&str], sources: &[(&str, &str)]) -> Guard {
    let parsed = |(vtep, source): &(&str, &str)| {
        (vtep.parse().expect("an address"), source.parse().expect("a network"))
    };
    let own = own.iter().map(|ip| ip.parse().expect("an address")).collect();
    let vni = Vni::try_from(vni).expect("in range");
    let pods = vec!["10.1.0.0/24".parse().expect("a network")];
    Guard { port: 8472, vni, own, sources: sources.iter().map(parsed).collect(), bridged: false, pods }
}

fn names(guards: &[&Guard]) -> Vec<&'static str> {
    let [input, _] = chains(&sets(guards.iter().copied()));
    input.rules.into_iter().map(|(name, _)| name).collect()
}

#[test]
fn the_rules_are_the_same_for_any_number_of_networks() {
    let one = guard(1, &["192.0.2.1"], &[("192.0.2.2", "10.2.0.0/24"), ("2001:db8::2", "fd00:2::/64")]);
    let two = guard(2, &[], &[("192.0.2.3", "10.3.0.0/24"), ("2001:db8::2", "fd00:3::/64")]);
    let bridged = Guard { bridged: true, ..guard(3, &["192.0.2.1"], &[("192.0.2.9", "192.0.2.9/32")]) };
    let rules = |guards: &[&Guard]| chains(&sets(guards.iter().copied())).map(|chain| chain.rules);
    assert_eq!(rules(&[&one]), rules(&[&one, &two, &bridged]));
    assert_ne!(rules(&[&one]), rules(&[&bridged]), "prefix lengths");
}

#[test]
fn each_prefix_length_has_a_set_and_a_rule_the_shortest_first() {
    let of = |sources: &[(&str, &str)]| guard(1, &["192.0.2.1"], sources);
    let one = of(&[("192.0.2.2", "10.2.0.0/24")]);
    let two = of(&[("192.0.2.2", "10.2.0.0/24"), ("192.0.2.2", "192.0.2.2/32")]);
    let count = |guards: &[&Guard]| names(guards).iter().filter(|name| **name == "known senders").count();
    assert_eq!([count(&[]), count(&[&one]), count(&[&two])], [0, 3, 6]);
    let sets = sets([&two].into_iter());
    assert_eq!(sets::lengths(&sets, "sources44/").into_iter().collect::<Vec<_>>(), [24, 32]);
}

#[test]
fn what_usually_comes_meets_few_rules() {
    let one = guard(1, &["192.0.2.1"], &[("192.0.2.2", "10.2.0.0/24")]);
    assert_eq!(names(&[&one])[..3], ["not UDP", "other ports", "usual"]);
    assert!(!names(&[&guard(1, &["192.0.2.1"], &[])]).contains(&"usual"), "nobody is known");
}

#[test]
fn in_a_bridged_network_nobody_asks_who_is_inside() {
    let routed = guard(1, &["192.0.2.1"], &[("192.0.2.2", "192.0.2.2/32")]);
    let bridged = Guard { bridged: true, ..routed };
    let sets = sets([&bridged].into_iter());
    assert!(sets.keys().all(|name| !name.starts_with("sources")));
    assert_eq!(sets["bridged"].elements, sets["networks"].elements);
}

#[test]
fn elements_say_which_network_they_are_of() {
    let one = guard(1, &["192.0.2.1"], &[("192.0.2.2", "10.2.0.0/24")]);
    let two = guard(2, &[], &[("192.0.2.2", "10.2.0.0/24"), ("192.0.2.3", "10.2.0.0/24")]);
    let sets = sets([&one, &two].into_iter());
    let of = |name: &str, vni: u32| {
        let key = network(Vni::try_from(vni).expect("in range"), 8472);
        sets[name].elements.iter().filter(|element| element.begins_with(&key)).count()
    };
    for (name, expected) in
        [("known4", [1, 0]), ("own4", [1, 0]), ("vteps4", [1, 2]), ("sources44/24", [1, 2])]
    {
        assert_eq!([of(name, 1), of(name, 2)], expected, "{name}");
    }
    assert_eq!((sets["nodes4"].elements.len(), sets["pods4/24"].elements.len()), (2, 1));
    for (name, set) in &sets {
        assert_eq!(fields(name).as_ref(), Some(&set.fields), "{name}");
        assert_eq!(is_mixed(name), name.starts_with("nodes") || name.starts_with("pods"));
    }
    assert_eq!(fields("somebody's"), None);
}
